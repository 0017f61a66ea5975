package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	miekg "github.com/miekg/dns"
)

// hostAddrsFor is how long the list of the host's own addresses is good.
const hostAddrsFor = 10 * time.Second

// Server answers DNS queries at its main address, and at further addresses while
// networks have gateways. Make one with New, then Run it.
type Server struct {
	cfg     Config
	cfgErr  error
	log     *slog.Logger
	reader  Reader
	zones   *zones
	forward *forwarder
	metrics *metrics

	host atomic.Pointer[hostAddrs]
	// at is where we listen, for those who must not wait for mu.
	at atomic.Pointer[[]netip.AddrPort]

	mu        sync.Mutex // guards following
	run       context.Context
	main      *listener
	listeners map[netip.AddrPort]*listener
}

// New returns a server that has not started; see Run. What is wrong with cfg is
// said by Run.
func New(cfg Config, r Reader) *Server {
	s := &Server{
		cfg:       cfg,
		log:       cfg.Log,
		reader:    r,
		metrics:   newMetrics(),
		listeners: map[netip.AddrPort]*listener{},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	var errs [2]error
	s.zones, errs[0] = newZones(cfg)
	s.forward, errs[1] = newForwarder(cfg, s.answersAt)
	s.cfgErr = errors.Join(errs[:]...)
	if s.zones != nil {
		s.zones.shuffle = rand.Shuffle
		s.zones.isHost = s.isHost
	}
	return s
}

// Run answers at the main address until ctx ends, and at those that Listen adds.
// It calls ready once it does. When it returns all sockets are closed and all
// goroutines gone; ctx's end is no error.
func (s *Server) Run(ctx context.Context, ready func()) error {
	if s.cfgErr != nil {
		return fmt.Errorf("DNS configuration: %w", s.cfgErr)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l, err := s.open(ctx, s.cfg.Addr, false)
	if err != nil {
		return fmt.Errorf("%w; choose another address with --dns-addr", err)
	}
	s.mu.Lock()
	s.run, s.main = ctx, l
	s.publish()
	s.mu.Unlock()
	ready()

	err = l.wait(ctx)
	cancel()
	s.mu.Lock()
	all := []*listener{l}
	for _, extra := range s.listeners {
		all = append(all, extra)
	}
	s.run, s.main = nil, nil
	clear(s.listeners)
	s.publish()
	s.mu.Unlock()
	for _, l := range all {
		l.stop()
	}
	return err
}

// Addr is the main address while Run runs, the zero AddrPort otherwise.
func (s *Server) Addr() netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.main == nil {
		return netip.AddrPort{}
	}
	return s.main.addr
}

// Listen answers at a further address, too, UDP and TCP, until Unlisten or the
// end of Run; ctx covers only the opening. The address may still be waiting for
// duplicate address detection. Listening twice is the same as once. The errors
// are ErrNotRunning and those of the sockets, such as syscall.EADDRINUSE.
func (s *Server) Listen(ctx context.Context, addr netip.AddrPort) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.run == nil {
		return fmt.Errorf("listen on %s: %w", addr, ErrNotRunning)
	}
	if s.listeners[addr] != nil || covers(s.main.addr, addr) {
		return nil
	}
	l, err := s.open(s.run, addr.String(), true)
	if err != nil {
		return err
	}
	s.listeners[addr] = l
	s.publish()
	l.owner.Go(func() { s.tend(addr, l) })
	return nil
}

// covers reports whether whoever listens at wide, an unspecified address, answers
// at addr, too.
func covers(wide, addr netip.AddrPort) bool {
	return wide.Port() == addr.Port() && (wide.Addr() == netip.IPv6Unspecified() || wide.Addr() == netip.IPv4Unspecified() && addr.Addr().Is4())
}

// tend forgets a listener that died by itself, so that Listen can open it again.
func (s *Server) tend(addr netip.AddrPort, l *listener) {
	err := l.wait(l.ctx)
	if err == nil {
		return
	}
	s.log.Error("stopped answering DNS", "address", addr, "error", err)
	s.mu.Lock()
	if s.listeners[addr] == l {
		delete(s.listeners, addr)
		s.publish()
	}
	s.mu.Unlock()
	l.close()
}

// Unlisten stops answering at an address that Listen was given, and returns when
// it has. An unknown address is no error.
func (s *Server) Unlisten(addr netip.AddrPort) {
	s.mu.Lock()
	l := s.listeners[addr]
	delete(s.listeners, addr)
	s.publish()
	s.mu.Unlock()
	if l != nil {
		l.stop()
	}
}

// publish makes known where we listen. The caller holds mu.
func (s *Server) publish() {
	var at []netip.AddrPort
	if s.main != nil {
		at = append(at, s.main.addr)
	}
	for _, l := range s.listeners {
		at = append(at, l.addr)
	}
	s.at.Store(&at)
}

