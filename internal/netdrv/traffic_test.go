package netdrv_test

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/netdrv"
	"github.com/fairlead-net/fairlead/internal/testlab"
)

// town is a world with neighbours: outside is on the node's LAN, far is behind
// outside.
type town struct {
	*world
	outside, far *testlab.Host
}

func newTown(t *testing.T) *town {
	w := newWorld(t)
	n := &town{world: w, outside: w.lab.Host("outside"), far: w.lab.Host("far")}
	lan := w.lab.Link(w.node, n.outside, "198.51.100.0/24", "fd10::/64") // node .1, outside .2
	wan := w.lab.Link(n.outside, n.far, "203.0.113.0/24", "fd11::/64")   // outside .1, far .2
	lan.DefaultVia(w.node, n.outside)
	wan.DefaultVia(n.far, n.outside)
	n.outside.Exec("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	for _, addr := range []string{"203.0.113.2", "fd11::2"} { // addresses and neighbours are settled
		testlab.Eventually(t, 10*time.Second, func() error {
			_, err := n.node.Try("ping", "-c1", "-W1", addr)
			return err
		})
	}
	return n
}

func TestTraffic(t *testing.T) {
	n := newTown(t)
	web := n.network("web", "10.1.0.0/24", "fd01::/64")
	db := n.network("db", "10.2.0.0/24", "fd02::/64")
	vault := n.network("vault", "10.3.0.0/24", "fd03::/64")
	vault.Internal = true

	a := n.endpoint("a", web, "10.1.0.2", "fd01::2")
	b := n.endpoint("b", web, "10.1.0.3", "fd01::3")
	c := n.endpoint("c", db, "10.2.0.2", "fd02::2")
	d := n.endpoint("d", vault, "10.3.0.2", "fd03::2")
	a.ep.Ports = []model.PublishedPort{
		{Proto: model.TCP, HostPort: 8080, Port: 80, Expose: model.ExposeAny},
		{Proto: model.UDP, HostPort: 8080, Port: 80, Expose: model.ExposeAny},
		{Proto: model.TCP, HostPort: 8081, Port: 80, Expose: model.ExposeLAN},
		{Proto: model.UDP, HostPort: 8081, Port: 80, Expose: model.ExposeLAN},
		{Proto: model.TCP, HostPort: 8082, Port: 80, Expose: model.ExposeHost},
		{Proto: model.UDP, HostPort: 8082, Port: 80, Expose: model.ExposeHost},
	}
	d.ep.Ports = []model.PublishedPort{{Proto: model.TCP, HostPort: 8083, Port: 80, Expose: model.ExposeAny}}
	for _, e := range []workload{a, b, c, d} {
		n.attach(e)
		serve(t, e, ":80")
	}
	n.must(n.drv.SetRules(t.Context(), netdrv.Rules{
		Networks: []model.Network{web, db, vault}, Endpoints: []model.Endpoint{a.ep, b.ep, c.ep, d.ep},
	}))
	serve(t, n.outside, ":90")
	serve(t, n.far, ":90")

	var asking sync.WaitGroup
	for _, c := range []struct {
		what       string
		from       space
		addr4      string
		addr6      string
		answer     string // server; "" is nobody
		as4, as6   string // the client as the server sees it
		onlyProtos string
	}{
		{"neighbours on one bridge", a, "10.1.0.3:80", "[fd01::3]:80", "b", "10.1.0.2", "fd01::2", ""},
		{"the host to an endpoint", n.node, "10.1.0.3:80", "[fd01::3]:80", "b", "10.1.0.1", "fd01::1", ""},
		{"out by masquerade", a, "198.51.100.2:90", "[fd10::2]:90", "outside", "198.51.100.1", "fd10::1", ""},
		{"further out", a, "203.0.113.2:90", "[fd11::2]:90", "far", "198.51.100.1", "fd10::1", ""},
		{"between networks", a, "10.2.0.2:80", "[fd02::2]:80", "", "", "", ""},
		{"out of an internal network", d, "198.51.100.2:90", "[fd10::2]:90", "", "", "", ""},

		{"any from the LAN", n.outside, "198.51.100.1:8080", "[fd10::1]:8080", "a", "198.51.100.2", "fd10::2", ""},
		{"any from afar", n.far, "198.51.100.1:8080", "[fd10::1]:8080", "a", "203.0.113.2", "fd11::2", ""},
		{"lan from the LAN", n.outside, "198.51.100.1:8081", "[fd10::1]:8081", "a", "198.51.100.2", "fd10::2", ""},
		{"lan from afar", n.far, "198.51.100.1:8081", "[fd10::1]:8081", "", "", "", ""},
		{"host from the LAN", n.outside, "198.51.100.1:8082", "[fd10::1]:8082", "", "", "", ""},
		{"any from the host", n.node, "198.51.100.1:8080", "[fd10::1]:8080", "a", "198.51.100.1", "fd10::1", ""},
		{"host from the host", n.node, "198.51.100.1:8082", "[fd10::1]:8082", "a", "198.51.100.1", "fd10::1", ""},
		{"loopback without a hook", n.node, "127.0.0.1:8080", "[::1]:8080", "", "", "", ""},
		{"an internal network's port", n.outside, "198.51.100.1:8083", "[fd10::1]:8083", "d", "10.3.0.1", "fd03::1", "tcp"},
		{"hairpin within a network", b, "198.51.100.1:8080", "[fd10::1]:8080", "a", "10.1.0.1", "fd01::1", ""},
		{"published to another network", c, "198.51.100.1:8080", "[fd10::1]:8080", "a", "10.2.0.2", "fd02::2", ""},
	} {
		for _, proto := range []string{"tcp", "udp"} {
			if c.onlyProtos != "" && c.onlyProtos != proto {
				continue
			}
			for addr, as := range map[string]string{c.addr4: c.as4, c.addr6: c.as6} {
				want := c.answer
				if want != "" {
					want += " " + as
				}
				asking.Go(func() {
					got, err := ask(c.from, proto, addr)
					if (want == "" && err == nil) || (want != "" && got != want) {
						t.Errorf("%s: %s -> %s %s: %q, %v; want %q", c.what, c.from.Name(), proto, addr, got, err, want)
					}
				})
			}
		}
	}
	asking.Wait()

	t.Run("nobody comes in by route", func(t *testing.T) {
		n.outside.Exec("ip", "route", "add", "10.1.0.0/24", "via", "198.51.100.1")
		n.outside.Exec("ip", "route", "add", "fd01::/64", "via", "fd10::1")
		expect(t, n.outside, "tcp", "10.1.0.2:80", "")
		expect(t, n.outside, "tcp", "[fd01::2]:80", "")
	})
	t.Run("a resolver that is away is waited for", func(t *testing.T) {
		for _, gateway := range []string{"10.1.0.1", "fd01::1"} {
			if _, err := ask(a, "udp", net.JoinHostPort(gateway, "54")); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("nobody at port 54 of %s: %v, want it refused", gateway, err)
			}
			if _, err := ask(a, "udp", net.JoinHostPort(gateway, "53")); !timedOut(err) {
				t.Errorf("nobody at port 53 of %s: %v, want no answer", gateway, err)
			}
		}
	})
	t.Run("VIPs are refused at once", func(t *testing.T) {
		for _, from := range []space{n.node, a, d} {
			for _, addr := range []string{"240.1.2.3:80", "[fd77:1::5]:80"} {
				_, err := ask(from, "tcp", addr)
				if err == nil || timedOut(err) {
					t.Errorf("%s -> VIP %s: %v; want an error at once", from.Name(), addr, err)
				}
				if from.Name() == "a" && !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("%s -> VIP %s: %v; want a reset", from.Name(), addr, err)
				}
			}
		}
		n.outside.Exec("ip", "route", "add", "240.0.0.0/4", "via", "198.51.100.1")
		if _, err := ask(n.outside, "tcp", "240.1.2.3:80"); err == nil || timedOut(err) {
			t.Errorf("outside -> VIP: %v", err)
		}
	})
}

