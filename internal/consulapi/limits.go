package consulapi

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Limits bound what one client, and all of them together, may take of an agent's
// HTTP server. Zero values mean the defaults.
type Limits struct {
	// ConnsPerClient is how many connections one client address may hold; 0
	// means any number, since every watcher holds one.
	ConnsPerClient int
	// RatePerClient is how many requests one client address may make in a second,
	// in the long run; 0 means any number. Twice as many may come at once.
	RatePerClient float64
	// MaxWrites is how many requests that change something may be under way, of
	// all clients together; 0 means DefaultMaxWrites.
	MaxWrites int
	// HeaderBytes bounds a request's header; 0 means DefaultHeaderBytes.
	HeaderBytes int
	// HeaderTimeout and BodyTimeout bound how long a request may take to arrive;
	// 0 means 10 s and 1 min. A snapshot's body may take longer as long as it
	// comes.
	HeaderTimeout, BodyTimeout time.Duration
	// StallTimeout is how long a client may not take, or not send, anything of
	// what is under way; 0 means DefaultStall.
	StallTimeout time.Duration
	Log          *slog.Logger
}

// Defaults of Limits.
const (
	DefaultMaxWrites   = 4096
	DefaultHeaderBytes = 64 << 10
	DefaultHeader      = 10 * time.Second
	DefaultStall       = 30 * time.Second
)

// KeepAlive is how long a connection may be without a request.
const KeepAlive = 2 * time.Minute

const (
	// spareConns over the limit are taken to be told so; what comes beyond is
	// closed without a word.
	spareConns = 16
	// maxBuckets bounds how many clients' rates are remembered.
	maxBuckets = 20_000
	// writePiece is how much of an answer a client must take within StallTimeout.
	writePiece = 64 << 10
)

// Texts of the refusals; clients know them.
const (
	tooManyConns  = "Your IP is issuing too many concurrent connections, please rate limit your calls\n"
	tooManyCalls  = "rate limit exceeded, try again later or against a different server"
	tooManyWrites = "rate limit exceeded for operation that can only be performed by the leader, try again later"
)

// Guard keeps an HTTP server within its limits. It starts no goroutine and may be
// used by many.
type Guard struct {
	l      Limits
	writes atomic.Int64

	mu      sync.Mutex // guards following
	conns   map[netip.Addr]int
	buckets map[netip.Addr]*bucket
}

// NewGuard returns a guard for the servers of one agent.
func NewGuard(l Limits) *Guard {
	l.MaxWrites = cmp.Or(l.MaxWrites, DefaultMaxWrites)
	l.HeaderBytes = cmp.Or(l.HeaderBytes, DefaultHeaderBytes)
	l.HeaderTimeout = cmp.Or(l.HeaderTimeout, DefaultHeader)
	l.BodyTimeout = cmp.Or(l.BodyTimeout, time.Minute)
	l.StallTimeout = cmp.Or(l.StallTimeout, DefaultStall)
	if l.Log == nil {
		l.Log = slog.Default()
	}
	return &Guard{l: l, conns: map[netip.Addr]int{}, buckets: map[netip.Addr]*bucket{}}
}

// Server returns a server of next within the limits. Its hooks for connections are
// taken. A connection that a handler takes from it counts until Left is called;
// one that has been counted, by Enter or before it was taken, as its method
// Returned says, is not counted again when it comes.
func (g *Guard) Server(next http.Handler) *http.Server {
	srv := &http.Server{
		Handler: g.Handler(next), ReadHeaderTimeout: g.l.HeaderTimeout, IdleTimeout: KeepAlive, MaxHeaderBytes: g.l.HeaderBytes,
	}
	if g.l.ConnsPerClient > 0 {
		srv.ConnContext, srv.ConnState = g.connect, g.connState
	}
	return srv
}

// connect counts a connection, and marks one over its client's limit.
func (g *Guard) connect(ctx context.Context, c net.Conn) context.Context {
	if _, back := c.(interface{ Returned() }); back {
		return ctx
	}
	switch n := g.count(c, 1); {
	case n <= g.l.ConnsPerClient:
		return ctx
	case n > g.l.ConnsPerClient+spareConns:
		_ = c.Close() // nothing was promised
	}
	return context.WithValue(ctx, spareKey{}, true)
}

// connState is told of each connection's end once.
func (g *Guard) connState(c net.Conn, s http.ConnState) {
	if s == http.StateClosed {
		g.count(c, -1)
	}
}

// Enter counts a connection that the server does not have yet, if it is within its
// client's limit. Left, or its end at the server, counts it out.
func (g *Guard) Enter(c net.Conn) bool {
	if g.l.ConnsPerClient <= 0 || g.count(c, 1) <= g.l.ConnsPerClient {
		return true
	}
	g.count(c, -1)
	return false
}

// Left is told of the end of a connection that Enter has counted and that is not
// the server's, or that a handler had taken from it.
func (g *Guard) Left(c net.Conn) {
	if g.l.ConnsPerClient > 0 {
		g.count(c, -1)
	}
}

