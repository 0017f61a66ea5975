package parking_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/parking"
)

// site is a server whose requests to /wait are parked until somebody answers.
type site struct {
	*parking.Lot
	t     *testing.T
	addr  string
	left  atomic.Int32 // connections that ended in the lot
	stop  func()       // ends the lot
	ended atomic.Bool

	mu      sync.Mutex // guards following
	waiting []*request
}

type request struct {
	answer func(...[]byte)
	over   atomic.Int32 // how often it was told
}

// open serves until the test ends. The handler answers what it cannot park itself.
func open(t *testing.T, cfg parking.Config) *site {
	t.Helper()
	s := &site{t: t}
	if cfg.Idle == 0 {
		cfg.Idle = time.Minute
	}
	if cfg.Stall == 0 {
		cfg.Stall = time.Minute
	}
	if cfg.Grace == 0 {
		cfg.Grace = time.Minute
	}
	cfg.Log = slog.New(slog.DiscardHandler)
	cfg.Left = func(net.Conn) { s.left.Add(1) }
	s.Lot = parking.New(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	ran, served := make(chan error, 1), make(chan error, 2)
	open := make(chan struct{})
	go func() { ran <- s.Run(ctx, func() { close(open) }) }()
	<-open
	s.stop = sync.OnceFunc(func() {
		s.ended.Store(true)
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s.addr = ln.Addr().String()
	srv := &http.Server{Handler: http.HandlerFunc(s.serve), ReadHeaderTimeout: time.Minute}
	for _, l := range []net.Listener{ln, s.Lot} {
		go func() { served <- srv.Serve(l) }()
	}
	t.Cleanup(func() {
		s.stop()
		must(t, srv.Close())
		for range 2 {
			if err := <-served; !errors.Is(err, http.ErrServerClosed) {
				t.Error(err)
			}
		}
	})
	return s
}

func (s *site) serve(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/wait" {
		fmt.Fprint(w, "at once")
		return
	}
	wait, err := time.ParseDuration(r.URL.RawQuery)
	if err != nil {
		wait = time.Minute
	}
	// The lot may not be running yet.
	for {
		req := &request{}
		answer, ok := s.Park(w, r, wait, func() { req.over.Add(1) })
		if ok {
			req.answer = answer
			s.mu.Lock()
			s.waiting = append(s.waiting, req)
			s.mu.Unlock()
			return
		}
		if r.Header.Get("X-Refuse") != "" || s.ended.Load() {
			fmt.Fprint(w, "refused")
			return
		}
		runtime.Gosched()
	}
}

// take returns n requests that wait.
func (s *site) take(n int) []*request {
	s.t.Helper()
	var all []*request
	eventually(s.t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.waiting) < n {
			return false
		}
		all, s.waiting = s.waiting[:n:n], s.waiting[n:]
		return true
	})
	return all
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not come true")
		}
	}
}

// client is one raw connection.
type client struct {
	*net.TCPConn
	t  *testing.T
	in *bufio.Reader
}

func (s *site) dial() *client {
	s.t.Helper()
	c, err := net.Dial("tcp", s.addr)
	must(s.t, err)
	s.t.Cleanup(func() { c.Close() })
	must(s.t, c.SetDeadline(time.Now().Add(time.Minute)))
	return &client{c.(*net.TCPConn), s.t, bufio.NewReader(c)}
}

