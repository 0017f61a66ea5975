package dns_test

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"github.com/fairlead-net/fairlead/internal/dns"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/testlab"
)

// twoPlaces is a network net-a with endpoints app and db, a service db reachable
// in the network and at a published port, and its VIP.
func twoPlaces() *state.State {
	pool := func(p, gw string) model.Pool {
		return model.Pool{Prefix: netip.MustParsePrefix(p), Gateway: netip.MustParseAddr(gw)}
	}
	endpoint := func(name string, addrs ...string) state.Change {
		e := &model.Endpoint{ID: model.EndpointID(name), Workload: model.WorkloadName(name), Network: "net-a", Node: "n1", NetNS: "/" + name}
		for _, a := range addrs {
			e.Addrs = append(e.Addrs, netip.MustParseAddr(a))
		}
		return state.Change{Endpoint: e}
	}
	st := state.New()
	st.Reset(1, []state.Change{
		{Node: &model.Node{Name: "n1", Address: "10.1.0.1"}},
		{Network: &model.Network{Name: "net-a", Node: "n1", Pools: []model.Pool{pool("10.210.0.0/24", "10.210.0.1"), pool("fd0a::/64", "fd0a::1")}}},
		endpoint("app", "10.210.0.4", "fd0a::4"),
		endpoint("db", "10.210.0.2", "fd0a::2"),
		{VIP: &model.VIP{Service: "orders", V4: netip.MustParseAddr("240.0.0.9"), V6: netip.MustParseAddr("fdff::9")}},
		{Instance: &model.Instance{Node: "n1", ID: "o1", Service: "orders", Weights: model.DefaultWeights, Places: []model.Place{
			{Network: "net-a", Addr: netip.MustParseAddr("10.210.0.2"), Port: 80},
			{Addr: netip.MustParseAddr("10.1.0.1"), Port: 30080},
		}}},
	})
	return st
}

// TestGateway asks from inside a workload's namespace, over both families, at the
// gateways of a bridge that was made a moment ago.
func TestGateway(t *testing.T) {
	testlab.Require(t, testlab.Root, testlab.Tool("dig"))
	lab := testlab.New(t)
	host := lab.Host("n1")
	app := host.Namespace("app")
	host.Exec("ip", "link", "add", "fl-br", "type", "bridge")
	host.Exec("ip", "link", "add", "fl-veth", "type", "veth", "peer", "name", "eth0", "netns", app.NetNSPath())
	host.Exec("ip", "link", "set", "fl-veth", "master", "fl-br", "up")
	app.Exec("ip", "addr", "add", "10.210.0.4/24", "dev", "eth0")
	app.Exec("ip", "-6", "addr", "add", "fd0a::4/64", "dev", "eth0", "nodad")
	app.Exec("ip", "link", "set", "eth0", "up")

	s := dns.New(dns.Config{Addr: "127.0.0.1:8600", Node: "n1"}, twoPlaces())
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- host.Do(func() error { return s.Run(ctx, func() { close(ready) }) })
	}()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	// Before the addresses exist: what is bound is the address, not the moment.
	gateways := []netip.AddrPort{netip.MustParseAddrPort("10.210.0.1:53"), netip.MustParseAddrPort("[fd0a::1]:53")}
	err := host.Do(func() error {
		for _, at := range gateways {
			if err := s.Listen(ctx, at); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	host.Exec("ip", "addr", "add", "10.210.0.1/24", "dev", "fl-br")
	host.Exec("ip", "-6", "addr", "add", "fd0a::1/64", "dev", "fl-br", "nodad")
	host.Exec("ip", "link", "set", "fl-br", "up")

	for _, tt := range []struct{ args, want string }{
		{"@10.210.0.1 db A", "10.210.0.2"},
		{"@10.210.0.1 db A +tcp", "10.210.0.2"},
		{"@fd0a::1 db AAAA", "fd0a::2"},
		{"@fd0a::1 db A +tcp", "10.210.0.2"},
		{"@10.210.0.1 orders A", "240.0.0.9"},
		{"@10.210.0.1 orders.service.consul A", "10.210.0.2"},
		{"@10.210.0.1 -x 10.210.0.2", "db.net-a.internal."},
	} {
		args := append(strings.Fields("dig +short +time=2 +tries=3"), strings.Fields(tt.args)...)
		if got := strings.TrimSpace(app.Exec(args...)); got != tt.want {
			t.Errorf("%v from the workload: %q, want %q", args, got, tt.want)
		}
	}
	got := host.Exec(strings.Fields("dig +short @127.0.0.1 -p 8600 db.net-a.internal A")...)
	if strings.TrimSpace(got) != "10.210.0.2" {
		t.Errorf("db.net-a.internal from the host: %q", got)
	}
	for _, at := range gateways {
		s.Unlisten(at)
	}
}
