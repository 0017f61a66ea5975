package consulapi_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/fairlead-net/fairlead/internal/model"
)

// client is the official client against the handler on a real connection.
func client(t *testing.T, w *world) *api.Client {
	t.Helper()
	srv := httptest.NewServer(w.handler())
	cfg := api.DefaultConfig()
	cfg.Address = strings.TrimPrefix(srv.URL, "http://")
	c, err := api.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cfg.Transport.CloseIdleConnections()
		srv.Close()
	})
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func register(t *testing.T, c *api.Client) {
	t.Helper()
	must(t, c.Agent().ServiceRegister(&api.AgentServiceRegistration{
		ID: "web-1", Name: "web", Tags: []string{"v1"}, Address: "10.0.0.5", Port: 8080,
		Meta: map[string]string{"version": "1"}, Weights: &api.AgentWeights{Passing: 5, Warning: 1},
		Check: &api.AgentServiceCheck{TTL: "30s", DeregisterCriticalServiceAfter: "10m"},
	}))
}

func TestClientAgent(t *testing.T) {
	w := newWorld()
	c := client(t, w)
	self, err := c.Agent().Self()
	must(t, err)
	if dc := self["Config"]["Datacenter"]; dc != "dc1" {
		t.Errorf("datacenter %v", dc)
	}
	if name, err := c.Agent().NodeName(); err != nil || name != "n1" {
		t.Errorf("node name %q, %v", name, err)
	}
	register(t, c)
	svcs, err := c.Agent().ServicesWithFilter(`Service == "web" and Meta.version == "1"`)
	must(t, err)
	if s := svcs["web-1"]; s == nil || s.Port != 8080 || s.Weights.Passing != 5 || s.Datacenter != "dc1" {
		t.Fatalf("services %+v", svcs)
	}
	s, meta, err := c.Agent().Service("web-1", nil)
	must(t, err)
	if s.ContentHash == "" || meta.LastContentHash != s.ContentHash {
		t.Errorf("content hash %q, in the header %q", s.ContentHash, meta.LastContentHash)
	}
	must(t, c.Agent().UpdateTTL("service:web-1", "all well", api.HealthPassing))
	checks, err := c.Agent().Checks()
	must(t, err)
	if ch := checks["service:web-1"]; ch == nil || ch.Status != api.HealthPassing || ch.Output != "all well" || ch.Type != "ttl" {
		t.Errorf("checks %+v", checks)
	}
	must(t, c.Agent().FailTTL("service:web-1", "dead"))
	members, err := c.Agent().Members(false)
	must(t, err)
	if len(members) != 1 || members[0].Status != 1 || !members[0].IsConsulServer() {
		t.Errorf("members %+v", members)
	}
	must(t, c.Agent().ServiceDeregister("web-1"))
	if err := c.Agent().ServiceDeregister("web-1"); err == nil || !strings.Contains(err.Error(), "Unknown service ID") {
		t.Errorf("deregistering twice: %v", err)
	}
	if leader, err := c.Status().Leader(); err != nil || leader == "" {
		t.Errorf("leader %q, %v", leader, err)
	}
	if peers, err := c.Status().Peers(); err != nil || len(peers) != 1 {
		t.Errorf("peers %v, %v", peers, err)
	}
}

func TestClientCatalogAndHealth(t *testing.T) {
	w := newWorld()
	c := client(t, w)
	register(t, c)
	must(t, c.Agent().UpdateTTL("service:web-1", "", api.HealthPassing))

	dcs, err := c.Catalog().Datacenters()
	must(t, err)
	svcs, meta, err := c.Catalog().Services(nil)
	must(t, err)
	if !slices.Equal(dcs, []string{"dc1"}) || !slices.Equal(svcs["web"], []string{"v1"}) {
		t.Errorf("datacenters %v, services %v", dcs, svcs)
	}
	if meta.LastIndex == 0 || !meta.KnownLeader || meta.DefaultACLPolicy != "allow" {
		t.Errorf("meta %+v", meta)
	}
	nodes, _, err := c.Catalog().Nodes(&api.QueryOptions{NodeMeta: map[string]string{"rack": "a"}})
	must(t, err)
	if len(nodes) != 1 || nodes[0].Node != "n1" || nodes[0].TaggedAddresses["lan"] != "10.0.0.1" {
		t.Errorf("nodes %+v", nodes)
	}
	found, _, err := c.Catalog().ServiceMultipleTags("web", []string{"v1"}, &api.QueryOptions{Near: "_agent"})
	must(t, err)
	if len(found) != 1 || found[0].ServiceAddress != "10.0.0.5" || found[0].ServiceTaggedAddresses["lan_ipv4"].Port != 8080 {
		t.Errorf("catalog service %+v", found)
	}
	node, _, err := c.Catalog().Node("n1", nil)
	must(t, err)
	if node.Services["web-1"].Port != 8080 {
		t.Errorf("catalog node %+v", node)
	}
	if node, _, err := c.Catalog().Node("none", nil); err != nil || node != nil {
		t.Errorf("unknown node %+v, %v", node, err)
	}

	entries, _, err := c.Health().Service("web", "v1", true, &api.QueryOptions{Filter: `Service.Meta.version == "1" and Checks.Status == passing`, RequireConsistent: true})
	must(t, err)
	if len(entries) != 1 || entries[0].Checks.AggregatedStatus() != api.HealthPassing || entries[0].Service.Weights.Passing != 5 {
		t.Fatalf("health service %+v", entries)
	}
	for name, read := range map[string]func() (api.HealthChecks, *api.QueryMeta, error){
		"checks": func() (api.HealthChecks, *api.QueryMeta, error) { return c.Health().Checks("web", nil) },
		"state":  func() (api.HealthChecks, *api.QueryMeta, error) { return c.Health().State(api.HealthPassing, nil) },
		"any":    func() (api.HealthChecks, *api.QueryMeta, error) { return c.Health().State(api.HealthAny, nil) },
		"node":   func() (api.HealthChecks, *api.QueryMeta, error) { return c.Health().Node("n1", nil) },
	} {
		checks, _, err := read()
		if err != nil || !slices.ContainsFunc(checks, func(h *api.HealthCheck) bool { return h.CheckID == "service:web-1" }) {
			t.Errorf("%s: %+v, %v", name, checks, err)
		}
	}
}

