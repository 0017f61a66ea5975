package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	miekg "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairlead-net/fairlead/internal/state"
)

const hostFacts = `
node n1 127.0.0.1
instance n1 web-1 web port=8080 addr=127.0.0.11 tags=a
instance n1 web-2 web port=8081 addr=127.0.0.12
instance n1 mail-1 mail port=25 addr=mx.example.com
instance n1 sick-1 sick port=1
check n1 c critical of=sick-1
`

type fixed struct{ snap *state.Snapshot }

func (f fixed) Snapshot() *state.Snapshot { return f.snap }

// running is a server on a free port of 127.0.0.1, with resolvers to forward to.
type running struct {
	*Server
	at   string
	stop func() error // ends it, once, and returns what Run did
}

func start(t *testing.T, cfg Config) *running {
	t.Helper()
	return startWith(t, cfg, 200*time.Millisecond)
}

// startWith waits for other resolvers only so long.
func startWith(t *testing.T, cfg Config, timeout time.Duration) *running {
	t.Helper()
	cfg.RecursorTimeout = timeout
	return startOn(t, hostFacts, cfg)
}

// startOn runs a server on a catalogue of its own.
func startOn(t *testing.T, facts string, cfg Config) *running {
	t.Helper()
	st, err := catalog(facts)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Addr == "" {
		cfg.Addr = "127.0.0.1:0"
	}
	cfg.Node = "n1"
	s := New(cfg, fixed{st.Snapshot()})
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- s.Run(ctx, sync.OnceFunc(func() { close(ready) })) }()
	stop := sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	select {
	case <-ready:
	case err := <-ended:
		ended <- nil
		t.Fatalf("Run: %v", err)
	}
	return &running{Server: s, at: s.Addr().String(), stop: stop}
}

// query asks a server with the client of package miekg.
func query(t *testing.T, network, at, name string, qtype uint16) *miekg.Msg {
	t.Helper()
	req := new(miekg.Msg)
	req.SetQuestion(name, qtype)
	req.SetEdns0(4096, false)
	c := &miekg.Client{Net: network, Timeout: 5 * time.Second}
	m, _, err := c.Exchange(req, at)
	if err != nil {
		t.Fatalf("%s %s at %s/%s: %v", name, miekg.TypeToString[qtype], at, network, err)
	}
	return m
}

func because(m *miekg.Msg) string {
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if e, ok := o.(*miekg.EDNS0_EDE); ok {
				return e.ExtraText
			}
		}
	}
	return ""
}

func TestRun(t *testing.T) {
	s := start(t, Config{})
	for _, network := range []string{"udp", "tcp"} {
		if m := query(t, network, s.at, "web.service.consul.", miekg.TypeA); len(m.Answer) != 2 {
			t.Errorf("over %s: %v", network, m)
		}
	}
	if m := query(t, "udp", s.at, "nosuch.service.consul.", miekg.TypeA); m.Rcode != miekg.RcodeNameError {
		t.Errorf("unknown name: %v", m)
	}
	if err := s.stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if s.Addr().IsValid() {
		t.Errorf("Addr after the end: %s", s.Addr())
	}
	// The port is free again.
	l, err := net.Listen("tcp", s.at)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

func TestManyQueriesOfOneConnection(t *testing.T) {
	s := start(t, Config{})
	conn, err := miekg.Dial("tcp", s.at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range 10 {
		req := new(miekg.Msg)
		req.SetQuestion("web.service.consul.", miekg.TypeSRV)
		if err := conn.WriteMsg(req); err != nil {
			t.Fatal(err)
		}
		if m, err := conn.ReadMsg(); err != nil || len(m.Answer) != 2 || m.Id != req.Id {
			t.Fatalf("%v, %v", m, err)
		}
	}
	// An idle connection does not hold up the end.
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
}

func TestListenAndUnlisten(t *testing.T) {
	s := start(t, Config{})
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), s.Addr().Port())
	for range 2 { // twice is once
		if err := s.Listen(t.Context(), at); err != nil {
			t.Fatal(err)
		}
	}
	// The client's socket is connected: only a reply from that very address
	// arrives.
	for _, network := range []string{"udp", "tcp"} {
		if m := query(t, network, at.String(), "web.service.consul.", miekg.TypeA); len(m.Answer) != 2 {
			t.Errorf("over %s: %v", network, m)
		}
	}
	s.Unlisten(at)
	s.Unlisten(at)
	if _, err := net.Dial("tcp", at.String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after Unlisten: %v", err)
	}
	if m := query(t, "udp", s.at, "web.service.consul.", miekg.TypeA); len(m.Answer) != 2 {
		t.Errorf("the main address after Unlisten: %v", m)
	}
	if err := s.Listen(t.Context(), at); err != nil { // and again; closed by the end
		t.Fatal(err)
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(t.Context(), at); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Listen after the end: %v", err)
	}
	if err := New(Config{Addr: s.at}, nil).Listen(t.Context(), at); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Listen before Run: %v", err)
	}
}

