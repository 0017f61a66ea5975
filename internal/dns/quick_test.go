package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	miekg "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairlead-net/fairlead/internal/state"
)

// hits are the questions that must cost no allocation.
var hits = []struct {
	what  string
	name  string
	qtype uint16
	edns  uint16
}{
	{"A", "few.service.consul.", miekg.TypeA, 0},
	{"A edns", "few.service.consul.", miekg.TypeA, 1232},
	{"AAAA", "few.service.consul.", miekg.TypeAAAA, 0},
	{"AAAA edns", "few.service.consul.", miekg.TypeAAAA, 1232},
	{"SRV", "few.service.consul.", miekg.TypeSRV, 0},
	{"SRV edns", "few.service.consul.", miekg.TypeSRV, 1232},
	{"NXDOMAIN", "no.service.consul.", miekg.TypeA, 0},
	{"NXDOMAIN edns", "no.service.consul.", miekg.TypeA, 1232},
	{"weighted", "odd.service.consul.", miekg.TypeA, 1232},
	{"node", "n1.node.consul.", miekg.TypeA, 0},
}

const oddFacts = `
instance n1 a odd port=1 addr=10.1.0.1 weights=6/1
instance n1 b odd port=1 addr=10.1.0.2 weights=3/1
`

// hitCounter is one at which all of hits are kept.
func hitCounter(t testing.TB) *counter {
	t.Helper()
	st, err := catalog("node n1 127.0.0.1\n" + manyOf("few", 10) + oddFacts)
	if err != nil {
		t.Fatal(err)
	}
	c := newCounter(New(Config{Node: "n1"}, st))
	for _, h := range hits {
		wire := aCase{name: h.name, qtype: h.qtype, size: h.edns}.wire(t)
		c.learn(wire, netip.IPv6Loopback())
		if c.quick(wire, netip.IPv6Loopback()) == nil {
			t.Fatalf("%s is not kept", h.what)
		}
	}
	return c
}

func TestKeptAnswersAllocateNothing(t *testing.T) {
	c := hitCounter(t)
	for _, h := range hits {
		wire := aCase{name: h.name, qtype: h.qtype, size: h.edns}.wire(t)
		for _, from := range []string{"127.0.0.1", "10.2.3.4"} {
			asker := netip.MustParseAddr(from)
			c.learn(wire, asker)
			if n := testing.AllocsPerRun(100, func() { c.quick(wire, asker); c.count() }); n != 0 {
				t.Errorf("%s from %s: %v allocations", h.what, from, n)
			}
		}
	}
}

func BenchmarkKept(b *testing.B) {
	c := hitCounter(b)
	for _, h := range hits {
		b.Run(h.what, func(b *testing.B) {
			wire := aCase{name: h.name, qtype: h.qtype, size: h.edns}.wire(b)
			b.ReportAllocs()
			for b.Loop() {
				if c.quick(wire, netip.IPv6Loopback()) == nil {
					b.Fatal("not kept")
				}
			}
		})
	}
}

// BenchmarkUDP asks over a socket, so many questions outstanding at a time. Client
// and server share the processors; figures are in DESIGN.md.
func BenchmarkUDP(b *testing.B) {
	st, err := catalog("node n1 127.0.0.1\n" + manyOf("few", 10))
	if err != nil {
		b.Fatal(err)
	}
	s := New(Config{Node: "n1", Addr: "127.0.0.1:0"}, st)
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	ready := make(chan struct{})
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() {
		if err := s.Run(ctx, func() { close(ready) }); err != nil {
			b.Error(err)
		}
	})
	<-ready
	for _, outstanding := range []int{1, 64} {
		for _, h := range hits[:8] {
			b.Run(fmt.Sprintf("%s/%d", h.what, outstanding), func(b *testing.B) {
				load(b, s.Addr(), aCase{name: h.name, qtype: h.qtype, size: h.edns}.wire(b), outstanding)
			})
		}
	}
}

