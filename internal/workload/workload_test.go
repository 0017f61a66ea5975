package workload_test

import (
	"context"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-net/fairlead/api"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/workload"
)

var errLuck = errors.New("out of luck")

func TestAttach(t *testing.T) {
	w := newWorld(t)
	w.warning, w.drops = "not in the catalogue yet", []string{"table inet filter chain forward (policy drop)"}
	in := spec("web-1", "web")
	in.Aliases = []string{"www"}
	in.Ports = []api.Port{{Proto: "tcp", HostPort: 8080, Port: 80, Expose: "lan"}}
	in.Service.Tags = []string{"v1"}
	in.Service.Check = &api.Check{HTTP: "/healthz", Timeout: time.Second, DeregisterAfter: time.Hour}
	got, err := w.set.Attach(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	addrs := []netip.Addr{netip.MustParseAddr("10.9.0.7"), netip.MustParseAddr("fd00:9::7")}
	want := api.Attachment{
		Endpoint: api.Endpoint{
			ID: "web-1@my-network", Workload: "web-1", Network: "my-network", Node: node, Aliases: []string{"www"}, Addrs: addrs,
			MAC: "02:00:00:00:00:07", NetNS: "/proc/5/ns/net", Ports: in.Ports,
		},
		Nameservers: []netip.Addr{netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("fd00:9::1")},
		Search:      []string{"my-network.internal"},
	}
	warnings := got.Warnings
	got.Warnings = nil
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v, want\n%+v", got, want)
	}
	if len(warnings) != 2 || !strings.Contains(warnings[0], "chain forward (policy drop)") || warnings[1] != "service web: not in the catalogue yet" {
		t.Errorf("warnings: %q", warnings)
	}
	wantReg := model.Registration{
		Instance: model.Instance{
			Node: node, ID: "web-1", Service: "web", Tags: []string{"v1"}, Address: "10.9.0.7", Port: 80, Weights: model.DefaultWeights,
			Endpoint: "web-1@my-network",
			Places: []model.Place{
				{Network: "my-network", Addr: addrs[0], Port: 80}, {Network: "my-network", Addr: addrs[1], Port: 80},
				{Addr: netip.MustParseAddr("192.0.2.1"), Port: 8080},
			},
			Stamp: model.Stamp{Owner: model.NodeOwner(node)},
		},
		Checks: []model.CheckSpec{{
			ID: "service:web-1", Name: "Service 'web' check", ServiceID: "web-1", HTTP: "http://10.9.0.7:80/healthz",
			Interval: 10 * time.Second, Timeout: time.Second, DeregisterAfter: time.Hour, NetNS: "/proc/5/ns/net",
		}},
	}
	if !reflect.DeepEqual(w.regs, []model.Registration{wantReg}) {
		t.Errorf("registered\n%+v, want\n%+v", w.regs, wantReg)
	}

	in = spec("db", "sql")
	in.Addrs = []netip.Addr{netip.MustParseAddr("fd00:9::9")}
	in.Service.Check = &api.Check{TCP: true, Interval: time.Second}
	if _, err := w.set.Attach(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	if c := w.regs[1].Checks[0]; c.TCP != "[fd00:9::9]:80" || c.HTTP != "" || c.Interval != time.Second {
		t.Errorf("check at an IPv6 address: %+v", c)
	}
}

// An instance has a place on the host where its port is published to others, and
// nowhere else.
func TestPublishedPlace(t *testing.T) {
	for what, c := range map[string]struct {
		ports []api.Port
		want  string
	}{
		"to anybody":       {[]api.Port{{Proto: "tcp", HostPort: 8080, Port: 80, Expose: "any"}}, "192.0.2.1:8080"},
		"to the LAN":       {[]api.Port{{Proto: "udp", HostPort: 1, Port: 80, Expose: "lan"}, {Proto: "tcp", HostPort: 81, Port: 80, Expose: "lan"}}, "192.0.2.1:81"},
		"to the host":      {[]api.Port{{Proto: "tcp", HostPort: 8080, Port: 80, Expose: "host"}}, ""},
		"another port":     {[]api.Port{{Proto: "tcp", HostPort: 8080, Port: 81, Expose: "any"}}, ""},
		"another protocol": {[]api.Port{{Proto: "udp", HostPort: 8080, Port: 80, Expose: "any"}}, ""},
	} {
		w := newWorld(t)
		in := spec("web-1", "web")
		in.Ports = c.ports
		if _, err := w.set.Attach(t.Context(), in); err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, p := range w.regs[0].Instance.Places {
			if p.Network == "" {
				got += netip.AddrPortFrom(p.Addr, p.Port).String()
			}
		}
		if got != c.want {
			t.Errorf("published %s: on the host at %q, want %q", what, got, c.want)
		}
	}
}

// A workload starts when the balancer has its endpoint and its instance; it
// starts without, and says so, when the balancer is late.
func TestAttachAwaitsTheBalancer(t *testing.T) {
	w := newWorld(t)
	if _, err := w.set.Attach(t.Context(), spec("web-1", "web")); err != nil {
		t.Fatal(err)
	}
	if len(w.awaited) != 1 || w.awaited[0] != w.rev || len(w.regs) != 1 {
		t.Errorf("awaited at %v, want once at %d, when everything was there", w.awaited, w.rev)
	}
	w.fail["await"] = context.DeadlineExceeded
	got, err := w.set.Attach(t.Context(), api.WorkloadSpec{Name: "idle", Network: "my-network", NetNS: "/proc/6/ns/net"})
	if err != nil || len(got.Warnings) != 1 || !strings.Contains(got.Warnings[0], "balancer") {
		t.Errorf("with a late balancer: %v, warnings %q", err, got.Warnings)
	}
}

func TestAttachRefused(t *testing.T) {
	w := newWorld(t)
	w.regs = []model.Registration{{Instance: model.Instance{ID: "legacy", Service: "billing"}}}
	check := func(c api.Check) func(*api.WorkloadSpec) {
		return func(s *api.WorkloadSpec) { s.Service.Check = &c }
	}
	for name, c := range map[string]struct {
		edit func(*api.WorkloadSpec)
		is   error
		want string
	}{
		"no namespace":       {func(s *api.WorkloadSpec) { s.NetNS = "" }, workload.ErrSpec, "netns is missing"},
		"a service, no name": {func(s *api.WorkloadSpec) { s.Service.Name = "" }, workload.ErrSpec, "no name"},
		"a service, no port": {func(s *api.WorkloadSpec) { s.Service.Port = 0 }, workload.ErrSpec, "which port"},
		"no kind of check":   {check(api.Check{}), workload.ErrSpec, "exactly one of http and tcp"},
		"two kinds of check": {check(api.Check{HTTP: "/", TCP: true}), workload.ErrSpec, "exactly one of http and tcp"},
		"a URL as path":      {check(api.Check{HTTP: "http://x/"}), workload.ErrSpec, "begins with /"},
		"another's service":  {func(s *api.WorkloadSpec) { s.Name = "legacy" }, workload.ErrServiceTaken, `"billing"`},
	} {
		in := spec("web-1", "web")
		c.edit(&in)
		if _, err := w.set.Attach(t.Context(), in); !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %v with %q", name, err, c.is, c.want)
		}
	}
	if did := w.did(); did != "" {
		t.Errorf("done: %s", did)
	}
}

