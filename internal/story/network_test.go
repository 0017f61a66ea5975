package story

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead-net/fairlead/internal/testlab"
)

// The town of TestNetwork: lan shares a wire with the node, far is behind lan.
const (
	nodeAddr4, nodeAddr6 = "198.51.100.1", "fd10::1"
	lanAddr4, lanAddr6   = "198.51.100.2", "fd10::2"
	farAddr4, farAddr6   = "203.0.113.2", "fd11::2"
)

// TestNetwork is the second example of the field: workloads in a network of the bridge driver reach each other by name and
// by service name, and the rest of the world reaches them by published ports.
func TestNetwork(t *testing.T) {
	t.Parallel()
	lab := testlab.New(t)
	n1, lan, far := lab.Host("n1"), lab.Host("lan"), lab.Host("far")
	wire := lab.Link(n1, lan, "198.51.100.0/24", "fd10::/64")
	lab.Link(lan, far, "203.0.113.0/24", "fd11::/64").DefaultVia(far, lan)
	wire.DefaultVia(n1, lan)
	lan.Exec("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	for _, addr := range []string{farAddr4, farAddr6} { // the addresses and the neighbours are settled
		testlab.Eventually(t, settleLimit, func() error {
			_, err := n1.Try("busybox", "ping", "-c1", "-W1", addr)
			return err
		})
	}
	serveOn(&lan.NS, "lan", ":90")
	serveOn(&far.NS, "far", ":90")

	a := newAgent(t, n1)
	a.cli("network", "create", "my-network", "--subnet", "10.20.0.0/24", "--subnet", "fd20::/64")
	check := []string{"--service", "web", "--port", "80", "--check-http", "/", "--check-interval", "1s"}
	a.run("my-network", "web-1", append(check, "--ip", "10.20.0.11", "--ip", "fd20::11", "-p", "8080:80", "-p", "8080:80/udp", "--expose", "any")...)
	a.run("my-network", "web-2", append(check, "--ip", "10.20.0.12", "--ip", "fd20::12", "-p", "8081:80", "-p", "8081:80/udp", "--expose", "lan")...)
	a.run("my-network", "cl", "--ip", "10.20.0.20", "--ip", "fd20::20", "-p", "8082:80", "-p", "8082:80/udp")
	a.serving("cl")
	testlab.Eventually(t, settleLimit, func() error {
		if got := a.dig("web.service.consul"); got != "10.20.0.11\n10.20.0.12" {
			return fmt.Errorf("healthy instances by DNS: %q", got)
		}
		return nil
	})
	t.Run("names", func(t *testing.T) { askByName(t, a) })
	t.Run("published ports", func(t *testing.T) { askPublished(t, a, lan, far) })
	t.Run("way out", func(t *testing.T) { askOutside(t, a) })
	t.Run("dig", func(t *testing.T) { askDNS(t, a) })
	t.Run("end", func(t *testing.T) {
		a.cli("stop", "web-1", "web-2", "cl")
		for _, cmd := range [][]string{{"ps"}, {"service", "ls"}} {
			if got := a.cli(cmd...); strings.Contains(got, "web") {
				t.Errorf("after stop, %v:\n%s", cmd, got)
			}
		}
		if got, err := a.tryCLI("network", "rm", "my-network"); err != nil {
			t.Errorf("remove the network: %v %s", err, got)
		}
		if _, err := fetchFrom(&lan.NS, "tcp4", "http://198.51.100.1:8080/"); err == nil {
			t.Error("the published port of a stopped workload still answers")
		}
	})
}

