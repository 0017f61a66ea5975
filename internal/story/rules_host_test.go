package story

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead-net/fairlead/internal/testlab"
)

// Forwarding makes the kernel forget what it learned from router advertisements, unless it is told before.
func TestDefaultRouteOfRouterAdvertisementStays(t *testing.T) {
	t.Parallel()
	testlab.Require(t, testlab.Tool("radvd"))
	lab := testlab.New(t)
	h, router := lab.Host("n1"), lab.Host("router")
	lab.Switch("2001:db8:1::/64").Join(router, h)
	h.Exec("sysctl", "-qw", "net.ipv6.conf.eth0.accept_ra=1")
	router.Exec("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
	conf := filepath.Join(router.Dir(), "radvd.conf")
	writeFile(t, conf, "interface eth0 { AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4; AdvDefaultLifetime 30; prefix 2001:db8:1::/64 { AdvAutonomous off; }; };\n")
	radvd := router.Start("radvd", "-n", "-C", conf, "-p", filepath.Join(router.Dir(), "radvd.pid"), "-m", "stderr", "-u", "root")
	t.Cleanup(func() {
		if err := radvd.Stop(); err != nil {
			t.Errorf("radvd: %v", err)
		}
		testlab.Eventually(t, settleLimit, func() error { // for its helper process
			if facts := strings.Join(router.Inventory(), "\n"); strings.Contains(facts, "radvd.conf") {
				return errors.New(facts)
			}
			return nil
		})
	})
	route := func() string { return h.Exec("ip", "-6", "route", "show", "default") }
	learned := func() error {
		if out := route(); !strings.Contains(out, "proto ra") {
			return fmt.Errorf("default routes: %q; radvd says %s", out, radvd.Output())
		}
		return nil
	}
	testlab.Eventually(t, settleLimit, learned)

	a := newAgent(t, h)
	if err := learned(); err != nil {
		t.Fatalf("after the agent's start: %v", err)
	}
	a.cli("network", "create", "my-network")
	a.run("my-network", "web-1")
	if err := learned(); err != nil {
		t.Fatalf("after network create: %v", err)
	}
	// It is kept up by later advertisements, too, now that the host forwards: its time to live grows again.
	lifetime := regexp.MustCompile(`expires (\d+)sec`)
	was := lifetime.FindString(route())
	testlab.Eventually(t, settleLimit, func() error {
		now := lifetime.FindString(route())
		if now > was && now != "" {
			return nil
		}
		was = now
		return fmt.Errorf("not refreshed: %q", route())
	})
	a.down()
	if err := learned(); err != nil {
		t.Errorf("after down --purge: %v", err)
	}
}

// A service manager that ends the agent's whole control group does not end the workloads.
func TestWorkloadsOutliveTheAgentsCgroup(t *testing.T) {
	t.Parallel()
	h := testlab.New(t).Host("n1")
	a := newAgent(t, h)
	a.webs(2)
	a.run("my-network", "cl")
	pids := map[string]int{}
	for _, name := range []string{"web-1", "web-2", "cl"} {
		pids[name] = a.workload(name).PID
	}
	vip := net.JoinHostPort(a.service("web").VIP4.String(), "80")
	vip6 := net.JoinHostPort(a.service("web").VIP6.String(), "80")
	fromWorkload, fromHost := a.startCaller("cl", "load", vip6, "50"), a.startCaller("", "load", vip, "50")
	flowing(t, 10, fromWorkload, fromHost)
	writeFile(t, filepath.Join(h.AgentCgroup(), "cgroup.kill"), "1")
	<-a.proc.Done()
	flowing(t, 50, fromWorkload, fromHost)
	for _, p := range []*testlab.Proc{fromWorkload, fromHost} {
		all := finish(t, p)
		if bad := failed(all); len(bad) > 0 || len(counted(all)) != 2 {
			t.Errorf("of %d connections to %v these failed: %+v", len(all), counted(all), bad)
		}
	}
	// A new one as from a service manager; Linux 6.18 kills whatever is born from outside into a group that was killed once.
	if err := errors.Join(os.Remove(h.AgentCgroup()), os.Mkdir(h.AgentCgroup(), 0o755)); err != nil {
		t.Fatal(err)
	}
	a.start()
	for name, pid := range pids {
		if w := a.workload(name); w.PID != pid || w.State != "running" {
			t.Errorf("%s was process %d, is %+v", name, pid, w)
		}
	}
}

// What down leaves is what was there: the harness compares links, routes, rules, control groups, programs and pins; this test every
// sysctl and all processes.
func TestDownPutsEverythingBack(t *testing.T) {
	t.Parallel()
	lab := testlab.New(t)
	h, outside := lab.Host("n1"), lab.Host("outside")
	lab.Link(h, outside, "198.51.100.0/24", "2001:db8:1::/64")
	before := sysctls(t, h)
	a := newAgent(t, h)
	a.cli("network", "create", "my-network")
	a.cli("network", "create", "other", "--subnet", "10.9.0.0/24", "--internal")
	a.run("my-network", "web-1", "--service", "web", "--port", "80", "-p", "8080:80", "--expose", "any")
	a.run("other", "web-2", "--service", "web", "--port", "80", "-p", "5300:80/udp", "--expose", "lan")
	changed := sysctlDiff(before, sysctls(t, h))
	if !strings.Contains(changed, "/proc/sys/net/ipv4/ip_forward") || !strings.Contains(changed, "/proc/sys/net/ipv6/conf/all/forwarding") {
		t.Errorf("the agent should have turned on forwarding, so this test shows nothing:\n%s", changed)
	}
	// What it changed is remembered over its end.
	a.kill()
	a.start()
	a.restart()
	a.down()
	if diff := sysctlDiff(before, sysctls(t, h)); diff != "" {
		t.Errorf("after down --purge:\n%s", diff)
	}
	for _, fact := range h.Inventory() {
		if strings.HasPrefix(fact, "process ") && !strings.Contains(fact, "already dead") {
			t.Errorf("after down --purge: %s", fact)
		}
	}
	// A second time there is nothing to do.
	if out := a.cli("down", "--purge"); out != "there was nothing to remove\n" {
		t.Errorf("a second down says %q", out)
	}
}

// sysctlDiff lists what is different, a line each.
func sysctlDiff(before, after map[string]string) string {
	var diff []string
	for path, value := range before {
		if after[path] != value {
			diff = append(diff, fmt.Sprintf("%s was %q, is %q", path, value, after[path]))
		}
	}
	for path, value := range after {
		if _, ok := before[path]; !ok {
			diff = append(diff, fmt.Sprintf("%s is new: %q", path, value))
		}
	}
	slices.Sort(diff)
	return strings.Join(diff, "\n")
}

// sysctls reads all of /proc/sys/net on a host.
func sysctls(t *testing.T, h *testlab.Host) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := h.Do(func() error {
		return filepath.WalkDir("/proc/sys/net", func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || d.Name() == "nf_conntrack_count" { // that one is no setting
				return err
			}
			value, err := os.ReadFile(path)
			if err != nil {
				value = []byte(err.Error()) // some can only be written
			}
			all[path] = string(value)
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