// answersAt reports whether a query sent to an address would come back to us.
func (s *Server) answersAt(to netip.AddrPort) bool {
	at := s.at.Load()
	if at == nil {
		return false
	}
	for _, our := range *at {
		if our.Port() != to.Port() {
			continue
		}
		if our.Addr() == to.Addr().WithZone("") || our.Addr().IsUnspecified() && (s.isHost(to.Addr()) || to.Addr().IsUnspecified()) {
			return true
		}
	}
	return false
}

// hostAddrs are this host's own addresses as of a moment.
type hostAddrs struct {
	at  time.Time
	set map[netip.Addr]bool
}

// isHost reports whether an address is one of this host's.
func (s *Server) isHost(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if a.IsLoopback() {
		return true
	}
	known := s.host.Load()
	if known == nil || time.Since(known.at) > hostAddrsFor {
		known = &hostAddrs{at: time.Now(), set: map[netip.Addr]bool{}}
		list, err := net.InterfaceAddrs()
		if err != nil {
			s.log.Warn("cannot list this host's addresses", "error", err)
		}
		for _, addr := range list {
			if p, err := netip.ParsePrefix(addr.String()); err == nil {
				known.set[p.Addr().Unmap()] = true
			}
		}
		s.host.Store(known)
	}
	return known.set[a]
}

// serve answers one query. ctx ends with its listener.
func (s *Server) serve(ctx context.Context, w miekg.ResponseWriter, req *miekg.Msg) {
	_, udp := w.RemoteAddr().(*net.UDPAddr)
	m, why := s.reply(ctx, req, addrPort(w.RemoteAddr()).Addr())
	finish(m, req, why, udp)
	wire, err := m.Pack()
	if err != nil {
		s.log.Error("cannot encode a DNS reply", "question", questionText(req), "error", err)
		m = newReply(req)
		m.Rcode = miekg.RcodeServerFailure
		if wire, err = m.Pack(); err != nil {
			return
		}
	}
	s.metrics.replied(m)
	// Who asked and does not wait for the answer is no fault of ours.
	_, _ = w.Write(wire)
}

// reply answers from the snapshot, and asks other resolvers for what is not ours.
func (s *Server) reply(ctx context.Context, req *miekg.Msg, asker netip.Addr) (*miekg.Msg, ede) {
	m, why := s.zones.answer(s.reader.Snapshot(), req, asker)
	if m == nil {
		return s.relay(ctx, req)
	}
	m.RecursionAvailable = s.forward.configured()
	if alias := openAlias(m, req); alias != "" && req.RecursionDesired && s.forward.configured() {
		s.follow(ctx, m, req, alias)
	}
	return m, why
}

// openAlias is the name at the end of an answer that ends in an alias for
// something not ours, "" for other answers.
func openAlias(m, req *miekg.Msg) string {
	if len(m.Answer) == 0 || len(m.Ns) > 0 {
		return ""
	}
	c, ok := m.Answer[len(m.Answer)-1].(*miekg.CNAME)
	if !ok || req.Question[0].Qtype == miekg.TypeCNAME || req.Question[0].Qtype == miekg.TypeANY {
		return ""
	}
	return c.Target
}

// follow appends what an alias leads to. If nobody knows, the alias alone is the
// answer, as from any authoritative server.
func (s *Server) follow(ctx context.Context, m, req *miekg.Msg, alias string) {
	ask := req.Copy()
	ask.Question[0].Name = alias
	rest, err := s.forward.ask(ctx, ask)
	s.metrics.forward(err)
	if err != nil || !useful(rest.Rcode) {
		return
	}
	m.Answer = append(m.Answer, rest.Answer...)
	m.Ns = append(m.Ns, rest.Ns...)
	m.Rcode = rest.Rcode
}

// relay answers with what another resolver says.
func (s *Server) relay(ctx context.Context, req *miekg.Msg) (*miekg.Msg, ede) {
	m := newReply(req)
	if !s.forward.configured() {
		m.Rcode = miekg.RcodeRefused
		return m, ede{miekg.ExtendedErrorCodeNotAuthoritative, "only " + strings.Join(s.zones.domains, " and ") + " are served here, and no resolver to forward to is configured"}
	}
	got, err := s.forward.ask(ctx, req)
	s.metrics.forward(err)
	if err != nil {
		m.Rcode = miekg.RcodeServerFailure
		m.RecursionAvailable = true
		s.log.Debug("forwarding failed", "question", questionText(req), "error", err)
		return m, ede{miekg.ExtendedErrorCodeNoReachableAuthority, strings.ReplaceAll(err.Error(), "\n", "; ")}
	}
	return got, ede{}
}

func questionText(m *miekg.Msg) string {
	if len(m.Question) == 0 {
		return ""
	}
	return m.Question[0].Name + " " + miekg.TypeToString[m.Question[0].Qtype]
}
