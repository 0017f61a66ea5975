package story

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead-net/fairlead/internal/testlab"
)

// What docs/operations.md says is to be watched is there, and nothing of ours is there that it does not mention.
func TestWatchAnAgent(t *testing.T) {
	t.Parallel()
	a := newAgent(t, testlab.New(t).Host("n1"))
	a.cli("network", "create", "my-network")
	a.serveIn("my-network", "web-1", "--service", "web", "--port", "80")
	a.dig("web.service.consul")
	if got := a.get("/healthz"); got != "ok\n" {
		t.Errorf("/healthz: %q", got)
	}
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(page), "| Metric |")
	if !ok {
		t.Fatal("docs/operations.md has no table of metrics")
	}
	var documented, exposed []string
	for _, m := range regexp.MustCompile("`(fairlead_[a-z_]+)(\\{[a-z]+\\})?`").FindAllStringSubmatch(table, -1) {
		documented = append(documented, m[1])
	}
	text := a.get("/metrics")
	ours := strings.Join(regexp.MustCompile(`(?m)^fairlead_.*$`).FindAllString(text, -1), "\n")
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (fairlead_[a-z_]+) `).FindAllStringSubmatch(text, -1) {
		exposed = append(exposed, m[1])
	}
	slices.Sort(documented)
	slices.Sort(exposed)
	// Vectors show up with their first value.
	missing := slices.DeleteFunc(slices.Clone(documented), func(name string) bool {
		return slices.Contains(exposed, name) || name == "fairlead_dns_forwarded_total"
	})
	if len(missing) > 0 {
		t.Errorf("documented and not there: %v\n%s", missing, ours)
	}
	if more := slices.DeleteFunc(exposed, func(name string) bool { return slices.Contains(documented, name) }); len(more) > 0 {
		t.Errorf("there and not documented: %v", more)
	}
	for _, want := range []string{
		"fairlead_services 1", "fairlead_endpoints 1", "fairlead_endpoint_problems 0", "fairlead_store_has_leader 1",
		`fairlead_dns_queries_total\{rcode="NOERROR"\} [1-9]`, "go_goroutines [1-9]", "process_resident_memory_bytes [1-9]",
	} {
		if !regexp.MustCompile("(?m)^" + want).MatchString(text) {
			t.Errorf("no metric %s:\n%s", want, ours)
		}
	}
}

// A host that lacks what an agent needs is told what that is, and stays as it is.
func TestHostLacksSomething(t *testing.T) {
	t.Parallel()
	h := testlab.New(t).Host("n1")
	before := h.Inventory()
	dir, mounts := filepath.Join(h.Dir(), "new"), filepath.Join(h.Dir(), "mountinfo")
	agent := binary + " agent --data-dir " + dir + "/data --run-dir " + dir + "/run --bpffs " + h.BPFFS()
	for _, c := range []struct{ what, without, want string }{
		{"BTF", "mount -t tmpfs none /sys/kernel", "the kernel has no BTF (CONFIG_DEBUG_INFO_BTF)"},
		{"cgroup v2", "grep -v ' - cgroup2 ' /proc/self/mountinfo >" + mounts + "; mount --bind " + mounts + " /proc/$$/mountinfo",
			"cgroup v2 is not mounted; 'mount -t cgroup2 none /sys/fs/cgroup' mounts it"},
	} {
		for _, flag := range []string{" --check", ""} {
			_, stderr, err := h.Run(testlab.Cmd{Args: []string{"unshare", "--mount", "sh", "-ec", c.without + "; exec " + agent + flag}})
			if exitCode(err) != 1 || !strings.Contains(stderr, c.want) {
				t.Errorf("without %s, agent%s: %v, want %q\n%s", c.what, flag, err, c.want, stderr)
			}
		}
	}
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("it made %s", dir)
	}
	if diff := testlab.Diff(before, h.Inventory()); len(diff) > 0 {
		t.Errorf("the host is not as before:\n%s", strings.Join(diff, "\n"))
	}
}

// The unit that is shipped ends the agent alone, and lets nothing but systemd decide when it starts again.
func TestSystemdUnit(t *testing.T) {
	unit, err := os.ReadFile("../../examples/systemd/fairlead.service")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"KillMode=process", "Delegate=yes", "Restart=always", "ExecStart=/usr/local/bin/fairlead agent"} {
		if !slices.Contains(strings.Split(string(unit), "\n"), line) {
			t.Errorf("the unit lacks the line %s", line)
		}
	}
}
