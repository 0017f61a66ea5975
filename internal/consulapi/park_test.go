package consulapi_test

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/consulapi"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/parking"
	"github.com/fairlead-net/fairlead/internal/state"
)

// lotted is a server whose queries wait in a lot.
type lotted struct {
	t    *testing.T
	api  http.Handler
	addr string
	lot  *parking.Lot
	end  func()
}

// serveLot serves a world's API on the loopback until the test ends.
func serveLot(t *testing.T, l consulapi.Limits, deps consulapi.Deps) *lotted {
	t.Helper()
	l.Log = quiet()
	g := consulapi.NewGuard(l)
	lot := parking.New(parking.Config{Idle: time.Minute, Stall: time.Minute, Grace: time.Minute, Left: g.Left, Log: quiet()})
	deps.Lot = lot
	s := &lotted{t: t, lot: lot, api: consulapi.New(consulapi.Config{Log: quiet()}, deps)}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s.addr = ln.Addr().String()
	srv := g.Server(s.api)
	ctx, cancel := context.WithCancel(t.Context())
	ran, back := make(chan error, 1), make(chan error, 1)
	open := make(chan struct{})
	go func() { ran <- lot.Run(ctx, func() { close(open) }) }()
	<-open // else the first queries wait at the server
	go func() { back <- srv.Serve(lot) }()
	t.Cleanup(func() {
		if err := <-back; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	serveOn(t, srv, ln)
	s.end = func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
		ran <- nil
	}
	t.Cleanup(s.end)
	return s
}

func (s *lotted) dial() *line {
	s.t.Helper()
	return dialLine(s.t, s.addr)
}

// parked waits until so many queries are in the lot.
func (s *lotted) parked(queries int) {
	s.t.Helper()
	until(s.t, func() bool { n, _ := consulapi.Parked(s.api); return n == queries })
}

func until(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not come true")
		}
	}
}

// line is a connection on which answers can be seen as they are.
type line struct {
	net.Conn
	t  *testing.T
	in *bufio.Reader
}

func dialLine(t *testing.T, addr string) *line {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	must(t, c.SetDeadline(time.Now().Add(time.Minute)))
	return &line{c, t, bufio.NewReader(c)}
}

func (c *line) ask(url string, headers ...string) {
	c.t.Helper()
	request := "GET " + url + " HTTP/1.1\r\nHost: x\r\n"
	for _, h := range headers {
		request += h + "\r\n"
	}
	_, err := io.WriteString(c, request+"\r\n")
	must(c.t, err)
}

// answer reads one answer: all its bytes, and what they say.
func (c *line) answer() (raw string, status int, index, body string) {
	c.t.Helper()
	var seen strings.Builder
	resp, err := http.ReadResponse(bufio.NewReader(oneByOne{io.TeeReader(c.in, &seen)}), nil)
	must(c.t, err)
	defer resp.Body.Close()
	in := resp.Body
	if resp.Header.Get("Content-Encoding") == "gzip" {
		in, err = gzip.NewReader(resp.Body)
		must(c.t, err)
	}
	b, err := io.ReadAll(in)
	must(c.t, err)
	_, err = io.Copy(io.Discard, resp.Body)
	must(c.t, err)
	return seen.String(), resp.StatusCode, resp.Header.Get("X-Consul-Index"), string(b)
}

// oneByOne reads nothing ahead.
type oneByOne struct{ io.Reader }

func (o oneByOne) Read(b []byte) (int, error) { return o.Reader.Read(b[:min(len(b), 1)]) }

var dateLine = regexp.MustCompile(`\r\nDate: [^\r]+`)

