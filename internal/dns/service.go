package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	miekg "github.com/miekg/dns"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// service answers for a service, or those of its instances that carry a tag.
//
// A service all of whose instances are critical is denied (NXDOMAIN), although
// the name exists: Consul does so, and its clients fail over by it.
func (a *answering) service(name, tag string) outcome {
	svc := a.findService(name)
	matched := 0
	live := make([]*state.Member, 0, len(svc.Members))
	for _, m := range svc.Members {
		if tag != "" && !hasTag(m.Instance, tag) {
			continue
		}
		if matched++; m.Status() != model.Critical {
			live = append(live, m)
		}
	}
	if len(live) == 0 {
		if matched > 0 {
			a.why = ede{miekg.ExtendedErrorCodeOther, fmt.Sprintf("no instance of %s is healthy (critical: %d)", name, matched)}
		}
		return nowhere
	}
	a.mix(len(live), func(i, j int) { live[i], live[j] = live[j], live[i] })
	reaches := make([]reach, 0, len(live))
	for _, m := range live {
		if r := a.reach(m); r.any() {
			r.weight, r.node = weight(m), m.Node
			reaches = append(reaches, r)
		}
	}
	if len(reaches) == 0 {
		a.why = ede{miekg.ExtendedErrorCodeOther, fmt.Sprintf("%s is healthy, but the asker can reach none of its instances (%d)", name, len(live))}
		return found
	}
	if a.wants(miekg.TypeSRV) {
		a.srv(reaches)
	}
	return a.serviceAddrs(reaches)
}

func hasTag(i *model.Instance, tag string) bool {
	return slices.ContainsFunc(i.Tags, func(t string) bool { return strings.EqualFold(t, tag) })
}

// weight is an instance's share for SRV. An instance that said nothing has 1.
func weight(m *state.Member) uint16 {
	w := m.Instance.Weights
	if w == (model.Weights{}) {
		w = model.DefaultWeights
	}
	share := w.Passing
	if m.Status() != model.Passing {
		share = w.Warning
	}
	return uint16(min(max(share, 0), 1<<16-1))
}

// serviceAddrs answers with the addresses of instances. A name with an alias can
// have nothing else (RFC 1034, 3.6.2), so instances known only by a host's name
// count when there are no others, and then one of them.
func (a *answering) serviceAddrs(reaches []reach) outcome {
	if a.qtype != miekg.TypeA && a.qtype != miekg.TypeAAAA && a.qtype != miekg.TypeANY && a.qtype != miekg.TypeCNAME {
		return found
	}
	var seen addrSet
	alias, addressed := "", false
	for i := range reaches {
		r := &reaches[i]
		if r.host != "" && alias == "" {
			alias = r.host
		}
		for _, ip := range [2]netip.Addr{r.v4.Addr, r.v6.Addr} {
			if ip.IsValid() {
				addressed = true
				if a.wants(addrType(ip)) && seen.add(ip) {
					a.addAddr(ip)
				}
			}
		}
	}
	if addressed || a.qtype == miekg.TypeANY { // ANY has the SRV records
		return found
	}
	return a.cname(alias)
}

// srv answers with one record per instance (two if it listens on different ports
// of its two addresses), and the targets' addresses beside them.
func (a *answering) srv(reaches []reach) {
	seen := map[string]bool{}
	for i := range reaches {
		r := &reaches[i]
		if r.host != "" {
			a.addSRV(r.weight, r.port, r.host)
			continue
		}
		v4, v6 := r.v4, r.v6
		// A worse place of the other family would offer the instance twice.
		if r.rank4 < r.rank6 {
			v6 = model.Place{}
		} else if r.rank6 < r.rank4 {
			v4 = model.Place{}
		}
		if v4.Addr.IsValid() && v6.Addr.IsValid() && v4.Port != v6.Port {
			a.addTarget(r, v4.Port, seen, v4.Addr, netip.Addr{})
			v4 = model.Place{}
		}
		a.addTarget(r, max(v4.Port, v6.Port), seen, v4.Addr, v6.Addr)
	}
}

func (a *answering) addSRV(weight, port uint16, target string) {
	a.add(&miekg.SRV{Hdr: a.header(miekg.TypeSRV), Priority: 1, Weight: weight, Port: port, Target: target})
}

// addTarget adds an SRV record for a target with addresses. The target is the
// node's name where the instance named no address of its own, as Consul has it.
func (a *answering) addTarget(r *reach, port uint16, seen map[string]bool, v4, v6 netip.Addr) {
	suffix := "." + a.site + "." + a.domain
	target := hexLabel(v4, v6) + ".addr" + suffix
	if r.atNode {
		if name := hostname(string(r.node.Name) + ".node" + suffix); name != "" {
			target = name
		}
	}
	a.addSRV(r.weight, port, target)
	if !seen[target] {
		seen[target] = true
		a.glue(target, v4, v6)
	}
}

// virtual answers with a service's VIP. Each address is given only if an
// instance of its family can stand behind it: an IPv6 VIP in front of IPv4
// instances would cost every caller that prefers IPv6 a failed attempt.
func (a *answering) virtual(name string) outcome {
	svc := a.findService(name)
	if svc.VIP == nil {
		return nowhere
	}
	has4, has6 := families(svc)
	if has4 || !has6 {
		a.addAddr(svc.VIP.V4)
	}
	if has6 {
		a.addAddr(svc.VIP.V6)
	}
	return found
}

// families says of which families a service's instances have addresses, healthy
// or not. A host's name counts as IPv4.
func families(svc *state.Service) (has4, has6 bool) {
	for _, m := range svc.Members {
		for _, p := range m.Instance.Places {
			has4 = has4 || p.Addr.Unmap().Is4()
			has6 = has6 || p.Addr.Unmap().Is6()
		}
		if len(m.Instance.Places) == 0 {
			ip, err := netip.ParseAddr(m.Addr())
			is6 := err == nil && ip.Unmap().Is6()
			has4, has6 = has4 || !is6, has6 || is6
		}
	}
	return has4, has6
}

// addrSet remembers addresses; cheap while they are few.
type addrSet struct {
	few  []netip.Addr
	many map[netip.Addr]bool
}

// add reports whether ip is new.
func (s *addrSet) add(ip netip.Addr) bool {
	if s.many == nil && len(s.few) < 16 {
		if slices.Contains(s.few, ip) {
			return false
		}
		s.few = append(s.few, ip)
		return true
	}
	if s.many == nil {
		s.many = make(map[netip.Addr]bool, 4*len(s.few))
		for _, a := range s.few {
			s.many[a] = true
		}
	}
	if s.many[ip] {
		return false
	}
	s.many[ip] = true
	return true
}
