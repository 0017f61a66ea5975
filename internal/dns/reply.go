package dns

import (
	"sort"

	miekg "github.com/miekg/dns"
)

// ourUDPSize is the largest UDP message we ask others to send us, in bytes: what
// passes everywhere without fragments (DNS flag day 2020).
const ourUDPSize = 1232

// maxUDP is the largest UDP message we send, in bytes, whatever an asker offers:
// what an IPv4 datagram holds.
const maxUDP = 65507

// maxExtra bounds the text of an extended error, in bytes.
const maxExtra = 200

// ede is an extended DNS error (RFC 8914) without one if text is empty.
type ede struct {
	code uint16
	text string
}

// newReply is an empty reply to req.
func newReply(req *miekg.Msg) *miekg.Msg {
	m := &miekg.Msg{MsgHdr: miekg.MsgHdr{
		Id:               req.Id,
		Response:         true,
		Opcode:           req.Opcode,
		RecursionDesired: req.RecursionDesired,
		CheckingDisabled: req.CheckingDisabled,
	}}
	if len(req.Question) == 1 {
		m.Question = req.Question
	}
	return m
}

// finish adds to a reply what depends on the asker's transport: the OPT record,
// the explanation, and a size that fits.
func finish(m, req *miekg.Msg, why ede, udp bool) {
	size := miekg.MaxMsgSize
	asked := req.IsEdns0()
	var opt *miekg.OPT
	if asked != nil {
		opt = &miekg.OPT{Hdr: miekg.RR_Header{Name: ".", Rrtype: miekg.TypeOPT}}
		opt.SetUDPSize(ourUDPSize)
		if asked.Do() {
			opt.SetDo()
		}
		if why.text != "" {
			text := why.text[:min(len(why.text), maxExtra)]
			opt.Option = append(opt.Option, &miekg.EDNS0_EDE{InfoCode: why.code, ExtraText: text})
		}
	}
	if udp {
		size = miekg.MinMsgSize
		if asked != nil {
			size = min(max(size, int(asked.UDPSize())), maxUDP)
		}
	}
	if opt != nil {
		size -= miekg.Len(opt)
	}
	fit(m, size)
	if opt != nil {
		m.Extra = append(m.Extra, opt)
	}
}

// fit makes a message no longer than size bytes. The additional section is only
// help and goes first, unannounced; when that is not enough, as many answers stay
// as fit and TC says so (RFC 2181, section 9).
func fit(m *miekg.Msg, size int) {
	if m.Len() <= size {
		return
	}
	m.Compress = true
	if keep(m, size, &m.Extra) {
		return
	}
	m.Truncated = true
	if !keep(m, size, &m.Ns) {
		keep(m, size, &m.Answer)
	}
}

// keep shortens one section to the longest front with which the message fits. It
// reports whether there is one, and empties the section if not.
func keep(m *miekg.Msg, size int, section *[]miekg.RR) bool {
	all := *section
	n := sort.Search(len(all)+1, func(n int) bool {
		*section = all[:n]
		return m.Len() > size
	}) - 1
	*section = all[:max(n, 0)]
	return n >= 0
}

func countOPT(m *miekg.Msg) int {
	n := 0
	for _, rr := range m.Extra {
		if rr.Header().Rrtype == miekg.TypeOPT {
			n++
		}
	}
	return n
}
