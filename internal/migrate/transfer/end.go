package transfer

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

const (
	callTimeout = 30 * time.Second
	tries       = 5
	// firstPause is how long the second try waits at least; each further one
	// waits twice as long.
	firstPause = 100 * time.Millisecond
	// maxAnswer bounds one answer, in bytes. The largest there is lists the keys
	// of one folder.
	maxAnswer = 256 << 20
	// workers is how many calls are under way at once, to each end.
	workers = 8
)

// Peer is one end of an import.
type Peer struct {
	Addr   string // host:port or a URL
	Token  string // sent as X-Consul-Token; empty: none
	CAFile string // PEM file of who signed an https:// end's certificate; empty: the system's
}

// end speaks to a peer.
type end struct {
	base  string
	token string
	http  *http.Client
	// filtered: an answer left something out that the token may not see.
	filtered atomic.Bool
}

func newEnd(p Peer) (*end, error) {
	addr := p.Addr
	if !strings.Contains(addr, "://") {
		addr = "http://" + addr
	}
	u, err := url.Parse(addr)
	if err != nil {
		return nil, err
	}
	if u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || u.RawQuery != "" || u.User != nil {
		return nil, fmt.Errorf("%q: want host:port or http://host:port", p.Addr)
	}
	t := &http.Transport{Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: workers}
	if p.CAFile != "" {
		pem, err := os.ReadFile(p.CAFile)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s: no certificate in it", p.CAFile)
		}
		t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	return &end{
		base: strings.TrimSuffix(u.String(), "/"), token: p.Token,
		http: &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse // the token is for this end only
		}},
	}, nil
}

func (e *end) close() { e.http.CloseIdleConnections() }

// statusError is a refusal.
type statusError struct {
	status int
	text   string
}

func (s *statusError) Error() string { return s.text }

func isStatus(err error, status int) bool {
	var s *statusError
	return errors.As(err, &s) && s.status == status
}

// errNoAnswer says that a call was made and its outcome is not known.
var errNoAnswer = errors.New("no answer")

// get reads an object of JSON; found is false for 404.
func (e *end) get(ctx context.Context, path string, q url.Values, into any) (found bool, err error) {
	b, err := e.do(ctx, http.MethodGet, path, q, nil)
	if isStatus(err, http.StatusNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return false, fmt.Errorf("answer of %s: %w", e.base+path, err)
	}
	return true, nil
}

// isConsul refuses what answers and is no Consul, such as a wrong port: its 404s
// would pass for a Consul that holds nothing.
func (e *end) isConsul(ctx context.Context) error {
	const path = "/v1/status/leader" // takes no token
	b, err := e.do(ctx, http.MethodGet, path, nil, nil)
	var leader string
	switch {
	case err == nil:
		err = json.Unmarshal(b, &leader)
	case errors.Is(err, errNoAnswer):
		return fmt.Errorf("ask Consul at %s: %w", e.base, err)
	case !isStatus(err, http.StatusNotFound):
		return nil // the next call says whether it matters
	}
	if err != nil {
		return fmt.Errorf("what answers at %s is no Consul: %s: %w", e.base, path, err)
	}
	return nil
}

// do makes a call, again if it may help: all calls of an import can be repeated.
func (e *end) do(ctx context.Context, method, path string, q url.Values, body []byte) (answer []byte, err error) {
	pause := firstPause
	for try := 1; ; try++ {
		answer, err = e.once(ctx, method, path, q, body)
		if err == nil || try == tries || !again(err) {
			return answer, err
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(err, ctx.Err())
		case <-time.After(pause + rand.N(pause)):
		}
		pause *= 2
	}
}

// again reports whether an error may pass.
func again(err error) bool {
	var s *statusError
	if errors.As(err, &s) {
		return s.status == http.StatusTooManyRequests || s.status >= 500
	}
	return errors.Is(err, errNoAnswer)
}

func (e *end) once(ctx context.Context, method, path string, q url.Values, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	target := e.base + path
	if len(q) > 0 {
		target += "?" + q.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if e.token != "" {
		req.Header.Set("X-Consul-Token", e.token)
	}
	res, err := e.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %s %s: %w", errNoAnswer, method, e.base+path, err)
	}
	if len(b) > maxAnswer {
		return nil, fmt.Errorf("%s %s: the answer is larger than %d bytes", method, e.base+path, maxAnswer)
	}
	if res.Header.Get("X-Consul-Results-Filtered-By-ACLs") == "true" {
		e.filtered.Store(true)
	}
	if res.StatusCode != http.StatusOK {
		text := strings.TrimSpace(string(b[:min(len(b), 500)]))
		return nil, &statusError{res.StatusCode, fmt.Sprintf("%s %s: %s: %s", method, e.base+path, res.Status, text)}
	}
	return b, nil
}
