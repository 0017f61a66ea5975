package dns

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	miekg "github.com/miekg/dns"
)

const (
	// askTimeout bounds one attempt to get an answer from one resolver.
	askTimeout = 2 * time.Second
	// avoidFor is how long a resolver that did not answer is asked last.
	avoidFor = 30 * time.Second
	// maxForwards bounds the queries that wait for other resolvers at a time.
	maxForwards = 512
	// patience is how long an asker waits while there is a stale answer to give
	// instead (RFC 8767, section 5).
	patience = 1800 * time.Millisecond
)

var (
	errNoForwarder = errors.New("no resolver to forward to")
	errBusy        = errors.New("too many queries wait for other resolvers")
)

// forwarder asks other resolvers.
type forwarder struct {
	fixed []netip.AddrPort
	path  string
	// ours says whether an address is one that we answer at ourselves.
	ours    func(netip.AddrPort) bool
	timeout time.Duration // of one attempt
	slots   chan struct{}
	cache   *cache
	asking  flights
	// exchange asks one resolver; it is exchangeAny but in tests.
	exchange func(context.Context, netip.AddrPort, *miekg.Msg) (*miekg.Msg, error)

	mu      sync.Mutex // guards following
	read    fileID
	servers []netip.AddrPort
	avoid   map[netip.AddrPort]time.Time
}

// fileID changes when a file does.
type fileID struct {
	mtime time.Time
	size  int64
}

func newForwarder(cfg Config, ours func(netip.AddrPort) bool) (*forwarder, error) {
	f := &forwarder{
		path:    cfg.ResolvConf,
		ours:    ours,
		timeout: cmp.Or(cfg.RecursorTimeout, askTimeout),
		slots:   make(chan struct{}, maxForwards),
		cache:   newCache(cfg.CacheSize),
		avoid:   map[netip.AddrPort]time.Time{},
	}
	f.exchange = f.exchangeAny
	for _, s := range cfg.Recursors {
		ap, err := parseRecursor(s)
		if err != nil {
			return nil, err
		}
		f.fixed = append(f.fixed, ap)
	}
	return f, nil
}

// configured reports whether queries are forwarded at all.
func (f *forwarder) configured() bool { return len(f.fixed) > 0 || f.path != "" }

// source is where an answer of other resolvers came from.
type source string

const (
	fromResolver source = "answered"
	fromCache    source = "cached"
	fromStale    source = "stale" // remembered, past its time, for want of another
	fromNobody   source = "failed"
)

// ask returns what other resolvers answer to req, or have answered lately, with
// req's id; an answer past its time if none of them can say better.
func (f *forwarder) ask(ctx context.Context, req *miekg.Msg) (*miekg.Msg, source, error) {
	k, now := questionOf(req), time.Now()
	old := f.cache.get(k, now)
	switch {
	case old == nil:
	case old.m == nil:
		return nil, fromNobody, old.err
	case old.fresh(now):
		return old.reply(req, now), fromCache, nil
	case now.Before(old.retry):
		return old.reply(req, now), fromStale, nil
	}
	wait := ctx
	if old != nil {
		var cancel context.CancelFunc
		wait, cancel = context.WithTimeout(ctx, patience)
		defer cancel()
	}
	m, err := f.asking.once(wait, k, func() (*miekg.Msg, error) { return f.fetch(wait, req) })
	now = time.Now()
	if err == nil && useful(m.Rcode) {
		f.cache.put(k, m, now)
		return downstream(m.Copy(), req), fromResolver, nil
	}
	if old != nil && ctx.Err() == nil {
		f.cache.postpone(k, now.Add(staleTTL))
		return old.reply(req, now), fromStale, nil
	}
	if old == nil && ctx.Err() == nil && !errors.Is(err, errBusy) {
		f.cache.fail(k, m, err, now)
	}
	if err != nil {
		return nil, fromNobody, err
	}
	return downstream(m.Copy(), req), fromResolver, nil
}

