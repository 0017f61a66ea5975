package datapath

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// MaxVethAddrs is how many addresses of each family an endpoint may have on one interface.
const MaxVethAddrs = 4

// Veth is the host's side of an endpoint's interface.
type Veth struct {
	IfIndex int
	Network uint32  // as in NetEndpoint
	MAC     [6]byte // of the endpoint's side
	// Addrs are the addresses that the endpoint may send from, at most MaxVethAddrs of each family; everything else but the
	// unspecified and IPv6 link-local addresses is dropped.
	Addrs []netip.Addr
}

// unspecified4 is what unused places for IPv4 addresses hold.
var unspecified4 = netip.IPv4Unspecified()

// check returns the veth in its canonical form, IPv4 addresses first, each family in the order given.
func (v Veth) check() (Veth, error) {
	if v.IfIndex <= 0 || v.Network == 0 || v.MAC == [6]byte{} {
		return v, fmt.Errorf("%w: veth ifindex=%d network=%d mac=%x: all three are needed", ErrInvalid, v.IfIndex, v.Network, v.MAC)
	}
	var v4, v6 []netip.Addr
	for _, a := range v.Addrs {
		a = a.Unmap()
		switch {
		case !a.IsValid() || a.Zone() != "" || a.IsUnspecified():
			return v, fmt.Errorf("%w: veth ifindex=%d: address %q", ErrInvalid, v.IfIndex, a)
		case a.Is4():
			v4 = append(v4, a)
		default:
			v6 = append(v6, a)
		}
	}
	if len(v4) > MaxVethAddrs || len(v6) > MaxVethAddrs {
		return v, fmt.Errorf("%w: veth ifindex=%d: more than %d addresses of one family", ErrInvalid, v.IfIndex, MaxVethAddrs)
	}
	v.Addrs = slices.Concat(v4, v6)
	return v, nil
}

// compare orders veths by index.
func (v Veth) compare(o Veth) int {
	return cmp.Compare(v.IfIndex, o.IfIndex)
}
