package dns

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	miekg "github.com/miekg/dns"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// counter is a place to ask one server for kept answers, without sockets.
type counter struct {
	s *Server
	clerk
	buf [maxQuery]byte
}

func newCounter(s *Server) *counter { return &counter{s: s, clerk: clerk{s: s}} }

// quick returns the kept answer to a query, nil if there is none.
func (c *counter) quick(wire []byte, from netip.Addr) []byte {
	now := c.s.moment()
	n := copy(c.buf[:], wire)
	end := c.answer(c.buf[:], n, c.asker(from, &now), &now)
	if end == 0 {
		if string(c.buf[:n]) != string(wire) {
			panic("a query without a kept answer was written over")
		}
		return nil
	}
	return c.buf[:end]
}

// learn lets the server keep what it can of the answer to a query, as it does
// after answering it.
func (c *counter) learn(wire []byte, from netip.Addr) {
	for range 2 {
		now := c.s.moment()
		c.s.keep(wire, c.asker(from, &now))
	}
}

// plain is an answer without what may differ: the order of records, and the case
// of names.
func plain(t *testing.T, wire []byte) (m *miekg.Msg, text string) {
	t.Helper()
	m = new(miekg.Msg)
	if err := m.Unpack(wire); err != nil {
		t.Fatalf("% x: %v", wire, err)
	}
	m.Compress = false
	var b strings.Builder
	fmt.Fprintf(&b, "%+v\n%v\n", m.MsgHdr, m.Question)
	for _, section := range [][]miekg.RR{m.Answer, m.Ns, m.Extra} {
		lines := make([]string, 0, len(section))
		for _, rr := range section {
			lines = append(lines, strings.ToLower(rr.String()))
		}
		slices.Sort(lines)
		b.WriteString(strings.Join(lines, "\n") + "\n\n")
	}
	return m, b.String()
}

// aCase is one question as it is asked.
type aCase struct {
	name  string
	qtype uint16
	size  uint16 // 0: without EDNS
	do    bool
	from  string
}

func (q aCase) String() string {
	return fmt.Sprintf("%s %s edns=%d do=%v from=%s", q.name, miekg.TypeToString[q.qtype], q.size, q.do, q.from)
}

func (q aCase) wire(t testing.TB) []byte {
	t.Helper()
	req := new(miekg.Msg)
	req.SetQuestion(q.name, q.qtype)
	req.Id = uint16(rand.Uint32())
	req.RecursionDesired, req.CheckingDisabled, req.AuthenticatedData = rand.N(2) == 0, rand.N(2) == 0, rand.N(2) == 0
	if q.size > 0 {
		req.SetEdns0(q.size, q.do)
	}
	wire, err := req.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return wire
}

// mixed spells a name in some letter case.
func mixed(name string) string {
	b := []byte(name)
	for i := range b {
		if rand.N(2) == 0 {
			b[i] = strings.ToUpper(string(b[i]))[0]
		}
	}
	return string(b)
}

// inFull is the server's answer as any query gets it that is not plain.
func inFull(t *testing.T, s *Server, wire []byte, from string) []byte {
	t.Helper()
	out := s.answerOver(t.Context(), wire, netip.MustParseAddr(from), true)
	if out == nil {
		t.Fatal("no answer in full")
	}
	return out
}

