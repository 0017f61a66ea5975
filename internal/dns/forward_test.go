package dns

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	miekg "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// resolver is somebody else's server, at a free port of 127.0.0.1 for UDP and
// TCP. handle may leave a query without a reply.
type resolver struct {
	at    string
	asked atomic.Int32
}

func startResolver(t *testing.T, handle func(w miekg.ResponseWriter, req *miekg.Msg)) *resolver {
	t.Helper()
	pc, ln, err := bind(t.Context(), "127.0.0.1:0", false)
	if err != nil {
		t.Fatal(err)
	}
	r := &resolver{at: pc.LocalAddr().String()}
	h := miekg.HandlerFunc(func(w miekg.ResponseWriter, req *miekg.Msg) { r.asked.Add(1); handle(w, req) })
	for _, srv := range []*miekg.Server{{PacketConn: pc, Handler: h}, {Listener: ln, Handler: h}} {
		started, ended := make(chan struct{}), make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		go func() { defer close(ended); _ = srv.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { _ = srv.Shutdown(); <-ended })
	}
	return r
}

// says replies to everything with an A record for the name asked.
func says(ip string) func(miekg.ResponseWriter, *miekg.Msg) {
	return func(w miekg.ResponseWriter, req *miekg.Msg) {
		m := new(miekg.Msg)
		m.SetReply(req)
		m.RecursionAvailable = true
		m.Answer = []miekg.RR{addrRecord(req.Question[0].Name, 60, netip.MustParseAddr(ip))}
		_ = w.WriteMsg(m)
	}
}

func fails(rcode int) func(miekg.ResponseWriter, *miekg.Msg) {
	return func(w miekg.ResponseWriter, req *miekg.Msg) {
		m := new(miekg.Msg)
		m.SetRcode(req, rcode)
		_ = w.WriteMsg(m)
	}
}

func silent(miekg.ResponseWriter, *miekg.Msg) {}

func addrsOf(m *miekg.Msg) []string {
	var all []string
	for _, rr := range m.Answer {
		if a, ok := rr.(*miekg.A); ok {
			all = append(all, a.A.String())
		}
	}
	return all
}

func wantAddr(t *testing.T, m *miekg.Msg, want string) {
	t.Helper()
	if got := addrsOf(m); !slices.Equal(got, []string{want}) {
		t.Errorf("got %v, want %s:\n%v", got, want, m)
	}
}

func TestForward(t *testing.T) {
	r := startResolver(t, says("192.0.2.7"))
	s := start(t, Config{Recursors: []string{r.at}})
	m := query(t, "udp", s.at, "Example.COM.", miekg.TypeA)
	wantAddr(t, m, "192.0.2.7")
	if m.Question[0].Name != "Example.COM." || !m.RecursionAvailable || m.Authoritative {
		t.Errorf("the reply is not as asked for:\n%v", m)
	}
	if m := query(t, "udp", s.at, "web.service.consul.", miekg.TypeA); !m.RecursionAvailable || !m.Authoritative {
		t.Errorf("flags of our own: %v", m.MsgHdr)
	}
	if got := r.asked.Load(); got != 1 {
		t.Errorf("the resolver was asked %d times", got)
	}
	// What is ours, or a bare name, is never leaked.
	for _, name := range []string{"nosuch.service.consul.", "printer.", "x.internal."} {
		if m := query(t, "udp", s.at, name, miekg.TypeA); m.Rcode != miekg.RcodeNameError {
			t.Errorf("%s: %v", name, m)
		}
	}
	if got := r.asked.Load(); got != 1 {
		t.Errorf("the resolver was asked %d times", got)
	}
	reg := prometheus.NewRegistry()
	if err := s.Register(reg); err != nil {
		t.Fatal(err)
	}
	if got := count(t, reg, "fairlead_dns_forwarded_total", "answered"); got != 1 {
		t.Errorf("%v forwarded", got)
	}
}

// One resolver that fails, one that is not there, one that says nothing: the one
// that knows is found, and later asked first.
func TestForwardTriesAll(t *testing.T) {
	mute := startResolver(t, silent)
	broken := startResolver(t, fails(miekg.RcodeServerFailure))
	good := startResolver(t, says("192.0.2.7"))
	s := start(t, Config{Recursors: []string{deadAddr(t), mute.at, broken.at, good.at}})
	wantAddr(t, query(t, "udp", s.at, "example.com.", miekg.TypeA), "192.0.2.7")
	muted := mute.asked.Load()
	if muted != 2 { // a datagram may get lost, so it is sent again
		t.Errorf("the silent one was asked %d times, want 2", muted)
	}
	wantAddr(t, query(t, "tcp", s.at, "www.example.com.", miekg.TypeA), "192.0.2.7")
	if got := mute.asked.Load(); got != muted {
		t.Error("who just said nothing was asked again")
	}
}

