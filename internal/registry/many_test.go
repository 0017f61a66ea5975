package registry_test

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/registry"
	"github.com/fairlead-net/fairlead/internal/store"
)

// instances are n of as many services.
func instances(n int) (all []model.Instance, checks [][]model.Check) {
	for i := range n {
		inst := web("n1", fmt.Sprintf("i%d", i))
		inst.Service = model.ServiceName(fmt.Sprintf("svc%d", i))
		all = append(all, inst)
		checks = append(checks, []model.Check{{ID: model.CheckID(fmt.Sprintf("c%d", i)), Status: model.Passing}})
	}
	return all, checks
}

// well fails the test for each error.
func well(t *testing.T, errs []error) {
	t.Helper()
	for i, err := range errs {
		if err != nil {
			t.Errorf("%d: %v", i, err)
		}
	}
}

// holds fails the test unless the instances are all there, with their checks and
// with virtual addresses that no two services share.
func (e *env) holds(all []model.Instance, checks [][]model.Check) {
	e.t.Helper()
	vips := map[netip.Addr]model.ServiceName{}
	for i, inst := range all {
		svc, _ := e.snap().Service(inst.Service)
		if svc.VIP == nil {
			e.t.Fatalf("%s has no virtual address", inst.Service)
		}
		if other, taken := vips[svc.VIP.V4]; taken && other != inst.Service {
			e.t.Errorf("%s and %s share %v", inst.Service, other, svc.VIP.V4)
		}
		vips[svc.VIP.V4] = inst.Service
		got, _ := e.snap().Instance("n1", inst.ID)
		if got == nil || got.Owner != "node/n1" || len(e.snap().InstanceChecks("n1", inst.ID)) != len(checks[i]) {
			e.t.Errorf("%s is %+v", inst.ID, got)
		}
	}
}

func TestRegisterMany(t *testing.T) {
	t.Run("one transaction for all", func(t *testing.T) {
		e := setup(t)
		all, checks := instances(100)
		before := e.commits()
		well(t, e.RegisterMany(t.Context(), all, checks))
		if n := e.commits() - before; n != 1 {
			t.Errorf("%d transactions", n)
		}
		e.holds(all, checks)
		e.unwritten(func() { well(t, e.RegisterMany(t.Context(), all, checks)) })
	})
	t.Run("a new service has one address for all its instances", func(t *testing.T) {
		e := setup(t)
		all, checks := instances(20)
		for i := range all {
			all[i].Service = "web"
		}
		before := e.commits()
		well(t, e.RegisterMany(t.Context(), all, checks))
		if n := e.commits() - before; n != 2 { // the first one brings the service
			t.Errorf("%d transactions", n)
		}
		e.holds(all, checks)
	})
	t.Run("more than one transaction takes", func(t *testing.T) {
		e := setup(t)
		all, checks := instances(1500)
		before := e.commits()
		well(t, e.RegisterMany(t.Context(), all, checks))
		if n := e.commits() - before; n < 2 || n > 8 {
			t.Errorf("%d transactions", n)
		}
		e.holds(all, checks)
	})
	t.Run("a bad one keeps nobody", func(t *testing.T) {
		e := setup(t)
		theirs := web("n1", "theirs")
		theirs.Owner = model.OwnerOperator
		e.must(e.Register(t.Context(), theirs, nil))
		all, checks := instances(10)
		all[2].Port = 70000
		all[4].ID = "theirs"
		all[6].Node = "n9"
		errs := e.RegisterMany(t.Context(), all, checks)
		for i, want := range map[int]error{2: registry.ErrInvalid, 4: registry.ErrOwner, 6: registry.ErrUnknownNode} {
			if !errors.Is(errs[i], want) {
				t.Errorf("%d: %v, want %v", i, errs[i], want)
			}
			errs[i] = nil
		}
		well(t, errs)
		for i := range all {
			if got, _ := e.snap().Instance("n1", model.ServiceID(fmt.Sprintf("i%d", i))); (got == nil) != (i == 2 || i == 4 || i == 6) {
				t.Errorf("%d: %+v", i, got)
			}
		}
	})
	t.Run("a check goes from one to another", func(t *testing.T) {
		e := setup(t)
		all, checks := instances(2)
		well(t, e.RegisterMany(t.Context(), all, checks))
		checks[0], checks[1] = nil, append(checks[1], checks[0]...)
		well(t, e.RegisterMany(t.Context(), all, checks))
		e.holds(all, checks)
	})
	t.Run("the agent takes over what is external", func(t *testing.T) {
		e := setup(t)
		hand := web("n1", "i0")
		hand.Owner = model.OwnerExternal
		e.must(e.Register(t.Context(), hand, []model.Check{{ID: "c0"}, {ID: "by-hand"}}))
		all, checks := instances(2)
		well(t, e.RegisterMany(t.Context(), all, checks))
		e.holds(all, checks)
	})
	t.Run("conflicts", func(t *testing.T) {
		e := setup(t)
		all, checks := instances(20)
		value, err := store.Encode(model.VIP{Service: "svc7", V4: addr("240.0.0.9")})
		if err != nil {
			t.Fatal(err)
		}
		e.before = func() { e.force(store.Txn{Puts: []store.Put{{Key: store.VIPKey("svc7"), Value: value}}}) }
		well(t, e.RegisterMany(t.Context(), all, checks))
		e.holds(all, checks)
	})
	t.Run("no leader", func(t *testing.T) {
		e := setup(t)
		all, checks := instances(3)
		e.failing(store.ErrNoLeader)
		for i, err := range e.RegisterMany(t.Context(), all, checks) {
			if !errors.Is(err, store.ErrNoLeader) {
				t.Errorf("%d: %v", i, err)
			}
		}
	})
	t.Run("too large together", func(t *testing.T) {
		e := setup(t)
		all, checks := instances(3)
		e.fake.fail = store.ErrTooLarge
		well(t, e.RegisterMany(t.Context(), all, checks))
		e.holds(all, checks)
	})
}

