package story

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"

	"github.com/fairlead-net/fairlead/internal/testlab"
)

// official is the official Go client of Consul, with connections that start inside the agent's host.
func official(a *agent) *consul.Client {
	a.t.Helper()
	transport := &http.Transport{DialContext: a.dial}
	a.t.Cleanup(transport.CloseIdleConnections)
	c, err := consul.NewClient(&consul.Config{Address: httpAddr, Transport: transport})
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

// TestOfficialClient tells the whole story of a service through the official client.
func TestOfficialClient(t *testing.T) {
	t.Parallel()
	lab := testlab.New(t)
	a := newAgent(t, lab.Host("n1"))
	c := official(a)
	t.Run("agent and catalogue", func(t *testing.T) { clientCatalogue(t, c) })
	t.Run("health", func(t *testing.T) { clientHealth(t, c) })
	t.Run("blocking", func(t *testing.T) { clientBlocking(t, c) })
	t.Run("kv", func(t *testing.T) { clientKV(t, c) })
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func clientCatalogue(t *testing.T, c *consul.Client) {
	self, err := c.Agent().Self()
	must(t, err)
	if self["Config"]["NodeName"] != "n1" || self["Config"]["Datacenter"] != "dc1" || self["Config"]["Server"] != true {
		t.Errorf("self: %+v", self["Config"])
	}
	leader, err := c.Status().Leader()
	must(t, err)
	peers, err := c.Status().Peers()
	must(t, err)
	if leader == "" || !slices.Equal(peers, []string{leader}) {
		t.Errorf("leader %q, peers %v", leader, peers)
	}
	for i, tag := range []string{"green", "blue"} {
		must(t, c.Agent().ServiceRegister(&consul.AgentServiceRegistration{
			ID: fmt.Sprintf("web-%d", i+1), Name: "web", Tags: []string{tag}, Address: "192.0.2.7", Port: 8000 + i,
			Meta: map[string]string{"rack": tag}, Check: &consul.AgentServiceCheck{TTL: "10m"},
		}))
	}
	mine, err := c.Agent().Services()
	must(t, err)
	if len(mine) != 2 || mine["web-2"].Service != "web" || mine["web-2"].Port != 8001 || mine["web-2"].Meta["rack"] != "blue" {
		t.Errorf("the agent's services: %+v", mine)
	}
	services, meta, err := c.Catalog().Services(nil)
	must(t, err)
	slices.Sort(services["web"])
	if !slices.Equal(services["web"], []string{"blue", "green"}) || meta.LastIndex == 0 || !meta.KnownLeader {
		t.Errorf("catalogue: %v, %+v", services, meta)
	}
	instances, _, err := c.Catalog().Service("web", "green", nil)
	must(t, err)
	if len(instances) != 1 || instances[0].ServiceID != "web-1" || instances[0].Node != "n1" || instances[0].ServicePort != 8000 {
		t.Errorf("instances: %+v", instances)
	}
	nodes, _, err := c.Catalog().Nodes(nil)
	must(t, err)
	if len(nodes) != 1 || nodes[0].Node != "n1" || nodes[0].Datacenter != "dc1" || len(nodes[0].ID) != 36 {
		t.Errorf("nodes: %+v", nodes)
	}
}

func clientHealth(t *testing.T, c *consul.Client) {
	passing := func(want ...string) error {
		entries, _, err := c.Health().Service("web", "", true, nil)
		var ids []string
		for _, e := range entries {
			ids = append(ids, e.Service.ID)
		}
		slices.Sort(ids)
		if err == nil && !slices.Equal(ids, want) {
			err = fmt.Errorf("these pass: %v, want %v", ids, want)
		}
		return err
	}
	must(t, passing())
	for _, step := range []struct {
		id     string
		status string
		update func(id, note string) error
		want   []string // passing afterwards
	}{
		{"web-1", consul.HealthPassing, c.Agent().PassTTL, []string{"web-1"}},
		{"web-2", consul.HealthPassing, func(id, note string) error { return c.Agent().UpdateTTL(id, note, "pass") }, []string{"web-1", "web-2"}},
		{"web-1", consul.HealthWarning, c.Agent().WarnTTL, []string{"web-2"}},
		{"web-2", consul.HealthCritical, c.Agent().FailTTL, nil},
		{"web-1", consul.HealthPassing, c.Agent().PassTTL, []string{"web-1"}},
	} {
		note := "it is " + step.status
		must(t, step.update("service:"+step.id, note))
		// The catalogue hears of it soon after, as Consul's does.
		testlab.Eventually(t, settleLimit, func() error { return passing(step.want...) })
		checks, _, err := c.Health().Checks("web", &consul.QueryOptions{Filter: `ServiceID == "` + step.id + `"`})
		must(t, err)
		if len(checks) != 1 || checks[0].Status != step.status || checks[0].Output != note {
			t.Errorf("checks of %s after %q: %+v", step.id, note, checks)
		}
	}
	bad, _, err := c.Health().State(consul.HealthCritical, nil)
	must(t, err)
	if len(bad) != 1 || bad[0].ServiceID != "web-2" {
		t.Errorf("critical: %+v", bad)
	}
	if err := c.Agent().UpdateTTL("service:none", "", "pass"); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("update of an unknown check: %v", err)
	}
	must(t, c.Agent().ServiceDeregister("web-2"))
	entries, _, err := c.Health().Service("web", "", false, nil)
	must(t, err)
	if len(entries) != 1 || entries[0].Service.ID != "web-1" || entries[0].Checks.AggregatedStatus() != consul.HealthPassing {
		t.Errorf("after deregistration: %+v", entries)
	}
	if bad, _, err = c.Health().State(consul.HealthCritical, nil); err != nil || len(bad) != 0 {
		t.Errorf("a check outlived its service: %+v, %v", bad, err)
	}
}

// clientBlocking: a query that waits is answered by a change of what it asked for and by nothing else.
func clientBlocking(t *testing.T, c *consul.Client) {
	ctx, cancel := context.WithTimeout(t.Context(), settleLimit)
	defer cancel()
	type outcome struct {
		n    int
		meta *consul.QueryMeta
		err  error
	}
	wait := func(index uint64) <-chan outcome {
		answer := make(chan outcome, 1)
		go func() {
			q := (&consul.QueryOptions{WaitIndex: index, WaitTime: time.Minute}).WithContext(ctx)
			entries, meta, err := c.Health().Service("web", "", true, q)
			answer <- outcome{len(entries), meta, err}
		}()
		return answer
	}
	_, before, err := c.Health().Service("web", "", true, nil)
	must(t, err)
	answer := wait(before.LastIndex)
	// None of these is about the service, and each was through when the next began.
	_, err = c.KV().Put(&consul.KVPair{Key: "other", Value: []byte("1")}, nil)
	must(t, err)
	must(t, c.Agent().ServiceRegister(&consul.AgentServiceRegistration{Name: "other", Port: 1}))
	must(t, c.Agent().ServiceDeregister("other"))
	_, now, err := c.Catalog().Services(nil)
	must(t, err)
	select {
	case o := <-answer:
		t.Fatalf("answered without a change of the service: %+v", o)
	default:
	}
	must(t, c.Agent().UpdateTTL("service:web-1", "", consul.HealthCritical))
	o := <-answer
	must(t, o.err)
	if o.n != 0 || o.meta.LastIndex <= now.LastIndex {
		t.Errorf("woken with %d instances at index %d; the change came after %d", o.n, o.meta.LastIndex, now.LastIndex)
	}

	// The time of a query may also just be over.
	entries, meta, err := c.Health().Service("web", "", true, &consul.QueryOptions{WaitIndex: o.meta.LastIndex, WaitTime: 50 * time.Millisecond})
	if err != nil || len(entries) != 0 || meta.LastIndex != o.meta.LastIndex {
		t.Errorf("a query that ran out: %v, %+v, %v", entries, meta, err)
	}
	answer = wait(o.meta.LastIndex)
	must(t, c.Agent().ServiceDeregister("web-1"))
	o = <-answer
	if o.err != nil || o.n != 0 {
		t.Errorf("after the last instance left: %+v", o)
	}
}

func clientKV(t *testing.T, c *consul.Client) {
	kv := c.KV()
	none, meta, err := kv.Get("app/a", nil)
	if err != nil || none != nil || meta.LastIndex == 0 {
		t.Fatalf("missing key: %v, %+v, %v", none, meta, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), settleLimit)
	defer cancel()
	got := make(chan error, 1)
	go func() {
		p, m, err := kv.Get("app/a", (&consul.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: time.Minute}).WithContext(ctx))
		if err == nil && (p == nil || string(p.Value) != "one" || m.LastIndex <= meta.LastIndex) {
			err = fmt.Errorf("%+v at %+v", p, m)
		}
		got <- err
	}()
	for _, p := range []*consul.KVPair{{Key: "app/b", Value: []byte{0, 255}}, {Key: "app/c/d"}, {Key: "app/a", Value: []byte("one"), Flags: 3}} {
		_, err := kv.Put(p, nil)
		must(t, err)
	}
	must(t, <-got)

	pairs, _, err := kv.List("app/", nil)
	must(t, err)
	var list []string
	for _, p := range pairs {
		list = append(list, fmt.Sprintf("%s=%q/%d", p.Key, p.Value, p.Flags))
	}
	if want := []string{`app/a="one"/3`, `app/b="\x00\xff"/0`, `app/c/d=""/0`}; !slices.Equal(list, want) {
		t.Errorf("list: %q, want %q", list, want)
	}
	keys, _, err := kv.Keys("app/", "/", nil)
	if err != nil || !slices.Equal(keys, []string{"app/a", "app/b", "app/c/"}) {
		t.Errorf("keys: %v, %v", keys, err)
	}
	cas := func(p *consul.KVPair) bool {
		t.Helper()
		ok, _, err := kv.CAS(p, nil)
		must(t, err)
		return ok
	}
	if cas(&consul.KVPair{Key: "app/a", Value: []byte("two")}) {
		t.Error("a key that is there was created by compare-and-set")
	}
	p := pairs[0]
	p.Value = []byte("two")
	if !cas(p) || cas(p) {
		t.Error("compare-and-set must work at the key's index, and only once")
	}
	if ok, _, err := kv.DeleteCAS(p, nil); err != nil || ok {
		t.Errorf("delete at an old index: %v, %v", ok, err)
	}
	if _, err := kv.Put(&consul.KVPair{Key: "app/big", Value: make([]byte, 600<<10)}, nil); !isStatus(err, http.StatusRequestEntityTooLarge) {
		t.Errorf("a value over the limit: %v", err)
	}
	if _, err := kv.DeleteTree("app/", nil); err != nil {
		t.Error(err)
	}
	if pairs, _, err := kv.List("app/", nil); err != nil || len(pairs) != 0 {
		t.Errorf("after deletion: %v, %v", pairs, err)
	}
}

func isStatus(err error, code int) bool {
	var status consul.StatusError
	return errors.As(err, &status) && status.Code == code
}
