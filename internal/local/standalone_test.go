package local_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-net/fairlead/internal/local"
	"github.com/fairlead-net/fairlead/internal/model"
)

func (r running) check(t *testing.T, c model.CheckSpec) {
	t.Helper()
	if warning, err := r.RegisterCheck(context.Background(), c, "secret"); err != nil || warning != "" {
		t.Fatalf("RegisterCheck = %q, %v", warning, err)
	}
}

// restart stops an agent and starts the next one of its node.
func (r running) restart(t *testing.T, dir string, c *catalog) running {
	t.Helper()
	r.stop()
	c.take()
	return start(t, dir, c)
}

func TestChecksByThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c := newCatalog()
		c.sync()
		a := start(t, dir, c)
		a.register(t, service("web-1", 80, ttl("alive", time.Hour)))
		c.take()
		a.check(t, model.CheckSpec{Name: "disk", TTL: time.Minute, Status: model.Passing, Notes: "space"})
		a.check(t, model.CheckSpec{ID: "extra", Name: "Extra", ServiceID: "web-1", TTL: time.Hour})
		want := `
node n1 192.0.2.1 owner=node/n1
service web-1 web:80 tags=[] owner=node/n1
check alive of web-1 critical "" owner=node/n1
check disk of  passing "" owner=node/n1
check extra of web-1 critical "" owner=node/n1`
		expect(t, "catalogue", c.dump(me), want)
		expect(t, "calls", c.take(), "check disk=passing; register web-1 alive=critical extra=critical")
		if ch, ok := a.Check("disk"); !ok || ch.ServiceID != "" || ch.ServiceName != "" || ch.Notes != "space" || ch.Type != "ttl" {
			t.Errorf("Check = %+v, %v", ch, ok)
		}
		if len(a.Services()) != 1 || len(a.Checks()) != 3 {
			t.Errorf("Services = %v, Checks = %v", a.Services(), a.Checks())
		}

		a = a.restart(t, dir, c)
		expect(t, "after a restart", c.dump(me), want)
		expect(t, "calls", c.take(), "")
		time.Sleep(61 * time.Second)
		expect(t, "calls after the TTL", c.take(), "check disk=critical")

		// Its service's next registration leaves it alone, or does not.
		if _, err := a.Amend(context.Background(), service("web-1", 81, ttl("new", time.Hour))); err != nil {
			t.Fatal(err)
		}
		expect(t, "calls", c.take(), "register web-1 new=critical alive=critical extra=critical")
		a.register(t, service("web-1", 81, ttl("new", time.Hour)))
		synctest.Wait()
		expect(t, "calls", c.take(), "delete check alive; delete check extra")

		for _, id := range []model.CheckID{"disk", "new"} {
			if err := a.DeregisterCheck(context.Background(), id); err != nil {
				t.Fatal(err)
			}
			if err := a.DeregisterCheck(context.Background(), id); !errors.Is(err, local.ErrUnknownCheck) {
				t.Errorf("again: %v", err)
			}
		}
		expect(t, "catalogue", c.dump(me), "node n1 192.0.2.1 owner=node/n1\nservice web-1 web:81 tags=[] owner=node/n1")
		a = a.restart(t, dir, c)
		defer a.stop()
		if len(a.Checks()) != 0 {
			t.Errorf("Checks = %v", a.Checks())
		}
	})
}

func TestChecksThatAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCatalog()
		c.sync()
		a := start(t, "", c)
		defer a.stop()
		a.register(t, service("web-1", 80, ttl("alive", time.Hour)))
		a.check(t, ttl("disk", time.Hour))
		tests := []struct {
			spec model.CheckSpec
			is   error
			want string
		}{
			{model.CheckSpec{TTL: 1}, local.ErrInvalid, "a check needs a name"},
			{model.CheckSpec{ID: "c"}, local.ErrInvalid, "exactly one of"},
			{model.CheckSpec{ID: "c", ServiceID: "web-2", TTL: 1}, local.ErrUnknownService, `unknown service "web-2"`},
			{model.CheckSpec{ID: "alive", TTL: 1}, local.ErrInvalid, `the id "alive" belongs to a check of service "web-1"`},
			{model.CheckSpec{ID: "disk", ServiceID: "web-1", TTL: 1}, local.ErrInvalid, `the id "disk" belongs to a check of this node`},
			{model.CheckSpec{ID: "s", Args: []string{"x"}, Interval: 1}, local.ErrScripts, "Scripts are disabled on this agent from remote calls; to enable them, set script-checks to on"},
		}
		before := c.dump(me)
		for _, tt := range tests {
			if _, err := a.RegisterCheck(context.Background(), tt.spec, ""); !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%+v: %v, want %q", tt.spec, err, tt.want)
			}
		}
		if _, err := a.Register(context.Background(), service("x", 1, model.CheckSpec{Args: []string{"x"}, Interval: 1})); !errors.Is(err, local.ErrScripts) {
			t.Errorf("Register = %v", err)
		}
		synctest.Wait()
		expect(t, "catalogue", c.dump(me), before)
	})
}

