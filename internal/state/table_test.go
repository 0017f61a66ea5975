package state_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

func TestKVPrefixes(t *testing.T) {
	s := state.New()
	s.Reset(10, []state.Change{kv("a", "1"), kv("a/1", "1"), kv("a/2", "1"), kv("ab", "1"), kv("b/1", "1")})
	prefixes := []string{"", "a", "a/", "a/1", "b/", "b/1/x", "c/"}
	tests := []struct {
		name   string
		change state.Change
		moved  []string
		woken  []string // beyond those moved: spurious, of direct neighbours only
	}{
		{"a key is written", kv("a/1", "2"), []string{"", "a", "a/", "a/1"}, nil},
		{"a key goes", del(kv("a/2", "")), []string{"", "a", "a/"}, []string{"a/1"}},
		{"a key comes", kv("b/2", "1"), []string{"", "b/"}, []string{"b/1/x"}},
		{"a key comes under a prefix that had none", kv("c/1", "1"), []string{"", "c/"}, nil},
		{"the last key of a prefix goes", del(kv("b/1", "")), []string{"", "b/"}, []string{"b/1/x"}},
	}
	rev := model.Index(10)
	for _, tt := range tests {
		rev++
		marks := map[string]state.Mark{}
		for _, p := range prefixes {
			_, marks[p] = s.Snapshot().KVTree(p)
		}
		s.Apply(rev, []state.Change{tt.change})
		for _, p := range prefixes {
			_, after := s.Snapshot().KVTree(p)
			moved := slices.Contains(tt.moved, p)
			if (after.Index == rev) != moved {
				t.Errorf("%s: prefix %q at %d after %d, moved %v, want %v", tt.name, p, after.Index, rev, after.Index == rev, moved)
			}
			woken := closed(marks[p].Changed)
			if moved && !woken {
				t.Errorf("%s: prefix %q was not woken", tt.name, p)
			}
			// Who waits for what is not there shares a channel with its neighbourhood.
			if woken && !moved && p != "c/" && !slices.Contains(tt.woken, p) {
				t.Errorf("%s: prefix %q was woken for nothing", tt.name, p)
			}
		}
	}
	if list, _ := s.Snapshot().KVTree("a"); len(list) != 3 || list[0].Key != "a" || list[2].Key != "ab" {
		t.Errorf("tree = %v", list)
	}
}

func TestKVMarkCoversDeletion(t *testing.T) {
	s := state.New()
	s.Reset(10, []state.Change{kv("a", "1"), kv("b", "1")})
	s.Apply(11, []state.Change{del(kv("a", ""))})
	s.Apply(12, []state.Change{kv("b", "2")})
	if e, m := s.Snapshot().KV("a"); e != nil || m.Index != 11 {
		t.Errorf("a = %v at %d, want nothing at 11", e, m.Index)
	}
	if _, m := s.Snapshot().KV("never"); m.Index != 10 {
		t.Errorf("a key that never was is at %d, want 10", m.Index)
	}
	_, gone := s.Snapshot().KV("a")
	s.Apply(13, []state.Change{kv("a", "again")})
	if !closed(gone.Changed) {
		t.Error("who waits for a missing key is not woken when it comes")
	}
}

// Tombstones are bounded; what is forgotten still never goes back.
func TestManyDeletions(t *testing.T) {
	s := state.New()
	s.Reset(1, nil)
	const keys = 10_000
	name := func(i int) string { return fmt.Sprintf("k/%05d", i) }
	rev := model.Index(1)
	for i := range keys {
		rev++
		s.Apply(rev, []state.Change{kv(name(i), "v")})
	}
	deletedAt := map[int]model.Index{}
	for i := range keys {
		rev++
		s.Apply(rev, []state.Change{del(kv(name(i), ""))})
		deletedAt[i] = rev
	}
	snap := s.Snapshot()
	for i := range keys {
		if _, m := snap.KV(name(i)); m.Index < deletedAt[i] || m.Index > rev {
			t.Fatalf("%s at %d, deleted at %d", name(i), m.Index, deletedAt[i])
		}
	}
	if _, m := snap.KV(name(keys - 1)); m.Index != rev {
		t.Errorf("the newest deletion is at %d, want %d", m.Index, rev)
	}
	if _, old := snap.KV(name(0)); old.Index >= rev-1000 {
		t.Errorf("the oldest deletion is at %d; tombstones are not kept long enough", old.Index)
	}
}

