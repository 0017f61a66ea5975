package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	miekg "github.com/miekg/dns"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/prepared"
	"github.com/fairlead-net/fairlead/internal/state"
)

// zones turns questions into answers: a value without clock, socket or log. Its
// fields do not change after it is made.
type zones struct {
	domains     []string // canonical; the first is the one to name things in
	foreign     [][]string
	node        model.NodeName
	site        string // lower case
	nodeTTL     uint32
	negTTL      uint32
	serviceTTL  map[string]uint32 // by lower-case name, "prefix*" or "*"
	onlyPassing bool
	aLimit      int // addresses of a service in one answer; 0: no limit
	queries     *prepared.Runner
	// may says what every asker may see; nil: everything.
	may func() acl.Authorizer
	// shuffle permutes n things; nil leaves them in the order of the snapshot.
	shuffle func(n int, swap func(i, j int))
	// random is evenly spread from 0 to 1, for instances of different weights; nil
	// means that weights do not count.
	random func() float64
	// isHost says whether an address is one of this host's; nil means that only
	// loopback and gateway addresses are.
	isHost func(netip.Addr) bool
	folds  folds
	holds  holders
}

// outcome of the search for a name.
type outcome int

const (
	nowhere   outcome = iota // no such name: NXDOMAIN
	found                    // the name exists; without records of the asked type: NODATA
	elsewhere                // not ours: to be forwarded
)

// maxChain bounds how many names of ours one answer goes through.
const maxChain = 8

// answering is one question on its way to its answer.
type answering struct {
	*zones
	snap   view
	scope  *scope
	asker  netip.Addr
	client netip.Addr // on whose behalf it asks; the asker's unless it says so
	may    acl.Authorizer
	ttl    uint32
	owner  string // the name of the answer's records, in the asker's case
	qtype  uint16
	domain string // the one of ours that the name is in, or "" outside of them
	m      *miekg.Msg
	spare  []ipv4Record // for answers to come
	chain  int
	texts  map[string]bool // in the answer
	leads  bool            // the answer ends in an alias for a name that is not ours
	// endless: aliases lead to aliases, in a circle or nearly so.
	endless bool
	// negOwner is the SOA's owner in a negative answer; empty means domain.
	negOwner string
	// why explains a negative answer to whoever understands EDE (RFC 8914).
	why ede
	// personal: the answer depends on the client's address.
	personal bool
}

// response is an answer with what the transport's part of it needs.
type response struct {
	*miekg.Msg
	why      ede
	personal bool
}

// answer answers req, which has exactly one question, as of snap and for an
// asker at an address. It gives no message where the name is not ours and has to
// be forwarded. The reply still lacks what depends on the transport; see finish.
func (z *zones) answer(snap *state.Snapshot, req *miekg.Msg, asker netip.Addr) response {
	if rcode, why := refusal(req); rcode != miekg.RcodeSuccess {
		m := newReply(req)
		m.Rcode = rcode
		return response{Msg: m, why: why}
	}
	return z.begin(view{snap: snap}, req, asker).answer()
}

// begin is the start of an answer to req, which refusal has let through.
func (z *zones) begin(snap view, req *miekg.Msg, asker netip.Addr) *answering {
	q := req.Question[0]
	a := &answering{zones: z, snap: snap, asker: asker.Unmap().WithZone(""), owner: q.Name, qtype: q.Qtype, m: newReply(req), may: z.authorizer()}
	a.client = a.asker
	if subnet := subnetOf(req); subnet != nil {
		a.client = subnetAddr(subnet)
	}
	return a
}

// authorizer says what every asker may see now.
func (z *zones) authorizer() acl.Authorizer {
	if z.may != nil {
		if may := z.may(); may != nil {
			return may
		}
	}
	return acl.AllowAll()
}

// answer is zones.answer for a question that is looked at.
func (a *answering) answer() response {
	m := a.m
	out := a.name(miekg.CanonicalName(a.owner))
	if out == elsewhere {
		return response{}
	}
	fail := func(why ede) response {
		m.Answer, m.Extra, m.Rcode = nil, nil, miekg.RcodeServerFailure
		return response{Msg: m, why: why}
	}
	if a.snap.Index() == 0 {
		// Nothing was read yet, so nothing may be denied either.
		return fail(ede{miekg.ExtendedErrorCodeNotReady, "the catalogue has not been read yet"})
	}
	if a.endless {
		return fail(ede{miekg.ExtendedErrorCodeOther, "the alias leads through too many names"})
	}
	m.Authoritative = true
	if out == nowhere {
		m.Rcode = miekg.RcodeNameError
	}
	if !a.complete() {
		m.Ns = append(m.Ns, a.soa(a.soaOwner()))
	}
	return response{Msg: m, why: a.why, personal: a.personal}
}

