package dns

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	miekg "github.com/miekg/dns"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
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
// endpoints, nodes, instances and VIPs. The addresses of our networks that nobody
// holds are denied here and not asked about elsewhere.
func (a *answering) reverse(name string, ip netip.Addr) outcome {
	ip = ip.Unmap()
	_, a.negOwner, _ = strings.Cut(name, ".")
	target := a.holder(ip)
	if target == "" {
		for _, n := range a.snap.Networks() {
			if inPool(n, ip) {
				return nowhere
			}
		}
		return elsewhere
	}
	a.negOwner = name
	a.ttl = a.nodeTTL
	if a.wants(miekg.TypePTR) {
		if host := hostname(target); host != "" {
			a.add(&miekg.PTR{Hdr: a.header(miekg.TypePTR), Ptr: host})
		}
	}
	return found
}

// holder is the name of whoever holds an address, as far as the asker may know,
// and "" if nobody does. Endpoints and VIPs have theirs below internal.
func (a *answering) holder(ip netip.Addr) string {
	if e := a.snap.EndpointByAddr(ip); e != nil {
		return string(e.Workload) + "." + string(e.Network) + "." + internalDomain
	}
	suffix := "." + a.site + "." + a.zones.domains[0]
	held := a.holds.of(a.snap.all(), ip)
	if held.node != "" && a.may.Allow(acl.Node, string(held.node), acl.Read) {
		return string(held.node) + ".node" + suffix
	}
	for _, svc := range held.services {
		if a.may.Allow(acl.Service, string(svc), acl.Read) {
			return string(svc) + ".service" + suffix
		}
	}
	if v := a.snap.all().VIPByAddr(ip); v != nil && a.may.Allow(acl.Service, string(v.Service), acl.Read) {
		return string(v.Service) + ".virtual." + internalDomain
	}
	return ""
}

// holders remembers which nodes and instances have which addresses. It is a memo
// of the snapshot and changes no answer.
type holders struct{ memo atomic.Pointer[holderMemo] }

type holderMemo struct {
	nodes, services model.Index
	by              map[netip.Addr]*held
}

// held is who has an address: a node, and services, those with a healthy instance
// at it first.
type held struct {
	node     model.NodeName
	services []model.ServiceName
}

func (h *holders) of(snap *state.Snapshot, ip netip.Addr) held {
	nodes, nodeMark := snap.Nodes()
	services, serviceMark := snap.Services()
	memo := h.memo.Load()
	if memo == nil || memo.nodes != nodeMark.Index || memo.services != serviceMark.Index {
		memo = &holderMemo{nodes: nodeMark.Index, services: serviceMark.Index, by: map[netip.Addr]*held{}}
		for _, n := range nodes {
			if x := memo.at(n.Address); x != nil && x.node == "" {
				x.node = n.Name
			}
			for _, tag := range []string{tagIPv4, tagIPv6} {
				if x := memo.at(n.TaggedAddresses[tag]); x != nil && x.node == "" {
					x.node = n.Name
				}
			}
		}
		for _, healthy := range []bool{true, false} {
			for _, svc := range services {
				memo.add(svc, healthy)
			}
		}
		h.memo.Store(memo)
	}
	if x := memo.by[ip]; x != nil {
		return *x
	}
	return held{}
}

func (m *holderMemo) add(svc *state.Service, healthy bool) {
	for _, i := range svc.Members {
		if (i.Status() != model.Critical) != healthy {
			continue
		}
		if x := m.at(i.Instance.Address); x != nil && !slices.Contains(x.services, svc.Name) {
			x.services = append(x.services, svc.Name)
		}
	}
}

func (m *holderMemo) at(addr string) *held {
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return nil
	}
	ip = ip.Unmap().WithZone("")
	if m.by[ip] == nil {
		m.by[ip] = &held{}
	}
	return m.by[ip]
}
