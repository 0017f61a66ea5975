package state_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Short ways to say what changes.

func node(name, addr string) state.Change {
	return state.Change{Node: &model.Node{Name: model.NodeName(name), Address: addr}}
}

func inst(node, id, service string, tags ...string) state.Change {
	return state.Change{Instance: &model.Instance{
		Node: model.NodeName(node), ID: model.ServiceID(id), Service: model.ServiceName(service), Tags: tags,
	}}
}

func check(node, id, serviceID string, status model.Status) state.Change {
	return state.Change{Check: &model.Check{
		Node: model.NodeName(node), ID: model.CheckID(id), ServiceID: model.ServiceID(serviceID), Status: status,
	}}
}

func vip(service, v4 string) state.Change {
	return state.Change{VIP: &model.VIP{Service: model.ServiceName(service), V4: netip.MustParseAddr(v4)}}
}

func kv(key, value string) state.Change {
	return state.Change{KV: &model.KV{Key: key, Value: []byte(value)}}
}

func del(c state.Change) state.Change {
	c.Delete = true
	return c
}

// loaded returns a state that was reset at index 10 to two nodes, two instances
// of web and one of db.
func loaded(t *testing.T) *state.State {
	t.Helper()
	s := state.New()
	s.Reset(10, []state.Change{
		node("n1", "10.0.0.1"), node("n2", "10.0.0.2"),
		check("n1", "serfHealth", "", model.Passing), check("n2", "serfHealth", "", model.Passing),
		inst("n1", "web-1", "web", "blue"), inst("n2", "web-2", "web", "green", "blue"), inst("n2", "db", "db"),
		check("n1", "c", "web-1", model.Passing), check("n2", "c", "web-2", model.Warning),
	})
	return s
}

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

func webMark(s *state.Snapshot) state.Mark { _, m := s.Service("web"); return m }

func TestServiceJoinsNodeAndChecks(t *testing.T) {
	svc, mark := loaded(t).Snapshot().Service("web")
	if svc.Index != 10 || mark.Index != 10 || len(svc.Members) != 2 {
		t.Fatalf("service = %+v, mark %d; want 2 members at 10", svc, mark.Index)
	}
	m := svc.Members[1]
	var ids []string
	for _, c := range m.Checks {
		ids = append(ids, string(c.ID))
	}
	if m.Instance.ID != "web-2" || m.Node.Address != "10.0.0.2" || !slices.Equal(ids, []string{"serfHealth", "c"}) {
		t.Errorf("member = %v on %v with checks %v", m.Instance.ID, m.Node, ids)
	}
	if got := m.Status(); got != model.Warning {
		t.Errorf("status = %s, want warning", got)
	}
	if got := m.Addr(); got != "10.0.0.2" {
		t.Errorf("addr = %s, want the node's", got)
	}
}

