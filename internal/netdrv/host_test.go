package netdrv_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/ipam"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/netdrv"
	"github.com/fairlead-net/fairlead/internal/testlab"
)

// look is everything `ip` shows of a namespace, without the parts that time
// changes.
func look(n interface{ Exec(args ...string) string }) string {
	timers := regexp.MustCompile(`\w+_timer +\S+`)
	return timers.ReplaceAllString(n.Exec("ip", "-d", "addr")+n.Exec("ip", "route", "show", "table", "all")+n.Exec("ip", "-6", "route", "show", "table", "all"), "")
}

// settled waits until the kernel shows the carrier of every link, which it does
// up to a second after it has one.
func settled(t *testing.T, all ...interface{ Exec(args ...string) string }) {
	t.Helper()
	testlab.Eventually(t, 5*time.Second, func() error {
		for _, n := range all {
			if out := n.Exec("ip", "addr") + n.Exec("ip", "route"); strings.Contains(out, "NO-CARRIER") || strings.Contains(out, "linkdown") || strings.Contains(out, "state DOWN") {
				return errors.New(out)
			}
		}
		return nil
	})
}

// diff is the lines that only one of the texts has.
func diff(before, now string) string {
	var out []string
	a, b := strings.Split(before, "\n"), strings.Split(now, "\n")
	for _, l := range a {
		if !slices.Contains(b, l) {
			out = append(out, "- "+l)
		}
	}
	for _, l := range b {
		if !slices.Contains(a, l) {
			out = append(out, "+ "+l)
		}
	}
	return strings.Join(out, "\n")
}

func TestAttachIsIdempotent(t *testing.T) {
	w := newWorld(t)
	web := w.network("web", "10.1.0.0/24", "fd01::/64")
	a := w.endpoint("a", web, "10.1.0.2", "fd01::2")
	first := w.attach(a)
	if first.IfName != "eth0" || first.MAC != "02:f1:0a:01:00:02" || first.HostIf != netdrv.HostIf(a.ep.ID) || first.Cookie != a.Cookie() {
		t.Errorf("Attach = %+v, cookie of the namespace %d", first, a.Cookie())
	}
	settled(t, a, w.node)
	inside, outside := look(a), look(w.node)
	for _, fact := range []string{"inet 10.1.0.2/24", "inet6 fd01::2/64", "default via 10.1.0.1 dev eth0", "default via fd01::1 dev eth0", "link/ether 02:f1:0a:01:00:02"} {
		if !strings.Contains(inside, fact) {
			t.Errorf("the namespace lacks %q:\n%s", fact, inside)
		}
	}
	w.network("web", "10.1.0.0/24", "fd01::/64")
	if again := w.attach(a); again != first {
		t.Errorf("second Attach = %+v, first %+v", again, first)
	}
	w.drv = w.driver() // an agent that starts again
	w.network("web", "10.1.0.0/24", "fd01::/64")
	if again := w.attach(a); again != first {
		t.Errorf("Attach by a new agent = %+v, first %+v", again, first)
	}
	if now := look(a); now != inside {
		t.Errorf("the namespace changed:\n%s", diff(inside, now))
	}
	if now := look(w.node); now != outside {
		t.Errorf("the host changed:\n%s", diff(outside, now))
	}
}