// What fails half way leaves nothing new; what was there before stays.
func TestAttachRollsBack(t *testing.T) {
	w := newWorld(t)
	w.fail["attach"] = errLuck
	if _, err := w.set.Attach(t.Context(), spec("web-1", "web")); !errors.Is(err, errLuck) || w.did() != "attach web-1@my-network" {
		t.Errorf("endpoint refused: %v", err)
	}
	delete(w.fail, "attach")

	w.fail["register"] = errLuck
	ctx, cancel := context.WithCancel(t.Context())
	w.during["register"] = cancel // the caller goes away meanwhile
	if _, err := w.set.Attach(ctx, spec("web-1", "web")); !errors.Is(err, errLuck) || !strings.Contains(err.Error(), "register service web") {
		t.Errorf("registration refused: %v", err)
	}
	if did := w.did(); did != "attach web-1@my-network; register web-1; detach web-1@my-network" {
		t.Errorf("done: %s", did)
	}
	if all, err := w.set.List(); err != nil || len(all) != 0 {
		t.Errorf("left: %+v %v", all, err)
	}

	w.start("web-1", "")
	if _, err := w.set.Attach(t.Context(), spec("web-1", "web")); !errors.Is(err, errLuck) {
		t.Error(err)
	}
	if did := w.did(); did != "attach web-1@my-network; register web-1" {
		t.Errorf("an endpoint from before is not this call's to detach; done: %s", did)
	}
}

