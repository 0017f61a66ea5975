package registry_test

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
)

// missing is what the catalogue lacks of server n1; sorted.
func (e *env) missing() (missing []string) {
	n, _ := e.snap().Node("n1")
	c, _ := e.snap().Check("n1", model.SerfHealth)
	i, _ := e.snap().Instance("n1", "consul")
	for what, there := range map[string]bool{"node": n != nil && n.Owner == model.NodeOwner("n1"), "check": c != nil && c.Status == model.Passing && c.Owner == model.OwnerServers, "service": i != nil && i.Owner == model.OwnerServers} {
		if !there {
			missing = append(missing, what)
		}
	}
	slices.Sort(missing)
	return missing
}

func TestWhatServersSayOfTheirNodeIsPutBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := setup(t)
		ctx := t.Context()
		ready := make(chan struct{})
		self := model.Node{Name: "n1", ID: "6a1f3b1e-0000-4000-8000-0000000000aa", Address: "10.0.0.1"}
		go func() {
			if err := e.KeepServer(ctx, self, map[string]string{"version": "1"}, func() { close(ready) }); err != nil {
				t.Error(err)
			}
		}()
		<-ready
		if m := e.missing(); m != nil {
			t.Fatalf("missing %v", m)
		}
		synctest.Wait()
		e.unwritten(func() { <-time.After(time.Hour); synctest.Wait() })
		transact := func(ops ...model.TxnOp) {
			if _, failed, _, err := e.Transact(ctx, ops); err != nil || failed != nil {
				t.Error(failed, err)
			}
		}
		for what, remove := range map[string]func(){
			"the node":    func() { e.must(e.DeregisterNode(ctx, "n1")) },
			"the check":   func() { e.must(e.DeleteCheck(ctx, "n1", model.SerfHealth)) },
			"the service": func() { e.must(e.Deregister(ctx, "n1", "consul")) },
			"the check, for one from outside": func() {
				c := model.Check{Node: "n1", ID: model.SerfHealth, Status: model.Critical}
				transact(model.TxnOp{Check: &model.TxnCheck{Verb: "delete", Check: c}}, model.TxnOp{Check: &model.TxnCheck{Verb: "set", Check: c}})
			},
			"the node, for one from outside": func() {
				n := model.Node{Name: "n1", ID: "6a1f3b1e-0000-4000-8000-0000000000bb", Address: "10.6.6.6"}
				c := model.Check{Node: "n1", ID: model.SerfHealth, Status: model.Passing}
				transact(model.TxnOp{Node: &model.TxnNode{Verb: "delete", Node: n}}, model.TxnOp{Node: &model.TxnNode{Verb: "set", Node: n}},
					model.TxnOp{Check: &model.TxnCheck{Verb: "set", Check: c}})
			},
		} {
			remove()
			synctest.Wait()
			if m := e.missing(); m != nil {
				t.Errorf("after removing %s: missing %v", what, m)
			}
			<-time.After(time.Minute)
			synctest.Wait()
		}
		// A failed try is made again.
		e.must(e.Deregister(ctx, "n1", "consul"))
		e.mu.Lock()
		e.fail = errors.New("no leader")
		e.mu.Unlock()
		<-time.After(time.Minute)
		synctest.Wait()
		if m := e.missing(); m != nil {
			t.Errorf("after a failure: missing %v", m)
		}
	})
}

func TestAServerTakesOverANodeFromOutside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := setup(t)
		reg := outside("new")
		reg.Checks = []model.Check{{ID: model.SerfHealth, Status: model.Critical}}
		reg.Service = &model.Instance{Service: "consul", Port: 1}
		e.must(e.RegisterExternal(t.Context(), reg))
		ctx, ready := t.Context(), make(chan struct{})
		go func() {
			if err := e.KeepServer(ctx, model.Node{Name: "new", Address: "10.0.0.7"}, nil, func() { close(ready) }); err != nil {
				t.Error(err)
			}
		}()
		<-ready
		n, _ := e.snap().Node("new")
		c, _ := e.snap().Check("new", model.SerfHealth)
		i, _ := e.snap().Instance("new", "consul")
		if n.Owner != model.NodeOwner("new") || c.Owner != model.OwnerServers || c.Status != model.Passing || i.Owner != model.OwnerServers || i.Port != 8300 {
			t.Errorf("%+v, %+v, %+v", n, c, i)
		}
	})
}
