package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/fairlead-net/fairlead/internal/archive"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// site is a store with a real state.
type site struct {
	*Store
	t  *testing.T
	st *state.State
}

func startSite(t *testing.T, change ...func(*Store)) *site {
	t.Helper()
	st := state.New()
	s := New(Config{Name: "n1", Site: "dc1", Version: "test", Log: quiet()}, st)
	for _, c := range change {
		c(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- s.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return &site{s, t, st}
}

func value(t *testing.T, record any) []byte {
	t.Helper()
	b, err := Encode(record)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// put writes records and waits until the state shows them.
func (s *site) put(puts ...Put) *state.Snapshot {
	s.t.Helper()
	res, err := s.Commit(s.t.Context(), Txn{Puts: puts})
	if err != nil || !res.OK {
		s.t.Fatalf("Commit: %+v, %v", res, err)
	}
	return s.at(res.Index)
}

func (s *site) at(index model.Index) *state.Snapshot {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
	defer cancel()
	snap, err := s.st.Wait(ctx, index)
	if err != nil {
		s.t.Fatal(err)
	}
	return snap
}

func (s *site) save() []byte {
	s.t.Helper()
	var b bytes.Buffer
	if _, err := s.Save(s.t.Context(), &b, false, nil); err != nil {
		s.t.Fatal(err)
	}
	return b.Bytes()
}

func (s *site) restore(archived []byte) *state.Snapshot {
	s.t.Helper()
	_, at, err := s.Restore(s.t.Context(), bytes.NewReader(archived))
	if err != nil {
		s.t.Fatal(err)
	}
	return s.at(at)
}

// generations are the names of all generations that have keys.
func generations(t *testing.T, s *Store) []string {
	t.Helper()
	resp, err := s.running.Load().cli.Get(t.Context(), genPrefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, kv := range resp.Kvs {
		name, _, _ := strings.Cut(string(kv.Key[len(genPrefix):]), "/")
		names[name] = true
	}
	return slices.Sorted(maps.Keys(names))
}

// onlyInForce waits until no generation is left but the one in force.
func onlyInForce(t *testing.T, s *Store) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		left := generations(t, s)
		if slices.Equal(left, []string{s.Status().Generation}) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("generations %v, in force is %s", left, s.Status().Generation)
		}
		pause(t.Context(), 5*time.Millisecond)
	}
}

func entries(snap *state.Snapshot) map[string]string {
	tree, _ := snap.KVTree("")
	all := map[string]string{}
	for _, kv := range tree {
		all[kv.Key] = string(kv.Value)
	}
	return all
}

func TestRestoreBringsBackWhatWasSaved(t *testing.T) {
	s := startSite(t)
	s.put(
		putKV("a", "1"), putKV("odd/\x00\xff//..%", "2"),
		putKV("locked", "x"), Put{KVLockKey("locked"), value(t, Lock{Session: "s", LockIndex: 3})},
		Put{TokenKey("acc"), value(t, model.ACLToken{AccessorID: "acc", SecretID: "sec"})},
		Put{UniqueKey("acltoken", "sec"), value(t, "acc")},
		Put{SettingKey("x"), value(t, model.Setting{Name: "x", Value: "1"})},
		Put{LockDelayKey("a"), value(t, model.LockDelay{Key: "a", Delay: time.Hour})},
	)
	var begun model.Index
	var b bytes.Buffer
	meta, err := s.Save(t.Context(), &b, false, func(i model.Index) { begun = i })
	if err != nil {
		t.Fatal(err)
	}
	if meta.Index != begun || meta.Index != s.st.Snapshot().Index() || meta.Node != "n1" || meta.Site != "dc1" || meta.Software != "test" ||
		!maps.Equal(meta.Tables, map[string]int{"kv": 3, "kvlock": 1, "acltoken": 1, "unique": 1, "setting": 1}) {
		t.Errorf("meta %+v, begun at %d", meta, begun)
	}
	want := entries(s.st.Snapshot())

	before := s.put(putKV("a", "changed"), putKV("later", "x"), Put{SettingKey("x"), value(t, model.Setting{Name: "x", Value: "2"})})
	_, mark := before.KV("nothing/to/do/with/it")
	_, nodes := before.Nodes()
	again, at, err := s.Restore(t.Context(), &b)
	if err != nil {
		t.Fatal(err)
	}
	if at <= before.Index() || again.Index != meta.Index || again.Records != meta.Records {
		t.Errorf("restored at %d after %d: %+v", at, before.Index(), again)
	}
	snap := s.at(at)
	if got := entries(snap); !maps.Equal(got, want) {
		t.Errorf("entries %v, want %v", got, want)
	}
	if kv, m := snap.KV("locked"); kv.Session != "s" || kv.LockIndex != 3 || m.Index < at {
		t.Errorf("locked entry %+v at %d", kv, m.Index)
	}
	if tok, _ := snap.TokenBySecret("sec"); tok == nil || tok.AccessorID != "acc" {
		t.Errorf("token %+v", tok)
	}
	if x, _ := snap.Setting("x"); x == nil || x.Value != "1" {
		t.Errorf("setting %+v", x)
	}
	if d, _ := snap.LockDelay("a"); d != nil {
		t.Errorf("lock delay %+v", d)
	}
	for what, changed := range map[string]<-chan struct{}{"a key that is not there": mark.Changed, "nodes": nodes.Changed} {
		select {
		case <-changed:
		case <-time.After(10 * time.Second):
			t.Errorf("who waited for %s was not woken", what)
		}
	}
	// The registry is written as before.
	if got := entries(s.put(putKV("a", "new"))); got["a"] != "new" {
		t.Errorf("entries %v", got)
	}
	onlyInForce(t, s.Store)
}

// Everything fits through chunks, and a second restore follows the first.
func TestRestoreInChunks(t *testing.T) {
	s := startSite(t)
	const count = 3*chunkOps + 7
	for some := range slices.Chunk(slices.Collect(func(yield func(int) bool) {
		for i := range count {
			if !yield(i) {
				return
			}
		}
	}), 1000) {
		var puts []Put
		for _, i := range some {
			puts = append(puts, putKV(fmt.Sprintf("k%05d", i), fmt.Sprint(i)))
		}
		s.put(puts...)
	}
	s.put(putKV("big", strings.Repeat("x", 900<<10)))
	archived := s.save()
	for range 2 {
		s.put(putKV("k00000", "changed"))
		snap := s.restore(archived)
		got := entries(snap)
		if len(got) != count+1 || got["k00000"] != "0" || got[fmt.Sprintf("k%05d", count-1)] != fmt.Sprint(count-1) || len(got["big"]) != 900<<10 {
			t.Errorf("%d entries", len(got))
		}
	}
	onlyInForce(t, s.Store)
}

func TestSessionsGetTheirFullTTL(t *testing.T) {
	s := startSite(t)
	puts := []Put{
		{SessionKey("forever"), value(t, model.Session{ID: "forever", Node: "n1"})},
		{SessionKey("dying"), value(t, model.Session{ID: "dying", Node: "n1", TTL: time.Minute, Dying: true})},
	}
	for i := range chunkOps {
		id := fmt.Sprintf("s%d", i)
		puts = append(puts, Put{SessionKey(id), value(t, model.Session{ID: id, Node: "n1", TTL: 30 * time.Second})})
	}
	s.put(puts...)
	old, err := s.GrantLease(t.Context(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutAlive(t.Context(), "s1", old); err != nil {
		t.Fatal(err)
	}
	snap := s.restore(s.save())
	for _, id := range []string{"forever", "dying"} {
		if a, _ := snap.Alive(id); a != nil {
			t.Errorf("session %s is marked alive: %+v", id, a)
		}
	}
	for i := range chunkOps {
		a, _ := snap.Alive(fmt.Sprintf("s%d", i))
		if a == nil || a.Lease == old {
			t.Fatalf("session s%d: %+v", i, a)
		}
	}
	a, _ := snap.Alive("s1")
	left, err := s.running.Load().cli.TimeToLive(t.Context(), clientv3.LeaseID(a.Lease), clientv3.WithAttachedKeys())
	if err != nil || left.GrantedTTL != 60 || left.TTL < 50 || len(left.Keys) != 1 {
		t.Errorf("lease %+v, %v", left, err)
	}
	// Its end is the mark's end.
	if err := s.RevokeLease(t.Context(), a.Lease); err != nil {
		t.Fatal(err)
	}
	for snap = s.st.Snapshot(); ; snap = s.at(snap.Index() + 1) {
		if a, _ := snap.Alive("s1"); a == nil {
			break
		}
	}
}

// A refused archive changes nothing.
func TestBadArchivesChangeNothing(t *testing.T) {
	s := startSite(t)
	s.put(putKV("a", "saved"))
	good := s.save()
	snap := s.put(putKV("a", "present"))
	pack := func(key string, value []byte) []byte {
		var b bytes.Buffer
		w, err := archive.NewWriter(&b, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Add(key, value); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Close(model.SnapshotMeta{}); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 1
	broken := errors.New("connection reset")
	for name, tt := range map[string]struct {
		in   io.Reader
		want error
	}{
		"nothing":          {bytes.NewReader(nil), archive.ErrFormat},
		"no archive":       {strings.NewReader("hello"), archive.ErrFormat},
		"truncated":        {bytes.NewReader(good[:len(good)-1]), archive.ErrDamaged},
		"a flipped bit":    {bytes.NewReader(flipped), archive.ErrDamaged},
		"a broken source":  {io.MultiReader(bytes.NewReader(good[:20]), iotest.ErrReader(broken)), broken},
		"an unknown table": {bytes.NewReader(pack("future/x", []byte{formatJSON, '{', '}'})), archive.ErrFormat},
		"no table":         {bytes.NewReader(pack("x", nil)), archive.ErrDamaged},
		"a bad name":       {bytes.NewReader(pack("node/a/b", []byte("\x01{}"))), archive.ErrDamaged},
		"a bad record":     {bytes.NewReader(pack("node/a", []byte("\x01{"))), archive.ErrDamaged},
		"a bad format":     {bytes.NewReader(pack("node/a", []byte("\x09{}"))), archive.ErrDamaged},
		"a bad lock":       {bytes.NewReader(pack("kvlock/a", []byte("{}"))), archive.ErrDamaged},
		"a bad reference":  {bytes.NewReader(pack("unique/a/b", nil)), archive.ErrDamaged},
		"a record too big": {bytes.NewReader(pack("kv/a", make([]byte, MaxTxnBytes))), archive.ErrDamaged},
	} {
		if _, _, err := s.Restore(t.Context(), tt.in); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
	if now := s.st.Snapshot(); now.Index() != snap.Index() || entries(now)["a"] != "present" {
		t.Errorf("index %d became %d: %v", snap.Index(), now.Index(), entries(now))
	}
	if left := generations(t, s.Store); len(left) != 1 {
		t.Errorf("generations %v", left)
	}
}

func TestNoRoom(t *testing.T) {
	s := startSite(t)
	r := s.running.Load()
	if err := s.fits(r, model.SnapshotMeta{Bytes: quotaBytes}); !errors.Is(err, ErrNoSpace) {
		t.Errorf("a snapshot as large as the quota: %v", err)
	}
	if err := s.fits(r, model.SnapshotMeta{Bytes: 1 << 30, Records: 1 << 20}); err != nil {
		t.Errorf("a large one: %v", err)
	}
}
