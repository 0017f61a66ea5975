package front

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// house is a front with its server behind it, both with the same handler.
type house struct {
	t    *testing.T
	f    *Front
	addr string
	back atomic.Int32 // requests that the server behind has had
	end  func() error // ends the front
}

type backKey struct{}

func open(t *testing.T, cfg Config, h http.HandlerFunc) *house {
	t.Helper()
	for _, d := range []*time.Duration{&cfg.First, &cfg.Idle, &cfg.Stall, &cfg.Grace} {
		if *d == 0 {
			*d = time.Minute
		}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &house{t: t}
	cfg.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Context().Value(backKey{}) != nil {
			s.back.Add(1)
		}
		h(w, r)
	})
	s.f = New(cfg)
	srv := &http.Server{Handler: cfg.Handler, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	srv.ConnContext = func(ctx context.Context, _ net.Conn) context.Context { return context.WithValue(ctx, backKey{}, true) }
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	ran, served := make(chan error, 1), make(chan error, 1)
	go func() { ran <- s.f.Run(ctx, ln) }()
	go func() { served <- srv.Serve(s.f) }()
	ended := false
	s.end = func() error {
		cancel()
		ended = true
		return <-ran
	}
	t.Cleanup(func() {
		if !ended {
			must(t, s.end())
		}
		must(t, srv.Close())
		if err := <-served; !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// line is a client's end of a connection.
type line struct {
	net.Conn
	t  *testing.T
	in *bufio.Reader
}

func (s *house) dial() *line {
	s.t.Helper()
	c, err := net.Dial("tcp", s.addr)
	must(s.t, err)
	s.t.Cleanup(func() { c.Close() })
	must(s.t, c.SetDeadline(time.Now().Add(time.Minute)))
	return &line{c, s.t, bufio.NewReader(c)}
}

func (l *line) send(s string) {
	l.t.Helper()
	_, err := io.WriteString(l, s)
	must(l.t, err)
}

// receive reads an answer and its body.
func (l *line) receive() (*http.Response, string) {
	l.t.Helper()
	resp, err := http.ReadResponse(l.in, nil)
	must(l.t, err)
	b, err := io.ReadAll(resp.Body)
	must(l.t, err)
	return resp, string(b)
}

// gone waits for the end of the connection.
func (l *line) gone() {
	l.t.Helper()
	if b, err := io.ReadAll(l.in); len(b) > 0 || errors.Is(err, context.DeadlineExceeded) {
		l.t.Fatalf("%q instead of the end, %v", b, err)
	}
}

func get(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n" }

// odds is get, in a way that only the server behind answers.
func odds(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: x\r\nTE: trailers\r\n\r\n" }

func TestOneConnectionManyRequests(t *testing.T) {
	s := open(t, Config{}, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		fmt.Fprint(w, r.Method, r.URL, " ", r.RemoteAddr == "", " ", string(b), " ", err)
	})
	c := s.dial()
	for i := range 10 {
		c.send(fmt.Sprintf("PUT /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", i))
		if _, got := c.receive(); got != fmt.Sprintf("PUT/%d false abc <nil>", i) {
			t.Fatal(got)
		}
	}
	if n := s.f.Stats(); n != (Stats{Answered: 10}) || s.back.Load() != 0 {
		t.Errorf("%+v, %d behind", n, s.back.Load())
	}
}

// TestHandedOver: the server behind gets the whole request and those that follow,
// and refuses what is malformed.
func TestHandedOver(t *testing.T) {
	s := open(t, Config{Takes: func(r *http.Request) bool { return r.URL.RawQuery == "" }}, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		fmt.Fprint(w, r.RequestURI, len(b), err)
	})
	big := strings.Repeat("a", 3*maxBody)
	for _, c := range []struct{ request, want string }{
		{get("/a?wait"), "200 /a?wait0 <nil>"},
		{"GET /a HTTP/1.1\r\nHost: x\r\nTE: trailers\r\n\r\n", "200 /a0 <nil>"},
		{"PUT /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "200 /a3 <nil>"},
		{fmt.Sprintf("PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(big), big), fmt.Sprintf("200 /a%d <nil>", len(big))},
		{"GET /a%zz HTTP/1.1\r\nHost: x\r\n\r\n", "400 400 Bad Request"},
		{"GET /a HTTP/1.1\r\n\r\n", "400 400 Bad Request: missing required Host header"},
		{"GET /a HTTP/1.1\r\nHost: x\r\nContent-Length : 3\r\n\r\nabc", "400 400 Bad Request: invalid header name"},
	} {
		l := s.dial()
		l.send(c.request)
		resp, got := l.receive()
		if got = fmt.Sprint(resp.StatusCode, " ", got); got != c.want {
			t.Errorf("%.60q: %q instead of %q", c.request, got, c.want)
		}
		if resp.StatusCode != http.StatusOK {
			l.gone()
			continue
		}
		before := s.back.Load()
		l.send(get("/again"))
		if _, got := l.receive(); got != "/again0 <nil>" || s.back.Load() != before+1 {
			t.Errorf("again: %q", got)
		}
	}
	if n := s.f.Stats(); n.Answered != 0 || n.Handed != 7 {
		t.Errorf("%+v", n)
	}
}

// TestPipelinedRequests are answered in their order, by whomever.
func TestPipelinedRequests(t *testing.T) {
	s := open(t, Config{}, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL) })
	c := s.dial()
	c.send(get("/1"))
	c.receive()
	c.send(get("/2") + get("/3") + get("/4"))
	for _, want := range []string{"/2", "/3", "/4"} {
		if _, got := c.receive(); got != want {
			t.Errorf("%q instead of %q", got, want)
		}
	}
}

// TestRequestInPieces is answered at the front; if it takes too long, behind.
func TestRequestInPieces(t *testing.T) {
	s := open(t, Config{}, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprint(w, len(b), slices.Max(b) == slices.Min(b))
	})
	c := s.dial()
	const size = 50_000
	c.send("PUT /a HTTP/1.1\r\nHost")
	c.send(fmt.Sprintf(": x\r\nContent-Length: %d\r", size))
	c.send("\n\r\n")
	c.send(strings.Repeat("a", size/2))
	c.send(strings.Repeat("a", size/2))
	if _, got := c.receive(); got != fmt.Sprint(size, true) {
		t.Error(got)
	}
	// Slower than anybody waits for.
	c.send("PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\na")
	until(t, func() bool { return s.f.Stats().Handed == 1 })
	c.send("a")
	if _, got := c.receive(); got != fmt.Sprint(2, true) || s.back.Load() != 1 {
		t.Error(got)
	}
}

func until(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not come true")
		}
	}
}

// TestRequestsAreTheHandlersToKeep: nothing of a request changes later, and its
// body ends with the answer.
func TestRequestsAreTheHandlersToKeep(t *testing.T) {
	var kept []*http.Request
	s := open(t, Config{}, func(_ http.ResponseWriter, r *http.Request) { kept = append(kept, r) })
	c := s.dial()
	for i := range 3 {
		c.send(fmt.Sprintf("PUT /%d HTTP/1.1\r\nHost: h%d\r\nX-A: %d\r\nContent-Length: 1\r\n\r\n%d", i, i, i, i))
		c.receive()
	}
	must(t, s.end())
	for i, r := range kept {
		if r.URL.Path != fmt.Sprint("/", i) || r.Host != fmt.Sprint("h", i) || r.Header.Get("X-A") != fmt.Sprint(i) {
			t.Errorf("request %d: %+v", i, r)
		}
		if n, err := r.Body.Read(make([]byte, 1)); n != 0 || !errors.Is(err, http.ErrBodyReadAfterClose) {
			t.Errorf("body %d: %d, %v", i, n, err)
		}
		if r.Context().Err() == nil {
			t.Errorf("request %d goes on", i)
		}
	}
}

func TestPanics(t *testing.T) {
	var log syncBuffer
	s := open(t, Config{Log: slog.New(slog.NewTextHandler(&log, nil))}, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "half of it")
		if r.URL.Path == "/abort" {
			panic(http.ErrAbortHandler)
		}
		panic("no way")
	})
	for _, path := range []string{"/abort", "/panic"} {
		c := s.dial()
		c.send(get(path))
		c.gone()
	}
	must(t, s.end())
	if got := log.String(); strings.Count(got, "panicked") != 1 || !strings.Contains(got, "no way") || !strings.Contains(got, "front_test.go") {
		t.Error(got)
	}
}

