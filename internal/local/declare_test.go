package local_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-net/fairlead/internal/local"
	"github.com/fairlead-net/fairlead/internal/model"
)

func (r running) declare(t *testing.T, services []model.Registration, checks ...model.CheckSpec) {
	t.Helper()
	if err := r.Declare(context.Background(), services, checks); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
}

// list shows an agent's services and their checks.
func list(a *local.Agent) string {
	var b strings.Builder
	for _, r := range a.Services() {
		fmt.Fprintf(&b, "%s:%d", r.Instance.ID, r.Instance.Port)
		for _, c := range r.Checks {
			fmt.Fprintf(&b, " %s", c.ID)
		}
		b.WriteString("; ")
	}
	for _, c := range a.Checks() {
		if c.ServiceID == "" {
			fmt.Fprintf(&b, "%s ", c.ID)
		}
	}
	return strings.TrimRight(b.String(), "; ")
}

func regs(rs ...model.Registration) []model.Registration { return rs }

func TestDeclare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCatalog()
		c.sync()
		a := start(t, "", c)
		defer a.stop()
		a.register(t, service("api", 1, ttl("api", time.Hour)))
		a.check(t, ttl("node-api", time.Hour))
		c.take()

		extra := ttl("extra", time.Hour)
		extra.ServiceID = "api"
		a.declare(t, regs(service("a", 1, ttl("a", time.Hour)), service("b", 2, ttl("b", time.Hour))), ttl("disk", time.Hour), extra)
		expect(t, "declared", list(a.Agent), "a:1 a; api:1 api extra; b:2 b; disk node-api")
		expect(t, "calls", c.take(), "check disk=critical; register a a=critical; register api api=critical extra=critical; register b b=critical")
		a.beat(t, "a", model.Passing, "")
		synctest.Wait()
		c.take()

		// The same again disturbs nobody, not even a TTL.
		time.Sleep(59 * time.Minute)
		a.declare(t, regs(service("a", 1, ttl("a", time.Hour)), service("b", 2, ttl("b", time.Hour))), ttl("disk", time.Hour), extra)
		expect(t, "calls", c.take(), "")
		time.Sleep(2 * time.Minute)
		if ch, _ := a.Check("a"); ch.Status != model.Critical {
			t.Error("the TTL of a has begun again")
		}
		c.take()

		// What changes, what goes, and a check that moves to another service.
		a.declare(t, regs(service("b", 3, ttl("a", time.Hour), ttl("b", time.Hour))), ttl("memory", time.Hour))
		expect(t, "declared", list(a.Agent), "api:1 api; b:3 a b; memory node-api")
		expect(t, "catalogue", c.dump(me), `
node n1 192.0.2.1 owner=node/n1
service api web:1 tags=[] owner=node/n1
service b web:3 tags=[] owner=node/n1
check a of b critical "" owner=node/n1
check api of api critical "TTL expired" owner=node/n1
check b of b critical "TTL expired" owner=node/n1
check memory of  critical "" owner=node/n1
check node-api of  critical "TTL expired" owner=node/n1`)
		a.declare(t, nil)
		expect(t, "declared", list(a.Agent), "api:1 api; node-api")
	})
}

// TestFilesAndAPI: whoever speaks last has the last word on a service; the files
// speak again at each reload.
func TestFilesAndAPI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCatalog()
		c.sync()
		a := start(t, "", c)
		defer a.stop()
		a.register(t, service("web", 1, ttl("api", time.Hour)))
		a.declare(t, regs(service("web", 2)))
		expect(t, "the files", list(a.Agent), "web:2 api")
		a.register(t, service("web", 3))
		expect(t, "the API", list(a.Agent), "web:3")
		a.declare(t, regs(service("web", 2)))
		expect(t, "the files again", list(a.Agent), "web:2")
		if err := a.Deregister(context.Background(), "web"); err != nil {
			t.Fatal(err)
		}
		expect(t, "the API", list(a.Agent), "")
		a.declare(t, regs(service("web", 2)))
		expect(t, "the files again", list(a.Agent), "web:2")
	})
}

// TestDeclaredIsNotKept: over a restart the file keeps what came by the API, also
// where that is about a service of the files.
func TestDeclaredIsNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c := newCatalog()
		c.sync()
		a := start(t, dir, c)
		set := regs(service("file", 1, ttl("file", time.Hour)))
		a.declare(t, set, ttl("disk", time.Hour))
		a.check(t, model.CheckSpec{ID: "extra", ServiceID: "file", TTL: time.Hour})
		if err := a.EnterMaintenance(context.Background(), "file", "why", ""); err != nil {
			t.Fatal(err)
		}
		a.check(t, ttl("node", time.Hour))
		a.register(t, service("api", 2))
		want := list(a.Agent)
		before := c.dump(me)
		a.stop()
		b, err := os.ReadFile(filepath.Join(dir, "registrations.json"))
		if err != nil || strings.Contains(string(b), `"disk"`) || strings.Contains(string(b), `"id": "file"`) {
			t.Errorf("the file holds what is declared (%v):\n%s", err, b)
		}

		next := open(t, dir, c)
		expect(t, "before the files are read", list(next), "api:2; node")
		if err := next.Declare(context.Background(), set, []model.CheckSpec{ttl("disk", time.Hour)}); err != nil {
			t.Fatal(err)
		}
		expect(t, "after it", list(next), want)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		ready := make(chan struct{})
		c.take()
		go func() { done <- next.Run(ctx, func() { close(ready) }) }()
		<-ready
		synctest.Wait()
		expect(t, "calls", c.take(), "")
		expect(t, "catalogue", c.dump(me), before)
		cancel()
		<-done
	})
}

func TestFilesThatAreWrong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCatalog()
		c.sync()
		a := start(t, "", c)
		defer a.stop()
		a.register(t, service("api", 1, ttl("mine", time.Hour)))
		a.declare(t, regs(service("good", 1)))
		lost := ttl("lost", time.Hour)
		lost.ServiceID = "nobody"
		tests := []struct {
			services []model.Registration
			checks   []model.CheckSpec
			is       error
			want     string
		}{
			{regs(model.Registration{}), nil, local.ErrInvalid, "a service needs a name"},
			{regs(service("a", 1), service("a", 2)), nil, local.ErrInvalid, `service "a" is declared twice`},
			{regs(service("a", 70000)), nil, local.ErrInvalid, "70000"},
			{nil, []model.CheckSpec{{Name: "c"}}, local.ErrInvalid, `check "c" needs exactly one of`},
			{nil, []model.CheckSpec{ttl("c", 1), ttl("c", 2)}, local.ErrInvalid, `check "c" is declared twice`},
			{nil, []model.CheckSpec{lost}, local.ErrUnknownService, `check "lost": unknown service "nobody"`},
		}
		for _, tt := range tests {
			if err := a.Declare(context.Background(), tt.services, tt.checks); !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			expect(t, "declared", list(a.Agent), "api:1 mine; good:1")
		}
		// A check's id that is taken stops its service only.
		err := a.Declare(context.Background(), regs(service("a", 1, ttl("mine", time.Hour)), service("b", 1)), nil)
		if !errors.Is(err, local.ErrInvalid) || !strings.Contains(err.Error(), `the id "mine" belongs to a check of service "api"`) {
			t.Errorf("%v", err)
		}
		expect(t, "declared", list(a.Agent), "api:1 mine; b:1")
	})
}
