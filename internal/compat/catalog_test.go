package compat

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	miekg "github.com/miekg/dns"
)

const externalID = "6a1f3b1e-0000-4000-8000-000000000001"

// external is a database on a node without an agent.
func external() *api.CatalogRegistration {
	return &api.CatalogRegistration{
		ID: externalID, Node: "ext", Address: "10.9.0.1", Datacenter: "dc1",
		NodeMeta: map[string]string{"external-node": "true"}, TaggedAddresses: map[string]string{"lan": "10.9.0.1"},
		Service: &api.AgentService{ID: "db1", Service: "db", Tags: []string{"main", "v1"}, Port: 5432, Meta: map[string]string{"a": "b"}},
		Checks: api.HealthChecks{
			{Node: "ext", CheckID: "node", Name: "node", Status: api.HealthPassing},
			{Node: "ext", CheckID: "db:tcp", Name: "db", Status: api.HealthWarning, ServiceID: "db1", Notes: "n", Output: "o",
				Definition: api.HealthCheckDefinition{TCP: "10.9.0.1:5432", IntervalDuration: 5 * time.Second, TimeoutDuration: time.Second}},
		},
	}
}

func TestCatalogMethods(t *testing.T) {
	c := startAgent(t, "site=dc1").client()
	cat := c.Catalog()
	if dcs, err := cat.Datacenters(); err != nil || !slices.Equal(dcs, []string{"dc1"}) {
		t.Errorf("datacenters: %v, %v", dcs, err)
	}
	if _, err := cat.Register(external(), nil); err != nil {
		t.Fatal(err)
	}
	nodes, meta, err := cat.Nodes(&api.QueryOptions{NodeMeta: map[string]string{"external-node": "true"}, Filter: `Address == "10.9.0.1"`})
	if err != nil || len(nodes) != 1 || nodes[0].ID != externalID || nodes[0].TaggedAddresses["lan"] != "10.9.0.1" || nodes[0].Datacenter != "dc1" || meta.LastIndex == 0 {
		t.Fatalf("nodes: %+v, %+v, %v", nodes, meta, err)
	}
	if all, _, err := cat.Nodes(&api.QueryOptions{Near: "n1"}); err != nil || len(all) != 2 || all[0].Node != "n1" {
		t.Errorf("nodes near this one: %+v, %v", all, err)
	}
	services, _, err := cat.Services(nil)
	if err != nil || !slices.Equal(services["db"], []string{"main", "v1"}) || services["consul"] == nil {
		t.Errorf("services: %v, %v", services, err)
	}
	if only, _, err := cat.Services(&api.QueryOptions{NodeMeta: map[string]string{"external-node": "true"}}); err != nil || len(only) != 1 {
		t.Errorf("services of such nodes: %v, %v", only, err)
	}

	found, _, err := cat.Service("db", "main", nil)
	if err != nil || len(found) != 1 || found[0].ServiceID != "db1" || found[0].ServicePort != 5432 || found[0].ServiceMeta["a"] != "b" ||
		found[0].ServiceWeights != (api.Weights{Passing: 1, Warning: 1}) || found[0].NodeMeta["external-node"] != "true" {
		t.Errorf("service: %+v, %v", found, err)
	}
	if both, _, err := cat.ServiceMultipleTags("db", []string{"main", "v1"}, nil); err != nil || len(both) != 1 {
		t.Errorf("with both tags: %+v, %v", both, err)
	}
	if none, _, err := cat.ServiceMultipleTags("db", []string{"main", "v2"}, nil); err != nil || none == nil || len(none) != 0 {
		t.Errorf("with tags that do not go together: %+v, %v", none, err)
	}

	n, _, err := cat.Node("ext", nil)
	if err != nil || n.Node.Address != "10.9.0.1" || n.Services["db1"] == nil || n.Services["db1"].Port != 5432 {
		t.Errorf("node: %+v, %v", n, err)
	}
	if n, _, err := cat.Node("nope", nil); err != nil || n != nil {
		t.Errorf("unknown node: %+v, %v", n, err)
	}
	l, _, err := cat.NodeServiceList("ext", nil)
	if err != nil || l.Node.Node != "ext" || len(l.Services) != 1 || l.Services[0].Service != "db" {
		t.Errorf("list of the node's services: %+v, %v", l, err)
	}
	if gates, _, err := cat.GatewayServices("gate", nil); err != nil || len(gates) != 0 {
		t.Errorf("gateway services: %+v, %v", gates, err)
	}
	removeBits(t, c)
}