// load asks one question b.N times.
func load(b *testing.B, at netip.AddrPort, wire []byte, outstanding int) {
	b.Helper()
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	buf := make([]byte, maxQuery)
	ask := func() {
		if _, err := conn.Write(wire); err != nil {
			b.Fatal(err)
		}
	}
	answered := func() {
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := conn.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
	for range 4 { // kept from the second on
		ask()
		answered()
	}
	b.ReportAllocs()
	b.ResetTimer()
	sent := 0
	for done := range b.N {
		for ; sent < b.N && sent-done < outstanding; sent++ {
			ask()
		}
		answered()
	}
}

// FuzzPlainQuery reads any packet; what it takes for a plain query is what package
// miekg reads, too.
func FuzzPlainQuery(f *testing.F) {
	for _, name := range []string{"web.service.consul.", "a.", "WEB_-9.x.", `a\.b.c.`, ".", strings.Repeat(strings.Repeat("x", 63)+".", 3) + "consul."} {
		for _, size := range []uint16{0, 512, 65000} {
			wire := aCase{name: name, qtype: miekg.TypeSRV, size: size, do: size > 512}.wire(f)
			f.Add(wire)
			f.Add(append(wire, 0))
			f.Add(wire[:len(wire)-1])
		}
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		var q plainQuery
		before := string(wire)
		ok := q.parse(wire)
		if string(wire) != before {
			t.Fatal("the query was changed")
		}
		if !ok {
			return
		}
		m := new(miekg.Msg)
		if err := m.Unpack(wire); err != nil {
			t.Fatalf("% x: %v", wire, err)
		}
		if m.Response || m.Opcode != miekg.OpcodeQuery || m.Truncated || len(m.Question) != 1 || len(m.Answer)+len(m.Ns) > 0 {
			t.Fatalf("no plain query: %v", m)
		}
		asked := m.Question[0]
		if q.text() != miekg.CanonicalName(asked.Name) || q.qtype != asked.Qtype || asked.Qclass != miekg.ClassINET {
			t.Errorf("%q %d, want %v", q.text(), q.qtype, asked)
		}
		opt := m.IsEdns0()
		if q.edns != (opt != nil) || len(m.Extra) > 0 != q.edns {
			t.Fatalf("OPT record %v, want %v", q.edns, opt)
		}
		if opt != nil && (q.do != opt.Do() || q.size != min(max(int(opt.UDPSize()), miekg.MinMsgSize), maxUDP) || len(opt.Option) > 0 || opt.Version() != 0) {
			t.Errorf("%v, want %v", q, opt)
		}
		if back := q.end; back > len(wire) || !strings.EqualFold(string(wire[headerSize:headerSize+q.len]), string(q.wire())) {
			t.Errorf("the question ends at %d of %d", back, len(wire))
		}
	})
}

// Whoever asks while the catalogue changes sees each change at once, and every
// answer whole.
func TestKeptAnswersWhileTheCatalogueChanges(t *testing.T) {
	st, err := catalog("node n1 127.0.0.1\n" + manyOf("few", 8))
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{Node: "n1"}, st)
	const changes = 400
	var published sync.Map // the address that is right, by index
	published.Store(st.Snapshot().Index(), "10.99.0.1")
	ctx, cancel := context.WithCancel(t.Context())
	var askers sync.WaitGroup
	for range 4 {
		askers.Go(func() {
			c := newCounter(s)
			wire := aCase{name: "few.service.consul.", qtype: miekg.TypeA, size: 1232}.wire(t)
			for ctx.Err() == nil {
				before := st.Snapshot().Index()
				got := c.quick(wire, netip.IPv6Loopback())
				after := st.Snapshot().Index()
				if got == nil {
					c.learn(wire, netip.IPv6Loopback())
					continue
				}
				m := new(miekg.Msg)
				if err := m.Unpack(got); err != nil || len(m.Answer) != 8 {
					t.Errorf("%v: %v", err, m)
					return
				}
				text := m.String()
				ok := false
				for index := before; index <= after; index++ {
					ip, known := published.Load(index)
					ok = ok || !known || strings.Contains(text, "\t"+ip.(string)+"\n")
				}
				if !ok {
					t.Errorf("between %d and %d: %s", before, after, text)
					return
				}
			}
		})
	}
	rev := st.Snapshot().Index()
	for i := range changes {
		ip := fmt.Sprintf("10.98.%d.%d", i/250, i%250+1)
		change, err := parseFact("instance n1 few-0 few port=1 addr=" + ip)
		if err != nil {
			t.Fatal(err)
		}
		rev++
		published.Store(rev, ip)
		st.Apply(rev, []state.Change{change})
	}
	cancel()
	askers.Wait()
	c, wire := newCounter(s), aCase{name: "few.service.consul.", qtype: miekg.TypeA}.wire(t)
	c.learn(wire, netip.IPv6Loopback())
	if m, text := plain(t, c.quick(wire, netip.IPv6Loopback())); len(m.Answer) != 8 || !strings.Contains(text, "10.98.1.150\n") {
		t.Errorf("in the end: %s", text)
	}
}

