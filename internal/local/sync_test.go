package local_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-net/fairlead/internal/local"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// change makes a catalogue change of a record.
func change(record any) state.Change {
	switch r := record.(type) {
	case *model.Node:
		return state.Change{Node: r}
	case *model.Instance:
		return state.Change{Instance: r}
	case *model.Check:
		return state.Change{Check: r}
	}
	panic(fmt.Sprintf("no change of a %T", record))
}

func instance(n model.NodeName, id model.ServiceID, o model.Owner) state.Change {
	return change(&model.Instance{Node: n, ID: id, Service: "ghost", Stamp: model.Stamp{Owner: o}})
}

func check(n model.NodeName, id model.CheckID, s model.ServiceID, o model.Owner) state.Change {
	return change(&model.Check{Node: n, ID: id, ServiceID: s, Status: model.Passing, Stamp: model.Stamp{Owner: o}})
}

const (
	mine   = model.Owner("node/n1")
	theirs = model.Owner("node/n2")
)

// TestGhostsGoOnceSynced: entries of ours that nobody registered, and external
// ones under our name, are removed; everybody else's stay.
func TestGhostsGoOnceSynced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCatalog()
		foreign := []state.Change{
			instance(me, "consul", model.OwnerServers),
			check(me, model.SerfHealth, "", model.OwnerServers),
			instance(me, "operators", model.OwnerOperator),
			instance(me, "odd", theirs),
			check(me, "odd-check", "odd", theirs),
			instance("n2", "other", model.OwnerExternal),
			check("n2", "other-check", "other", theirs),
		}
		ghosts := []state.Change{
			instance(me, "ghost", mine),
			check(me, "ghost-check", "ghost", mine),
			instance(me, "hand-made", model.OwnerExternal),
			check(me, "hand-check", "", model.OwnerExternal),
			check(me, "lost-check", "nowhere", mine),
			// Ours by mistake of an older version: still the servers'.
			change(&model.Check{Node: me, ID: model.SerfHealth, Status: model.Passing, Stamp: model.Stamp{Owner: mine}}),
		}
		c.put(foreign...)
		c.put(ghosts...)
		a := start(t, "", c)
		defer a.stop()
		time.Sleep(5 * time.Minute)
		expect(t, "calls before the state is synced", c.take(), "")
		c.sync(append(foreign, ghosts...)...)
		synctest.Wait()
		expect(t, "calls", c.take(), "delete check hand-check; delete check lost-check; deregister ghost; deregister hand-made; node 192.0.2.1")
		want := `
node n1 192.0.2.1 owner=node/n1
service consul ghost:0 tags=[] owner=servers
service odd ghost:0 tags=[] owner=node/n2
service operators ghost:0 tags=[] owner=operator
check odd-check of odd passing "" owner=node/n2
check serfHealth of  passing "" owner=node/n1`
		expect(t, "catalogue", c.dump(me), want)
	})
}

func TestReassertsAfterCatalogueLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCatalog()
		c.sync()
		a := start(t, "", c)
		defer a.stop()
		a.register(t, service("web-1", 80, ttl("alive", time.Hour)))
		a.beat(t, "alive", model.Passing, "fine")
		synctest.Wait()
		want := c.dump(me)
		damage := map[string]func(){
			"everything lost": func() { c.sync() },
			"instance lost": func() {
				c.put(state.Change{Delete: true, Instance: &model.Instance{Node: me, ID: "web-1"}})
			},
			"check lost": func() { c.put(state.Change{Delete: true, Check: &model.Check{Node: me, ID: "alive"}}) },
			"check changed": func() {
				c.put(change(&model.Check{Node: me, ID: "alive", ServiceID: "web-1", Status: model.Critical, Stamp: model.Stamp{Owner: mine}}))
			},
			"instance changed": func() { c.put(instance(me, "web-1", mine)) },
			"instance taken":   func() { c.put(instance(me, "web-1", model.OwnerExternal)) },
			"check taken":      func() { c.put(check(me, "alive", "web-1", model.OwnerExternal)) },
			"both taken": func() {
				c.put(instance(me, "web-1", model.OwnerExternal), check(me, "alive", "web-1", model.OwnerExternal))
			},
			"node changed": func() { c.put(change(&model.Node{Name: me, Address: "192.0.2.99"})) },
		}
		for what, do := range damage {
			do()
			time.Sleep(2 * time.Second)
			expect(t, what, c.dump(me), want)
		}
	})
}

