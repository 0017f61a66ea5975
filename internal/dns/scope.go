package dns

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// scope is what an asker can reach, which decides at which of its places an
// instance is named to it.
type scope struct {
	// host: the asker is a process of this host, outside of all networks.
	host bool
	// networks that the asker is in, sorted; empty for the host and for askers
	// from elsewhere.
	networks []model.NetworkName
	// outside: the asker can reach the hosts' own addresses.
	outside bool
}

// where is the asker's scope.
func (a *answering) where() *scope {
	if a.scope == nil {
		a.scope = a.zones.scopeOf(a.snap.all(), a.asker)
	}
	return a.scope
}

// scopeOf says what the asker at an address can reach. An endpoint's address
// stands for its workload, hence for all networks that the workload is in. An
// address out of a network's pool that no endpoint holds (yet) stands for that
// network.
func (z *zones) scopeOf(snap *state.Snapshot, asker netip.Addr) *scope {
	if !asker.IsValid() || asker.IsLoopback() {
		return &scope{host: true, outside: true}
	}
	networks, _ := snap.Networks()
	e := snap.EndpointByAddr(asker)
	var sc scope
	for _, n := range networks {
		if n.Node != "" && n.Node != z.node {
			continue
		}
		switch {
		case e != nil && z.inSame(snap, e, n.Name):
		case e == nil && isGateway(n, asker):
			return &scope{host: true, outside: true}
		case e == nil && inPool(n, asker):
		default:
			continue
		}
		sc.networks = append(sc.networks, n.Name)
		sc.outside = sc.outside || !n.Internal
	}
	if len(sc.networks) == 0 {
		sc.host = e == nil && z.isHost != nil && z.isHost(asker)
		sc.outside = true
	}
	return &sc
}

// inSame reports whether a workload, known by one of its endpoints, is also in a
// network.
func (z *zones) inSame(snap *state.Snapshot, e *model.Endpoint, n model.NetworkName) bool {
	if e.Network == n {
		return true
	}
	return slices.ContainsFunc(snap.EndpointsByName(n, string(e.Workload)), func(o *model.Endpoint) bool {
		return o.Node == e.Node && (o.Workload == e.Workload || o.NetNS != "" && o.NetNS == e.NetNS)
	})
}

func isGateway(n *model.Network, ip netip.Addr) bool {
	return slices.ContainsFunc(n.Pools, func(p model.Pool) bool { return p.Gateway == ip })
}

func inPool(n *model.Network, ip netip.Addr) bool {
	return slices.ContainsFunc(n.Pools, func(p model.Pool) bool { return p.Prefix.Contains(ip) })
}

// The order in which an instance's places are preferred (DATAPATH: a shared
// network, then the host's own address).
const (
	rankShared = iota
	rankHost
	unreachable
)

func (a *answering) rank(p model.Place) int {
	sc := a.where()
	switch {
	case !p.Addr.IsValid() || p.Addr.IsUnspecified():
		return unreachable
	case p.Network == "":
		// Somebody else's loopback address is the asker's own.
		if sc.host || sc.outside && !p.Addr.IsLoopback() {
			return rankHost
		}
	case sc.host:
		if n := a.snap.Network(p.Network); n != nil && (n.Node == "" || n.Node == a.node) {
			return rankShared
		}
	case slices.Contains(sc.networks, p.Network):
		return rankShared
	}
	return unreachable
}

// reach is how an asker gets to one instance: at most one place per family, or
// the name of a host.
type reach struct {
	v4, v6       model.Place // valid if Addr is
	rank4, rank6 int
	host         string
	port         uint16 // at host
	atNode       bool   // the address is that of the instance's node
}

func (r *reach) any() bool { return r.v4.Addr.IsValid() || r.v6.Addr.IsValid() || r.host != "" }

// reach finds the places at which the asker can reach an instance.
func (a *answering) reach(m *state.Member) reach {
	r := reach{rank4: unreachable, rank6: unreachable}
	if len(m.Instance.Places) > 0 {
		for _, p := range m.Instance.Places {
			a.consider(&r, p)
		}
		return r
	}
	main := netip.Addr{}
	if ip, err := netip.ParseAddr(m.Addr()); err == nil {
		main = ip.Unmap().WithZone("")
		r.atNode = m.Instance.Address == ""
		a.at(&r, main, m.Instance.Port)
	}
	// A tagged address tells the other family's, or that of a name.
	for _, tag := range []string{tagIPv4, tagIPv6} {
		tagged, ok := m.Instance.TaggedAddresses[tag]
		if !ok && m.Instance.Address == "" {
			tagged = model.ServiceAddress{Address: m.Node.TaggedAddresses[tag]}
		}
		ip, err := netip.ParseAddr(tagged.Address)
		ip = ip.Unmap().WithZone("")
		if err != nil || ip.Is4() != (tag == tagIPv4) || main.IsValid() && ip.Is4() == main.Is4() {
			continue
		}
		a.at(&r, ip, cmp.Or(tagged.Port, m.Instance.Port))
		main = ip
	}
	if !main.IsValid() && a.where().outside {
		r.host, r.port = hostname(m.Addr()), uint16(m.Instance.Port)
	}
	return r
}

// at considers an address of an instance that names no places.
func (a *answering) at(r *reach, ip netip.Addr, port int) {
	p := model.Place{Addr: ip, Port: uint16(port)}
	// An instance may have been registered by nothing but an endpoint's address.
	if e := a.snap.EndpointByAddr(ip); e != nil {
		p.Network = e.Network
	}
	a.consider(r, p)
}

func (a *answering) consider(r *reach, p model.Place) {
	p.Addr = p.Addr.Unmap()
	best, rank := &r.v4, &r.rank4
	if p.Addr.Is6() {
		best, rank = &r.v6, &r.rank6
	}
	if k := a.rank(p); k < *rank {
		*best, *rank = p, k
	}
}