// compare asks for a kept answer and for one in full. It reports whether there is
// a kept one. Where not all fits, which records are given is up to chance.
func (c *counter) compare(t *testing.T, q aCase) bool {
	t.Helper()
	wire, from := q.wire(t), netip.MustParseAddr(q.from)
	c.learn(wire, from)
	quick := c.quick(wire, from)
	if quick == nil {
		return false
	}
	limit := max(miekg.MinMsgSize, int(q.size))
	if len(quick) > limit {
		t.Errorf("%s: %d bytes", q, len(quick))
	}
	got, gotText := plain(t, quick)
	want, wantText := plain(t, inFull(t, c.s, wire, q.from))
	if gotText == wantText {
		return true
	}
	limit, c.s.zones.aLimit = c.s.zones.aLimit, 0
	full, _ := plain(t, c.s.answerWire(t.Context(), wire, from)) // over TCP, hence all of it
	c.s.zones.aLimit = limit
	cut := len(want.Answer) < len(full.Answer) || len(want.Extra) < len(full.Extra)
	if !cut || len(got.Answer) != len(want.Answer) || len(got.Extra) != len(want.Extra) || got.MsgHdr != want.MsgHdr {
		t.Errorf("%s\nkept: %s\nin full: %s", q, gotText, wantText)
		return true
	}
	known := map[string]bool{}
	for _, rr := range slices.Concat(full.Answer, full.Extra) {
		known[strings.ToLower(rr.String())] = true
	}
	for _, rr := range slices.Concat(got.Answer, got.Extra) {
		if text := strings.ToLower(rr.String()); !known[text] && rr.Header().Rrtype != miekg.TypeOPT {
			t.Errorf("%s: %s is in no answer", q, text)
		}
		known[strings.ToLower(rr.String())] = false // each once
	}
	return true
}

const keptFacts = surfaceFacts + `
node n3 10.1.0.3 lan_ipv6=fd01::3
node n4 host.example.com
network net-b pool=10.20.0.0/24
endpoint net-b api-1 node=n1 addr=10.20.0.2
endpoint net-b api-2 node=n2 addr=10.20.0.3
endpoint net-b asker node=n1 addr=10.20.0.9
instance n1 api-1 api port=80 place=net-b/10.20.0.2/80 place=/127.0.0.1/8080
instance n2 api-2 api port=80 addr=10.20.0.3
instance n3 six-1 six port=53 addr=fd00::5 tagged=lan_ipv4:10.1.0.5/54
instance n3 six-2 six port=53 addr=fd00::6
instance n3 at-1 atnode port=1
instance n3 at-2 atnode port=2
instance n1 at-3 atnode port=3
instance n4 al-1 alias port=1
instance n4 al-2 alias port=2
instance n3 al-3 alias port=2 addr=10.1.0.77
instance n1 tw-1 twice port=1 addr=10.1.0.8
instance n1 tw-2 twice port=2 addr=10.1.0.8
instance n1 tw-3 twice port=3 addr=10.1.0.9
instance n2 px-2 web-proxy port=21001 addr=127.0.0.13 proxy=web tags=v1
instance n1 we-1 heavy port=1 addr=10.1.0.11 weights=10/1
instance n1 we-2 heavy port=1 addr=10.1.0.12 weights=1/1
instance n1 we-3 heavy port=1 addr=10.1.0.13 weights=0/0
instance n1 We-4 Loud port=1 addr=10.1.0.14
check n1 wc warning of=we-1
`

// manyOf are a service's instances, for answers that do not fit.
func manyOf(service string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "instance n1 %s-%d %s port=%d addr=10.99.%d.%d\n", service, i, service, 1000+i, i/250, i%250+1)
	}
	return b.String()
}

// cases are the questions to ask in each state.
func cases() []aCase {
	var all []aCase
	for _, name := range []string{
		"web.service.consul.", "v1.web.service.consul.", "v9.web.service.consul.", "_web._tcp.service.consul.", "_web._v2.service.consul.",
		"web.service.dc1.consul.", "web.service.dc2.consul.", "web.service.dc1.dc.consul.", "web.service.internal.", "web.virtual.consul.",
		"sick.service.consul.", "mail.service.consul.", "nosuch.service.consul.", "api.service.consul.", "six.service.consul.", "atnode.service.consul.",
		"alias.service.consul.", "twice.service.consul.", "heavy.service.consul.", "loud.service.consul.", "few.service.consul.", "many.service.consul.",
		"n1.node.consul.", "n3.node.dc1.consul.", "n4.node.consul.", "n9.node.consul.", "7f00000b.addr.dc1.consul.", "zz.addr.consul.",
		"service.consul.", "x.y.z.service.consul.", "nosuch.consul.", "find-web.query.consul.", "web.connect.consul.", "heavy.connect.consul.", "nosuch.connect.consul.", "11.0.0.127.in-addr.arpa.", "db.",
	} {
		for _, qtype := range []uint16{miekg.TypeA, miekg.TypeAAAA, miekg.TypeSRV, miekg.TypeTXT, miekg.TypeANY, miekg.TypeSOA} {
			for _, size := range []uint16{0, 512, 1232, 4096, 65000} {
				from := []string{"127.0.0.1", "10.20.0.9", "10.7.7.7"}[len(all)%3]
				all = append(all, aCase{mixed(name), qtype, size, size == 1232, from})
			}
		}
	}
	return all
}

