package model

import (
	"maps"
	"net/netip"
	"slices"
)

// The drivers of networks.
const (
	// DriverBridge makes an isolated L2 domain on one host.
	DriverBridge = "bridge"
	// DriverOverlay makes a network of all hosts of the site: each has blocks of
	// its addresses, and routes to the others' blocks.
	DriverOverlay = "overlay"
)

// Transport says how an overlay's packets get from host to host.
type Transport string

// The transports. With TransportAuto hosts that share a link route to each other,
// and others use VXLAN.
const (
	TransportAuto   Transport = "auto"
	TransportVXLAN  Transport = "vxlan"
	TransportDirect Transport = "direct"
)

// Network is a named L2/L3 domain.
type Network struct {
	Name   NetworkName `json:"name"`
	Driver string      `json:"driver"`
	// Node is the host that a bridge network lives on.
	Node NodeName `json:"node,omitempty"`
	// Pools has at most one prefix per family.
	Pools []Pool `json:"pools"`
	// MTU of the endpoints' interfaces, in bytes; 0 means 1500. An overlay's is
	// set when it is created, the same on all hosts.
	MTU int `json:"mtu,omitempty"`
	// VNI is an overlay's VXLAN network identifier (RFC 7348), unique in the site.
	VNI uint32 `json:"vni,omitempty"`
	// Transport is an overlay's; empty for other drivers.
	Transport Transport `json:"transport,omitempty"`
	// Internal networks have no way to the outside.
	Internal bool              `json:"internal,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	Stamp
}

// Pool is the addresses of one family that a network hands out. The network and
// (IPv4) broadcast addresses, Gateway and Reserved are never handed out.
type Pool struct {
	Prefix   netip.Prefix   `json:"prefix"`
	Gateway  netip.Addr     `json:"gateway"`
	Reserved []netip.Prefix `json:"reserved,omitempty"`
}

// Pool4 returns the network's IPv4 pool, if it has one.
func (n Network) Pool4() (Pool, bool) { return n.pool(netip.Addr.Is4) }

// Pool6 returns the network's IPv6 pool, if it has one.
func (n Network) Pool6() (Pool, bool) { return n.pool(netip.Addr.Is6) }

func (n Network) pool(is func(netip.Addr) bool) (Pool, bool) {
	for _, p := range n.Pools {
		if is(p.Prefix.Addr()) {
			return p, true
		}
	}
	return Pool{}, false
}

// Clone returns a copy that shares nothing with n.
func (n Network) Clone() Network {
	n.Pools = slices.Clone(n.Pools)
	for i := range n.Pools {
		n.Pools[i].Reserved = slices.Clone(n.Pools[i].Reserved)
	}
	n.Labels = maps.Clone(n.Labels)
	return n
}

// Protocol of a published port.
type Protocol string

// The protocols that can be published.
const (
	TCP Protocol = "tcp"
	UDP Protocol = "udp"
)

// Expose says who may use a published port.
type Expose string

// The reach of a published port: processes of the host itself, callers whose
// source address lies in a subnet the host is directly connected to, everybody.
const (
	ExposeHost Expose = "host"
	ExposeLAN  Expose = "lan"
	ExposeAny  Expose = "any"
)

// PublishedPort is a port of the host that leads to a port of an endpoint.
type PublishedPort struct {
	Proto    Protocol `json:"proto"`
	HostPort uint16   `json:"host_port"`
	Port     uint16   `json:"port"` // at the endpoint
	Expose   Expose   `json:"expose"`
}

// Endpoint is one workload's place in one network.
type Endpoint struct {
	ID       EndpointID   `json:"id"`
	Workload WorkloadName `json:"workload"`
	Network  NetworkName  `json:"network"`
	Node     NodeName     `json:"node"`
	// Aliases are further names that answer within the network.
	Aliases []string `json:"aliases,omitempty"`
	// Addrs has at most one address per family.
	Addrs []netip.Addr `json:"addrs"`
	// MAC is the address of the endpoint's interface, "02:xx:xx:xx:xx:xx".
	MAC string `json:"mac"`
	// HostIf is the name of the host-side interface.
	HostIf string          `json:"host_if"`
	Ports  []PublishedPort `json:"ports,omitempty"`
	// NetNS is the path of the workload's network namespace on its node, and NSID
	// names the namespace that it led to: a path can come to lead to another.
	NetNS string `json:"netns"`
	NSID  string `json:"nsid,omitempty"`
	Stamp
}

// Addr4 is the endpoint's IPv4 address; the zero Addr if it has none.
func (e Endpoint) Addr4() netip.Addr { return e.addr(netip.Addr.Is4) }

// Addr6 is the endpoint's IPv6 address; the zero Addr if it has none.
func (e Endpoint) Addr6() netip.Addr { return e.addr(netip.Addr.Is6) }

func (e Endpoint) addr(is func(netip.Addr) bool) netip.Addr {
	for _, a := range e.Addrs {
		if is(a) {
			return a
		}
	}
	return netip.Addr{}
}

// Clone returns a copy that shares nothing with e.
func (e Endpoint) Clone() Endpoint {
	e.Aliases = slices.Clone(e.Aliases)
	e.Addrs = slices.Clone(e.Addrs)
	e.Ports = slices.Clone(e.Ports)
	return e
}

// Block is a part of an overlay's pool that one node alone hands out addresses
// of. Its key is its prefix, so that no block can be two nodes'.
type Block struct {
	Network NetworkName  `json:"network"`
	Prefix  netip.Prefix `json:"prefix"`
	Node    NodeName     `json:"node"`
	// Idle is since when the node has no endpoint in the network, in seconds since
	// 1970; 0 while it has. A block that has been idle for long goes back.
	Idle int64 `json:"idle,omitempty"`
	Stamp
}

// AddressLease binds one address of a network to the endpoint that holds it.
// Its key is the address, so that no address can be held twice.
type AddressLease struct {
	Network  NetworkName `json:"network"`
	Addr     netip.Addr  `json:"addr"`
	Endpoint EndpointID  `json:"endpoint"`
	Stamp
}