func TestUDPFlowFollowsItsPort(t *testing.T) {
	n := newTown(t)
	web := n.network("web", "10.1.0.0/24")
	a, b := n.endpoint("a", web, "10.1.0.2"), n.endpoint("b", web, "10.1.0.3")
	port := []model.PublishedPort{{Proto: model.UDP, HostPort: 5000, Port: 80, Expose: model.ExposeAny}}
	for _, e := range []workload{a, b} {
		n.attach(e)
		serve(t, e, ":80")
	}
	publish := func(to workload) {
		to.ep.Ports = port
		n.must(n.drv.SetRules(t.Context(), netdrv.Rules{Networks: []model.Network{web}, Endpoints: []model.Endpoint{to.ep}}))
	}
	c := dialUDP(t, n.outside, "198.51.100.1:5000")
	publish(a)
	if got := c.ask(t); !strings.HasPrefix(got, "a ") {
		t.Fatalf("answered by %q", got)
	}
	publish(b)
	if got := c.ask(t); !strings.HasPrefix(got, "b ") {
		t.Fatalf("the same socket is answered by %q after the port moved", got)
	}
}

func TestPlanRefusesPortPublishedTwice(t *testing.T) {
	w := newWorld(t)
	port := []model.PublishedPort{{Proto: model.TCP, HostPort: 80, Port: 80}}
	addr := []netip.Addr{netip.MustParseAddr("10.1.0.2")}
	err := w.drv.SetRules(t.Context(), netdrv.Rules{Endpoints: []model.Endpoint{
		{ID: "x", Addrs: addr, Ports: port}, {ID: "y", Addrs: addr, Ports: port},
	}})
	if !errors.Is(err, netdrv.ErrPortClash) || !strings.Contains(err.Error(), "port 80/tcp by endpoints x and y") {
		t.Errorf("SetRules = %v", err)
	}
	if out := w.node.Exec("nft", "list", "ruleset"); out != "" {
		t.Errorf("a refused SetRules left\n%s", out)
	}
}