// Each row applies one batch at 11 and says whose index moves and who is woken.
func TestChangeTouchesExactlyWhatItConcerns(t *testing.T) {
	reads := map[string]func(*state.Snapshot) state.Mark{
		"web":        webMark,
		"db":         func(s *state.Snapshot) state.Mark { _, m := s.Service("db"); return m },
		"services":   func(s *state.Snapshot) state.Mark { _, m := s.Services(); return m },
		"tags":       func(s *state.Snapshot) state.Mark { _, m := s.ServiceTags(); return m },
		"node n1":    func(s *state.Snapshot) state.Mark { _, m := s.Node("n1"); return m },
		"nodes":      func(s *state.Snapshot) state.Mark { _, m := s.Nodes(); return m },
		"instance":   func(s *state.Snapshot) state.Mark { _, m := s.Instance("n1", "web-1"); return m },
		"instances1": func(s *state.Snapshot) state.Mark { _, m := s.NodeInstances("n1"); return m },
		"checks1":    func(s *state.Snapshot) state.Mark { _, m := s.NodeChecks("n1"); return m },
		"checks":     func(s *state.Snapshot) state.Mark { _, m := s.Checks(""); return m },
		"webchecks":  func(s *state.Snapshot) state.Mark { _, m := s.ServiceChecks("web"); return m },
	}
	tests := []struct {
		name    string
		changes []state.Change
		moved   []string
	}{
		{"a check turns critical", []state.Change{check("n1", "c", "web-1", model.Critical)},
			[]string{"checks", "checks1", "services", "web", "webchecks"}},
		{"a node's check touches all on the node", []state.Change{check("n2", "serfHealth", "", model.Critical)},
			[]string{"checks", "db", "services", "web", "webchecks"}},
		{"a node changes its address", []state.Change{node("n1", "10.9.9.9")},
			[]string{"node n1", "nodes", "services", "web", "webchecks"}},
		{"an unrelated service comes", []state.Change{inst("n2", "cache", "cache")},
			[]string{"services", "tags"}},
		{"an instance is written again with the same tags", []state.Change{inst("n1", "web-1", "web", "blue")},
			[]string{"instance", "instances1", "services", "web", "webchecks"}},
		{"an instance gets another tag", []state.Change{inst("n1", "web-1", "web", "red")},
			[]string{"instance", "instances1", "services", "tags", "web", "webchecks"}},
		{"an instance goes whose tags others have", []state.Change{del(inst("n1", "web-1", "")), del(check("n1", "c", "", ""))},
			[]string{"checks", "checks1", "instance", "instances1", "services", "web", "webchecks"}},
		{"the last instance of a service goes", []state.Change{del(inst("n2", "db", ""))},
			[]string{"db", "services", "tags"}},
		{"a VIP is allocated", []state.Change{vip("web", "240.0.0.1")},
			[]string{"services", "web", "webchecks"}},
		{"deleting nothing moves nothing", []state.Change{del(inst("n9", "web-1", "")), del(check("n1", "nope", "", ""))},
			nil},
		{"an instance changes its service", []state.Change{inst("n1", "web-1", "db", "blue")},
			[]string{"db", "instance", "instances1", "services", "tags", "web", "webchecks"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := loaded(t)
			before := map[string]state.Mark{}
			for name, read := range reads {
				before[name] = read(s.Snapshot())
			}
			s.Apply(11, tt.changes)
			for name, read := range reads {
				want := slices.Contains(tt.moved, name)
				after := read(s.Snapshot())
				if moved := after.Index == 11; moved != want {
					t.Errorf("%s: index %d after, moved %v, want %v", name, after.Index, moved, want)
				}
				if woken := closed(before[name].Changed); woken != want {
					t.Errorf("%s: woken %v, want %v", name, woken, want)
				}
				if closed(after.Changed) {
					t.Errorf("%s: the new mark's channel is closed already", name)
				}
			}
		})
	}
}

func TestIndexNeverGoesBack(t *testing.T) {
	s := loaded(t)
	last := map[string]model.Index{}
	see := func(step string) {
		t.Helper()
		snap := s.Snapshot()
		for _, name := range []model.ServiceName{"web", "db", "cache", "never"} {
			svc, m := snap.Service(name)
			if m.Index < last[string(name)] || m.Index > snap.Index() || svc.Index > m.Index {
				t.Errorf("%s: %s at %d, was %d, snapshot %d", step, name, m.Index, last[string(name)], snap.Index())
			}
			last[string(name)] = m.Index
		}
		for _, p := range []string{"", "a", "a/b", "z"} {
			_, m := snap.KVTree(p)
			if m.Index < last["kv "+p] || m.Index > snap.Index() {
				t.Errorf("%s: kv %q at %d, was %d", step, p, m.Index, last["kv "+p])
			}
			last["kv "+p] = m.Index
		}
	}
	steps := []struct {
		name    string
		changes []state.Change
	}{
		{"cache comes", []state.Change{inst("n1", "cache", "cache"), kv("a/b", "1"), kv("a/c", "1")}},
		{"cache goes", []state.Change{del(inst("n1", "cache", "")), del(kv("a/c", ""))}},
		{"cache returns", []state.Change{inst("n1", "cache", "cache"), kv("z", "1")}},
		{"all go", []state.Change{del(inst("n1", "cache", "")), del(inst("n2", "db", "")), del(kv("a/b", "")), del(kv("z", ""))}},
		{"nothing", nil},
	}
	see("load")
	for i, step := range steps {
		s.Apply(model.Index(20+i), step.changes)
		see(step.name)
	}
	s.Reset(30, nil)
	see("reset")
	if last["web"] != 30 || last["kv a"] != 30 {
		t.Errorf("after a reset web is at %d and kv at %d, want 30", last["web"], last["kv a"])
	}
}

