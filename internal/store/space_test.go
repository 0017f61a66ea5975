package store

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/sys/unix"
)

// until waits for a condition.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); {
		if time.Now().After(deadline) {
			t.Fatalf("in vain: %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// fill puts entries of 256 KiB until one is refused, and returns how many there
// are and why it was.
func (n *node) fill(t *testing.T) (int, error) {
	t.Helper()
	value := strings.Repeat("v", 256<<10)
	for i := range 4000 {
		if _, err := n.Commit(t.Context(), put(fmt.Sprint("fill/", i), value)); err != nil {
			return i, err
		}
	}
	t.Fatal("nothing was refused")
	return 0, nil
}

func TestQuota(t *testing.T) {
	n := startStore(t, "", func(s *Store) {
		s.room.quota, s.defragAbove, s.compactEvery = 16<<20, 4<<20, 50*time.Millisecond
	})
	n.must(t, put("small", "1"), true)
	_, err := n.fill(t)
	if !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "database quota exceeded") || !strings.Contains(err.Error(), "delete") {
		t.Errorf("refused with %v", err)
	}
	until(t, "the status shows it", func() bool { return strings.Contains(n.Status().Full, "database quota exceeded") })
	until(t, "the file is large", func() bool { return n.Status().DBSize > n.room.quota/2 })
	if st := n.Status(); st.Alarms != nil {
		t.Errorf("%+v", st)
	}
	// Reading goes on, and so does what removes.
	n.must(t, Txn{Compares: []Compare{absent("small")}}, false)
	full := n.Status().DBSize
	n.must(t, Txn{DeletePrefixes: []string{KVPrefix("fill/")}}, true)
	until(t, "writes are taken again", func() bool { _, err := n.Commit(t.Context(), put("small", "2")); return err == nil })
	until(t, "the file is small again", func() bool { return n.Status().DBSize < full/2 })
	idx := n.must(t, put("small", "3"), true)
	if kv := n.st.at(t, idx); len(kv) != 1 || string(kv["small"].Value) != "3" {
		t.Errorf("state shows %d entries", len(kv))
	}
	if st := n.Status(); st.Full != "" || st.Stats.Defragmentations == 0 || st.Stats.Compactions == 0 || st.Compacted == 0 {
		t.Errorf("%+v", st)
	}
}

func TestWhatIsTakenWithoutRoom(t *testing.T) {
	var free int64
	const quota, some = 1 << 20, 1 << 12
	r := &room{quota: quota, dir: t.TempDir(), free: func(string) (int64, error) { return free, nil }}
	grows, ends, goes := put("a", "1"), put("a", "1"), Txn{Deletes: []string{"b"}}
	ends.Deletes = []string{"b"}
	for i, step := range []struct {
		free, inUse           int64
		changes               bool
		growing, ending, gone bool
	}{
		{diskEnough, 0, false, true, true, true},
		{diskReserve + some, quota - some, false, true, true, true},
		{diskReserve - 1, 0, true, false, true, true},
		{diskEnough - 1, 0, false, false, true, true},
		{diskEnough + some, 0, true, true, true, true},
		{diskReserve + 1, 0, false, false, true, true}, // not by the look, but with what comes
		{diskEnough + some, quota, true, false, true, true},
		{diskEnough + some, quota + quota/20, false, false, false, true},
		{diskEnough + some, quota - some, false, false, true, true},
		{diskEnough + some, quota - quota/40, true, true, true, true},
	} {
		r.admitted.Store(0)
		r.recent.Store(0)
		free = step.free
		if got := r.look(0, step.inUse); got != step.changes {
			t.Errorf("step %d: changes is %v", i, got)
		}
		for _, c := range []struct {
			txn  *Txn
			want bool
		}{{&grows, step.growing}, {&ends, step.ending}, {&goes, step.gone}} {
			if err := r.admit(c.txn); (err == nil) != c.want || err != nil && !errors.Is(err, ErrNoSpace) {
				t.Errorf("step %d, %+v: %v", i, c.txn, err)
			}
		}
	}
}

// An earlier version let etcd raise its alarm, under which it takes nothing.
func TestAlarmOfAnEarlierVersion(t *testing.T) {
	dir := t.TempDir()
	n := startStore(t, dir)
	srv := n.running.Load().server.Server
	if _, err := srv.Alarm(t.Context(), &pb.AlarmRequest{MemberID: uint64(srv.MemberID()), Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Commit(t.Context(), put("a", "")); !errors.Is(err, ErrNoSpace) {
		t.Errorf("under the alarm: %v", err)
	}
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	n = startStore(t, dir)
	n.must(t, put("a", ""), true)
	if st := n.Status(); st.Alarms != nil {
		t.Errorf("%+v", st)
	}
}

// On a disk that somebody else fills writes are refused before etcd dies of it, reading and deleting go on, and all is well again
// when there is room.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if _, child := inChild(t, dir); !child {
		return
	}
	dir = os.Getenv(childDir)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("fl-full", dir, "tmpfs", 0, "size=400m"); err != nil {
		t.Fatal(err)
	}
	n := startStore(t, filepath.Join(dir, "data"))
	kept := n.must(t, put("kept", "1"), true)
	others := filepath.Join(dir, "others")
	fillDisk(t, others)
	until(t, "the store sees it", func() bool { return n.Status().DiskFree < 1<<20 })
	_, err := n.Commit(t.Context(), put("refused", ""))
	if !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "no space left on the file system of "+filepath.Join(dir, "data")) {
		t.Errorf("refused with %v", err)
	}
	if st := n.Status(); st.Full != err.Error() {
		t.Errorf("%+v", st)
	}
	if idx, err := n.ReadIndex(t.Context()); err != nil || idx < kept {
		t.Errorf("ReadIndex = %d, %v", idx, err)
	}
	for range 200 { // none of it kills etcd
		n.must(t, Txn{Deletes: []string{KVKey("none")}}, true)
	}
	gone := n.must(t, Txn{Deletes: []string{KVKey("kept")}}, true)
	if kv := n.st.at(t, gone); len(kv) != 0 {
		t.Errorf("state shows %v", kv)
	}
	// Not even a restart needs room.
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	n = startStore(t, filepath.Join(dir, "data"), func(s *Store) { s.cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil)) })
	if _, err := n.Commit(t.Context(), put("refused", "")); !errors.Is(err, ErrNoSpace) {
		t.Errorf("after a restart: %v", err)
	}
	if err := os.Remove(others); err != nil {
		t.Fatal(err)
	}
	until(t, "writes are taken again", func() bool { _, err := n.Commit(t.Context(), put("back", "1")); return err == nil })
	// The store's own growth stops before the disk is full, too.
	if i, err := n.fill(t); !errors.Is(err, ErrNoSpace) {
		t.Errorf("after %d: %v", i, err)
	} else {
		t.Logf("refused after %d MiB, with %d MiB free: %v", i/4, n.Status().DiskFree>>20, err)
	}
	n.must(t, Txn{Compares: []Compare{absent("back")}}, false)
	n.must(t, Txn{DeletePrefixes: []string{KVPrefix("fill/")}}, true)
}

// fillDisk writes a file until nothing more fits.
func fillDisk(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size >= 1; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, unix.ENOSPC) {
			size /= 16
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