// TestEnd closes idle connections at once, and has the others answered.
func TestEnd(t *testing.T) {
	inside, answer := make(chan struct{}), make(chan struct{})
	s := open(t, Config{}, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(inside)
			<-r.Context().Done()
			<-answer
		}
		fmt.Fprint(w, "done")
	})
	fresh, used, slow := s.dial(), s.dial(), s.dial()
	used.send(get("/"))
	used.receive()
	slow.send(get("/slow"))
	<-inside
	ended := make(chan error, 1)
	go func() { ended <- s.end() }()
	fresh.gone()
	used.gone()
	close(answer)
	resp, got := slow.receive()
	if got != "done" || !resp.Close {
		t.Errorf("%q, close %v", got, resp.Close)
	}
	slow.gone()
	must(t, <-ended)
	if c, err := net.Dial("tcp", s.addr); err == nil {
		c.Close()
		t.Error("somebody still listens")
	}
}

// TestEndWithoutPatience says that requests were not answered.
func TestEndWithoutPatience(t *testing.T) {
	inside, leave := make(chan struct{}), make(chan struct{})
	s := open(t, Config{Grace: time.Millisecond}, func(http.ResponseWriter, *http.Request) {
		close(inside)
		<-leave
	})
	c := s.dial()
	c.send(get("/"))
	<-inside
	if err := s.end(); err == nil || !strings.Contains(err.Error(), "1 requests were not answered") {
		t.Error(err)
	}
	c.gone()
	close(leave)
}

