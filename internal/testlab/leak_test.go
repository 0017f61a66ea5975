package testlab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// recorder is a test that notes its failures instead of failing.
type recorder struct {
	testing.TB
	errors []string
}

func (r *recorder) Errorf(format string, args ...any) {
	r.errors = append(r.errors, fmt.Sprintf(format, args...))
}
func (r *recorder) Failed() bool        { return len(r.errors) > 0 }
func (r *recorder) Logf(string, ...any) {}

// begun has a shell wait until its last child is the program sleep: until then it
// is a copy of the shell, or has no name at all.
const begun = "while ! grep -aq ^sleep /proc/$!/cmdline; do :; done"

func TestLeaksAreFoundAndRemoved(t *testing.T) {
	Require(t, Root)
	cases := []struct {
		name string
		leak func(t *testing.T, h *Host)
		want string
	}{
		{"nothing", func(*testing.T, *Host) {}, ""},
		{"process left by a command", func(_ *testing.T, h *Host) { h.Exec("sh", "-c", "sleep 1001 & "+begun) }, "(sleep 1001)"},
		{"process that ends just after its parent", func(t *testing.T, h *Host) {
			p := h.Start("sh", "-c", "trap 'sleep 0.2 & exit' TERM; echo ready; while :; do sleep 0.1; done")
			Eventually(t, 5*time.Second, func() error {
				if p.Output() == "" {
					return errors.New("the trap is not set")
				}
				return nil
			})
		}, ""},
		{"process that left its control group", func(t *testing.T, h *Host) {
			h.Exec("sh", "-c", "sleep 1002 & "+begun+"; echo $! > "+filepath.Dir(h.Cgroup())+"/cgroup.procs")
		}, "(sleep 1002) outside of its control group"},
		{"mount inside the host", func(_ *testing.T, h *Host) { h.Exec("mount", "-t", "tmpfs", "none", "/run/lock") },
			"host a: mount /run/lock"},
		{"control group", func(t *testing.T, h *Host) {
			if err := os.Mkdir(filepath.Join(h.Cgroup(), "extra"), 0o755); err != nil {
				t.Fatal(err)
			}
		}, "/extra"},
		{"pinned BPF object", func(t *testing.T, h *Host) {
			m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = m.Close() }()
			if err := m.Pin(filepath.Join(h.BPFFS(), "left")); err != nil {
				t.Fatal(err)
			}
		}, "pinned BPF object"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			rec := &recorder{TB: t}
			lab, err := newLab(rec)
			if err != nil {
				t.Fatal(err)
			}
			h := lab.Host("a")
			h.Exec("mkdir", "/run/lock") // something to mount on
			c.leak(t, h)
			lab.close()
			got := strings.Join(rec.errors, "\n")
			if c.want == "" && got != "" || !strings.Contains(got, c.want) {
				t.Errorf("the lab says %q, want %q in it", got, c.want)
			}
			// An escaped process is named but not killed: it could be anybody's.
			for _, pid := range findProcesses(t, "sleep 1002") {
				if p, err := os.FindProcess(pid); err == nil {
					_ = p.Kill()
				}
			}
			gone(t, lab.id)
		})
	}
}

func TestAbandon(t *testing.T) {
	lab := New(t)
	a := lab.Host("a")
	a.Exec("sh", "-c", "sleep 1003 &")
	a.Abandon()
}

func findProcesses(t *testing.T, cmdline string) []int {
	t.Helper()
	var pids []int
	names, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		pid, _ := strconv.Atoi(strings.Split(name, "/")[2])
		if strings.HasSuffix(describe(pid), "("+cmdline+")") {
			pids = append(pids, pid)
		}
	}
	return pids
}