// TestKeptAnswersAreTheAnswers asks the same thousands of questions for kept
// answers and in full, over a catalogue that changes.
func TestKeptAnswersAreTheAnswers(t *testing.T) {
	for name, cfg := range map[string]Config{
		"plain":  {},
		"limits": {ARecordLimit: 2, UDPAnswerLimit: 3, OnlyPassing: true, NodeTTL: 60e9, NegativeTTL: 5e9, Recursors: []string{"127.0.0.1:1"}},
		"rights": {Authorizer: func() acl.Authorizer {
			return acl.New("x", false, rulesOf(t, `service_prefix "" { policy = "read" } service "web" { policy = "deny" } node_prefix "" { policy = "read" } node "n2" { policy = "deny" }`))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			st, err := catalog(keptFacts + manyOf("few", 12) + manyOf("many", 150))
			if err != nil {
				t.Fatal(err)
			}
			cfg.Addr, cfg.Node, cfg.RecursorTimeout = "127.0.0.1:0", "n1", 1e6
			if may := cfg.Authorizer; may != nil {
				same := may()
				cfg.Authorizer = func() acl.Authorizer { return same }
			}
			c := newCounter(New(cfg, st))
			rev, hits, asked := st.Snapshot().Index(), 0, 0
			for _, change := range []string{
				"", "- instance n1 web-1", "instance n1 web-1 web port=9 addr=127.0.0.99 tags=v1", "check n1 wc critical of=we-1", "node n3 10.1.0.33",
				"vip web 240.0.0.9 fdff::9", "- endpoint net-b api-2 node=n2", "instance n1 px sidecar port=21000 addr=127.0.0.12 proxy=web", "check n2 pxc critical of=px-2", "- instance n1 px", "instance n9 new-1 nosuch port=1 addr=10.1.0.100", "node n9 10.1.0.101",
				"endpoint net-b late node=n1 addr=10.1.0.8", "network dc2 pool=10.30.0.0/24",
			} {
				if change != "" {
					fact, err := parseFact(change)
					if err != nil {
						t.Fatal(err)
					}
					rev++
					st.Apply(rev, []state.Change{fact})
				}
				for _, q := range cases() {
					asked++
					if c.compare(t, q) {
						hits++
					}
				}
				if t.Failed() {
					t.Fatalf("after %q", change)
				}
			}
			if hits < asked/2 {
				t.Errorf("only %d kept answers to %d questions", hits, asked)
			}
		})
	}
}

