// Package parking holds the connections of HTTP requests that wait, at the price
// of a socket, a timer and a small record each: no goroutine, no buffers.
//
// A Lot takes a plain HTTP/1.1 connection from the http.Server while its request
// waits, notices in one event loop for all of them when a client goes away or
// sends more, writes the answer that it is handed, and is itself the listener at
// which the server accepts the connection again as soon as the next request
// arrives. It knows nothing of what is waited for.
//
// All methods may be called concurrently.
package parking

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"
)

// Config is how a Lot treats connections. Everything but Left and Log must be set.
type Config struct {
	// Idle is how long a connection that was answered may stay without another
	// request.
	Idle time.Duration
	// Stall is how long a client may not take anything of its answer.
	Stall time.Duration
	// Grace is how long answers may take at the end.
	Grace time.Duration
	// Left is told of each connection that ended here, and not at the server,
	// which has called its ConnState with StateHijacked; nil for nobody.
	Left func(net.Conn)
	// Log receives why requests cannot be parked; nil means slog.Default.
	Log *slog.Logger
}

// Lot is a place for connections whose requests wait, and the net.Listener at
// which they come back. Park refuses before Run and after its context has ended.
type Lot struct {
	cfg    Config
	back   chan net.Conn
	closed chan struct{} // no more is accepted
	close  func()
	late   sync.WaitGroup // answers that their clients take slowly

	mu      sync.Mutex // guards following
	open    bool       // Park may take connections
	ending  bool       // what is answered ends
	events  *events
	spots   map[uint64]*spot
	last    uint64
	emptied chan struct{} // closed when the last spot goes while ending
}

// New returns a lot that takes connections once Run runs.
func New(cfg Config) *Lot {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	l := &Lot{
		cfg: cfg, back: make(chan net.Conn), closed: make(chan struct{}),
		spots: map[uint64]*spot{}, emptied: make(chan struct{}),
	}
	l.close = sync.OnceFunc(func() { close(l.closed) })
	return l
}

// Run watches the connections until ctx ends, and calls ready when Park takes
// some. At the end each request that waits is over; it returns when all are
// answered, or Grace has passed, and every connection is closed. Accept goes on
// until Close. It is called once.
func (l *Lot) Run(ctx context.Context, ready func()) error {
	ev, err := newEvents()
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.events, l.open = ev, true
	l.mu.Unlock()
	ready()
	watched := make(chan error, 1)
	go func() { watched <- ev.run(l.event) }()
	select {
	case <-ctx.Done():
	case err = <-watched:
		watched <- nil
	}
	l.end()
	err = errors.Join(err, ev.close())
	err = errors.Join(err, <-watched)
	l.late.Wait()
	return err
}

// end sends everybody home.
func (l *Lot) end() {
	l.mu.Lock()
	l.open, l.ending = false, true
	all := make([]*spot, 0, len(l.spots))
	for _, s := range l.spots {
		all = append(all, s)
	}
	if len(all) == 0 {
		close(l.emptied)
	}
	l.mu.Unlock()
	for _, s := range all {
		s.leave()
	}
	grace := time.NewTimer(l.cfg.Grace)
	defer grace.Stop()
	select {
	case <-l.emptied:
		return
	case <-grace.C:
	}
	for _, s := range all {
		s.drop()
	}
}

// Waiting is how many connections are held, including those that were answered
// and whose next request has not come.
func (l *Lot) Waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.spots)
}