// complete reports whether m holds what was asked for, or an alias that leads out
// of our zones to it. Anything else is a negative answer (RFC 2308), also at the
// end of a chain of aliases.
func (a *answering) complete() bool {
	if len(a.m.Answer) == 0 || a.m.Rcode == miekg.RcodeNameError {
		return false
	}
	last := a.m.Answer[len(a.m.Answer)-1]
	return a.leads || last.Header().Rrtype != miekg.TypeCNAME || a.wants(miekg.TypeCNAME)
}

// refusal says why a query gets no look at any name, RcodeSuccess if it does.
func refusal(req *miekg.Msg) (int, ede) {
	if req.Opcode != miekg.OpcodeQuery {
		return miekg.RcodeNotImplemented, ede{}
	}
	if len(req.Question) != 1 || len(req.Answer) > 0 || len(req.Ns) > 0 || countOPT(req) > 1 {
		return miekg.RcodeFormatError, ede{}
	}
	if opt := req.IsEdns0(); opt != nil && opt.Version() != 0 {
		return miekg.RcodeBadVers, ede{}
	}
	q := req.Question[0]
	if q.Qclass != miekg.ClassINET {
		return miekg.RcodeRefused, ede{miekg.ExtendedErrorCodeNotSupported, "only class IN is served"}
	}
	switch q.Qtype {
	case miekg.TypeAXFR, miekg.TypeIXFR, miekg.TypeMAILA, miekg.TypeMAILB, miekg.TypeOPT, miekg.TypeTSIG, miekg.TypeTKEY, miekg.TypeNone:
		return miekg.RcodeRefused, ede{miekg.ExtendedErrorCodeNotSupported, "this type of query is not served"}
	}
	return miekg.RcodeSuccess, ede{}
}

// name answers for a canonical name.
func (a *answering) name(name string) outcome {
	if d, ok := a.domainOf(name); ok {
		a.domain = d
		rest := strings.TrimSuffix(strings.TrimSuffix(name, d), ".")
		if rest == "" {
			return a.apex()
		}
		return a.inDomain(strings.Split(rest, "."))
	}
	if ip, ok := reverseAddr(name); ok {
		return a.reverse(name, ip)
	}
	return a.bare(name)
}

// domainOf is the longest domain of ours that a canonical name is in.
func (z *zones) domainOf(name string) (string, bool) {
	best := ""
	for _, d := range z.domains {
		if len(d) > len(best) && (name == d || len(name) > len(d) && strings.HasSuffix(name, d) && name[len(name)-len(d)-1] == '.') {
			best = d
		}
	}
	return best, best != ""
}

// inDomain answers for the labels in front of one of our domains:
//
//	[tag.]name.service[.dc]  _name._tag.service[.dc]  name.virtual[.dc]
//	[tag.]name.connect[.dc]  name.ingress[.dc]        name.query[.dc]
//	name.node[.dc]           hex.addr[.dc]            name.network
//
// where .dc may also be written .dc.dc, as Consul allows. The names that only
// lead to others exist (RFC 8020): saying NXDOMAIN for service.consul. would
// deny everything below it to a resolver that minimises names (RFC 9156).
func (a *answering) inDomain(labels []string) outcome {
	n := len(labels)
	if slices.Contains(kinds, labels[n-1]) {
		return a.kind(labels[n-1], labels[:n-1])
	}
	top := labels[n-1]
	if n >= 3 && top == "dc" && slices.Contains(kinds, labels[n-3]) {
		return a.inSite(labels[n-2], labels[n-3], labels[:n-3])
	}
	network := a.findNetwork(top)
	if n >= 2 && slices.Contains(kinds, labels[n-2]) && (n > 2 || network == nil || top == a.site) {
		return a.inSite(top, labels[n-2], labels[:n-2])
	}
	switch {
	case network != nil && n == 1:
		return found
	case network != nil:
		return a.inNetwork(network, strings.Join(labels[:n-1], "."))
	case n == 1 && top == a.site:
		return found
	case n == 1 && top == "ns":
		return a.nameServer()
	case a.isForeign(labels):
		return elsewhere
	}
	return nowhere
}

func (a *answering) inSite(site, kind string, labels []string) outcome {
	if site != a.site {
		a.explain("no site (datacenter) %s is known here", site)
		return nowhere
	}
	return a.kind(kind, labels)
}

