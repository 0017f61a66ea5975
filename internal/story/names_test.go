package story

import (
	"strconv"
	"strings"
	"testing"

	"github.com/fairlead-net/fairlead/internal/testlab"
)

// A program that looks a name up by the C library while no agent runs waits for the agent, and is not told that there is no answer.
func TestLookupWaitsForTheAgent(t *testing.T) {
	t.Parallel()
	testlab.Require(t, testlab.Tool("getent"))
	h := testlab.New(t).Host("n1")
	a := newAgent(t, h)
	a.cli("network", "create", "my-network")
	a.serveIn("my-network", "web-1", "--ip", "10.210.0.9")
	a.run("my-network", "cl")
	pid := strconv.Itoa(a.workload("cl").PID)
	a.kill()
	begin := monotonic()
	lookup := h.Start("nsenter", "--target", pid, "--net", "--mount", "--", "getent", "ahostsv4", "web-1")
	a.start()
	back := monotonic()
	if err := lookup.Wait(settleLimit); err != nil || !strings.HasPrefix(lookup.Output(), "10.210.0.9 ") {
		t.Errorf("getent: %v %q", err, lookup.Output())
	}
	t.Logf("the agent was away for %v; the name was answered %v later", back-begin, monotonic()-back)
}
