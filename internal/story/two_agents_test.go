package story

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairlead-net/fairlead/internal/testlab"
)

// TestTwoAgentsOnOneHost: a second agent with everything of its own is told that a host has one, and changes nothing of the
// first one's.
func TestTwoAgentsOnOneHost(t *testing.T) {
	t.Parallel()
	h := testlab.New(t).Host("shared")
	a := newAgent(t, h)
	a.cli("network", "create", "net")
	before := h.Inventory()

	own := filepath.Join(h.Dir(), "second")
	cgroup := filepath.Join(h.Cgroup(), "second")
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		t.Fatal(err)
	}
	second := []string{
		"--data-dir", own + "/data", "--run-dir", own + "/run", "--cgroup", cgroup, "--bpffs", h.BPFFS(),
		"--http-addr", "127.0.0.1:9500", "--dns-addr", "127.0.0.1:9600", "--node-name", "second",
	}
	out, err := a.tryCLI(append([]string{"agent"}, second...)...)
	if err == nil || !strings.Contains(err.Error(), "another one works in this network namespace") {
		t.Errorf("the second agent: %v\n%s", err, out)
	}
	if nft := h.Exec("nft", "list", "ruleset"); !strings.Contains(nft, "table inet fairlead") {
		t.Errorf("the first agent's table is gone:\n%s", nft)
	}
	out, err = a.tryCLI(append([]string{"down", "--purge"}, second...)...)
	if err == nil || !strings.Contains(err.Error(), "give 'down' the settings of that one") {
		t.Errorf("down of the second agent, which never was: %v\n%s", err, out)
	}
	if err := os.Remove(cgroup); err != nil {
		t.Error(err)
	}
	if diff := testlab.Diff(before, h.Inventory()); len(diff) > 0 {
		t.Errorf("the second agent changed the host:\n%s", strings.Join(diff, "\n"))
	}
}

// TestStrangerHoldsTheName: whoever is not root cannot keep the agent from starting.
func TestStrangerHoldsTheName(t *testing.T) {
	t.Parallel()
	testlab.Require(t, testlab.Tool("python3"), testlab.Tool("setpriv"))
	h := testlab.New(t).Host("squatted")
	p := h.Start("setpriv", "--reuid", "65534", "--clear-groups", "/usr/bin/python3", "-uc", `import signal, socket
s = socket.socket(socket.AF_UNIX)
s.bind("\0fairlead-agent")
s.listen()
print("held")
signal.pause()`)
	testlab.Eventually(t, settleLimit, func() error {
		if !strings.Contains(p.Output(), "held") {
			return errors.New(p.Output())
		}
		return nil
	})
	newAgent(t, h)
}