// TestAnotherStateToBeginWith: a check that is registered again is in the state
// that this says, or in the one it had.
func TestAnotherStateToBeginWith(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCatalog()
		c.sync()
		a := start(t, "", c)
		defer a.stop()
		a.check(t, ttl("c", time.Hour))
		a.beat(t, "c", model.Warning, "hm")
		a.check(t, ttl("c", time.Hour))
		if ch, _ := a.Check("c"); ch.Status != model.Warning || ch.Output != "hm" {
			t.Errorf("Check = %+v", ch)
		}
		a.check(t, model.CheckSpec{ID: "c", TTL: time.Hour, Status: model.Passing})
		synctest.Wait()
		if ch, _ := a.Check("c"); ch.Status != model.Passing {
			t.Errorf("Check = %+v", ch)
		}
	})
}

func TestMaintenance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		dir := t.TempDir()
		c := newCatalog()
		c.sync()
		a := start(t, dir, c)
		a.register(t, service("web-1", 80))
		if err := a.EnterMaintenance(ctx, "web-1", "", ""); err != nil {
			t.Fatal(err)
		}
		if err := a.EnterMaintenance(ctx, "", "moving", ""); err != nil {
			t.Fatal(err)
		}
		if err := a.EnterMaintenance(ctx, "", "another reason", ""); err != nil {
			t.Fatal(err)
		}
		if err := a.EnterMaintenance(ctx, "web-2", "", ""); !errors.Is(err, local.ErrUnknownService) {
			t.Errorf("of no service: %v", err)
		}
		want := `
node n1 192.0.2.1 owner=node/n1
service web-1 web:80 tags=[] owner=node/n1
check _node_maintenance of  critical "" owner=node/n1
check _service_maintenance:web-1 of web-1 critical "" owner=node/n1`
		expect(t, "catalogue", c.dump(me), want)
		s, _ := a.Check("_service_maintenance:web-1")
		if s.Name != "Service Maintenance Mode" || s.Type != "maintenance" ||
			s.Notes != "Maintenance mode is enabled for this service, but no reason was provided. This is a default message." {
			t.Errorf("service: %+v", s)
		}
		if n, _ := a.Check("_node_maintenance"); n.Name != "Node Maintenance Mode" || n.Notes != "moving" {
			t.Errorf("node: %+v", n)
		}
		a = a.restart(t, dir, c)
		defer a.stop()
		time.Sleep(time.Hour)
		expect(t, "after a restart", c.dump(me), want)
		for range 2 {
			if err := errors.Join(a.LeaveMaintenance(ctx, "web-1"), a.LeaveMaintenance(ctx, ""), a.LeaveMaintenance(ctx, "web-2")); err != nil {
				t.Fatal(err)
			}
		}
		expect(t, "afterwards", c.dump(me), "node n1 192.0.2.1 owner=node/n1\nservice web-1 web:80 tags=[] owner=node/n1")
	})
}

// TestAliasesFollow: an alias shows the worst of its service's and the node's
// checks, wherever that is, as soon as it changes.
func TestAliasesFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCatalog()
		far := func(s model.Status) *model.Check {
			return &model.Check{Node: "n2", ID: "serfHealth", Name: "Serf Health Status", Status: s, Output: "out"}
		}
		c.sync()
		c.put(change(&model.Node{Name: "n2"}), change(far(model.Passing)))
		a := start(t, "", c)
		defer a.stop()
		a.register(t, service("front", 80, model.CheckSpec{ID: "alias", AliasService: "back"}))
		a.check(t, model.CheckSpec{ID: "far-node", AliasNode: "n2"})
		a.check(t, model.CheckSpec{ID: "far-service", AliasNode: "n2", AliasService: "db"})
		a.check(t, model.CheckSpec{ID: "self", AliasNode: "N1"})
		show := func(want string) {
			t.Helper()
			synctest.Wait()
			var got []string
			for _, ch := range a.Checks() {
				if ch.Type == "alias" {
					got = append(got, string(ch.ID)+" "+string(ch.Status)+" "+ch.Output)
				}
			}
			expect(t, "aliases", strings.Join(got, "\n"), want)
		}
		show(`alias critical Service back could not be found on node n1
far-node passing All checks passing.
far-service critical Service db could not be found on node n2
self critical Aliased check "far-service" failing: Service db could not be found on node n2`)

		// Everything that the node's checks say counts for its services.
		if err := a.DeregisterCheck(context.Background(), "self"); err != nil {
			t.Fatal(err)
		}
		c.put(change(&model.Instance{Node: "n2", ID: "db", Service: "db"}))
		a.register(t, service("back", 81, ttl("alive", time.Hour)))
		show(`alias critical Aliased check "Service 'web' check" failing: 
far-node passing All checks passing.
far-service passing All checks passing.`)

		a.beat(t, "alive", model.Warning, "slow")
		c.put(change(far(model.Critical)))
		show(`alias critical Aliased check "far-node" failing: Aliased check "Serf Health Status" failing: out
far-node critical Aliased check "Serf Health Status" failing: out
far-service critical Aliased check "Serf Health Status" failing: out`)

		c.put(change(far(model.Passing)))
		show(`alias warning Aliased check "Service 'web' check" failing: slow
far-node passing All checks passing.
far-service passing All checks passing.`)
		a.beat(t, "alive", model.Passing, "")
		show(`alias passing All checks passing.
far-node passing All checks passing.
far-service passing All checks passing.`)
	})
}

