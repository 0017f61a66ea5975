package registry_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-net/fairlead/internal/ipam"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/registry"
	"github.com/fairlead-net/fairlead/internal/store"
)

func overlay(name string, prefixes ...string) model.Network {
	n := network(name, prefixes...)
	n.Driver = model.DriverOverlay
	return n
}

func onNode(node model.NodeName, ep model.Endpoint) model.Endpoint {
	ep.Node = node
	return ep
}

// blocks are the blocks of a network as "prefix node".
func (e *env) blocks(n model.NetworkName) string {
	var all []string
	list, _ := e.snap().NetworkBlocks(n)
	for _, b := range list {
		all = append(all, b.Prefix.String()+" "+string(b.Node))
	}
	return strings.Join(all, ", ")
}

func TestCreateOverlay(t *testing.T) {
	e := setup(t)
	e.network(overlay("a", "10.211.0.0/16", "fd00:1::/64"))
	e.network(overlay("b", "10.212.0.0/16"))
	a, _ := e.snap().Network("a")
	b, _ := e.snap().Network("b")
	if a.Node != "" || a.Transport != model.TransportAuto || a.VNI == 0 || a.VNI == b.VNI || a.VNI>>24 != 0 {
		t.Errorf("networks %+v and %+v", a, b)
	}
	elsewhere, transport, bridge := overlay("c", "10.213.0.0/16"), overlay("c", "10.213.0.0/16"), network("c", "10.213.0.0/16")
	elsewhere.Node, transport.Transport, bridge.Transport = "n1", "pigeon", model.TransportVXLAN
	for says, n := range map[string]model.Network{
		"an overlay is on all nodes": elsewhere, `"pigeon" is not known`: transport, "which only an overlay has": bridge,
		"an overlay's pool is /24 or wider": overlay("c", "10.213.0.0/25"),
	} {
		if _, err := e.CreateNetwork(t.Context(), n); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("error = %v, want one that says %q", err, says)
		}
	}
}

// Each node hands out addresses of blocks of its own, and gets another when they
// are used up.
func TestNodesHaveBlocks(t *testing.T) {
	e := setup(t)
	e.network(overlay("a", "10.1.0.0/24"))
	if ep := e.endpoint(onNode("n1", endpoint("e0", "a"))); ep.Addrs[0] != addr("10.1.0.3") {
		t.Errorf("first address %s", ep.Addrs[0])
	}
	if ep := e.endpoint(onNode("n2", endpoint("f0", "a"))); ep.Addrs[0] != addr("10.1.0.18") {
		t.Errorf("first address of another node %s", ep.Addrs[0])
	}
	for i := range 12 { // the first block has room for 12: the network's, the gateway's, the host's and the broadcast address are not given
		e.endpoint(onNode("n1", endpoint(string(rune('a'+i)), "a")))
	}
	if got, want := e.blocks("a"), "10.1.0.0/28 n1, 10.1.0.16/28 n2, 10.1.0.32/28 n1"; got != want {
		t.Errorf("blocks %s, want %s", got, want)
	}
}

func TestWantedAddressesAndBlocks(t *testing.T) {
	e := setup(t)
	e.network(overlay("a", "10.1.0.0/24"))
	ep := e.endpoint(onNode("n1", endpoint("e0", "a")), addr("10.1.0.200"))
	if got, want := e.blocks("a"), "10.1.0.192/28 n1"; ep.Addrs[0] != addr("10.1.0.200") || got != want {
		t.Errorf("%s of %s, want of %s", ep.Addrs[0], got, want)
	}
	for want, is := range map[netip.Addr]error{
		addr("10.1.0.201"): registry.ErrOtherBlock, addr("10.1.0.193"): registry.ErrOtherBlock, addr("10.1.0.1"): ipam.ErrReserved,
		addr("10.1.0.2"): ipam.ErrReserved, addr("10.2.0.2"): ipam.ErrOutside,
	} {
		if _, _, err := e.CreateEndpoint(t.Context(), onNode("n2", endpoint("f0", "a")), []netip.Addr{want}); !errors.Is(err, is) {
			t.Errorf("%s: %v, want %v", want, err, is)
		}
	}
}

