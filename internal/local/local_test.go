package local_test

import (
	"bytes"
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

func TestRegisterAndDeregister(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c := newCatalog()
		c.sync()
		a := start(t, dir, c)
		defer a.stop()
		reg := service("web-1", 80, ttl("alive", time.Minute), model.CheckSpec{ID: "late", TTL: time.Hour, Status: model.Warning})
		reg.Instance.Tags = []string{"v1"}
		reg.Token = "secret"
		a.register(t, reg)
		want := `
node n1 192.0.2.1 owner=node/n1
service web-1 web:80 tags=[v1] owner=node/n1
check alive of web-1 critical "" owner=node/n1
check late of web-1 warning "" owner=node/n1`
		expect(t, "catalogue", c.dump(me), want)
		expect(t, "calls", c.take(), "node 192.0.2.1; register web-1 alive=critical late=warning")

		a.beat(t, "alive", model.Passing, "fine")
		if ch := a.Checks(); len(ch) != 2 || ch[0].Status != model.Passing || ch[0].Output != "fine" ||
			ch[0].ServiceName != "web" || ch[0].ServiceTags[0] != "v1" || ch[0].Type != "ttl" || ch[0].Name != "Service 'web' check" {
			t.Errorf("Checks = %+v", ch)
		}
		synctest.Wait()
		expect(t, "calls", c.take(), "check alive=passing")

		info, err := os.Stat(filepath.Join(dir, "registrations.json"))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("file %v, %v; want 0600, because it holds tokens", info.Mode(), err)
		}
		if s := a.Services(); len(s) != 1 || s[0].Token != "secret" || s[0].Instance.Weights != model.DefaultWeights {
			t.Errorf("Services = %+v", s)
		}
		if err := a.Deregister(context.Background(), "web-1"); err != nil {
			t.Fatal(err)
		}
		expect(t, "catalogue", c.dump(me), "node n1 192.0.2.1 owner=node/n1")
		if err := a.UpdateTTL("alive", model.Passing, ""); !errors.Is(err, local.ErrUnknownCheck) {
			t.Errorf("UpdateTTL of a removed check = %v", err)
		}
		if err := a.Deregister(context.Background(), "web-1"); !errors.Is(err, local.ErrUnknownService) {
			t.Errorf("second Deregister = %v", err)
		}
		if len(a.Services()) != 0 || len(a.Checks()) != 0 {
			t.Errorf("left: %v %v", a.Services(), a.Checks())
		}
	})
}

// TestRestartDisturbsNobody: a passing check stays passing in the catalogue over
// a restart of the agent, and a TTL has its whole time again.
func TestRestartDisturbsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c := newCatalog()
		c.sync()
		a := start(t, dir, c)
		a.register(t, service("web-1", 80, ttl("alive", time.Minute)))
		a.beat(t, "alive", model.Passing, "fine")
		synctest.Wait()
		a.stop()
		c.take()

		time.Sleep(10 * time.Minute)
		b := start(t, dir, c)
		defer b.stop()
		time.Sleep(59 * time.Second)
		expect(t, "calls after the restart", c.take(), "")
		if ch := b.Checks(); ch[0].Status != model.Passing || ch[0].Output != "fine" {
			t.Errorf("Checks = %+v", ch)
		}
		time.Sleep(2 * time.Second)
		expect(t, "calls after the TTL", c.take(), "check alive=critical")
	})
}

// TestStartWithoutCatalogue: checks run and the agent becomes ready although no
// server answers; what the catalogue had shown is taken over when it comes.
func TestStartWithoutCatalogue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c := newCatalog()
		c.sync()
		a := start(t, dir, c)
		a.register(t, service("web-1", 80, ttl("quiet", time.Hour), ttl("loud", time.Hour)))
		a.beat(t, "quiet", model.Passing, "fine")
		a.beat(t, "loud", model.Passing, "fine")
		synctest.Wait()
		a.stop()
		before := c.st.Snapshot()
		checks, _ := before.NodeChecks(me)
		instances, _ := before.NodeInstances(me)
		node, _ := before.Node(me)

		later := newCatalog() // not synced
		begin := time.Now()
		b := start(t, dir, later)
		defer b.stop()
		if d := time.Since(begin); d > 5*time.Second {
			t.Errorf("ready after %v", d)
		}
		b.beat(t, "loud", model.Warning, "hm")
		time.Sleep(10 * time.Minute)
		expect(t, "calls without a catalogue", later.take(), "")
		later.sync(change(node), change(instances[0]), change(checks[0]), change(checks[1]))
		synctest.Wait()
		expect(t, "calls", later.take(), "check loud=warning")
	})
}