func TestPutChecks(t *testing.T) {
	e := setup(t)
	all, checks := instances(10)
	well(t, e.RegisterMany(t.Context(), all, checks))
	var put []model.Check
	for i := range all {
		put = append(put, model.Check{Node: "n1", ID: checks[i][0].ID, ServiceID: all[i].ID, Status: model.Warning})
	}
	put[3].ServiceID = "gone"
	put[5].Status = "fine"
	before := e.commits()
	errs := e.PutChecks(t.Context(), put)
	if !errors.Is(errs[3], registry.ErrUnknownService) || !errors.Is(errs[5], registry.ErrInvalid) {
		t.Errorf("%v; %v", errs[3], errs[5])
	}
	errs[3], errs[5] = nil, nil
	well(t, errs)
	if n := e.commits() - before; n != 2 { // the refusal is confirmed
		t.Errorf("%d transactions", n)
	}
	list, _ := e.snap().NodeChecks("n1")
	for _, c := range list {
		if want := c.ID != "c3" && c.ID != "c5"; (c.Status == model.Warning) != want {
			t.Errorf("%s is %s", c.ID, c.Status)
		}
	}
}

// TestRegisterManyOnStore: several batches at once that all bring new services, of
// which some are in each of them.
func TestRegisterManyOnStore(t *testing.T) {
	s, st := startStore(t)
	r := newRegistry(s, st)
	if _, err := r.RegisterNode(t.Context(), model.Node{Name: "n1", Address: "10.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for b := range 4 {
		wg.Go(func() {
			all, checks := instances(60)
			for i := range all {
				all[i].ID = model.ServiceID(fmt.Sprintf("b%d-%d", b, i))
				checks[i][0].ID = model.CheckID(all[i].ID)
			}
			well(t, r.RegisterMany(t.Context(), all, checks))
		})
	}
	wg.Wait()
	list, _ := st.Snapshot().NodeInstances("n1")
	vips, _ := st.Snapshot().VIPs()
	if len(list) != 240 || len(vips) != 60 {
		t.Errorf("%d instances and %d virtual addresses", len(list), len(vips))
	}
}
