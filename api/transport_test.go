package api_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/api"
)

// backends are instances of the service web: servers, and "dead" for a port that nobody
// listens at. The client's patience is short, so that what fails fails soon.
func backends(t *testing.T, all ...any) (*http.Client, *api.Transport) {
	t.Helper()
	a, c := newFakeAgent(t)
	for n, b := range all {
		addr := freePort()
		if handle, ok := b.(func(http.ResponseWriter, *http.Request)); ok {
			s := httptest.NewServer(http.HandlerFunc(handle))
			t.Cleanup(s.Close)
			addr = s.Listener.Addr().String()
		}
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			t.Fatal(err)
		}
		number, err := strconv.Atoi(port)
		if err != nil {
			t.Fatal(err)
		}
		a.web = append(a.web, instance{fmt.Sprint(n), host, number, "passing"})
	}
	r := api.NewResolver(c)
	t.Cleanup(r.Close)
	transport := &api.Transport{Resolver: r, Patience: 300 * time.Millisecond}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}, transport
}

func answer(status int) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(status)
		fmt.Fprintf(w, "%s %s", r.Host, b)
	}
}

func do(t *testing.T, c *http.Client, method, url string, body io.Reader) (int, string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, string(b), err
}

const webURL = "http://web.service.consul/"

// What nobody has got is sent to another, whatever its method.
func TestRequestsPassDeadInstances(t *testing.T) {
	c, _ := backends(t, "dead", "dead", answer(200), "dead", "dead")
	for range 20 {
		if status, got, err := do(t, c, http.MethodPost, webURL, strings.NewReader("body")); status != 200 || got != "web.service.consul body" {
			t.Fatal(status, got, err)
		}
	}
	status, got, err := do(t, c, http.MethodGet, "fairlead://web/", nil)
	if status != 200 || got != "web " {
		t.Error(status, got, err)
	}
}

// A request of which an instance may have got something is repeated only if it may be.
func TestOnlyIdempotentRequestsAreRepeated(t *testing.T) {
	var first atomic.Bool
	var count atomic.Int32
	fails := func(w http.ResponseWriter, r *http.Request) {
		count.Add(1)
		if first.CompareAndSwap(false, true) {
			panic(http.ErrAbortHandler) // ends the connection
		}
		answer(200)(w, r)
	}
	c, _ := backends(t, fails, fails)
	for _, k := range []struct {
		method string
		header string
		body   io.Reader
		want   int32
	}{
		{http.MethodGet, "", nil, 2},
		{http.MethodPut, "", strings.NewReader("x"), 2},
		{http.MethodPost, "", strings.NewReader("x"), 1},
		{http.MethodPost, "Idempotency-Key", strings.NewReader("x"), 2},
		{http.MethodPut, "", io.NopCloser(strings.NewReader("x")), 1}, // a body that cannot be had again
	} {
		first.Store(false)
		count.Store(0)
		req, err := http.NewRequestWithContext(t.Context(), k.method, webURL, k.body)
		if err != nil {
			t.Fatal(err)
		}
		if k.header != "" {
			req.Header.Set(k.header, "1")
		}
		res, err := c.Do(req)
		if err == nil {
			res.Body.Close()
		}
		if (err == nil) != (k.want == 2) || count.Load() != k.want {
			t.Errorf("%s %s: sent %d times, %v; want %d", k.method, k.header, count.Load(), err, k.want)
		}
	}
}

func TestUnavailableIsTriedElsewhere(t *testing.T) {
	c, _ := backends(t, answer(503), answer(200), answer(502))
	for range 20 {
		if status, _, err := do(t, c, http.MethodGet, webURL, nil); status != 200 {
			t.Fatal(status, err)
		}
	}
	c, _ = backends(t, answer(503), answer(503))
	if status, got, err := do(t, c, http.MethodGet, webURL, nil); status != 503 || got != "web.service.consul " {
		t.Errorf("all are unavailable: %d %q %v; want their answer", status, got, err)
	}
}

func TestTryTimeout(t *testing.T) {
	hangs := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	c, transport := backends(t, hangs, answer(200))
	transport.TryTimeout = 50 * time.Millisecond
	for range 5 {
		if status, _, err := do(t, c, http.MethodGet, webURL, nil); status != 200 {
			t.Fatal(status, err)
		}
	}
}

