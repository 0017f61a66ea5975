package story

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/testlab"
)

// A UDP socket talks to one instance for as long as there is that instance, whatever else changes, and sees only the VIP.
func TestUDPClientKeepsItsInstance(t *testing.T) {
	t.Parallel()
	a := newAgent(t, testlab.New(t).Host("n1"))
	a.webs(3)
	a.run("my-network", "cl")
	web := a.service("web")
	vip4, vip6 := net.JoinHostPort(web.VIP4.String(), "80"), net.JoinHostPort(web.VIP6.String(), "80")
	clients := map[string]*testlab.Proc{}
	for _, from := range []string{"cl", ""} {
		for _, kind := range []string{"connected", "sendto"} {
			for _, vip := range []string{vip4, vip6} {
				for i := range 3 {
					name := fmt.Sprintf("%s socket %d of %q to %s", kind, i, from, vip)
					clients[name] = a.startCaller(from, "datagrams", kind, vip)
				}
			}
		}
	}
	procs := slices.Collect(maps.Values(clients))
	flowing(t, 200, procs...)
	// A fourth instance and one that turns critical change the frontend and move nobody.
	a.serveIn("my-network", "web-4", "--service", "web", "--port", "80")
	testlab.Eventually(t, settleLimit, func() error {
		if all := a.balanced("web"); len(all) != 4 {
			return fmt.Errorf("balanced: %v", all)
		}
		return nil
	})
	flowing(t, 50, procs...)
	used := map[string]int{}
	for name, p := range clients {
		all := tries(t, p.Output())
		for _, d := range all {
			if d.Err != "" || d.Name != all[0].Name || d.Peer != d.To {
				t.Errorf("%s: of %d datagrams one was answered by %+v, the first by %+v", name, len(all), d, all[0])
				break
			}
		}
		used[all[0].Name]++
	}
	t.Logf("%d sockets had these instances: %v", len(clients), used)
	if len(used) < 2 {
		t.Errorf("%d sockets all had the instance %v", len(clients), used)
	}

	// Deregistered, though its process still answers, an instance is nobody's any more.
	victim := slices.MaxFunc(slices.Sorted(maps.Keys(used)), func(x, y string) int { return used[x] - used[y] })
	begin := monotonic()
	a.put("/v1/agent/service/deregister/"+victim, "")
	done := monotonic()
	flowing(t, 200, procs...)
	last := map[string]time.Duration{}
	for name, p := range clients {
		all := finish(t, p)
		first := all[0].Name
		after := slices.DeleteFunc(all, func(d try) bool { return d.Start < begin })
		bad := failed(after)
		if first != victim {
			if len(bad) > 0 || len(counted(after)) != 1 {
				t.Errorf("%s had %s all the time, and was disturbed: %v %+v", name, first, counted(after), bad)
			}
			continue
		}
		if len(bad) > 1 || len(bad) == 0 && strings.HasPrefix(name, "connected") {
			t.Errorf("%s saw %d errors, want a connected socket to see one: %+v", name, len(bad), bad)
		}
		for _, d := range after {
			if d.Name == victim {
				kind, _, _ := strings.Cut(name, " ")
				last[kind] = max(last[kind], d.Start-done)
			}
		}
		if end := after[len(after)-1]; end.Name == victim || end.Name == "" {
			t.Errorf("%s ended with %+v", name, end)
		}
	}
	t.Logf("%d sockets lost %s; the last datagram that it answered after its deregistration was sent %v later", used[victim], victim, last)
	for kind, after := range last {
		if after > settleLimit {
			t.Errorf("%s was still used by a %s socket %v after its deregistration", victim, kind, after)
		}
	}
}

// What cannot be reached at a VIP is refused at once, and the error tells why.
func TestVIPRefusals(t *testing.T) {
	t.Parallel()
	h := testlab.New(t).Host("n1")
	a := newAgent(t, h)
	a.cli("network", "create", "my-network")
	a.cli("network", "create", "other")
	a.run("my-network", "cl")
	a.serveIn("my-network", "web-1", "--service", "web", "--port", "80")
	a.serveIn("other", "hidden-1", "--service", "hidden", "--port", "80")
	// A TTL check is critical until somebody says otherwise.
	ill := a.workload("web-1").Endpoints[0].Addrs[0].String()
	a.put("/v1/agent/service/register", `{"Name":"ill","Port":80,"Address":"`+ill+`","Check":{"TTL":"60s"}}`)
	at := func(service, port string) []string {
		s := a.service(service)
		return []string{net.JoinHostPort(s.VIP4.String(), port), net.JoinHostPort(s.VIP6.String(), port)}
	}
	testlab.Eventually(t, settleLimit, func() error {
		if dump := a.datapath(); !strings.Contains(dump, at("ill", "80")[0]) || !strings.Contains(dump, at("hidden", "80")[0]) {
			return fmt.Errorf("not balanced yet:\n%s", dump)
		}
		return nil
	})
	const refused, unreachable, fine = "connection refused", "no route to host", ""
	for _, c := range []struct{ what, from, service, port, want string }{
		{"no healthy instance", "cl", "ill", "80", refused},
		{"no healthy instance", "", "ill", "80", refused},
		{"a port nobody answers at", "cl", "web", "81", refused},
		{"a port nobody answers at", "", "web", "81", refused},
		{"only in another network", "cl", "hidden", "80", unreachable},
		{"the host is in every network", "", "hidden", "80", fine},
		{"a healthy one", "cl", "web", "80", fine},
	} {
		addrs := at(c.service, c.port)
		if c.service == "ill" || c.want == fine {
			addrs = addrs[:1] // it was registered with an IPv4 address
		}
		for _, addr := range addrs {
			for _, d := range a.dialFrom(c.from, addr, "udp:"+addr) {
				if (c.want == fine) != (d.Err == "") || !strings.Contains(d.Err, c.want) || d.Took > 100*time.Millisecond {
					t.Errorf("%s, from %q: %+v, want %q within 100 ms", c.what, c.from, d, c.want)
				}
			}
		}
	}

	// As soon as the check passes it is served.
	a.put("/v1/agent/check/pass/service:ill", "")
	testlab.Eventually(t, settleLimit, func() error {
		if d := a.dialFrom("cl", at("ill", "80")[0])[0]; d.Name != "web-1" {
			return fmt.Errorf("%+v", d)
		}
		return nil
	})

	// A caller that no program sees, such as this test outside of the agent's cgroup, is told at once, too.
	for _, addr := range at("web", "80") {
		begin := monotonic()
		c, err := a.dial(t.Context(), "tcp", addr)
		if took := monotonic() - begin; err == nil || took > 100*time.Millisecond {
			t.Errorf("a caller outside of the cgroup: %v, %v after %v", c, err, took)
		}
	}
}
