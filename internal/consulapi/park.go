package consulapi

import (
	"bytes"
	"fmt"
	"net/http"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
)

// Lot takes the connections of queries that wait, so that a query costs no
// goroutine.
type Lot interface {
	// Park takes a request's connection over unless ok is false. over is called
	// once the wait is, the client has gone or the server ends, maybe at once;
	// answer is to be called with the pieces of the whole answer, then or before,
	// and closes the connection without any. Neither blocks.
	Park(w http.ResponseWriter, r *http.Request, wait time.Duration, over func()) (answer func(pieces ...[]byte), ok bool)
}

const (
	// sendBatch is how many answers are not worth another goroutine to send them.
	sendBatch = 64
	// joinBytes is the size of a body that is better copied behind its header than
	// sent by a system call of its own.
	joinBytes = 64 << 10
)

// waits are the queries whose connections are in the lot: those that get the very
// same bytes as answer share a flock.
type waits struct {
	mu     sync.Mutex // guards following, and what is in the flocks as said there
	flocks map[flockKey]*flock
}

// flockKey is all that the bytes of an answer depend on, beside the state.
type flockKey struct {
	what, token        string
	stale, consistent  bool
	cached, revalidate bool
	zip                bool
}

// flock is watched by one goroutine, which ends with its last waiter.
type flock struct {
	call  *call // this and the next are the goroutine's own
	route route
	serve endpoint
	kick  chan struct{} // holds one

	// Guarded by waits.mu.
	waiters []*waiter
	index   model.Index // of the goroutine's last look
}

// waiter is one query in the lot. It is guarded by waits.mu until it is due.
type waiter struct {
	flock  *flock // nil before it is in one
	over   bool   // to be answered, changed or not
	answer func(pieces ...[]byte)
	index  model.Index
	start  time.Time
}

// park has a query go on in the lot, which then answers it; false if it cannot.
func (h *handler) park(c *call, rt route, serve endpoint) bool {
	if h.Lot == nil || !rt.shared || c.r.Method != http.MethodGet {
		return false
	}
	w := &waiter{index: c.index, start: c.start}
	answer, ok := h.Lot.Park(c.w, c.r, c.lasts(), func() { h.waits.end(w) })
	if !ok {
		return false
	}
	key := flockKey{
		what: shelfName(c.r.URL.Path, c.r.URL.RawQuery), token: token(c),
		stale: c.stale, consistent: c.consistent, cached: c.cached, revalidate: c.revalidate, zip: acceptsGzip(c.r.Header.Get("Accept-Encoding")),
	}
	if f := h.waits.add(key, w, answer, func() *flock { return h.flock(c, rt, serve) }); f != nil {
		go h.tend(key, f)
	}
	return true
}

// flock makes a flock of the first query in it. What belongs to the query's
// connection is left out.
func (h *handler) flock(c *call, rt route, serve endpoint) *flock {
	r := &http.Request{
		Method: c.r.Method, URL: c.r.URL, Proto: c.r.Proto, ProtoMajor: c.r.ProtoMajor, ProtoMinor: c.r.ProtoMinor,
		Header: c.r.Header, Host: c.r.Host, RemoteAddr: c.r.RemoteAddr, RequestURI: c.r.RequestURI, Body: http.NoBody,
	}
	own := &call{h: http.Header{}, r: r, params: c.params, rest: c.rest, authority: c.authority, begun: true, options: c.options}
	return &flock{call: own, route: rt, serve: serve, kick: make(chan struct{}, 1)}
}

// add puts a waiter into its flock, which is returned if it is a new one.
func (ws *waits) add(key flockKey, w *waiter, answer func(pieces ...[]byte), create func() *flock) (created *flock) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	f := ws.flocks[key]
	if f == nil {
		f = create()
		ws.flocks[key], created = f, f
	}
	w.flock, w.answer = f, answer
	f.waiters = append(f.waiters, w)
	if w.over || f.index > w.index {
		// The flock has seen already what this one has not.
		f.nudge()
	}
	return created
}

// end has a waiter answered as things are.
func (ws *waits) end(w *waiter) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	w.over = true
	if w.flock != nil {
		w.flock.nudge()
	}
}

func (f *flock) nudge() {
	select {
	case f.kick <- struct{}{}:
	default:
	}
}

