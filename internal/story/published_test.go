package story

import (
	"fmt"
	"strings"
	"testing"

	"github.com/fairlead-net/fairlead/internal/testlab"
)

// TestServiceOfAnotherNetwork: an instance in another network is out of reach, unless its port is published to more than the
// host: then callers get it at the host's address.
func TestServiceOfAnotherNetwork(t *testing.T) {
	t.Parallel()
	lab := testlab.New(t)
	h, outside := lab.Host("n1"), lab.Host("outside")
	wire := lab.Link(h, outside, "198.51.100.0/24")
	a := newAgent(t, h, "--advertise", wire.Addr(h).String())
	a.cli("network", "create", "front")
	a.cli("network", "create", "back")
	a.run("front", "caller")
	a.run("back", "hidden", "--service", "hidden", "--port", "80", "--check-tcp", "--wait", "20s")
	a.run("back", "shown", "--service", "shown", "--port", "80", "--check-tcp", "--wait", "20s", "--publish", "8080:80", "--expose", "any")

	if out, err := a.fetchInside("caller", "tcp4", "http://hidden/"); err == nil || !strings.Contains(err.Error(), "no route to host") {
		t.Errorf("an instance that is published nowhere: %q, %v", out, err)
	}
	testlab.Eventually(t, settleLimit, func() error {
		out, err := a.fetchInside("caller", "tcp4", "http://shown/")
		if err == nil && !strings.HasPrefix(out, "shown ") {
			err = fmt.Errorf("answer %q", out)
		}
		return err
	})
}
