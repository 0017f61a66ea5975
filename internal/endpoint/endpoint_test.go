package endpoint_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/fairlead-net/fairlead/internal/endpoint"
	"github.com/fairlead-net/fairlead/internal/ipam"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/netdrv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// setup starts an agent with the network "web".
func setup(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.start()
	if _, err := w.set.CreateNetwork(t.Context(), model.Network{Name: "web", Pools: []model.Pool{{Prefix: netip.MustParsePrefix("10.1.0.0/24")}}}); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	return w
}

func (w *world) request(workload string) model.Endpoint {
	return model.Endpoint{Workload: model.WorkloadName(workload), Network: "web", NetNS: "/ns/" + workload}
}

// Whatever step of a first attach fails, nothing of it remains, and the next try
// succeeds.
func TestAttachRollsBack(t *testing.T) {
	tests := []struct {
		op string
		failure
	}{
		{op: "Identity"},
		{op: "HoldPort"},
		{op: "HoldPort", failure: failure{skip: 1}},
		{op: "CreateEndpoint"},
		{op: "CreateEndpoint", failure: failure{after: true}}, // written, but nobody said so
		{op: "Attach"},
		{op: "Attach", failure: failure{after: true}},
		{op: "SetEndpoint"},
		{op: "AttachVeth"},
		{op: "SetScope"},
		{op: "SetRules"},
		{op: "SetRules", failure: failure{after: true}},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%s skip=%d after=%t", tt.op, tt.skip, tt.after), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := setup(t)
				w.namespace("/ns/a")
				before := w.dump()
				w.fail(tt.op, tt.failure)
				r := w.request("a")
				r.Ports = []model.PublishedPort{{HostPort: 8080, Port: 80}, {HostPort: 8080, Port: 80, Proto: model.UDP}}
				if _, err := w.set.Attach(t.Context(), r, nil); !errors.Is(err, errTest) || !strings.Contains(err.Error(), "attach a to web") {
					t.Errorf("Attach = %v", err)
				}
				synctest.Wait()
				if now := w.dump(); now != before {
					t.Errorf("after the failure:\n%swant:\n%s", now, before)
				}
				if _, err := w.set.Attach(t.Context(), r, nil); err != nil {
					t.Errorf("second Attach = %v", err)
				}
			})
		})
	}
}

// Whatever fails when an endpoint goes, it is gone in the end.
func TestDetachFinishes(t *testing.T) {
	for _, op := range []string{"DeleteScope", "SetRules", "DeleteEndpoint", "DetachVeth", "Detach"} {
		t.Run(op, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := setup(t)
				before := w.dump()
				w.namespace("/ns/a")
				r := w.request("a")
				r.Ports = []model.PublishedPort{{HostPort: 8080, Port: 80}}
				e, err := w.set.Attach(t.Context(), r, nil)
				if err != nil {
					t.Fatal(err)
				}
				w.fail(op, failure{})
				if err := w.set.Detach(t.Context(), e.ID); !errors.Is(err, errTest) {
					t.Errorf("Detach = %v", err)
				}
				w.kill("/ns/a")
				time.Sleep(time.Minute)
				synctest.Wait()
				if now := w.dump(); now != before {
					t.Errorf("a minute later:\n%swant:\n%s", now, before)
				}
			})
		})
	}
}

