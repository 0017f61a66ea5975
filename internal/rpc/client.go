package rpc

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead-net/fairlead/internal/identity"
	"github.com/fairlead-net/fairlead/internal/model"
)

const (
	// dialLimit is how long a server may take to be reached.
	dialLimit = 2 * time.Second
	// A connection that has been silent for pingAfter is asked for a sign of life,
	// and given up pingLimit later.
	pingAfter, pingLimit = 2 * time.Second, 2 * time.Second
)

// ClientConfig is what a Client needs.
type ClientConfig struct {
	Badge     *identity.Badge
	Directory *Directory
	Codes     Codes
	// Self is this node's own server address, never asked; the zero AddrPort for
	// an agent.
	Self netip.AddrPort
	Log  *slog.Logger
}

// Client asks servers: one of them as long as it answers, then another.
type Client struct {
	cfg  ClientConfig
	http *http.Transport

	mu      sync.Mutex
	current netip.AddrPort // guarded by mu; the zero AddrPort if none is preferred
}

// NewClient returns a client that has asked nobody yet.
func NewClient(cfg ClientConfig) *Client {
	c := &Client{cfg: cfg}
	c.http = newTransport(cfg.Badge.Client())
	return c
}

func newTransport(cfg *tls.Config) *http.Transport {
	dialer := &net.Dialer{Timeout: dialLimit, KeepAlive: 15 * time.Second}
	t := &http.Transport{
		DialContext: dialer.DialContext, TLSClientConfig: cfg, TLSHandshakeTimeout: dialLimit,
		ForceAttemptHTTP2: true, IdleConnTimeout: time.Minute, MaxResponseHeaderBytes: 1 << 20,
		HTTP2:     &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingLimit, MaxReadFrameSize: 1 << 20},
		Protocols: new(http.Protocols),
	}
	t.Protocols.SetHTTP2(true)
	return t
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Server is the one that is asked at present; false if none is.
func (c *Client) Server() (netip.AddrPort, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current, c.current.IsValid()
}

// order is the servers to try: the present one, then the others as chance has it,
// so that those of a dead server do not all go to the same one.
func (c *Client) order() []netip.AddrPort {
	all := slices.DeleteFunc(c.cfg.Directory.Addrs(), func(a netip.AddrPort) bool { return a == c.cfg.Self })
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	now, ok := c.Server()
	if i := slices.Index(all, now); ok && i > 0 {
		all[0], all[i] = all[i], all[0]
	}
	return all
}

func (c *Client) prefer(a netip.AddrPort) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.current = a
}

// avoid makes a server that has failed none that is preferred.
func (c *Client) avoid(a netip.AddrPort) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == a {
		c.current = netip.AddrPort{}
	}
}

// RoundTrip sends a request to a server, whatever host it names. Another one is
// tried if nothing of it was sent, or if it may be sent twice (GET and HEAD); the
// error is ErrNoServer if none can be reached.
func (c *Client) RoundTrip(r *http.Request) (*http.Response, error) {
	var errs []error
	for _, at := range c.order() {
		out := r.Clone(r.Context())
		out.URL.Scheme, out.URL.Host = "https", at.String()
		out.Host = identity.ServerName
		if r.Body != nil && r.Body != http.NoBody && r.GetBody == nil {
			out.Body = &once{ReadCloser: r.Body} // a stream, which another server may get if this one gets nothing of it
		}
		resp, err := c.http.RoundTrip(out)
		if err == nil {
			c.prefer(at)
			return resp, nil
		}
		c.avoid(at)
		if r.Context().Err() != nil {
			return nil, r.Context().Err()
		}
		errs = append(errs, fmt.Errorf("server %s: %w", at, err))
		if !unsent(err) && r.Method != http.MethodGet && r.Method != http.MethodHead {
			return nil, errors.Join(errs...)
		}
		switch stream, ok := out.Body.(*once); {
		case ok && stream.begun.Load():
			return nil, errors.Join(append(errs, ErrNoServer)...)
		case !ok && r.GetBody != nil:
			if r.Body, err = r.GetBody(); err != nil {
				return nil, err
			}
		}
	}
	return nil, fmt.Errorf("%w%w", ErrNoServer, tail(errs))
}

// once is a body that can be given to another server as long as nothing of it was
// read: its end is its owner's.
type once struct {
	io.ReadCloser
	begun atomic.Bool
}

func (o *once) Read(b []byte) (int, error) {
	o.begun.Store(true)
	return o.ReadCloser.Read(b)
}

func (o *once) Close() error {
	if !o.begun.Load() {
		return nil
	}
	return o.ReadCloser.Close()
}

