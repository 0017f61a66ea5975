package consulapi_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-net/fairlead/internal/consulapi"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// listen serves h within limits at a free port of the loopback.
func listen(t *testing.T, l consulapi.Limits, h http.Handler) (addr string) {
	t.Helper()
	if l.Log == nil {
		l.Log = quiet()
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	serveOn(t, consulapi.NewGuard(l).Server(h), ln)
	return ln.Addr().String()
}

func serveOn(t *testing.T, srv *http.Server, ln net.Listener) {
	srv.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	t.Cleanup(func() {
		must(t, srv.Close())
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
}

// status reads an answer's first line.
func status(c net.Conn) string {
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(line)
}

// TestManyWatchersOfOneHost: by default nothing refuses the 201st, nor the 300th.
func TestManyWatchersOfOneHost(t *testing.T) {
	const watchers = 300
	w := newWorld()
	w.put("kv/a", state.Change{KV: &model.KV{Key: "a"}})
	var asked atomic.Int32
	all := make(chan struct{})
	h := w.handler()
	addr := listen(t, consulapi.Limits{}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) == watchers {
			close(all)
		}
		h.ServeHTTP(w, r)
	}))
	after := w.st.Snapshot().Index()

	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	answers := make(chan string, watchers)
	for range watchers {
		go func() {
			resp, err := client.Get(fmt.Sprintf("http://%s/v1/kv/a?index=%d&wait=5m", addr, after))
			if err != nil {
				answers <- err.Error()
				return
			}
			defer resp.Body.Close()
			_, err = io.Copy(io.Discard, resp.Body)
			answers <- fmt.Sprint(resp.StatusCode, " ", err)
		}()
	}
	// All of them wait at once: one more is served beside them.
	<-all
	resp, err := client.Get("http://" + addr + "/v1/status/leader")
	must(t, err)
	must(t, resp.Body.Close())
	if len(answers) > 0 {
		t.Fatalf("a watcher was sent home: %s", <-answers)
	}
	w.put("kv/a", state.Change{KV: &model.KV{Key: "a", Value: []byte("1")}})
	for range watchers {
		if got := <-answers; got != "200 <nil>" {
			t.Fatal(got)
		}
	}
}

func TestConnectionsPerClient(t *testing.T) {
	const limit, spare = 3, 16
	addr := listen(t, consulapi.Limits{ConnsPerClient: limit, Log: quiet()}, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	dial := func() net.Conn {
		c, err := net.Dial("tcp", addr)
		must(t, err)
		t.Cleanup(func() { c.Close() })
		must(t, c.SetDeadline(time.Now().Add(10*time.Second)))
		return c
	}
	ask := func(c net.Conn) (string, string) {
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			return err.Error(), ""
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return err.Error(), ""
		}
		b, _ := io.ReadAll(resp.Body)
		return fmt.Sprintf("%d close=%v", resp.StatusCode, resp.Close), string(b)
	}
	var held []net.Conn
	for range limit {
		c := dial()
		if got, _ := ask(c); got != "200 close=false" {
			t.Fatalf("within the limit: %s", got)
		}
		held = append(held, c)
	}
	got, body := ask(dial())
	if got != "429 close=true" || body != "Your IP is issuing too many concurrent connections, please rate limit your calls\n" {
		t.Errorf("over the limit: %s %q", got, body)
	}
	// Far over it nothing is said.
	for range spare {
		held = append(held, dial())
	}
	if _, err := dial().Read(make([]byte, 1)); err == nil {
		t.Error("far over the limit: something was said")
	}
	// Who closes a connection may open another.
	for _, c := range held {
		must(t, c.Close())
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		c, err := net.Dial("tcp", addr)
		must(t, err)
		must(t, c.SetDeadline(deadline))
		got, _ := ask(c)
		must(t, c.Close())
		if got == "200 close=false" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("still refused: %s", got)
		}
	}
}

func TestRatePerClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := consulapi.NewGuard(consulapi.Limits{RatePerClient: 2, Log: quiet()})
		h := g.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		ask := func(from, path string) *httptest.ResponseRecorder {
			r := httptest.NewRequest(http.MethodGet, path, nil)
			r.RemoteAddr = from
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, r)
			return rec
		}
		spend := func(from string) (taken int) {
			for ask(from, "/v1/x").Code == http.StatusOK {
				if taken++; taken > 100 {
					t.Fatalf("%s is not limited", from)
				}
			}
			return taken
		}
		if n := spend("10.0.0.1:1"); n != 4 {
			t.Errorf("%d at once, want 4", n)
		}
		rec := ask("10.0.0.1:2", "/v1/x")
		if rec.Code != http.StatusTooManyRequests || rec.Header().Get("Retry-After") != "1" || !strings.HasPrefix(rec.Body.String(), "rate limit exceeded") {
			t.Errorf("%d %v %s", rec.Code, rec.Header(), rec.Body)
		}
		if rec := ask("10.0.0.1:1", "/metrics"); rec.Code != http.StatusOK {
			t.Errorf("metrics: %d", rec.Code)
		}
		if n := spend("10.0.0.2:1"); n != 4 {
			t.Errorf("another client: %d at once, want 4", n)
		}
		time.Sleep(time.Second) // fake
		if n := spend("10.0.0.1:3"); n != 2 {
			t.Errorf("%d a second later, want 2", n)
		}
		spend("[2001:db8::1]:1")
		if n := spend("[2001:db8::2]:1"); n != 0 {
			t.Errorf("a neighbour in the same /64: %d", n)
		}
		if n := spend("[2001:db8:0:1::2]:1"); n != 4 {
			t.Errorf("another /64: %d", n)
		}
		if n := spend("[::ffff:10.0.0.1]:1"); n != 0 {
			t.Errorf("the same address, written otherwise: %d", n)
		}
		for range 10 {
			if rec := ask("@", "/v1/x"); rec.Code != http.StatusOK {
				t.Errorf("a client without an address: %d", rec.Code)
			}
		}
	})
}