func (a *answering) kind(kind string, labels []string) outcome {
	n := len(labels)
	if n == 0 {
		return found
	}
	name, tag := labels[n-1], strings.Join(labels[:n-1], ".")
	switch kind {
	case "service":
		if n == 2 && strings.HasPrefix(labels[0], "_") && strings.HasPrefix(labels[1], "_") {
			tag := labels[1][1:]
			if tag == "tcp" { // the protocol of RFC 2782, not a tag
				tag = ""
			}
			return a.service(labels[0][1:], tag)
		}
		out := a.service(name, tag)
		if out == nowhere && n == 1 && strings.HasPrefix(name, "_") {
			a.why = ede{}
			return found // what _name._tag.service is below
		}
		return out
	case "connect":
		return a.connect(name, tag)
	case "ingress":
		a.explain("no ingress gateway for %s is known here", name)
		return nowhere
	case "query":
		// _name._tcp.query, whose protocol says nothing; a name may have dots.
		if n >= 2 && strings.HasPrefix(labels[0], "_") && strings.HasPrefix(labels[n-1], "_") {
			return a.query(strings.Join(labels[:n-1], ".")[1:])
		}
		return a.query(strings.Join(labels, "."))
	case "virtual":
		return a.virtual(strings.Join(labels, "."))
	case "node":
		return a.nodeName(strings.Join(labels, "."))
	}
	if n == 1 {
		return a.hexAddr(name)
	}
	return nowhere
}

// explain says why there is no answer, if nobody has said it yet.
func (a *answering) explain(format string, args ...any) {
	if a.why.text == "" {
		a.why = ede{miekg.ExtendedErrorCodeOther, fmt.Sprintf(format, args...)}
	}
}

// prohibit says that ACLs are why, which must be said alike for what exists and
// what does not.
func (a *answering) prohibit(format string, args ...any) {
	a.why = ede{miekg.ExtendedErrorCodeProhibited, fmt.Sprintf(format, args...) + "; give the agent an acl-dns-token that allows it"}
}

// isForeign reports whether labels, which stand in front of a.domain, are in a
// zone that somebody else answers for.
func (a *answering) isForeign(labels []string) bool {
	full := append(slices.Clone(labels), miekg.SplitDomainName(a.domain)...)
	for _, zone := range a.foreign {
		if len(full) >= len(zone) && slices.EqualFunc(full[len(full)-len(zone):], zone, func(label, want string) bool {
			return want == "*" || label == want
		}) {
			return true
		}
	}
	return false
}

// bare answers for a name outside our domains: what the asker's networks call
// so, or nothing of ours.
func (a *answering) bare(name string) outcome {
	plain := strings.TrimSuffix(name, ".")
	single := plain != "" && !strings.Contains(plain, ".")
	if plain == "localhost" || strings.HasSuffix(plain, ".localhost") { // RFC 6761, 6.3
		a.negOwner = "localhost."
		a.addAddr(netip.AddrFrom4([4]byte{127, 0, 0, 1}))
		a.addAddr(netip.IPv6Loopback())
		return found
	}
	for _, n := range a.where().networks {
		if out := a.endpoints(n, plain); out == found {
			a.negOwner = name
			return found
		}
	}
	if !single {
		return elsewhere
	}
	if len(a.where().networks) > 0 && a.virtual(plain) == found {
		a.negOwner = name
		return found
	}
	switch a.qtype {
	case miekg.TypeNS, miekg.TypeSOA, miekg.TypeDS, miekg.TypeDNSKEY:
		// Questions about a top-level domain, by a resolver that validates.
		return elsewhere
	}
	a.negOwner = "."
	return nowhere
}

// inNetwork answers for a name qualified with a network: its endpoints for
// anybody on this host, and for its members what they may also call bare.
func (a *answering) inNetwork(n *model.Network, name string) outcome {
	if a.endpoints(n.Name, name) == found {
		return found
	}
	if !strings.Contains(name, ".") && slices.Contains(a.where().networks, n.Name) {
		return a.virtual(name)
	}
	return nowhere
}

// endpoints answers with the endpoints that a network knows by a name.
func (a *answering) endpoints(n model.NetworkName, name string) outcome {
	eps := a.snap.all().EndpointsByName(n, name)
	if len(eps) == 0 {
		return nowhere
	}
	eps = slices.Clone(eps)
	a.mix(len(eps), func(i, j int) { eps[i], eps[j] = eps[j], eps[i] })
	for _, e := range eps {
		for _, ip := range e.Addrs {
			a.addAddr(ip)
		}
	}
	return found
}

// mix shuffles more than one thing.
func (z *zones) mix(n int, swap func(i, j int)) {
	if n > 1 && z.shuffle != nil {
		z.shuffle(n, swap)
	}
}
