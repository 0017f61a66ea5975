package endpoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/fairlead-net/fairlead/internal/datapath"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/netdrv"
)

// plug brings the kernel to a recorded endpoint: bridge, interface, program,
// maps, rules. It takes over the ports held for it, whether it succeeds or not.
// The caller holds the endpoint's lock.
func (s *Set) plug(ctx context.Context, n model.Network, e model.Endpoint, held map[portKey]io.Closer) error {
	if err := s.ensureNetwork(ctx, n, false); err != nil {
		closeAll(held)
		return err
	}
	p, err := s.cfg.Driver.Attach(ctx, netdrv.Plug{Network: n, Endpoint: e})
	if err != nil && s.ensureNetwork(ctx, n, true) == nil {
		// The bridge may have been taken away since it was made.
		p, err = s.cfg.Driver.Attach(ctx, netdrv.Plug{Network: n, Endpoint: e})
	}
	if err != nil {
		closeAll(held)
		return err
	}
	mac, err := net.ParseMAC(p.MAC)
	if err != nil || len(mac) != 6 {
		closeAll(held)
		return fmt.Errorf("interface %s has MAC %q: %w", e.HostIf, p.MAC, err)
	}
	s.mu.Lock()
	was := s.attached[e.ID]
	now := &place{endpoint: e, plugged: p, held: held}
	if was != nil {
		now.held = merge(was.held, held)
	}
	s.attached[e.ID] = now
	s.mu.Unlock()

	number := uint32(p.BridgeIfIndex)
	for _, a := range e.Addrs {
		if err := s.cfg.Path.SetEndpoint(datapath.NetEndpoint{Network: number, Addr: a, IfIndex: uint32(p.HostIfIndex), MAC: [6]byte(mac)}); err != nil {
			return fmt.Errorf("set endpoint %s: %w", a, err)
		}
	}
	if err := s.cfg.Path.AttachVeth(datapath.Veth{IfIndex: p.HostIfIndex, Network: number, MAC: [6]byte(mac), Addrs: e.Addrs}); err != nil {
		return fmt.Errorf("attach the program to %s: %w", e.HostIf, err)
	}
	if was == nil || was.plugged.Cookie != p.Cookie {
		if was != nil {
			if err := s.scopes.leave(was.plugged.Cookie, e.Network); err != nil {
				return err
			}
		}
		if err := s.scopes.join(p.Cookie, e.Network); err != nil {
			return err
		}
	}
	return s.applyRules(ctx)
}

// unplug takes an endpoint out of the kernel. What is already gone is no error.
// The caller holds the endpoint's lock.
func (s *Set) unplug(ctx context.Context, e model.Endpoint) error {
	s.mu.Lock()
	was := s.attached[e.ID]
	delete(s.attached, e.ID)
	s.mu.Unlock()
	var errs []error
	if was != nil {
		closeAll(was.held)
		errs = append(errs, s.scopes.leave(was.plugged.Cookie, e.Network))
		for _, a := range e.Addrs {
			errs = append(errs, s.cfg.Path.DeleteEndpoint(uint32(was.plugged.BridgeIfIndex), a))
		}
	}
	errs = append(errs, s.applyRules(ctx), s.cfg.Driver.Detach(ctx, e))
	s.problem("endpoint "+string(e.ID), nil)
	return errors.Join(errs...)
}

// merge keeps the ports held before beside the new ones.
func merge(a, b map[portKey]io.Closer) map[portKey]io.Closer {
	out := map[portKey]io.Closer{}
	for k, c := range a {
		out[k] = c
	}
	for k, c := range b {
		out[k] = c
	}
	return out
}
