package api

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// DefaultAddr is where an agent answers unless it was told otherwise.
const DefaultAddr = "http://127.0.0.1:8500"

// callTimeout bounds a call whose context has no deadline. Stopping a workload
// may take its grace period, so it is generous.
const callTimeout = time.Minute

// Error is an agent's refusal: the HTTP status and what the agent said.
type Error struct {
	Status  int
	Message string
}

func (e *Error) Error() string { return e.Message }

// IsNotFound reports whether err is an agent's "no such thing".
func IsNotFound(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Status == http.StatusNotFound
}

// Client speaks to one agent. The zero value is not usable; see New.
type Client struct {
	base  string
	http  *http.Client
	token string
}

// New returns a client of the agent at addr, "host:port" or a URL; empty means
// DefaultAddr.
func New(addr string) (*Client, error) {
	if addr == "" {
		addr = DefaultAddr
	}
	if !strings.Contains(addr, "://") {
		addr = "http://" + addr
	}
	u, err := url.Parse(addr)
	if err != nil {
		return nil, fmt.Errorf("agent address %q: %w", addr, err)
	}
	if u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, fmt.Errorf("agent address %q: want host:port or http://host:port", addr)
	}
	return &Client{base: strings.TrimSuffix(u.String(), "/"), http: &http.Client{}}, nil
}

// FromEnv returns a client of the agent that FAIRLEAD_ADDR names, or else of the one
// at DefaultAddr, with the token in FAIRLEAD_TOKEN or CONSUL_HTTP_TOKEN, if any.
func FromEnv() (*Client, error) {
	c, err := New(os.Getenv("FAIRLEAD_ADDR"))
	if err != nil {
		return nil, fmt.Errorf("FAIRLEAD_ADDR: %w", err)
	}
	return c.WithToken(cmp.Or(os.Getenv("FAIRLEAD_TOKEN"), os.Getenv("CONSUL_HTTP_TOKEN"))), nil
}

// WithToken returns the client with a token's secret for every call; empty means
// the anonymous token.
func (c *Client) WithToken(secret string) *Client {
	with := *c
	with.token = secret
	return &with
}

// WithHTTPClient returns the client with h for its calls, for an agent behind TLS
// with a CA of its own, or a transport that counts. h must have no Timeout below
// that of the longest call: watches wait for minutes.
func (c *Client) WithHTTPClient(h *http.Client) *Client {
	with := *c
	with.http = h
	return &with
}

// Host returns where the agent wants its workloads.
func (c *Client) Host(ctx context.Context) (Host, error) {
	return get[Host](ctx, c, Prefix+"/host")
}

// Status returns how the agent is doing.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return get[Status](ctx, c, Prefix+"/status")
}

// Datapath returns the balancer's maps as text, one fact a line.
func (c *Client) Datapath(ctx context.Context) (string, error) {
	b, err := c.Do(ctx, http.MethodGet, Prefix+"/datapath", nil)
	return string(b), err
}

// Networks returns all networks, sorted by name.
func (c *Client) Networks(ctx context.Context) ([]Network, error) {
	return get[[]Network](ctx, c, Prefix+"/networks")
}

// Network returns one network with its endpoints.
func (c *Client) Network(ctx context.Context, name string) (Network, error) {
	return get[Network](ctx, c, Prefix+"/networks/"+url.PathEscape(name))
}

// CreateNetwork makes a network and returns it as made.
func (c *Client) CreateNetwork(ctx context.Context, n Network) (Network, error) {
	return send[Network](ctx, c, http.MethodPost, Prefix+"/networks", n)
}

// RemoveNetwork removes a network that has no endpoints.
func (c *Client) RemoveNetwork(ctx context.Context, name string) error {
	_, err := c.Do(ctx, http.MethodDelete, Prefix+"/networks/"+url.PathEscape(name), nil)
	return err
}

// Workloads returns this node's workloads, sorted by name.
func (c *Client) Workloads(ctx context.Context) ([]Workload, error) {
	return get[[]Workload](ctx, c, Prefix+"/workloads")
}

// Attach connects a workload. Attaching again what is attached completes it.
func (c *Client) Attach(ctx context.Context, w WorkloadSpec) (Attachment, error) {
	return send[Attachment](ctx, c, http.MethodPost, Prefix+"/workloads", w)
}

// Stop ends a workload (SIGTERM, then SIGKILL after grace) and removes its
// endpoints and services.
func (c *Client) Stop(ctx context.Context, name string, grace time.Duration) error {
	path := Prefix + "/workloads/" + url.PathEscape(name) + "?grace=" + grace.String()
	_, err := c.Do(ctx, http.MethodDelete, path, nil)
	return err
}

// Services returns every service, sorted by name.
func (c *Client) Services(ctx context.Context) ([]ServiceInfo, error) {
	return get[[]ServiceInfo](ctx, c, Prefix+"/services")
}

// Service returns one service.
func (c *Client) Service(ctx context.Context, name string) (ServiceInfo, error) {
	return get[ServiceInfo](ctx, c, Prefix+"/services/"+url.PathEscape(name))
}

// Do makes one call and returns the answer's body. A refusal is an *Error; an
// agent that cannot be reached is an error that says what to do.
func (c *Client) Do(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	b, _, err := c.DoHeader(ctx, method, path, body)
	return b, err
}

// DoHeader is Do that also returns the answer's header.
func (c *Client) DoHeader(ctx context.Context, method, path string, body []byte) ([]byte, http.Header, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTimeout)
		defer cancel()
	}
	res, err := c.open(ctx, method, path, bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if err := refusal(method, path, res, b); err != nil {
		return nil, res.Header, err
	}
	return b, res.Header, nil
}

// open makes one call; the caller reads and closes the answer's body.
func (c *Client) open(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if strings.HasPrefix(path, Prefix+"/") && req.ContentLength != 0 {
		req.Header.Set("Content-Type", "application/json") // or the agent takes it for a web page's
	}
	if c.token != "" {
		req.Header.Set("X-Consul-Token", c.token)
	}
	res, err := c.http.Do(req)
	switch {
	case err == nil:
		return res, nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return nil, fmt.Errorf("the agent at %s took too long to answer %s %s (%w); its log and 'fairlead status' tell what it waits for", c.base, method, path, ctx.Err())
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s %s: %w", method, path, ctx.Err())
	}
	return nil, fmt.Errorf("no agent answers at %s (%w); start one with 'fairlead agent', or name its address with --addr or FAIRLEAD_ADDR", c.base, err)
}

// refusal is what an answer refuses with, if it does.
func refusal(method, path string, res *http.Response, body []byte) error {
	if res.StatusCode < 300 {
		return nil
	}
	msg := strings.TrimSpace(string(body))
	if msg == "" {
		msg = fmt.Sprintf("%s %s: %s", method, path, res.Status)
	}
	return &Error{Status: res.StatusCode, Message: msg}
}

func get[T any](ctx context.Context, c *Client, path string) (T, error) {
	var v T
	b, err := c.Do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return v, err
	}
	err = decode(path, b, &v)
	return v, err
}

func send[T any](ctx context.Context, c *Client, method, path string, body any) (T, error) {
	var v T
	in, err := json.Marshal(body)
	if err != nil {
		return v, fmt.Errorf("%s %s: %w", method, path, err)
	}
	b, err := c.Do(ctx, method, path, in)
	if err != nil {
		return v, err
	}
	err = decode(path, b, &v)
	return v, err
}

func decode(path string, b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("answer of %s: %w", path, err)
	}
	return nil
}