func (c *client) ask(paths ...string) {
	c.t.Helper()
	var b strings.Builder
	for _, p := range paths {
		fmt.Fprintf(&b, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", p)
	}
	_, err := io.WriteString(c, b.String())
	must(c.t, err)
}

// body reads one answer.
func (c *client) body() string {
	c.t.Helper()
	resp, err := http.ReadResponse(c.in, nil)
	must(c.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(c.t, err)
	return string(b)
}

// ended waits for the connection's end and returns what came before.
func (c *client) ended() string {
	c.t.Helper()
	b, err := io.ReadAll(c.in)
	must(c.t, err)
	return string(b)
}

func ok(body string) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

func expect(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%.200q, want %q", got, want)
	}
}

// TestConnectionGoesOn: parked or not, each request of a connection is answered in
// turn.
func TestConnectionGoesOn(t *testing.T) {
	s := open(t, parking.Config{})
	c := s.dial()
	for i := range 20 {
		want := fmt.Sprint("changed ", i)
		c.ask("/wait")
		s.take(1)[0].answer(ok(want))
		expect(t, c.body(), want)
		if i%3 == 0 {
			c.ask("/")
			expect(t, c.body(), "at once")
		}
	}
	if n := s.left.Load(); n != 0 {
		t.Errorf("%d connections ended", n)
	}
}

// TestPipelinedRequests: what a client sends ahead is answered in order, whether it
// came with the first request or while that one waited.
func TestPipelinedRequests(t *testing.T) {
	s := open(t, parking.Config{})
	c := s.dial()
	c.ask("/wait", "/", "/wait", "/wait", "/")
	s.take(1)[0].answer(ok("one"))
	expect(t, c.body(), "one")
	expect(t, c.body(), "at once")
	s.take(1)[0].answer(ok("two"))
	expect(t, c.body(), "two")
	s.take(1)[0].answer(ok("three"))
	expect(t, c.body(), "three")
	expect(t, c.body(), "at once")

	c.ask("/wait")
	four := s.take(1)[0]
	c.ask("/", "/wait")
	four.answer(ok("four"))
	expect(t, c.body(), "four")
	expect(t, c.body(), "at once")
	s.take(1)[0].answer(ok("five"))
	expect(t, c.body(), "five")
}

// TestEndOfWait: a request is over when its time is, when its client stops sending
// and when the lot ends, once in each case, and can be answered still.
func TestEndOfWait(t *testing.T) {
	for name, f := range map[string]func(*site, *client){
		"time":   func(*site, *client) {},
		"client": func(_ *site, c *client) { must(t, c.CloseWrite()) },
		"lot":    func(s *site, _ *client) { go s.stop() },
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, parking.Config{})
			c := s.dial()
			c.ask("/wait?" + map[bool]string{true: "1ms", false: "1h"}[name == "time"])
			r := s.take(1)[0]
			f(s, c)
			eventually(t, func() bool { return r.over.Load() == 1 })
			r.answer(ok("as it was"))
			expect(t, c.body(), "as it was")
			if name != "time" {
				expect(t, c.ended(), "")
				eventually(t, func() bool { return s.Waiting() == 0 && s.left.Load() == 1 })
			}
			s.stop()
			if n := r.over.Load(); n != 1 {
				t.Errorf("told %d times", n)
			}
		})
	}
}

// TestClientsThatVanish leave nothing behind, whether they wait or not.
func TestClientsThatVanish(t *testing.T) {
	const n = 100
	s := open(t, parking.Config{})
	var all []*client
	for range n {
		c := s.dial()
		c.ask("/wait")
		all = append(all, c)
	}
	waiting := s.take(n)
	for _, r := range waiting[:n/2] {
		r.answer(ok("x"))
	}
	for i, c := range all {
		if i%3 == 0 {
			must(t, c.SetLinger(0)) // a reset, and no end
		}
		must(t, c.Close())
	}
	for _, r := range waiting[n/2:] {
		eventually(t, func() bool { return r.over.Load() == 1 })
		r.answer(ok("y"))
	}
	eventually(t, func() bool { return s.Waiting() == 0 && s.left.Load() == n })
}

func TestIdleConnectionEnds(t *testing.T) {
	s := open(t, parking.Config{Idle: time.Millisecond})
	c := s.dial()
	c.ask("/wait")
	s.take(1)[0].answer(ok("x"))
	expect(t, c.body(), "x")
	expect(t, c.ended(), "")
	eventually(t, func() bool { return s.Waiting() == 0 && s.left.Load() == 1 })
}

// TestAnswerInPieces that are larger than what a connection takes at once.
func TestAnswerInPieces(t *testing.T) {
	s := open(t, parking.Config{})
	slow, quick := s.dial(), s.dial()
	slow.ask("/wait", "/")
	late := s.take(1)[0]
	quick.ask("/wait")
	body := strings.Repeat("x", 32<<20)
	head := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", len(body))
	late.answer(head, []byte(body[:len(body)/2]), []byte(body[len(body)/2:]))
	// The client that takes nothing keeps nobody from the next.
	s.take(1)[0].answer(ok("quick"))
	expect(t, quick.body(), "quick")
	if slow.body() != body {
		t.Error("the slow client's answer is not whole")
	}
	expect(t, slow.body(), "at once")
}

func TestClientThatTakesNothing(t *testing.T) {
	s := open(t, parking.Config{Stall: 10 * time.Millisecond})
	c := s.dial()
	c.ask("/wait")
	s.take(1)[0].answer(make([]byte, 32<<20))
	eventually(t, func() bool { return s.Waiting() == 0 && s.left.Load() == 1 })
}