func TestCrashBetweenFileAndCatalogue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c := newCatalog()
		c.sync()
		crashed := open(t, dir, c) // never gets to run
		warning, err := crashed.Register(context.Background(), service("web-1", 80))
		if err != nil || !strings.Contains(warning, "has not confirmed it within 2s") {
			t.Fatalf("Register = %q, %v", warning, err)
		}
		expect(t, "catalogue", c.dump(me), "")

		// A write that was under way when the machine stopped.
		if err := os.WriteFile(filepath.Join(dir, "registrations.json.tmp"), []byte(`{"versi`), 0o644); err != nil {
			t.Fatal(err)
		}
		a := start(t, dir, c)
		defer a.stop()
		want := "node n1 192.0.2.1 owner=node/n1\nservice web-1 web:80 tags=[] owner=node/n1\n"
		expect(t, "catalogue", c.dump(me), want)
		a.register(t, service("web-2", 81))
	})
}

func TestCatalogueAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCatalog()
		c.sync()
		a := start(t, "", c)
		defer a.stop()
		c.setFail(func(string) error { return errDown })
		begin := time.Now()
		warning, err := a.Register(context.Background(), service("web-1", 80))
		if d := time.Since(begin); err != nil || d != 2*time.Second {
			t.Errorf("Register = %v after %v", err, d)
		}
		if !strings.Contains(warning, "no leader") || strings.Contains(warning, "\n") {
			t.Errorf("warning %q; want one line with the reason", warning)
		}
		if s := a.Status(); len(s.Pending) != 1 || s.Error == "" || len(s.Rejected) != 0 {
			t.Errorf("Status = %+v", s)
		}
		time.Sleep(time.Hour)
		if n := strings.Count(c.take(), "register"); n < 100 || n > 400 {
			t.Errorf("%d tries in an hour", n)
		}
		c.setFail(nil)
		time.Sleep(31 * time.Second)
		want := "node n1 192.0.2.1 owner=node/n1\nservice web-1 web:80 tags=[] owner=node/n1\n"
		expect(t, "catalogue", c.dump(me), want)
		if s := a.Status(); len(s.Pending) != 0 || s.Error != "" || s.InLine.IsZero() {
			t.Errorf("Status = %+v", s)
		}
	})
}

func TestRegisterEndsWithItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCatalog()
		a := open(t, "", c)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		begin := time.Now()
		warning, err := a.Register(ctx, service("web-1", 80))
		if err != nil || warning == "" || time.Since(begin) != time.Second {
			t.Errorf("Register = %q, %v after %v", warning, err, time.Since(begin))
		}
	})
}

func TestRefusedServiceStaysVisibleAndIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCatalog()
		c.sync()
		a := start(t, "", c)
		defer a.stop()
		c.setFail(func(call string) error {
			if strings.Contains(call, "bad") {
				return fmt.Errorf("commit: %w", refusing("permission denied"))
			}
			return nil
		})
		begin := time.Now()
		warning, err := a.Register(context.Background(), service("bad", 80))
		if err != nil || !strings.Contains(warning, "refuses it") || !strings.Contains(warning, "permission denied") {
			t.Errorf("Register = %q, %v", warning, err)
		}
		if d := time.Since(begin); d != 0 {
			t.Errorf("the refusal was known at once, but told after %v", d)
		}
		a.register(t, service("good", 81)) // undisturbed
		if s := a.Status(); s.Rejected["bad"] == "" || s.Error != "" || len(s.Pending) != 1 {
			t.Errorf("Status = %+v", s)
		}
		c.take()
		time.Sleep(time.Hour)
		if n := strings.Count(c.take(), "register bad"); n < 10 || n > 40 {
			t.Errorf("%d tries in an hour", n)
		}
		c.setFail(nil)
		a.register(t, service("bad", 80)) // a client's word makes it be tried at once
		if s := a.Status(); len(s.Rejected) != 0 || len(s.Pending) != 0 {
			t.Errorf("Status = %+v", s)
		}
	})
}