func TestResetWakesEverybodyAndReplacesAll(t *testing.T) {
	s := loaded(t)
	var many []state.Change
	for i := range 20_000 { // more than a radix transaction tracks one by one
		many = append(many, kv(fmt.Sprintf("k/%05d", i), "v"))
	}
	s.Apply(11, many)
	snap := s.Snapshot()
	marks := map[string]state.Mark{"web": webMark(snap)}
	_, marks["kv"] = snap.KV("k/00007")
	_, marks["missing kv"] = snap.KV("nope")
	_, marks["tree"] = snap.KVTree("k/1")
	_, marks["missing service"] = snap.Service("nope")
	_, marks["nodes"] = snap.Nodes()
	_, marks["empty table"] = snap.Networks()
	_, marks["tags"] = snap.ServiceTags()

	s.Reset(40, []state.Change{node("n3", "10.0.0.3")})

	for name, m := range marks {
		if !closed(m.Changed) {
			t.Errorf("%s was not woken", name)
		}
	}
	if !closed(snap.Changed()) {
		t.Error("the old snapshot's channel is open")
	}
	now := s.Snapshot()
	if svc, m := now.Service("web"); len(svc.Members) != 0 || m.Index != 40 {
		t.Errorf("web still has %d members at %d", len(svc.Members), m.Index)
	}
	if n, m := now.Node("n3"); n == nil || m.Index != 40 {
		t.Errorf("n3 = %v at %d", n, m.Index)
	}
	if svc, _ := snap.Service("web"); len(svc.Members) != 2 {
		t.Error("the old snapshot changed")
	}
}

func TestWokenReaderFindsTheNews(t *testing.T) {
	s := loaded(t)
	const rounds = 200
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				snap := s.Snapshot()
				svc, mark := snap.Service("web")
				if svc.Index >= 11+rounds-1 {
					return
				}
				<-mark.Changed
				if now, _ := s.Snapshot().Service("web"); now.Index <= svc.Index {
					t.Errorf("woken at %d, found %d", svc.Index, now.Index)
					return
				}
			}
		})
	}
	status := []model.Status{model.Passing, model.Critical}
	for i := range rounds {
		s.Apply(model.Index(11+i), []state.Change{check("n1", "c", "web-1", status[i%2])})
	}
	wg.Wait()
}

func TestConcurrentReaders(t *testing.T) {
	s := loaded(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for !closed(stop) {
				snap := s.Snapshot()
				snap.Services()
				snap.ServiceTags()
				snap.Checks(model.Critical)
				snap.KVTree("k/")
				snap.NodeChecks("n1")
				svc, _ := snap.Service("web")
				for _, m := range svc.Members {
					_ = m.Status()
				}
			}
		})
	}
	for i := range 300 {
		id := fmt.Sprintf("web-%d", i%7)
		changes := []state.Change{
			inst("n1", id, "web"), check("n1", id, id, model.Passing), kv("k/"+id, "v"),
		}
		if i%3 == 0 {
			for j := range changes {
				changes[j].Delete = true
			}
		}
		s.Apply(model.Index(11+i), changes)
	}
	close(stop)
	wg.Wait()
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := state.New()
		if closed(s.Synced()) {
			t.Error("an empty state is synced")
		}
		got := make(chan model.Index, 1)
		go func() {
			snap, err := s.Wait(t.Context(), 12)
			if err != nil {
				t.Error(err)
			}
			got <- snap.Index()
		}()
		s.Reset(11, nil)
		if !closed(s.Synced()) {
			t.Error("not synced after a reset")
		}
		synctest.Wait()
		if len(got) != 0 {
			t.Fatal("returned before its index")
		}
		s.Apply(15, nil) // an index may pass without changes
		if i := <-got; i != 15 {
			t.Errorf("waited for 12, got snapshot %d", i)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.Wait(ctx, 99); !errors.Is(err, context.Canceled) {
			t.Errorf("error = %v, want context.Canceled", err)
		}
		if snap, err := s.Wait(ctx, 3); err != nil || snap.Index() != 15 {
			t.Errorf("an index that is there already: %v", err)
		}
	})
}

func TestGoingBackPanics(t *testing.T) {
	tests := map[string]func(*state.State){
		"apply behind":      func(s *state.State) { s.Apply(9, nil) },
		"apply the same":    func(s *state.State) { s.Apply(10, []state.Change{kv("a", "b")}) },
		"reset behind":      func(s *state.State) { s.Reset(9, nil) },
		"not: same, empty":  func(s *state.State) { s.Apply(10, nil); panic("fine") },
		"not: reset at now": func(s *state.State) { s.Reset(10, nil); panic("fine") },
	}
	for name, call := range tests {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			call(loaded(t))
		})
	}
}
