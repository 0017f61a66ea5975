package story

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/testlab"
)

const foreignFirewall = `table inet foreign {
	chain forward { type filter hook forward priority 0; policy drop; }
}
`

// With a firewall of somebody else that drops what is forwarded, workloads of one network still talk; what does not work is said.
func TestForeignForwardDrop(t *testing.T) {
	t.Parallel()
	lab := testlab.New(t)
	h, outside := lab.Host("n1"), lab.Host("outside")
	wire := lab.Link(h, outside, "198.51.100.0/24", "2001:db8:1::/64")
	firewall := h.Dir() + "/foreign.nft"
	writeFile(t, firewall, foreignFirewall)
	h.Exec("nft", "-f", firewall)
	// Bridged packets pass the forward hook, too.
	h.Exec("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1", "net.bridge.bridge-nf-call-ip6tables=1")
	far := serveOn(&outside.NS, "far")
	a := newAgent(t, h)
	a.cli("network", "create", "my-network")
	a.run("my-network", "cl")
	_, stderr, err := h.Run(testlab.Cmd{Env: a.env(), Args: append([]string{binary}, runArgs("my-network", "web-1",
		[]string{"--service", "web", "--port", "80", "-p", "8080:80", "--expose", "any"})...)})
	const named = "table inet foreign chain forward (policy drop)"
	if err != nil || !strings.Contains(stderr, named) || !strings.Contains(stderr, "published ports") {
		t.Errorf("run: %v, want a warning that names the chain and what it blocks:\n%s", err, stderr)
	}
	if out := a.cli("status"); !strings.Contains(out, named) {
		t.Errorf("status does not name the chain:\n%s", out)
	}

	a.serving("web-1")
	var v4, v6 string
	for _, addr := range a.workload("web-1").Endpoints[0].Addrs {
		if addr.Is4() {
			v4 = addr.String()
		} else {
			v6 = addr.String()
		}
	}
	// From cold: neither knows the other's link address. IPv6 finds it by ICMPv6, which passes the forward hook.
	for _, w := range []string{"cl", "web-1"} {
		for _, family := range []string{"-6", "-4"} {
			if out, err := a.inside(w, testlab.Cmd{Args: []string{"ip", family, "neigh", "flush", "all"}}); err != nil {
				t.Fatal(out, err)
			}
			if out, err := a.inside(w, testlab.Cmd{Args: []string{"ip", family, "neigh", "show", "nud", "reachable"}}); err != nil || out != "" {
				t.Fatalf("%s has neighbours: %s, %v", w, out, err)
			}
		}
	}
	vip := a.service("web")
	for _, c := range []struct{ network, target, want string }{
		{"tcp6", "http://[" + v6 + "]/", "web-1"},
		{"udp6", "[" + v6 + "]:80", "web-1"},
		{"tcp4", "http://" + v4 + "/", "web-1"},
		{"udp4", v4 + ":80", "web-1"},
		{"tcp4", "http://" + vip.VIP4.String() + "/", "web-1"},
		{"tcp6", "http://[" + vip.VIP6.String() + "]/", "web-1"},
		{"tcp4", "http://web-1/", "web-1"},
		{"tcp6", "http://web/", "web-1"},
	} {
		if out, err := a.fetchInside("cl", c.network, c.target); err != nil || !strings.HasPrefix(out, c.want+" ") {
			t.Errorf("%s %s inside the network: %q, %v", c.network, c.target, out, err)
		}
	}
	for _, addr := range []string{v6, v4} {
		if out, err := a.inside("cl", testlab.Cmd{Args: []string{"ping", "-c", "1", "-W", "3", addr}}); err != nil {
			t.Errorf("ping %s inside the network: %v\n%s", addr, err, out)
		}
	}

	published := "http://" + net.JoinHostPort(wire.Addr(h).String(), "8080") + "/"
	beyond := "http://" + wire.Addr(outside).String() + "/"
	if out, err := fetchFrom(&outside.NS, "tcp4", published); err == nil {
		t.Errorf("the firewall does not block the published port, so this test shows nothing: %q", out)
	}
	if out, err := a.fetchInside("cl", "tcp4", beyond); err == nil {
		t.Errorf("the firewall does not block the way out, so this test shows nothing: %q", out)
	}

	// Without the firewall all is well, and nothing is said.
	h.Exec("nft", "delete", "table", "inet", "foreign")
	if out, err := fetchFrom(&outside.NS, "tcp4", published); err != nil || !strings.HasPrefix(out, "web-1 "+wire.Addr(outside).String()) {
		t.Errorf("the published port from outside: %q, %v", out, err)
	}
	if out, err := a.fetchInside("cl", "tcp4", beyond); err != nil || !strings.HasPrefix(out, "far "+wire.Addr(h).String()) {
		t.Errorf("the way out: %q, %v\n%s", out, err, far.Output())
	}
	if out := a.cli("status"); strings.Contains(out, "foreign") {
		t.Errorf("status:\n%s", out)
	}
	h.Exec("nft", "-f", firewall) // as it was
}

