package state_test

import (
	"slices"
	"testing"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

func proxy(node model.NodeName, id model.ServiceID, name, of model.ServiceName) state.Change {
	return state.Change{Instance: &model.Instance{Node: node, ID: id, Service: name, Kind: model.KindConnectProxy, Proxy: model.Proxy{Service: of}}}
}

// TestConnectedAreTheWaysToAService with mutual TLS, whatever they are called;
// what changes them moves its mark and no other's.
func TestConnectedAreTheWaysToAService(t *testing.T) {
	// What a change concerns is made anew in no certain order.
	for range 20 {
		testConnected(t)
	}
}

func testConnected(t *testing.T) {
	t.Helper()
	native := inst("n1", "web-9", "web")
	native.Instance.Native = true
	s := loaded(t)
	steps := []struct {
		name    string
		changes []state.Change
		web     []model.ServiceID
		moved   bool
	}{
		{"plain instances are none", nil, nil, false},
		{"a proxy comes", []state.Change{proxy("n2", "p", "web-proxy", "web")}, []model.ServiceID{"p"}, true},
		{"an instance that speaks for itself comes", []state.Change{native}, []model.ServiceID{"web-9", "p"}, true},
		{"another service's proxy comes", []state.Change{proxy("n1", "q", "odd", "db")}, []model.ServiceID{"web-9", "p"}, false},
		{"the proxy turns critical", []state.Change{check("n2", "pc", "p", model.Critical)}, []model.ServiceID{"web-9", "p"}, true},
		{"its node changes", []state.Change{node("n2", "10.9.9.9")}, []model.ServiceID{"web-9", "p"}, true},
		{"it is called something else", []state.Change{proxy("n2", "p", "renamed", "web")}, []model.ServiceID{"web-9", "p"}, true},
		{"it turns to another service", []state.Change{proxy("n2", "p", "renamed", "db")}, []model.ServiceID{"web-9"}, true},
		{"the other goes", []state.Change{del(inst("n1", "web-9", "web"))}, nil, true},
	}
	rev := s.Snapshot().Index()
	for _, step := range steps {
		_, before := s.Snapshot().Connected("web")
		if step.changes != nil {
			rev++
			s.Apply(rev, step.changes)
		}
		members, after := s.Snapshot().Connected("web")
		var ids []model.ServiceID
		for _, m := range members {
			ids = append(ids, m.Instance.ID)
		}
		if !slices.Equal(ids, step.web) {
			t.Errorf("%s: %v, want %v", step.name, ids, step.web)
		}
		if moved := after.Index > before.Index; moved != step.moved {
			t.Errorf("%s: index %d, then %d", step.name, before.Index, after.Index)
		}
		if step.moved && !closed(before.Changed) {
			t.Errorf("%s: nobody is woken", step.name)
		}
	}
	if db, _ := s.Snapshot().Connected("db"); len(db) != 2 {
		t.Errorf("%d ways to db, want 2", len(db))
	}
}