func TestAttachCompletes(t *testing.T) {
	w := newWorld(t)
	web := w.network("web", "10.1.0.0/24", "fd01::/64")
	a := w.endpoint("a", web, "10.1.0.2", "fd01::2")
	p := w.attach(a)
	look := func() string {
		return a.Exec("ip", "-br", "addr") + a.Exec("ip", "-br", "link") + a.Exec("ip", "route") + a.Exec("ip", "-6", "route")
	}
	settled(t, a, w.node)
	inside := look()
	for _, damage := range [][]string{
		{"ip", "addr", "del", "10.1.0.2/24", "dev", "eth0"},
		{"ip", "addr", "flush", "dev", "eth0"},
		{"ip", "route", "del", "default"},
		{"ip", "-6", "route", "del", "default"},
		{"ip", "link", "set", "eth0", "down"},
		{"ip", "link", "set", "eth0", "address", "02:00:00:00:00:01"},
		{"ip", "link", "set", "eth0", "mtu", "1300"},
	} {
		a.Exec(damage...)
		if again := w.attach(a); again != p {
			t.Errorf("after %q: Attach = %+v, first %+v", damage, again, p)
		}
		testlab.Eventually(t, 3*time.Second, func() error {
			if now := look(); now != inside {
				return fmt.Errorf("after %q:\n%s\nwant\n%s", damage, now, inside)
			}
			return nil
		})
	}
	for _, damage := range [][]string{
		{"ip", "link", "set", p.HostIf, "nomaster"},
		{"ip", "link", "set", p.HostIf, "down"},
	} {
		w.node.Exec(damage...)
		w.attach(a)
		testlab.Eventually(t, 5*time.Second, func() error { // the kernel takes up to 1 s to see the carrier
			_, err := a.Try("ping", "-c1", "-W1", "10.1.0.1")
			return err
		})
	}
}

func TestStaleLinkIsReplaced(t *testing.T) {
	w := newWorld(t)
	web := w.network("web", "10.1.0.0/24")
	a := w.endpoint("a", web, "10.1.0.2")
	old := w.attach(a)
	b := w.endpoint("b", web, "10.1.0.2")
	b.ep.ID = a.ep.ID // the same endpoint in a new namespace
	p := w.attach(b)
	if p.HostIfIndex == old.HostIfIndex || p.Cookie != b.Cookie() {
		t.Errorf("Attach = %+v, before %+v", p, old)
	}
	if out := a.Exec("ip", "-br", "link"); strings.Contains(out, "eth0") {
		t.Errorf("the old namespace still has\n%s", out)
	}
	if _, err := b.Try("ping", "-c1", "-W2", "10.1.0.1"); err != nil {
		t.Errorf("gateway from the new namespace: %v", err)
	}
	// A pair of that name with both ends on the host.
	w.must(w.drv.Detach(t.Context(), b.ep))
	testlab.Eventually(t, 3*time.Second, func() error {
		_, err := w.node.Try("ip", "link", "add", p.HostIf, "type", "veth", "peer", "name", "fl-left")
		return err
	})
	w.attach(b)
	if _, err := b.Try("ping", "-c1", "-W2", "10.1.0.1"); err != nil {
		t.Errorf("gateway: %v", err)
	}
}

func TestSeveralNetworksOfOneWorkload(t *testing.T) {
	w := newWorld(t)
	web, db := w.network("web", "10.1.0.0/24"), w.network("db", "10.2.0.0/24")
	a := w.endpoint("a", web, "10.1.0.2")
	b := a
	b.net, b.ep = db, a.ep.Clone()
	b.ep.ID, b.ep.Network, b.ep.Addrs = "a-db", "db", []netip.Addr{netip.MustParseAddr("10.2.0.2")}
	for range 2 {
		if one, two := w.attach(a), w.attach(b); one.IfName != "eth0" || two.IfName != "eth1" {
			t.Errorf("interfaces %s and %s", one.IfName, two.IfName)
		}
	}
	if out := a.Exec("ip", "route", "show", "default"); strings.TrimSpace(out) != "default via 10.1.0.1 dev eth0" {
		t.Errorf("default routes:\n%s", out)
	}
}

func TestAttachRefuses(t *testing.T) {
	w := newWorld(t)
	web := w.network("web", "10.1.0.0/24")
	file := filepath.Join(t.TempDir(), "file")
	w.must(os.WriteFile(file, nil, 0o600))
	mnt := "/proc/self/ns/mnt"
	before := look(w.node)
	for _, c := range []struct {
		netns, network string
		err            error
	}{
		{"/no/such", "web", netdrv.ErrNoNamespace},
		{"", "web", netdrv.ErrNoNamespace},
		{file, "web", netdrv.ErrNotNamespace},
		{mnt, "web", netdrv.ErrNotNamespace},
		{w.node.NetNSPath(), "web", netdrv.ErrHostNamespace},
		{w.endpoint("x", web).NetNSPath(), "other", netdrv.ErrNoNetwork},
	} {
		e := model.Endpoint{ID: "e", Network: model.NetworkName(c.network), NetNS: c.netns}
		n := web
		n.Name = e.Network
		_, err := w.drv.Attach(t.Context(), netdrv.Plug{Network: n, Endpoint: e})
		if !errors.Is(err, c.err) || !strings.Contains(err.Error(), "attach endpoint e to network "+c.network) {
			t.Errorf("Attach with namespace %q and network %s = %v; want %v", c.netns, c.network, err, c.err)
		}
	}
	if now := look(w.node); now != before {
		t.Errorf("the host changed:\n%s", diff(before, now))
	}
}

