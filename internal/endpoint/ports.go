package endpoint

import (
	"fmt"
	"io"

	"github.com/fairlead-net/fairlead/internal/model"
)

// checkPorts fills in defaults and refuses what cannot be published.
func checkPorts(ports []model.PublishedPort) ([]model.PublishedPort, error) {
	seen := map[portKey]bool{}
	var out []model.PublishedPort
	for _, p := range ports {
		if p.Expose == "" {
			p.Expose = model.ExposeHost
		}
		if p.Proto == "" {
			p.Proto = model.TCP
		}
		switch {
		case p.Proto != model.TCP && p.Proto != model.UDP:
			return nil, fmt.Errorf("protocol %q: %w: want tcp or udp", p.Proto, ErrPort)
		case p.HostPort == 0 || p.Port == 0:
			return nil, fmt.Errorf("%d:%d: %w: both ports must be 1 to 65535", p.HostPort, p.Port, ErrPort)
		case p.Expose != model.ExposeHost && p.Expose != model.ExposeLAN && p.Expose != model.ExposeAny:
			return nil, fmt.Errorf("expose %q: %w: want host, lan or any", p.Expose, ErrPort)
		}
		k := portKey{p.Proto, p.HostPort}
		if seen[k] {
			return nil, fmt.Errorf("host port %d/%s is published twice: %w", p.HostPort, p.Proto, ErrPort)
		}
		seen[k] = true
		out = append(out, p)
	}
	return out, nil
}

// holdPorts takes the endpoint's host ports, but for those it already holds, so
// that no listener of the host is shadowed and none can take them later.
func (s *Set) holdPorts(e model.Endpoint) (map[portKey]io.Closer, error) {
	for _, p := range e.Ports {
		if err := s.portFree(e.ID, p); err != nil {
			return nil, err
		}
	}
	has := s.holds(e.ID)
	held := map[portKey]io.Closer{}
	for _, p := range e.Ports {
		k := portKey{p.Proto, p.HostPort}
		if has[k] {
			continue
		}
		c, err := s.cfg.Driver.HoldPort(p.Proto, p.HostPort)
		if err != nil {
			closeAll(held)
			return nil, fmt.Errorf("publish %d/%s: %w: %w", p.HostPort, p.Proto, ErrPortTaken, err)
		}
		held[k] = c
	}
	return held, nil
}

// holds lists the ports that an endpoint holds.
func (s *Set) holds(id model.EndpointID) map[portKey]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	has := map[portKey]bool{}
	if p := s.attached[id]; p != nil {
		for k := range p.held {
			has[k] = true
		}
	}
	return has
}

// portFree refuses a port that another endpoint of this node publishes.
func (s *Set) portFree(id model.EndpointID, p model.PublishedPort) error {
	all, _ := s.cfg.State.Snapshot().Endpoints()
	for _, o := range all {
		if o.ID == id || o.Node != s.cfg.Node {
			continue
		}
		for _, q := range o.Ports {
			if q.Proto == p.Proto && q.HostPort == p.HostPort {
				return fmt.Errorf("publish %d/%s: %w by workload %q in network %q; stop it or choose another host port", p.HostPort, p.Proto, ErrPortTaken, o.Workload, o.Network)
			}
		}
	}
	return nil
}

func closeAll(held map[portKey]io.Closer) {
	for _, c := range held {
		_ = c.Close() // a bound socket: nothing is lost
	}
}
