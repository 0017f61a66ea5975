package local

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

func TestChangesThatWaitTogetherAreOneBatch(t *testing.T) {
	j := newJournal("")
	var batches []int
	apply := func(b []*change) {
		batches = append(batches, len(b))
		for _, c := range b {
			if c.id == "7" {
				c.err = errors.New("boom")
			}
		}
	}
	j.mu.Lock() // a batch is being written
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			err := j.do(apply, &change{id: model.ServiceID(fmt.Sprint(i))})
			if (err != nil) != (i == 7) {
				t.Errorf("change %d: %v", i, err)
			}
		})
	}
	for waiting := 0; waiting < 20; runtime.Gosched() {
		j.queue.mu.Lock()
		waiting = len(j.queue.waiting)
		j.queue.mu.Unlock()
	}
	j.mu.Unlock()
	wg.Wait()
	if !slices.Equal(batches, []int{20}) {
		t.Errorf("batches %v, want one of 20", batches)
	}
}

func TestFileRoundTrip(t *testing.T) {
	dir := t.TempDir()
	f := newFile(dir)
	var regs []model.Registration
	for _, r := range []model.Registration{
		{Instance: model.Instance{
			ID: "a", Service: "web", Tags: []string{"x"}, Port: 80, Meta: map[string]string{"k": "v"},
			TaggedAddresses: map[string]model.ServiceAddress{"lan": {Address: "192.0.2.1", Port: 1}},
			Weights:         model.Weights{Passing: 3, Warning: 2}, EnableTagOverride: true, Endpoint: "e1",
		}, Token: "secret", Checks: []model.CheckSpec{{
			ID: "c", HTTP: "https://127.0.0.1/", Interval: time.Second, Timeout: time.Millisecond, Method: "PUT",
			Header: map[string][]string{"A": {"1", "2"}}, TLSSkipVerify: true, NetNS: "/run/x", DeregisterAfter: time.Hour,
			FailuresBeforeCritical: 3, SuccessBeforePassing: 2, OutputMaxSize: 10, Status: model.Passing,
		}}},
		{Instance: model.Instance{ID: "b", Service: "b"}, Checks: []model.CheckSpec{{TTL: time.Minute}}},
	} {
		r, err := normalize(r, "n1")
		if err != nil {
			t.Fatal(err)
		}
		regs = append(regs, r)
	}
	var checks []model.CheckSpec
	for _, c := range []model.CheckSpec{
		{Name: "grpc", GRPC: "a:1/b", GRPCUseTLS: true, Interval: time.Second, Token: "secret", Notes: "n"},
		{Name: "h2", ServiceID: "a", H2Ping: "a:1", H2PingNoTLS: true, Interval: time.Second},
		{Name: "udp", UDP: "a:1", Interval: time.Second}, {Name: "tcp", TCP: "a:1", TCPUseTLS: true, Interval: time.Second},
		{Name: "docker", Docker: "d", Args: []string{"a", "b"}, Interval: time.Second},
		{Name: "unit", OSService: "d", Interval: time.Second}, {Name: "alias", AliasNode: "n", AliasService: "s"},
		{Name: "m", Maintenance: true},
	} {
		c, err := normalizeCheck(c)
		if err != nil {
			t.Fatal(err)
		}
		checks = append(checks, c)
	}
	for _, want := range [][]model.Registration{regs, regs[:1], nil} {
		// One batch for all, and none for what is as it was.
		next := map[model.ServiceID][]byte{}
		for _, r := range regs {
			next[r.Instance.ID] = nil
		}
		for _, r := range want {
			next[r.Instance.ID] = encode(t, r.Instance.ID, &r)
		}
		next[nodeEntry] = encode(t, nodeEntry, &model.Registration{Checks: checks})
		if err := f.save(next); err != nil {
			t.Fatal(err)
		}
		got, err := newFile(dir).load("n1")
		if err != nil || len(got.Registrations) != len(want) {
			t.Fatalf("load = %v, %v; want %v", got, err, want)
		}
		for i := range want {
			if !same(got.Registrations[i], want[i]) {
				t.Errorf("read %+v\nwrote %+v", got.Registrations[i], want[i])
			}
		}
		if !slices.EqualFunc(got.Checks, checks, sameSpec) {
			t.Errorf("read %+v\nwrote %+v", got.Checks, checks)
		}
	}
}

