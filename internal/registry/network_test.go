package registry_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/fairlead-net/fairlead/internal/ipam"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/registry"
)

func mustPrefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func network(name string, prefixes ...string) model.Network {
	n := model.Network{Name: model.NetworkName(name)}
	for _, p := range prefixes {
		n.Pools = append(n.Pools, model.Pool{Prefix: mustPrefix(p)})
	}
	return n
}

func endpoint(id, network string) model.Endpoint {
	return model.Endpoint{ID: model.EndpointID(id), Workload: model.WorkloadName("w-" + id), Network: model.NetworkName(network)}
}

func (e *env) network(n model.Network) {
	e.t.Helper()
	e.must(e.CreateNetwork(e.t.Context(), n))
}

func (e *env) endpoint(ep model.Endpoint, want ...netip.Addr) model.Endpoint {
	e.t.Helper()
	got, index, err := e.CreateEndpoint(e.t.Context(), ep, want)
	e.must(index, err)
	return got
}

func TestCreateNetwork(t *testing.T) {
	e := setup(t)
	e.network(network("a", "10.1.0.0/24", "fd00:1::/64"))
	n, _ := e.snap().Network("a")
	if n.Driver != model.DriverBridge || n.Node != "n1" || n.Owner != model.OwnerOperator || n.Pools[0].Gateway != addr("10.1.0.1") {
		t.Errorf("network = %+v", n)
	}
	var overlap *ipam.OverlapError
	tests := []struct {
		name string
		n    model.Network
		is   func(error) bool
		says string
	}{
		{"exists", network("a", "10.2.0.0/24"), is(registry.ErrExists), "exists already"},
		{"overlaps another", network("b", "10.1.0.128/25"), func(err error) bool { return errors.As(err, &overlap) }, `network "a"`},
		{"overlaps the VIPs", network("b", "250.0.0.0/24"), func(err error) bool { return errors.As(err, &overlap) }, "virtual addresses"},
		{"no pool", network("b"), is(registry.ErrInvalid), "give at least one prefix"},
		{"two of one family", network("b", "10.2.0.0/24", "10.3.0.0/24"), is(registry.ErrInvalid), "one family"},
		{"host bits", network("b", "10.2.0.7/24"), is(ipam.ErrBadPrefix), "did you mean"},
		{"name", network("b c", "10.2.0.0/24"), is(registry.ErrInvalid), "cannot be a DNS name"},
		{"driver", model.Network{Name: "b", Driver: "pigeon", Pools: network("", "10.2.0.0/24").Pools}, is(registry.ErrInvalid), `use "bridge"`},
		{"MTU", model.Network{Name: "b", MTU: 1000, Pools: network("", "fd00:2::/64").Pools}, is(registry.ErrInvalid), "from 1280"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e.unwritten(func() {
				_, err := e.CreateNetwork(t.Context(), tt.n)
				if !tt.is(err) || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("error = %v, want one that says %q", err, tt.says)
				}
			})
		})
	}
}

func is(target error) func(error) bool {
	return func(err error) bool { return errors.Is(err, target) }
}

func TestOverlappingNetworksAtOnce(t *testing.T) {
	e := setup(t)
	other := newRegistry(e.fake, e.st)
	e.before = func() {
		if _, err := other.CreateNetwork(t.Context(), network("b", "10.1.0.0/16")); err != nil {
			t.Error(err)
		}
	}
	var overlap *ipam.OverlapError
	if _, err := e.CreateNetwork(t.Context(), network("a", "10.1.1.0/24")); !errors.As(err, &overlap) {
		t.Errorf("error = %v, want an overlap with b", err)
	}
}