func TestServiceTags(t *testing.T) {
	s := loaded(t)
	tags, _ := s.Snapshot().ServiceTags()
	if got := fmt.Sprint(slices.Sorted(maps.Keys(tags)), tags["web"], tags["db"]); got != "[db web] [blue green] []" {
		t.Errorf("tags = %s", got)
	}
	// A service with a VIP and without instances is not listed.
	s.Apply(11, []state.Change{vip("gone", "240.0.0.9"), inst("n1", "web-1", "web"), inst("n2", "web-2", "web", "green")})
	tags, _ = s.Snapshot().ServiceTags()
	services, _ := s.Snapshot().Services()
	if len(tags) != 2 || !slices.Equal(tags["web"], []string{"green"}) || len(services) != 2 {
		t.Errorf("tags = %v, %d services", tags, len(services))
	}
}

func TestInstanceWithoutNode(t *testing.T) {
	s := state.New()
	s.Reset(1, []state.Change{inst("n1", "a", "web")})
	svc, _ := s.Snapshot().Service("web")
	if m := svc.Members[0]; m.Node == nil || m.Node.Name != "n1" || m.Addr() != "" {
		t.Errorf("member = %+v", m)
	}
	s.Apply(2, []state.Change{node("n1", "10.0.0.1")})
	if now, _ := s.Snapshot().Service("web"); now.Members[0].Addr() != "10.0.0.1" {
		t.Error("the node's record did not reach the member")
	}
	if svc.Members[0].Addr() != "" {
		t.Error("a published member changed")
	}
}

func TestMembersStaySorted(t *testing.T) {
	s := state.New()
	s.Reset(1, nil)
	rev := model.Index(1)
	apply := func(c state.Change) {
		rev++
		s.Apply(rev, []state.Change{c})
	}
	for _, id := range []string{"m", "c", "x", "a", "d", "z", "b"} {
		apply(inst("n"+id, id, "web"))
		apply(inst("n", id, "web"))
	}
	apply(del(inst("n", "c", "")))
	apply(inst("n", "d", "web", "changed"))
	apply(inst("nm", "m", "other"))
	var got []string
	svc, _ := s.Snapshot().Service("web")
	for _, m := range svc.Members {
		got = append(got, string(m.Instance.Node)+"/"+string(m.Instance.ID))
	}
	want := "n/a n/b n/d n/m n/x n/z na/a nb/b nc/c nd/d nx/x nz/z"
	if strings.Join(got, " ") != want {
		t.Errorf("members = %v, want %s", got, want)
	}
}

func TestChecks(t *testing.T) {
	snap := loaded(t).Snapshot()
	ids := func(list []*model.Check) string {
		var b strings.Builder
		for _, c := range list {
			fmt.Fprintf(&b, "%s/%s ", c.Node, c.ID)
		}
		return strings.TrimSpace(b.String())
	}
	all, _ := snap.Checks("")
	warning, _ := snap.Checks(model.Warning)
	critical, _ := snap.Checks(model.Critical)
	onNode, _ := snap.NodeChecks("n1")
	ofWeb, _ := snap.ServiceChecks("web")
	for _, tt := range []struct{ name, got, want string }{
		{"all", ids(all), "n1/c n1/serfHealth n2/c n2/serfHealth"},
		{"warning", ids(warning), "n2/c"},
		{"critical", ids(critical), ""},
		{"of a node", ids(onNode), "n1/c n1/serfHealth"},
		{"of a service", ids(ofWeb), "n1/c n2/c"},
		{"of an instance", ids(snap.InstanceChecks("n1", "web-1")), "n1/c"},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, tt.got, tt.want)
		}
	}
	if c, _ := snap.Check("n2", "c"); c == nil || c.Status != model.Warning {
		t.Errorf("check = %+v", c)
	}
	if critical == nil {
		t.Error("an empty list is nil")
	}
}

// A check may pass from one instance to another, and from an instance to its node.
func TestCheckChangesItsInstance(t *testing.T) {
	s := loaded(t)
	status := func(service model.ServiceName, i int) model.Status {
		svc, _ := s.Snapshot().Service(service)
		return svc.Members[i].Status()
	}
	s.Apply(11, []state.Change{check("n2", "c", "db", model.Critical)})
	if status("web", 1) != model.Passing || status("db", 0) != model.Critical {
		t.Errorf("web %s, db %s", status("web", 1), status("db", 0))
	}
	s.Apply(12, []state.Change{check("n2", "c", "", model.Warning)})
	if status("web", 1) != model.Warning || status("db", 0) != model.Warning {
		t.Errorf("web %s, db %s", status("web", 1), status("db", 0))
	}
	s.Apply(13, []state.Change{del(check("n2", "c", "", ""))})
	if status("web", 1) != model.Passing || status("db", 0) != model.Passing {
		t.Errorf("web %s, db %s", status("web", 1), status("db", 0))
	}
}

