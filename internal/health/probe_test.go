package health

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
)

// server answers paths named for what they do.
func server(t *testing.T, start func(http.Handler) *httptest.Server) *httptest.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "fine") })
	mux.HandleFunc("/created", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(201) })
	mux.HandleFunc("/busy", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(429) })
	mux.HandleFunc("/broken", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", 500) })
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/ok", 302) })
	mux.HandleFunc("/loop", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/loop", 302) })
	mux.HandleFunc("/binary", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("a\xff\xfeb")) })
	mux.HandleFunc("/endless", func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := io.WriteString(w, strings.Repeat("x", 4096)); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/hang", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s a=%s ua=%s accept=%s body=%s close=%v", r.Method, r.Host,
			r.Header["A"], r.UserAgent(), r.Header.Get("Accept"), body, r.Close)
	})
	s := start(mux)
	t.Cleanup(s.Close)
	return s
}

func ask(spec model.CheckSpec) (model.Status, string) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return newProbe(spec, Config{MayRun: always})(ctx)
}

func TestHTTP(t *testing.T) {
	s := server(t, httptest.NewServer)
	host := strings.TrimPrefix(s.URL, "http://")
	tests := []struct {
		spec   model.CheckSpec // HTTP is the path only
		status model.Status
		output string // U stands for the server's URL
	}{
		{model.CheckSpec{HTTP: "/ok"}, model.Passing, "HTTP GET U/ok: 200 OK Output: fine"},
		{model.CheckSpec{HTTP: "/created"}, model.Passing, "HTTP GET U/created: 201 Created Output: "},
		{model.CheckSpec{HTTP: "/busy"}, model.Warning, "HTTP GET U/busy: 429 Too Many Requests Output: "},
		{model.CheckSpec{HTTP: "/broken"}, model.Critical, "HTTP GET U/broken: 500 Internal Server Error Output: no\n"},
		{model.CheckSpec{HTTP: "/none"}, model.Critical, "HTTP GET U/none: 404 Not Found Output: 404 page not found\n"},
		{model.CheckSpec{HTTP: "/moved"}, model.Passing, "HTTP GET U/moved: 200 OK Output: fine"},
		{model.CheckSpec{HTTP: "/moved", NoRedirects: true, Method: "HEAD"}, model.Critical, "HTTP HEAD U/moved: 302 Found Output: "},
		{model.CheckSpec{HTTP: "/loop"}, model.Critical, `Get "/loop": stopped after 10 redirects`},
		{model.CheckSpec{HTTP: "/ok", OutputMaxSize: 2}, model.Passing, "HTTP GET U/ok: 200 OK Output: fi"},
		{model.CheckSpec{HTTP: "/binary"}, model.Passing, "HTTP GET U/binary: 200 OK Output: a\uFFFDb"},
		{model.CheckSpec{HTTP: "/endless"}, model.Passing, "HTTP GET U/endless: 200 OK Output: " + strings.Repeat("x", 4096)},
		{
			model.CheckSpec{HTTP: "/echo"}, model.Passing,
			"HTTP GET U/echo: 200 OK Output: GET " + host + " a=[] ua=Fairlead Health Check accept=text/plain, text/*, */* body= close=true",
		},
		{
			model.CheckSpec{
				HTTP: "/echo", Method: "PUT", Body: "b",
				Header: map[string][]string{"a": {"1", "2"}, "Host": {"web.example"}, "user-agent": {"me"}, "Accept": {"x/y"}},
			}, model.Passing,
			"HTTP PUT U/echo: 200 OK Output: PUT web.example a=[1 2] ua=me accept=x/y body=b close=true",
		},
		{model.CheckSpec{HTTP: "/ok", Method: "B AD"}, model.Critical, `net/http: invalid method "B AD"`},
	}
	for _, tt := range tests {
		t.Run(tt.spec.Method+tt.spec.HTTP, func(t *testing.T) {
			spec := tt.spec
			spec.HTTP = s.URL + spec.HTTP
			status, output := ask(spec)
			if want := strings.ReplaceAll(tt.output, "U/", s.URL+"/"); status != tt.status || output != want {
				t.Errorf("%s %q\nwant %s %q", status, output, tt.status, want)
			}
		})
	}
}

func TestHTTPTimeout(t *testing.T) {
	s := server(t, httptest.NewServer)
	status, output := ask(model.CheckSpec{HTTP: s.URL + "/hang", Timeout: 50 * time.Millisecond})
	want := fmt.Sprintf("Get %q: context deadline exceeded (Client.Timeout exceeded while awaiting headers)", s.URL+"/hang")
	if status != model.Critical || output != want {
		t.Errorf("%s %q, want %q", status, output, want)
	}
}

func TestHTTPS(t *testing.T) {
	h2 := func(h http.Handler) *httptest.Server {
		s := httptest.NewUnstartedServer(h)
		s.EnableHTTP2 = true
		s.Config.ErrorLog = quiet
		s.StartTLS()
		return s
	}
	s := server(t, h2)
	status, output := ask(model.CheckSpec{HTTP: s.URL + "/ok", TLSSkipVerify: true})
	if status != model.Passing || output != "HTTP GET "+s.URL+"/ok: 200 OK Output: fine" {
		t.Errorf("unverified: %s %q", status, output)
	}
	status, output = ask(model.CheckSpec{HTTP: s.URL + "/ok"})
	if status != model.Critical || !strings.Contains(output, "tls: failed to verify certificate") {
		t.Errorf("verified: %s %q", status, output)
	}
}

// closedPort returns an address at which nothing listens.
func closedPort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	open, closed := l.Addr().String(), closedPort(t)
	tests := []struct {
		spec   model.CheckSpec
		status model.Status
		output string
	}{
		{model.CheckSpec{TCP: open}, model.Passing, "TCP connect " + open + ": Success"},
		{model.CheckSpec{TCP: closed}, model.Critical, "dial tcp " + closed + ": connect: connection refused"},
		{model.CheckSpec{TCP: "127.0.0.1"}, model.Critical, "dial tcp: address 127.0.0.1: missing port in address"},
		{model.CheckSpec{HTTP: "http://" + closed}, model.Critical, fmt.Sprintf(`Get "http://%s": dial tcp %[1]s: connect: connection refused`, closed)},
		{model.CheckSpec{}, model.Critical, "this check has nothing to ask: no kind of check is set"},
	}
	for _, tt := range tests {
		if status, output := ask(tt.spec); status != tt.status || output != tt.output {
			t.Errorf("%s %q, want %s %q", status, output, tt.status, tt.output)
		}
	}
}

// TestEndWhileAsking: Run must end although a server keeps the question waiting.
func TestEndWhileAsking(t *testing.T) {
	s := server(t, httptest.NewServer)
	l := newLedger()
	r := New(l, Config{Log: quietLog})
	stop := run(t, r)
	r.Set(model.CheckSpec{ID: "c", HTTP: s.URL + "/hang", Interval: time.Hour, Timeout: time.Hour}, "")
	begin := time.Now()
	stop()
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("Run took %v to end", d)
	}
	l.expect(t) // the end of the agent says nothing about the service
}