// removeBits takes the external node apart.
func removeBits(t *testing.T, c *api.Client) {
	t.Helper()
	for _, step := range []struct {
		gone                    api.CatalogDeregistration
		nodes, services, checks int
	}{
		{api.CatalogDeregistration{Node: "ext", CheckID: "node"}, 2, 1, 1},
		{api.CatalogDeregistration{Node: "ext", ServiceID: "db1", Datacenter: "dc1"}, 2, 0, 0},
		{api.CatalogDeregistration{Node: "ext", Address: "10.9.0.1"}, 1, 0, 0},
		{api.CatalogDeregistration{Node: "ext"}, 1, 0, 0},
	} {
		if _, err := c.Catalog().Deregister(&step.gone, nil); err != nil {
			t.Fatal(err)
		}
		nodes, _, err := c.Catalog().Nodes(nil)
		services, _, err2 := c.Catalog().Service("db", "", nil)
		checks, _, err3 := c.Health().Node("ext", nil)
		if err != nil || err2 != nil || err3 != nil || len(nodes) != step.nodes || len(services) != step.services || len(checks) != step.checks {
			t.Errorf("after %+v: %d nodes, %d services, %d checks (%v, %v, %v)", step.gone, len(nodes), len(services), len(checks), err, err2, err3)
		}
	}
}

func TestCatalogConnect(t *testing.T) {
	c := startAgent(t).client()
	reg := external()
	reg.Service.Connect = &api.AgentServiceConnect{Native: true}
	reg.Checks = nil
	if _, err := c.Catalog().Register(reg, nil); err != nil {
		t.Fatal(err)
	}
	proxy := &api.CatalogRegistration{Node: "ext", SkipNodeUpdate: true, Service: &api.AgentService{
		Kind: api.ServiceKindConnectProxy, ID: "db-proxy", Service: "db-sidecar", Port: 21000, Tags: []string{"side"},
		Proxy: &api.AgentServiceConnectProxyConfig{DestinationServiceName: "db", DestinationServiceID: "db2", LocalServicePort: 5432},
	}}
	if _, err := c.Catalog().Register(proxy, nil); err != nil {
		t.Fatal(err)
	}
	found, _, err := c.Catalog().Connect("db", "", nil)
	if err != nil || len(found) != 2 || found[0].ServiceID != "db-proxy" || found[0].ServiceProxy.DestinationServiceName != "db" || found[1].ServiceID != "db1" {
		t.Errorf("catalog: %+v, %v", found, err)
	}
	if side, _, err := c.Catalog().ConnectMultipleTags("db", []string{"side"}, nil); err != nil || len(side) != 1 {
		t.Errorf("catalog, with a tag: %+v, %v", side, err)
	}
	health, _, err := c.Health().Connect("db", "", true, nil)
	if err != nil || len(health) != 2 || health[0].Service.Kind != api.ServiceKindConnectProxy || !health[1].Service.Connect.Native {
		t.Errorf("health: %+v, %v", health, err)
	}
	if side, _, err := c.Health().ConnectMultipleTags("db", []string{"side"}, false, nil); err != nil || len(side) != 1 {
		t.Errorf("health, with a tag: %+v, %v", side, err)
	}
	if gates, _, err := c.Health().Ingress("db", false, nil); err != nil || len(gates) != 0 {
		t.Errorf("ingress: %+v, %v", gates, err)
	}
}

