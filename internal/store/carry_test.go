package store

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/fairlead-net/fairlead/internal/model"
)

// What hosts do right now stays as it is; what an archive says of hosts that are
// not here is not taken for alive.
func TestRestoreKeepsTheHostsAsTheyAre(t *testing.T) {
	addr := func(s string) netip.Addr { return netip.MustParseAddr(s) }
	network := func(name model.NetworkName, prefix string) Put {
		return Put{NetworkKey(name), value(t, model.Network{Name: name, Pools: []model.Pool{{Prefix: netip.MustParsePrefix(prefix)}}})}
	}
	host := func(n model.NodeName, meta string, services ...model.ServiceID) (puts []Put) {
		owner := model.Stamp{Owner: model.NodeOwner(n)}
		servers := model.Stamp{Owner: model.OwnerServers}
		puts = append(puts,
			Put{NodeKey(n), value(t, model.Node{Name: n, Address: "10.0.0.1", Meta: map[string]string{"m": meta}, Stamp: owner})},
			Put{CheckKey(n, model.SerfHealth), value(t, model.Check{Node: n, ID: model.SerfHealth, Status: model.Passing, Stamp: servers})},
			Put{InstanceKey(n, "consul"), value(t, model.Instance{Node: n, ID: "consul", Service: "consul", Stamp: servers})},
		)
		for _, id := range services {
			puts = append(puts,
				Put{InstanceKey(n, id), value(t, model.Instance{Node: n, ID: id, Service: model.ServiceName(id), Stamp: owner})},
				Put{CheckKey(n, model.CheckID("service:"+id)), value(t, model.Check{
					Node: n, ID: model.CheckID("service:" + id), ServiceID: id, ServiceName: model.ServiceName(id), Status: model.Passing, Stamp: owner,
				})})
		}
		return puts
	}
	external := model.Stamp{Owner: model.OwnerExternal}
	vip := func(svc model.ServiceName, a string) []Put {
		return []Put{
			{VIPKey(svc), value(t, model.VIP{Service: svc, V4: addr(a), Stamp: model.Stamp{Owner: model.OwnerServers}})},
			{VIPAddrKey(addr(a)), value(t, string(svc))},
		}
	}
	endpoint := func(id model.EndpointID, n model.NetworkName, a string) []Put {
		return []Put{
			{EndpointKey(id), value(t, model.Endpoint{ID: id, Network: n, Workload: model.WorkloadName(id), Node: "n1", Addrs: []netip.Addr{addr(a)}})},
			{LeaseKey(n, addr(a)), value(t, model.AddressLease{Network: n, Addr: addr(a), Endpoint: id})},
			{NameKey(n, string(id)), value(t, string(id))},
		}
	}
	before := slices.Concat(
		host("n1", "old", "web", "gone"), host("n2", "old", "db"),
		[]Put{
			{NodeKey("ext"), value(t, model.Node{Name: "ext", Address: "10.9.9.9", Stamp: external})},
			{InstanceKey("ext", "mail"), value(t, model.Instance{Node: "ext", ID: "mail", Service: "mail", Stamp: external})},
			network("idle", "10.1.0.0/24"), network("clash", "10.2.0.0/24"), network("used", "10.3.0.0/24"),
		},
		vip("web", "240.0.0.1"), vip("db", "240.0.0.2"), vip("mail", "240.0.0.3"), vip("far", "241.0.0.1"),
		endpoint("old", "used", "10.3.0.5"),
	)
	after := slices.Concat(
		host("n1", "new", "web", "new"), host("n3", "new"),
		[]Put{network("mine", "10.2.0.128/25"), network("used", "10.4.0.0/24"), network("empty", "10.5.0.0/24")},
		vip("web", "240.0.0.9"), vip("new", "240.0.0.2"),
		endpoint("e1", "mine", "10.2.0.130"), endpoint("e2", "used", "10.4.0.5"),
	)
	from := startSite(t)
	from.put(before...)
	to := startSite(t, func(s *Store) { s.cfg.VIPPools = []netip.Prefix{netip.MustParsePrefix("240.0.0.0/8")} })
	to.put(after...)
	snap := to.restore(from.save())

	show := func(what, want string, facts ...string) {
		t.Helper()
		slices.Sort(facts)
		if got := strings.Join(facts, " "); got != want {
			t.Errorf("%s:\n got %s\nwant %s", what, got, want)
		}
	}
	var facts []string
	nodes, _ := snap.Nodes()
	for _, n := range nodes {
		facts = append(facts, fmt.Sprintf("%s=%s", n.Name, n.Meta["m"]))
	}
	show("nodes", "ext= n1=new n2=old n3=new", facts...)
	facts = nil
	for _, n := range nodes {
		instances, _ := snap.NodeInstances(n.Name)
		for _, i := range instances {
			facts = append(facts, fmt.Sprintf("%s/%s", n.Name, i.ID))
		}
	}
	show("instances", "ext/mail n1/consul n1/new n1/web n2/db n3/consul", facts...)
	facts = nil
	checks, _ := snap.Checks("")
	for _, c := range checks {
		facts = append(facts, fmt.Sprintf("%s/%s=%s", c.Node, c.ID, c.Status))
	}
	show("checks", "n1/serfHealth=passing n1/service:new=passing n1/service:web=passing n2/serfHealth=critical n2/service:db=passing n3/serfHealth=passing", facts...)
	facts = nil
	networks, _ := snap.Networks()
	for _, n := range networks {
		facts = append(facts, fmt.Sprintf("%s=%s", n.Name, n.Pools[0].Prefix))
	}
	show("networks", "idle=10.1.0.0/24 mine=10.2.0.128/25 used=10.4.0.0/24", facts...)
	facts = nil
	vips, _ := snap.VIPs()
	for _, v := range vips {
		facts = append(facts, fmt.Sprintf("%s=%s", v.Service, v.V4))
	}
	show("VIPs", "mail=240.0.0.3 new=240.0.0.2 web=240.0.0.9", facts...)
	facts = nil
	eps, _ := snap.Endpoints()
	for _, e := range eps {
		facts = append(facts, fmt.Sprintf("%s=%s", e.ID, e.Addrs[0]))
	}
	show("endpoints", "e1=10.2.0.130 e2=10.4.0.5", facts...)
	facts = nil
	rev, err := to.ReadIndex(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	gen := to.gen.Load()
	resp, err := to.running.Load().cli.Get(t.Context(), gen.prefix(), clientv3.WithPrefix(), clientv3.WithRev(int64(rev)))
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range resp.Kvs {
		switch k := string(kv.Key[len(gen.prefix()):]); strings.SplitN(k, "/", 2)[0] {
		case tableVIPAddr, tableName, tableLease:
			facts = append(facts, k)
		}
	}
	show("references", "lease/mine/10.2.0.130 lease/used/10.4.0.5 name/mine/e1 name/used/e2 vipaddr/240.0.0.2 vipaddr/240.0.0.3 vipaddr/240.0.0.9", facts...)
}

// Hosts that change while a restore is about to end are looked at again.
func TestHostsChangeDuringARestore(t *testing.T) {
	var s *site
	rounds := 0
	addr := netip.MustParseAddr("10.1.0.2")
	s = startSite(t, func(st *Store) {
		st.beforeFlip = func() {
			switch rounds++; rounds {
			case 1:
				s.put(Put{EndpointKey("e"), value(t, model.Endpoint{ID: "e", Network: "net", Addrs: []netip.Addr{addr}})},
					Put{NetworkKey("net"), value(t, model.Network{Name: "net"})})
			case 2: // a deletion does not show in a comparison of prefixes
				if _, err := s.Commit(t.Context(), Txn{Deletes: []string{EndpointKey("gone")}}); err != nil {
					t.Error(err)
				}
			}
		}
	})
	s.put(putKV("a", "1"), Put{EndpointKey("gone"), value(t, model.Endpoint{ID: "gone", Network: "net"})})
	snap := s.restore(s.save())
	if rounds != 3 {
		t.Errorf("looked %d times, want 3", rounds)
	}
	if e, _ := snap.Endpoint("gone"); e != nil {
		t.Error("an endpoint that was removed is back")
	}
	if e := snap.EndpointByAddr(addr); e == nil {
		t.Error("the endpoint is gone")
	}
	if n, _ := snap.Network("net"); n == nil {
		t.Error("its network is gone")
	}
}
