package registry_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/registry"
	"github.com/fairlead-net/fairlead/internal/store"
)

func checkIDs(list []*model.Check) string {
	var ids []string
	for _, c := range list {
		ids = append(ids, string(c.ID))
	}
	return strings.Join(ids, " ")
}

func TestRegister(t *testing.T) {
	e := setup(t)
	index := e.must(e.Register(t.Context(), web("n1", "w1"), []model.Check{{ID: "a"}, {ID: "b", Status: model.Passing}}))
	svc, mark := e.snap().Service("web")
	if len(svc.Members) != 1 || mark.Index != index || svc.VIP == nil {
		t.Fatalf("service = %+v at %d, want one member and a VIP at %d", svc, mark.Index, index)
	}
	m := svc.Members[0]
	if m.Instance.Owner != "node/n1" || m.Instance.Weights != model.DefaultWeights || m.Instance.CreateIndex != index {
		t.Errorf("instance = %+v", m.Instance)
	}
	a := m.Checks[0]
	if a.Status != model.Critical || a.ServiceName != "web" || a.ServiceID != "w1" || a.Node != "n1" || a.Owner != "node/n1" {
		t.Errorf("check is not completed from its instance: %+v", a)
	}

	t.Run("again changes nothing", func(t *testing.T) {
		e.unwritten(func() {
			e.must(e.Register(t.Context(), web("n1", "w1"), []model.Check{{ID: "a"}, {ID: "b", Status: model.Passing}}))
		})
	})
	t.Run("only the changed check is written", func(t *testing.T) {
		before, _ := e.snap().Instance("n1", "w1")
		e.must(e.Register(t.Context(), web("n1", "w1"), []model.Check{{ID: "a", Status: model.Passing}, {ID: "b", Status: model.Passing}}))
		if after, _ := e.snap().Instance("n1", "w1"); after.ModifyIndex != before.ModifyIndex {
			t.Errorf("instance written at %d though unchanged", after.ModifyIndex)
		}
	})
	t.Run("checks not named go", func(t *testing.T) {
		e.must(e.PutCheck(t.Context(), model.Check{Node: "n1", ID: "node-check", Status: model.Passing}))
		e.must(e.Register(t.Context(), web("n1", "w1"), []model.Check{{ID: "c"}}))
		list, _ := e.snap().NodeChecks("n1")
		if got := checkIDs(list); got != "c node-check" {
			t.Errorf("checks = %s, want c and the node's own", got)
		}
	})
	t.Run("deregister takes its checks along, the VIP stays", func(t *testing.T) {
		e.must(e.Deregister(t.Context(), "n1", "w1"))
		svc, _ := e.snap().Service("web")
		list, _ := e.snap().NodeChecks("n1")
		if len(svc.Members) != 0 || svc.VIP == nil || checkIDs(list) != "node-check" {
			t.Errorf("left: %+v, checks %s", svc, checkIDs(list))
		}
		e.unwritten(func() { e.must(e.Deregister(t.Context(), "n1", "w1")) })
	})
}