// Retries are a fifth of the requests, beyond a few.
func TestRetryBudget(t *testing.T) {
	var count atomic.Int32
	fails := func(w http.ResponseWriter, _ *http.Request) {
		count.Add(1)
		w.WriteHeader(503)
	}
	c, transport := backends(t, fails, fails)
	transport.Tries = 100
	for range 3 {
		if status, _, err := do(t, c, http.MethodGet, webURL, nil); status != 503 {
			t.Fatal(status, err)
		}
	}
	// Ten from the start, ten for each second of at most three times the patience.
	if n := count.Load(); n < 10 || n > 40 {
		t.Errorf("3 requests were sent %d times", n)
	}
}

func TestNoInstance(t *testing.T) {
	c, transport := backends(t)
	_, _, err := do(t, c, http.MethodGet, webURL, nil)
	if !errors.Is(err, api.ErrNoInstance) {
		t.Errorf("request to a service without instances: %v", err)
	}
	d := &api.Dialer{Resolver: transport.Resolver, Patience: time.Millisecond}
	if _, err := d.DialContext(t.Context(), "tcp", "web.service.consul:80"); !errors.Is(err, api.ErrNoInstance) {
		t.Errorf("connection to a service without instances: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.DialContext(ctx, "tcp", "web.service.consul"); !errors.Is(err, context.Canceled) {
		t.Errorf("connection whose caller has given up: %v", err)
	}
	c, _ = backends(t, "dead")
	if _, _, err := do(t, c, http.MethodGet, webURL, nil); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("request to a dead instance: %v", err)
	}
}

func TestURLsThatAreRefused(t *testing.T) {
	c, _ := backends(t, answer(200))
	for _, u := range []string{"http://web.service.consul:8080/", "ftp://web.service.consul/", "fairlead://web:80/"} {
		if _, _, err := do(t, c, http.MethodPut, u, strings.NewReader("x")); err == nil {
			t.Errorf("%s is accepted", u)
		}
	}
}

// Other names go their usual way.
func TestOtherURLs(t *testing.T) {
	c, transport := backends(t)
	s := httptest.NewServer(http.HandlerFunc(answer(200)))
	defer s.Close()
	if status, _, err := do(t, c, http.MethodGet, s.URL, nil); status != 200 {
		t.Error(status, err)
	}
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := (&api.Dialer{Resolver: transport.Resolver}).DialContext(t.Context(), "tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

// The certificate is to be for the service's name, at whatever address it is.
func TestTLS(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(answer(200)))
	defer s.Close()
	a, agent := newFakeAgent(t)
	addr := s.Listener.Addr().(*net.TCPAddr)
	a.web = []instance{{"a", addr.IP.String(), addr.Port, "passing"}}
	r := api.NewResolver(agent)
	defer r.Close()
	base := s.Client().Transport.(*http.Transport).Clone() // trusts the server, which is example.com
	transport := &api.Transport{Resolver: r, Base: base, Patience: time.Millisecond}
	defer transport.CloseIdleConnections()
	c := &http.Client{Transport: transport}
	if _, _, err := do(t, c, http.MethodGet, "https://web.service.consul/", nil); err == nil || !strings.Contains(err.Error(), "example.com, not web.service.consul") {
		t.Errorf("a certificate for another name: %v", err)
	}
	named := base.Clone()
	named.TLSClientConfig.ServerName = "example.com"
	c.Transport = &api.Transport{Resolver: r, Base: named}
	if status, _, err := do(t, c, http.MethodGet, "https://web.service.consul/", nil); status != 200 {
		t.Error(status, err)
	}
	c.CloseIdleConnections()
}

func TestDialerPassesDeadInstances(t *testing.T) {
	_, transport := backends(t, "dead", answer(200), "dead")
	d := &api.Dialer{Resolver: transport.Resolver}
	for range 10 {
		conn, err := d.DialContext(t.Context(), "tcp", "web.service.consul:1")
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := conn.(interface{ CloseWrite() error }); !ok {
			t.Error("a TCP connection cannot close one direction")
		}
		conn.Close()
	}
}
