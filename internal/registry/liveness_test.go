package registry_test

import (
	"errors"
	"testing"

	"github.com/fairlead-net/fairlead/internal/identity"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/registry"
)

func (e *env) health(node model.NodeName) (serf, suspect model.Status) {
	if c, _ := e.snap().Check(node, model.SerfHealth); c != nil {
		serf = c.Status
	}
	if c, _ := e.snap().Check(node, registry.SuspectCheck); c != nil {
		suspect = c.Status
	}
	return serf, suspect
}

func TestALifeOfANode(t *testing.T) {
	e := setup(t)
	web := identity.Node{ID: "id-web", Name: "web"}
	attach := func() uint64 {
		t.Helper()
		epoch, err := e.Attach(t.Context(), web, "s1")
		if err != nil {
			t.Fatal(err)
		}
		return epoch
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	is := func(serf, suspect model.Status) {
		t.Helper()
		if s, x := e.health("web"); s != serf || x != suspect {
			t.Errorf("serfHealth %q, suspect %q; want %q, %q", s, x, serf, suspect)
		}
	}
	first := attach()
	if err := e.Alive(t.Context(), "web", first); !errors.Is(err, registry.ErrUnknownNode) {
		t.Errorf("before it is registered: %v", err)
	}
	e.must(e.RegisterNode(t.Context(), model.Node{Name: "web", ID: "id-web", Address: "10.0.0.1"}))
	must(e.Alive(t.Context(), "web", first))
	is(model.Passing, "")
	must(e.Suspect(t.Context(), "web", first))
	is(model.Passing, model.Critical)
	second := attach()
	must(e.Alive(t.Context(), "web", second))
	is(model.Passing, "")
	// Verdicts on the earlier session come too late.
	e.unwritten(func() {
		must(e.Suspect(t.Context(), "web", first))
		must(e.Dead(t.Context(), "web", first, "gone"))
		must(e.Alive(t.Context(), "web", first))
	})
	is(model.Passing, "")
	if _, err := e.Attach(t.Context(), identity.Node{ID: "id-other", Name: "web"}, "s2"); !errors.Is(err, registry.ErrNodeNameTaken) {
		t.Errorf("another takes the name of one that lives: %v", err)
	}
	must(e.Suspect(t.Context(), "web", second))
	must(e.Dead(t.Context(), "web", second, "gone"))
	is(model.Critical, "")
	e.unwritten(func() { must(e.Dead(t.Context(), "web", second, "gone")) })
	if list := registry.Attachments(e.snap()); len(list) != 1 || !list[0].Over || list[0].Epoch != second || list[0].Server != "s1" {
		t.Errorf("%+v", list)
	}
	third := attach()
	must(e.Alive(t.Context(), "web", third))
	is(model.Passing, "")
}
