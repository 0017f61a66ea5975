// Package datapath is the part of Fairlead that runs inside the kernel: eBPF programs that send connections made to a virtual IP
// (VIP) to an instance of its service, and a program on the host side of each endpoint's veth that carries traffic between
// endpoints of one network past the host's forward hook.
//
// Reconcilers (lb, endpoint) call it, through the Maps interface and the methods of Kernel; nothing else may. It knows addresses,
// ports and interface indexes, and nothing of services, health or networks' names. There are three implementations of Maps: Kernel
// (the real one), Fake (in memory) and the one made by NewFaulty (fails on request), and one text form, Dump, that is equal for all.
//
// All methods may be called by several goroutines at once; each call is atomic towards the others and towards the programs: a
// connection sees a frontend as it was before or after a change and never between.
package datapath

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
)

var (
	// ErrInvalid says that an argument can never be accepted, such as an address of the wrong family.
	ErrInvalid = errors.New("invalid argument")
	// ErrInUse says that the cgroup already carries the programs of another agent.
	ErrInUse = errors.New("another fairlead agent is attached to this cgroup")
	// ErrFull says that a map of fixed size has no room left.
	ErrFull = errors.New("no room left")
	// ErrUnsupported says that the running kernel lacks a feature; the error that wraps it names the feature.
	ErrUnsupported = errors.New("not supported by this kernel")

	// errCorrupt says that pinned maps contradict each other, which only somebody else's hand can do to them.
	errCorrupt = errors.New("pinned maps are inconsistent (fairlead down --purge removes them)")
)

// Protocol numbers of Frontend.Proto (IANA "Assigned Internet Protocol Numbers").
const (
	TCP uint8 = 6
	UDP uint8 = 17
)

// Scope is a set of networks from which the same instances are reachable. Zero is no scope.
type Scope uint32

// HostScope is the scope of the host's own network namespace.
const HostScope Scope = 1

// Frontend is an address and port that connections are made to, as seen from one scope: a VIP and a service's port, or a host
// address and a published port.
type Frontend struct {
	Scope Scope
	Proto uint8 // TCP or UDP
	Addr  netip.Addr
	Port  uint16
}

// Backend is an instance that connections to a frontend may be sent to.
type Backend struct {
	Addr netip.AddrPort
	// Weight is the backend's share among the weights of its frontend. A backend of weight zero gets nothing new but keeps the UDP
	// sockets that already talk to it, which is how an instance drains.
	Weight uint32
}

// State says what a new connection to a frontend meets.
type State uint8

const (
	// FrontendOK sends the connection to one of the backends.
	FrontendOK State = iota
	// FrontendNoHealthy refuses it (ECONNREFUSED): no instance is healthy.
	FrontendNoHealthy
	// FrontendUnreachable fails it with EHOSTUNREACH: there are instances, but none that this scope can reach.
	FrontendUnreachable
)

// String returns the word used in dumps.
func (s State) String() string {
	switch s {
	case FrontendOK:
		return "ok"
	case FrontendNoHealthy:
		return "no-healthy"
	case FrontendUnreachable:
		return "unreachable"
	}
	return fmt.Sprintf("state-%d", uint8(s))
}

// Entry is what is stored for a frontend. The backends are sorted by address and port, each address and port appears once.
type Entry struct {
	State    State
	Backends []Backend
}

// Equal reports whether both entries store the same.
func (e Entry) Equal(o Entry) bool {
	return e.State == o.State && slices.Equal(e.Backends, o.Backends)
}

// NetEndpoint is an address of an endpoint that lives on this host.
type NetEndpoint struct {
	Network uint32 // the network's number, unique on this host, never zero
	Addr    netip.Addr
	IfIndex uint32 // of the host's side of the veth
	MAC     [6]byte
}

// Maps is what reconcilers change. Every change is idempotent, and deleting what does not exist is no error.
type Maps interface {
	// SetFrontend adds or replaces a frontend at once, with all its backends. They have the frontend's address family. The state
	// FrontendOK without a backend of positive weight becomes FrontendNoHealthy.
	SetFrontend(Frontend, State, []Backend) error
	// DeleteFrontend removes a frontend. Connections to a VIP without one are refused.
	DeleteFrontend(Frontend) error
	// Frontends returns all frontends as they are in effect, those of an earlier process included.
	Frontends() (map[Frontend]Entry, error)
	// SetScope puts the network namespace with this cookie (SO_NETNS_COOKIE) into a scope.
	SetScope(cookie uint64, s Scope) error
	// DeleteScope takes a network namespace out of its scope. What it connects to is then left alone; VIPs become unreachable.
	DeleteScope(cookie uint64) error
	// Scopes returns the scope of every network namespace that has one.
	Scopes() (map[uint64]Scope, error)
	// SetEndpoint makes an endpoint's address reachable for the other endpoints of its network.
	SetEndpoint(NetEndpoint) error
	// DeleteEndpoint removes an endpoint's address.
	DeleteEndpoint(network uint32, addr netip.Addr) error
	// Endpoints returns all endpoint addresses in order of network and address.
	Endpoints() ([]NetEndpoint, error)
	// SetVIPPools says which addresses are VIPs, so that those without a frontend are refused. A zero prefix is no pool.
	SetVIPPools(v4, v6 netip.Prefix) error
	// VIPPools returns what SetVIPPools was given last.
	VIPPools() (v4, v6 netip.Prefix, err error)
}