// tend looks, answers those for whom it is news, and waits, until nobody is left.
func (h *handler) tend(key flockKey, f *flock) {
	defer h.abandon(key, f)
	for {
		l := h.look(f.call, f.route, f.serve)
		due, last := h.waits.due(key, f, l)
		h.answer(f, l, due)
		if last {
			return
		}
		select {
		case <-l.marks[0].Changed:
		case <-l.second():
		case <-f.kick:
		}
	}
}

// due takes those out of a flock who are to be answered with what was seen; the
// flock ends with its last.
func (ws *waits) due(key flockKey, f *flock, l *look) (due []*waiter, last bool) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	f.index = l.index()
	stay := f.waiters[:0]
	for _, w := range f.waiters {
		if l.marks == nil || w.over || w.index < f.index {
			due = append(due, w)
		} else {
			stay = append(stay, w)
		}
	}
	clear(f.waiters[len(stay):])
	f.waiters = stay
	if len(stay) == 0 {
		delete(ws.flocks, key)
	}
	return due, len(stay) == 0
}

// abandon ends a flock whose endpoint panicked: only the end of their connections
// can tell its waiters.
func (h *handler) abandon(key flockKey, f *flock) {
	p := recover()
	if p == nil {
		return
	}
	h.log.Error("a request's handler panicked", "method", f.call.r.Method, "path", f.call.r.URL.Path, "panic", p, "stack", string(debug.Stack()))
	due, _ := h.waits.due(key, f, &look{})
	send(due)
}

// answer sends what was seen to those who are due. The index that each is told is
// not less than the one it came with.
func (h *handler) answer(f *flock, l *look, due []*waiter) {
	groups := map[model.Index][]*waiter{}
	for _, w := range due {
		var index model.Index
		if l.marks != nil {
			index = max(w.index, l.index())
		}
		groups[index] = append(groups[index], w)
	}
	for index, group := range groups {
		sh := h.sheet(f, l, index)
		send(group, sh.pieces()...)
		for _, w := range group {
			h.logRequest(f.call.r, sh.status, w.start)
		}
	}
}

// send hands an answer to all of a group, on all processors if they are many.
func send(group []*waiter, pieces ...[]byte) {
	workers := min(runtime.GOMAXPROCS(0), 1+len(group)/sendBatch)
	if workers == 1 {
		for _, w := range group {
			w.answer(pieces...)
		}
		return
	}
	var wg sync.WaitGroup
	for part := range slices.Chunk(group, (len(group)+workers-1)/workers) {
		wg.Go(func() {
			for _, w := range part {
				w.answer(pieces...)
			}
		})
	}
	wg.Wait()
}

// sheet writes an answer as the server would have.
func (h *handler) sheet(f *flock, l *look, index model.Index) *sheet {
	sh := &sheet{h: f.call.h.Clone()}
	h.setCommon(sh.h)
	c := *f.call
	c.h = sh.h
	a, err := l.answer, l.err
	if l.marks != nil {
		a, err = h.finish(&c, l, index)
	}
	if err != nil {
		a = h.failure(sh, c.r, err)
	}
	h.write(sh, c.r, a)
	return sh
}

// sheet is an answer before it is sent.
type sheet struct {
	h      http.Header
	status int
	body   []byte
}

// Header implements http.ResponseWriter.
func (s *sheet) Header() http.Header { return s.h }

// WriteHeader implements http.ResponseWriter.
func (s *sheet) WriteHeader(status int) { s.status = status }

// Write implements http.ResponseWriter; it is called once, with the whole body,
// which is shared.
func (s *sheet) Write(b []byte) (int, error) {
	s.body = b
	return len(b), nil
}

// pieces are the bytes of the answer, in the order in which net/http has them.
func (s *sheet) pieces() [][]byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %03d %s\r\n", s.status, http.StatusText(s.status))
	_ = s.h.Write(&b) // a write to a buffer cannot fail
	fmt.Fprintf(&b, "Date: %s\r\n", time.Now().UTC().Format(http.TimeFormat))
	b.WriteString("\r\n")
	if len(s.body) > joinBytes {
		return [][]byte{b.Bytes(), s.body}
	}
	b.Write(s.body)
	return [][]byte{b.Bytes()}
}