func TestDeleteNetwork(t *testing.T) {
	e := setup(t)
	e.network(network("a", "10.1.0.0/24"))
	for i := range 7 {
		e.endpoint(endpoint(fmt.Sprint("e", i), "a"))
	}
	e.unwritten(func() {
		_, err := e.DeleteNetwork(t.Context(), "a")
		if !errors.Is(err, registry.ErrInUse) || !strings.Contains(err.Error(), `"w-e0" on node "n1"`) || !strings.Contains(err.Error(), "2 more") {
			t.Errorf("error = %v, want ErrInUse naming the endpoints", err)
		}
		if _, err := e.DeleteNetwork(t.Context(), "nope"); !errors.Is(err, registry.ErrUnknownNetwork) {
			t.Errorf("error = %v, want ErrUnknownNetwork", err)
		}
	})
	for i := range 7 {
		e.must(e.DeleteEndpoint(t.Context(), model.EndpointID(fmt.Sprint("e", i))))
	}
	e.before = func() { e.endpoint(endpoint("late", "a")) }
	if _, err := e.DeleteNetwork(t.Context(), "a"); !errors.Is(err, registry.ErrInUse) {
		t.Errorf("error = %v, want ErrInUse by the endpoint that came meanwhile", err)
	}
	e.must(e.DeleteEndpoint(t.Context(), "late"))
	e.must(e.DeleteNetwork(t.Context(), "a"))
	if list, _ := e.snap().Networks(); len(list) != 0 {
		t.Errorf("networks = %v", list)
	}
}

func TestCreateEndpoint(t *testing.T) {
	e := setup(t)
	e.network(network("a", "10.1.0.0/29", "fd00:1::/64"))
	first := e.endpoint(endpoint("e1", "a"))
	if !slices.Equal(first.Addrs, []netip.Addr{addr("10.1.0.2"), addr("fd00:1::2")}) || first.Owner != "node/n1" || first.CreateIndex == 0 {
		t.Fatalf("endpoint = %+v", first)
	}
	leases, _ := e.snap().Leases("a")
	if len(leases) != 2 || leases[0].Endpoint != "e1" || leases[0].Owner != "node/n1" {
		t.Errorf("leases = %+v", leases)
	}
	e.unwritten(func() {
		if again := e.endpoint(endpoint("e1", "a"), addr("10.1.0.2")); !slices.Equal(again.Addrs, first.Addrs) {
			t.Errorf("again: %+v", again)
		}
	})

	wanted := e.endpoint(endpoint("e2", "a"), addr("fd00:1::77"))
	if !slices.Equal(wanted.Addrs, []netip.Addr{addr("10.1.0.3"), addr("fd00:1::77")}) {
		t.Errorf("addresses = %v", wanted.Addrs)
	}

	published := endpoint("e3", "a")
	published.Ports = []model.PublishedPort{{Proto: model.TCP, HostPort: 8080, Port: 80, Expose: model.ExposeHost}}
	e.endpoint(published)

	with := func(change func(*model.Endpoint)) model.Endpoint {
		ep := endpoint("new", "a")
		change(&ep)
		return ep
	}
	tests := []struct {
		name string
		ep   model.Endpoint
		want []netip.Addr
		is   error
		says string
	}{
		{"unknown network", endpoint("new", "nope"), nil, registry.ErrUnknownNetwork, "create it first"},
		{"name taken", with(func(ep *model.Endpoint) { ep.Workload = "W-E1" }), nil, registry.ErrNameTaken, `"w-e1" on node "n1"`},
		{"id taken", with(func(ep *model.Endpoint) { ep.ID = "e1" }), nil, registry.ErrExists, "e1"},
		{"other addresses", endpoint("e1", "a"), []netip.Addr{addr("10.1.0.6")}, registry.ErrExists, "10.1.0.2"},
		{"address taken", endpoint("new", "a"), []netip.Addr{addr("10.1.0.2")}, ipam.ErrTaken, "10.1.0.2"},
		{"address outside", endpoint("new", "a"), []netip.Addr{addr("10.9.0.2")}, ipam.ErrOutside, "10.1.0.0/29"},
		{"two of one family", endpoint("new", "a"), []netip.Addr{addr("10.1.0.5"), addr("10.1.0.6")}, registry.ErrInvalid, "10.1.0.6"},
		{"port taken", with(func(ep *model.Endpoint) { ep.Ports = published.Ports }), nil, registry.ErrPortTaken, `"w-e3"`},
		{"port zero", with(func(ep *model.Endpoint) {
			ep.Ports = []model.PublishedPort{{Proto: model.TCP, Port: 80, Expose: model.ExposeHost}}
		}), nil, registry.ErrInvalid, "0:80"},
		{"alias", with(func(ep *model.Endpoint) { ep.Aliases = []string{"-x"} }), nil, registry.ErrInvalid, "alias"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e.unwritten(func() {
				_, _, err := e.CreateEndpoint(t.Context(), tt.ep, tt.want)
				if !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("error = %v, want %v that says %q", err, tt.is, tt.says)
				}
			})
		})
	}
}