// No new connection is sent to a workload that is about to end.
func TestStopInOrder(t *testing.T) {
	w := newWorld(t)
	w.start("web-1", "web")
	w.start("web-2", "web")
	if err := w.set.Stop(t.Context(), "web-1", 3*time.Second); err != nil {
		t.Fatal(err)
	}
	if did := w.did(); did != "deregister web-1; stop web-1 within 3s; detach web-1@my-network; clear web-1" {
		t.Errorf("done: %s", did)
	}
	if err := w.set.Stop(t.Context(), "web-1", 0); !errors.Is(err, workload.ErrNoWorkload) || !strings.Contains(err.Error(), "fairlead ps") {
		t.Errorf("a second stop: %v", err)
	}
	if did := w.did(); did != "" {
		t.Errorf("done: %s", did)
	}
}

func TestStopFails(t *testing.T) {
	for verb, want := range map[string]string{
		"list":       "",
		"deregister": "deregister web-1",
		"stop":       "deregister web-1; stop web-1 within 0s",
		"detach":     "deregister web-1; stop web-1 within 0s; detach web-1@my-network",
		"clear":      "deregister web-1; stop web-1 within 0s; detach web-1@my-network; clear web-1",
	} {
		t.Run(verb, func(t *testing.T) {
			w := newWorld(t)
			w.start("web-1", "web")
			w.fail[verb] = errLuck
			if err := w.set.Stop(t.Context(), "web-1", 0); !errors.Is(err, errLuck) {
				t.Errorf("%v", err)
			}
			if did := w.did(); did != want {
				t.Errorf("done: %s, want %s", did, want)
			}
			delete(w.fail, verb)
			if err := w.set.Stop(t.Context(), "web-1", 0); err != nil {
				t.Errorf("again: %v", err)
			}
			if all, err := w.set.List(); err != nil || len(all) != 0 {
				t.Errorf("left: %+v %v", all, err)
			}
		})
	}
}

// Somebody else may collect an endpoint or a registration at the same moment.
func TestStopMeetsCollection(t *testing.T) {
	w := newWorld(t)
	w.start("web-1", "web")
	e, _ := w.st.Snapshot().Endpoint("web-1@my-network")
	w.during["detach"] = func() { w.apply(state.Change{Endpoint: e, Delete: true}) }
	w.during["deregister"] = func() { w.regs = nil }
	if err := w.set.Stop(t.Context(), "web-1", 0); err != nil {
		t.Error(err)
	}
}

