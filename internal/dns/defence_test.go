package dns

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	miekg "github.com/miekg/dns"
)

// put hands a query to a server as if it came from an address.
func (s *Server) put(t *testing.T, req *miekg.Msg, from string, udp bool) *miekg.Msg {
	t.Helper()
	wire := s.serve(t.Context(), req, netip.MustParseAddr(from), udp)
	m := new(miekg.Msg)
	if err := m.Unpack(wire); err != nil {
		t.Fatal(err)
	}
	return m
}

func ask1(name string, size uint16) *miekg.Msg {
	req := new(miekg.Msg)
	req.SetQuestion(name, miekg.TypeSRV)
	if size > 0 {
		req.SetEdns0(size, false)
	}
	return req
}

// crowded is a server of a service with many instances, with a resolver.
func crowded(t *testing.T) *Server {
	t.Helper()
	return New(Config{Addr: "127.0.0.1:0", Node: "n1", Recursors: []string{deadAddr(t)}, RecursorTimeout: 50 * time.Millisecond}, fixed{crowd(t, 100)})
}

// A stranger, who may have forged its address, gets no large answers over UDP
// until it has shown that it gets them.
func TestStrangersAreNoWeapons(t *testing.T) {
	s := crowded(t)
	for _, tt := range []struct {
		name, from string
		udp, big   bool
	}{
		{"this host", "127.0.0.1", true, true},
		{"a private network", "10.2.3.4", true, true},
		{"a private IPv6 network", "fd00::1", true, true},
		{"a provider's network", "100.64.1.1", true, true},
		{"a stranger", "198.51.100.1", true, false},
		{"a stranger over TCP", "198.51.100.1", false, true},
		{"a stranger over IPv6", "2001:db8::1", true, false},
	} {
		m := s.put(t, ask1("web.service.consul.", 65000), tt.from, tt.udp)
		m.Compress = true
		if big := m.Len() > ourUDPSize; big != tt.big || m.Truncated == tt.big || m.Rcode != miekg.RcodeSuccess {
			t.Errorf("%s: %d bytes, tc %v, want more than %d: %v", tt.name, m.Len(), m.Truncated, ourUDPSize, tt.big)
		}
	}

	// With our cookie the stranger is who it says it is.
	req := ask1("web.service.consul.", 65000)
	opt := req.IsEdns0()
	opt.Option = []miekg.EDNS0{&miekg.EDNS0_COOKIE{Code: miekg.EDNS0COOKIE, Cookie: "0102030405060708"}}
	m := s.put(t, req, "198.51.100.1", true)
	given := m.IsEdns0().Option[0].(*miekg.EDNS0_COOKIE).Cookie
	opt.Option = []miekg.EDNS0{&miekg.EDNS0_COOKIE{Code: miekg.EDNS0COOKIE, Cookie: given}}
	if m := s.put(t, req, "198.51.100.1", true); m.Truncated || len(m.Answer) != 100 {
		t.Errorf("with the cookie: tc %v, %d answers", m.Truncated, len(m.Answer))
	}
	if m := s.put(t, req, "198.51.100.2", true); !m.Truncated {
		t.Error("somebody else's cookie was taken")
	}
	opt.Option = []miekg.EDNS0{&miekg.EDNS0_COOKIE{Code: miekg.EDNS0COOKIE, Cookie: "0102"}}
	if m := s.put(t, req, "127.0.0.1", true); m.Rcode != miekg.RcodeFormatError {
		t.Errorf("a malformed cookie: %v", m)
	}
}

func TestStrangersAreNotResolvedFor(t *testing.T) {
	s := crowded(t)
	for from, want := range map[string]int{"198.51.100.1": miekg.RcodeRefused, "127.0.0.1": miekg.RcodeServerFailure, "192.168.7.7": miekg.RcodeServerFailure} {
		for _, udp := range []bool{true, false} {
			m := s.put(t, ask1("example.com.", 1232), from, udp)
			if m.Rcode != want || want == miekg.RcodeRefused && (m.RecursionAvailable || !strings.Contains(because(m), "private addresses")) {
				t.Errorf("from %s: %v", from, m)
			}
		}
	}
	if m := s.put(t, ask1("web.service.consul.", 1232), "198.51.100.1", true); m.RecursionAvailable {
		t.Error("recursion is on offer to a stranger")
	}
}

func TestStrangersAreLimited(t *testing.T) {
	var f farAskers
	now := time.Unix(1_700_000_000, 0)
	one, same, other := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.200"), netip.MustParseAddr("198.51.101.1")
	for i := range farBurst {
		if !f.take(one, now) {
			t.Fatalf("answer %d was refused", i)
		}
	}
	if f.take(one, now) || f.take(same, now) || !f.take(other, now) {
		t.Error("the limit is not that of a network")
	}
	if now = now.Add(time.Second / farRate); !f.take(same, now) || f.take(one, now) {
		t.Error("the limit is not given back with time")
	}
	for i := range maxFar + 10 {
		f.take(netip.AddrFrom4([4]byte{203, byte(i >> 8), byte(i), 1}), now)
	}
	if len(f.by) > maxFar {
		t.Errorf("%d networks are remembered", len(f.by))
	}

	// Who is over the limit is told to use TCP, in no more bytes than it sent.
	s := crowded(t)
	req := ask1("web.service.consul.", 0)
	for later := time.Now().Add(time.Hour); s.far.take(one, later); {
	}
	if m := s.put(t, req, "198.51.100.1", true); !m.Truncated || len(m.Answer) > 0 || m.Len() > req.Len() {
		t.Errorf("over the limit: %v", m)
	}
	if m := s.put(t, req, "198.51.100.1", false); len(m.Answer) != 100 {
		t.Errorf("over TCP: %v", m)
	}
}