func TestForwardDenialIsAnAnswer(t *testing.T) {
	first, second := startResolver(t, fails(miekg.RcodeNameError)), startResolver(t, says("192.0.2.7"))
	s := start(t, Config{Recursors: []string{first.at, second.at}})
	if m := query(t, "udp", s.at, "example.com.", miekg.TypeA); m.Rcode != miekg.RcodeNameError {
		t.Error(m)
	}
}

func TestForwardFailure(t *testing.T) {
	dead := deadAddr(t)
	mute := startResolver(t, silent)
	s := start(t, Config{Recursors: []string{dead, mute.at}})
	m := query(t, "udp", s.at, "example.com.", miekg.TypeA)
	if m.Rcode != miekg.RcodeServerFailure {
		t.Errorf("all resolvers dead: %v", m)
	}
	for _, at := range []string{dead, mute.at} {
		if !strings.Contains(because(m), at) {
			t.Errorf("%q does not name %s", because(m), at)
		}
	}
	refusing := startResolver(t, fails(miekg.RcodeRefused))
	s = start(t, Config{Recursors: []string{dead, refusing.at}})
	if m := query(t, "udp", s.at, "example.com.", miekg.TypeA); m.Rcode != miekg.RcodeRefused {
		t.Errorf("the only reply there was: %v", m)
	}
}

func TestForwardNowhere(t *testing.T) {
	s := start(t, Config{})
	m := query(t, "udp", s.at, "example.com.", miekg.TypeA)
	if m.Rcode != miekg.RcodeRefused || m.RecursionAvailable || !strings.Contains(because(m), "no resolver") {
		t.Error(m)
	}
	s = start(t, Config{ResolvConf: filepath.Join(t.TempDir(), "none")})
	m = query(t, "udp", s.at, "example.com.", miekg.TypeA)
	if m.Rcode != miekg.RcodeServerFailure || !strings.Contains(because(m), "no such file") {
		t.Error(m)
	}
}

// A reply that was cut is fetched whole over TCP.
func TestForwardTruncated(t *testing.T) {
	r := startResolver(t, func(w miekg.ResponseWriter, req *miekg.Msg) {
		if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
			m := new(miekg.Msg)
			m.SetReply(req)
			m.Truncated = true
			_ = w.WriteMsg(m)
			return
		}
		says("192.0.2.7")(w, req)
	})
	s := start(t, Config{Recursors: []string{r.at}})
	m := query(t, "udp", s.at, "example.com.", miekg.TypeA)
	wantAddr(t, m, "192.0.2.7")
	if m.Truncated {
		t.Error("the whole answer says it is cut")
	}
}

// An answer larger than the asker takes is cut, whatever the resolver sent.
func TestForwardFitsTheAsker(t *testing.T) {
	r := startResolver(t, func(w miekg.ResponseWriter, req *miekg.Msg) {
		m := new(miekg.Msg)
		m.SetReply(req)
		m.Compress = true
		for i := range 60 {
			m.Answer = append(m.Answer, addrRecord(req.Question[0].Name, 60, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})))
		}
		_ = w.WriteMsg(m)
	})
	s := start(t, Config{Recursors: []string{r.at}})
	req := new(miekg.Msg)
	req.SetQuestion("example.com.", miekg.TypeA)
	m, _, err := new(miekg.Client).Exchange(req, s.at)
	if err != nil || !m.Truncated || len(m.Answer) == 0 || len(m.Answer) == 60 {
		t.Errorf("%v, %v", m, err)
	}
	if m.IsEdns0() != nil {
		t.Error("OPT for an asker without")
	}
}

// Somebody who guesses sends replies with a wrong id or to another question:
// they are passed over for the real one.
func TestForwardSpoofed(t *testing.T) {
	r := startResolver(t, func(w miekg.ResponseWriter, req *miekg.Msg) {
		_, _ = w.Write([]byte("no DNS at all"))
		bad := req.Copy()
		bad.Id++
		says("203.0.113.1")(w, bad)
		bad = req.Copy()
		bad.Question[0].Name = "evil.example."
		says("203.0.113.2")(w, bad)
		says("192.0.2.7")(w, req)
	})
	s := start(t, Config{Recursors: []string{r.at}})
	wantAddr(t, query(t, "udp", s.at, "example.com.", miekg.TypeA), "192.0.2.7")
}