func TestDetachAnswersAtOnceAndAttachWaits(t *testing.T) {
	w := newWorld(t)
	web := w.network("web", "10.1.0.0/24")
	a := w.endpoint("a", web, "10.1.0.2")
	old := w.attach(a)
	w.must(w.drv.Detach(t.Context(), a.ep))
	w.must(w.drv.Detach(t.Context(), a.ep))
	p := w.attach(a)
	if p.HostIfIndex == old.HostIfIndex || p.IfName != "eth0" {
		t.Errorf("Attach after Detach = %+v, before %+v", p, old)
	}
	if _, err := a.Try("ping", "-c1", "-W2", "10.1.0.1"); err != nil {
		t.Error(err)
	}
	w.must(w.drv.Detach(t.Context(), a.ep))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.drv.Attach(ended, netdrv.Plug{Network: web, Endpoint: a.ep}); !errors.Is(err, context.Canceled) {
		t.Errorf("Attach with an ended context = %v", err)
	}
	w.must(w.drv.RemoveNetwork(t.Context(), "web"))
	w.must(w.drv.RemoveNetwork(t.Context(), "web"))
	testlab.Eventually(t, 3*time.Second, func() error {
		if out := w.node.Exec("ip", "-br", "link"); strings.Contains(out, "fl") {
			return fmt.Errorf("left:\n%s", out)
		}
		return nil
	})
}

func TestAttachTiming(t *testing.T) {
	w := newWorld(t)
	web := w.network("web", "10.1.0.0/24", "fd01::/64")
	var attach, detach []time.Duration
	var all []workload
	for i := range 50 {
		all = append(all, w.endpoint(fmt.Sprintf("e%d", i), web, fmt.Sprintf("10.1.0.%d", i+2), fmt.Sprintf("fd01::%x", i+2)))
	}
	for i, e := range all {
		start := time.Now()
		w.attach(e)
		attach = append(attach, time.Since(start))
		if i%10 == 0 { // it works at once
			e.Exec("ping", "-c1", "-W1", "10.1.0.1")
			e.Exec("ping", "-c1", "-W1", "fd01::1")
		}
	}
	for _, e := range all {
		start := time.Now()
		w.must(w.drv.Detach(t.Context(), e.ep))
		detach = append(detach, time.Since(start))
	}
	testlab.Eventually(t, 3*time.Second, func() error {
		if out := w.node.Exec("ip", "-br", "link"); strings.Contains(out, "flv") {
			return fmt.Errorf("left:\n%s", out)
		}
		return nil
	})
	slices.Sort(attach)
	slices.Sort(detach)
	t.Logf("attach p50 %v p90 %v max %v; detach p50 %v max %v", attach[25], attach[45], attach[49], detach[25], detach[49])
	if attach[25] > 50*time.Millisecond {
		t.Errorf("attach takes %v", attach[25])
	}
}

