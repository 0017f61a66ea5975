package api

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead-net/fairlead/api/internal/load"
)

// Scheme is that of the URLs fairlead://SERVICE/PATH, HTTP to an instance.
const Scheme = "fairlead"

// defaultTries is how often a request is sent.
const defaultTries = 3

// Transport is an http.RoundTripper that finds services by their names:
// http://web.service.consul/, https://web.service.consul/ (see ParseName; the
// certificate is to be for that name) and fairlead://web/. The port is the
// instance's; a URL that names another is refused. Other URLs go to Base as they are.
//
// The instance is the one with the least EWMA latency x (own requests in flight + 1),
// by weight. One that refuses connections, or fails five times in a row, is left out
// for a while.
//
// A request is sent again, to another instance, if the first provably did not get it
// (no connection came about), or if it failed, or was answered with 502, 503 or 504,
// and may be repeated: GET, HEAD, OPTIONS, TRACE, PUT, DELETE, or any with a header
// Idempotency-Key. In either case only if its body can be had again (Request.GetBody,
// which http.NewRequest sets for the usual kinds). A budget of a fifth of all requests
// keeps retries from multiplying an overload.
//
// The fields must not be changed after first use. It is safe for concurrent use.
type Transport struct {
	Resolver *Resolver
	// Base makes the connections; nil is like http.DefaultTransport, with 2 s for a
	// connection and 64 idle ones for each instance.
	Base *http.Transport
	// TryTimeout is how long one try may wait for the head of an answer, if it can be
	// repeated; 0 is no limit. Without one, a request to an instance that accepts it
	// and hangs takes until its own deadline.
	TryTimeout time.Duration
	// Tries is how often a request is sent at most; 0 is 3. Tries that no instance has
	// seen do not count.
	Tries int
	// Patience is how long a request waits for an instance that takes it; 0 is
	// DefaultPatience.
	Patience time.Duration

	once   sync.Once
	base   *http.Transport
	budget budget
	pools  pools

	mu  sync.Mutex                 // guards following
	tls map[string]*http.Transport // by the name that certificates are for
}

var _ http.RoundTripper = (*Transport)(nil)

// setUp fills in what the fields leave open.
func (t *Transport) setUp() {
	t.base = t.Base
	if t.base == nil {
		t.base = &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: defaultDialTimeout}).DialContext,
			ForceAttemptHTTP2:     true,
			MaxIdleConnsPerHost:   64,
			IdleConnTimeout:       90 * time.Second,
			TLSHandshakeTimeout:   10 * time.Second,
			ExpectContinueTimeout: time.Second,
		}
	}
	t.tls = map[string]*http.Transport{}
}

// CloseIdleConnections closes connections that are not in use.
func (t *Transport) CloseIdleConnections() {
	t.once.Do(t.setUp)
	t.base.CloseIdleConnections()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, base := range t.tls {
		base.CloseIdleConnections()
	}
}

// RoundTrip sends a request to an instance of the service that its URL names. When
// no instance takes it, its error is the last one's, or ErrNoInstance.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	t.once.Do(t.setUp)
	sel, ok := ParseName(req.URL.Hostname())
	if req.URL.Scheme == Scheme && !ok {
		sel, ok = Selection{Service: req.URL.Hostname()}, true
	}
	if !ok {
		return t.base.RoundTrip(req)
	}
	if err := acceptable(req.URL); err != nil {
		closeBody(req)
		return nil, err
	}
	t.budget.request()
	c := &call{
		t: t, req: req, base: t.base,
		search:     t.pools.of(t.Resolver, sel, t.TryTimeout).search(cmp.Or(t.Patience, DefaultPatience)),
		replayable: req.Body == nil || req.Body == http.NoBody || req.GetBody != nil,
	}
	if req.URL.Scheme == "https" {
		c.base = t.baseFor(req.URL.Hostname())
	}
	return c.run()
}

// acceptable refuses URLs of services that cannot be meant.
func acceptable(u *url.URL) error {
	switch {
	case u.Scheme != "http" && u.Scheme != "https" && u.Scheme != Scheme:
		return fmt.Errorf("%s: scheme %q: want http, https or %s", u.Redacted(), u.Scheme, Scheme)
	case u.Hostname() == "":
		return fmt.Errorf("%s: no service is named", u.Redacted())
	case u.Port() != "":
		return fmt.Errorf("%s: the registry knows the port of a service; leave it out", u.Redacted())
	}
	return nil
}

// baseFor is the base for instances whose certificate is for name.
func (t *Transport) baseFor(name string) *http.Transport {
	t.mu.Lock()
	defer t.mu.Unlock()
	base := t.tls[name]
	if base == nil {
		base = t.base.Clone()
		if base.TLSClientConfig == nil {
			base.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		if base.TLSClientConfig.ServerName == "" {
			base.TLSClientConfig.ServerName = name
		}
		t.tls[name] = base
	}
	return base
}

// call is one request on its way through its tries.
type call struct {
	t          *Transport
	req        *http.Request
	base       http.RoundTripper
	search     *search
	replayable bool
	used       bool // the request's own body is spent
	sent       int  // tries that an instance may have seen
}

func (c *call) run() (*http.Response, error) {
	var last error
	var answer *http.Response // a 5xx, which is better than no answer
	for {
		pick, err := c.search.next(c.req.Context())
		if err != nil {
			return c.conclude(answer, last, err)
		}
		if answer != nil {
			discard(answer)
		}
		res, sent, err := c.try(pick)
		if sent {
			c.sent++
		}
		switch {
		case err == nil && !unavailable(res.StatusCode):
			return res, nil
		case !c.again(sent):
			if err != nil {
				err = fmt.Errorf("%s at %s: %w", c.req.URL.Host, pick.Value.Addr(), err)
			}
			return res, err
		}
		answer, last = res, err
	}
}

// conclude ends a call for which there is no other instance.
func (c *call) conclude(answer *http.Response, last, none error) (*http.Response, error) {
	if answer != nil {
		return answer, nil
	}
	if !c.used {
		closeBody(c.req)
	}
	if err := c.req.Context().Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", c.req.URL.Host, err)
	}
	return nil, fmt.Errorf("%s: %w", c.req.URL.Host, cmp.Or(last, none))
}