// Made-up names do not push out what is asked for.
func TestKeptAnswersAreBounded(t *testing.T) {
	st, err := catalog("node n1 127.0.0.1\n" + manyOf("few", 3))
	if err != nil {
		t.Fatal(err)
	}
	c := newCounter(New(Config{Node: "n1"}, st))
	here := netip.IPv6Loopback()
	for _, h := range hits[:8] {
		c.learn(aCase{name: h.name, qtype: h.qtype, size: h.edns}.wire(t), here)
	}
	for i := range 5 * maxDoubtful {
		for _, name := range []string{fmt.Sprintf("r%d.service.consul.", i), fmt.Sprintf("%08x.addr.consul.", i)} {
			c.learn(aCase{name: name, qtype: miekg.TypeA}.wire(t), here)
		}
		if c.quick(aCase{name: "no.service.consul.", qtype: miekg.TypeA}.wire(t), here) == nil {
			t.Fatalf("a name that is asked for all the time was forgotten after %d others", i)
		}
	}
	p := c.s.kept
	if len(p.doubt.all) != maxDoubtful || len(p.sure.all) > 8 {
		t.Errorf("%d doubtful, %d sure", len(p.doubt.all), len(p.sure.all))
	}
	for _, h := range hits[:6] {
		if c.quick(aCase{name: h.name, qtype: h.qtype, size: h.edns}.wire(t), here) == nil && h.qtype != miekg.TypeAAAA {
			t.Errorf("%s was forgotten", h.what)
		}
	}
	linked := 0
	for i := range p.buckets {
		for k := p.buckets[i].Load(); k != nil; k = k.next.Load() {
			linked++
		}
	}
	bytes := 0
	for _, k := range append(p.doubt.all, p.sure.all...) {
		bytes += k.size
	}
	if linked != len(p.doubt.all)+len(p.sure.all) || bytes != p.bytes || bytes > maxKeptBytes {
		t.Errorf("%d in lists, %d and %d in rings; %d bytes, counted %d", linked, len(p.doubt.all), len(p.sure.all), bytes, p.bytes)
	}
	// Asked once each, they are not even made.
	for i := range 100 {
		now := c.s.moment()
		wire := aCase{name: fmt.Sprintf("once%d.service.consul.", i), qtype: miekg.TypeA}.wire(t)
		c.s.keep(wire, c.asker(here, &now))
		if c.quick(wire, here) != nil {
			t.Error("kept at the first question")
		}
	}
}

// The counters say what was kept, and count it among the rest.
func TestKeptAnswersAreCounted(t *testing.T) {
	s := start(t, Config{})
	reg := prometheus.NewRegistry()
	if err := s.Register(reg); err != nil {
		t.Fatal(err)
	}
	kept := func() float64 {
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "fairlead_dns_kept_total" {
				return f.GetMetric()[0].GetCounter().GetValue()
			}
		}
		return -1
	}
	asked := 0.0
	for deadline := time.Now().Add(10 * time.Second); kept() < 1 && time.Now().Before(deadline); asked++ {
		query(t, "udp", s.at, "web.service.consul.", miekg.TypeA)
	}
	if got := count(t, reg, "fairlead_dns_queries_total", "NOERROR"); got != asked || kept() < 1 {
		t.Errorf("%v answers and %v kept ones counted of %v", got, kept(), asked)
	}
}