// flights lets the same question be asked once for all who have it at a time.
type flights struct {
	mu sync.Mutex // guards following
	by map[question]*flight
}

type flight struct {
	done chan struct{} // closes when what follows is there
	m    *miekg.Msg
	err  error
}

// once returns what ask does, or what it did for somebody else. The message is
// shared.
func (f *flights) once(ctx context.Context, k question, ask func() (*miekg.Msg, error)) (*miekg.Msg, error) {
	for {
		f.mu.Lock()
		other := f.by[k]
		if other == nil {
			if f.by == nil {
				f.by = map[question]*flight{}
			}
			own := &flight{done: make(chan struct{})}
			f.by[k] = own
			f.mu.Unlock()
			own.m, own.err = ask()
			f.mu.Lock()
			delete(f.by, k)
			f.mu.Unlock()
			close(own.done)
			return own.m, own.err
		}
		f.mu.Unlock()
		select {
		case <-other.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		// Who asked for all may have gone away; then the next one does.
		if !errors.Is(other.err, context.Canceled) {
			return other.m, other.err
		}
	}
}

// fetch returns the answer of the first resolver that gives one. An answer that is
// itself a failure is returned only if no resolver has a better one.
func (f *forwarder) fetch(ctx context.Context, req *miekg.Msg) (*miekg.Msg, error) {
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	default:
		return nil, errBusy
	}
	servers, err := f.order(time.Now())
	if err != nil {
		return nil, err
	}
	var poor *miekg.Msg
	var errs []error
	for i, server := range servers {
		m, err := f.attempt(ctx, server, req, len(servers)-i)
		if ctx.Err() == nil || err == nil {
			f.note(server, err)
		}
		switch {
		case err == nil && useful(m.Rcode):
			return m, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil:
			errs = append(errs, err)
		case poor == nil:
			poor = m
		}
	}
	if poor != nil {
		return poor, nil
	}
	return nil, errors.Join(errs...)
}

// attempt asks the first of so many resolvers. Of the time that the asker has, it
// leaves the others their shares: one that is dead must not use it all up.
func (f *forwarder) attempt(ctx context.Context, server netip.AddrPort, req *miekg.Msg, many int) (*miekg.Msg, error) {
	if end, ok := ctx.Deadline(); ok && many > 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(end)/time.Duration(many))
		defer cancel()
	}
	return f.exchange(ctx, server, upstream(req))
}

func useful(rcode int) bool {
	return rcode == miekg.RcodeSuccess || rcode == miekg.RcodeNameError
}

// order lists the resolvers to ask, those that failed lately last.
func (f *forwarder) order(now time.Time) ([]netip.AddrPort, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := f.fixed
	if len(all) == 0 && f.path != "" {
		if err := f.reload(); err != nil {
			return nil, err
		}
		all = f.servers
	}
	good := make([]netip.AddrPort, 0, len(all))
	var bad []netip.AddrPort
	for _, s := range all {
		switch {
		case f.ours(s):
		case f.avoid[s].After(now):
			bad = append(bad, s)
		default:
			good = append(good, s)
		}
	}
	good = append(good, bad...)
	if len(good) == 0 {
		return nil, errNoForwarder
	}
	return good, nil
}

func (f *forwarder) note(server netip.AddrPort, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		f.avoid[server] = time.Now().Add(avoidFor)
	} else if len(f.avoid) > 0 {
		delete(f.avoid, server)
	}
}

// reload reads resolv.conf if it is not the one read last. The caller holds mu.
func (f *forwarder) reload() error {
	st, err := os.Stat(f.path)
	if err != nil {
		return fmt.Errorf("read resolvers: %w", err)
	}
	id := fileID{mtime: st.ModTime(), size: st.Size()}
	if id == f.read {
		return nil
	}
	file, err := os.Open(f.path)
	if err != nil {
		return fmt.Errorf("read resolvers: %w", err)
	}
	defer file.Close()
	servers, err := parseResolvConf(file)
	if err != nil {
		return fmt.Errorf("read resolvers from %s: %w", f.path, err)
	}
	if !slices.Equal(servers, f.servers) {
		f.cache.clear() // others may know better
	}
	f.servers, f.read = servers, id
	clear(f.avoid)
	return nil
}

