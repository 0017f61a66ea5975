package story

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/api"
	"github.com/fairlead-net/fairlead/internal/testlab"
)

// The agent is no part of the data path: while it is away everything goes on, and when it is back it takes over what it finds.
func TestAgentAwayUnderLoad(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*agent){"SIGKILL": (*agent).kill, "SIGTERM": (*agent).stop} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			awayUnderLoad(t, end)
		})
	}
}

func awayUnderLoad(t *testing.T, end func(*agent)) {
	lab := testlab.New(t)
	h, outside := lab.Host("n1"), lab.Host("outside")
	wire := lab.Link(h, outside, "198.51.100.0/24", "2001:db8:1::/64")
	a := newAgent(t, h)
	a.webs(3, "--expose", "any")
	a.run("my-network", "cl")
	a.serveIn("my-network", "shop", "-p", "8080:80", "--expose", "any")
	a.put("/v1/agent/service/register", `{"Name":"legacy","ID":"legacy-1","Address":"198.51.100.1","Port":9000,"Tags":["old"],"Meta":{"k":"v"},
		"Checks":[{"CheckID":"legacy-ttl","Name":"heartbeat","TTL":"60s"}]}`)
	a.put("/v1/agent/check/pass/legacy-ttl?note=alive", "")

	before := a.standing()
	web := a.service("web")
	vip := net.JoinHostPort(web.VIP4.String(), "80")
	loads := map[string]*testlab.Proc{
		"workload, IPv4": a.startCaller("cl", "load", vip, "100"),
		"workload, IPv6": a.startCaller("cl", "load", net.JoinHostPort(web.VIP6.String(), "80"), "100"),
		"host":           a.startCaller("", "load", vip, "100"),
		"host, port":     a.startCaller("", "load", "127.0.0.1:8080", "50"),
		"outside, port":  outside.StartCmd(testlab.Cmd{Args: []string{self, net.JoinHostPort(wire.Addr(h).String(), "8080"), "50"}, Env: []string{roleVariable + "=load"}}),
	}
	gateway := a.gateways("my-network")[0]
	lookups := map[string]*testlab.Proc{
		"workload": a.startCaller("cl", "lookup", net.JoinHostPort(gateway, "53"), "web"),
		"host":     a.startCaller("", "lookup", dnsAddr, "web.service.consul"),
	}
	connecting, looking := slices.Collect(maps.Values(loads)), slices.Collect(maps.Values(lookups))
	flowing(t, 20, append(looking, connecting...)...)

	gone := monotonic()
	end(a)
	flowing(t, 100, connecting...)
	if status, body, err := a.try("GET", "/readyz", ""); err == nil {
		t.Errorf("the agent should be away, but answers %d %s", status, body)
	}
	started := monotonic()
	a.start()
	back := monotonic()
	flowing(t, 50, append(looking, connecting...)...)

	t.Logf("the agent was away for %v and ready %v after its start", (started - gone).Round(time.Millisecond), (back - started).Round(time.Millisecond))
	for name, p := range loads {
		all := finish(t, p)
		if bad := failed(all); len(bad) > 0 {
			t.Errorf("%s: %d of %d connections failed, the first %v after the agent went: %+v", name, len(bad), len(all), bad[0].Start-gone, bad[0])
		}
		during := slices.DeleteFunc(slices.Clone(all), func(c try) bool { return c.Start < gone || c.Start > back })
		t.Logf("%-15s %d connections, %d of them meanwhile; none failed; the longest took %v; served by %v", name+":", len(all), len(during), longest(all).Took, counted(all))
		if want := 3; !strings.Contains(name, "port") && len(counted(during)) != want {
			t.Errorf("%s: connections went to %v meanwhile, want all %d instances", name, counted(during), want)
		}
	}
	for name, p := range lookups {
		all := finish(t, p)
		worst := longest(all)
		t.Logf("names looked up by the %s: %d, one waited %v for the restart (until %v before the agent was ready), then the longest %v", name, len(all),
			worst.Took.Round(time.Millisecond), (back - worst.Start - worst.Took).Round(time.Millisecond), longest(slices.DeleteFunc(all, func(l try) bool { return l == worst })).Took.Round(time.Millisecond))
		if until := worst.Start + worst.Took; until > back+5*time.Second {
			t.Errorf("%s: a name was answered only %v after the agent was back", name, until-back)
		}
	}

	if diff := testlab.Diff(before.facts, a.standing().facts); len(diff) > 0 {
		t.Errorf("the restart changed:\n%s", strings.Join(diff, "\n"))
	}
	a.stillRegistered()
}

