package node

import (
	"context"
	"log/slog"
	"net"
	"net/netip"

	"github.com/fairlead-net/fairlead/internal/datapath"
	"github.com/fairlead-net/fairlead/internal/endpoint"
	"github.com/fairlead-net/fairlead/internal/lb"
	"github.com/fairlead-net/fairlead/internal/netdrv"
)

// callers tells the balancer who calls from this node.
type callers struct {
	endpoints *endpoint.Set
	net       *netdrv.Host
	maps      *datapath.Kernel
	log       *slog.Logger
}

var _ lb.Node = (*callers)(nil)

func (c *callers) Scopes() ([]lb.Scope, <-chan struct{}) {
	all, changed := c.endpoints.Scopes()
	out := make([]lb.Scope, 0, len(all))
	for _, s := range all {
		out = append(out, lb.Scope{ID: s.ID, Host: s.Host, Networks: s.Networks})
	}
	return out, changed
}

// Addrs lists the host's addresses but for the link-local ones, which mean
// nothing without their interface.
func (c *callers) Addrs() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, a := range all {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || p.Addr().IsLinkLocalUnicast() {
			continue
		}
		out = append(out, p.Addr().Unmap())
	}
	return out, nil
}

// Gone ends local callers' connections to an instance that was removed. They
// would learn of it minutes later, by their own timeouts.
func (c *callers) Gone(_ context.Context, instance netip.AddrPort) {
	var cookies []uint64
	for _, proto := range []uint8{datapath.TCP, datapath.UDP} {
		found, err := c.maps.PickedTo(instance, proto)
		if err != nil {
			c.log.Warn("find connections to a removed instance", "instance", instance, "error", err)
			return
		}
		cookies = append(cookies, found...)
	}
	if len(cookies) == 0 {
		return
	}
	for _, path := range append([]string{""}, c.endpoints.Namespaces()...) {
		err := c.net.InNamespace(path, func() error {
			_, err := datapath.DestroySockets(cookies, instance)
			return err
		})
		if err != nil {
			c.log.Warn("end connections to a removed instance", "instance", instance, "namespace", path, "error", err)
		}
	}
}

func (a *Agent) counters() datapath.Counters {
	c, err := a.maps.Counters()
	if err != nil {
		a.log.Warn("read the data path's counters", "error", err)
	}
	return c
}