func TestHealthMethods(t *testing.T) {
	a := startAgent(t)
	c := a.client()
	if _, err := c.Catalog().Register(external(), nil); err != nil {
		t.Fatal(err)
	}
	checks, _, err := c.Health().Node("ext", nil)
	if err != nil || len(checks) != 2 || checks.AggregatedStatus() != api.HealthWarning {
		t.Fatalf("of the node: %+v, %v", checks, err)
	}
	of, _, err := c.Health().Checks("db", nil)
	if err != nil || len(of) != 1 || of[0].CheckID != "db:tcp" || of[0].Type != "tcp" || !slices.Equal(of[0].ServiceTags, []string{"main", "v1"}) ||
		of[0].Definition.TCP != "10.9.0.1:5432" || of[0].Definition.IntervalDuration != 5*time.Second || of[0].Notes != "n" || of[0].Output != "o" {
		t.Errorf("of the service: %+v, %v", of, err)
	}
	for state, want := range map[string]int{api.HealthAny: 3, api.HealthPassing: 2, api.HealthWarning: 1, api.HealthCritical: 0} {
		if got, _, err := c.Health().State(state, nil); err != nil || len(got) != want {
			t.Errorf("%s: %+v, %v, want %d", state, got, err, want)
		}
	}
	if alive, _, err := c.Health().State(api.HealthPassing, &api.QueryOptions{Filter: `CheckID == "serfHealth"`}); err != nil || len(alive) != 1 || alive[0].Node != "n1" {
		t.Errorf("serfHealth: %+v, %v", alive, err)
	}
	entries, _, err := c.Health().Service("db", "", false, nil)
	if err != nil || len(entries) != 1 || len(entries[0].Checks) != 2 || entries[0].Node.ID != externalID {
		t.Errorf("service: %+v, %v", entries, err)
	}
	if passing, _, err := c.Health().Service("db", "", true, nil); err != nil || len(passing) != 0 {
		t.Errorf("passing: %+v, %v", passing, err)
	}
	if tagged, _, err := c.Health().ServiceMultipleTags("db", []string{"v1", "main"}, false, nil); err != nil || len(tagged) != 1 {
		t.Errorf("with tags: %+v, %v", tagged, err)
	}
	servers, _, err := c.Health().Service("consul", "", true, nil)
	if err != nil || len(servers) != 1 || servers[0].Service.Port != 8300 || servers[0].Node.Node != "n1" || servers[0].Checks[0].CheckID != "serfHealth" {
		t.Errorf("servers: %+v, %v", servers, err)
	}
	for name, want := range map[string]string{"consul.service.consul.": "127.0.0.1", "db.service.consul.": "10.9.0.1", "ext.node.consul.": "10.9.0.1"} {
		answer, err := miekg.Exchange(new(miekg.Msg).SetQuestion(name, miekg.TypeA), a.dns)
		if err != nil || len(answer.Answer) != 1 || !strings.HasSuffix(answer.Answer[0].String(), want) {
			t.Errorf("%s: %v, %v", name, answer, err)
		}
	}
}

// A watcher of one service sleeps through what concerns others, and wakes for its
// own.
func TestWritesToTheCatalogueWakeWatchers(t *testing.T) {
	c := startAgent(t).client()
	reg := external()
	if _, err := c.Catalog().Register(reg, nil); err != nil {
		t.Fatal(err)
	}
	_, meta, err := c.Health().Service("db", "", false, nil)
	if err != nil {
		t.Fatal(err)
	}
	type answer struct {
		entries []*api.ServiceEntry
		index   uint64
		err     error
	}
	const watchers = 20
	answers := make(chan answer, watchers)
	for range watchers {
		go func() {
			entries, m, err := c.Health().Service("db", "", false, &api.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: settleLimit})
			if err != nil {
				m = &api.QueryMeta{}
			}
			answers <- answer{entries, m.LastIndex, err}
		}()
	}
	if _, err := c.Catalog().Register(reg, nil); err != nil { // nothing new
		t.Fatal(err)
	}
	other := &api.CatalogRegistration{Node: "other", Address: "10.9.0.2", Service: &api.AgentService{Service: "cache"}}
	if _, err := c.Catalog().Register(other, nil); err != nil {
		t.Fatal(err)
	}
	reg.Checks[1].Status = api.HealthCritical
	if _, err := c.Catalog().Register(reg, nil); err != nil {
		t.Fatal(err)
	}
	for range watchers {
		a := <-answers
		if a.err != nil || a.index <= meta.LastIndex || a.entries[0].Checks.AggregatedStatus() != api.HealthCritical {
			t.Fatalf("woken with %+v at %d, %v", a.entries, a.index, a.err)
		}
	}
}