// stillRegistered asserts that what was registered by the Consul API is back, and its heartbeat is still heard out.
func (a *agent) stillRegistered() {
	a.t.Helper()
	var services map[string]struct {
		Service, Address string
		Port             int
		Tags             []string
		Meta             map[string]string
	}
	a.getJSON("/v1/agent/services", &services)
	if s := services["legacy-1"]; s.Service != "legacy" || s.Address != "198.51.100.1" || s.Port != 9000 || !slices.Equal(s.Tags, []string{"old"}) || s.Meta["k"] != "v" {
		a.t.Errorf("the agent's services after the restart: %+v", services)
	}
	if all := a.passing("legacy"); !slices.Equal(all, []string{"legacy-1"}) {
		a.t.Errorf("passing instances of legacy within its TTL: %v\n%s", all, a.get("/v1/health/checks/legacy"))
	}
	if !strings.Contains(a.get("/v1/health/checks/legacy"), "alive") {
		a.t.Errorf("the check's output is lost: %s", a.get("/v1/health/checks/legacy"))
	}
	a.put("/v1/agent/check/pass/legacy-ttl", "")
}

// standing is what must be the same before and after a restart: the host but for its processes, the workloads' processes and
// addresses, and the balancer's maps.
type standing struct{ facts []string }

func (a *agent) standing() standing {
	a.t.Helper()
	var s standing
	for _, fact := range a.host.Inventory() {
		if !strings.HasPrefix(fact, "process ") {
			s.facts = append(s.facts, fact)
		}
	}
	var networks []api.Network
	if err := json.Unmarshal([]byte(a.cli("network", "ls", "-o", "json")), &networks); err != nil {
		a.t.Fatal(err)
	}
	for _, n := range networks {
		for line := range strings.Lines(a.cli("network", "inspect", n.Name)) {
			s.facts = append(s.facts, "network "+n.Name+" "+line)
		}
	}
	var workloads []api.Workload
	if err := json.Unmarshal([]byte(a.cli("ps", "-o", "json")), &workloads); err != nil {
		a.t.Fatal(err)
	}
	for _, w := range workloads {
		s.facts = append(s.facts, fmt.Sprintf("workload %+v", w))
	}
	for line := range strings.Lines(a.datapath()) {
		s.facts = append(s.facts, "datapath "+line)
	}
	for line := range strings.Lines(a.cli("service", "ls")) {
		s.facts = append(s.facts, "service "+line)
	}
	return s
}

// webs makes my-network and n instances web-1, web-2... of the service web in it, and waits until all pass their HTTP check.
func (a *agent) webs(n int, flags ...string) {
	a.t.Helper()
	a.cli("network", "create", "my-network")
	for i := range n {
		a.run("my-network", fmt.Sprintf("web-%d", i+1), append([]string{"--service", "web", "--port", "80", "--check-http", "/", "--check-interval", "1s"}, flags...)...)
	}
	testlab.Eventually(a.t, settleLimit, func() error {
		if all := a.passing("web"); len(all) != n {
			return fmt.Errorf("passing: %v", all)
		}
		return nil
	})
	testlab.Eventually(a.t, settleLimit, func() error {
		if all := a.balanced("web"); len(all) != n {
			return fmt.Errorf("balanced: %v", all)
		}
		return nil
	})
}

// passing lists the ids of a service's healthy instances, sorted.
func (a *agent) passing(service string) []string {
	a.t.Helper()
	var entries []struct{ Service struct{ ID string } }
	a.getJSON("/v1/health/service/"+service+"?passing", &entries)
	var ids []string
	for _, e := range entries {
		ids = append(ids, e.Service.ID)
	}
	slices.Sort(ids)
	return ids
}

// balanced lists the addresses that the balancer gives new connections from the host to the service's IPv4 VIP, at port 80.
func (a *agent) balanced(service string) []string {
	a.t.Helper()
	s := a.service(service)
	if s == nil {
		return nil
	}
	return backends(a.datapath(), net.JoinHostPort(s.VIP4.String(), "80"))
}

// backends lists those of a TCP frontend in the host's scope that may be picked.
func backends(datapath, frontend string) []string {
	var all []string
	for line := range strings.Lines(datapath) {
		words := strings.Fields(line)
		if words[0] != "frontend" || !slices.Contains(words, frontend) || !slices.Contains(words, "tcp") || !slices.Contains(words, "scope=1") {
			continue
		}
		for _, w := range words {
			if at, weight, ok := strings.Cut(w, "*"); ok && weight != "0" {
				all = append(all, at)
			}
		}
	}
	return all
}

// gateways lists a network's gateways, IPv4 first.
func (a *agent) gateways(network string) []string {
	a.t.Helper()
	var n api.Network
	if err := json.Unmarshal([]byte(a.cli("network", "inspect", network, "-o", "json")), &n); err != nil {
		a.t.Fatal(err)
	}
	var all []string
	for _, s := range n.Subnets {
		all = append(all, s.Gateway.String())
	}
	return all
}

func (a *agent) getJSON(path string, v any) {
	a.t.Helper()
	if err := json.Unmarshal([]byte(a.get(path)), v); err != nil {
		a.t.Fatalf("%s: %v", path, err)
	}
}