// count changes how many connections a client has, and returns it; 0 for a client
// without an address.
func (g *Guard) count(c net.Conn, by int) int {
	who := client(c.RemoteAddr().String())
	if !who.IsValid() {
		return 0
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.conns[who] += by
	n := g.conns[who]
	if n <= 0 {
		delete(g.conns, who)
	}
	return n
}

// spareKey marks the context of a connection over its client's limit.
type spareKey struct{}

// Handler returns next with the limits on requests around it. A panic in it is
// logged and answered with 500.
func (g *Guard) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := &paced{ResponseWriter: w, rc: http.NewResponseController(w), stall: g.l.StallTimeout}
		// The deadline of the answer before is the connection's still.
		_ = out.rc.SetWriteDeadline(time.Time{})
		defer g.rescue(out, r)
		if status, text, after := g.refusal(r); status != 0 {
			refuse(out, status, text, after)
			return
		}
		if changes(r.Method) {
			defer g.writes.Add(-1)
			if g.writes.Add(1) > int64(g.l.MaxWrites) {
				refuse(out, http.StatusServiceUnavailable, tooManyWrites, time.Second)
				return
			}
		}
		if r.Body != nil && r.Body != http.NoBody {
			body := &timed{ReadCloser: r.Body, rc: out.rc, stall: g.l.StallTimeout}
			if r.URL.Path != snapshotPath {
				body.end = time.Now().Add(g.l.BodyTimeout)
			}
			body.extend()
			r.Body = body
		}
		next.ServeHTTP(out, r)
	})
}

// refusal is why a client's request is not taken, and when to come back; status 0
// if it is.
func (g *Guard) refusal(r *http.Request) (status int, text string, after time.Duration) {
	if r.Context().Value(spareKey{}) != nil {
		return http.StatusTooManyRequests, tooManyConns, 0
	}
	if g.l.RatePerClient <= 0 || probe(r.URL.Path) {
		return 0, "", 0
	}
	if after := g.spend(client(r.RemoteAddr), time.Now()); after > 0 {
		return http.StatusTooManyRequests, tooManyCalls, after
	}
	return 0, "", 0
}

// probe reports whether a path is for those who look after the agent.
func probe(path string) bool { return path == "/healthz" || path == "/readyz" || path == "/metrics" }

func changes(method string) bool {
	return method != http.MethodGet && method != http.MethodHead && method != http.MethodOptions
}

func refuse(w http.ResponseWriter, status int, text string, after time.Duration) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	if after > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(after.Seconds()))))
	} else {
		h.Set("Connection", "close")
	}
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text)) // a client that is gone needs no word
}

// rescue ends a request whose handler panicked. Where the answer has begun, only
// the connection's end can tell the client.
func (g *Guard) rescue(w *paced, r *http.Request) {
	p := recover()
	if p == nil {
		return
	}
	if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(http.ErrAbortHandler)
	}
	g.l.Log.Error("a request's handler panicked", "method", r.Method, "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
	if w.begun {
		panic(http.ErrAbortHandler)
	}
	clear(w.Header())
	refuse(w, http.StatusInternalServerError, "Internal error; the agent's log has more", 0)
}

// client is what limits are counted by: an IPv4 address, or an IPv6 /64, which is
// one host's for the asking. It is invalid for a client without an address.
func client(remote string) netip.Addr {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{}
	}
	a := ap.Addr().Unmap().WithZone("")
	if a.Is4() || a.IsLoopback() {
		return a
	}
	p, err := a.Prefix(64)
	if err != nil {
		return a
	}
	return p.Addr()
}

// bucket holds the requests that a client may make at once.
type bucket struct {
	tokens float64
	at     time.Time
}

// spend takes a token from a client's bucket, or returns after how long there
// will be one.
func (g *Guard) spend(who netip.Addr, now time.Time) time.Duration {
	if !who.IsValid() {
		return 0
	}
	rate, burst := g.l.RatePerClient, max(2*g.l.RatePerClient, 1)
	g.mu.Lock()
	defer g.mu.Unlock()
	b := g.buckets[who]
	if b == nil {
		g.forget(now, rate, burst)
		b = &bucket{tokens: burst, at: now}
		g.buckets[who] = b
	}
	b.tokens, b.at = min(burst, b.tokens+rate*now.Sub(b.at).Seconds()), now
	if b.tokens < 1 {
		return time.Duration((1 - b.tokens) / rate * float64(time.Second))
	}
	b.tokens--
	return 0
}

// forget makes room for one more bucket: those that are full again say nothing;
// if none is, some go. g.mu is held.
func (g *Guard) forget(now time.Time, rate, burst float64) {
	if len(g.buckets) < maxBuckets {
		return
	}
	for who, b := range g.buckets {
		if b.tokens+rate*now.Sub(b.at).Seconds() >= burst {
			delete(g.buckets, who)
		}
	}
	for who := range g.buckets {
		if len(g.buckets) < maxBuckets-maxBuckets/10 {
			return
		}
		delete(g.buckets, who)
	}
}

// capBody keeps a route from reading more than any body may have, whatever it
// checks by itself; a snapshot's length is its reader's to bound.
func (h *handler) capBody(w http.ResponseWriter, r *http.Request) {
	if r.Body == nil || r.Body == http.NoBody || (r.URL.Path == snapshotPath && r.Method == http.MethodPut) {
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, max(h.cfg.MaxBodySize, h.cfg.KVMaxValueSize, h.cfg.TxnMaxReqSize))
}