// Without contact to a server, what is known is still answered, and says so.
func TestStaleState(t *testing.T) {
	var since time.Duration
	st, err := catalog(hostFacts)
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{Addr: "127.0.0.1:0", Node: "n1", MaxStale: time.Hour, StaleFor: func() time.Duration { return since }}, fixed{st.Snapshot()})
	for _, tt := range []struct {
		since time.Duration
		name  string
		rcode int
		code  uint16
		text  string
	}{
		{0, "web.service.consul.", miekg.RcodeSuccess, 0, ""},
		{12 * time.Second, "web.service.consul.", miekg.RcodeSuccess, miekg.ExtendedErrorCodeStaleAnswer, "no server has been in contact for 12s"},
		{12 * time.Second, "nosuch.node.consul.", miekg.RcodeNameError, miekg.ExtendedErrorCodeStaleNXDOMAINAnswer, "12s"},
		{12 * time.Second, "example.com.", miekg.RcodeRefused, miekg.ExtendedErrorCodeNotAuthoritative, "only consul. and internal."},
		{2 * time.Hour, "web.service.consul.", miekg.RcodeServerFailure, miekg.ExtendedErrorCodeNoReachableAuthority, "longer than dns-max-stale (1h0m0s)"},
	} {
		since = tt.since
		m := s.put(t, ask1(tt.name, 1232), "127.0.0.1", true)
		var last *miekg.EDNS0_EDE
		for _, o := range m.IsEdns0().Option {
			last = o.(*miekg.EDNS0_EDE)
		}
		if m.Rcode != tt.rcode || (last != nil) != (tt.text != "") || last != nil && (last.InfoCode != tt.code || !strings.Contains(last.ExtraText, tt.text)) {
			t.Errorf("%s after %v: %v", tt.name, tt.since, m)
		}
	}
}

// More weight comes earlier more often; none at all comes last.
func TestWeightedRotation(t *testing.T) {
	st, err := catalog("node n1 10.1.0.1\ninstance n1 a web addr=10.9.0.1 weights=9/1\ninstance n1 b web addr=10.9.0.2 weights=1/1\ninstance n1 c web addr=10.9.0.3 weights=0/0\ninstance n1 d web addr=10.9.0.4 weights=-5/1")
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{Addr: "127.0.0.1:0", Node: "n1"}, fixed{st.Snapshot()})
	first := map[string]int{}
	for range 2000 {
		req := new(miekg.Msg)
		req.SetQuestion("web.service.consul.", miekg.TypeA)
		list := addrsOf(s.zones.answer(st.Snapshot(), req, netip.IPv6Loopback()).Msg)
		first[list[0]]++
		if list[3] != "10.9.0.4" {
			t.Fatalf("a weight of none is not last: %v", list)
		}
	}
	if a := first["10.9.0.1"]; a < 1500 || a > 1800 { // 9 of 11: c without weights has 1
		t.Errorf("first: %v", first)
	}
}

func TestOptionsOverTheWire(t *testing.T) {
	s := start(t, Config{})
	for _, network := range []string{"udp", "tcp"} {
		req := ask1("web.service.consul.", 1232)
		opt := req.IsEdns0()
		opt.SetDo()
		opt.Option = []miekg.EDNS0{
			&miekg.EDNS0_COOKIE{Code: miekg.EDNS0COOKIE, Cookie: "0102030405060708"},
			&miekg.EDNS0_SUBNET{Code: miekg.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: []byte{192, 0, 2, 0}},
			&miekg.EDNS0_TCP_KEEPALIVE{Code: miekg.EDNS0TCPKEEPALIVE},
			&miekg.EDNS0_LOCAL{Code: 65001, Data: []byte("unknown")},
		}
		m, _, err := (&miekg.Client{Net: network, Timeout: 5 * time.Second}).Exchange(req, s.at)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, o := range m.IsEdns0().Option {
			switch o := o.(type) {
			case *miekg.EDNS0_COOKIE:
				got = append(got, "cookie "+o.Cookie[:16])
			default:
				got = append(got, o.String())
			}
		}
		want := "cookie 0102030405060708, 192.0.2.0/24/0"
		if network == "tcp" {
			want += ", use tcp keep-alive"
		}
		if text := strings.Join(got, ", "); !strings.HasPrefix(text, want) || strings.Contains(text, "7265") || !m.IsEdns0().Do() {
			t.Errorf("over %s: %s, want %s", network, text, want)
		}
	}
}

// EDNS of a version that nobody knows is refused as the RFC says (6891, 6.1.3).
func TestUnknownEDNSVersion(t *testing.T) {
	s := start(t, Config{})
	req := ask1("web.service.consul.", 1232)
	req.IsEdns0().SetVersion(7)
	for _, network := range []string{"udp", "tcp"} {
		m, _, err := (&miekg.Client{Net: network, Timeout: 5 * time.Second}).Exchange(req, s.at)
		if err != nil || m.Rcode != miekg.RcodeBadVers || m.IsEdns0().Version() != 0 || len(m.Answer) > 0 {
			t.Errorf("over %s: %v, %v", network, m, err)
		}
	}
}