func TestRefusals(t *testing.T) {
	long := strings.Repeat("x", 600)
	tests := []struct {
		name string
		do   func(context.Context, *env) error
		want error
		says string
	}{
		{"node without address", func(ctx context.Context, e *env) error {
			_, err := e.RegisterNode(ctx, model.Node{Name: "n9"})
			return err
		}, registry.ErrInvalid, "node address is missing"},
		{"node name too long", func(ctx context.Context, e *env) error {
			_, err := e.RegisterNode(ctx, model.Node{Name: model.NodeName(long), Address: "a"})
			return err
		}, registry.ErrInvalid, "at most 512"},
		{"node name with NUL", func(ctx context.Context, e *env) error {
			_, err := e.RegisterNode(ctx, model.Node{Name: "a\x00b", Address: "a"})
			return err
		}, registry.ErrInvalid, "control characters"},
		{"no service name", func(ctx context.Context, e *env) error {
			_, err := e.Register(ctx, model.Instance{Node: "n1", ID: "x"}, nil)
			return err
		}, registry.ErrInvalid, "service name is missing"},
		{"port", func(ctx context.Context, e *env) error {
			i := web("n1", "x")
			i.Port = 70000
			_, err := e.Register(ctx, i, nil)
			return err
		}, registry.ErrInvalid, "service port is 70000; it must be from 0 to 65535"},
		{"any address", func(ctx context.Context, e *env) error {
			i := web("n1", "x")
			i.Address = "::"
			_, err := e.Register(ctx, i, nil)
			return err
		}, registry.ErrInvalid, "nothing can be reached"},
		{"weights", func(ctx context.Context, e *env) error {
			i := web("n1", "x")
			i.Weights = model.Weights{Passing: 0, Warning: 1}
			_, err := e.Register(ctx, i, nil)
			return err
		}, registry.ErrInvalid, "service weight while passing is 0"},
		{"check status", func(ctx context.Context, e *env) error {
			_, err := e.Register(ctx, web("n1", "x"), []model.Check{{ID: "c", Status: "fine"}})
			return err
		}, registry.ErrInvalid, `check status is "fine"`},
		{"check twice", func(ctx context.Context, e *env) error {
			_, err := e.Register(ctx, web("n1", "x"), []model.Check{{ID: "c"}, {ID: "c"}})
			return err
		}, registry.ErrInvalid, "there twice"},
		{"check of another instance", func(ctx context.Context, e *env) error {
			_, err := e.Register(ctx, web("n1", "x"), []model.Check{{ID: "c", ServiceID: "y"}})
			return err
		}, registry.ErrInvalid, "comes with instance"},
		{"unknown node", func(ctx context.Context, e *env) error {
			_, err := e.Register(ctx, web("n9", "x"), nil)
			return err
		}, registry.ErrUnknownNode, "register the node first"},
		{"check of an unknown instance", func(ctx context.Context, e *env) error {
			_, err := e.PutCheck(ctx, model.Check{Node: "n1", ID: "c", ServiceID: "nope"})
			return err
		}, registry.ErrUnknownService, "register the service first"},
		{"instance of another owner", func(ctx context.Context, e *env) error {
			i := web("n1", "w1")
			i.Owner = model.OwnerExternal
			_, err := e.Register(ctx, i, nil)
			return err
		}, registry.ErrOwner, `owned by "node/n1", not by "external"`},
		{"check of another owner", func(ctx context.Context, e *env) error {
			_, err := e.PutCheck(ctx, model.Check{Node: "n1", ID: "c1", Stamp: model.Stamp{Owner: model.OwnerServers}})
			return err
		}, registry.ErrOwner, "c1"},
		{"node taken over by hand", func(ctx context.Context, e *env) error {
			_, err := e.RegisterNode(ctx, model.Node{Name: "n1", Address: "10.0.0.7", Stamp: model.Stamp{Owner: model.OwnerExternal}})
			return err
		}, registry.ErrOwner, "n1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := setup(t)
			e.must(e.Register(t.Context(), web("n1", "w1"), []model.Check{{ID: "c1"}}))
			e.unwritten(func() {
				err := tt.do(t.Context(), e)
				if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("error = %v, want %v that says %q", err, tt.want, tt.says)
				}
			})
		})
	}
}

func TestNodeNameTaken(t *testing.T) {
	e := setup(t)
	n := model.Node{Name: "n3", ID: "id-1", Address: "10.0.0.3"}
	e.must(e.RegisterNode(t.Context(), n))
	e.must(e.PutCheck(t.Context(), model.Check{Node: "n3", ID: model.SerfHealth, Status: model.Passing}))
	n.ID = "id-2"
	if _, err := e.RegisterNode(t.Context(), n); !errors.Is(err, registry.ErrNodeNameTaken) {
		t.Errorf("error = %v, want ErrNodeNameTaken", err)
	}
	e.must(e.PutCheck(t.Context(), model.Check{Node: "n3", ID: model.SerfHealth, Status: model.Critical}))
	e.must(e.RegisterNode(t.Context(), n))
	if got, _ := e.snap().Node("n3"); got.ID != "id-2" {
		t.Errorf("node = %+v, want the new one", got)
	}
}

func TestDeregisterNodeLeavesNothing(t *testing.T) {
	e := setup(t)
	e.must(e.Register(t.Context(), web("n1", "w1"), []model.Check{{ID: "c"}}))
	e.must(e.Register(t.Context(), web("n2", "w2"), nil))
	e.must(e.PutCheck(t.Context(), model.Check{Node: "n1", ID: model.SerfHealth}))
	e.must(e.DeregisterNode(t.Context(), "n1"))
	snap := e.snap()
	node, _ := snap.Node("n1")
	instances, _ := snap.NodeInstances("n1")
	checks, _ := snap.NodeChecks("n1")
	svc, _ := snap.Service("web")
	if node != nil || len(instances) != 0 || len(checks) != 0 || len(svc.Members) != 1 {
		t.Errorf("left: %v, %v, %v, members %d", node, instances, checks, len(svc.Members))
	}
	e.unwritten(func() { e.must(e.DeregisterNode(t.Context(), "n1")) })
}