// again reports whether the request may be sent once more.
func (c *call) again(sent bool) bool {
	if c.req.Context().Err() != nil || !c.replayable {
		return false
	}
	return !sent || idempotent(c.req) && c.sent < cmp.Or(c.t.Tries, defaultTries) && c.t.budget.retry()
}

// errTryTimeout ends a try that another may follow.
var errTryTimeout = errors.New("no answer within the time for one try")

// try sends the request to one instance. sent is false if that provably did not get
// any of it.
func (c *call) try(pick *load.Pick[Instance]) (res *http.Response, sent bool, err error) {
	ctx, cancel := context.WithCancelCause(c.req.Context())
	var connected atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	req, err := c.request(ctx, pick.Value)
	if err != nil {
		cancel(nil)
		pick.Done(load.Abandoned)
		return nil, true, err
	}
	inTime := func() bool { return true }
	if c.t.TryTimeout > 0 && c.replayable && idempotent(c.req) {
		inTime = time.AfterFunc(c.t.TryTimeout, func() { cancel(errTryTimeout) }).Stop
	}
	res, err = c.base.RoundTrip(req)
	sent = connected.Load()
	if !inTime() {
		if err == nil {
			_ = res.Body.Close()
		}
		err = errTryTimeout
	}
	if err != nil {
		cancel(nil)
		switch {
		case c.req.Context().Err() != nil:
			pick.Done(load.Abandoned)
		case sent:
			pick.Done(load.Failed)
		default:
			pick.Done(load.Refused)
		}
		return nil, sent, err
	}
	if res.StatusCode >= http.StatusInternalServerError {
		pick.Observe(load.Failed)
	} else {
		pick.Observe(load.OK)
	}
	res.Request = c.req
	done := func() {
		cancel(nil)
		pick.Release()
	}
	if res.StatusCode == http.StatusSwitchingProtocols {
		// The body is a connection now, which has methods of its own and ends with the
		// caller's context.
		pick.Release()
		context.AfterFunc(c.req.Context(), func() { cancel(nil) })
		return res, true, nil
	}
	res.Body = &countedBody{res.Body, sync.OnceFunc(done)}
	return res, true, nil
}

// request is the caller's request, to an instance.
func (c *call) request(ctx context.Context, to Instance) (*http.Request, error) {
	req := c.req.Clone(ctx)
	if req.URL.Scheme == Scheme {
		req.URL.Scheme = "http"
	}
	req.Host = cmp.Or(c.req.Host, c.req.URL.Host)
	req.URL.Host = to.Addr()
	if to.Port == 0 {
		req.URL.Host = hostOnly(to.Host)
	}
	if c.used && req.GetBody != nil {
		body, err := req.GetBody()
		if err != nil {
			return nil, fmt.Errorf("body for another try: %w", err)
		}
		req.Body = body
	}
	c.used = true
	return req, nil
}

// hostOnly is a host as a URL has it.
func hostOnly(host string) string {
	if ip := net.ParseIP(host); ip != nil && ip.To4() == nil {
		return "[" + host + "]"
	}
	return host
}

// idempotent reports whether doing the request twice is as good as once.
func idempotent(req *http.Request) bool {
	switch req.Method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return true
	}
	return req.Header.Get("Idempotency-Key") != "" || req.Header.Get("X-Idempotency-Key") != ""
}

// unavailable reports whether another instance may do better.
func unavailable(status int) bool {
	switch status {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// discard gives an answer's connection back, if that does not take long.
func discard(res *http.Response) {
	const enough = 64 << 10
	_, _ = io.CopyN(io.Discard, res.Body, enough)
	_ = res.Body.Close()
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		_ = req.Body.Close()
	}
}

// countedBody tells when an answer has been read, or is not wanted.
type countedBody struct {
	io.ReadCloser
	done func()
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.done()
	}
	return n, err
}

func (b *countedBody) Close() error {
	err := b.ReadCloser.Close()
	b.done()
	return err
}

// budget allows a fifth of the requests to be retries, and ten a second besides.
// The zero value is ready.
type budget struct {
	mu     sync.Mutex // guards following
	tokens float64
	filled time.Time
}

// The budget's figures, in tries.
const (
	budgetShare   = 0.2
	budgetReserve = 10.0 // each second
	budgetMost    = 100.0
)

func (b *budget) request() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill()
	b.tokens = min(b.tokens+budgetShare, budgetMost)
}

// retry takes a try from the budget, if there is one.
func (b *budget) retry() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill()
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

func (b *budget) fill() {
	now := time.Now()
	if b.filled.IsZero() {
		b.tokens = budgetReserve
	} else {
		b.tokens = min(b.tokens+budgetReserve*now.Sub(b.filled).Seconds(), budgetMost)
	}
	b.filled = now
}
