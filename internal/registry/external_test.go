package registry_test

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/registry"
)

func outside(node string) model.ExternalRegistration {
	return model.ExternalRegistration{Node: model.Node{Name: model.NodeName(node), Address: "10.9.0.1"}}
}

func db(checks ...model.Check) model.ExternalRegistration {
	reg := outside("ext")
	reg.Service = &model.Instance{ID: "db1", Service: "db", Port: 5432, Tags: []string{"main"}}
	reg.Checks = checks
	return reg
}

func TestARegistrationFromOutsideIsOneWrite(t *testing.T) {
	e := setup(t)
	before := e.revision()
	index := e.must(e.RegisterExternal(t.Context(), db(
		model.Check{Name: "node up", Status: model.Passing},
		model.Check{ID: "db up", ServiceID: "db1", Status: model.Warning, Definition: &model.CheckDefinition{HTTP: "http://10.9.0.1/"}},
	)))
	if index != before+1 {
		t.Errorf("written at %d after %d, want one revision", index, before)
	}
	svc, _ := e.snap().Service("db")
	if len(svc.Members) != 1 || svc.VIP == nil || svc.Members[0].Node.Address != "10.9.0.1" || svc.Members[0].Instance.Owner != model.OwnerExternal {
		t.Fatalf("service = %+v", svc)
	}
	m := svc.Members[0]
	if len(m.Checks) != 2 || m.Checks[0].ID != "node up" || m.Checks[1].ServiceName != "db" || m.Checks[1].ServiceTags[0] != "main" || m.Checks[1].Type != "http" {
		t.Errorf("checks = %+v", m.Checks)
	}
	if m.Instance.Weights != model.DefaultWeights || m.Instance.Node != "ext" {
		t.Errorf("instance = %+v", m.Instance)
	}
	e.unwritten(func() {
		e.must(e.RegisterExternal(t.Context(), db(
			model.Check{Name: "node up", Status: model.Passing},
			model.Check{ID: "db up", ServiceID: "db1", Status: model.Warning, Definition: &model.CheckDefinition{HTTP: "http://10.9.0.1/"}},
		)))
	})
}

func TestWhatARegistrationFromOutsideLeavesAlone(t *testing.T) {
	e := setup(t)
	reg := db(model.Check{ID: "one", ServiceID: "db1"}, model.Check{ID: "two", ServiceID: "db1"})
	reg.Node.ID, reg.Node.Meta = "6a1f3b1e-0000-4000-8000-000000000001", map[string]string{"rack": "a"}
	e.must(e.RegisterExternal(t.Context(), reg))

	// One check is named: the others stay, and show the service's new tags.
	again := db(model.Check{ID: "one", ServiceID: "db1", Status: model.Passing})
	again.SkipNodeUpdate, again.Node.Address, again.Service.Tags = true, "", []string{"spare"}
	e.must(e.RegisterExternal(t.Context(), again))
	n, _ := e.snap().Node("ext")
	if n.Address != "10.9.0.1" || n.Meta["rack"] != "a" {
		t.Errorf("node = %+v, want it as it was", n)
	}
	two, _ := e.snap().Check("ext", "two")
	if two == nil || two.ServiceTags[0] != "spare" {
		t.Errorf("check = %+v", two)
	}

	// Without an id the node keeps the one it has; the rest is what is said now.
	e.must(e.RegisterExternal(t.Context(), outside("ext")))
	n, _ = e.snap().Node("ext")
	if n.ID != reg.Node.ID || len(n.Meta) != 0 {
		t.Errorf("node = %+v", n)
	}
}