func TestEnsureNetworkRepairsAndChanges(t *testing.T) {
	w := newWorld(t)
	n := w.network("web", "10.1.0.0/24", "fd01::/64")
	br := netdrv.BridgeName("web")
	before := w.node.Exec("ip", "-d", "addr", "show", br)
	if !strings.Contains(before, "fairlead network web") || !strings.Contains(before, "inet6 fe80::1/64") {
		t.Errorf("bridge:\n%s", before)
	}
	w.node.Exec("ip", "addr", "flush", "dev", br)
	w.node.Exec("ip", "link", "set", br, "mtu", "1300", "down")
	n.MTU = 1400
	n.Pools = n.Pools[:1]
	n.Pools[0].Gateway = netip.MustParseAddr("10.1.0.254")
	w.must(w.drv.EnsureNetwork(t.Context(), n))
	now := w.node.Exec("ip", "-d", "addr", "show", br)
	if !strings.Contains(now, "mtu 1400") || !strings.Contains(now, "inet 10.1.0.254/24") || strings.Contains(now, "10.1.0.1/24") || strings.Contains(now, "fd01::1") {
		t.Errorf("bridge after the change:\n%s", now)
	}
}

func TestEnsureNetworkRefuses(t *testing.T) {
	w := newWorld(t)
	w.node.Exec("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
	w.node.Exec("ip", "link", "add", netdrv.BridgeName("clash"), "type", "veth", "peer", "name", "fl-peer")
	t.Cleanup(func() { w.node.Exec("ip", "link", "del", "fl-peer") })
	pool6, err := ipam.NewPool(netip.MustParsePrefix("fd01::/64"), netip.Addr{}, nil)
	w.must(err)
	if err := w.drv.EnsureNetwork(t.Context(), model.Network{Name: "six", Pools: []model.Pool{pool6}}); !errors.Is(err, netdrv.ErrNoIPv6) {
		t.Errorf("IPv6 network on a host without IPv6: %v", err)
	}
	if err := w.drv.EnsureNetwork(t.Context(), model.Network{Name: "clash"}); !errors.Is(err, netdrv.ErrNameClash) {
		t.Errorf("a foreign link of the bridge's name: %v", err)
	}
	if err := w.drv.RemoveNetwork(t.Context(), "clash"); !errors.Is(err, netdrv.ErrNameClash) {
		t.Errorf("removing it: %v", err)
	}
}

func TestClaims(t *testing.T) {
	w := newWorld(t)
	lan := w.lab.Switch("198.51.100.0/24", "fd10::/64")
	lan.Join(w.node)
	w.network("web", "10.1.0.0/24", "fd01::/64")
	w.must(w.drv.SetRules(t.Context(), netdrv.Rules{}))
	w.node.Exec("ip", "route", "add", "default", "via", "198.51.100.2")
	w.node.Exec("ip", "route", "add", "10.64.0.0/10", "via", "198.51.100.2")
	w.node.Exec("ip", "route", "add", "10.9.0.0/16", "dev", "eth0", "table", "52")
	w.node.Exec("ip", "route", "add", "blackhole", "172.16.0.0/12")
	got, err := w.drv.Claims(t.Context())
	w.must(err)
	var facts []string
	for _, c := range got {
		facts = append(facts, fmt.Sprintf("%s: %s", c.Prefix, c.Who))
	}
	slices.Sort(facts)
	want := []string{
		"10.64.0.0/10: route 10.64.0.0/10 via 198.51.100.2 dev eth0",
		"10.9.0.0/16: route 10.9.0.0/16 dev eth0 table 52",
		"172.16.0.0/12: route blackhole 172.16.0.0/12",
		"198.51.100.0/24: address 198.51.100.1/24 on eth0",
		"fd10::/64: address fd10::1/64 on eth0",
	}
	if !slices.Equal(facts, want) {
		t.Errorf("claims\n%s\nwant\n%s", strings.Join(facts, "\n"), strings.Join(want, "\n"))
	}
	if err := ipam.CheckOverlap(netip.MustParsePrefix("10.100.0.0/24"), got); err == nil || !strings.Contains(err.Error(), "route 10.64.0.0/10 via 198.51.100.2") {
		t.Errorf("overlap: %v", err)
	}
}

// A pool of virtual addresses that holds addresses of others would cut the host off from them.
func TestCheckPools(t *testing.T) {
	w := newWorld(t)
	w.lab.Switch("198.51.100.0/24", "fd10::/64").Join(w.node)
	w.network("web", "10.1.0.0/24")
	w.must(w.drv.SetRules(t.Context(), netdrv.Rules{})) // with the routes of the default pools
	w.node.Exec("ip", "route", "add", "default", "via", "198.51.100.2")
	w.node.Exec("ip", "route", "add", "0.0.0.0/1", "via", "198.51.100.2")
	w.node.Exec("ip", "route", "add", "255.255.255.255/32", "dev", "eth0")
	w.node.Exec("ip", "route", "add", "250.1.0.0/16", "via", "198.51.100.2", "table", "52")
	for _, c := range []struct{ pool, want string }{
		{"240.0.0.0/6", ""},
		{"254.0.0.0/7", ""},
		{"203.0.113.0/24", ""},
		{"fd77:1::/64", ""},
		{"240.0.0.0/4", "virtual addresses: 240.0.0.0/4 overlaps 250.1.0.0/16 of route 250.1.0.0/16 via 198.51.100.2 dev eth0 table 52"},
		{"198.51.100.128/25", "198.51.100.0/24 of address 198.51.100.1/24 on eth0"},
		{"198.0.0.0/8", "198.51.100.0/24 of address 198.51.100.1/24 on eth0"},
		{"10.0.0.0/8", "10.1.0.0/24 of address 10.1.0.1/24 on fl-"},
		{"127.1.0.0/16", "127.0.0.0/8 of loopback"},
		{"224.0.0.0/6", "224.0.0.0/4 of multicast"},
		{"fd10::/64", "fd10::/64 of address fd10::1/64 on eth0"},
		{"fe80::/64", "fe80::/10 of link-local addresses"},
	} {
		var drv *netdrv.Host
		w.must(w.node.Do(func() (err error) {
			drv, err = netdrv.New(netdrv.Config{VIPPools: []netip.Prefix{netip.MustParsePrefix(c.pool)}})
			return err
		}))
		err := drv.CheckPools()
		var overlap *ipam.OverlapError
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.pool, err)
		case c.want != "" && (!errors.As(err, &overlap) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", c.pool, err, c.want)
		}
		w.must(drv.Close())
	}
}