func gone(t *testing.T, id string) {
	t.Helper()
	root, err := findCgroupRoot("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	l := &Lab{id: id, dir: labDir(id), cgroupRoot: root}
	if left := l.remains(); len(left) > 0 {
		t.Errorf("still there: %v", left)
	}
}

func TestForeignLinks(t *testing.T) {
	file := filepath.Join(t.TempDir(), "dev")
	text := "Inter-|   Receive\n face |bytes\n    lo: 1 2\nfl-1234: 0\n  flv99: 0\n flanger: 0\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := foreignLinks(file)
	want := []string{"link fl-1234 in the machine's own network", "link flv99 in the machine's own network"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestSweep kills a test process in the middle of its lab and expects nothing to be left of it.
func TestSweep(t *testing.T) {
	Require(t, Root)
	const variable = "TESTLAB_CRASH"
	if os.Getenv(variable) != "" {
		lab := New(t)
		a, b := lab.Host("a"), lab.Host("b")
		lab.Link(a, b, "10.3.0.0/24")
		a.Start("sleep", "1004")
		fmt.Printf("lab %s\n", lab.id)
		select {} // until killed
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestSweep$")
	cmd.Env = append(os.Environ(), variable+"=1")
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var id string
	Eventually(t, 10*time.Second, func() error {
		data, err := os.ReadFile(out.Name())
		if _, scanErr := fmt.Sscanf(string(data), "lab %s", &id); scanErr != nil {
			return fmt.Errorf("output %q, %w", data, err)
		}
		return nil
	})
	if !slices.Contains(livingLabs(), "fl-"+id) {
		t.Error("the lab does not count as living")
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	// A test of another package may do the sweeping just now, so the list that Sweep returns proves nothing.
	if _, err := Sweep(); err != nil {
		t.Error(err)
	}
	Eventually(t, 10*time.Second, func() error {
		if pids := findProcesses(t, "sleep 1004"); len(pids) > 0 {
			return fmt.Errorf("the host's processes live: %v", pids)
		}
		if _, err := os.Stat(labDir(id)); err == nil {
			return fmt.Errorf("%s is there", labDir(id))
		}
		return nil
	})
	gone(t, id)
}

func TestInventory(t *testing.T) {
	lab := New(t)
	a := lab.Host("a")
	before := a.Inventory()
	a.Exec("ip", "link", "add", "br0", "type", "bridge")
	a.Exec("ip", "link", "set", "br0", "up")
	a.Exec("ip", "addr", "add", "10.4.0.1/24", "dev", "br0")
	a.Exec("nft", "add table inet x; add chain inet x y { type filter hook forward priority 0; policy drop; }")
	a.Exec("sysctl", "-qw", "net.ipv4.ip_forward=1")
	sleep := a.Start("sleep", "1005")
	diff := strings.Join(Diff(before, a.Inventory()), "\n") + "\n"
	for _, want := range []string{
		"+ ip 2: br0: <BROADCAST,MULTICAST,UP",
		"+ ip 10.4.0.0/24 dev br0 proto kernel scope link src 10.4.0.1",
		"+ nft table inet x chain y type filter hook forward priority filter; policy drop;",
		"- sysctl ipv4/ip_forward = 0\n",
		"+ sysctl ipv4/ip_forward = 1\n",
		"+ process ",
	} {
		if !strings.Contains(diff, want) {
			t.Errorf("the inventory does not tell %q:\n%s", want, diff)
		}
	}
	sleep.Kill()
	a.Exec("sysctl", "-qw", "net.ipv4.ip_forward=0")
	a.Exec("nft", "delete table inet x")
	a.Exec("ip", "link", "del", "br0")
	if diff := Diff(before, a.Inventory()); len(diff) > 0 {
		t.Errorf("all is undone, but:\n%s", strings.Join(diff, "\n"))
	}
}

// machine is Snapshot without the labs, agents and demonstrations that the tests
// of other packages make meanwhile; leakcheck looks at those around the whole run.
func machine(lab string) ([]string, error) {
	facts, err := Snapshot()
	return slices.DeleteFunc(facts, func(fact string) bool {
		if id := anyLab.FindStringSubmatch(fact); id != nil {
			return id[1] != lab
		}
		return strings.HasPrefix(fact, "process ") || strings.Contains(fact, "fairlead-")
	}), err
}

var anyLab = regexp.MustCompile(`/fl-([0-9a-f]{4})\b`)

func TestMachineStaysTheSame(t *testing.T) {
	Require(t, Root, Tool("nft"))
	before, err := machine("")
	if err != nil {
		t.Fatal(err)
	}
	id := ""
	t.Run("lab", func(t *testing.T) {
		lab := New(t)
		a, b := lab.Host("a"), lab.Host("b")
		lab.Link(a, b, "10.5.0.0/24")
		lab.Partition(a, b)
		a.Exec("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
		id = lab.id
		during, err := machine(id)
		if err != nil {
			t.Fatal(err)
		}
		if diff := Diff(before, during); len(diff) > 0 {
			t.Errorf("during the lab:\n%s", strings.Join(diff, "\n"))
		}
	})
	after, err := machine(id)
	if err != nil {
		t.Fatal(err)
	}
	if diff := Diff(before, after); len(diff) > 0 {
		t.Errorf("after the lab:\n%s", strings.Join(diff, "\n"))
	}
}