func TestRegistrationsFromOutsideThatAreRefused(t *testing.T) {
	e := setup(t)
	self := model.Node{Name: "n1", Address: "10.0.0.1", ID: "6a1f3b1e-0000-4000-8000-0000000000aa"}
	e.must(e.RegisterNode(t.Context(), self))
	e.must(e.PutCheck(t.Context(), model.Check{Node: "n1", ID: model.SerfHealth, Status: model.Passing, Stamp: model.Stamp{Owner: model.OwnerServers}}))
	e.must(e.PutServerService(t.Context(), "n1", nil))
	with := func(node string, change func(*model.ExternalRegistration)) model.ExternalRegistration {
		reg := outside(node)
		change(&reg)
		return reg
	}
	for _, c := range []struct {
		reg  model.ExternalRegistration
		err  error
		text string
	}{
		{with("", func(*model.ExternalRegistration) {}), registry.ErrInvalid, "node name is missing"},
		{with("x", func(r *model.ExternalRegistration) { r.Node.Address = "" }), registry.ErrInvalid, "node address is missing"},
		{with("x", func(r *model.ExternalRegistration) { r.SkipNodeUpdate = true }), registry.ErrUnknownNode, "register it without SkipNodeUpdate first"},
		{with("x", func(r *model.ExternalRegistration) { r.Service = &model.Instance{} }), registry.ErrInvalid, "service name is missing"},
		{with("x", func(r *model.ExternalRegistration) { r.Checks = []model.Check{{ID: "c", ServiceID: "nope"}} }), registry.ErrUnknownService, "Unknown service ID 'nope' for check ID 'c'"},
		{with("x", func(r *model.ExternalRegistration) { r.Checks = []model.Check{{ID: "c", Node: "y"}} }), registry.ErrInvalid, "Node 'y' for check 'c' doesn't match register request node 'x'"},
		{with("x", func(r *model.ExternalRegistration) { r.Checks = []model.Check{{}} }), registry.ErrInvalid, "check id is missing"},
		{with("n1", func(r *model.ExternalRegistration) { r.Node.ID = "6a1f3b1e-0000-4000-8000-0000000000bb" }), registry.ErrNodeNameTaken,
			`failed inserting node: Error while renaming Node ID: "6a1f3b1e-0000-4000-8000-0000000000bb": Node name n1 is reserved by node 6a1f3b1e-0000-4000-8000-0000000000aa with name n1 (10.0.0.1)`},
		{with("x", func(r *model.ExternalRegistration) { r.Node.ID = self.ID }), registry.ErrOwner, "it is the id of the agent at n1"},
		{with("n1", func(r *model.ExternalRegistration) {
			r.Service = &model.Instance{ID: "consul", Service: "consul", Port: 1}
		}), registry.ErrOwner, "owned by \"servers\""},
		{with("n1", func(r *model.ExternalRegistration) { r.Checks = []model.Check{{ID: model.SerfHealth}} }), registry.ErrOwner, "owned by \"servers\""},
	} {
		e.unwritten(func() {
			_, err := e.RegisterExternal(t.Context(), c.reg)
			if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%+v: %v, want %v: %s", c.reg, err, c.err, c.text)
			}
		})
	}
}

func TestOnAnAgentsNode(t *testing.T) {
	e := setup(t)
	inst := web("n1", "web1")
	inst.Address, inst.Places, inst.EnableTagOverride = "10.0.0.5", []model.Place{{Network: "net", Addr: addr("10.1.0.2"), Port: 80}}, true
	e.must(e.Register(t.Context(), inst, []model.Check{{ID: "c1"}}))

	// Its node's record is the agent's word; its instance changes, and stays its own.
	reg := outside("n1")
	reg.Service = &model.Instance{ID: "web1", Service: "web", Address: "10.0.0.5", Port: 80, Tags: []string{"canary"}, EnableTagOverride: true}
	e.must(e.RegisterExternal(t.Context(), reg))
	if n, _ := e.snap().Node("n1"); n.Address != "10.0.0.1" {
		t.Errorf("node = %+v", n)
	}
	got, _ := e.snap().Instance("n1", "web1")
	if got.Owner != model.NodeOwner("n1") || got.Tags[0] != "canary" || len(got.Places) != 1 {
		t.Errorf("instance = %+v", got)
	}
	if c, _ := e.snap().Check("n1", "c1"); c.ServiceTags[0] != "canary" || c.Owner != model.NodeOwner("n1") {
		t.Errorf("check = %+v", c)
	}

	// What is new there is nobody's, for the agent to remove.
	reg.Service = &model.Instance{Service: "stray", Port: 1}
	reg.Checks = []model.Check{{ID: "stray", Status: model.Passing}}
	e.must(e.RegisterExternal(t.Context(), reg))
	stray, _ := e.snap().Instance("n1", "stray")
	c, _ := e.snap().Check("n1", "stray")
	if stray.Owner != model.OwnerExternal || c.Owner != model.OwnerExternal {
		t.Errorf("owners %q and %q, want external", stray.Owner, c.Owner)
	}
}