func TestEndpointsUntilThePoolIsEmpty(t *testing.T) {
	e := setup(t)
	e.network(network("a", "10.1.0.0/24"))
	// All at once, as an orchestrator would; more than there is room for.
	const asked, room = 260, 253
	var (
		mu        sync.Mutex
		addrs     = map[netip.Addr]model.EndpointID{}
		exhausted int
		wg        sync.WaitGroup
	)
	for i := range asked {
		wg.Go(func() {
			got, _, err := e.CreateEndpoint(t.Context(), endpoint(fmt.Sprint("e", i), "a"), nil)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, ipam.ErrExhausted):
				exhausted++
			case err != nil:
				t.Error(err)
			default:
				if other, twice := addrs[got.Addrs[0]]; twice {
					t.Errorf("%s given to %s and %s", got.Addrs[0], got.ID, other)
				}
				addrs[got.Addrs[0]] = got.ID
			}
		})
	}
	wg.Wait()
	if len(addrs) != room || exhausted != asked-room {
		t.Errorf("%d addresses given, %d times exhausted; want %d and %d", len(addrs), exhausted, room, asked-room)
	}
	// A freed address is the next one given.
	freed := addr("10.1.0.77")
	e.must(e.DeleteEndpoint(t.Context(), addrs[freed]))
	e.unwritten(func() { e.must(e.DeleteEndpoint(t.Context(), addrs[freed])) })
	if got := e.endpoint(endpoint("late", "a")); got.Addrs[0] != freed {
		t.Errorf("address = %s, want %s", got.Addrs[0], freed)
	}
}

// Another server has the queue of its own, so the compares have to do.
func TestTwoServersLeaseTheSameAddress(t *testing.T) {
	e := setup(t)
	e.network(network("a", "10.1.0.0/24"))
	other := newRegistry(e.fake, e.st)
	e.before = func() {
		if _, _, err := other.CreateEndpoint(t.Context(), endpoint("theirs", "a"), nil); err != nil {
			t.Error(err)
		}
	}
	ours := e.endpoint(endpoint("ours", "a"))
	theirs, _ := e.snap().Endpoint("theirs")
	if ours.Addrs[0] == theirs.Addrs[0] {
		t.Errorf("both have %s", ours.Addrs[0])
	}
}

func TestUpdateEndpoint(t *testing.T) {
	e := setup(t)
	e.network(network("a", "10.1.0.0/24"))
	ep := e.endpoint(endpoint("e1", "a"))
	ep.HostIf, ep.Aliases = "flv1", []string{"db"}
	e.must(e.UpdateEndpoint(t.Context(), ep))
	if got := e.snap().EndpointsByName("a", "DB"); len(got) != 1 || got[0].HostIf != "flv1" {
		t.Errorf("by alias: %v", got)
	}
	e.unwritten(func() {
		e.must(e.UpdateEndpoint(t.Context(), ep))
		moved := ep.Clone()
		moved.Addrs[0] = addr("10.1.0.9")
		if _, err := e.UpdateEndpoint(t.Context(), moved); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("moved: %v", err)
		}
		unknown := endpoint("nope", "a")
		unknown.Node = "n1"
		if _, err := e.UpdateEndpoint(t.Context(), unknown); !errors.Is(err, registry.ErrUnknownEndpoint) {
			t.Errorf("unknown: %v", err)
		}
	})
}
