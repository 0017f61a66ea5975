package local

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

var errDisk = errors.New("disk on fire")

// disk opens files whose operations fail as fail says: "open", "create", "write"
// (after half of it), "sync" and "truncate". As on Linux, what could not be synced
// is lost, and the next sync says nothing of it.
type disk struct {
	fail  func(op string) error
	opens int
}

func (d *disk) may(op string) error {
	if d.fail == nil {
		return nil
	}
	return d.fail(op)
}

func (d *disk) open(path string, create bool) (handle, error) {
	d.opens++
	op := "open"
	if create {
		op = "create"
	}
	if err := d.may(op); err != nil {
		return nil, err
	}
	h, err := openFile(path, create)
	if err != nil {
		return nil, err
	}
	f := &faulty{handle: h, d: d}
	if info, err := os.Stat(path); err == nil {
		f.synced, f.size = info.Size(), info.Size()
	}
	return f, nil
}

type faulty struct {
	handle
	d            *disk
	synced, size int64
}

func (f *faulty) Write(b []byte) (int, error) {
	failed := f.d.may("write")
	if failed != nil {
		b = b[:len(b)/2]
	}
	n, err := f.handle.Write(b)
	f.size += int64(n)
	return n, errors.Join(failed, err)
}

func (f *faulty) Sync() error {
	if err := f.d.may("sync"); err != nil {
		f.size = f.synced
		return errors.Join(err, f.handle.Truncate(f.synced))
	}
	f.synced = f.size
	return f.handle.Sync()
}

func (f *faulty) Truncate(size int64) error {
	if err := f.d.may("truncate"); err != nil {
		return err
	}
	return f.handle.Truncate(size)
}

// put is a batch of services, each named id:port; without a port it goes.
func put(t *testing.T, services ...string) map[model.ServiceID][]byte {
	t.Helper()
	next := map[model.ServiceID][]byte{}
	for _, s := range services {
		id, port, stays := strings.Cut(s, ":")
		next[model.ServiceID(id)] = nil
		if !stays {
			continue
		}
		r := model.Registration{Instance: model.Instance{ID: model.ServiceID(id), Service: "web"}}
		if _, err := fmt.Sscan(port, &r.Instance.Port); err != nil {
			t.Fatal(err)
		}
		next[model.ServiceID(id)] = encode(t, model.ServiceID(id), &r)
	}
	return next
}

// held is what the file holds, in the words of put.
func held(t *testing.T, dir string) string {
	t.Helper()
	c, err := newFile(dir).load("n1")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, r := range c.Registrations {
		all = append(all, fmt.Sprintf("%s:%d", r.Instance.ID, r.Instance.Port))
	}
	return strings.Join(all, " ")
}

func save(t *testing.T, f *file, services ...string) {
	t.Helper()
	if err := f.save(put(t, services...)); err != nil {
		t.Fatal(err)
	}
}

// TestTornTail: after a crash at any moment of a write the file holds the state
// before, and goes on from there.
func TestTornTail(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, fileName)
	f := newFile(dir)
	save(t, f, "a:1")
	save(t, f, "b:2", "c:3")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	save(t, f, "a:9", "b", "d:4")
	after, err := os.ReadFile(path)
	if err != nil || !bytes.HasPrefix(after, before) {
		t.Fatalf("the file was not appended to: %v\n%s", err, after)
	}
	tail := len(after) - len(before)
	torn := map[string][]byte{}
	for n := range tail - 1 {
		torn[fmt.Sprintf("%d bytes of %d", n, tail)] = after[:len(before)+n]
	}
	for _, hole := range []int{0, 5, tail - 20} { // the size is there, a block is not
		b := bytes.Clone(after)
		clear(b[len(before)+hole : min(len(before)+hole+16, len(b)-1)])
		torn[fmt.Sprintf("a hole at %d", hole)] = b
	}
	torn["nothing but the size"] = append(bytes.Clone(before), make([]byte, 100)...)
	for what, b := range torn {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		f := newFile(dir)
		if _, err := f.load("n1"); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got := held(t, dir); got != "a:1 b:2 c:3" {
			t.Fatalf("%s: the file holds %s", what, got)
		}
		save(t, f, "e:5")
		if got := held(t, dir); got != "a:1 b:2 c:3 e:5" {
			t.Fatalf("%s, one change later: the file holds %s", what, got)
		}
	}
}