// parseResolvConf returns the name servers of a resolv.conf(5). Lines that it
// cannot read are left out, as the C library does.
func parseResolvConf(r io.Reader) ([]netip.AddrPort, error) {
	var servers []netip.AddrPort
	lines := bufio.NewScanner(io.LimitReader(r, 1<<20))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			servers = append(servers, netip.AddrPortFrom(a.Unmap(), 53))
		}
	}
	return servers, lines.Err()
}

// upstream is the query that asks what req asks.
func upstream(req *miekg.Msg) *miekg.Msg {
	m := &miekg.Msg{MsgHdr: miekg.MsgHdr{
		Id:                miekg.Id(),
		RecursionDesired:  req.RecursionDesired,
		CheckingDisabled:  req.CheckingDisabled,
		AuthenticatedData: req.AuthenticatedData,
	}}
	m.Question = append(m.Question, req.Question[0])
	if opt := req.IsEdns0(); opt != nil {
		m.SetEdns0(ourUDPSize, opt.Do())
	}
	return m
}

// downstream makes a resolver's reply ours: the asker's id and spelling, and no
// OPT record, which speaks of the other hop.
func downstream(m, req *miekg.Msg) *miekg.Msg {
	m.Id = req.Id
	m.Question = req.Question
	m.Authoritative = false
	m.RecursionDesired = req.RecursionDesired
	m.CheckingDisabled = req.CheckingDisabled
	if opt := req.IsEdns0(); !req.AuthenticatedData && (opt == nil || !opt.Do()) {
		m.AuthenticatedData = false // it did not ask (RFC 6840, 5.8)
	}
	extra := m.Extra[:0]
	for _, rr := range m.Extra {
		if rr.Header().Rrtype != miekg.TypeOPT {
			extra = append(extra, rr)
		}
	}
	m.Extra = extra
	return m
}

// exchangeAny asks one resolver over UDP, and over TCP if the reply was cut.
func (f *forwarder) exchangeAny(ctx context.Context, server netip.AddrPort, q *miekg.Msg) (*miekg.Msg, error) {
	m, err := f.exchangeOver(ctx, "udp", server, q)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", server, err)
	}
	if !m.Truncated {
		return m, nil
	}
	whole, err := f.exchangeOver(ctx, "tcp", server, q)
	if err != nil {
		return m, nil // what there is of it, TC set
	}
	return whole, nil
}

func (f *forwarder) exchangeOver(ctx context.Context, network string, server netip.AddrPort, q *miekg.Msg) (*miekg.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	// Closing is what ends a read when ctx does.
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	c := &miekg.Conn{Conn: conn, UDPSize: ourUDPSize}
	if err := c.WriteMsg(q); err != nil {
		return nil, err
	}
	if network == "udp" {
		// The first may have been lost.
		resend := time.AfterFunc(f.timeout/2, func() { _ = c.WriteMsg(q) })
		defer resend.Stop()
	}
	for {
		m, err := c.ReadMsg()
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil && network == "tcp":
			return nil, err
		case err != nil:
			var op *net.OpError
			if errors.As(err, &op) {
				return nil, err
			}
			// Not a DNS message, so not the reply.
		case answers(m, q):
			return m, nil
		case network == "tcp":
			return nil, errors.New("the reply is to another query")
		}
	}
}

// answers reports whether m is a reply to q and not somebody's guess at one.
func answers(m, q *miekg.Msg) bool {
	if !m.Response || m.Id != q.Id || m.Opcode != q.Opcode {
		return false
	}
	if len(m.Question) == 0 {
		return m.Rcode != miekg.RcodeSuccess // refusals may leave it out
	}
	a, b := m.Question[0], q.Question[0]
	return len(m.Question) == 1 && a.Qtype == b.Qtype && a.Qclass == b.Qclass && strings.EqualFold(a.Name, b.Name)
}
