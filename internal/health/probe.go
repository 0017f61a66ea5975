package health

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/fairlead-net/fairlead/internal/model"
)

// dialFunc opens a connection; host names are looked up unless it says otherwise.
type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// newProbe returns the question that a check asks.
func newProbe(spec model.CheckSpec, cfg Config) probe {
	dial := dialFunc((&net.Dialer{}).DialContext)
	if spec.NetNS != "" {
		dial = nsDialer(spec.NetNS)
	}
	if spec.RunsPrograms() && (cfg.MayRun == nil || !cfg.MayRun(spec)) {
		return func(context.Context) (model.Status, string) { return model.Critical, scriptsOff }
	}
	switch spec.Type() {
	case "http":
		return httpProbe(spec, dial)
	case "tcp":
		return tcpProbe(spec, dial)
	case "udp":
		return udpProbe(spec, dial)
	case "grpc":
		return grpcProbe(spec, dial)
	case "h2ping":
		return h2Probe(spec, dial)
	case "script":
		return scriptProbe(spec)
	case "docker":
		return dockerProbe(spec, cfg.DockerSocket)
	case "os_service":
		return unitProbe(spec)
	}
	return func(context.Context) (model.Status, string) {
		return model.Critical, "this check has nothing to ask: no kind of check is set"
	}
}

// httpProbe asks for a URL: 2xx is passing, 429 warning, anything else critical.
//
// Every question has a connection of its own, so that a server that has stopped
// listening is not hidden by an old connection. Proxies of the agent's
// environment are not used: the question is whether this instance answers.
func httpProbe(spec model.CheckSpec, dial dialFunc) probe {
	return func(ctx context.Context) (model.Status, string) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel() // ends what the transport still does in the background
		transport := newTransport(ctx, spec, dial)
		defer transport.CloseIdleConnections()
		client := &http.Client{Transport: transport, Timeout: timeout(spec)}
		if spec.NoRedirects {
			client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		}
		req, err := newRequest(ctx, spec)
		if err != nil {
			return model.Critical, err.Error()
		}
		resp, err := client.Do(req)
		if err != nil {
			return model.Critical, err.Error()
		}
		defer resp.Body.Close()
		// Only so much is read: a body without end must not keep the check busy.
		// The status has been said already, so a body that breaks off is only
		// shorter.
		body, _ := io.ReadAll(io.LimitReader(resp.Body, int64(outputMax(spec))))
		text := strings.ToValidUTF8(string(body), "\uFFFD")
		return httpStatus(resp.StatusCode),
			fmt.Sprintf("HTTP %s %s: %s Output: %s", req.Method, spec.HTTP, resp.Status, text)
	}
}

// tlsConfig is what a check asks for; without a name of the server it is the
// host's that is dialled.
func tlsConfig(spec model.CheckSpec) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         spec.TLSServerName,
		InsecureSkipVerify: spec.TLSSkipVerify,
	}
}

// newTransport returns the transport of one question. Its connections are dialled
// under the question's ctx: net/http lets a dial outlive the request it was for.
func newTransport(ctx context.Context, spec model.CheckSpec, dial dialFunc) *http.Transport {
	return &http.Transport{
		DialContext: func(_ context.Context, network, address string) (net.Conn, error) {
			return dial(ctx, network, address)
		},
		DisableKeepAlives:      true,
		ForceAttemptHTTP2:      true,
		TLSClientConfig:        tlsConfig(spec),
		TLSHandshakeTimeout:    timeout(spec),
		MaxResponseHeaderBytes: 64 << 10,
	}
}

func newRequest(ctx context.Context, spec model.CheckSpec) (*http.Request, error) {
	method := spec.Method
	if method == "" {
		method = http.MethodGet
	}
	req, err := http.NewRequestWithContext(ctx, method, spec.HTTP, strings.NewReader(spec.Body))
	if err != nil {
		return nil, err
	}
	for name, values := range spec.Header {
		for _, v := range values {
			req.Header.Add(name, v)
		}
	}
	if host := req.Header.Get("Host"); host != "" {
		req.Host = host // net/http takes it from here only
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", "Fairlead Health Check")
	}
	if req.Header.Get("Accept") == "" {
		req.Header.Set("Accept", "text/plain, text/*, */*")
	}
	return req, nil
}

func httpStatus(code int) model.Status {
	switch {
	case code >= 200 && code <= 299:
		return model.Passing
	case code == http.StatusTooManyRequests:
		return model.Warning
	}
	return model.Critical
}