// What ends by itself is cleared away, also after failures.
func TestEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start("web-1", "web")
		w.start("web-2", "web")
		stop := w.run()
		synctest.Wait()
		w.fail["detach"] = errLuck
		w.end("web-1")
		synctest.Wait()
		if did := w.did(); did != "deregister web-1; detach web-1@my-network" {
			t.Errorf("with a failure: %s", did)
		}
		delete(w.fail, "detach")
		w.end("") // as after a second, for what was not cleared away
		synctest.Wait()
		if did := w.did(); did != "detach web-1@my-network; clear web-1" {
			t.Errorf("after it: %s", did)
		}
		if all, err := w.set.List(); err != nil || len(all) != 1 || all[0].Name != "web-2" || all[0].Service != "web" {
			t.Errorf("left: %+v %v", all, err)
		}
		w.fail["list"] = errLuck
		w.end("web-2")
		synctest.Wait()
		delete(w.fail, "list")
		w.end("")
		synctest.Wait()
		if did := w.did(); did != "deregister web-2; detach web-2@my-network; clear web-2" {
			t.Errorf("after processes could not be listed: %s", did)
		}
		stop()
	})
}

// A stop and the loop see the same end; a workload started under the name right
// after it is not the loop's to clear away.
func TestEndedAndReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start("web-1", "web")
		stop := w.run()
		synctest.Wait()
		// As soon as the loop has seen it ended, it is stopped and started anew.
		w.listed = sync.OnceFunc(func() {
			if err := w.set.Stop(t.Context(), "web-1", 0); err != nil {
				t.Error(err)
			}
			w.start("web-1", "web")
		})
		w.end("web-1")
		synctest.Wait()
		if did := w.did(); did != "" {
			t.Errorf("done to the new one: %s", did)
		}
		if all, err := w.set.List(); err != nil || len(all) != 1 || all[0].State != "running" || len(all[0].Endpoints) != 1 {
			t.Errorf("left: %+v %v", all, err)
		}
		stop()
	})
}

// A registration whose endpoint was collected is found and removed; one that was
// not made for a workload stays.
func TestOrphans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.regs = []model.Registration{{Instance: model.Instance{ID: "legacy", Service: "billing"}}}
		w.start("web-1", "web")
		w.start("web-2", "web")
		stop := w.run()
		synctest.Wait()
		e, _ := w.st.Snapshot().Endpoint("web-1@my-network")
		w.apply(state.Change{Endpoint: e, Delete: true})
		synctest.Wait()
		if did := w.did(); did != "deregister web-1" {
			t.Errorf("done: %s", did)
		}
		stop()
	})
}

func TestList(t *testing.T) {
	w := newWorld(t)
	w.start("web-1", "web")
	w.start("db", "")
	w.apply(state.Change{Endpoint: &model.Endpoint{ID: "x", Workload: "elsewhere", Network: "my-network", Node: "n2"}})
	w.apply(state.Change{Endpoint: &model.Endpoint{ID: "web-1@other", Workload: "web-1", Network: "other", Node: node}})
	w.apply(state.Change{Endpoint: &model.Endpoint{ID: "c", Workload: "container", Network: "my-network", Node: node, MAC: "02:00:00:00:00:09"}})
	w.procs["starting"] = &api.Workload{Name: "starting", State: "running"}
	all, err := w.set.List()
	if err != nil {
		t.Fatal(err)
	}
	type line struct {
		name, state, service string
		endpoints            int
	}
	var got []line
	for _, p := range all {
		got = append(got, line{p.Name, p.State, p.Service, len(p.Endpoints)})
		if p.Endpoints == nil {
			t.Errorf("%s: endpoints must be a list in JSON, not null", p.Name)
		}
	}
	want := []line{{"container", "unknown", "", 1}, {"db", "running", "", 1}, {"starting", "running", "", 0}, {"web-1", "running", "web", 2}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if mac := all[0].Endpoints[0].MAC; mac != "02:00:00:00:00:09" {
		t.Errorf("MAC %q", mac)
	}
	w.fail["list"] = errLuck
	if _, err := w.set.List(); !errors.Is(err, errLuck) {
		t.Errorf("%v", err)
	}
}