// Somebody flushes every rule of the host: ours come back by themselves.
func TestFlushedRulesReturn(t *testing.T) {
	t.Parallel()
	lab := testlab.New(t)
	h, outside := lab.Host("n1"), lab.Host("outside")
	wire := lab.Link(h, outside, "198.51.100.0/24", "2001:db8:1::/64")
	a := newAgent(t, h)
	a.cli("network", "create", "my-network")
	a.serveIn("my-network", "web-1", "-p", "8080:80", "--expose", "any")
	load := outside.StartCmd(testlab.Cmd{
		Args: []string{self, net.JoinHostPort(wire.Addr(h).String(), "8080"), "200"}, Env: []string{roleVariable + "=load"},
	})
	flowing(t, 50, load)
	flushed := monotonic()
	h.Exec("nft", "flush", "ruleset")
	flowing(t, 300, load)
	all := finish(t, load)

	// One that was under way is disturbed by the flush as well.
	bad := slices.DeleteFunc(failed(all), func(c try) bool { return c.Start+c.Took < flushed })
	back := lastStart(bad, flushed)
	t.Logf("after nft flush ruleset %d new connections to the published port failed, the last %v later", len(bad), back)
	if back > time.Second {
		t.Errorf("the published port was away for %v, want at most a second", back)
	}
	if len(failed(all)) > len(bad) {
		t.Errorf("connections failed before the flush: %+v", failed(all)[0])
	}
}

// A published port is for the host's own processes, too, at every address of the host, loopback included.
func TestPublishedPortFromTheHost(t *testing.T) {
	t.Parallel()
	lab := testlab.New(t)
	h, outside := lab.Host("n1"), lab.Host("outside")
	wire := lab.Link(h, outside, "198.51.100.0/24", "2001:db8:1::/64")
	a := newAgent(t, h)
	a.cli("network", "create", "my-network")
	a.serveIn("my-network", "web-1", "-p", "8080:80", "-p", "5300:80/udp")
	var addrs []string
	for _, host := range []string{"127.0.0.1", "::1", wire.Addr(h).String(), wire.End(h).Addrs[1].Addr().String()} {
		addrs = append(addrs, net.JoinHostPort(host, "8080"), "udp:"+net.JoinHostPort(host, "5300"))
	}
	for _, c := range a.dialFrom("", addrs...) {
		if c.Err != "" || c.Name != "web-1" || c.Peer != c.To {
			t.Errorf("from the host: %+v", c)
		}
	}
	// It is published to the host alone.
	if out, err := fetchFrom(&outside.NS, "tcp4", "http://"+net.JoinHostPort(wire.Addr(h).String(), "8080")+"/"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("from another host: %q, %v", out, err)
	}
	// Nobody else can take it.
	if _, err := a.tryCLI(runArgs("my-network", "web-2", []string{"-p", "8080:80"})...); err == nil || !strings.Contains(err.Error(), "8080") {
		t.Errorf("publishing the port again: %v", err)
	}
	// When its workload is gone, so is the port.
	a.cli("stop", "web-1")
	for _, c := range a.dialFrom("", "127.0.0.1:8080", "[::1]:8080") {
		if !strings.Contains(c.Err, "refused") {
			t.Errorf("after stop: %+v", c)
		}
	}
	serveOn(&h.NS, "other", fmt.Sprint(":", 8080))
	testlab.Eventually(t, settleLimit, func() error {
		if c := a.dialFrom("", "127.0.0.1:8080")[0]; c.Name != "other" {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
}