// check returns the frontend in its canonical form.
func (f Frontend) check() (Frontend, error) {
	f.Addr = f.Addr.Unmap()
	switch {
	case f.Scope == 0:
		return f, fmt.Errorf("%w: frontend %s has no scope", ErrInvalid, f)
	case f.Proto != TCP && f.Proto != UDP:
		return f, fmt.Errorf("%w: frontend %s is neither TCP (6) nor UDP (17)", ErrInvalid, f)
	case !f.Addr.IsValid() || f.Addr.Zone() != "" || f.Port == 0:
		return f, fmt.Errorf("%w: frontend %s needs an address without a zone and a port", ErrInvalid, f)
	}
	return f, nil
}

// String returns the form used in dumps and errors, such as "scope=1 tcp 240.0.0.1:80".
func (f Frontend) String() string {
	proto := fmt.Sprintf("proto-%d", f.Proto)
	switch f.Proto {
	case TCP:
		proto = "tcp"
	case UDP:
		proto = "udp"
	}
	return fmt.Sprintf("scope=%d %s %s", f.Scope, proto, netip.AddrPortFrom(f.Addr, f.Port))
}

// canonical returns what is stored for state and backends, so that kernel and fake agree: backends sorted, weights of equal
// addresses added up, and no FrontendOK that nothing could be picked from.
func canonical(f Frontend, state State, backends []Backend) (Entry, error) {
	if state > FrontendUnreachable {
		return Entry{}, fmt.Errorf("%w: frontend %s: %s", ErrInvalid, f, state)
	}
	out := make([]Backend, 0, len(backends))
	for _, b := range backends {
		b.Addr = netip.AddrPortFrom(b.Addr.Addr().Unmap(), b.Addr.Port())
		if !b.Addr.IsValid() || b.Addr.Addr().Zone() != "" || b.Addr.Port() == 0 {
			return Entry{}, fmt.Errorf("%w: frontend %s: backend %s needs an address without a zone and a port", ErrInvalid, f, b.Addr)
		}
		if b.Addr.Addr().Is4() != f.Addr.Is4() {
			return Entry{}, fmt.Errorf("%w: frontend %s: backend %s is of the other address family", ErrInvalid, f, b.Addr)
		}
		out = append(out, b)
	}
	slices.SortFunc(out, func(a, b Backend) int { return a.Addr.Compare(b.Addr) })
	total, n := uint64(0), 0
	for _, b := range out {
		total += uint64(b.Weight)
		if n > 0 && out[n-1].Addr == b.Addr {
			out[n-1].Weight = uint32(min(uint64(out[n-1].Weight)+uint64(b.Weight), math.MaxUint32))
			continue
		}
		out[n] = b
		n++
	}
	if total == 0 && state == FrontendOK {
		state = FrontendNoHealthy
	}
	return Entry{State: state, Backends: out[:n:n]}, nil
}

// check returns the endpoint in its canonical form.
func (e NetEndpoint) check() (NetEndpoint, error) {
	e.Addr = e.Addr.Unmap()
	if e.Network == 0 || e.IfIndex == 0 || !e.Addr.IsValid() || e.Addr.Zone() != "" {
		return e, fmt.Errorf("%w: endpoint network=%d addr=%s ifindex=%d: all three are needed, without a zone", ErrInvalid, e.Network, e.Addr, e.IfIndex)
	}
	return e, nil
}

// compare orders endpoints by network and address.
func (e NetEndpoint) compare(o NetEndpoint) int {
	return cmp.Or(cmp.Compare(e.Network, o.Network), e.Addr.Compare(o.Addr))
}

func checkScope(cookie uint64, s Scope) error {
	if cookie == 0 || s == 0 {
		return fmt.Errorf("%w: namespace cookie %d, scope %d: neither may be zero", ErrInvalid, cookie, s)
	}
	return nil
}

// checkPools returns both pools in their canonical form.
func checkPools(v4, v6 netip.Prefix) (netip.Prefix, netip.Prefix, error) {
	if v4.IsValid() && !v4.Addr().Is4() {
		return v4, v6, fmt.Errorf("%w: VIP pool %s is not IPv4", ErrInvalid, v4)
	}
	if v6.IsValid() && (v6.Addr().Is4() || v6.Addr().Is4In6()) {
		return v4, v6, fmt.Errorf("%w: VIP pool %s is not IPv6", ErrInvalid, v6)
	}
	return v4.Masked(), v6.Masked(), nil
}
