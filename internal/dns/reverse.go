package dns

import (
	"net/netip"
	"strconv"
	"strings"

	miekg "github.com/miekg/dns"
)

// reverseAddr is the address that a canonical name under in-addr.arpa or
// ip6.arpa stands for; false unless it is a whole one.
func reverseAddr(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		labels := strings.Split(rest, ".")
		if len(labels) != 4 {
			return netip.Addr{}, false
		}
		var b [4]byte
		for i, l := range labels {
			n, err := strconv.ParseUint(l, 10, 8)
			if err != nil || len(l) > 1 && l[0] == '0' {
				return netip.Addr{}, false
			}
			b[3-i] = byte(n)
		}
		return netip.AddrFrom4(b), true
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa.")
	if !ok || len(rest) != 63 {
		return netip.Addr{}, false
	}
	var b [16]byte
	for i := range 32 {
		if i > 0 && rest[2*i-1] != '.' {
			return netip.Addr{}, false
		}
		n, err := strconv.ParseUint(rest[2*i:2*i+1], 16, 4)
		if err != nil {
			return netip.Addr{}, false
		}
		b[15-i/2] |= byte(n) << (4 * (i % 2))
	}
	return netip.AddrFrom16(b), true
}

// reverse answers for the reverse name of an address: who holds it among our
// endpoints and VIPs. The addresses of our networks that nobody holds are denied
// here and not asked about elsewhere.
func (a *answering) reverse(name string, ip netip.Addr) outcome {
	ip = ip.Unmap()
	_, a.negOwner, _ = strings.Cut(name, ".")
	target := ""
	if e := a.snap.EndpointByAddr(ip); e != nil {
		target = string(e.Workload) + "." + string(e.Network) + "."
	} else if v := a.snap.VIPByAddr(ip); v != nil {
		target = string(v.Service) + ".virtual."
	} else {
		networks, _ := a.snap.Networks()
		for _, n := range networks {
			if inPool(n, ip) {
				return nowhere
			}
		}
		return elsewhere
	}
	a.negOwner = name
	if a.wants(miekg.TypePTR) {
		if host := hostname(target + a.homeDomain()); host != "" {
			a.add(&miekg.PTR{Hdr: a.header(miekg.TypePTR), Ptr: host})
		}
	}
	return found
}