// askByName: the workload cl asks the others, and itself, by their names and by the service's.
func askByName(t *testing.T, a *agent) {
	for _, c := range []struct{ network, target, want string }{
		{"tcp4", "http://web-1/", `^web-1 10\.20\.0\.20 via 10\.20\.0\.11:80\n$`},
		{"tcp6", "http://web-1/", `^web-1 fd20::20 via \[fd20::11\]:80\n$`},
		{"tcp4", "http://web-2.my-network.internal/", `^web-2 10\.20\.0\.20 via 10\.20\.0\.12:80\n$`},
		{"tcp4", "http://cl/", `^cl 10\.20\.0\.20 via 10\.20\.0\.20:80\n$`},
		{"tcp4", "http://web/", `^web-[12] 10\.20\.0\.20 via 2[45][0-9]\.[0-9.]+:80\n$`},
		{"tcp6", "http://web/", `^web-[12] fd20::20 via \[fd[0-9a-f:]+\]:80\n$`},
		{"tcp4", "http://web.service.internal/", `^web-[12] 10\.20\.0\.20 via 10\.20\.0\.1[12]:80\n$`},
		{"tcp6", "http://web.virtual.consul/", `^web-[12] fd20::20 via \[fd[0-9a-f:]+\]:80\n$`},
		{"udp4", "web:80", `^web-[12] 10\.20\.0\.20 via 2[45][0-9]\.[0-9.]+:80\n$`},
		{"udp6", "web:80", `^web-[12] fd20::20 via \[fd[0-9a-f:]+\]:80\n$`},
		{"udp6", "web-2:80", `^web-2 fd20::20 via \[fd20::12\]:80\n$`},
	} {
		got, err := a.fetchInside("cl", c.network, c.target)
		if err != nil || !regexp.MustCompile(c.want).MatchString(got) {
			t.Errorf("cl asks %s %s: %q, %v; want %s", c.network, c.target, got, err, c.want)
		}
	}
	// Enough requests that both instances answer: by chance one does not once in 2^19 runs.
	for _, network := range []string{"tcp4", "tcp6"} {
		got, err := a.fetchInside("cl", network, slices.Repeat([]string{"http://web/"}, 20)...)
		if err != nil || !strings.Contains(got, "web-1") || !strings.Contains(got, "web-2") {
			t.Errorf("twenty requests over %s: %v\n%s", network, err, got)
		}
	}
}

// askPublished: from the host itself, from its wire and from afar, as far as each port is exposed.
func askPublished(t *testing.T, a *agent, lan, far *testlab.Host) {
	host := &a.host.NS
	const refused = "connection refused"
	for _, c := range []struct {
		from         *testlab.NS
		port         int
		addr4, addr6 string
		want4, want6 string
	}{
		{host, 8080, "127.0.0.1", "::1", "web-1 10.20.0.1", "web-1 fd20::1"},
		{host, 8081, "127.0.0.1", "::1", "web-2 10.20.0.1", "web-2 fd20::1"},
		{host, 8082, "127.0.0.1", "::1", "cl 10.20.0.1", "cl fd20::1"},
		{host, 8080, nodeAddr4, nodeAddr6, "web-1 ", "web-1 "},
		{host, 8082, nodeAddr4, nodeAddr6, "cl ", "cl "},
		{&lan.NS, 8080, nodeAddr4, nodeAddr6, "web-1 " + lanAddr4, "web-1 " + lanAddr6},
		{&lan.NS, 8081, nodeAddr4, nodeAddr6, "web-2 " + lanAddr4, "web-2 " + lanAddr6},
		{&lan.NS, 8082, nodeAddr4, nodeAddr6, refused, refused},
		{&far.NS, 8080, nodeAddr4, nodeAddr6, "web-1 " + farAddr4, "web-1 " + farAddr6},
		{&far.NS, 8081, nodeAddr4, nodeAddr6, refused, refused},
		{&far.NS, 8082, nodeAddr4, nodeAddr6, refused, refused},
	} {
		for _, ask := range []struct{ network, target, want string }{
			{"tcp4", fmt.Sprintf("http://%s:%d/", c.addr4, c.port), c.want4},
			{"tcp6", fmt.Sprintf("http://[%s]:%d/", c.addr6, c.port), c.want6},
			{"udp4", fmt.Sprintf("%s:%d", c.addr4, c.port), c.want4},
			{"udp6", fmt.Sprintf("[%s]:%d", c.addr6, c.port), c.want6},
		} {
			if ask.want == refused && strings.HasPrefix(ask.network, "udp") {
				continue // nothing answers, which takes a client's time limit to see
			}
			got, err := fetchFrom(c.from, ask.network, ask.target)
			switch {
			case ask.want == refused && (err == nil || !strings.Contains(err.Error(), refused)):
				t.Errorf("%s asks %s %s: %q, %v; want it refused", c.from.Name(), ask.network, ask.target, got, err)
			case ask.want != refused && (err != nil || !strings.HasPrefix(got, ask.want)):
				t.Errorf("%s asks %s %s: %q, %v; want %q", c.from.Name(), ask.network, ask.target, got, err, ask.want)
			}
		}
	}
}