// Park takes the connection of a request whose body has been read; ok is false if
// it stays with the server, and nothing has happened then. The handler returns
// without writing.
//
// Once wait is over, the client goes away or the lot ends, whichever comes first,
// over is called, maybe before Park returns; it must not block. The caller calls
// answer once, then or earlier, with the whole answer in pieces; without any, the
// connection is closed. The pieces are not changed, and must not be later:
// many answers may share them. It does not block on the client.
func (l *Lot) Park(w http.ResponseWriter, r *http.Request, wait time.Duration, over func()) (answer func(pieces ...[]byte), ok bool) {
	if r.ProtoMajor != 1 || r.ProtoMinor != 1 || r.Close || r.TLS != nil || r.ContentLength != 0 {
		return nil, false
	}
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); !ok || a == nil {
		return nil, false
	}
	s := l.reserve(over)
	if s == nil {
		return nil, false
	}
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		l.mu.Lock()
		l.forget(s)
		l.mu.Unlock()
		return nil, false
	}
	early, _ := buf.Reader.Peek(buf.Reader.Buffered()) // cannot fail for so many
	early = bytes.Clone(early)
	if b, ok := conn.(interface{ Rest() (net.Conn, []byte) }); ok {
		rest, unread := b.Rest()
		conn, early = rest, append(early, unread...)
	}
	l.admit(s, conn, early, wait)
	return s.answer, true
}

// reserve makes a spot without a connection; nil if there is none.
func (l *Lot) reserve(over func()) *spot {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.open {
		return nil
	}
	l.last++
	s := &spot{lot: l, id: l.last, over: over}
	l.spots[s.id] = s
	return s
}

// admit puts a connection into its spot. One that cannot be watched is answered at
// once and goes back, and no other is taken.
func (l *Lot) admit(s *spot, conn net.Conn, early []byte, wait time.Duration) {
	err := errors.New("a connection is no socket")
	if sc, ok := conn.(syscall.Conn); ok {
		s.raw, err = sc.SyscallConn()
	}
	l.mu.Lock()
	s.conn, s.early, s.more = conn, early, len(early) > 0
	late := s.state == gone
	if !late {
		s.timer = time.AfterFunc(wait, s.leave)
	}
	l.mu.Unlock()
	if late {
		s.shut()
		return
	}
	if err == nil {
		err = l.events.add(s.raw, s.id)
	}
	if err == nil {
		return
	}
	l.mu.Lock()
	l.open, s.more = false, true
	l.mu.Unlock()
	l.cfg.Log.Warn("requests that wait keep their goroutines from now on", "error", err)
	s.leave()
}

// event is told that something has arrived at a connection.
func (l *Lot) event(id uint64) {
	l.mu.Lock()
	s := l.spots[id]
	l.mu.Unlock()
	if s != nil {
		s.arrived()
	}
}

// forget takes a connection out; it reports whether it was there. l.mu is held.
func (l *Lot) forget(s *spot) bool {
	s.state = gone
	if l.spots[s.id] != s {
		return false
	}
	if s.timer != nil {
		s.timer.Stop()
	}
	delete(l.spots, s.id)
	if l.ending && len(l.spots) == 0 {
		close(l.emptied)
	}
	return true
}

// Accept implements net.Listener: it returns the connections whose next request
// has begun to arrive.
func (l *Lot) Accept() (net.Conn, error) {
	select {
	case c := <-l.back:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. What waits goes on waiting until Run's context
// ends.
func (l *Lot) Close() error {
	l.close()
	return nil
}

// Addr implements net.Listener.
func (l *Lot) Addr() net.Addr { return &net.UnixAddr{Name: "parking", Net: "unix"} }

// returned is a connection that the server has had before. Its hooks for new ones
// are called again, and can tell by the method Returned.
type returned struct {
	net.Conn
	early []byte // read already
}

// Returned marks the connection.
func (*returned) Returned() {}

// Rest takes the connection apart: the socket, and what is to be read before it.
// Whatever has bytes in front of a socket has this method.
func (c *returned) Rest() (net.Conn, []byte) { return c.Conn, c.early }

// Read implements io.Reader.
func (c *returned) Read(b []byte) (int, error) {
	if len(c.early) == 0 {
		return c.Conn.Read(b)
	}
	n := copy(b, c.early)
	if c.early = c.early[n:]; len(c.early) == 0 {
		c.early = nil
	}
	return n, nil
}

// CloseWrite is what net/http calls so that a client can read the last answer.
func (c *returned) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

var (
	_ net.Listener = (*Lot)(nil)
	_ io.Reader    = (*returned)(nil)
)