// TestRatesOfManyClients: what is remembered of clients is bounded.
func TestRatesOfManyClients(t *testing.T) {
	g := consulapi.NewGuard(consulapi.Limits{RatePerClient: 1, Log: quiet()})
	h := g.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	r := httptest.NewRequest(http.MethodGet, "/v1/x", nil)
	for i := range 50_000 {
		r.RemoteAddr = fmt.Sprintf("10.%d.%d.%d:1", i>>16, i>>8&255, i&255)
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
	if n := g.Remembered(); n > 20_000 {
		t.Errorf("%d clients are remembered", n)
	}
}

func TestWritesInFlight(t *testing.T) {
	reached, goOn := make(chan struct{}), make(chan struct{})
	g := consulapi.NewGuard(consulapi.Limits{MaxWrites: 1, Log: quiet()})
	h := g.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(reached)
			<-goOn
		}
	}))
	ask := func(method, path string) *httptest.ResponseRecorder {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(method, path, nil))
		return rec
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		ask(http.MethodPut, "/slow")
	}()
	<-reached
	if rec := ask(http.MethodDelete, "/"); rec.Code != http.StatusServiceUnavailable || rec.Header().Get("Retry-After") != "1" || !strings.Contains(rec.Body.String(), "try again later") {
		t.Errorf("a second write: %d %v %s", rec.Code, rec.Header(), rec.Body)
	}
	if rec := ask(http.MethodGet, "/"); rec.Code != http.StatusOK {
		t.Errorf("a read: %d", rec.Code)
	}
	close(goOn)
	<-done
	if rec := ask(http.MethodPut, "/"); rec.Code != http.StatusOK {
		t.Errorf("a write afterwards: %d", rec.Code)
	}
}

func TestHugeHeader(t *testing.T) {
	nothing := func(http.ResponseWriter, *http.Request) {}
	inMemory(t, consulapi.Limits{HeaderBytes: 8 << 10}, nothing, func(t *testing.T, p *pipes) {
		c := p.dial()
		header := "GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n"
		go func() { _, _ = io.WriteString(c, header) }()
		b, err := io.ReadAll(c)
		must(t, err)
		if !strings.HasPrefix(string(b), "HTTP/1.1 431 ") {
			t.Errorf("%s", b)
		}
		must(t, c.Close())
	})
}

// TestPanics: a handler that panics costs its client an answer, and the agent
// nothing.
func TestPanics(t *testing.T) {
	var logged bytes.Buffer
	var mu sync.Mutex
	log := slog.New(slog.NewTextHandler(&locked{&logged, &mu}, nil))
	addr := listen(t, consulapi.Limits{Log: log}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Consul-Index", "7")
		switch r.URL.Path {
		case "/early":
			panic("oh no")
		case "/late":
			fmt.Fprint(w, strings.Repeat("x", 10<<10))
			panic(errors.New("too late"))
		case "/abort":
			panic(http.ErrAbortHandler)
		}
	}))
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	ask := func(path string) (int, string, error) {
		resp, err := client.Get("http://" + addr + path)
		if err != nil {
			return 0, "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if resp.Header.Get("X-Consul-Index") != "" && resp.StatusCode != http.StatusOK {
			t.Errorf("%s: the failed answer has an index", path)
		}
		return resp.StatusCode, string(b), err
	}
	if code, body, err := ask("/early"); code != 500 || !strings.HasPrefix(body, "Internal error") || err != nil {
		t.Errorf("early: %d %s %v", code, body, err)
	}
	if _, _, err := ask("/late"); err == nil {
		t.Error("late: the answer looks whole")
	}
	if _, _, err := ask("/abort"); err == nil {
		t.Error("abort: there is an answer")
	}
	if code, _, err := ask("/"); code != 200 || err != nil {
		t.Errorf("afterwards: %d %v", code, err)
	}
	mu.Lock()
	defer mu.Unlock()
	if got := logged.String(); !strings.Contains(got, "oh no") || !strings.Contains(got, "too late") || strings.Count(got, "panicked") != 2 {
		t.Errorf("log: %s", got)
	}
}

// locked is a writer for several goroutines.
type locked struct {
	w  io.Writer
	mu *sync.Mutex
}

func (l *locked) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}