// TestFaultyDisk: after a failed write or sync the file is not trusted, but
// replaced; if that fails too, the change is refused and the file is as it was.
func TestFaultyDisk(t *testing.T) {
	for _, op := range []string{"write", "sync", "open"} {
		t.Run(op, func(t *testing.T) {
			dir := t.TempDir()
			d := &disk{}
			first := newFile(dir)
			save(t, first, "a:1", "b:2")
			f := newFile(dir)
			f.open = d.open
			if _, err := f.load("n1"); err != nil {
				t.Fatal(err)
			}
			failed := 0
			d.fail = func(o string) error {
				if o == op && failed == 0 {
					failed++
					return errDisk
				}
				return nil
			}
			save(t, f, "a:3") // once: another file takes its place
			if got := held(t, dir); got != "a:3 b:2" || failed != 1 || d.opens != 2 {
				t.Errorf("the file holds %s after %d failures and %d opens", got, failed, d.opens)
			}
			save(t, f, "c:4") // and that one is appended to
			if got := held(t, dir); got != "a:3 b:2 c:4" || d.opens != 2 {
				t.Errorf("the file holds %s after %d opens", got, d.opens)
			}
			d.fail = func(o string) error {
				if o == op || o == "create" {
					return errDisk
				}
				return nil
			}
			if err := f.save(put(t, "a:5", "b")); op != "open" && (!errors.Is(err, ErrFile) || !errors.Is(err, errDisk)) {
				t.Errorf("save = %v", err)
			}
			d.fail = nil
			want := "a:3 b:2 c:4"
			if op == "open" { // is done already
				want = "a:5 c:4"
			}
			if got := held(t, dir); got != want {
				t.Errorf("the file holds %s, want %s", got, want)
			}
			save(t, f, "d:6")
			if got := held(t, dir); got != want+" d:6" {
				t.Errorf("the file holds %s, want %s d:6", got, want)
			}
		})
	}
}

// TestGarbageGoes: the file stays in proportion to what it holds, also if for a
// while there is no room for a second one.
func TestGarbageGoes(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, fileName)
	d := &disk{}
	f := newFile(dir)
	f.open = d.open
	save(t, f, "keeps:1")
	size := func() int64 {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	long := strings.Repeat("web", 1000)
	churn := func(n int) (most int64) {
		for i := range n {
			save(t, f, fmt.Sprintf("%s:%d", long, i%100+1))
			most = max(most, size())
		}
		return most
	}
	if most := churn(300); most > minGarbage+10000 || d.opens < 4 {
		t.Errorf("the file had up to %d bytes and was written anew %d times", most, d.opens)
	}
	d.fail = func(op string) error {
		if op == "create" {
			return errDisk
		}
		return nil
	}
	if most := churn(300); most < minGarbage+minGarbage/2 {
		t.Errorf("the file had only %d bytes: it was written anew without room for that", most)
	}
	d.fail = nil
	churn(200)
	if size() > minGarbage+10000 {
		t.Errorf("the file still has %d bytes", size())
	}
	if got := held(t, dir); got != "keeps:1 "+long+":100" {
		t.Errorf("the file holds %s", got)
	}
}