// TestClientBlocking follows a service by index through the official client: a
// change wakes the query, with an index that has gone up, and nothing else does.
func TestClientBlocking(t *testing.T) {
	w := newWorld()
	c := client(t, w)
	register(t, c)
	_, meta, err := c.Health().Service("web", "", true, nil)
	must(t, err)

	type outcome struct {
		entries []*api.ServiceEntry
		meta    *api.QueryMeta
		err     error
	}
	answers := make(chan outcome, 1)
	follow := func(index uint64) {
		e, m, err := c.Health().Service("web", "", true, &api.QueryOptions{WaitIndex: index, WaitTime: time.Minute})
		answers <- outcome{e, m, err}
	}
	go follow(meta.LastIndex)
	// Another service does not wake it.
	must(t, c.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: "other"}))
	select {
	case o := <-answers:
		t.Fatalf("answered without a change: %+v", o)
	default:
	}
	must(t, c.Agent().UpdateTTL("service:web-1", "", api.HealthPassing))
	o := <-answers
	must(t, o.err)
	if len(o.entries) != 1 || o.meta.LastIndex <= meta.LastIndex {
		t.Fatalf("after passing: %d entries at index %d, was %d", len(o.entries), o.meta.LastIndex, meta.LastIndex)
	}
	go follow(o.meta.LastIndex)
	must(t, c.Agent().UpdateTTL("service:web-1", "", api.HealthCritical))
	if o = <-answers; o.err != nil || len(o.entries) != 0 {
		t.Fatalf("after critical: %+v", o)
	}
}

func TestClientKV(t *testing.T) {
	w := newWorld()
	c := client(t, w)
	kv := c.KV()
	none, meta, err := kv.Get("app/a", nil)
	if err != nil || none != nil || meta.LastIndex == 0 {
		t.Fatalf("missing key: %v, %+v, %v", none, meta, err)
	}
	got := make(chan *api.KVPair, 1)
	go func() {
		p, _, err := kv.Get("app/a", &api.QueryOptions{WaitIndex: meta.LastIndex})
		if err != nil {
			t.Error(err)
		}
		got <- p
	}()
	_, err = kv.Put(&api.KVPair{Key: "app/a", Value: []byte("1"), Flags: 7}, nil)
	must(t, err)
	p := <-got
	if p == nil || string(p.Value) != "1" || p.Flags != 7 || p.ModifyIndex == 0 {
		t.Fatalf("blocked for %+v", p)
	}
	p.Value = []byte(strings.Repeat("x", 4096)) // large enough to come compressed
	if ok, _, err := kv.CAS(p, nil); err != nil || !ok {
		t.Fatalf("cas: %v, %v", ok, err)
	}
	if ok, _, err := kv.CAS(p, nil); err != nil || ok {
		t.Fatalf("stale cas: %v, %v", ok, err)
	}
	pairs, _, err := kv.List("app/", nil)
	if err != nil || len(pairs) != 1 || len(pairs[0].Value) != 4096 {
		t.Fatalf("list: %d, %v", len(pairs), err)
	}
	keys, _, err := kv.Keys("", "/", nil)
	if err != nil || !slices.Equal(keys, []string{"app/"}) {
		t.Fatalf("keys: %v, %v", keys, err)
	}
	if _, _, err := kv.Acquire(&api.KVPair{Key: "app/a", Session: "s"}, nil); err == nil || !strings.Contains(err.Error(), "invalid session") {
		t.Errorf("acquire: %v", err)
	}
	if ok, _, err := kv.DeleteCAS(pairs[0], nil); err != nil || !ok {
		t.Errorf("delete cas: %v, %v", ok, err)
	}
	_, err = kv.DeleteTree("", nil)
	must(t, err)
	if none, _, err := kv.Get("app/a", (&api.QueryOptions{}).WithContext(context.Background())); err != nil || none != nil {
		t.Errorf("after deleting: %v, %v", none, err)
	}
}

// TestHeartbeatListsNoChecks: a heartbeat costs the same on a node with thousands
// of services.
func TestHeartbeatListsNoChecks(t *testing.T) {
	w := newWorld()
	reg := model.Registration{Instance: model.Instance{ID: "web-1", Service: "web"}, Checks: []model.CheckSpec{{ID: "alive", TTL: time.Minute}}}
	if _, err := w.Register(t.Context(), reg); err != nil {
		t.Fatal(err)
	}
	rec := httptest.NewRecorder()
	w.handler().ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodPut, "/v1/agent/check/pass/alive", nil))
	if rec.Code != http.StatusOK || w.checks["alive"].Status != model.Passing {
		t.Errorf("%d %s: %+v", rec.Code, rec.Body, w.checks["alive"])
	}
	if w.listed > 0 {
		t.Errorf("all checks were listed %d times", w.listed)
	}
}