// The errors can be told apart.
func TestErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := setup(t)
		for _, n := range []model.Network{{Name: "far", Node: "n2", Driver: "bridge"}, {Name: "odd", Node: "n1", Driver: "pigeon"}} {
			if _, err := (catalog{w}).CreateNetwork(t.Context(), n); err != nil {
				t.Fatal(err)
			}
		}
		if _, _, err := (catalog{w}).CreateEndpoint(t.Context(), model.Endpoint{ID: "far", Workload: "far", Network: "web", Node: "n2"}, nil); err != nil {
			t.Fatal(err)
		}
		w.namespace("/ns/a")
		attach := func(change func(*model.Endpoint), want ...netip.Addr) error {
			r := w.request("a")
			change(&r)
			_, err := w.set.Attach(t.Context(), r, want)
			return err
		}
		var overlap *ipam.OverlapError
		_, err := w.set.CreateNetwork(t.Context(), model.Network{Name: "b", Pools: []model.Pool{{Prefix: netip.MustParsePrefix("10.1.0.0/16")}}})
		if !errors.As(err, &overlap) {
			t.Errorf("CreateNetwork = %v, want an OverlapError", err)
		}
		for _, tt := range []struct{ got, want error }{
			{attach(func(r *model.Endpoint) { r.Workload = "" }), endpoint.ErrName},
			{attach(func(r *model.Endpoint) { r.Aliases = []string{"x y"} }), endpoint.ErrName},
			{attach(func(r *model.Endpoint) { r.Ports = []model.PublishedPort{{Port: 1}} }), endpoint.ErrPort},
			{attach(func(r *model.Endpoint) { r.Network = "none" }), endpoint.ErrNoNetwork},
			{attach(func(r *model.Endpoint) { r.Network = "far" }), endpoint.ErrOtherNode},
			{attach(func(r *model.Endpoint) { r.Network = "odd" }), endpoint.ErrDriver},
			{attach(func(r *model.Endpoint) { r.NetNS = "" }), netdrv.ErrNoNamespace},
			{attach(func(r *model.Endpoint) {}, netip.MustParseAddr("10.1.0.255")), ipam.ErrReserved},
			{w.set.Detach(t.Context(), "none"), endpoint.ErrNoEndpoint},
			{w.set.Detach(t.Context(), "far"), endpoint.ErrNotThisNode},
			{w.set.RemoveNetwork(t.Context(), "far"), endpoint.ErrOtherNode},
			{w.set.RemoveNetwork(t.Context(), "none"), endpoint.ErrNoNetwork},
			{second(w.set.CreateNetwork(t.Context(), model.Network{Name: "b", MTU: 100})), endpoint.ErrBadNetwork},
			{second(w.set.CreateNetwork(t.Context(), model.Network{Name: "b", Driver: "pigeon"})), endpoint.ErrDriver},
			{second(w.set.CreateNetwork(t.Context(), model.Network{Name: "b", Transport: "vxlan"})), endpoint.ErrBadNetwork},
			{second(w.set.CreateNetwork(t.Context(), model.Network{Name: ""})), endpoint.ErrNetworkName},
			{second(w.set.CreateNetwork(t.Context(), model.Network{Name: "service"})), endpoint.ErrNetworkName},
			{second(w.set.CreateNetwork(t.Context(), model.Network{Name: "Node"})), endpoint.ErrNetworkName},
		} {
			if !errors.Is(tt.got, tt.want) {
				t.Errorf("got %v, want %v", tt.got, tt.want)
			}
		}
	})
}

func second[T any](_ T, err error) error { return err }

// Who waits for an endpoint's turn gives up when its own time is over.
func TestAttachWaitsItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := setup(t)
		w.namespace("/ns/a")
		busy, free := make(chan struct{}), make(chan struct{})
		w.onCall("Attach", func() { close(busy); <-free })
		done := make(chan error)
		go func() { _, err := w.set.Attach(t.Context(), w.request("a"), nil); done <- err }()
		<-busy
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := w.set.Attach(ctx, w.request("a"), nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("second Attach = %v", err)
		}
		if err := w.set.Detach(ctx, idOf("web/a")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Detach = %v", err)
		}
		close(free)
		if err := <-done; err != nil {
			t.Errorf("first Attach = %v", err)
		}
	})
}

// Endpoints of their own do not wait for each other.
func TestAttachInParallel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := setup(t)
		const n = 20
		var inside sync.WaitGroup
		inside.Add(n)
		w.onCall("Attach", func() { inside.Done(); inside.Wait() }) // passes when all are there
		var all sync.WaitGroup
		for i := range n {
			name := fmt.Sprint("w", i)
			w.namespace("/ns/" + name)
			all.Go(func() {
				if _, err := w.set.Attach(t.Context(), w.request(name), nil); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		w.onCall("Attach", nil)
		synctest.Wait()
		if endpoints, _ := w.maps.Endpoints(); len(endpoints) != n {
			t.Errorf("%d endpoints in the maps, want %d", len(endpoints), n)
		}
		if p := w.set.Problems(); len(p) > 0 {
			t.Errorf("problems: %v", p)
		}
	})
}