// askOutside: a workload reaches other hosts under its host's address, and nobody reaches it by its own.
func askOutside(t *testing.T, a *agent) {
	for _, c := range []struct{ network, target, want string }{
		{"tcp4", "http://" + lanAddr4 + ":90/", "lan " + nodeAddr4},
		{"tcp6", "http://[" + lanAddr6 + "]:90/", "lan " + nodeAddr6},
		{"tcp4", "http://" + farAddr4 + ":90/", "far " + nodeAddr4},
		{"udp6", "[" + farAddr6 + "]:90", "far " + nodeAddr6},
	} {
		got, err := a.fetchInside("cl", c.network, c.target)
		if err != nil || !strings.HasPrefix(got, c.want+" via ") {
			t.Errorf("cl asks %s %s: %q, %v; want %q", c.network, c.target, got, err, c.want)
		}
	}
}

// askDNS: Debian's dig at the host's resolver and, with the resolv.conf that a workload finds, at its gateway.
func askDNS(t *testing.T, a *agent) {
	const v4, v6 = "10.20.0.11\n10.20.0.12", "fd20::11\nfd20::12"
	vip4, vip6 := a.service("web").VIP4.String(), a.service("web").VIP6.String()
	srv := `(1 1 80 [0-9a-f]+\.addr\.dc1\.(consul|internal)\.\n?){2}`
	inside := func(args ...string) string {
		got, err := a.inside("cl", testlab.Cmd{Args: append([]string{"dig", "+short", "+search", "+tries=1"}, args...)})
		if err != nil {
			t.Errorf("dig %v inside: %v", args, err)
		}
		return sorted(got)
	}
	for _, c := range []struct {
		ask  func(...string) string
		args []string
		want string
	}{
		{a.dig, []string{"web.service.consul"}, v4},
		{a.dig, []string{"web.service.consul", "AAAA"}, v6},
		{a.dig, []string{"web.service.dc1.internal", "SRV"}, srv},
		{a.dig, []string{"+tcp", "web.service.consul", "SRV"}, srv},
		{a.dig, []string{"web.virtual.consul"}, vip4},
		{a.dig, []string{"web.virtual.consul", "AAAA"}, vip6},
		{a.dig, []string{"n1.node.consul"}, nodeAddr4},
		{a.dig, []string{"nothing.service.consul"}, ""},
		{inside, []string{"web.service.internal"}, v4},
		{inside, []string{"web.service.consul", "AAAA"}, v6},
		{inside, []string{"web.service.consul", "SRV"}, srv},
		{inside, []string{"web-1"}, "10.20.0.11"},
		{inside, []string{"web-1", "AAAA"}, "fd20::11"},
		{inside, []string{"web"}, vip4},
		{inside, []string{"web", "AAAA"}, vip6},
	} {
		if got := c.ask(c.args...); !regexp.MustCompile("^" + c.want + "$").MatchString(got) {
			t.Errorf("dig %v: %q, want %q", c.args, got, c.want)
		}
	}
}
