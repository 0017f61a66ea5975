package dns

import (
	"encoding/binary"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	miekg "github.com/miekg/dns"

	"github.com/fairlead-net/fairlead/internal/state"
)

// keptKinds are the kinds of names whose answers are kept: the others depend on
// more than a few records, or are hardly asked for twice.
var keptKinds = []string{"service", "connect", "node", "virtual", "addr"}

// kindOf is the kind of name that a canonical name in one of our domains is; see
// answering.inDomain. Empty: of none.
func (z *zones) kindOf(name string) string {
	domain, ok := z.domainOf(name)
	if !ok {
		return ""
	}
	labels := strings.Split(strings.TrimSuffix(strings.TrimSuffix(name, domain), "."), ".")
	slices.Reverse(labels)
	for _, l := range labels[:min(3, len(labels))] {
		if slices.Contains(kinds, l) {
			return l
		}
	}
	return ""
}

// makeKept makes the answer to a plain query, to be kept: by the code that answers
// every query, so that both say the same. It returns nil for what cannot be kept.
func (s *Server) makeKept(q *plainQuery, asker netip.Addr) *kept {
	z, snap := s.zones, s.reader.Snapshot()
	req := new(miekg.Msg)
	req.SetQuestion(q.text(), q.qtype)
	if rcode, _ := refusal(req); rcode != miekg.RcodeSuccess || q.qtype == miekg.TypeANY || snap.Index() == 0 {
		return nil
	}
	k := &kept{}
	a := z.begin(view{snap, &k.reads}, req, asker)
	a.scope = z.scopeOf(snap, a.asker)
	class := s.classes.of(a.scope)
	if class == noClass || !reflect.ValueOf(a.may).Comparable() {
		return nil
	}
	k.key = keptKey{name: string(q.wire()), qtype: q.qtype, class: class}
	k.may = a.may
	k.right.Store(uint64(snap.Index()))
	r := a.answer()
	if r.Msg == nil || r.personal || k.reads.whole {
		return nil
	}
	k.fill(a, r, q)
	k.reads.tidy()
	return k
}

// fill makes the answer out of a full one.
func (k *kept) fill(a *answering, r response, q *plainQuery) {
	k.rcode = byte(r.Rcode)
	if r.why.text != "" {
		text := cutText(r.why.text)
		k.why = binary.BigEndian.AppendUint16(nil, miekg.EDNS0EDE)
		k.why = binary.BigEndian.AppendUint16(k.why, uint16(2+len(text)))
		k.why = append(binary.BigEndian.AppendUint16(k.why, r.why.code), text...)
	}
	alias := func(rr miekg.RR) bool { return rr.Header().Rrtype == miekg.TypeCNAME }
	switch {
	case !r.Authoritative || slices.ContainsFunc(r.Answer, alias):
		k.slow = true
	case len(k.reads.live) > 1 && len(r.Answer) > 0:
		k.choice = a.choices(k.reads.name, k.reads.live, q)
		k.slow = k.choice == nil
	default:
		k.slow = !k.fix(r.Msg, q)
	}
}

// fix keeps the records as they are, and reports whether it can.
func (k *kept) fix(m *miekg.Msg, q *plainQuery) bool {
	soas := 0
	for _, rr := range slices.Concat(m.Answer, m.Ns, m.Extra) {
		if rr.Header().Rrtype == miekg.TypeSOA {
			soas++
		}
	}
	last := len(m.Ns) > 0 && len(m.Extra) == 0 && m.Ns[len(m.Ns)-1].Header().Rrtype == miekg.TypeSOA
	if soas > 1 || soas == 1 && !last {
		return false
	}
	m.Compress = true
	wire, err := m.Pack()
	if err != nil || len(wire) < headerSize+q.len+4 {
		return false
	}
	k.body = slices.Clone(wire[headerSize+q.len+4:])
	k.counts = [3]uint16{uint16(len(m.Answer)), uint16(len(m.Ns)), uint16(len(m.Extra))}
	if soas == 1 {
		k.serial = len(k.body) - 20 // five numbers are its end
	}
	return true
}

// choices are the records of each of a service's instances alone; nil if they
// depend on each other, or are of a type that is hardly asked for.
func (a *answering) choices(name string, live []*state.Member, q *plainQuery) *choice {
	c := &choice{}
	switch q.qtype {
	case miekg.TypeA, miekg.TypeAAAA:
		c.once, c.limit = true, max(a.aLimit, 0)
	case miekg.TypeSRV:
	default:
		return nil
	}
	if len(live) > maxChoice {
		return nil
	}
	made := making{choice: c, targets: map[string]uint16{}}
	for _, m := range live {
		one := *a
		one.snap.read = nil // all of it was read for all of them together
		one.m, one.spare = &miekg.Msg{}, nil
		one.instances(name, []*state.Member{m})
		if !made.add(one.m, q) {
			return nil
		}
		c.weights = append(c.weights, weight(m))
		c.weighted = c.weighted || a.random != nil && weight(m) != weight(live[0])
	}
	made.finish()
	return c
}

// making is a choice on its way.
type making struct {
	*choice
	targets map[string]uint16 // the numbers of targets and addresses
	glue    []byte
}

// add adds the records of one instance, and reports whether it can.
func (c *making) add(m *miekg.Msg, q *plainQuery) bool {
	for _, rr := range m.Answer {
		wire, ok := packed(rr, q.len)
		if !ok || rr.Header().Rrtype != q.qtype {
			return false // an alias, which only one may be
		}
		rec := record{at: uint32(len(c.wires)), end: uint32(len(c.wires) + len(wire)), glue: uint32(len(c.glue))}
		c.wires = append(c.wires, wire...)
		target := string(wire[rdataAt:]) // an address
		if srv, is := rr.(*miekg.SRV); is {
			target = string(wire[targetAt:])
			for _, extra := range m.Extra {
				if extra.Header().Name != srv.Target {
					continue
				}
				wire, ok := packed(extra, len(target))
				if !ok {
					return false
				}
				c.glue = append(c.glue, wire...)
				rec.glues++
			}
		}
		if _, known := c.targets[target]; !known {
			c.targets[target] = uint16(len(c.targets))
		}
		rec.target = c.targets[target]
		c.records = append(c.records, rec)
	}
	c.ends = append(c.ends, uint16(len(c.records)))
	return true
}

// finish puts the glue behind the records.
func (c *making) finish() {
	for i := range c.records {
		c.records[i].glue += uint32(len(c.wires))
	}
	c.wires = append(slices.Clip(c.wires), c.glue...)
	c.choice.wires, c.choice.records, c.choice.ends = slices.Clip(c.wires), slices.Clip(c.records), slices.Clip(c.ends)
	c.choice.targets = len(c.targets)
}

// packed is a record on the wire without its owner, which is so many bytes long.
func packed(rr miekg.RR, owner int) ([]byte, bool) {
	buf := make([]byte, miekg.Len(rr)+1)
	n, err := miekg.PackRR(rr, buf, 0, nil, false)
	if err != nil || n < owner {
		return nil, false
	}
	return slices.Clone(buf[owner:n]), true
}