// TestEndIsBounded by the grace.
func TestEndIsBounded(t *testing.T) {
	s := open(t, parking.Config{Grace: time.Millisecond})
	c := s.dial()
	c.ask("/wait")
	r := s.take(1)[0]
	s.stop()
	expect(t, c.ended(), "")
	r.answer(ok("too late"))
	if n := s.left.Load(); n != 1 || s.Waiting() != 0 {
		t.Errorf("%d ended, %d wait", n, s.Waiting())
	}
}

func TestNoAnswer(t *testing.T) {
	s := open(t, parking.Config{})
	c := s.dial()
	c.ask("/wait")
	s.take(1)[0].answer()
	expect(t, c.ended(), "")
}

// TestRefused: what is no plain HTTP/1.1 request without a body stays where it is.
func TestRefused(t *testing.T) {
	s := open(t, parking.Config{})
	c := s.dial()
	c.ask("/wait")
	s.take(1)[0].answer(ok("x")) // the lot is running
	for _, request := range []string{
		"GET /wait HTTP/1.0\r\nConnection: keep-alive\r\nX-Refuse: 1\r\n\r\n",
		"GET /wait HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Refuse: 1\r\n\r\n",
		"GET /wait HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nX-Refuse: 1\r\n\r\nx",
	} {
		c := s.dial()
		_, err := io.WriteString(c, request)
		must(t, err)
		expect(t, c.body(), "refused")
	}
	srv := httptest.NewTLSServer(http.HandlerFunc(s.serve))
	defer srv.Close()
	conn, err := tls.Dial("tcp", srv.Listener.Addr().String(), &tls.Config{RootCAs: srv.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs, ServerName: "example.com"})
	must(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, "GET /wait HTTP/1.1\r\nHost: x\r\nX-Refuse: 1\r\n\r\n")
	must(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	must(t, err)
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	must(t, resp.Body.Close())
	expect(t, string(b), "refused")

	s.stop()
	c = s.dial()
	_, err = io.WriteString(c, "GET /wait HTTP/1.1\r\nHost: x\r\nX-Refuse: 1\r\n\r\n")
	must(t, err)
	expect(t, c.body(), "refused")
}

// TestNoGoroutines: connections that wait have none.
func TestNoGoroutines(t *testing.T) {
	const n = 500
	s := open(t, parking.Config{})
	before := runtime.NumGoroutine()
	var all []*client
	for range n {
		c := s.dial()
		c.ask("/wait")
		all = append(all, c)
	}
	waiting := s.take(n)
	eventually(t, func() bool { return runtime.NumGoroutine() <= before+n/50 })
	answer := ok("all")
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for _, r := range waiting[i*n/4 : (i+1)*n/4] {
				r.answer(answer)
			}
		})
	}
	wg.Wait()
	for _, c := range all {
		expect(t, c.body(), "all")
	}
	if !bytes.Equal(answer, ok("all")) {
		t.Error("what all share was changed")
	}
}

// TestEverythingAtOnce: clients that come, pipeline, leave and time out while
// others are answered and the lot ends.
func TestEverythingAtOnce(t *testing.T) {
	s := open(t, parking.Config{Idle: 5 * time.Millisecond})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			s.mu.Lock()
			all := s.waiting
			s.waiting = nil
			s.mu.Unlock()
			for _, r := range all {
				r.answer(ok("x"))
			}
			select {
			case <-stop:
				if len(all) == 0 {
					return
				}
			default:
			}
			runtime.Gosched()
		}
	})
	var clients sync.WaitGroup
	for i := range 8 {
		clients.Go(func() {
			for j := range 50 {
				conn, err := net.Dial("tcp", s.addr)
				if err != nil {
					t.Error(err)
					return
				}
				c := &client{conn.(*net.TCPConn), t, bufio.NewReader(conn)}
				_ = c.SetDeadline(time.Now().Add(time.Minute))
				_, _ = io.WriteString(c, strings.Repeat("GET /wait?1ms HTTP/1.1\r\nHost: x\r\n\r\n", 1+j%3))
				if (i+j)%2 == 0 {
					_, _ = http.ReadResponse(c.in, nil)
				}
				_ = c.Close()
			}
		})
	}
	clients.Wait()
	eventually(t, func() bool { return s.Waiting() == 0 })
	s.stop()
	close(stop)
	wg.Wait()
}