func TestListenUnderAWildcard(t *testing.T) {
	for wide, want := range map[string]bool{"0.0.0.0:53": true, "[::]:53": true, "127.0.0.1:53": false, "0.0.0.0:54": false} {
		if got := covers(netip.MustParseAddrPort(wide), netip.MustParseAddrPort("10.0.0.1:53")); got != want {
			t.Errorf("%s covers 10.0.0.1:53: %v", wide, got)
		}
	}
	if covers(netip.MustParseAddrPort("0.0.0.0:53"), netip.MustParseAddrPort("[fd00::1]:53")) {
		t.Error("0.0.0.0 covers fd00::1")
	}
}

func TestAddressInUse(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	s := start(t, Config{})
	for _, at := range []string{tcp.Addr().String(), udp.LocalAddr().String()} {
		other := New(Config{Addr: at, Node: "n1"}, nil)
		err := other.Run(t.Context(), func() { t.Error("ready without a socket") })
		wantInUse(t, err, at, "--dns-addr")
		wantInUse(t, s.Listen(t.Context(), netip.MustParseAddrPort(at)), at, "")
	}
}

func wantInUse(t *testing.T, err error, parts ...string) {
	t.Helper()
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("error %v, want EADDRINUSE", err)
	}
	for _, p := range append(parts, "ss -lnptu") {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q does not say %q", err, p)
		}
	}
}

func TestBindErrors(t *testing.T) {
	for err, want := range map[error]string{
		syscall.EADDRNOTAVAIL: "no interface of this host",
		syscall.EACCES:        "port 53 needs root or the capability CAP_NET_BIND_SERVICE",
		syscall.EADDRINUSE:    "another program has port 53",
		syscall.ENOBUFS:       "no buffer space",
	} {
		got := bindError("10.210.0.1:53", err)
		if !errors.Is(got, err) || !strings.Contains(got.Error(), want) || !strings.Contains(got.Error(), "10.210.0.1:53") {
			t.Errorf("%v: %v", err, got)
		}
	}
	err := New(Config{Addr: "no port", Node: "n1"}, nil).Run(t.Context(), func() {})
	if err == nil || !strings.Contains(err.Error(), "no port") {
		t.Error(err)
	}
}

// Packets that are no proper query get the right refusal, or none, and hurt
// nobody.
func TestBadPackets(t *testing.T) {
	s := start(t, Config{})
	pack := func(edit func(*miekg.Msg)) []byte {
		m := new(miekg.Msg)
		m.SetQuestion("web.service.consul.", miekg.TypeA)
		m.Id = 77
		edit(m)
		wire, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return wire
	}
	whole := pack(func(*miekg.Msg) {})
	tests := []struct {
		name string
		wire []byte
		want int // -1: silence
	}{
		{"two questions", pack(func(m *miekg.Msg) { m.Question = append(m.Question, m.Question[0]) }), miekg.RcodeFormatError},
		{"no question", pack(func(m *miekg.Msg) { m.Question = nil }), miekg.RcodeFormatError},
		{"an answer in the query", pack(func(m *miekg.Msg) { m.Answer = []miekg.RR{addrRecord("a.", 0, netip.IPv6Loopback())} }), miekg.RcodeFormatError},
		{"two OPT records", pack(func(m *miekg.Msg) { m.SetEdns0(512, false); m.SetEdns0(512, false) }), miekg.RcodeFormatError},
		{"NOTIFY", pack(func(m *miekg.Msg) { m.Opcode = miekg.OpcodeNotify }), miekg.RcodeNotImplemented},
		{"opcode 15", pack(func(m *miekg.Msg) { m.Opcode = 15 }), miekg.RcodeNotImplemented},
		{"class CHAOS", pack(func(m *miekg.Msg) { m.Question[0].Qclass = miekg.ClassCHAOS }), miekg.RcodeRefused},
		{"cut in the question", whole[:20], miekg.RcodeFormatError},
		{"a reply", pack(func(m *miekg.Msg) { m.Response = true }), -1},
		{"cut in the header", whole[:7], -1},
		{"nothing", nil, -1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conn, err := net.Dial("udp", s.at)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
				t.Fatal(err)
			}
			// Queries of one socket are answered in any order, so the good one
			// that proves silence is told apart by its id.
			for _, wire := range [][]byte{tt.wire, pack(func(m *miekg.Msg) { m.Id = 78 })} {
				if _, err := conn.Write(wire); err != nil {
					t.Fatal(err)
				}
			}
			got, buf := -1, make([]byte, 512)
			for seen := 0; seen < 2 && !(seen == 1 && tt.want == -1); seen++ {
				n, err := conn.Read(buf)
				if err != nil {
					t.Fatal(err)
				}
				m := new(miekg.Msg)
				if err := m.Unpack(buf[:n]); err != nil {
					t.Fatal(err)
				}
				if m.Id == 77 {
					got = m.Rcode
				}
			}
			if got != tt.want {
				t.Errorf("rcode %d, want %d", got, tt.want)
			}
		})
	}
}

