package netdrv_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/ipam"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/netdrv"
	"github.com/fairlead-net/fairlead/internal/testlab"
)

// region is three nodes: a and b share a link, c is behind a router.
type region struct {
	t      *testing.T
	nodes  map[string]*world
	addrs  map[string]netip.Addr
	router *testlab.Host
}

func newRegion(t *testing.T) *region {
	t.Helper()
	return newRegionBy(t, "198.51.100.0/24", "203.0.113.0/24")
}

// newRegionBy is a region whose nodes know each other by addresses of the given prefixes.
func newRegionBy(t *testing.T, lanPrefix, farPrefix string) *region {
	t.Helper()
	lab := testlab.New(t)
	r := &region{t: t, nodes: map[string]*world{}, addrs: map[string]netip.Addr{}, router: lab.Host("router")}
	for _, name := range []string{"a", "b", "c"} {
		w := &world{t: t, lab: lab, dir: t.TempDir(), node: lab.Host(name)}
		w.drv = w.driver()
		r.nodes[name] = w
	}
	a, b, c := r.nodes["a"].node, r.nodes["b"].node, r.nodes["c"].node
	lan := lab.Switch(lanPrefix)
	lan.Join(r.router, a, b)
	far := lab.Link(r.router, c, farPrefix)
	lan.DefaultVia(a, r.router)
	lan.DefaultVia(b, r.router)
	far.DefaultVia(c, r.router)
	r.router.Exec("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	r.addrs["a"], r.addrs["b"], r.addrs["c"] = lan.Addr(a), lan.Addr(b), far.Addr(c)
	testlab.Eventually(t, 10*time.Second, func() error {
		_, err := a.Try("ping", "-c1", "-W1", r.addrs["c"].String())
		return err
	})
	return r
}

// overlay is a network of which the nodes have the blocks 10.9.1.0/24, 10.9.2.0/24
// and so on, as seen by one of them.
func (r *region) overlay(name, at string, number int, transport model.Transport, nodes ...string) netdrv.Overlay {
	n := model.Network{
		Name: model.NetworkName(name), Driver: model.DriverOverlay, Transport: transport, VNI: uint32(0x800000 + number), MTU: 1400,
	}
	for _, p := range []string{fmt.Sprintf("10.%d.0.0/16", number), fmt.Sprintf("fd0%d::/64", number)} {
		pool, err := ipam.NewPool(netip.MustParsePrefix(p), netip.Addr{}, nil)
		if err != nil {
			r.t.Fatal(err)
		}
		n.Pools = append(n.Pools, pool)
	}
	o := netdrv.Overlay{Network: n, Node: model.NodeName(at), Addr: r.addrs[at]}
	for _, node := range nodes {
		i := int(node[0]-'a') + 1
		blocks := []netip.Prefix{
			netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/24", number, i)), netip.MustParsePrefix(fmt.Sprintf("fd0%d::%d:0/112", number, i)),
		}
		if node == at {
			o.Blocks = blocks
		} else {
			o.Peers = append(o.Peers, netdrv.Peer{Node: model.NodeName(node), Addr: r.addrs[node], Blocks: blocks})
		}
	}
	return o
}

// member makes a node part of an overlay and attaches an endpoint there.
func (r *region) member(name, at string, number int, transport model.Transport) (netdrv.Overlay, workload) {
	r.t.Helper()
	w, o := r.nodes[at], r.overlay(name, at, number, transport, "a", "b", "c")
	w.must(w.drv.EnsureOverlay(r.t.Context(), o))
	i := int(at[0]-'a') + 1
	e := w.endpoint(fmt.Sprintf("%s-%s", name, at), o.Network, fmt.Sprintf("10.%d.%d.5", number, i), fmt.Sprintf("fd0%d::%d:5", number, i))
	w.attach(e)
	return o, e
}

func TestOverlay(t *testing.T) {
	const v4, v6 = "IPv4", "IPv6"
	for _, tt := range []struct {
		transport model.Transport
		underlay  string
	}{{model.TransportAuto, v4}, {model.TransportVXLAN, v4}, {model.TransportAuto, v6}, {model.TransportVXLAN, v6}} {
		transport := tt.transport
		t.Run(string(transport)+" over "+tt.underlay, func(t *testing.T) {
			t.Parallel()
			r := newRegionBy(t, map[string]string{v4: "198.51.100.0/24", v6: "fd10::/64"}[tt.underlay], map[string]string{v4: "203.0.113.0/24", v6: "fd11::/64"}[tt.underlay])
			members, others := map[string]workload{}, map[string]workload{}
			for at, w := range r.nodes {
				ours, member := r.member("ours", at, 9, transport)
				theirs, other := r.member("theirs", at, 8, transport)
				w.must(w.drv.SetRules(t.Context(), netdrv.Rules{
					Networks: []model.Network{ours.Network, theirs.Network}, Overlays: []netdrv.Overlay{ours, theirs},
				}))
				serve(t, member, ":80")
				serve(t, other, ":80")
				members[at], others[at] = member, other
			}
			var asking sync.WaitGroup
			defer asking.Wait()
			for from, m := range members {
				for to, n := range members {
					if from == to {
						continue
					}
					for i, bracket := range []string{"%s:80", "[%s]:80"} {
						at, as := fmt.Sprintf(bracket, n.ep.Addrs[i]), m.ep.Addrs[i].String()
						expect(t, m, "tcp", at, n.Name()+" "+as)
						expect(t, m, "udp", at, n.Name()+" "+as)
						// The host has an address of its own in its block.
						own := map[bool]string{true: fmt.Sprintf("10.9.%d.1", from[0]-'a'+1), false: fmt.Sprintf("fd09::%d:1", from[0]-'a'+1)}[i == 0]
						expect(t, r.nodes[from].node, "tcp", at, n.Name()+" "+own)
						asking.Go(func() { expect(t, others[from], "tcp", at, "") }) // which takes until it gives up
					}
				}
			}
			routes := r.nodes["a"].node.Exec("ip", "route")
			toB := map[model.Transport]string{model.TransportAuto: "10.9.2.0/24 via " + r.addrs["b"].String(), model.TransportVXLAN: "10.9.2.0/24 via 10.9.2.1 dev flx"}[transport]
			if tt.underlay == v6 {
				toB = "10.9.2.0/24 via 10.9.2.1 dev flx" // a route by IPv6 is for IPv6 alone
				direct := strings.Contains(r.nodes["a"].node.Exec("ip", "-6", "route"), "fd09::2:0/112 via "+r.addrs["b"].String())
				if direct != (transport == model.TransportAuto) {
					t.Errorf("IPv6 goes straight to b: %v", direct)
				}
			}
			if !strings.Contains(routes, toB) || !strings.Contains(routes, "10.9.3.0/24 via 10.9.3.1 dev flx") || !strings.Contains(routes, "unreachable 10.9.0.0/16") {
				t.Errorf("routes:\n%s", routes)
			}
		})
	}
}

// What is asked for again changes nothing; a host that has left is forgotten; and a removed overlay leaves nothing.
func TestOverlayIsIdempotent(t *testing.T) {
	r := newRegion(t)
	w := r.nodes["a"]
	see := func() string {
		out := look(w.node)
		for _, args := range [][]string{{"ip", "route"}, {"ip", "-6", "route"}, {"ip", "neigh", "show", "nud", "permanent"}, {"ip", "-6", "neigh", "show", "nud", "permanent"}} {
			out += w.node.Exec(args...)
		}
		return regexp.MustCompile(`(?m)^anycast .*\n`).ReplaceAllString(out, "") // every router has them
	}
	before := see()
	o := r.overlay("ours", "a", 9, model.TransportAuto, "a", "b", "c")
	w.must(w.drv.EnsureOverlay(t.Context(), o))
	first := see()
	// IPv6 needs the tunnel to b as well, whose address is IPv4.
	if fdb := w.node.Exec("bridge", "fdb", "show", "dev", netdrv.TunnelName("ours")); strings.Count(fdb, "\n") != 2 || !strings.Contains(fdb, "dst "+r.addrs["c"].String()) {
		t.Errorf("hosts behind the tunnel:\n%s", fdb)
	}
	w.must(w.drv.EnsureOverlay(t.Context(), o))
	if again := see(); again != first {
		t.Errorf("changed by the second time:\n%s", diff(first, again))
	}
	fresh := w.driver() // as after a restart
	w.must(fresh.EnsureOverlay(t.Context(), o))
	if again := see(); again != first {
		t.Errorf("changed by another agent:\n%s", diff(first, again))
	}

	o.Peers = slices.DeleteFunc(o.Peers, func(p netdrv.Peer) bool { return p.Node == "c" })
	w.must(fresh.EnsureOverlay(t.Context(), o))
	if now := see() + w.node.Exec("bridge", "fdb", "show", "dev", netdrv.TunnelName("ours")); strings.Contains(now, "10.9.3.") || strings.Contains(now, r.addrs["c"].String()) {
		t.Errorf("c is still known:\n%s", now)
	}
	w.must(fresh.RemoveNetwork(t.Context(), "ours"))
	if now := see(); now != before {
		t.Errorf("left behind:\n%s", diff(before, now))
	}
}

// A transport that does not lead to a host says so, and the others are reached.
func TestDirectNeedsASharedLink(t *testing.T) {
	r := newRegion(t)
	o := r.overlay("ours", "a", 9, model.TransportDirect, "a", "b", "c")
	err := r.nodes["a"].drv.EnsureOverlay(t.Context(), o)
	if !errors.Is(err, netdrv.ErrUnreachable) || !strings.Contains(err.Error(), "node c") {
		t.Errorf("error = %v", err)
	}
	if routes := r.nodes["a"].node.Exec("ip", "route"); !strings.Contains(routes, "10.9.2.0/24 via "+r.addrs["b"].String()) {
		t.Errorf("routes:\n%s", routes)
	}
}

// A neighbour on the underlay can put nothing into an overlay, whatever it claims to be.
func TestStrangersCannotInject(t *testing.T) {
	r := newRegion(t)
	w := r.nodes["a"]
	o, e := r.member("ours", "a", 9, model.TransportVXLAN)
	heard := listenUDP(t, e, ":90")
	// The router is a stranger that knows everything: port, identifier, addresses.
	mac := strings.Fields(w.node.Exec("cat", "/sys/class/net/"+netdrv.TunnelName("ours")+"/address"))[0]
	r.router.Exec("ip", "link", "add", "vx", "type", "vxlan", "id", fmt.Sprint(o.Network.VNI), "dstport", fmt.Sprint(netdrv.TunnelPort), "remote", r.addrs["a"].String())
	r.router.Exec("ip", "addr", "add", "10.9.2.5/32", "dev", "vx") // of b's block
	r.router.Exec("ip", "link", "set", "vx", "up")
	r.router.Exec("ip", "neigh", "add", "10.9.1.1", "lladdr", mac, "dev", "vx")
	r.router.Exec("ip", "route", "add", "10.9.1.0/24", "via", "10.9.1.1", "dev", "vx", "onlink", "src", "10.9.2.5")
	send := func(what string) { sendUDP(t, r.router, "10.9.1.5:90", what) }

	w.node.Exec("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0") // the guard alone is to keep it out
	testlab.Eventually(t, 10*time.Second, func() error {          // the way is right: without rules it gets in
		send("unguarded")
		if !heard("unguarded") {
			return errors.New("nothing got in")
		}
		return nil
	})
	w.must(w.drv.SetRules(t.Context(), netdrv.Rules{Networks: []model.Network{o.Network}, Overlays: []netdrv.Overlay{o}}))
	for range 20 {
		send("stranger")
	}
	// b's own packets are let in, and come after the stranger's.
	_, b := r.member("ours", "b", 9, model.TransportVXLAN)
	testlab.Eventually(t, 10*time.Second, func() error {
		sendUDP(t, b, "10.9.1.5:90", "member")
		if !heard("member") {
			return errors.New("a member was not heard")
		}
		return nil
	})
	if heard("stranger") {
		t.Error("a stranger's packet got in")
	}
}

// listenUDP returns what reports whether a text has come in.
func listenUDP(t *testing.T, at space, addr string) (heard func(text string) bool) {
	t.Helper()
	var pc net.PacketConn
	if err := at.Do(func() (err error) {
		pc, err = net.ListenPacket("udp", addr)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	texts := map[string]bool{}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 100)
		for {
			n, _, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			mu.Lock()
			texts[string(buf[:n])] = true
			mu.Unlock()
		}
	})
	t.Cleanup(func() {
		_ = pc.Close()
		wg.Wait()
	})
	return func(text string) bool {
		mu.Lock()
		defer mu.Unlock()
		return texts[text]
	}
}

func sendUDP(t *testing.T, from space, addr, text string) {
	t.Helper()
	if _, err := dialUDP(t, from, addr).Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}
