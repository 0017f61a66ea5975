package dns

import (
	"cmp"
	"errors"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	miekg "github.com/miekg/dns"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/prepared"
	"github.com/fairlead-net/fairlead/internal/state"
)

// service answers for a service, or those of its instances that carry a tag.
//
// A service all of whose instances are critical is denied (NXDOMAIN), although
// the name exists: Consul does so, and its clients fail over by it.
func (a *answering) service(name, tag string) outcome {
	svc := a.findService(name)
	if !a.may.Allow(acl.Service, string(svc.Name), acl.Read) {
		a.prohibit("the service %s may not be read", name)
		return nowhere
	}
	a.ttl = a.ttlOf(svc.Name)
	return a.choose(name, tag, svc.Members, func(m *state.Member) bool {
		return a.may.Allow(acl.Node, string(m.Instance.Node), acl.Read)
	})
}

// connect answers for the instances at which a service is to be had with mutual
// TLS: its proxies, and itself if it speaks it.
func (a *answering) connect(name, tag string) outcome {
	svc := a.findService(name)
	a.ttl = a.ttlOf(svc.Name)
	return a.choose(name, tag, a.snap.Connected(svc.Name), func(m *state.Member) bool {
		return prepared.Visible(a.may, m)
	})
}

// choose answers with those of a service's instances that have a tag, may be seen
// and are well, and says why if there is none.
func (a *answering) choose(name, tag string, members []*state.Member, seen func(*state.Member) bool) outcome {
	matched, hidden := 0, 0
	live := make([]*state.Member, 0, len(members))
	for _, m := range members {
		if tag != "" && !hasTag(m.Instance, tag) {
			continue
		}
		if !seen(m) {
			hidden++
			continue
		}
		matched++
		if status := m.Status(); status == model.Passing || status == model.Warning && !a.onlyPassing {
			live = append(live, m)
		}
	}
	switch {
	case len(live) > 0:
		a.snap.chose(name, live)
		a.rotate(live)
		return a.instances(name, live)
	case matched > 0 && a.onlyPassing:
		a.explain("no instance of %s passes its checks (there are %d)", name, matched)
	case matched > 0:
		a.explain("no instance of %s is healthy (critical: %d)", name, matched)
	case hidden > 0:
		a.prohibit("what answers for %s may not be read", name)
	case len(members) > 0:
		a.explain("no instance of %s has the tag %s", name, tag)
	default:
		a.explain("no service %s is registered", name)
	}
	return nowhere
}

// query answers for a prepared query. Its instances come in the order that it
// asks for.
func (a *answering) query(name string) outcome {
	res, err := a.queries.Run(a.snap.all(), prepared.Ask{Name: name, IP: a.client, Authorizer: a.may})
	switch {
	case errors.Is(err, prepared.ErrNotFound):
		a.explain("no prepared query matches %s", name)
		return nowhere
	case errors.Is(err, prepared.ErrToken):
		a.prohibit("the query %s brings a token that means nothing", name)
		return nowhere
	case err != nil:
		a.explain("%v", err)
		return nowhere
	}
	a.personal = res.Query.Service.Near == prepared.NearIP
	a.ttl = a.ttlOf(model.ServiceName(res.Query.Service.Service))
	if ttl, err := time.ParseDuration(res.Query.DNS.TTL); err == nil {
		a.ttl = seconds(ttl)
	}
	if len(res.Members) == 0 {
		if res.Filtered {
			a.prohibit("what the query %s finds may not be read", name)
		} else {
			a.explain("the query %s finds no healthy instance of %s", name, res.Query.Service.Service)
		}
		return nowhere
	}
	return a.instances(name, res.Members)
}

// instances answers with instances, in their order.
func (a *answering) instances(name string, live []*state.Member) outcome {
	a.expect(len(live))
	var reached given
	for _, m := range live {
		if r := a.reach(m); r.any() {
			reached.any = true
			switch {
			case a.qtype == miekg.TypeTXT:
				a.text(m.Instance.Meta)
				continue
			case a.wants(miekg.TypeSRV):
				a.srv(m, &r, &reached)
			}
			a.serviceAddr(&r, &reached)
		}
	}
	if !reached.any {
		a.explain("%s is healthy, but the asker can reach none of its instances (%d)", name, len(live))
	}
	// A name with an alias can have nothing else (RFC 1034, 3.6.2), so instances
	// known only by a host's name count when there are no others, and then one
	// of them.
	if reached.alias != "" && !reached.addr && a.aliasFits() {
		return a.cname(reached.alias)
	}
	return found
}