// tail is what follows an error that says it in short.
func tail(errs []error) error {
	if len(errs) == 0 {
		return errors.New(": none is known")
	}
	return fmt.Errorf(": %w", errors.Join(errs...))
}

// unsent reports whether a request has failed before anything of it was sent.
func unsent(err error) bool {
	var op *net.OpError
	var tlsErr *tls.CertificateVerificationError
	return errors.As(err, &op) && op.Op == "dial" || errors.As(err, &tlsErr) || errors.Is(err, identity.ErrNoServer)
}

// call asks one question with one answer.
func (c *Client) call(ctx context.Context, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	return ask(ctx, c, c.cfg.Codes, path, in, out)
}

// ask sends a question over a transport and reads its answer.
func ask(ctx context.Context, over http.RoundTripper, codes Codes, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("encode the question %s: %w", path, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+identity.ServerName+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := over.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var f failure
		if err := decode(resp.Body, &f); err != nil || f.Text == "" {
			return fmt.Errorf("%s: the server answers %s", path, resp.Status)
		}
		return codes.errorOf(f)
	}
	return decode(resp.Body, out)
}

// Feed opens the change feed behind an index; run is the feed's that the index
// is of. Closing it ends the stream.
func (c *Client) Feed(ctx context.Context, from model.Index, run string) (io.ReadCloser, error) {
	q := url.Values{"from": {strconv.FormatUint(uint64(from), 10)}, "run": {run}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+identity.ServerName+pathFeed+"?"+q.Encode(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("open the change feed: the server answers %s", resp.Status)
	}
	return resp.Body, nil
}

// Forward passes a request of the API on to a server and its answer back. Without
// a server it answers 500 as Consul does.
func (c *Client) Forward(name model.NodeName) http.Handler {
	return &httputil.ReverseProxy{
		Transport: c,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "https", identity.ServerName
			r.Out.Header.Set(headerVia, string(name))
			r.SetXForwarded()
		},
		FlushInterval: -1,
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() != nil {
				return // nobody waits for the answer
			}
			w.Header().Set("X-Consul-Knownleader", "false")
			http.Error(w, "No cluster leader", http.StatusInternalServerError)
			c.cfg.Log.Debug("a request was not passed on", "path", r.URL.Path, "error", err)
		},
	}
}

// Renew gets a new certificate for this node, which shows its present one.
func (c *Client) Renew(ctx context.Context, request string) (Admission, error) {
	var a Admission
	err := c.call(ctx, pathRenew, JoinRequest{Request: request}, &a)
	return a, err
}

// AddServer makes a member of this server and returns what to start it with.
func (c *Client) AddServer(ctx context.Context, self Peer) (map[string]string, error) {
	var members map[string]string
	err := c.call(ctx, pathServer, self, &members)
	return members, err
}

// Announce tells every server that can be reached where this one is and what
// index it shows, and learns where they are. The error is that of those that could not be reached, if none
// was.
func (c *Client) Announce(ctx context.Context, self Peer, applied model.Index) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	reached := 0
	for _, at := range c.cfg.Directory.Addrs() {
		if at == c.cfg.Self {
			continue
		}
		wg.Go(func() {
			var list []Peer
			err := ask(ctx, host{c.http, at.String()}, c.cfg.Codes, pathAnnounce, announcement{self, applied}, &list)
			if err == nil {
				err = c.cfg.Directory.Learn(slices.DeleteFunc(list, func(p Peer) bool { return p.ID == self.ID })...)
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, fmt.Errorf("server %s: %w", at, err))
			} else {
				reached++
			}
		})
	}
	wg.Wait()
	if reached == 0 && len(errs) > 0 {
		return errors.Join(errs...)
	}
	return nil
}

// Join shows a token to one of its servers after the other, until one admits this
// host or refuses it.
func Join(ctx context.Context, t identity.JoinToken, req JoinRequest, codes Codes) (Admission, error) {
	transport := newTransport(t.Client())
	defer transport.CloseIdleConnections()
	req.Token, req.Secret = t.ID, t.Secret
	var errs []error
	for _, at := range t.Servers {
		var a Admission
		actx, cancel := context.WithTimeout(ctx, callLimit)
		err := ask(actx, host{transport, at}, codes, pathJoin, req, &a)
		cancel()
		var remote *remoteError
		if err == nil || errors.As(err, &remote) {
			return a, err
		}
		errs = append(errs, fmt.Errorf("server %s: %w", at, err))
	}
	return Admission{}, fmt.Errorf("join: %w%w", ErrNoServer, tail(errs))
}

// host sends everything to one server.
type host struct {
	over http.RoundTripper
	at   string
}

func (h host) RoundTrip(r *http.Request) (*http.Response, error) {
	r.URL.Scheme, r.URL.Host = "https", h.at
	return h.over.RoundTrip(r)
}