// TestTwoAgentsOfOneName fight for their entries; that must stay bearable.
func TestTwoAgentsOfOneName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCatalog()
		c.sync()
		a := start(t, "", c)
		defer a.stop()
		b := start(t, "", c)
		defer b.stop()
		for i, r := range []running{a, b} {
			if _, err := r.Register(context.Background(), service("web-1", 80+i)); err != nil {
				t.Fatal(err)
			}
		}
		c.take()
		time.Sleep(time.Minute)
		if n := strings.Count(c.take(), ";"); n > 130 {
			t.Errorf("%d writes in a minute", n)
		}
	})
}

func TestOutputIsHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCatalog()
		c.sync()
		a := start(t, "", c)
		defer a.stop()
		a.register(t, service("web-1", 80, ttl("alive", time.Hour)))
		a.beat(t, "alive", model.Passing, "0")
		synctest.Wait()
		c.take()
		for i := range 240 { // twenty minutes, a new output every 5 s
			a.beat(t, "alive", model.Passing, fmt.Sprint(i))
			if got := a.Checks()[0].Output; got != fmt.Sprint(i) {
				t.Fatalf("Checks shows output %q, want the newest %d", got, i)
			}
			time.Sleep(5 * time.Second)
		}
		if calls := c.take(); strings.Count(calls, "alive=passing") < 3 || strings.Count(calls, "alive=passing") > 4 {
			t.Errorf("writes in 20 minutes: %s", calls)
		}
		a.beat(t, "alive", model.Critical, "down") // a state does not wait
		synctest.Wait()
		expect(t, "calls", c.take(), "check alive=critical")
		a.beat(t, "alive", model.Critical, "still down")
		time.Sleep(6 * time.Minute) // and the last output arrives
		expect(t, "calls", c.take(), "check alive=critical")
		if !strings.Contains(c.dump(me), `"still down"`) {
			t.Error(c.dump(me))
		}
		time.Sleep(time.Hour)
		c.take()
	})
}

// TestFirstOutputIsNotHeldBack: a service begins as critical, with nothing said
// about why. If it stays so, its first outcome is the reason that people look for.
func TestFirstOutputIsNotHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCatalog()
		c.sync()
		a := start(t, "", c)
		defer a.stop()
		a.register(t, service("web-1", 80, ttl("alive", time.Hour)))
		a.beat(t, "alive", model.Critical, "connection refused")
		synctest.Wait()
		if !strings.Contains(c.dump(me), `critical "connection refused"`) {
			t.Error(c.dump(me))
		}
		c.take()
		a.beat(t, "alive", model.Critical, "timeout")
		synctest.Wait()
		expect(t, "calls for the second output", c.take(), "")
	})
}

func TestDeregisterAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c := newCatalog()
		c.sync()
		a := start(t, dir, c)
		spec := ttl("alive", 30*time.Second)
		spec.DeregisterAfter = 10 * time.Minute
		short := ttl("short", time.Hour)
		short.DeregisterAfter = time.Second // is a minute, as in Consul
		a.register(t, service("web-1", 80, spec, ttl("other", time.Second)))
		a.register(t, service("web-2", 80, short))
		time.Sleep(59 * time.Second)
		if n := len(a.Services()); n != 2 {
			t.Fatalf("%d services after 59 s", n)
		}
		time.Sleep(2 * time.Second)
		if s := a.Services(); len(s) != 1 || s[0].Instance.ID != "web-1" {
			t.Fatalf("services after 61 s: %v", s)
		}
		time.Sleep(8 * time.Minute)
		a.beat(t, "alive", model.Passing, "") // in time; critical again after 30 s
		time.Sleep(10 * time.Minute)
		if len(a.Services()) != 1 {
			t.Fatal("removed although it had recovered")
		}
		a.stop()
		b := start(t, dir, c) // from the restart, because it is not known since when
		defer b.stop()
		time.Sleep(9 * time.Minute)
		if len(b.Services()) != 1 {
			t.Fatal("removed too early after a restart")
		}
		time.Sleep(2 * time.Minute)
		if len(b.Services()) != 0 {
			t.Fatal("not removed")
		}
		expect(t, "catalogue", c.dump(me), "node n1 192.0.2.1 owner=node/n1")
	})
}