// encode is the record of a registration.
func encode(t *testing.T, id model.ServiceID, r *model.Registration) []byte {
	t.Helper()
	b, err := lasting(id, r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRenamedNodeKeepsItsServices(t *testing.T) {
	dir := t.TempDir()
	r, _ := normalize(model.Registration{Instance: model.Instance{Service: "web"}}, "old")
	if err := newFile(dir).save(map[model.ServiceID][]byte{"web": encode(t, "web", &r)}); err != nil {
		t.Fatal(err)
	}
	got, err := newFile(dir).load("new")
	if err != nil || got.Registrations[0].Instance.Node != "new" || got.Registrations[0].Instance.Owner != "node/new" {
		t.Errorf("load = %+v, %v", got, err)
	}
}

// TestUnusableFile: nothing is dropped silently; the error says which file, what
// is wrong and what to do.
func TestUnusableFile(t *testing.T) {
	tests := []struct{ name, content, want string }{
		{"empty", "", "unexpected end of JSON input"},
		{"cut off", `{"version":1,"registrations":[{"insta`, "unexpected end of JSON input"},
		{"no JSON", "services: web", "invalid character"},
		{"something behind", `{"version":1,"registrations":[]} {}`, "invalid character"},
		{"no version", `{"registrations":[]}`, "format version 0, this program knows versions 1 to 3"},
		{"newer", "{\"version\":4,\"whatever\":1}\nanything", "format version 4"},
		{"header with more", `{"version":3,"whatever":1}`, `damaged: the first line is not {"version":3}`},
		{"no checksum", "{\"version\":3}\n[]\n", "line 2 is damaged: no checksum"},
		{"in the middle", "{\"version\":3}\n00000000 []\n" + string(line(nil)), "line 2 is damaged: the checksum does not match"},
		{"last line, but not torn", "{\"version\":3}\n00000000 []\n", "line 2 is damaged: the checksum does not match"},
		{"unknown record", "{\"version\":3}\n" + string(line([][]byte{[]byte(`{"colour":"red"}`)})), `line 2 is damaged: json: unknown field "colour"`},
		{"invalid record", "{\"version\":3}\n" + string(line([][]byte{[]byte(`{"put":{"instance":{"id":"x"}}}`)})), "registration 1: invalid registration"},
		{"unknown field", `{"version":1,"registrations":[{"instance":{"service":"web","weights":{}},"colour":"red"}]}`, `unknown field "colour"`},
		{"invalid", `{"version":1,"registrations":[{"instance":{"id":"x"}}]}`, "registration 1: invalid registration: a service needs a name"},
		{"service twice", `{"version":1,"registrations":[{"instance":{"service":"a"}},{"instance":{"service":"a"}}]}`, `service "a" is there twice`},
		{
			"check twice",
			`{"version":1,"registrations":[{"instance":{"service":"a"},"checks":[{"id":"c","ttl":1}]},{"instance":{"service":"b"},"checks":[{"id":"c","ttl":1}]}]}`,
			`check "c" is there twice`,
		},
		{
			"check twice, once by itself",
			`{"version":2,"registrations":[{"instance":{"service":"a"},"checks":[{"id":"c","ttl":1}]}],"checks":[{"id":"c","ttl":1}]}`,
			`check 1: check "c" is there twice`,
		},
		{"invalid check", `{"version":2,"checks":[{"id":"c"}]}`, `check 1: invalid registration: check "c" needs exactly one of`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, fileName)
			if err := os.WriteFile(path, []byte(tt.content), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Open(Config{Dir: dir, Node: model.Node{Name: "n1"}}, nil, state.New())
			if !errors.Is(err, ErrFile) {
				t.Fatalf("Open = %v, want ErrFile", err)
			}
			for _, part := range []string{path, tt.want, "Repair it, restore it from a backup, or move it away"} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q lacks %q", err, part)
				}
			}
			if after, _ := os.ReadFile(path); string(after) != tt.content {
				t.Error("the file was changed")
			}
		})
	}
	t.Run("a directory", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, fileName), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(Config{Dir: dir}, nil, state.New()); !errors.Is(err, ErrFile) {
			t.Errorf("Open = %v", err)
		}
	})
}

// agreeable is a catalogue that finds nothing wrong and is never written to.
type agreeable struct{ Catalog }

func (agreeable) Check(model.Instance, []model.Check) error { return nil }

// TestUnwritableFile: what cannot be made durable is not done.
func TestUnwritableFile(t *testing.T) {
	dir := t.TempDir()
	a, err := Open(Config{Dir: dir, Node: model.Node{Name: "n1"}}, agreeable{}, state.New())
	if err != nil {
		t.Fatal(err)
	}
	d := &disk{}
	a.journal.file.open = d.open
	over, cancel := timeoutNow(t.Context())
	defer cancel()
	reg := model.Registration{Instance: model.Instance{Service: "web"}, Checks: []model.CheckSpec{{ID: "c", TTL: time.Hour}}}
	if _, err := a.Register(over, reg); err != nil {
		t.Fatal(err)
	}
	before, _ := os.ReadFile(filepath.Join(dir, fileName))

	d.fail = func(op string) error {
		if op == "truncate" {
			return nil
		}
		return errDisk
	}
	reg.Instance.Port = 81
	if _, err := a.Register(over, reg); !errors.Is(err, ErrFile) || !errors.Is(err, errDisk) {
		t.Errorf("Register = %v", err)
	}
	if err := a.Deregister(over, "web"); !errors.Is(err, ErrFile) {
		t.Errorf("Deregister = %v", err)
	}
	if s := a.Services(); len(s) != 1 || s[0].Instance.Port != 0 || len(a.Checks()) != 1 {
		t.Errorf("Services = %+v", s)
	}
	if err := a.UpdateTTL("c", model.Passing, ""); err != nil {
		t.Errorf("the check is gone from the runner: %v", err)
	}
	if after, _ := os.ReadFile(filepath.Join(dir, fileName)); string(after) != string(before) {
		t.Error("the file was changed")
	}

	d.fail = nil
	if err := a.Deregister(over, "web"); err != nil {
		t.Errorf("Deregister once the disk works = %v", err)
	}
	if got, err := newFile(dir).load("n1"); err != nil || len(got.Registrations) != 0 {
		t.Errorf("load = %+v, %v", got, err)
	}
}