// TestParkedAnswers are those that the server gives itself, byte for byte: when
// something changes and when the wait is over, in all forms.
func TestParkedAnswers(t *testing.T) {
	for _, c := range []struct{ name, url, header, change string }{
		{"json", "/v1/kv/dir/?recurse", "", "dir/a"},
		{"pretty", "/v1/kv/dir/?recurse&pretty", "", "dir/a"},
		{"compressed", "/v1/kv/dir/?recurse", "Accept-Encoding: gzip", "dir/a"},
		{"raw", "/v1/kv/dir/a?raw", "", "dir/a"},
		{"large", "/v1/kv/large?raw", "", "large"},
		{"not there", "/v1/kv/none/?recurse", "", "none/a"},
		{"stale", "/v1/health/service/web?stale", "", "web"},
		{"consistent", "/v1/health/service/web?consistent", "", "web"},
		{"cached", "/v1/health/service/web?cached", "", "web"},
		{"cached, again", "/v1/health/service/web?cached", "Cache-Control: must-revalidate", "web"},
		{"filter", "/v1/catalog/service/web?filter=Node==n1", "", "web"},
		{"services", "/v1/catalog/services?", "", "web"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld()
			change := func(what string, i int) {
				if what != "web" {
					w.put("kv/"+what, state.Change{KV: &model.KV{Key: what, Value: []byte(strings.Repeat("x", len(what)*len(what)*10_000+i))}})
					return
				}
				_, err := w.Register(t.Context(), model.Registration{Instance: model.Instance{Node: "n1", ID: "web", Service: "web", Port: i, Tags: []string{fmt.Sprint(i)}}})
				must(t, err)
			}
			for _, what := range []string{"dir/a", "large", "web"} {
				change(what, 1)
			}
			s := serveLot(t, consulapi.Limits{}, w.deps())
			here := s.dial()
			there := dialLine(t, listen(t, consulapi.Limits{}, consulapi.New(consulapi.Config{Log: quiet()}, w.deps())))
			both := func(url string) (parked, held string, index string) {
				here.ask(url, headers(c.header)...)
				there.ask(url, headers(c.header)...)
				held, _, _, _ = there.answer()
				parked, _, index, _ = here.answer()
				return dateLine.ReplaceAllString(parked, ""), dateLine.ReplaceAllString(held, ""), index
			}
			_, _, index := both(c.url)
			// The index of what came last is newer than that of most things.
			newest := w.st.Snapshot().Index()
			if parked, held, _ := both(fmt.Sprintf("%s&index=%d&wait=10ms", c.url, newest)); parked != held {
				t.Errorf("at the end of the wait:\n%.500s\nbut without the lot\n%.500s", parked, held)
			}
			here.ask(c.url+"&index="+fmt.Sprint(newest), headers(c.header)...)
			s.parked(1)
			there.ask(c.url+"&index="+fmt.Sprint(newest), headers(c.header)...)
			change(c.change, 2)
			parked, _, after, _ := here.answer()
			held, _, _, _ := there.answer()
			if parked, held := dateLine.ReplaceAllString(parked, ""), dateLine.ReplaceAllString(held, ""); parked != held {
				t.Errorf("after a change:\n%.500s\nbut without the lot\n%.500s", parked, held)
			}
			if !dateLine.MatchString(parked) {
				t.Error("no date")
			}
			if after == index {
				t.Errorf("the index is still %s", index)
			}
		})
	}
}

func headers(h string) []string {
	if h == "" {
		return nil
	}
	return []string{h}
}

// TestManyParked: equal queries have one goroutine and one answer for all of them.
func TestManyParked(t *testing.T) {
	const n = 2000
	w := newWorld()
	at := w.put("kv/k", state.Change{KV: &model.KV{Key: "k", Value: []byte("one")}})
	seen := &counted{}
	deps := w.deps()
	deps.Authority = seen
	s := serveLot(t, consulapi.Limits{}, deps)
	before := runtime.NumGoroutine()
	var all []*line
	for range n {
		c := s.dial()
		c.ask(fmt.Sprintf("/v1/kv/k?raw&index=%d", at))
		all = append(all, c)
	}
	s.parked(n)
	if _, flocks := consulapi.Parked(s.api); flocks != 1 {
		t.Errorf("%d flocks", flocks)
	}
	until(t, func() bool { return runtime.NumGoroutine() < before+n/50 })
	next := w.put("kv/k", state.Change{KV: &model.KV{Key: "k", Value: []byte("two")}})
	for _, c := range all {
		if _, status, index, body := c.answer(); status != 200 || index != fmt.Sprint(next) || body != "two" {
			t.Fatalf("%d, index %s: %q", status, index, body)
		}
	}
	if seen.asked != 2 {
		t.Errorf("%d looks at the state, want 2", seen.asked)
	}
	if n, flocks := consulapi.Parked(s.api); n+flocks != 0 {
		t.Errorf("%d queries and %d flocks are left", n, flocks)
	}
}

// TestParkedAtDifferentIndexes: each is answered when there is news for it.
func TestParkedAtDifferentIndexes(t *testing.T) {
	w := newWorld()
	at := w.put("kv/k", state.Change{KV: &model.KV{Key: "k"}})
	s := serveLot(t, consulapi.Limits{}, w.deps())
	ahead, now := s.dial(), s.dial()
	w.put("kv/other", state.Change{KV: &model.KV{Key: "other"}})
	later := w.put("kv/other", state.Change{KV: &model.KV{Key: "other"}})
	ahead.ask(fmt.Sprintf("/v1/kv/k?index=%d", later))
	now.ask(fmt.Sprintf("/v1/kv/k?index=%d", at))
	s.parked(2)
	news := w.put("kv/k", state.Change{KV: &model.KV{Key: "k"}})
	for _, c := range []*line{ahead, now} {
		if _, _, index, _ := c.answer(); index != fmt.Sprint(news) {
			t.Errorf("index %s, want %d", index, news)
		}
	}
}

