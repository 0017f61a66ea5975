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

// callers is a scope and what the catalogue says of its networks.
type callers struct {
	Scope
	// outside: they can reach the hosts' own addresses. Those who are in internal
	// networks only cannot; dns answers them by the same rule.
	outside bool
}

func know(snap *state.Snapshot, scopes []Scope) []callers {
	all := make([]callers, 0, len(scopes))
	for _, sc := range scopes {
		c := callers{Scope: sc, outside: sc.Host}
		for _, name := range sc.Networks {
			if n, _ := snap.Network(name); n != nil && !n.Internal {
				c.outside = true
			}
		}
		all = append(all, c)
	}
	return all
}

// plan is what one group wants of the maps.
type plan struct {
	source *state.Service
	want   map[datapath.Frontend]datapath.Entry
	// instances are the addresses of all of the service's, whatever their state.
	instances []netip.AddrPort
	lookups   []lookup
}

// lookup is an instance's address whose network was asked of the catalogue, and
// the answer; empty: the host's.
type lookup struct {
	addr    netip.Addr
	network model.NetworkName
}

func networkOf(snap *state.Snapshot, a netip.Addr) model.NetworkName {
	if e := snap.EndpointByAddr(a); e != nil {
		return e.Network
	}
	return ""
}

// planService is the frontends of one service in every scope.
func planService(snap *state.Snapshot, s *state.Service, scopes []callers) plan {
	p := plan{source: s, want: map[datapath.Frontend]datapath.Entry{}}
	targets := p.resolve(snap)
	for _, t := range targets {
		for _, at := range t.places {
			p.instances = append(p.instances, netip.AddrPortFrom(at.Addr, at.Port))
		}
	}
	p.instances = distinct(p.instances)
	if s.VIP != nil {
		for _, sc := range scopes {
			planScope(p.want, s.VIP, targets, sc)
		}
	}
	return p
}

func distinct(all []netip.AddrPort) []netip.AddrPort {
	slices.SortFunc(all, netip.AddrPort.Compare)
	return slices.Compact(all)
}

// target is one instance as the planner sees it.
type target struct {
	vipPort uint16
	weight  uint32 // 0: not to be picked
	places  []model.Place
}

func (p *plan) resolve(snap *state.Snapshot) []target {
	var all []target
	for _, m := range p.source.Members {
		port := m.Instance.Port
		if v := m.Instance.TaggedAddresses[model.TagVirtual]; v.Port != 0 {
			port = v.Port
		}
		if port < 1 || port > 65535 {
			continue
		}
		all = append(all, target{vipPort: uint16(port), weight: weight(m), places: p.places(snap, m)})
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
// else on the host. What no packet can be sent to is left out, since one such
// place must not keep the service's others from being programmed.
func (p *plan) places(snap *state.Snapshot, m *state.Member) []model.Place {
	all := slices.Clone(m.Instance.Places)
	if len(all) == 0 {
		a, err := netip.ParseAddr(m.Addr())
		if err != nil || m.Instance.Port < 1 || m.Instance.Port > 65535 {
			return nil
		}
		at := model.Place{Addr: a.Unmap(), Port: uint16(m.Instance.Port)}
		at.Network = networkOf(snap, at.Addr)
		p.lookups = append(p.lookups, lookup{at.Addr, at.Network})
		all = append(all, at)
	}
	for i := range all {
		all[i].Addr = all[i].Addr.Unmap()
	}
	return slices.DeleteFunc(all, func(at model.Place) bool {
		return !at.Addr.IsValid() || at.Addr.IsUnspecified() || at.Addr.Zone() != "" || at.Port == 0
	})
}

// planScope adds a service's frontends for one scope. A port that any instance
// of the service answers at has a frontend, even if nothing can be picked there
// now: callers are then told why. Instances that get nothing new are listed with
// weight zero, so that the UDP sockets that talk to them go on.
func planScope(want map[datapath.Frontend]datapath.Entry, vip *model.VIP, targets []target, sc callers) {
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

// pick returns the place at which callers reach an instance: in a network they
// share first, then at an address of a host. Somebody else's loopback address is
// the caller's own.
func pick(all []model.Place, sc callers, v4 bool) (model.Place, bool) {
	var host model.Place
	for _, p := range all {
		if p.Addr.Is4() != v4 {
			continue
		}
		if p.Network == "" {
			if !host.Addr.IsValid() && (sc.Host || sc.outside && !p.Addr.IsLoopback()) {
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

// planPorts is the frontends of this node's published ports in every scope. They
// list no instances: connections to a published port end as its workload does.
func (b *Balancer) planPorts(snap *state.Snapshot, now basis) plan {
	p := plan{want: map[datapath.Frontend]datapath.Entry{}}
	endpoints, _ := snap.Endpoints()
	for _, e := range endpoints {
		if e.Node != b.cfg.Node {
			continue
		}
		for _, port := range e.Ports {
			for _, sc := range now.callers {
				planPort(p.want, e, port, sc, now.addrs)
			}
		}
	}
	return p
}

// planPort adds a published port's frontends for one scope. The host's own
// processes use it at every address of the host, workloads never at loopback,
// which is their own. They use it, if it is published wider than the host, when
// they share the endpoint's network; what others send goes through the packet
// filter, since no network lets packets of another one in.
func planPort(want map[datapath.Frontend]datapath.Entry, e *model.Endpoint, p model.PublishedPort, sc callers, hostAddrs []netip.Addr) {
	if !sc.Host && (p.Expose == model.ExposeHost || !sc.outside || !slices.Contains(sc.Networks, e.Network)) {
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