func rulesOf(t *testing.T, text string) acl.Rules {
	t.Helper()
	rules, err := acl.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

// Answers are cut where the full ones are, at any size.
func TestKeptAnswersAreCutAlike(t *testing.T) {
	st, err := catalog("node n1 127.0.0.1\nnode n2 127.0.0.2\n" + manyOf("few", 12) + "instance n1 a-1 at port=1\ninstance n1 a-2 at port=2\ninstance n2 a-3 at port=3\n")
	if err != nil {
		t.Fatal(err)
	}
	for _, cfg := range []Config{{}, {UDPAnswerLimit: 5}} {
		cfg.Node = "n1"
		c := newCounter(New(cfg, st))
		for _, name := range []string{"few.service.consul.", "at.service.consul.", strings.Repeat("x.", 90) + "few.service.consul.", strings.Repeat("no", 20) + ".service.consul."} {
			for _, qtype := range []uint16{miekg.TypeA, miekg.TypeSRV} {
				for size := uint16(512); size < 1400; size++ {
					c.compare(t, aCase{name, qtype, size, false, "127.0.0.1"})
				}
				c.compare(t, aCase{name, qtype, 0, false, "127.0.0.1"})
			}
		}
	}
}

// Whatever a kept answer was made of, it goes when that changes, and comes back
// at the next question.
func TestKeptAnswersFollowTheCatalogue(t *testing.T) {
	st, err := catalog(keptFacts)
	if err != nil {
		t.Fatal(err)
	}
	may := acl.AllowAll()
	stale := false
	c := newCounter(New(Config{Node: "n1", Authorizer: func() acl.Authorizer { return may }, StaleFor: func() time.Duration {
		if stale {
			return 1
		}
		return 0
	}}, st))
	here := netip.IPv6Loopback()
	wire := aCase{name: "web.service.consul.", qtype: miekg.TypeA}.wire(t)
	if c.quick(wire, here) != nil {
		t.Error("kept before it was asked")
	}
	c.learn(wire, here)
	check := func(what string, want bool) {
		t.Helper()
		if got := c.quick(wire, here) != nil; got != want {
			t.Errorf("%s: kept %v", what, got)
		}
	}
	check("asked twice", true)
	rev := st.Snapshot().Index()
	apply := func(facts ...string) {
		var all []state.Change
		for _, f := range facts {
			change, err := parseFact(f)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, change)
		}
		rev++
		st.Apply(rev, all)
	}
	apply("instance n1 other other port=1")
	check("another service changed", true)
	rev++
	st.Apply(rev, []state.Change{{KV: &model.KV{Key: "x"}}})
	check("an entry was written", true)
	apply("check n1 w critical of=web-1")
	check("a check failed", false)
	c.learn(wire, here)
	check("made anew", true)
	apply("node n2 127.0.0.3")
	check("a node moved", false)
	c.learn(wire, here)
	may = acl.DenyAll()
	check("with another token", false)
	may = acl.AllowAll()
	check("with the old token", true)
	stale = true
	check("without contact to a server", false)
	stale = false
	apply("endpoint net-a late node=n1 addr=127.0.0.3")
	check("a network took an address over", false)
	if c.quick(wire, netip.MustParseAddr("198.51.100.7")) != nil {
		t.Error("kept for a stranger")
	}
}

// Instances are in every place about equally often, or as their weights say.
func TestKeptAnswersSpreadLoad(t *testing.T) {
	st, err := catalog("node n1 127.0.0.1\n" + manyOf("even", 4) + `
instance n1 a odd port=1 addr=10.1.0.1 weights=6/1
instance n1 b odd port=1 addr=10.1.0.2 weights=3/1
instance n1 c odd port=1 addr=10.1.0.3 weights=1/1
instance n1 d odd port=1 addr=10.1.0.4 weights=0/1
`)
	if err != nil {
		t.Fatal(err)
	}
	c := newCounter(New(Config{Node: "n1"}, st))
	const rounds = 20000
	for _, tt := range []struct {
		name  string
		first map[string]float64 // shares
	}{
		{"even.service.consul.", map[string]float64{"10.99.0.1": .25, "10.99.0.2": .25, "10.99.0.3": .25, "10.99.0.4": .25}},
		{"odd.service.consul.", map[string]float64{"10.1.0.1": .6, "10.1.0.2": .3, "10.1.0.3": .1}},
	} {
		first, last := map[string]int{}, map[string]int{}
		for range rounds {
			wire := aCase{name: tt.name, qtype: miekg.TypeA}.wire(t)
			c.learn(wire, netip.IPv6Loopback())
			m, _ := plain(t, c.quick(wire, netip.IPv6Loopback()))
			first[m.Answer[0].(*miekg.A).A.String()]++
			last[m.Answer[3].(*miekg.A).A.String()]++
		}
		for ip, n := range first {
			// Six standard deviations at most.
			p := tt.first[ip]
			if math.Abs(float64(n)-p*rounds) > 6*math.Sqrt(rounds*p*(1-p)) {
				t.Errorf("%s: %s was first %d times of %d, want a share of %v", tt.name, ip, n, rounds, p)
			}
		}
		if len(first) != len(tt.first) {
			t.Errorf("%s: first were %v", tt.name, first)
		}
		if n := last["10.1.0.4"]; tt.name[0] == 'o' && n != rounds {
			t.Errorf("no weight, but last only %d times", n)
		}
	}
}
