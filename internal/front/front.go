// Package front answers plain HTTP/1.1 requests at a fraction of what net/http
// takes for one, and leaves all others to it.
//
// A Front accepts a listener's connections. A request that is complete, ordinary
// and quick to answer is given to the same http.Handler that net/http calls, and
// its answer leaves in one write. With anything else the connection goes, bytes
// read so far included, to the http.Server for which the Front is the listener,
// and stays there: what is unusual is refused, limited or served there alone.
// DESIGN.md has what is handed over, and why.
//
// A Front knows nothing of what is asked for. All methods may be called
// concurrently.
package front

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Config is how a Front treats connections. Everything but Takes, Enter, Left and
// Log must be set.
type Config struct {
	// Handler answers, here and at the server behind. As always with net/http, it
	// leaves the http.ResponseWriter alone once it has returned; the request is its
	// own to keep, but the context of it ends with the connection, and not with the
	// request.
	Handler http.Handler
	// Takes says which requests are answered at once: no client is noticed to go
	// away while its handler runs. nil takes all.
	Takes func(*http.Request) bool
	// First is how long a new connection may stay without a request, Idle how long
	// any other, Stall how long a client may not take anything of its answer. They
	// are kept to within an eighth.
	First, Idle, Stall time.Duration
	// Grace is how long requests may take at the end.
	Grace time.Duration
	// Enter is asked about each new connection; one that it does not take goes to
	// the server as it is. Left is told of the end of one that it took and that
	// has not gone to the server.
	Enter func(net.Conn) bool
	Left  func(net.Conn)
	// Log receives panics and failures to accept; nil means slog.Default.
	Log *slog.Logger
}

// Stats are counted since the start.
type Stats struct {
	Answered uint64 // requests that were not the server's
	Handed   uint64 // connections that went to the server
}

// Front is what accepts connections, and the net.Listener at which a server gets
// those that are not for the front.
type Front struct {
	cfg    Config
	back   chan net.Conn
	closed chan struct{} // no more is handed over
	close  func()
	date   atomic.Pointer[date]

	answered, handed atomic.Uint64

	mu     sync.Mutex // guards following
	ending bool
	conns  map[*conn]struct{}
	empty  chan struct{} // closed when the last connection goes while ending
}

// New returns a front that does nothing before Run.
func New(cfg Config) *Front {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Takes == nil {
		cfg.Takes = func(*http.Request) bool { return true }
	}
	if cfg.Enter == nil {
		cfg.Enter = func(net.Conn) bool { return true }
	}
	if cfg.Left == nil {
		cfg.Left = func(net.Conn) {}
	}
	f := &Front{cfg: cfg, back: make(chan net.Conn), closed: make(chan struct{}), conns: map[*conn]struct{}{}, empty: make(chan struct{})}
	f.close = sync.OnceFunc(func() { close(f.closed) })
	return f
}

// Stats returns what has been counted.
func (f *Front) Stats() Stats {
	return Stats{Answered: f.answered.Load(), Handed: f.handed.Load()}
}

// Run accepts connections until ctx ends or the listener fails, and closes the
// listener; the requests' contexts end with ctx. Connections without a request
// are closed then, and it returns when the others have been answered or handed
// over, or with an error when Grace has passed, their connections closed. It is
// called once.
func (f *Front) Run(ctx context.Context, ln net.Listener) error {
	requests, cancel := context.WithCancel(ctx)
	defer cancel()
	accepted := make(chan error, 1)
	go func() { accepted <- f.accept(requests, ln) }()
	select {
	case <-ctx.Done():
		err := ln.Close()
		if aerr := <-accepted; !errors.Is(aerr, net.ErrClosed) {
			err = errors.Join(err, aerr)
		}
		return errors.Join(err, f.end())
	case err := <-accepted:
		cancel()
		_ = ln.Close() // it has failed already
		return errors.Join(err, f.end())
	}
}

// accept starts a goroutine for each connection until the listener fails.
func (f *Front) accept(ctx context.Context, ln net.Listener) error {
	var pause time.Duration
	for {
		sock, err := ln.Accept()
		if err == nil {
			pause = 0
			f.start(ctx, sock)
			continue
		}
		var ne net.Error
		//nolint:staticcheck // that a failure passes, as the lack of descriptors does, is said in no other way
		if !errors.As(err, &ne) || !ne.Temporary() {
			return fmt.Errorf("accept: %w", err)
		}
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		f.cfg.Log.Warn("accept a connection", "error", err, "again_in", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// start has a connection served.
func (f *Front) start(ctx context.Context, sock net.Conn) {
	c := &conn{front: f, sock: sock}
	f.mu.Lock()
	late := f.ending
	if !late {
		f.conns[c] = struct{}{}
	}
	f.mu.Unlock()
	if late {
		_ = sock.Close() // nothing was promised
		return
	}
	go c.run(ctx)
}

// forget takes a connection out that has ended.
func (f *Front) forget(c *conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.conns, c)
	if f.ending && len(f.conns) == 0 {
		close(f.empty)
	}
}

// end waits for the connections to end.
func (f *Front) end() error {
	f.mu.Lock()
	f.ending = true
	for c := range f.conns {
		c.rouse()
	}
	if len(f.conns) == 0 {
		close(f.empty)
	}
	f.mu.Unlock()
	grace := time.NewTimer(f.cfg.Grace)
	defer grace.Stop()
	select {
	case <-f.empty:
		return nil
	case <-grace.C:
	}
	f.close()
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.conns {
		_ = c.sock.Close() // its goroutine says what comes of it
	}
	if n := len(f.conns); n > 0 {
		return fmt.Errorf("%d requests were not answered within %v", n, f.cfg.Grace)
	}
	return nil
}

// Accept implements net.Listener: it returns the connections that are not for the
// front.
func (f *Front) Accept() (net.Conn, error) {
	select {
	case c := <-f.back:
		return c, nil
	case <-f.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. The front goes on until Run's context ends; from
// now on it closes what it would hand over.
func (f *Front) Close() error {
	f.close()
	return nil
}

// Addr implements net.Listener.
func (f *Front) Addr() net.Addr { return &net.UnixAddr{Name: "front", Net: "unix"} }

// date is the value of the Date header in one second.
type date struct {
	second int64
	text   string
}

// today is the Date header's value now.
func (f *Front) today(now time.Time) string {
	second := now.Unix()
	if d := f.date.Load(); d != nil && d.second == second {
		return d.text
	}
	d := &date{second: second, text: now.UTC().Format(http.TimeFormat)}
	f.date.Store(d)
	return d.text
}

var _ net.Listener = (*Front)(nil)