func TestTagOverride(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c := newCatalog()
		c.sync()
		a := start(t, dir, c)
		open := service("open", 80, ttl("alive", time.Minute))
		open.Instance.EnableTagOverride = true
		open.Instance.Tags = []string{"mine"}
		closed := service("closed", 81)
		closed.Instance.Tags = []string{"mine"}
		a.register(t, open)
		a.register(t, closed)
		retag := func(id model.ServiceID, tag string) {
			i, _ := c.st.Snapshot().Instance(me, id)
			next := i.Clone()
			next.Tags = []string{tag}
			c.put(change(&next))
			time.Sleep(2 * time.Second)
		}
		tags := func() string {
			x, _ := c.st.Snapshot().Instance(me, "open")
			y, _ := c.st.Snapshot().Instance(me, "closed")
			return fmt.Sprint(x.Tags, y.Tags, a.Services()[1].Instance.Tags)
		}
		retag("open", "theirs")
		retag("closed", "theirs")
		expect(t, "tags", tags(), "[theirs] [mine] [theirs]")
		a.register(t, open) // a client's new word goes out first
		expect(t, "tags", tags(), "[mine] [mine] [mine]")
		retag("open", "theirs")
		a.stop()
		retag("open", "meanwhile")
		a = start(t, dir, c)
		defer a.stop()
		expect(t, "tags", tags(), "[meanwhile] [mine] [meanwhile]")
	})
}

func TestManyAtOnce(t *testing.T) {
	dir := t.TempDir()
	c := newCatalog()
	c.sync()
	a := start(t, dir, c)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			id := model.ServiceID(fmt.Sprintf("web-%d", i%50))
			reg := service(id, 1000+i, ttl(model.CheckID("check-"+id), time.Hour))
			if _, err := a.Register(context.Background(), reg); err != nil {
				t.Error(err)
			}
			if err := a.UpdateTTL(model.CheckID("check-"+id), model.Passing, fmt.Sprint(i)); err != nil && !errors.Is(err, local.ErrUnknownCheck) {
				t.Error(err)
			}
			a.Services()
			a.Checks()
			a.Status()
			if i%10 == 9 {
				// The other one of this id may be faster.
				if err := a.Deregister(context.Background(), id); err != nil && !errors.Is(err, local.ErrUnknownService) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	left := len(a.Services())
	a.stop()
	if left < 40 {
		t.Errorf("%d services left", left)
	}
	b := open(t, dir, c)
	if n := len(b.Services()); n != left {
		t.Errorf("%d services after a restart, %d before", n, left)
	}
}

// TestForeignChangeAmongOwnOnes: writes of its own do not hide what others change
// in between.
func TestForeignChangeAmongOwnOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCatalog()
		c.sync()
		a := start(t, "", c)
		defer a.stop()
		a.register(t, service("victim", 80))
		for i := range 100 {
			a.register(t, service(model.ServiceID(fmt.Sprint("own-", i)), 81))
			if i == 50 {
				c.put(state.Change{Delete: true, Instance: &model.Instance{Node: me, ID: "victim"}})
			}
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Second)
		if i, _ := c.st.Snapshot().Instance(me, "victim"); i == nil {
			t.Error("what others took away among own writes is still away")
		}
	})
}