// TestOneBadServiceDoesNotHoldUpOthers: an error of one service only.
func TestOneBadServiceDoesNotHoldUpOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCatalog()
		c.sync()
		a := start(t, "", c)
		defer a.stop()
		c.setFail(func(call string) error {
			if strings.Contains(call, "bad") {
				return errors.New("odd")
			}
			return nil
		})
		if warning, err := a.Register(context.Background(), service("bad", 80)); err != nil || !strings.Contains(warning, "odd") {
			t.Errorf("Register = %q, %v", warning, err)
		}
		a.register(t, service("good", 81))
	})
}

func TestUpdateKeepsTheStateOfChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCatalog()
		c.sync()
		dir := t.TempDir()
		a := start(t, dir, c)
		defer a.stop()
		a.register(t, service("web-1", 80, ttl("alive", time.Minute), ttl("old", time.Minute)))
		a.beat(t, "alive", model.Passing, "fine")
		synctest.Wait()
		time.Sleep(50 * time.Second)
		c.take()
		a.register(t, service("web-1", 8080, ttl("alive", time.Minute), ttl("new", time.Minute)))
		expect(t, "calls", c.take(), "register web-1 alive=passing new=critical")
		want := `
node n1 192.0.2.1 owner=node/n1
service web-1 web:8080 tags=[] owner=node/n1
check alive of web-1 passing "fine" owner=node/n1
check new of web-1 critical "" owner=node/n1`
		expect(t, "catalogue", c.dump(me), want)
		time.Sleep(59 * time.Second) // the TTL began anew
		expect(t, "calls", c.take(), "")
		time.Sleep(2 * time.Second) // alive changes, new says for the first time why it is as it is
		expect(t, "calls", c.take(), "check alive=critical; check new=critical")
		// And once more without any change: nothing to write, nothing to tell.
		before, err := os.ReadFile(filepath.Join(dir, "registrations.json"))
		if err != nil {
			t.Fatal(err)
		}
		a.register(t, service("web-1", 8080, ttl("alive", time.Minute), ttl("new", time.Minute)))
		expect(t, "calls", c.take(), "")
		if after, err := os.ReadFile(filepath.Join(dir, "registrations.json")); err != nil || !bytes.Equal(before, after) {
			t.Errorf("the file was written again: %v", err)
		}
	})
}

func TestACheckIDBelongsToOneService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCatalog()
		c.sync()
		a := start(t, "", c)
		defer a.stop()
		a.register(t, service("one", 80, ttl("alive", time.Minute)))
		_, err := a.Register(context.Background(), service("two", 81, ttl("alive", time.Minute)))
		if !errors.Is(err, local.ErrInvalid) || !strings.Contains(err.Error(), `"one"`) {
			t.Errorf("Register = %v", err)
		}
		if len(a.Services()) != 1 {
			t.Errorf("Services = %v", a.Services())
		}
		if err := a.Deregister(context.Background(), "one"); err != nil {
			t.Fatal(err)
		}
		a.register(t, service("two", 81, ttl("alive", time.Minute)))
		a.beat(t, "alive", model.Passing, "")
	})
}

func TestCopiesAreTheCallers(t *testing.T) {
	a := open(t, "", newCatalog())
	reg := service("web-1", 80, model.CheckSpec{HTTP: "http://127.0.0.1/", Interval: time.Hour, Header: map[string][]string{"A": {"1"}}})
	reg.Instance.Tags = []string{"v1"}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := a.Register(ctx, reg); err != nil {
		t.Fatal(err)
	}
	reg.Instance.Tags[0], reg.Checks[0].Header["A"][0] = "changed", "changed"
	s := a.Services()[0]
	s.Instance.Tags[0], s.Checks[0].Header["A"][0], s.Checks[0].ID = "changed", "changed", "changed"
	a.Checks()[0].ServiceTags[0] = "changed"
	s = a.Services()[0]
	if s.Instance.Tags[0] != "v1" || s.Checks[0].Header["A"][0] != "1" || s.Checks[0].ID != "service:web-1" {
		t.Errorf("Services = %+v", s)
	}
}

// What no catalogue would take is refused before it is made durable.
func TestRegisterRefusesWhatTheCatalogueWould(t *testing.T) {
	cat := newCatalog()
	cat.sync()
	a, err := local.Open(local.Config{Node: model.Node{Name: "n1"}}, cat, cat.st)
	if err != nil {
		t.Fatal(err)
	}
	_, err = a.Register(t.Context(), model.Registration{Instance: model.Instance{Service: "web", Port: 70000}})
	if !errors.Is(err, model.ErrInvalid) || len(a.Services()) != 0 {
		t.Errorf("Register = %v with %d services, want ErrInvalid and none", err, len(a.Services()))
	}
}