// Attach, Detach and resyncs of the same few endpoints at once leave what the
// catalogue says, and nothing else.
func TestAttachAndDetachAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := setup(t)
		empty := w.dump()
		for i := range 3 {
			w.namespace(fmt.Sprintf("/ns/w%d", i))
		}
		var all sync.WaitGroup
		for i := range 12 {
			name := fmt.Sprint("w", i%3)
			all.Go(func() {
				for range 20 {
					r := w.request(name)
					r.Ports = []model.PublishedPort{{HostPort: uint16(8000 + i%3), Port: 80}}
					if _, err := w.set.Attach(t.Context(), r, nil); err != nil {
						t.Error(err)
						return
					}
					time.Sleep(time.Duration(i) * time.Second)
					if err := w.set.Detach(t.Context(), idOf("web/"+name)); err != nil && !errors.Is(err, endpoint.ErrNoEndpoint) {
						t.Error(err)
						return
					}
				}
			})
		}
		all.Wait()
		time.Sleep(time.Minute)
		synctest.Wait()
		if now := w.dump(); now != empty {
			t.Errorf("in the end:\n%swant:\n%s", now, empty)
		}
	})
}

// An attach does its own work once: the reconciler that sees its record does not
// do it again, nor that of others, and reads no map.
func TestAttachCostsTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := setup(t)
		ops := []string{"Attach", "Identity", "SetEndpoint", "AttachVeth", "SetScope", "Endpoints", "Veths", "Scopes", "EnsureNetwork", "SetRules", "Prune"}
		for i := range 50 {
			name := fmt.Sprint("w", i)
			w.namespace("/ns/" + name)
			for _, op := range ops {
				w.count(op)
			}
			if _, err := w.set.Attach(t.Context(), w.request(name), nil); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			var got []string
			for _, op := range ops {
				if n := w.count(op); n != 0 {
					got = append(got, fmt.Sprintf("%s*%d", op, n))
				}
			}
			if want := []string{"Attach*1", "Identity*1", "SetEndpoint*1", "AttachVeth*1", "SetScope*1"}; !slices.Equal(got, want) {
				t.Fatalf("attach %d: %v, want %v", i, got, want)
			}
		}
	})
}

// Two networks without a subnet of their own get one each, also at once.
func TestCreateNetworksAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := setup(t)
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				if _, err := w.set.CreateNetwork(t.Context(), model.Network{Name: model.NetworkName(fmt.Sprint("n", i))}); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		seen := map[netip.Prefix]bool{}
		networks, _ := w.st.Snapshot().Networks()
		for _, n := range networks {
			for _, p := range n.Pools {
				if seen[p.Prefix] {
					t.Errorf("%s is given twice", p.Prefix)
				}
				seen[p.Prefix] = true
			}
		}
		if len(networks) != 9 {
			t.Errorf("%d networks", len(networks))
		}
	})
}

// Who waits for scopes is woken when they change, and only then.
func TestScopesWake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := setup(t)
		woken := func() bool {
			_, changed := w.set.Scopes()
			return closed(changed)
		}
		_, changed := w.set.Scopes()
		for _, name := range []string{"a", "b"} {
			w.namespace("/ns/" + name)
			if _, err := w.set.Attach(t.Context(), w.request(name), nil); err != nil {
				t.Fatal(err)
			}
			if first := name == "a"; closed(changed) != first {
				t.Errorf("after attaching %s: woken %t", name, !first)
			}
			_, changed = w.set.Scopes()
		}
		if err := w.set.Detach(t.Context(), idOf("web/a")); err != nil || closed(changed) {
			t.Errorf("woken while a workload is left: %v", err)
		}
		if err := w.set.Detach(t.Context(), idOf("web/b")); err != nil || !closed(changed) {
			t.Errorf("not woken when the last one left: %v", err)
		}
		if woken() {
			t.Error("a new channel is closed already")
		}
	})
}

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}
