package testlab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestHostIsAlone(t *testing.T) {
	lab := New(t)
	a := lab.Host("a")

	if got := a.Exec("ip", "-br", "link"); !strings.HasPrefix(got, "lo ") || strings.Count(got, "\n") != 1 {
		t.Errorf("links of a new host:\n%s", got)
	}
	if got := a.Exec("ip", "route"); got != "" {
		t.Errorf("routes of a new host:\n%s", got)
	}
	if got := a.Exec("hostname"); got != "a\n" {
		t.Errorf("host name: %q", got)
	}
	if got := a.Exec("ls", "/sys/class/net"); got != "lo\n" {
		t.Errorf("/sys shows another network: %q", got)
	}
	if got := a.Exec("ip", "netns"); strings.TrimSpace(strings.Split(got, "(")[0]) != filepath.Base(a.NetNSPath()) {
		t.Errorf("`ip netns` inside: %q", got)
	}
	if _, err := os.Stat(filepath.Join(a.Cgroup(), "cgroup.procs")); err != nil {
		t.Error(err)
	}
	if got := a.Exec("sh", "-c", "grep ^0:: /proc/self/cgroup"); got != "0::/"+filepath.Base(a.Cgroup())+"/cmd\n" {
		t.Errorf("control group of a command: %q", got)
	}
	if got := a.Exec("cat", "/etc/resolv.conf"); got != "# no resolver\n" {
		t.Errorf("resolv.conf: %q", got)
	}
}

func TestDoRunsInside(t *testing.T) {
	lab := New(t)
	a := lab.Host("a")
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	err = a.Do(func() error {
		links, err := net.Interfaces()
		for _, l := range links {
			names = append(names, l.Name)
		}
		if _, err := os.Stat("lab_test.go"); err != nil {
			return fmt.Errorf("the working directory is lost: %w", err)
		}
		return err
	})
	if err != nil || fmt.Sprint(names) != "[lo]" {
		t.Errorf("inside: %v, %v", names, err)
	}
	boom := errors.New("boom")
	if err := a.Do(func() error { return boom }); !errors.Is(err, boom) {
		t.Errorf("error of the function: %v", err)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("a panic inside was lost")
			}
		}()
		_ = a.Do(func() error { panic("inside") })
	}()
	if now, _ := os.Getwd(); now != wd {
		t.Errorf("working directory of the test moved to %s", now)
	}
}

func TestLinkSwitchPartition(t *testing.T) {
	Require(t, Tool("busybox"), Tool("nft"))
	lab := New(t)
	a, b, c := lab.Host("a"), lab.Host("b"), lab.Host("c")
	cable := lab.Link(a, b, "10.1.0.0/24", "fd01::/64")
	lan := lab.Switch("10.2.0.0/24")
	lan.Join(a, b, c)

	ping := func(from *Host, to string) error {
		_, err := from.Try("busybox", "ping", "-c1", "-W1", to)
		return err
	}
	reach := func(from *Host, to string, want bool) {
		t.Helper()
		if got := ping(from, to) == nil; got != want {
			t.Errorf("%s reaches %s: %v", from.Name(), to, got)
		}
	}
	if got := cable.Addr(b).String(); got != "10.1.0.2" {
		t.Errorf("second address of the cable: %s", got)
	}
	if got := fmt.Sprint(lan.End(c)); !strings.HasPrefix(got, "{eth0 [10.2.0.3/24]") {
		t.Errorf("third end of the switch: %s", got)
	}
	reach(a, "10.1.0.2", true)
	reach(a, "fd01::2", true)
	reach(c, "10.2.0.1", true)
	reach(c, "10.1.0.1", false)
	cable.DefaultVia(a, b)
	if got := a.Exec("ip", "route", "show", "default"); !strings.HasPrefix(got, "default via 10.1.0.2 dev eth0") {
		t.Errorf("default route: %q", got)
	}

	lab.Partition(a, b)
	reach(a, "10.1.0.2", false)
	reach(a, "10.2.0.2", false)
	reach(a, "10.2.0.3", true)
	if got := a.Exec("ip", "-br", "link", "show", "eth0"); !strings.Contains(got, "LOWER_UP") {
		t.Errorf("a partition is not seen on the interface: %q", got)
	}
	lab.Heal(a, b)
	reach(a, "10.1.0.2", true)
}

func TestNamespaceInsideHost(t *testing.T) {
	lab := New(t)
	a := lab.Host("a")
	ns := a.Namespace("web")
	a.Exec("ip", "link", "add", "v0", "type", "veth", "peer", "name", "eth0", "netns", filepath.Base(ns.NetNSPath()))
	if got := ns.Exec("ip", "-br", "link", "show", "eth0"); !strings.HasPrefix(got, "eth0") {
		t.Errorf("the device is not inside: %q", got)
	}
	if got := ns.Exec("hostname"); got != "a\n" {
		t.Errorf("host name in the namespace: %q", got)
	}
	if a.Cookie() == ns.Cookie() || ns.Cookie() == 0 {
		t.Errorf("cookies: host %d, namespace %d", a.Cookie(), ns.Cookie())
	}
}

func TestProcesses(t *testing.T) {
	lab := New(t)
	a := lab.Host("a")
	p := a.StartCmd(Cmd{Args: []string{"sh", "-c", "echo $GREETING; trap 'echo bye; exit 3' TERM; while :; do sleep 0.05; done"},
		Env: []string{"GREETING=hello"}, Cgroup: a.AgentCgroup()})
	Eventually(t, 5*time.Second, func() error {
		if got := p.Output(); got != "hello\n" {
			return fmt.Errorf("output: %q", got)
		}
		return nil
	})
	if got := cgroupProcs(a.AgentCgroup()); len(got) == 0 {
		t.Error("the process is not in the group that was asked for")
	}
	err := p.Stop()
	if err == nil || err.Error() != "exit status 3" || p.Running() {
		t.Errorf("end: %v", err)
	}
	if got := p.Output(); got != "hello\nbye\n" {
		t.Errorf("output: %q", got)
	}
	if _, err := a.Try("sh", "-c", "echo why >&2; exit 7"); err == nil || err.Error() != "exit status 7: why" {
		t.Errorf("error of Try: %v", err)
	}
	if _, err := a.Try("no-such-program"); err == nil {
		t.Error("a missing program is no error")
	}
}