// What happens between the snapshot and the commit must not be overwritten.
func TestConflictsArePlannedAnew(t *testing.T) {
	t.Run("a node comes back while another takes its name", func(t *testing.T) {
		e := setup(t)
		n := model.Node{Name: "n3", ID: "id-1", Address: "10.0.0.3"}
		e.must(e.RegisterNode(t.Context(), n))
		for _, status := range []model.Status{"", model.Critical} {
			if status != "" {
				e.must(e.PutCheck(t.Context(), model.Check{Node: "n3", ID: model.SerfHealth, Status: status}))
			}
			e.before = func() {
				e.must(e.PutCheck(context.Background(), model.Check{Node: "n3", ID: model.SerfHealth, Status: model.Passing}))
			}
			n.ID = "id-2"
			if _, err := e.RegisterNode(t.Context(), n); !errors.Is(err, registry.ErrNodeNameTaken) {
				t.Errorf("health %q: error = %v, want ErrNodeNameTaken", status, err)
			}
		}
	})
	t.Run("a node goes while an instance comes", func(t *testing.T) {
		e := setup(t)
		e.before = func() { e.must(e.DeregisterNode(context.Background(), "n1")) }
		if _, err := e.Register(t.Context(), web("n1", "w1"), nil); !errors.Is(err, registry.ErrUnknownNode) {
			t.Errorf("error = %v, want ErrUnknownNode", err)
		}
	})
	t.Run("a check comes while its instance goes", func(t *testing.T) {
		e := setup(t)
		e.must(e.Register(t.Context(), web("n1", "w1"), nil))
		e.before = func() {
			e.must(e.PutCheck(context.Background(), model.Check{Node: "n1", ID: "late", ServiceID: "w1"}))
		}
		e.must(e.Deregister(t.Context(), "n1", "w1"))
		if list, _ := e.snap().NodeChecks("n1"); len(list) != 0 {
			t.Errorf("orphaned: %s", checkIDs(list))
		}
	})
	t.Run("a refusal from a snapshot that lags behind", func(t *testing.T) {
		e := setup(t)
		i := web("n1", "w1")
		i.Owner = model.OwnerOperator
		e.must(e.Register(t.Context(), i, nil))
		behind := e.hold()
		done := make(chan error, 1)
		go func() { _, err := e.Deregister(context.Background(), "n1", "w1"); done <- err }()
		<-behind
		e.before = e.release
		e.must(e.Register(t.Context(), web("n1", "w1"), nil))
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Run("at most five rounds", func(t *testing.T) {
		e := setup(t)
		port := 1
		var meddle func()
		meddle = func() {
			f := e.fake
			rec := web("n1", "w1")
			port++
			rec.Port, rec.Owner = port, "node/n1"
			value, err := store.Encode(rec)
			if err != nil {
				t.Error(err)
			}
			if _, err := f.Commit(context.Background(), store.Txn{Puts: []store.Put{{Key: store.InstanceKey("n1", "w1"), Value: value}}}); err != nil {
				t.Error(err)
			}
			f.before = meddle
		}
		before := e.commits()
		e.before = meddle
		_, err := e.Register(t.Context(), web("n1", "w1"), nil)
		if !errors.Is(err, registry.ErrConflict) {
			t.Errorf("error = %v, want ErrConflict", err)
		}
		if n := e.commits() - before; n != 10 { // five of ours, five of the other's
			t.Errorf("%d commits, want 5 rounds", n)
		}
	})
}

func TestOutcomes(t *testing.T) {
	t.Run("unknown", func(t *testing.T) {
		e := setup(t)
		e.fail = fmt.Errorf("propose: %w", store.ErrUnknownOutcome)
		ok, _, err := e.PutKV(t.Context(), model.KV{Key: "a"}, new(model.Index))
		if ok || !errors.Is(err, store.ErrUnknownOutcome) {
			t.Errorf("ok %v, error %v; want ErrUnknownOutcome and never a refusal", ok, err)
		}
	})
	t.Run("written and never visible", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			e := setup(t)
			e.hold()
			if _, err := e.Register(t.Context(), web("n1", "w1"), nil); !errors.Is(err, store.ErrUnknownOutcome) {
				t.Errorf("error %v; want an unknown outcome", err)
			}
		})
	})
	t.Run("written but not visible in time", func(t *testing.T) {
		e := setup(t)
		behind := e.hold()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		var index model.Index
		go func() {
			var err error
			index, err = e.Register(ctx, web("n1", "w1"), nil)
			done <- err
		}()
		<-behind
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) || index != e.revision() {
			t.Errorf("index %d, error %v; want the written index and the context's error", index, err)
		}
		e.release()
	})
}