// TestIdleConnectionsEnd, as do those that never ask.
func TestIdleConnectionsEnd(t *testing.T) {
	var left atomic.Int32
	s := open(t, Config{First: time.Millisecond, Left: func(net.Conn) { left.Add(1) }}, func(http.ResponseWriter, *http.Request) {})
	s.dial().gone()
	s = open(t, Config{Idle: time.Millisecond, Left: func(net.Conn) { left.Add(1) }}, func(http.ResponseWriter, *http.Request) {})
	c := s.dial()
	c.send(get("/"))
	c.receive()
	c.gone()
	until(t, func() bool { return left.Load() == 2 })
}

// TestClientThatTakesNothing holds nobody up for longer than Stall.
func TestClientThatTakesNothing(t *testing.T) {
	failed := make(chan error, 1)
	s := open(t, Config{Stall: 10 * time.Millisecond}, func(w http.ResponseWriter, _ *http.Request) {
		piece := make([]byte, 1<<20)
		for {
			if _, err := w.Write(piece); err != nil {
				failed <- err
				return
			}
		}
	})
	s.dial().send(get("/"))
	var ne net.Error
	if err := <-failed; !errors.As(err, &ne) || !ne.Timeout() {
		t.Error(err)
	}
}

// TestClientGone ends its connection, whether or not it was answered.
func TestClientGone(t *testing.T) {
	var left atomic.Int32
	s := open(t, Config{Left: func(net.Conn) { left.Add(1) }}, func(http.ResponseWriter, *http.Request) {})
	must(t, s.dial().Close())
	c := s.dial()
	c.send(get("/"))
	must(t, c.Close())
	c = s.dial()
	c.send(get("/"))
	c.receive()
	must(t, c.Close())
	until(t, func() bool { return left.Load() == 3 })
}

// TestEnter: who is not let in goes to the server, unmarked and not counted.
func TestEnter(t *testing.T) {
	var left atomic.Int32
	s := open(t, Config{Enter: func(net.Conn) bool { return false }, Left: func(net.Conn) { left.Add(1) }}, func(http.ResponseWriter, *http.Request) {})
	c := s.dial()
	c.send(get("/"))
	c.receive()
	must(t, c.Close())
	must(t, s.end())
	if s.back.Load() != 1 || left.Load() != 0 {
		t.Errorf("%d requests behind, %d left", s.back.Load(), left.Load())
	}
}

// TestServerGone: what cannot be handed over is closed.
func TestServerGone(t *testing.T) {
	var left atomic.Int32
	s := open(t, Config{Left: func(net.Conn) { left.Add(1) }}, func(http.ResponseWriter, *http.Request) {})
	must(t, s.f.Close())
	c := s.dial()
	c.send(odds("/"))
	c.gone()
	until(t, func() bool { return left.Load() == 1 })
}

// flaky is a listener that fails in passing, and then for good.
type flaky struct {
	net.Listener
	n atomic.Int32
}

type passing struct{}

func (passing) Error() string   { return "in passing" }
func (passing) Timeout() bool   { return false }
func (passing) Temporary() bool { return true }

func (l *flaky) Accept() (net.Conn, error) {
	switch l.n.Add(1) {
	case 1, 2:
		return nil, passing{}
	case 3:
		return l.Listener.Accept()
	}
	return nil, io.ErrUnexpectedEOF
}

func TestListenerFails(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	c, err := net.Dial("tcp", ln.Addr().String())
	must(t, err)
	defer c.Close()
	f := New(Config{Handler: http.NotFoundHandler(), First: time.Minute, Idle: time.Minute, Stall: time.Minute, Grace: time.Minute, Log: slog.New(slog.DiscardHandler)})
	l := &flaky{Listener: ln}
	if err := f.Run(t.Context(), l); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	if n := l.n.Load(); n != 4 {
		t.Errorf("accepted %d times", n)
	}
	if b, _ := io.ReadAll(c); len(b) > 0 {
		t.Errorf("%q", b)
	}
}

// syncBuffer is a bytes.Buffer for many.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
