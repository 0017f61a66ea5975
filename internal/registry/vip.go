package registry

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/store"
)

// DefaultVIPPool4 is reserved "for future use" (RFC 1112, section 4) and routed
// nowhere, so it overlaps no LAN and no VPN.
var DefaultVIPPool4 = netip.MustParsePrefix("240.0.0.0/4")

// SitePool6 is the /64 from which a site's IPv6 VIPs come: a unique local prefix
// (RFC 4193) whose global id is a hash of the site's name, so that two sites
// hardly ever share it.
func SitePool6(site string) netip.Prefix {
	sum := sha256.Sum256([]byte("fairlead site " + site))
	var b [16]byte
	b[0] = 0xfd
	copy(b[1:8], sum[:7]) // 40 bits of global id and 16 of subnet id
	return netip.PrefixFrom(netip.AddrFrom16(b), 64)
}

// planVIP allocates a service's VIP unless it has one. A VIP is never taken back
// while its service might return: clients may hold on to the address. The servers'
// own service gets none, since nobody connects to it.
func (r *Registry) planVIP(snap *state.Snapshot, p *plan, service model.ServiceName) {
	if service == model.ConsulService {
		return
	}
	cur, _ := snap.VIP(service)
	p.read(store.VIPKey(service), cur)
	if cur != nil {
		return
	}
	vip, err := r.freeVIP(snap, p, service)
	if err != nil {
		p.refuse(err)
		return
	}
	p.put(store.VIPKey(service), &vip)
	for _, a := range []netip.Addr{vip.V4, vip.V6} {
		if a.IsValid() {
			// No two servers can give the same address to two services.
			p.absent(store.VIPAddrKey(a))
			p.put(store.VIPAddrKey(a), string(service))
		}
	}
}

// freeVIP starts at a hash of the name, so that a service most often gets the
// same VIP again in a cluster built anew, and takes the next free host number.
// Both families have the same one.
func (r *Registry) freeVIP(snap *state.Snapshot, p *plan, service model.ServiceName) (model.VIP, error) {
	// All zeros and all ones stay out: 255.255.255.255 is the broadcast address.
	bits := min(hostBits(r.cfg.VIPPool4), 32)
	if r.cfg.VIPPool6.IsValid() {
		bits = min(bits, hostBits(r.cfg.VIPPool6))
	}
	if bits < 2 {
		return model.VIP{}, fmt.Errorf("%w: pool %s is too small", ErrVIPsExhausted, r.cfg.VIPPool4)
	}
	count := uint64(1)<<bits - 2
	sum := sha256.Sum256([]byte(service))
	start := binary.BigEndian.Uint64(sum[:8]) % count
	for i := range count {
		host := 1 + (start+i)%count
		vip := model.VIP{Service: service, V4: hostAddr(r.cfg.VIPPool4, host), Stamp: model.Stamp{Owner: model.OwnerServers}}
		if snap.VIPByAddr(vip.V4) != nil || p.puts(store.VIPAddrKey(vip.V4)) {
			continue
		}
		if r.cfg.VIPPool6.IsValid() {
			vip.V6 = hostAddr(r.cfg.VIPPool6, host)
			if snap.VIPByAddr(vip.V6) != nil || p.puts(store.VIPAddrKey(vip.V6)) {
				continue
			}
		}
		return vip, nil
	}
	return model.VIP{}, fmt.Errorf("%w in %s for service %q", ErrVIPsExhausted, r.cfg.VIPPool4, service)
}

func hostBits(p netip.Prefix) int { return p.Addr().BitLen() - p.Bits() }

// hostAddr is the address of a pool with that host number.
func hostAddr(pool netip.Prefix, host uint64) netip.Addr {
	b := pool.Masked().Addr().AsSlice()
	for i := len(b) - 1; host > 0; i-- {
		b[i] |= byte(host)
		host >>= 8
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