func TestNeverForwardToOurselves(t *testing.T) {
	at := deadAddr(t)
	s := start(t, Config{Addr: at, Recursors: []string{at}})
	m := query(t, "udp", at, "example.com.", miekg.TypeA)
	if m.Rcode != miekg.RcodeServerFailure || !strings.Contains(because(m), errNoForwarder.Error()) {
		t.Error(m)
	}
	for _, tt := range []struct {
		listening, forwarder string
		ours                 bool
	}{
		{"127.0.0.1:53", "127.0.0.1:53", true},
		{"127.0.0.1:53", "127.0.0.53:53", false},
		{"127.0.0.1:8600", "127.0.0.1:53", false},
		{"0.0.0.0:53", "127.0.0.53:53", true},
		{"[::]:53", "[::1]:53", true},
		{"0.0.0.0:53", "192.0.2.1:53", false},
		{"[fd00::1]:53", "[fd00::1]:53", true},
	} {
		s.Server.at.Store(&[]netip.AddrPort{netip.MustParseAddrPort(tt.listening)})
		if got := s.answersAt(netip.MustParseAddrPort(tt.forwarder)); got != tt.ours {
			t.Errorf("listening at %s, %s is ours: %v", tt.listening, tt.forwarder, got)
		}
	}
}

// resolv.conf is read again when it changes.
func TestResolvConfChanges(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	f, err := newForwarder(Config{ResolvConf: path}, func(netip.AddrPort) bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	for i, tt := range []struct{ text, want string }{
		{"nameserver 192.0.2.1\n", "192.0.2.1:53"},
		{"# comment\nsearch example.com\nnameserver 192.0.2.2\nnameserver 2001:db8::1\nnameserver nonsense\nnameserver\noptions rotate\n", "192.0.2.2:53 [2001:db8::1]:53"},
		{"nameserver fe80::1%lo", "[fe80::1%lo]:53"},
		{"", ""},
	} {
		if err := os.WriteFile(path, []byte(tt.text), 0o644); err != nil {
			t.Fatal(err)
		}
		// Files written within one tick of the clock differ all the same.
		if err := os.Chtimes(path, time.Time{}, time.Unix(int64(1000+i), 0)); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			servers, err := f.order(time.Now())
			var got []string
			for _, s := range servers {
				got = append(got, s.String())
			}
			if strings.Join(got, " ") != tt.want || (err != nil) != (tt.want == "") {
				t.Errorf("%q: %v, %v, want %s", tt.text, got, err, tt.want)
			}
		}
	}
}

// Only so many queries wait for others; the rest fail at once.
func TestForwardBusy(t *testing.T) {
	s := start(t, Config{Recursors: []string{deadAddr(t)}})
	for range cap(s.forward.slots) {
		s.forward.slots <- struct{}{}
	}
	m := query(t, "udp", s.at, "example.com.", miekg.TypeA)
	if m.Rcode != miekg.RcodeServerFailure || because(m) != errBusy.Error() {
		t.Error(m)
	}
}

// The end of Run does not wait for resolvers.
func TestEndWhileForwarding(t *testing.T) {
	asked := make(chan struct{}, 8)
	r := startResolver(t, func(miekg.ResponseWriter, *miekg.Msg) { asked <- struct{}{} })
	s := startWith(t, Config{Recursors: []string{r.at}}, time.Hour)
	conn, err := miekg.Dial("udp", s.at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	req := new(miekg.Msg)
	req.SetQuestion("example.com.", miekg.TypeA)
	if err := conn.WriteMsg(req); err != nil {
		t.Fatal(err)
	}
	<-asked
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
}

// An instance that is somebody else's name is followed out of our zones.
func TestFollowAlias(t *testing.T) {
	r := startResolver(t, says("192.0.2.25"))
	s := start(t, Config{Recursors: []string{r.at}})
	m := query(t, "udp", s.at, "mail.service.consul.", miekg.TypeA)
	wantAddr(t, m, "192.0.2.25")
	if c, ok := m.Answer[0].(*miekg.CNAME); !ok || c.Target != "mx.example.com." || m.Answer[1].Header().Name != "mx.example.com." {
		t.Error(m)
	}
	// With nobody to ask the alias stands alone.
	s = start(t, Config{Recursors: []string{deadAddr(t)}})
	m = query(t, "udp", s.at, "mail.service.consul.", miekg.TypeA)
	if m.Rcode != miekg.RcodeSuccess || len(m.Answer) != 1 {
		t.Error(m)
	}
}

// deadAddr is an address where nobody listens.
func deadAddr(t *testing.T) string {
	t.Helper()
	pc, ln, err := bind(t.Context(), "127.0.0.1:0", false)
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	defer ln.Close()
	return pc.LocalAddr().String()
}
