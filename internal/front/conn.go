package front

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// patience is how long the rest of a request may take before the server waits
	// for it.
	patience = time.Second
	// inSize is what a connection reads at first, and holds while it is idle.
	inSize = 4 << 10
	// linger is how long a client may take to read an answer that ends its
	// connection before its unread bytes take the answer with them.
	linger = 500 * time.Millisecond
)

// ins are what idle connections read into.
var ins = sync.Pool{New: func() any { return new([inSize]byte) }}

// States of a connection.
const (
	idle  int32 = iota // no byte of a request has come
	busy               // a request is read, answered or handed over
	ended              // whoever has come here from idle has closed it
)

// conn is one connection. It is its own goroutine's, but for what is said.
type conn struct {
	front *Front
	sock  net.Conn
	state atomic.Int32 // anybody's

	in       []byte        // what has been read
	like     *http.Request // what all its requests have in common
	out      response
	readBy   time.Time // the socket's deadlines
	writeBy  time.Time
	accepted time.Time
	last     time.Time // when the last request was answered
}

// run serves the connection until it ends or is handed over.
func (c *conn) run(ctx context.Context) {
	f := c.front
	defer f.forget(c)
	if !f.cfg.Enter(c.sock) {
		c.pass(c.sock)
		return
	}
	ctx, cancel := context.WithCancel(context.WithValue(ctx, http.LocalAddrContextKey, c.sock.LocalAddr()))
	defer cancel()
	c.like = (&http.Request{Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, RemoteAddr: c.sock.RemoteAddr().String()}).WithContext(ctx)
	c.out = response{conn: c, header: http.Header{}}
	first := ins.Get().(*[inSize]byte)
	defer ins.Put(first)
	c.accepted = time.Now()
	for {
		c.in = first[:0]
		if !c.arrive() {
			break
		}
		r, in := c.request()
		if r == nil {
			c.hand()
			return
		}
		if !c.answer(r, in) {
			break
		}
		c.last = time.Now()
		if !c.state.CompareAndSwap(busy, idle) || c.over() {
			break
		}
	}
	_ = c.sock.Close() // whatever was to be sent has been
	f.cfg.Left(c.sock)
}

// over reports whether the front ends. One that begins to end now finds the
// connection idle.
func (c *conn) over() bool { return c.like.Context().Err() != nil }

// rouse closes a connection that is idle; anybody may call it.
func (c *conn) rouse() {
	if c.state.CompareAndSwap(idle, ended) {
		_ = c.sock.Close() // its reader notices
	}
}

// arrive waits for the first bytes of a request; false if none will come.
func (c *conn) arrive() bool {
	if c.last.IsZero() {
		c.readUntil(c.accepted, c.front.cfg.First)
	} else {
		c.readUntil(c.last, c.front.cfg.Idle)
	}
	n, err := c.sock.Read(c.in[:cap(c.in)])
	c.in = c.in[:n]
	return err == nil && n > 0 && c.state.CompareAndSwap(idle, busy)
}

// request reads the rest of a request and its body; nil if it is for the server.
// All errors are, since it knows what to say.
func (c *conn) request() (*http.Request, *body) {
	for waiting := false; ; {
		h, need, v := parse(c.in)
		switch v {
		case whole:
			in := &body{left: c.in[h.size:]}
			r, ok := h.request(c.like, in)
			if !ok || !c.front.cfg.Takes(r) {
				return nil, nil
			}
			return r, in
		case odd:
			return nil, nil
		}
		if !waiting {
			waiting, c.readBy = true, time.Now().Add(patience)
			_ = c.sock.SetReadDeadline(c.readBy) // it shows at the next read
		}
		if !c.more(max(need, len(c.in)+1)) {
			return nil, nil
		}
	}
}

// more reads until there are so many bytes.
func (c *conn) more(need int) bool {
	if need > cap(c.in) {
		c.in = append(make([]byte, 0, max(need, maxHead)), c.in...)
	}
	for len(c.in) < need {
		n, err := c.sock.Read(c.in[len(c.in):cap(c.in)])
		if c.in = c.in[:len(c.in)+n]; err != nil {
			return false
		}
	}
	return true
}

// answer has a request answered; false if the connection ends with it.
func (c *conn) answer(r *http.Request, in *body) (again bool) {
	defer func() {
		p := recover()
		_ = in.Close() // it cannot fail
		if p == nil {
			return
		}
		again = false
		c.out.drop()
		if err, ok := p.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
			c.front.cfg.Log.Error("a request's handler panicked", "method", r.Method, "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
		}
	}()
	c.front.answered.Add(1)
	c.out.begin()
	c.front.cfg.Handler.ServeHTTP(&c.out, r)
	return c.out.finish()
}

// readUntil sets the deadline for what is to come within d of since, or keeps one
// that is a little later: setting one is not cheap.
func (c *conn) readUntil(since time.Time, d time.Duration) {
	if at := since.Add(d); c.readBy.Before(at) || c.readBy.After(at.Add(d/8)) {
		c.readBy = at.Add(d / 8)
		_ = c.sock.SetReadDeadline(c.readBy) // it shows at the next read
	}
}

// writeUntil is readUntil for what is to be taken within d of now.
func (c *conn) writeUntil(now time.Time, d time.Duration) {
	if at := now.Add(d); c.writeBy.Before(at) || c.writeBy.After(at.Add(d/8)) {
		c.writeBy = at.Add(d / 8)
		_ = c.sock.SetWriteDeadline(c.writeBy) // it shows at the next write
	}
}

// goodbye lets the client read the last answer: closing a connection on which
// more has arrived would reset it.
func (c *conn) goodbye() {
	half, ok := c.sock.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	if c.sock.SetReadDeadline(time.Now().Add(linger)) == nil {
		_, _ = io.CopyN(io.Discard, c.sock, maxBody) // until it has gone, or long enough
	}
}

// hand gives the connection to the server, with what has been read.
func (c *conn) hand() {
	_ = c.sock.SetDeadline(time.Time{}) // it shows at the next read
	if !c.pass(&handed{Conn: c.sock, early: bytes.Clone(c.in)}) {
		c.front.cfg.Left(c.sock)
	}
}

// pass has the server accept a connection; one that it does not is closed.
func (c *conn) pass(sock net.Conn) bool {
	select {
	case c.front.back <- sock:
		c.front.handed.Add(1)
		return true
	case <-c.front.closed:
		_ = sock.Close() // the server has ended
		return false
	}
}

// handed is a connection whose first bytes have been read.
type handed struct {
	net.Conn
	early []byte
}

// Returned marks a connection that Config.Enter has seen: it is not new.
func (*handed) Returned() {}

// Rest takes the connection apart: the socket, and what is to be read before it.
func (c *handed) Rest() (net.Conn, []byte) { return c.Conn, c.early }

// Read implements io.Reader.
func (c *handed) Read(b []byte) (int, error) {
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
func (c *handed) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// SyscallConn implements syscall.Conn while nothing is left of what was read
// before: who looks at the socket would not see it.
func (c *handed) SyscallConn() (syscall.RawConn, error) {
	if sc, ok := c.Conn.(syscall.Conn); ok && len(c.early) == 0 {
		return sc.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}
