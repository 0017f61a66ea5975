package endpoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"

	"github.com/fairlead-net/fairlead/internal/datapath"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/netdrv"
)

// plug brings the kernel to a recorded endpoint: bridge, interface, program,
// maps, rules. It takes over the ports held for it, whether it succeeds or not.
// The caller holds the endpoint's lock.
func (s *Set) plug(ctx context.Context, n model.Network, e model.Endpoint, held map[portKey]io.Closer) error {
	was := s.doubt(e.ID)
	p, err := s.plugLink(ctx, n, e)
	if err != nil {
		closeAll(held)
		return err
	}
	mac, err := net.ParseMAC(p.MAC)
	if err != nil || len(mac) != 6 {
		closeAll(held)
		return fmt.Errorf("interface %s has MAC %q, which is none: %w", e.HostIf, p.MAC, errors.Join(err, datapath.ErrInvalid))
	}
	now := &place{endpoint: e, plugged: p, held: held}
	var dropped map[portKey]io.Closer
	s.mu.Lock()
	if was != nil {
		now.held, dropped = merge(e.Ports, was.held, held)
	}
	s.attached[e.ID] = now
	delete(s.waiting, e.ID)
	s.mu.Unlock()
	defer closeAll(dropped) // once no rule leads there

	if was != nil {
		if err := s.forget(was, now); err != nil {
			return err
		}
	}
	number := uint32(p.BridgeIfIndex)
	for _, a := range e.Addrs {
		if err := s.cfg.Path.SetEndpoint(datapath.NetEndpoint{Network: number, Addr: a, IfIndex: uint32(p.HostIfIndex), MAC: [6]byte(mac)}); err != nil {
			return fmt.Errorf("set endpoint %s: %w", a, err)
		}
	}
	if err := s.cfg.Path.AttachVeth(datapath.Veth{IfIndex: p.HostIfIndex, Network: number, MAC: [6]byte(mac), Addrs: e.Addrs}); err != nil {
		return fmt.Errorf("attach the program to %s: %w", e.HostIf, err)
	}
	if err := s.scopes.put(e.ID, p.Cookie, e.Network); err != nil {
		return fmt.Errorf("set the scope of %s: %w", e.NetNS, err)
	}
	if err := s.applyRules(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now.complete = true
	return nil
}

// doubt returns what stands of an endpoint, nil for nothing, and notes that it
// is being worked on.
func (s *Set) doubt(id model.EndpointID) *place {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.attached[id]
	if p != nil {
		p.complete = false
	}
	return p
}

// plugLink makes or completes the interface, and the bridge if it is not there.
func (s *Set) plugLink(ctx context.Context, n model.Network, e model.Endpoint) (netdrv.Plugged, error) {
	if err := s.ensureNetwork(ctx, n.Name, false); err != nil {
		return netdrv.Plugged{}, err
	}
	p, err := s.cfg.Driver.Attach(ctx, netdrv.Plug{Network: n, Endpoint: e})
	if !errors.Is(err, netdrv.ErrNoNetwork) {
		return p, err
	}
	// The bridge was taken away since it was made.
	if err := s.ensureNetwork(ctx, n.Name, true); err != nil {
		return netdrv.Plugged{}, err
	}
	return s.cfg.Driver.Attach(ctx, netdrv.Plug{Network: n, Endpoint: e})
}

// forget removes the data path's entries of an endpoint as it was, unless it is
// so still.
func (s *Set) forget(was, now *place) error {
	var errs []error
	same := now != nil && now.plugged.BridgeIfIndex == was.plugged.BridgeIfIndex
	for _, a := range was.endpoint.Addrs {
		if !same || !slices.Contains(now.endpoint.Addrs, a) {
			errs = append(errs, s.cfg.Path.DeleteEndpoint(uint32(was.plugged.BridgeIfIndex), a))
		}
	}
	if now == nil || now.plugged.HostIfIndex != was.plugged.HostIfIndex {
		errs = append(errs, s.cfg.Path.DetachVeth(was.plugged.HostIfIndex))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("forget interface %s: %w", was.plugged.HostIf, err)
	}
	return nil
}

// unplug takes an endpoint out of the kernel. What is already gone is no error,
// and what fails does not keep the rest from going. The caller holds the
// endpoint's lock.
func (s *Set) unplug(ctx context.Context, e model.Endpoint) error {
	s.mu.Lock()
	was := s.attached[e.ID]
	delete(s.attached, e.ID)
	delete(s.waiting, e.ID)
	delete(s.problems, problemOf(&e))
	s.mu.Unlock()
	errs := []error{s.scopes.drop(e.ID), s.applyRules(ctx)}
	if was != nil {
		errs = append(errs, s.forget(was, nil))
		closeAll(was.held)
	}
	errs = append(errs, s.cfg.Driver.Detach(ctx, e))
	return errors.Join(errs...)
}

// merge joins the ports held before with the new ones and sorts out those that
// are published no more.
func merge(ports []model.PublishedPort, before, fresh map[portKey]io.Closer) (keep, drop map[portKey]io.Closer) {
	keep, drop = map[portKey]io.Closer{}, map[portKey]io.Closer{}
	published := map[portKey]bool{}
	for _, p := range ports {
		published[portKey{p.Proto, p.HostPort}] = true
	}
	for k, c := range before {
		if published[k] {
			keep[k] = c
		} else {
			drop[k] = c
		}
	}
	for k, c := range fresh {
		keep[k] = c
	}
	return keep, drop
}
