package lb

import (
	"net/netip"
	"slices"

	"github.com/fairlead-net/fairlead/internal/datapath"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// protocols are those a VIP answers for: a service does not say which it speaks.
var protocols = []uint8{datapath.TCP, datapath.UDP}

// planService is the frontends of one service in every scope, and the addresses
// of all its instances.
func planService(snap *state.Snapshot, s *state.Service, scopes []Scope) (map[datapath.Frontend]datapath.Entry, map[netip.AddrPort]bool) {
	want := map[datapath.Frontend]datapath.Entry{}
	targets := resolve(snap, s)
	instances := map[netip.AddrPort]bool{}
	for _, t := range targets {
		for _, p := range t.places {
			instances[netip.AddrPortFrom(p.Addr, p.Port)] = true
		}
	}
	if s.VIP != nil {
		for _, sc := range scopes {
			planScope(want, s.VIP, targets, sc)
		}
	}
	return want, instances
}

// planPorts is the frontends of this node's published ports in every scope.
func (b *Balancer) planPorts(snap *state.Snapshot, scopes []Scope, hostAddrs []netip.Addr) map[datapath.Frontend]datapath.Entry {
	want := map[datapath.Frontend]datapath.Entry{}
	endpoints, _ := snap.Endpoints()
	for _, e := range endpoints {
		if e.Node != b.cfg.Node {
			continue
		}
		for _, p := range e.Ports {
			for _, sc := range scopes {
				planPort(want, e, p, sc, hostAddrs)
			}
		}
	}
	return want
}

// target is one instance as the planner sees it.
type target struct {
	vipPort uint16
	weight  uint32 // 0: not to be picked
	places  []model.Place
}

func resolve(snap *state.Snapshot, s *state.Service) []target {
	var all []target
	for _, m := range s.Members {
		port := uint16(m.Instance.Port)
		if v := m.Instance.TaggedAddresses[model.TagVirtual]; v.Port != 0 {
			port = uint16(v.Port)
		}
		if port == 0 {
			continue
		}
		all = append(all, target{vipPort: port, weight: weight(m), places: places(snap, m)})
	}
	return all
}

func weight(m *state.Member) uint32 {
	w := m.Instance.Weights
	switch m.Status() {
	case model.Passing:
		return uint32(max(w.Passing, 0))
	case model.Warning:
		return uint32(max(w.Warning, 0))
	}
	return 0
}

// places lists where an instance answers. One that was registered with nothing
// but an address has that one, in the network of the endpoint that holds it or
// else on the host.
func places(snap *state.Snapshot, m *state.Member) []model.Place {
	if len(m.Instance.Places) > 0 {
		return m.Instance.Places
	}
	a, err := netip.ParseAddr(m.Addr())
	if err != nil || m.Instance.Port == 0 {
		return nil
	}
	p := model.Place{Addr: a.Unmap(), Port: uint16(m.Instance.Port)}
	if e := snap.EndpointByAddr(p.Addr); e != nil {
		p.Network = e.Network
	}
	return []model.Place{p}
}

// planScope adds a service's frontends for one scope. A port that any instance
// of the service answers at has a frontend, even if nothing can be picked there
// now: callers are then told why. Instances that get nothing new are listed with
// weight zero, so that the UDP sockets that talk to them go on.
func planScope(want map[datapath.Frontend]datapath.Entry, vip *model.VIP, targets []target, sc Scope) {
	for _, addr := range []netip.Addr{vip.V4, vip.V6} {
		if !addr.IsValid() {
			continue
		}
		byPort := map[uint16]*portPlan{}
		for _, t := range targets {
			p := byPort[t.vipPort]
			if p == nil {
				p = &portPlan{weights: map[netip.AddrPort]uint32{}}
				byPort[t.vipPort] = p
			}
			p.healthy = p.healthy || t.weight > 0
			if at, ok := pick(t.places, sc, addr.Is4()); ok {
				p.weights[netip.AddrPortFrom(at.Addr, at.Port)] += t.weight
				p.reachable = p.reachable || t.weight > 0
			}
		}
		for port, p := range byPort {
			e := p.entry()
			for _, proto := range protocols {
				want[datapath.Frontend{Scope: sc.ID, Proto: proto, Addr: addr, Port: port}] = e
			}
		}
	}
}

// portPlan collects what answers at one port of a VIP.
type portPlan struct {
	healthy   bool // an instance that may be picked exists
	reachable bool // and one of them can be reached
	weights   map[netip.AddrPort]uint32
}

func (p *portPlan) entry() datapath.Entry {
	e := datapath.Entry{State: datapath.FrontendNoHealthy}
	switch {
	case p.reachable:
		e.State = datapath.FrontendOK
	case p.healthy:
		e.State = datapath.FrontendUnreachable
	}
	for at, w := range p.weights {
		e.Backends = append(e.Backends, datapath.Backend{Addr: at, Weight: w})
	}
	slices.SortFunc(e.Backends, func(a, b datapath.Backend) int { return a.Addr.Compare(b.Addr) })
	return e
}

// pick returns the place at which a scope reaches an instance: in a network it
// shares first, then at an address of a host.
func pick(all []model.Place, sc Scope, v4 bool) (model.Place, bool) {
	var host model.Place
	for _, p := range all {
		if p.Addr.Is4() != v4 {
			continue
		}
		if p.Network == "" {
			if !host.Addr.IsValid() && (sc.Host || !p.Addr.IsLoopback()) {
				host = p
			}
			continue
		}
		if slices.Contains(sc.Networks, p.Network) {
			return p, true
		}
	}
	return host, host.Addr.IsValid()
}

// planPort adds a published port's frontends for one scope. The host's own
// processes use it at every address of the host; workloads of the host, if it is
// published wider, at every address but loopback, which is their own.
func planPort(want map[datapath.Frontend]datapath.Entry, e *model.Endpoint, p model.PublishedPort, sc Scope, hostAddrs []netip.Addr) {
	if !sc.Host && p.Expose == model.ExposeHost {
		return
	}
	proto := datapath.TCP
	if p.Proto == model.UDP {
		proto = datapath.UDP
	}
	for _, h := range hostAddrs {
		if h.IsLoopback() && !sc.Host {
			continue
		}
		to := e.Addr4()
		if h.Is6() {
			to = e.Addr6()
		}
		if !to.IsValid() {
			continue
		}
		want[datapath.Frontend{Scope: sc.ID, Proto: proto, Addr: h, Port: p.HostPort}] = datapath.Entry{
			State:    datapath.FrontendOK,
			Backends: []datapath.Backend{{Addr: netip.AddrPortFrom(to, p.Port), Weight: 1}},
		}
	}
}
