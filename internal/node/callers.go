package node

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"

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

// Gone ends local callers' connections to instances that were removed. They would
// learn of it minutes later, by their own timeouts.
func (c *callers) Gone(ctx context.Context, instances []netip.AddrPort, still func(netip.AddrPort) bool) {
	picks, err := c.maps.PickedTo(instances...)
	if err != nil {
		c.log.Warn("find connections to removed instances", "instances", instances, "error", err)
		return
	}
	// Asked after looking: whoever connected to one that has come back since is
	// not among these.
	picks = slices.DeleteFunc(picks, func(p datapath.Pick) bool { return !still(p.Instance) })
	if len(picks) == 0 || ctx.Err() != nil {
		return
	}
	for _, path := range append([]string{""}, c.endpoints.Namespaces()...) {
		err := c.net.InNamespace(path, func() error {
			_, err := datapath.DestroySockets(picks)
			return err
		})
		if errors.Is(err, netdrv.ErrNoNamespace) {
			continue // its workload has just ended, and its connections with it
		}
		if err != nil {
			c.log.Warn("end connections to removed instances", "instances", instances, "namespace", path, "error", err)
		}
	}
}
