package dns

import (
	"net/netip"
	"slices"
	"sort"
	"time"
	"unicode/utf8"

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

// transport is how a query came, and what of a reply depends on that.
type transport struct {
	udp bool
	// far: the asker may be anybody, and is not known to have the address that it
	// asks from; see Server.trusts.
	far bool
	// limit bounds the records of an answer over UDP without EDNS; 0: no limit.
	limit int
	// cookie goes with the reply, in hexadecimal; empty: none.
	cookie string
}

// finish adds to a reply what depends on the asker's transport: the OPT record,
// explanations, and a size that fits.
func finish(r response, req *miekg.Msg, t transport, more ...ede) {
	m, size := r.Msg, miekg.MaxMsgSize
	asked := req.IsEdns0()
	var opt *miekg.OPT
	if asked != nil {
		opt = replyOPT(asked, &r, &t)
		for _, why := range append([]ede{r.why}, more...) {
			if why.text != "" {
				opt.Option = append(opt.Option, &miekg.EDNS0_EDE{InfoCode: why.code, ExtraText: cutText(why.text)})
			}
		}
	}
	if t.udp {
		size = miekg.MinMsgSize
		if asked != nil {
			size = min(max(size, int(asked.UDPSize())), maxUDP)
		}
		if t.far {
			size = min(size, ourUDPSize)
		}
		if size == miekg.MinMsgSize && t.limit > 0 && m.Authoritative && len(m.Answer) > t.limit {
			m.Answer = m.Answer[:t.limit]
			dropGlue(m)
		}
	}
	if opt != nil {
		// With a long name in little space there is none for explanations.
		bare := &miekg.Msg{MsgHdr: m.MsgHdr, Question: m.Question}
		for miekg.Len(opt) > size-bare.Len() && dropLast(opt) {
		}
		size -= miekg.Len(opt)
	}
	fit(m, size)
	if opt != nil {
		m.Extra = append(m.Extra, opt)
	}
}

// dropLast takes the last explanation out of an OPT record, if there is one.
func dropLast(opt *miekg.OPT) bool {
	n := len(opt.Option) - 1
	if n < 0 {
		return false
	}
	if _, ok := opt.Option[n].(*miekg.EDNS0_EDE); !ok {
		return false
	}
	opt.Option = opt.Option[:n]
	return true
}

// replyOPT answers an OPT record with its own options.
func replyOPT(asked *miekg.OPT, r *response, t *transport) *miekg.OPT {
	opt := &miekg.OPT{Hdr: miekg.RR_Header{Name: ".", Rrtype: miekg.TypeOPT}}
	opt.SetUDPSize(ourUDPSize)
	if asked.Do() {
		opt.SetDo()
	}
	if t.cookie != "" {
		opt.Option = append(opt.Option, &miekg.EDNS0_COOKIE{Code: miekg.EDNS0COOKIE, Cookie: t.cookie})
	}
	var subnet, alive bool
	for _, o := range asked.Option {
		switch o := o.(type) {
		case *miekg.EDNS0_SUBNET:
			if !subnet && validSubnet(o) {
				subnet = true
				echo := *o
				if echo.SourceScope = 0; r.personal {
					echo.SourceScope = echo.SourceNetmask
				}
				opt.Option = append(opt.Option, &echo)
			}
		case *miekg.EDNS0_TCP_KEEPALIVE:
			if !alive && !t.udp {
				alive = true
				opt.Option = append(opt.Option, &miekg.EDNS0_TCP_KEEPALIVE{Code: miekg.EDNS0TCPKEEPALIVE, Timeout: uint16(idleTimeout / (100 * time.Millisecond))})
			}
		}
	}
	return opt
}

// cutText makes an explanation short, between characters.
func cutText(s string) string {
	if len(s) <= maxExtra {
		return s
	}
	n := maxExtra
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// dropGlue takes the addresses of targets out that no answer names any more.
func dropGlue(m *miekg.Msg) {
	m.Extra = slices.DeleteFunc(m.Extra, func(rr miekg.RR) bool {
		return !slices.ContainsFunc(m.Answer, func(a miekg.RR) bool {
			srv, ok := a.(*miekg.SRV)
			return ok && srv.Target == rr.Header().Name
		})
	})
}

// subnetOf is the subnet that a query speaks for (RFC 7871), nil if it does not.
func subnetOf(req *miekg.Msg) *miekg.EDNS0_SUBNET {
	opt := req.IsEdns0()
	if opt == nil {
		return nil
	}
	for _, o := range opt.Option {
		if s, ok := o.(*miekg.EDNS0_SUBNET); ok && validSubnet(s) && subnetAddr(s).IsValid() {
			return s
		}
	}
	return nil
}

func validSubnet(s *miekg.EDNS0_SUBNET) bool {
	switch s.Family {
	case 0:
		return s.SourceNetmask == 0
	case 1:
		return s.SourceNetmask <= 32 && s.Address.To4() != nil
	case 2:
		return s.SourceNetmask <= 128 && len(s.Address) == 16
	}
	return false
}

// subnetAddr is the address of a subnet; invalid if it says nothing.
func subnetAddr(s *miekg.EDNS0_SUBNET) netip.Addr {
	if s.SourceNetmask == 0 {
		return netip.Addr{}
	}
	ip, _ := netip.AddrFromSlice(s.Address)
	return ip.Unmap()
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