// rotate puts instances in a random order, in which one with more weight tends to
// come earlier: what does not fit, and what is never tried, is at the end.
// (Efraimidis and Spirakis, Weighted random sampling with a reservoir, 2006.)
func (a *answering) rotate(live []*state.Member) {
	same := func(m *state.Member) bool { return weight(m) == weight(live[0]) }
	if a.random == nil || !slices.ContainsFunc(live, func(m *state.Member) bool { return !same(m) }) {
		a.mix(len(live), func(i, j int) { live[i], live[j] = live[j], live[i] })
		return
	}
	type drawn struct {
		m   *state.Member
		key float64
	}
	all := make([]drawn, len(live))
	for i, m := range live {
		all[i] = drawn{m, math.Inf(1)}
		if w := weight(m); w > 0 {
			all[i].key = -math.Log(1-a.random()) / float64(w)
		}
	}
	slices.SortStableFunc(all, func(x, y drawn) int { return cmp.Compare(x.key, y.key) })
	for i := range all {
		live[i] = all[i].m
	}
}

// aliasFits reports whether an alias answers what was asked for; ANY has the SRV
// records.
func (a *answering) aliasFits() bool {
	return a.qtype == miekg.TypeA || a.qtype == miekg.TypeAAAA || a.qtype == miekg.TypeCNAME
}

// given is what the instances of a service have given so far.
type given struct {
	any     bool   // one can be reached
	addr    bool   // one has an address
	count   int    // of the addresses
	alias   string // the first host's name
	addrs   addrSet
	targets map[string]bool // with glue
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

// serviceAddr answers with the addresses of one instance.
func (a *answering) serviceAddr(r *reach, to *given) {
	if r.host != "" && to.alias == "" {
		to.alias = r.host
	}
	for _, ip := range [2]netip.Addr{r.v4.Addr, r.v6.Addr} {
		if !ip.IsValid() {
			continue
		}
		to.addr = true
		if a.wants(addrType(ip)) && (a.aLimit <= 0 || to.count < a.aLimit) && to.addrs.add(ip) {
			to.count++
			a.addAddr(ip)
		}
	}
}

// srv answers with one record per instance (two if it listens on different ports
// of its two addresses), and the targets' addresses beside them.
func (a *answering) srv(m *state.Member, r *reach, to *given) {
	if r.host != "" {
		a.addSRV(weight(m), r.port, r.host)
		return
	}
	v4, v6 := r.v4, r.v6
	// A worse place of the other family would offer the instance twice.
	if r.rank4 < r.rank6 {
		v6 = model.Place{}
	} else if r.rank6 < r.rank4 {
		v4 = model.Place{}
	}
	if v4.Addr.IsValid() && v6.Addr.IsValid() && v4.Port != v6.Port {
		a.addTarget(m, r, v4.Port, v4.Addr, netip.Addr{}, to)
		v4 = model.Place{}
	}
	a.addTarget(m, r, max(v4.Port, v6.Port), v4.Addr, v6.Addr, to)
}

func (a *answering) addSRV(weight, port uint16, target string) {
	a.add(&miekg.SRV{Hdr: a.header(miekg.TypeSRV), Priority: 1, Weight: weight, Port: port, Target: target})
}

// addTarget adds an SRV record for a target with addresses. The target is the
// node's name where the instance named no address of its own, as Consul has it.
func (a *answering) addTarget(m *state.Member, r *reach, port uint16, v4, v6 netip.Addr, to *given) {
	suffix := "." + a.site + "." + a.domain
	target := ""
	if r.atNode {
		target = hostname(string(m.Node.Name) + ".node" + suffix)
	}
	if target == "" {
		target = hexLabel(v4, v6) + ".addr" + suffix
	}
	a.addSRV(weight(m), port, target)
	if to.targets == nil {
		to.targets = map[string]bool{}
	}
	if !to.targets[target] {
		to.targets[target] = true
		a.glue(target, v4, v6)
	}
}

// virtual answers with a service's VIP. Each address is given only if an
// instance of its family can stand behind it: an IPv6 VIP in front of IPv4
// instances would cost every caller that prefers IPv6 a failed attempt.
func (a *answering) virtual(name string) outcome {
	svc := a.findService(name)
	if !a.may.Allow(acl.Service, string(svc.Name), acl.Read) {
		a.prohibit("the service %s may not be read", name)
		return nowhere
	}
	if svc.VIP == nil {
		a.explain("no service %s has a virtual address", name)
		return nowhere
	}
	a.ttl = a.ttlOf(svc.Name)
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
