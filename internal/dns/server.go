package dns

import (
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
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
	cookies cookies
	far     farAskers
	kept    *keeper
	classes askerClasses

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
		kept:      newKeeper(),
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
		s.zones.random = rand.Float64
		s.zones.isHost = s.isHost
		s.zones.may = cfg.Authorizer
	}
	var secret [16]byte
	_, _ = crand.Read(secret[:]) // it never fails
	s.cookies = newCookies(secret)
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

// hostAddrs are this host's own addresses as of a moment, and the networks that
// they are in.
type hostAddrs struct {
	at       time.Time
	set      map[netip.Addr]bool
	networks []netip.Prefix
}

// isHost reports whether an address is one of this host's.
func (s *Server) isHost(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return a.IsLoopback() || s.hostAddrs().set[a]
}

// besideHost reports whether an address is in a network that this host is in.
func (s *Server) besideHost(a netip.Addr) bool {
	return slices.ContainsFunc(s.hostAddrs().networks, func(p netip.Prefix) bool { return p.Contains(a) })
}

func (s *Server) hostAddrs() *hostAddrs {
	known := s.host.Load()
	if known != nil && time.Since(known.at) <= hostAddrsFor {
		return known
	}
	known = &hostAddrs{at: time.Now(), set: map[netip.Addr]bool{}}
	list, err := net.InterfaceAddrs()
	if err != nil {
		s.log.Warn("cannot list this host's addresses", "error", err)
	}
	for _, addr := range list {
		if p, err := netip.ParsePrefix(addr.String()); err == nil {
			known.set[p.Addr().Unmap()] = true
			known.networks = append(known.networks, p.Masked())
		}
	}
	s.host.Store(known)
	return known
}

// serve answers one query, nil for no answer. ctx ends with its listener.
func (s *Server) serve(ctx context.Context, req *miekg.Msg, from netip.Addr, udp bool) []byte {
	asker := from.Unmap().WithZone("")
	now, near := time.Now(), s.isNear(asker)
	t := transport{udp: udp, limit: s.cfg.UDPAnswerLimit}
	cookie, proved, ok := s.cookies.check(req, asker, now)
	t.cookie, t.far = cookie, udp && !near && !proved
	var r response
	var more ede
	switch {
	case !ok:
		r = response{Msg: newReply(req), why: ede{miekg.ExtendedErrorCodeOther, "the cookie has a length that none has"}}
		r.Rcode = miekg.RcodeFormatError
	case t.far && !s.far.take(asker, now):
		s.metrics.limited.Inc()
		r = response{Msg: newReply(req)}
		r.Truncated = true
	default:
		r, more = s.reply(ctx, req, asker, near)
	}
	finish(r, req, t, more)
	wire, err := r.Pack()
	if err != nil {
		s.log.Error("cannot encode a DNS reply", "question", questionText(req), "error", err)
		r.Msg = newReply(req)
		r.Rcode = miekg.RcodeServerFailure
		if wire, err = r.Pack(); err != nil {
			return nil
		}
	}
	s.metrics.replied(r.Msg)
	return wire
}

// reply answers from the snapshot, and asks other resolvers for what is not ours.
// It also says if the answer may be out of date.
func (s *Server) reply(ctx context.Context, req *miekg.Msg, asker netip.Addr, near bool) (response, ede) {
	r := s.zones.answer(s.reader.Snapshot(), req, asker)
	if r.Msg == nil {
		return s.relay(ctx, req, near)
	}
	r.RecursionAvailable = s.forward.configured() && near
	if alias := openAlias(r.Msg, req); alias != "" && req.RecursionDesired && r.RecursionAvailable {
		s.follow(ctx, r.Msg, req, alias)
	}
	if s.cfg.StaleFor == nil || !r.Authoritative {
		return r, ede{}
	}
	age := s.cfg.StaleFor()
	if age <= 0 {
		return r, ede{}
	}
	since := "no server has been in contact for " + age.Round(time.Second).String()
	if s.cfg.MaxStale > 0 && age > s.cfg.MaxStale {
		m := newReply(req)
		m.Rcode = miekg.RcodeServerFailure
		return response{Msg: m, why: ede{miekg.ExtendedErrorCodeNoReachableAuthority, since + ", longer than dns-max-stale (" + s.cfg.MaxStale.String() + ")"}}, ede{}
	}
	code := miekg.ExtendedErrorCodeStaleAnswer
	if r.Rcode == miekg.RcodeNameError {
		code = miekg.ExtendedErrorCodeStaleNXDOMAINAnswer
	}
	return r, ede{code, since}
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
	rest, from, err := s.forward.ask(ctx, ask)
	s.metrics.forward(from)
	if err != nil || !useful(rest.Rcode) {
		return
	}
	m.Answer = append(m.Answer, rest.Answer...)
	m.Ns = append(m.Ns, rest.Ns...)
	m.Rcode = rest.Rcode
}

// relay answers with what another resolver says. It does so for nobody but whoever
// is near: a resolver that is open to all is a weapon (RFC 5358).
func (s *Server) relay(ctx context.Context, req *miekg.Msg, near bool) (response, ede) {
	m := newReply(req)
	if !s.forward.configured() {
		m.Rcode = miekg.RcodeRefused
		return response{Msg: m, why: ede{miekg.ExtendedErrorCodeNotAuthoritative, "only " + strings.Join(s.zones.domains, " and ") + " are served here, and no resolver to forward to is configured"}}, ede{}
	}
	if !near {
		m.Rcode = miekg.RcodeRefused
		return response{Msg: m, why: ede{miekg.ExtendedErrorCodeProhibited, "other names are answered only to private addresses and to the networks that this host is in"}}, ede{}
	}
	got, from, err := s.forward.ask(ctx, req)
	s.metrics.forward(from)
	if err != nil {
		m.Rcode = miekg.RcodeServerFailure
		m.RecursionAvailable = true
		s.log.Debug("forwarding failed", "question", questionText(req), "error", err)
		return response{Msg: m, why: ede{miekg.ExtendedErrorCodeNoReachableAuthority, strings.ReplaceAll(err.Error(), "\n", "; ")}}, ede{}
	}
	if from == fromStale {
		code := miekg.ExtendedErrorCodeStaleAnswer
		if got.Rcode == miekg.RcodeNameError {
			code = miekg.ExtendedErrorCodeStaleNXDOMAINAnswer
		}
		return response{Msg: got, why: ede{code, "no resolver could be asked; this was true a while ago"}}, ede{}
	}
	return response{Msg: got}, ede{}
}

func questionText(m *miekg.Msg) string {
	if len(m.Question) == 0 {
		return ""
	}
	return m.Question[0].Name + " " + miekg.TypeToString[m.Question[0].Qtype]
}