// revoked lets nobody in any more once it is set, or fails.
type revoked struct{ now, panics atomic.Bool }

func (r *revoked) Resolve(secret string) (acl.Authorizer, error) {
	switch {
	case r.panics.Load():
		panic("oh no")
	case r.now.Load() && secret == "s3":
		return nil, errors.New("ACL not found")
	}
	return acl.AllowAll(), nil
}

// TestParkedWithToken: a query is answered for what its token may see when there
// is news, and a token that is gone sees nothing.
func TestParkedWithToken(t *testing.T) {
	w := newWorld()
	at := w.put("kv/k", state.Change{KV: &model.KV{Key: "k", Value: []byte("one")}})
	auth := &revoked{}
	deps := w.deps()
	deps.Authority = auth
	s := serveLot(t, consulapi.Limits{}, deps)
	mine, others := s.dial(), s.dial()
	mine.ask(fmt.Sprintf("/v1/kv/k?raw&index=%d", at), "X-Consul-Token: s3")
	others.ask(fmt.Sprintf("/v1/kv/k?raw&index=%d", at), "X-Consul-Token: s4")
	s.parked(2)
	auth.now.Store(true)
	at = w.put("kv/k", state.Change{KV: &model.KV{Key: "k", Value: []byte("two")}})
	if _, status, index, body := mine.answer(); status != http.StatusForbidden || index != "" || body != "ACL not found" {
		t.Errorf("%d, index %q: %s", status, index, body)
	}
	if _, status, _, body := others.answer(); status != http.StatusOK || body != "two" {
		t.Errorf("another's: %d %s", status, body)
	}

	others.ask(fmt.Sprintf("/v1/kv/k?raw&index=%d", at))
	s.parked(1)
	auth.panics.Store(true)
	w.put("kv/k", state.Change{KV: &model.KV{Key: "k"}})
	if b, err := io.ReadAll(others.in); len(b) > 0 || err != nil {
		t.Errorf("a panic was answered: %q, %v", b, err)
	}
	if n, flocks := consulapi.Parked(s.api); n+flocks != 0 {
		t.Errorf("%d queries and %d flocks are left", n, flocks)
	}
}

// TestParkedConnectionsCount towards their client's limit once, however often they
// were parked, until they end.
func TestParkedConnectionsCount(t *testing.T) {
	w := newWorld()
	s := serveLot(t, consulapi.Limits{ConnsPerClient: 2}, w.deps())
	a, b := s.dial(), s.dial()
	for range 30 {
		at := w.put("kv/k", state.Change{KV: &model.KV{Key: "k"}})
		for _, c := range []*line{a, b} {
			c.ask(fmt.Sprintf("/v1/kv/k?index=%d", at))
		}
		s.parked(2)
		w.put("kv/k", state.Change{KV: &model.KV{Key: "k"}})
		for _, c := range []*line{a, b} {
			if _, status, _, _ := c.answer(); status != http.StatusOK {
				t.Fatalf("status %d", status)
			}
		}
	}
	ask := func() int {
		c := s.dial()
		defer c.Close()
		c.ask("/v1/status/leader")
		_, status, _, _ := c.answer()
		return status
	}
	if status := ask(); status != http.StatusTooManyRequests {
		t.Errorf("beside idle ones: %d", status)
	}
	b.ask(fmt.Sprintf("/v1/kv/k?index=%d", w.st.Snapshot().Index()))
	s.parked(1)
	if status := ask(); status != http.StatusTooManyRequests {
		t.Errorf("beside one that waits: %d", status)
	}
	must(t, b.Close())
	until(t, func() bool { return ask() == http.StatusOK })
	s.parked(0)
	must(t, a.Close())
	until(t, func() bool { return s.lot.Waiting() == 0 })
}

// TestEndOfParked: queries are answered as things are when the agent ends.
func TestEndOfParked(t *testing.T) {
	w := newWorld()
	at := w.put("kv/k", state.Change{KV: &model.KV{Key: "k", Value: []byte("v")}})
	s := serveLot(t, consulapi.Limits{}, w.deps())
	var all []*line
	for range 20 {
		c := s.dial()
		c.ask(fmt.Sprintf("/v1/kv/k?raw&index=%d", at))
		all = append(all, c)
	}
	s.parked(len(all))
	s.end()
	for _, c := range all {
		if _, status, index, body := c.answer(); status != 200 || index != fmt.Sprint(at) || body != "v" {
			t.Errorf("%d, index %s: %q", status, index, body)
		}
		if _, err := c.in.ReadByte(); !errors.Is(err, io.EOF) {
			t.Errorf("the connection goes on: %v", err)
		}
	}
	s.parked(0)
}