func TestCatalogRefusals(t *testing.T) {
	c := startAgent(t).client()
	if _, err := c.Catalog().Register(external(), nil); err != nil {
		t.Fatal(err)
	}
	change := func(f func(*api.CatalogRegistration)) *api.CatalogRegistration {
		r := external()
		f(r)
		return r
	}
	for _, r := range []struct {
		reg  *api.CatalogRegistration
		want string
	}{
		{change(func(r *api.CatalogRegistration) { r.Node = "" }), "500 (Must provide node)"},
		{change(func(r *api.CatalogRegistration) { r.Address = "" }), "500 (Must provide address if SkipNodeUpdate is not set)"},
		{change(func(r *api.CatalogRegistration) { r.Service.Service = "" }), "500 (Must provide service name (Service.Service) when service ID is provided)"},
		{change(func(r *api.CatalogRegistration) { r.Service.Address = "::" }), "500 (Invalid service address)"},
		{change(func(r *api.CatalogRegistration) { r.Checks[1].ServiceID = "nope" }), "500 (Unknown service ID 'nope' for check ID 'db:tcp')"},
		{change(func(r *api.CatalogRegistration) { r.Checks[0].Node = "n1" }), "500 (Node 'n1' for check 'node' doesn't match register request node 'ext')"},
		{change(func(r *api.CatalogRegistration) { r.Datacenter = "elsewhere" }), "500 (No path to datacenter)"},
		{change(func(r *api.CatalogRegistration) { r.ID = "6a1f3b1e-0000-4000-8000-000000000002" }),
			`500 (failed inserting node: Error while renaming Node ID: "6a1f3b1e-0000-4000-8000-000000000002": Node name ext is reserved by node ` + externalID + ` with name ext (10.9.0.1))`},
	} {
		if _, err := c.Catalog().Register(r.reg, nil); err == nil || !strings.Contains(err.Error(), r.want) {
			t.Errorf("register: %v, want %s", err, r.want)
		}
	}
	if _, err := c.Catalog().Deregister(&api.CatalogDeregistration{}, nil); err == nil || !strings.Contains(err.Error(), "Must provide node") {
		t.Errorf("deregister: %v", err)
	}
	if _, err := c.Catalog().Register(change(func(r *api.CatalogRegistration) { r.Partition = "other" }), nil); err == nil || !strings.Contains(err.Error(), "Partitions are a Consul Enterprise feature") {
		t.Errorf("a partition: %v", err)
	}
}

// The agent of a node has the last word on what is on it, but for tags that it
// leaves to others.
func TestWritesToTheCatalogueOnAnAgentsNode(t *testing.T) {
	c := startAgent(t).client()
	for _, id := range []string{"own", "free"} {
		if err := c.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: id, Port: 80, Tags: []string{"a"}, EnableTagOverride: id == "free"}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Catalog().Register(&api.CatalogRegistration{Node: "n1", SkipNodeUpdate: true, Service: &api.AgentService{
			ID: id, Service: id, Port: 80, Tags: []string{"b"}, EnableTagOverride: id == "free",
		}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	stray := &api.CatalogRegistration{Node: "n1", Address: "10.0.0.99", Service: &api.AgentService{Service: "stray"}, Check: &api.AgentCheck{CheckID: "stray", Name: "stray", Status: "passing"}}
	if _, err := c.Catalog().Register(stray, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		n, _, err := c.Catalog().Node("n1", nil)
		checks, _, err2 := c.Health().Node("n1", nil)
		if err := errors.Join(err, err2); err != nil {
			return err
		}
		own, free := n.Services["own"], n.Services["free"]
		if own == nil || own.Tags[0] != "a" || free == nil || free.Tags[0] != "b" || n.Services["stray"] != nil || len(checks) != 1 || n.Node.Address != "127.0.0.1" {
			return fmt.Errorf("node %+v, services %v, checks %+v", n.Node, n.Services, checks)
		}
		return nil
	})
	// Gone as a whole, it is back with all it had.
	if _, err := c.Catalog().Deregister(&api.CatalogDeregistration{Node: "n1"}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		services, _, err := c.Catalog().Services(nil)
		alive, _, err2 := c.Health().Service("consul", "", true, nil)
		if err := errors.Join(err, err2); err != nil {
			return err
		}
		if len(services) != 3 || len(alive) != 1 || len(alive[0].Checks) != 1 {
			return fmt.Errorf("services %v, servers %+v", services, alive)
		}
		return nil
	})
}
