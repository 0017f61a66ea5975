package dns

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	miekg "github.com/miekg/dns"

	"github.com/fairlead-net/fairlead/internal/state"
)

// crowd is a service "web" with n instances on hosts.
func crowd(t testing.TB, n int) *state.Snapshot {
	t.Helper()
	var facts strings.Builder
	facts.WriteString("node n1 10.1.0.1\n")
	for i := range n {
		fmt.Fprintf(&facts, "instance n1 web-%d web port=80 addr=10.9.%d.%d\n", i, i/250, i%250+1)
	}
	st, err := catalog(facts.String())
	if err != nil {
		t.Fatal(err)
	}
	return st.Snapshot()
}

func TestSizes(t *testing.T) {
	tests := []struct {
		name      string
		instances int
		qtype     uint16
		edns      uint16 // 0: none
		tcp       bool

		answers, extra int // without OPT; -1: some, but not all
		tc             bool
	}{
		{name: "Consul's limit of three is not ours", instances: 5, qtype: miekg.TypeA, answers: 5},
		{name: "without EDNS 512 bytes hold what they hold", instances: 100, qtype: miekg.TypeA, answers: -1, tc: true},
		{name: "EDNS says how much", instances: 60, qtype: miekg.TypeA, edns: 4096, answers: 60},
		{name: "EDNS sizes below 512 mean 512", instances: 20, qtype: miekg.TypeA, edns: 100, answers: 20},
		{name: "all the asker can take", instances: 1000, qtype: miekg.TypeA, edns: 65535, answers: 1000},
		{name: "TCP takes all", instances: 1000, qtype: miekg.TypeA, tcp: true, answers: 1000},
		{name: "TCP with EDNS, too", instances: 1000, qtype: miekg.TypeA, edns: 1232, tcp: true, answers: 1000},
		{name: "TCP ends at 64 KiB", instances: 2000, qtype: miekg.TypeSRV, tcp: true, answers: -1, tc: true},
		{name: "addresses beside SRV", instances: 10, qtype: miekg.TypeSRV, edns: 4096, answers: 10, extra: 10},
		{name: "what is only help goes unannounced", instances: 10, qtype: miekg.TypeSRV, edns: 512, answers: 10, extra: -1},
		{name: "SRV cut", instances: 100, qtype: miekg.TypeSRV, answers: -1, tc: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			z := configure(t, nil)
			req := new(miekg.Msg)
			req.SetQuestion("web.service.consul.", tt.qtype)
			size := miekg.MinMsgSize
			if tt.edns > 0 {
				req.SetEdns0(tt.edns, false)
				size = max(size, int(tt.edns))
			}
			if tt.tcp {
				size = miekg.MaxMsgSize
			}
			r := z.answer(crowd(t, tt.instances), req, netip.IPv6Loopback())
			finish(r, req, transport{udp: !tt.tcp})
			m := r.Msg
			wire, err := m.Pack()
			if err != nil {
				t.Fatal(err)
			}
			if len(wire) > size {
				t.Errorf("%d bytes for an asker that takes %d", len(wire), size)
			}
			if m.Truncated != tt.tc {
				t.Errorf("tc=%v, want %v", m.Truncated, tt.tc)
			}
			opt := 0
			if tt.edns > 0 {
				opt = 1
			}
			wantCount(t, "answers", len(m.Answer), tt.answers, tt.instances)
			wantCount(t, "extra", len(m.Extra)-opt, tt.extra, tt.instances)
			if (m.IsEdns0() != nil) != (tt.edns > 0) {
				t.Errorf("OPT record: %v", m.IsEdns0())
			}
			// What stayed fills the message: one record more would not fit.
			if tt.tc && size-len(wire) > 80 {
				t.Errorf("cut to %d of %d bytes", len(wire), size)
			}
		})
	}
}

// Explanations make room for what has to be there.
func TestLongNamesInLittleSpace(t *testing.T) {
	s := New(Config{Addr: "127.0.0.1:0", Node: "n1", StaleFor: func() time.Duration { return time.Hour }}, fixed{crowd(t, 1)})
	long := strings.Repeat("a.", 100) + strings.Repeat("b", 20)
	for _, name := range []string{long + ".service.consul.", "web.service.consul."} {
		req := withCookie("0102030405060708")
		req.Question[0].Name = name
		req.IsEdns0().SetUDPSize(512)
		wire := s.serve(t.Context(), req, netip.IPv6Loopback(), true)
		m := new(miekg.Msg)
		if err := m.Unpack(wire); err != nil || len(wire) > 512 || len(m.Question) != 1 || m.IsEdns0() == nil {
			t.Errorf("%d bytes for %s: %v, %v", len(wire), name, m, err)
		}
	}
}

func wantCount(t *testing.T, what string, got, want, all int) {
	t.Helper()
	if want == -1 && (got <= 0 || got >= all) || want >= 0 && got != want {
		t.Errorf("%d %s of %d, want %d (-1: some)", got, what, all, want)
	}
}

// Every instance is first about as often as any other.
func TestShuffled(t *testing.T) {
	s := New(Config{Addr: "127.0.0.1:0", Node: "n1"}, nil)
	snap := crowd(t, 4)
	first := map[string]int{}
	for range 4000 {
		req := new(miekg.Msg)
		req.SetQuestion("web.service.consul.", miekg.TypeA)
		m := s.zones.answer(snap, req, netip.IPv6Loopback())
		first[m.Answer[0].(*miekg.A).A.String()]++
	}
	for ip, n := range first {
		if n < 800 || n > 1200 {
			t.Errorf("%s was first %d times of 4000", ip, n)
		}
	}
	if len(first) != 4 {
		t.Errorf("first were only %v", first)
	}
}

func TestConfigErrors(t *testing.T) {
	for want, cfg := range map[string]Config{
		`domain "." is not`:                    {Domain: "."},
		`domain "a..b" is not`:                 {Domain: "a..b"},
		`alt-domain ".x" is not`:               {AltDomain: ".x"},
		`recursor "example.com" is not`:        {Recursors: []string{"example.com"}},
		`recursor "10.0.0.1:0" is not`:         {Recursors: []string{"10.0.0.1:0"}},
		`dns-service-ttl "a*b" has a * before`: {ServiceTTL: map[string]time.Duration{"a*b": 1}},
	} {
		cfg.Addr = "127.0.0.1:0"
		err := New(cfg, nil).Run(t.Context(), func() { t.Error("ready in spite of the error") })
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", cfg, err, want)
		}
	}
}

func BenchmarkAnswer(b *testing.B) {
	snap := crowd(b, 10)
	z := New(Config{Node: "n1"}, nil).zones
	for _, qtype := range []uint16{miekg.TypeA, miekg.TypeSRV, miekg.TypeAAAA} {
		b.Run(miekg.TypeToString[qtype], func(b *testing.B) {
			req := new(miekg.Msg)
			req.SetQuestion("web.service.consul.", qtype)
			req.SetEdns0(1232, false)
			b.ReportAllocs()
			for b.Loop() {
				m := z.answer(snap, req, netip.IPv6Loopback())
				finish(m, req, transport{udp: true})
				if _, err := m.Pack(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
