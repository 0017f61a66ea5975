package story

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/fairlead-net/fairlead/internal/testlab"
)

// siteOf makes a site of a server and agents on hosts that share a link.
func siteOf(t *testing.T, agents ...string) (server *agent, members []*agent) {
	t.Helper()
	lab := testlab.New(t)
	lan := lab.Switch("198.51.100.0/24")
	first := lab.Host("server")
	lan.Join(first)
	var hosts []*testlab.Host
	for _, name := range agents {
		h := lab.Host(name)
		lan.Join(h)
		hosts = append(hosts, h)
	}
	server = begin(&agent{t: t, host: first, joins: true, flags: []string{"--advertise", lan.Addr(first).String()}, before: first.Inventory()})
	var token string
	testlab.Eventually(t, settleLimit, func() error {
		if token = joinToken.FindString(server.log()); token == "" {
			return errors.New("no join token yet")
		}
		return nil
	})
	for _, h := range hosts {
		members = append(members, begin(&agent{
			t: t, host: h, joins: true, flags: []string{"--advertise", lan.Addr(h).String(), "--join", token}, before: h.Inventory(),
		}))
	}
	return server, members
}

// TestOverlay: workloads on several hosts are in one network. They find each other by name, keep their addresses over their
// agent's restart, and reach a service's VIP whose instances are elsewhere.
func TestOverlay(t *testing.T) {
	t.Parallel()
	for _, transport := range []string{"auto", "vxlan"} {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			_, members := siteOf(t, "a1", "a2")
			a, b := members[0], members[1]
			a.cli("network", "create", "shop", "--driver", "overlay", "--transport", transport)
			a.run("shop", "web", "--service", "web", "--port", "80", "--check-http", "/", "--check-interval", "1s")
			testlab.Eventually(t, settleLimit, func() error {
				_, err := b.tryCLI(runArgs("shop", "cl", nil)...) // it may not have heard of the network yet
				return err
			})
			if out := b.cli("network", "inspect", "shop"); !strings.Contains(out, "Transport: "+transport+", VNI 8388609") {
				t.Errorf("inspected:\n%s", out)
			}
			own := b.workload("cl").Endpoints[0].Addrs
			reach := func(network, name string) {
				t.Helper()
				testlab.Eventually(t, settleLimit, func() error {
					out, err := b.fetchInside("cl", network, "http://"+name)
					if err == nil && !strings.Contains(out, "web "+own[map[string]int{"tcp4": 0, "tcp6": 1}[network]].String()) {
						err = fmt.Errorf("%s answered by %q, want by web to %v", name, out, own)
					}
					return err
				})
			}
			for _, network := range []string{"tcp4", "tcp6"} {
				reach(network, "web.shop.internal")
				reach(network, "web.service.consul") // by its VIP or its address
			}
			a.restart()
			b.restart()
			reach("tcp4", "web.shop.internal")
			if now := b.workload("cl").Endpoints[0].Addrs; fmt.Sprint(now) != fmt.Sprint(own) {
				t.Errorf("addresses %v, before the restart %v", now, own)
			}
		})
	}
}
