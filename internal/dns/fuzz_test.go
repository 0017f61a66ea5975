package dns

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	miekg "github.com/miekg/dns"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// everything is the catalogue of all stories at once.
func everything(f *testing.F) *state.Snapshot {
	f.Helper()
	st := state.New()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		f.Fatal(err)
	}
	rev := model.Index(1)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if strings.TrimSpace(line) == "" || strings.ContainsAny(line[:1], " #?-") || strings.HasPrefix(line, "config") {
				continue
			}
			c, err := parseFact(line)
			if err != nil {
				f.Fatal(err)
			}
			rev++
			st.Apply(rev, []state.Change{c})
		}
	}
	return st.Snapshot()
}

// FuzzPacket answers any packet at all, from here and from afar. Whatever comes
// out fits the asker and is a reply to the question.
func FuzzPacket(f *testing.F) {
	snap := everything(f)
	add := func(name string, qtype uint16) {
		req := new(miekg.Msg)
		req.SetQuestion(name, qtype)
		req.SetEdns0(1400, true)
		wire, err := req.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire, false)
		f.Add(wire, true)
	}
	for _, n := range []string{
		"consul.", "web.service.consul.", "_web._tcp.service.consul.", "v1.web.service.dc1.consul.", "n1.node.internal.",
		"0a090002.addr.dc1.consul.", "api.virtual.consul.", "plain.query.consul.", "geo-web.query.consul.", "_v2.only._udp.query.consul.", "web.connect.consul.", "x.ingress.consul.", "1.0.1.10.in-addr.arpa.", "db.net-a.internal.", "db.", ".", "example.com.",
		"2.0.210.10.in-addr.arpa.", "x.service.consul.", `we\.b.service.consul.`, `\000\255.service.consul.`,
		"2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.a.0.d.f.ip6.arpa.",
	} {
		add(n, miekg.TypeA)
		add(n, miekg.TypeSRV)
		add(n, miekg.TypeANY)
	}
	optioned := func(options ...miekg.EDNS0) {
		req := new(miekg.Msg)
		req.SetQuestion("web.service.consul.", miekg.TypeSRV)
		req.SetEdns0(900, false)
		req.IsEdns0().Option = options
		wire, err := req.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire, true)
		f.Add(wire, false)
	}
	cookie := func(hex string) miekg.EDNS0 { return &miekg.EDNS0_COOKIE{Code: miekg.EDNS0COOKIE, Cookie: hex} }
	optioned(cookie("0102030405060708"))
	optioned(cookie("01020304050607080100000000000000aabbccddeeff0011"))
	optioned(cookie("0102"), cookie(""))
	optioned(&miekg.EDNS0_SUBNET{Code: miekg.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: []byte{192, 0, 2, 0}}, &miekg.EDNS0_TCP_KEEPALIVE{Code: miekg.EDNS0TCPKEEPALIVE})
	optioned(&miekg.EDNS0_SUBNET{Code: miekg.EDNS0SUBNET, Family: 2, SourceNetmask: 128, SourceScope: 1, Address: make([]byte, 16)}, &miekg.EDNS0_EDE{InfoCode: 1, ExtraText: "x"})
	s := New(Config{Node: "n1", Resolve: func(string) (acl.Authorizer, error) { return acl.DenyAll(), nil }}, fixed{snap})
	s.zones.isHost = nil
	near, far := netip.MustParseAddr("10.210.0.4"), netip.MustParseAddr("198.51.100.1")
	f.Fuzz(func(t *testing.T, wire []byte, udp bool) {
		s.far = farAskers{}
		overTCP := s.answerWire(t.Context(), wire, near)
		req := new(miekg.Msg)
		if req.Unpack(wire) != nil {
			return
		}
		limit := miekg.MaxMsgSize
		if udp {
			limit = miekg.MinMsgSize
			if opt := req.IsEdns0(); opt != nil {
				limit = max(limit, int(opt.UDPSize()))
			}
		}
		for _, asker := range []netip.Addr{near, far} {
			out := s.serve(t.Context(), req, asker, udp)
			if out == nil || len(out) > limit || udp && asker == far && len(out) > max(ourUDPSize, miekg.MinMsgSize) {
				t.Fatalf("%d bytes for %s, who takes %d", len(out), asker, limit)
			}
			if out[0] != wire[0] || out[1] != wire[1] || out[2]>>7 != 1 {
				t.Fatalf("% x is no reply to % x", out[:12], wire[:12])
			}
			if new(miekg.Msg).Unpack(out) != nil {
				t.Fatalf("% x cannot be read", out)
			}
		}
		if overTCP != nil && (overTCP[0] != wire[0] || overTCP[1] != wire[1]) {
			t.Fatalf("% x is no reply to % x", overTCP[:12], wire[:12])
		}
		relayed := response{Msg: downstream(upstream(oneQuestion(req)), req)}
		finish(relayed, req, transport{udp: udp})
		if _, err := relayed.Pack(); err != nil {
			t.Fatalf("cannot pack the relayed reply to %v: %v", req, err)
		}
	})
}

// oneQuestion is req with a question, for what only sees queries that have one.
func oneQuestion(req *miekg.Msg) *miekg.Msg {
	if len(req.Question) == 1 {
		return req
	}
	req = req.Copy()
	req.SetQuestion("example.com.", miekg.TypeA)
	return req
}

func FuzzReverse(f *testing.F) {
	f.Add("4.3.2.1.in-addr.arpa.")
	f.Add("2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.a.0.d.f.ip6.arpa.")
	f.Fuzz(func(t *testing.T, name string) {
		ip, ok := reverseAddr(name)
		if !ok {
			return
		}
		back, err := miekg.ReverseAddr(ip.String())
		if err != nil || !strings.EqualFold(back, name) {
			// miekg writes IPv4-mapped addresses as IPv4.
			if !ip.Is4In6() {
				t.Errorf("%q is %s, whose reverse name is %q (%v)", name, ip, back, err)
			}
		}
	})
}