func TestVIPs(t *testing.T) {
	e := setup(t)
	pool6 := registry.SitePool6("dc1")
	seen := map[string]bool{}
	for i := range 200 {
		inst := web("n1", fmt.Sprint("i", i))
		inst.Service = model.ServiceName(fmt.Sprint("s", i))
		e.must(e.Register(t.Context(), inst, nil))
		v, _ := e.snap().VIP(inst.Service)
		if !registry.DefaultVIPPool4.Contains(v.V4) || !pool6.Contains(v.V6) || v.Owner != model.OwnerServers {
			t.Fatalf("VIP %+v outside of its pools", v)
		}
		a4, a6 := v.V4.As4(), v.V6.As16()
		if a4[0]&0x0f != a6[12] || string(a4[1:]) != string(a6[13:]) {
			t.Errorf("%s and %s have different host bits", v.V4, v.V6)
		}
		if seen[v.V4.String()] {
			t.Errorf("%s given twice", v.V4)
		}
		seen[v.V4.String()] = true
	}
	if !strings.HasPrefix(pool6.String(), "fd") || pool6.Bits() != 64 || pool6 == registry.SitePool6("dc2") {
		t.Errorf("site pool = %s", pool6)
	}
}

func TestVIPPoolRunsOut(t *testing.T) {
	f := newFake()
	r := registry.New(f, f.st, registry.Config{Node: "n1", VIPPool4: mustPrefix("240.1.1.0/30")})
	if _, err := r.RegisterNode(t.Context(), model.Node{Name: "n1", Address: "a"}); err != nil {
		t.Fatal(err)
	}
	var errs []error
	for _, name := range []model.ServiceName{"a", "b", "c"} {
		_, err := r.Register(t.Context(), model.Instance{Node: "n1", Service: name}, nil)
		errs = append(errs, err)
	}
	if errs[0] != nil || errs[1] != nil || !errors.Is(errs[2], registry.ErrVIPsExhausted) {
		t.Errorf("errors = %v; want two addresses and then ErrVIPsExhausted", errs)
	}
	if v := f.st.Snapshot().VIPByAddr(addr("240.1.1.3")); v != nil {
		t.Errorf("broadcast address given to %s", v.Service)
	}
}

// Two services that hash to the same address at once on two servers.
func TestVIPAddressIsGivenOnce(t *testing.T) {
	f := newFake()
	one := registry.New(f, f.st, registry.Config{Node: "n1", VIPPool4: mustPrefix("240.1.1.0/29")})
	two := registry.New(f, f.st, registry.Config{Node: "n1", VIPPool4: mustPrefix("240.1.1.0/29")})
	if _, err := one.RegisterNode(t.Context(), model.Node{Name: "n1", Address: "a"}); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		a, b := model.ServiceName(fmt.Sprint("a", i)), model.ServiceName(fmt.Sprint("b", i))
		f.before = func() {
			if _, err := two.Register(context.Background(), model.Instance{Node: "n1", Service: b}, nil); err != nil {
				t.Error(err)
			}
		}
		if _, err := one.Register(t.Context(), model.Instance{Node: "n1", Service: a}, nil); err != nil {
			t.Fatal(err)
		}
	}
	vips, _ := f.st.Snapshot().VIPs()
	byAddr := map[string]model.ServiceName{}
	for _, v := range vips {
		if other, twice := byAddr[v.V4.String()]; twice {
			t.Errorf("%s is given to %s and %s", v.V4, v.Service, other)
		}
		byAddr[v.V4.String()] = v.Service
	}
	if len(byAddr) != 6 {
		t.Errorf("%d VIPs, want 6", len(byAddr))
	}
}