func TestVIPByAddr(t *testing.T) {
	s := state.New()
	a, b := netip.MustParseAddr("240.0.0.1"), netip.MustParseAddr("240.0.0.2")
	at := func(a netip.Addr) string {
		if v := s.Snapshot().VIPByAddr(a); v != nil {
			return string(v.Service)
		}
		return ""
	}
	s.Reset(1, []state.Change{vip("web", "240.0.0.1"), {VIP: &model.VIP{Service: "six", V6: netip.MustParseAddr("fd00::1")}}})
	if at(a) != "web" || at(netip.MustParseAddr("fd00::1")) != "six" || at(netip.MustParseAddr("::ffff:240.0.0.1")) != "web" {
		t.Error("a VIP is not found by its address")
	}
	// The address passes to another service, and web gets a new one.
	s.Apply(2, []state.Change{vip("db", "240.0.0.1"), vip("web", "240.0.0.2")})
	if at(a) != "db" || at(b) != "web" {
		t.Errorf("%s is %q, %s is %q", a, at(a), b, at(b))
	}
	s.Apply(3, []state.Change{del(vip("db", "0.0.0.0"))})
	if at(a) != "" || at(netip.Addr{}) != "" {
		t.Errorf("%s is still %q", a, at(a))
	}
}

func TestEndpoints(t *testing.T) {
	ep := func(id, network, name string, addrs ...string) state.Change {
		e := &model.Endpoint{ID: model.EndpointID(id), Network: model.NetworkName(network), Workload: model.WorkloadName(name)}
		for _, a := range addrs {
			e.Addrs = append(e.Addrs, netip.MustParseAddr(a))
		}
		return state.Change{Endpoint: e}
	}
	lease := func(a, id string) state.Change {
		return state.Change{Lease: &model.AddressLease{Network: "a", Addr: netip.MustParseAddr(a), Endpoint: model.EndpointID(id)}}
	}
	ids := func(list []*model.Endpoint) string {
		var out []string
		for _, e := range list {
			out = append(out, string(e.ID))
		}
		return strings.Join(out, " ")
	}
	s := state.New()
	shared := ep("e2", "a", "Two", "10.0.0.3")
	shared.Endpoint.Aliases = []string{"ONE", "db"}
	s.Reset(1, []state.Change{
		{Network: &model.Network{Name: "a"}}, {Network: &model.Network{Name: "ab"}},
		ep("e1", "a", "one", "10.0.0.2", "fd00::2"), shared, ep("e3", "ab", "one", "10.1.0.2"),
		lease("10.0.0.10", "e9"), lease("fd00::2", "e1"), lease("10.0.0.2", "e1"), lease("10.0.0.3", "e2"),
	})
	snap := s.Snapshot()
	inA, markA := snap.NetworkEndpoints("a")
	leases, _ := snap.Leases("a")
	if ids(inA) != "e1 e2" || len(leases) != 4 || leases[1].Endpoint != "e2" || leases[3].Endpoint != "e1" {
		t.Errorf("in a: %s, leases %v", ids(inA), leases)
	}
	for name, want := range map[string]string{"one": "e1 e2", "One": "e1 e2", "two": "e2", "DB": "e2", "on": "", "": ""} {
		if got := ids(snap.EndpointsByName("a", name)); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
	if e := snap.EndpointByAddr(netip.MustParseAddr("fd00::2")); e == nil || e.ID != "e1" {
		t.Errorf("by address: %v", e)
	}
	if e := snap.EndpointByAddr(netip.MustParseAddr("10.0.0.1")); e != nil {
		t.Errorf("prefix of an address finds %v", e)
	}
	if e := snap.EndpointByAddr(netip.Addr{}); e != nil {
		t.Errorf("no address finds %v", e)
	}

	s.Apply(2, []state.Change{ep("e3", "ab", "renamed", "10.1.0.9")})
	if closed(markA.Changed) {
		t.Error("a change in network ab woke a")
	}
	s.Apply(3, []state.Change{ep("e2", "ab", "two", "10.1.0.3")})
	snap = s.Snapshot()
	inA, after := snap.NetworkEndpoints("a")
	if ids(inA) != "e1" || after.Index != 3 || !closed(markA.Changed) || ids(snap.EndpointsByName("a", "db")) != "" ||
		snap.EndpointByAddr(netip.MustParseAddr("10.0.0.3")) != nil {
		t.Errorf("e2 left a, but something of it is there: %s at %d", ids(inA), after.Index)
	}
	s.Apply(4, []state.Change{del(ep("e1", "", "")), {Delete: true, Network: &model.Network{Name: "a"}}, del(lease("10.0.0.2", ""))})
	snap = s.Snapshot()
	all, _ := snap.Endpoints()
	networks, _ := snap.Networks()
	leases, mark := snap.Leases("a")
	if n, _ := snap.Network("a"); n != nil || len(networks) != 1 || ids(all) != "e2 e3" || len(leases) != 3 || mark.Index != 4 ||
		snap.EndpointByAddr(netip.MustParseAddr("fd00::2")) != nil {
		t.Errorf("after the deletions: %v, %s, %v at %d", networks, ids(all), leases, mark.Index)
	}
}
