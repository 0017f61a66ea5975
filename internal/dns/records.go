package dns

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"

	miekg "github.com/miekg/dns"
)

// The SOA's timers, in seconds; Consul's. Nobody transfers the zone.
const (
	soaRefresh = 3600
	soaRetry   = 600
	soaExpire  = 86400
)

func (a *answering) wants(t uint16) bool { return a.qtype == t || a.qtype == miekg.TypeANY }

// expect makes room for n more answers.
func (a *answering) expect(n int) {
	a.m.Answer = slices.Grow(a.m.Answer, n)
	if a.wants(miekg.TypeA) {
		a.spare = make([]ipv4Record, n)
	}
}

// ipv4Record is an A record with its address beside it, the most common answer
// by far.
type ipv4Record struct {
	rr miekg.A
	ip [4]byte
}

// add puts a record into the answer.
func (a *answering) add(rr miekg.RR) { a.m.Answer = append(a.m.Answer, rr) }

// addAddr answers with an address if its type was asked for.
func (a *answering) addAddr(ip netip.Addr) {
	switch {
	case !ip.IsValid() || !a.wants(addrType(ip)):
	case ip.Is4() && len(a.spare) > 0:
		r := &a.spare[0]
		a.spare = a.spare[1:]
		r.ip = ip.As4()
		r.rr = miekg.A{Hdr: a.header(miekg.TypeA), A: r.ip[:]}
		a.add(&r.rr)
	default:
		a.add(addrRecord(a.owner, a.ttl, ip))
	}
}

// glue adds a target's addresses to the additional section, once.
func (a *answering) glue(owner string, addrs ...netip.Addr) {
	for _, ip := range addrs {
		if ip.IsValid() {
			a.m.Extra = append(a.m.Extra, addrRecord(owner, a.ttl, ip))
		}
	}
}

func addrType(ip netip.Addr) uint16 {
	if ip.Is4() {
		return miekg.TypeA
	}
	return miekg.TypeAAAA
}

func addrRecord(owner string, ttl uint32, ip netip.Addr) miekg.RR {
	hdr := miekg.RR_Header{Name: owner, Rrtype: addrType(ip), Class: miekg.ClassINET, Ttl: ttl}
	if ip.Is4() {
		return &miekg.A{Hdr: hdr, A: ip.AsSlice()}
	}
	return &miekg.AAAA{Hdr: hdr, AAAA: ip.AsSlice()}
}

func (a *answering) header(t uint16) miekg.RR_Header {
	return miekg.RR_Header{Name: a.owner, Rrtype: t, Class: miekg.ClassINET, Ttl: a.ttl}
}

// soa is the SOA record of one of our zones. Its serial is the snapshot's index:
// it rises with every change.
func (a *answering) soa(owner string) miekg.RR {
	domain := a.domain
	if domain == "" {
		domain = internalDomain
	}
	return &miekg.SOA{
		Hdr:     miekg.RR_Header{Name: owner, Rrtype: miekg.TypeSOA, Class: miekg.ClassINET, Ttl: a.negTTL},
		Ns:      "ns." + domain,
		Mbox:    "hostmaster." + domain,
		Serial:  uint32(a.snap.Index()),
		Refresh: soaRefresh,
		Retry:   soaRetry,
		Expire:  soaExpire,
		Minttl:  a.negTTL,
	}
}

// soaOwner is the zone that a negative answer is about.
func (a *answering) soaOwner() string {
	if a.negOwner != "" {
		return a.negOwner
	}
	return a.domain
}

// apex answers for one of our domains itself.
func (a *answering) apex() outcome {
	ns := "ns." + a.domain
	if a.wants(miekg.TypeSOA) {
		a.add(a.soa(a.owner))
	}
	record := &miekg.NS{Hdr: a.header(miekg.TypeNS), Ns: ns}
	switch {
	case a.wants(miekg.TypeNS):
		a.add(record)
	case a.qtype == miekg.TypeSOA:
		a.m.Ns = append(a.m.Ns, record)
	default:
		return found
	}
	a.glue(ns, a.nodeAddrs(a.findNode(string(a.node), string(a.node)))...)
	return found
}

// nameServer answers for ns.<domain>, this node by the name that the SOA and NS
// records give it.
func (a *answering) nameServer() outcome {
	for _, ip := range a.nodeAddrs(a.findNode(string(a.node), string(a.node))) {
		a.addAddr(ip)
	}
	return found
}

// cname answers with an alias, and with what it leads to as long as that is a
// name of ours.
func (a *answering) cname(target string) outcome {
	a.add(&miekg.CNAME{Hdr: a.header(miekg.TypeCNAME), Target: target})
	if a.qtype == miekg.TypeCNAME || a.qtype == miekg.TypeANY {
		return found
	}
	name := miekg.CanonicalName(target)
	if _, ours := a.domainOf(name); !ours {
		a.leads = true
		return found
	}
	if a.chain++; a.chain > maxChain {
		a.endless = true
		return found
	}
	a.owner = target
	switch a.name(name) {
	case nowhere: // RFC 6604: the code is that of the chain's end
		return nowhere
	case elsewhere:
		a.leads = true
	}
	return found
}

// hostname is s as an absolute name fit for a record, "" if it is none.
func hostname(s string) string {
	name := miekg.Fqdn(s)
	if _, ok := miekg.IsDomainName(name); !ok || name == "." || strings.ContainsAny(name, " \t\\\"();") {
		return ""
	}
	return name
}

// hexLabel is the label under addr.<site>.<domain> of one address, or of an IPv4
// and an IPv6 address that are the same target: 8, 32 or 40 hexadecimal digits.
func hexLabel(v4, v6 netip.Addr) string {
	var b [20]byte
	raw := b[:0]
	if v4.IsValid() {
		raw = append(raw, v4.AsSlice()...)
	}
	if v6.IsValid() {
		raw = append(raw, v6.AsSlice()...)
	}
	return hex.EncodeToString(raw)
}

// hexAddr answers for a label made by hexLabel.
func (a *answering) hexAddr(label string) outcome {
	raw, err := hex.DecodeString(label)
	if err != nil || len(raw) != 4 && len(raw) != 16 && len(raw) != 20 {
		return nowhere
	}
	a.ttl = a.nodeTTL // what the label says cannot change
	if len(raw) != 16 {
		a.addAddr(netip.AddrFrom4([4]byte(raw[:4])))
		raw = raw[4:]
	}
	if len(raw) == 16 {
		a.addAddr(netip.AddrFrom16([16]byte(raw)))
	}
	return found
}