func TestHoldPort(t *testing.T) {
	w := newWorld(t)
	serve(t, w.node, "127.0.0.1:8080")
	for _, proto := range []model.Protocol{model.TCP, model.UDP} {
		if _, err := w.drv.HoldPort(proto, 8080); !errors.Is(err, netdrv.ErrPortTaken) || !strings.HasPrefix(err.Error(), fmt.Sprintf("port 8080/%s is already in use on this host", proto)) {
			t.Errorf("a taken port: %v", err)
		}
		held, err := w.drv.HoldPort(proto, 9090)
		w.must(err)
		if _, err := w.drv.HoldPort(proto, 9090); !errors.Is(err, netdrv.ErrPortTaken) {
			t.Errorf("a port held already: %v", err)
		}
		if _, err := w.driver().HoldPort(proto, 9090); !errors.Is(err, netdrv.ErrPortTaken) {
			t.Errorf("a port held by another agent: %v", err)
		}
		if _, err := ask(w.node, string(proto), "127.0.0.1:9090"); err == nil {
			t.Errorf("a held %s port answers", proto)
		}
		w.must(held.Close())
		w.must(held.Close())
		again, err := w.drv.HoldPort(proto, 9090)
		w.must(err)
		w.must(again.Close())
	}
	// A server that has just ended leaves connections behind, not a listener.
	var l net.Listener
	w.must(w.node.Do(func() (err error) {
		if l, err = net.Listen("tcp", "127.0.0.1:7070"); err != nil {
			return err
		}
		client, err := net.Dial("tcp", "127.0.0.1:7070")
		if err != nil {
			return err
		}
		server, err := l.Accept()
		if err != nil {
			return err
		}
		return errors.Join(server.Close(), client.Close(), l.Close())
	}))
	if out := w.node.Exec("ss", "-tan"); !strings.Contains(out, "TIME-WAIT") {
		t.Errorf("no connection lingers:\n%s", out)
	}
	held, err := w.drv.HoldPort(model.TCP, 7070)
	w.must(err)
	w.must(held.Close())
	if _, err := w.drv.HoldPort("sctp", 9); err == nil {
		t.Error("an unknown protocol is held")
	}
}