func TestANodeFromOutsideIsRenamed(t *testing.T) {
	e := setup(t)
	reg := db(model.Check{ID: "c"})
	reg.Node.ID = "6a1f3b1e-0000-4000-8000-000000000001"
	e.must(e.RegisterExternal(t.Context(), reg))
	renamed := outside("ext2")
	renamed.Node.ID = reg.Node.ID
	e.must(e.RegisterExternal(t.Context(), renamed))
	old, _ := e.snap().Node("ext")
	checks, _ := e.snap().NodeChecks("ext")
	svc, _ := e.snap().Service("db")
	if n, _ := e.snap().Node("ext2"); n == nil || old != nil || len(checks)+len(svc.Members) != 0 {
		t.Errorf("after renaming: %+v, old %+v with %d checks and %d instances", n, old, len(checks), len(svc.Members))
	}

	// A dead node's name is free for another id.
	e.must(e.RegisterExternal(t.Context(), model.ExternalRegistration{Node: renamed.Node, Checks: []model.Check{{ID: model.SerfHealth, Status: model.Critical}}}))
	renamed.Node.ID = "6a1f3b1e-0000-4000-8000-000000000002"
	e.must(e.RegisterExternal(t.Context(), renamed))
	if n, _ := e.snap().Node("ext2"); n.ID != renamed.Node.ID {
		t.Errorf("node = %+v", n)
	}
}

func TestTheServersOwnService(t *testing.T) {
	e := setup(t)
	meta := map[string]string{"version": "1.21.4"}
	e.must(e.PutServerService(t.Context(), "n1", meta))
	svc, _ := e.snap().Service(model.ConsulService)
	if len(svc.Members) != 1 || svc.VIP != nil || svc.Members[0].Instance.Port != 8300 || svc.Members[0].Instance.Owner != model.OwnerServers {
		t.Fatalf("service = %+v", svc)
	}
	e.unwritten(func() { e.must(e.PutServerService(t.Context(), "n1", meta)) })
	if _, err := e.PutServerService(t.Context(), "nope", meta); !errors.Is(err, registry.ErrUnknownNode) {
		t.Errorf("on an unknown node: %v", err)
	}
	// One that somebody registered by hand has no VIP either.
	reg := outside("ext")
	reg.Service = &model.Instance{Service: model.ConsulService, Port: 8300}
	e.must(e.RegisterExternal(t.Context(), reg))
	if svc, _ := e.snap().Service(model.ConsulService); len(svc.Members) != 2 || svc.VIP != nil {
		t.Errorf("service = %+v", svc)
	}
}

func TestSettings(t *testing.T) {
	e := setup(t)
	put := func(value string, cas *model.Index) (bool, model.Index) {
		t.Helper()
		ok, index, err := e.PutSetting(t.Context(), "autopilot", value, cas)
		if err != nil {
			t.Fatal(err)
		}
		return ok, index
	}
	zero := new(model.Index(0))
	if ok, _ := put(`{"a":1}`, zero); !ok {
		t.Error("create: refused")
	}
	if ok, _ := put(`{"a":2}`, zero); ok {
		t.Error("create what is there: accepted")
	}
	s, _ := e.snap().Setting("autopilot")
	if ok, _ := put(`{"a":3}`, &s.ModifyIndex); !ok {
		t.Error("compare and set: refused")
	}
	if ok, _ := put(`{"a":4}`, &s.ModifyIndex); ok {
		t.Error("compare with what is gone and set: accepted")
	}
	put(`{"a":5}`, nil)
	if s, _ = e.snap().Setting("autopilot"); s.Value != `{"a":5}` || s.Owner != model.OwnerOperator {
		t.Errorf("setting = %+v", s)
	}
	if _, _, err := e.PutSetting(t.Context(), "", "", nil); !errors.Is(err, registry.ErrInvalid) {
		t.Errorf("without a name: %v", err)
	}
}

func TestNodeIDsStayUniqueAmongMany(t *testing.T) {
	e := setup(t)
	var wg sync.WaitGroup
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		wg.Go(func() {
			reg := outside(name)
			reg.Node.ID = "6a1f3b1e-0000-4000-8000-000000000001"
			if _, err := e.RegisterExternal(t.Context(), reg); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	nodes, _ := e.snap().Nodes()
	if len(nodes) != 3 {
		t.Errorf("%d nodes, want n1, n2 and the last of those", len(nodes))
	}
}