func TestMetrics(t *testing.T) {
	s := start(t, Config{})
	reg := prometheus.NewRegistry()
	if err := s.Register(reg); err != nil {
		t.Fatal(err)
	}
	query(t, "udp", s.at, "web.service.consul.", miekg.TypeA)
	query(t, "udp", s.at, "sick.service.consul.", miekg.TypeA)
	query(t, "tcp", s.at, "example.com.", miekg.TypeA)
	for rcode, want := range map[string]float64{"NOERROR": 1, "NXDOMAIN": 1, "REFUSED": 1} {
		if got := count(t, reg, "fairlead_dns_queries_total", rcode); got != want {
			t.Errorf("%s: %v queries, want %v", rcode, got, want)
		}
	}
	if err := s.Register(reg); err == nil {
		t.Error("registered twice")
	}
}

// count is the value of a counter whose one label has a value.
func count(t *testing.T, g prometheus.Gatherer, name, label string) float64 {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

// TestDig asks as a person would.
func TestDig(t *testing.T) {
	s := start(t, Config{})
	host, port, err := net.SplitHostPort(s.at)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		args string
		want []string
	}{
		{"web.service.consul A +short", []string{"127.0.0.11", "127.0.0.12"}},
		{"web.service.internal A +short +tcp", []string{"127.0.0.11", "127.0.0.12"}},
		{"web.service.consul SRV +short", []string{"1 1 8080 7f00000b.addr.dc1.consul."}},
		{"web.service.consul SRV", []string{"ADDITIONAL SECTION", "7f00000c.addr.dc1.consul. 0\tIN\tA\t127.0.0.12"}},
		{"web.service.consul AAAA", []string{"status: NOERROR", "ANSWER: 0, AUTHORITY: 1", "SOA"}},
		{"sick.service.consul A", []string{"status: NXDOMAIN", "no instance of sick is healthy"}},
		{"consul SOA +short", []string{"ns.consul. hostmaster.consul. 7 3600 600 86400 0"}},
		{"example.com A", []string{"status: REFUSED", "EDE: 20 (Not Authoritative)"}},
		{"web.service.consul A +edns=1 +noednsneg", []string{"status: BADVERS"}},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			args := append([]string{"@" + host, "-p", port, "+time=5", "+tries=1"}, strings.Fields(tt.args)...)
			cmd := exec.CommandContext(t.Context(), "dig", args...)
			cmd.Env = append(os.Environ(), "HOME="+t.TempDir()) // no .digrc
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("dig %s: %v\n%s", tt.args, err, out)
			}
			for _, w := range tt.want {
				if !strings.Contains(string(out), w) {
					t.Errorf("dig %s does not show %q:\n%s", tt.args, w, out)
				}
			}
		})
	}
}

// A listener takes only so many connections, and more when some have gone.
func TestConnectionLimit(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &limited{Listener: inner, max: 1}
	accepted := make(chan net.Conn, 2)
	go func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	dial()
	first := <-accepted
	if _, err := dial().Read(make([]byte, 1)); err == nil {
		t.Error("a second connection was kept")
	}
	first.Close()
	first.Close() // counts once
	dial()
	(<-accepted).Close()
	l.Close()
	if c, ok := <-accepted; ok {
		t.Errorf("one connection too many: %v", c)
	}
}