// TestOlderFormats are read as they are, and replaced by the first change.
func TestOlderFormats(t *testing.T) {
	for _, old := range []string{
		`{"version":1,"registrations":[{"instance":{"id":"a","service":"web","port":1}}]}`,
		`{"version":2,"registrations":[{"instance":{"id":"a","service":"web","port":1}}],
		  "checks":[{"id":"c","name":"c","ttl":1000000000},{"id":"d","name":"d","service_id":"a","ttl":1000000000}]}`,
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, fileName)
		if err := os.WriteFile(path, []byte(old), 0o600); err != nil {
			t.Fatal(err)
		}
		// A migration that was cut off.
		if err := os.WriteFile(path+".tmp", header, 0o644); err != nil {
			t.Fatal(err)
		}
		f := newFile(dir)
		was, err := f.load("n1")
		if err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != old {
			t.Errorf("reading changed the file: %v\n%s", err, b)
		}
		save(t, f, "b:2")
		b, err := os.ReadFile(path)
		if err != nil || !bytes.HasPrefix(b, header) {
			t.Errorf("the file is of the old format: %v\n%s", err, b)
		}
		if got := held(t, dir); got != "a:1 b:2" {
			t.Errorf("the file holds %s", got)
		}
		now, err := newFile(dir).load("n1")
		if err != nil || count(now) != count(was) {
			t.Errorf("%d checks of %d are left: %v", count(now), count(was), err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v; want 0600, because it holds tokens", info.Mode(), err)
		}
	}
}

func count(c contents) int {
	n := len(c.Checks)
	for _, r := range c.Registrations {
		n += len(r.Checks)
	}
	return n
}

// killedDir names the directory of the process that TestKilled kills.
const killedDir = "FAIRLEAD_TEST_KILLED"

// registerForever registers services, changes them and takes every third out
// again, and prints each step that is acknowledged, until it is killed.
func registerForever(dir string) error {
	a, err := Open(Config{Dir: dir, Node: model.Node{Name: "n1"}}, agreeable{}, state.New())
	if err != nil {
		return err
	}
	over, cancel := timeoutNow(context.Background())
	defer cancel()
	start := len(a.Services())
	g := errgroup.Group{}
	for w := range 8 {
		g.Go(func() error {
			for i := 0; ; i++ {
				id := model.ServiceID(fmt.Sprintf("s%d-%d-%d", start, w, i))
				for port := range 2 {
					reg := model.Registration{Instance: model.Instance{ID: id, Service: "web", Port: port + 1}}
					if _, err := a.Register(over, reg); err != nil {
						return err
					}
					fmt.Printf("%s %d\n", id, port+1)
				}
				if i%3 == 0 {
					if err := a.Deregister(over, id); err != nil {
						return err
					}
					fmt.Printf("%s 0\n", id)
				}
			}
		})
	}
	return g.Wait()
}

// TestKilled: whatever was acknowledged before a SIGKILL is there after it.
func TestKilled(t *testing.T) {
	if dir := os.Getenv(killedDir); dir != "" {
		t.Fatal(registerForever(dir))
	}
	dir := t.TempDir()
	known := map[string]string{}
	for round := range 5 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), killedDir+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			if id, port, ok := strings.Cut(lines.Text(), " "); ok {
				known[id] = port
			}
			if n == 200+50*round {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("the process ended by itself")
		}
		c, err := newFile(dir).load("n1")
		if err != nil {
			t.Fatal(err)
		}
		now := map[string]int{}
		for _, r := range c.Registrations {
			now[string(r.Instance.ID)] = r.Instance.Port
		}
		if len(known) < 50*(round+1) {
			t.Fatalf("round %d: only %d services were registered", round, len(known))
		}
		for id, port := range known {
			// The step after the last acknowledged one may have been made, too.
			p := now[id]
			if got := fmt.Sprint(p); got != port && !slices.Contains([]string{"1 2", "2 0"}, port+" "+got) {
				t.Errorf("round %d: %s has port %s, acknowledged was %s", round, id, got, port)
			}
		}
		for id := range known {
			known[id] = fmt.Sprint(now[id])
		}
	}
}