// TestAliasesInACircle: two services that stand for each other come to rest.
func TestAliasesInACircle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCatalog()
		c.sync()
		a := start(t, "", c)
		defer a.stop()
		a.register(t, service("a", 80, model.CheckSpec{ID: "a", AliasService: "b"}))
		a.register(t, service("b", 80, model.CheckSpec{ID: "b", AliasService: "a"}, ttl("alive", time.Hour)))
		a.beat(t, "alive", model.Passing, "")
		synctest.Wait()
		if got := c.take(); strings.Count(got, "check") > 4 {
			t.Errorf("calls: %s", got)
		}
	})
}

func TestScriptsOfFilesOnly(t *testing.T) {
	c := newCatalog()
	c.sync()
	dir := t.TempDir()
	cfg := config("")
	cfg.Scripts = local.ScriptsLocal
	a, err := local.Open(cfg, c, c.st)
	if err != nil {
		t.Fatal(err)
	}
	touch := func(name string) model.CheckSpec {
		return model.CheckSpec{Name: name, Args: []string{"/bin/touch", filepath.Join(dir, name)}, Interval: time.Hour}
	}
	ctx, cancel := context.WithCancel(context.Background())
	if _, err := a.RegisterCheck(ctx, touch("api"), ""); !errors.Is(err, local.ErrScripts) {
		t.Errorf("RegisterCheck = %v", err)
	}
	if err := a.Declare(ctx, nil, []model.CheckSpec{touch("file")}); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- a.Run(ctx, func() {}) }()
	deadline := time.Now().Add(20 * time.Second)
	for ch, _ := a.Check("file"); ch.Status != model.Passing; ch, _ = a.Check("file") {
		if time.Now().After(deadline) {
			t.Fatalf("Check = %+v", ch)
		}
		_, mark := c.st.Snapshot().NodeChecks(me)
		select {
		case <-mark.Changed:
		case <-time.After(50 * time.Millisecond):
		}
	}
	cancel()
	<-done
	if _, err := os.Stat(filepath.Join(dir, "file")); err != nil {
		t.Error(err)
	}
	none, err := local.Open(config(""), c, c.st)
	if err != nil {
		t.Fatal(err)
	}
	if err := none.Declare(t.Context(), nil, []model.CheckSpec{touch("file")}); !errors.Is(err, local.ErrScripts) {
		t.Errorf("Declare where scripts are off = %v", err)
	}
}

// TestRefusedCheckHoldsUpNoOther of its node or of its service.
func TestRefusedCheckHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCatalog()
		c.sync()
		a := start(t, "", c)
		defer a.stop()
		a.register(t, service("web", 80, ttl("web-bad", 24*time.Hour), ttl("web-good", 24*time.Hour)))
		a.check(t, ttl("node-good", 24*time.Hour))
		c.setFail(func(call string) error {
			if strings.Contains(call, "bad") {
				return refusing("permission denied")
			}
			return nil
		})
		if warning, err := a.RegisterCheck(context.Background(), ttl("node-bad", 24*time.Hour), ""); err != nil || !strings.Contains(warning, "permission denied") {
			t.Errorf("RegisterCheck = %q, %v", warning, err)
		}
		a.beat(t, "web-bad", model.Passing, "")
		synctest.Wait()
		c.take()
		a.beat(t, "web-good", model.Passing, "")
		a.beat(t, "node-good", model.Passing, "")
		synctest.Wait()
		expect(t, "calls", c.take(), "check node-good=passing; check web-good=passing")
		if s := a.Status(); len(s.Rejected) != 2 || len(s.Pending) != 1 || s.Error != "" {
			t.Errorf("Status = %+v", s)
		}
		time.Sleep(time.Hour)
		if n := strings.Count(c.take(), "bad"); n < 20 || n > 80 {
			t.Errorf("%d tries of two checks in an hour", n)
		}
		c.setFail(nil)
		time.Sleep(6 * time.Minute)
		expect(t, "calls", c.take(), "check node-bad=critical; check web-bad=passing")
		if s := a.Status(); len(s.Rejected) != 0 || len(s.Pending) != 0 {
			t.Errorf("Status = %+v", s)
		}
	})
}