// Two nodes that begin at once do not get the same block.
func TestBlocksAtOnce(t *testing.T) {
	e := setup(t)
	e.network(overlay("a", "10.1.0.0/24"))
	other := newRegistry(e.fake, e.st)
	e.before = func() {
		if _, _, err := other.CreateEndpoint(t.Context(), onNode("n2", endpoint("f0", "a")), nil); err != nil {
			t.Error(err)
		}
	}
	e.endpoint(onNode("n1", endpoint("e0", "a")))
	if got, want := e.blocks("a"), "10.1.0.0/28 n2, 10.1.0.16/28 n1"; got != want {
		t.Errorf("blocks %s, want %s", got, want)
	}
}

// A block goes back after the quarantine, unless its node needs it again.
func TestBlocksGoBack(t *testing.T) {
	reaping(t, func(t *testing.T, e *env) {
		e.network(overlay("a", "10.1.0.0/24"))
		remove := func(id string) { e.must(e.DeleteEndpoint(t.Context(), model.EndpointID(id))) }
		wait := func(d time.Duration) { time.Sleep(d); synctest.Wait() }
		e.must(e.RegisterNode(t.Context(), model.Node{Name: "n2", Address: "192.0.2.2", Stamp: model.Stamp{Owner: model.NodeOwner("n2")}}))
		for _, n := range []string{"n1", "n2"} {
			e.endpoint(onNode(model.NodeName(n), endpoint(n, "a")))
		}
		remove("n1")
		remove("n2")
		wait(9 * time.Minute)
		e.endpoint(onNode("n2", endpoint("n2", "a")))
		wait(2 * time.Minute)
		if got, want := e.blocks("a"), "10.1.0.16/28 n2"; got != want {
			t.Errorf("blocks %q, want %q", got, want)
		}
		if _, err := e.DeleteNetwork(t.Context(), "a"); !errors.Is(err, registry.ErrInUse) {
			t.Errorf("delete a network in use: %v", err)
		}
		remove("n2")
		e.must(e.DeleteNetwork(t.Context(), "a"))
		if got := e.blocks("a"); got != "" {
			t.Errorf("blocks of a deleted network: %s", got)
		}
	})
}

// What a node that is no more has left behind goes after the quarantine; a node that
// was only deregistered by mistake keeps it.
func TestEstates(t *testing.T) {
	reaping(t, func(t *testing.T, e *env) {
		e.network(overlay("a", "10.1.0.0/24"))
		node := model.Node{Name: "n2", Address: "192.0.2.2", Stamp: model.Stamp{Owner: model.NodeOwner("n2")}}
		gone := func() {
			if _, err := e.fake.Commit(t.Context(), store.Txn{Deletes: []string{store.NodeKey("n2")}}); err != nil {
				t.Fatal(err)
			}
		}
		e.must(e.RegisterNode(t.Context(), node))
		e.endpoint(onNode("n2", endpoint("f", "a")))
		gone()
		time.Sleep(9 * time.Minute)
		e.must(e.RegisterNode(t.Context(), node))
		time.Sleep(time.Minute)
		gone()
		time.Sleep(9 * time.Minute)
		if ep, _ := e.snap().Endpoint("f"); ep == nil {
			t.Error("the endpoint went too early")
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if ep, _ := e.snap().Endpoint("f"); ep != nil || e.blocks("a") != "10.1.0.0/28 n2" {
			t.Errorf("endpoint %v, blocks %q", ep, e.blocks("a"))
		}
		time.Sleep(11 * time.Minute)
		synctest.Wait()
		if got := e.blocks("a"); got != "" {
			t.Errorf("blocks of nobody: %s", got)
		}
	})
}
