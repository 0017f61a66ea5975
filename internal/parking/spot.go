package parking

import (
	"errors"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// piece is how much of an answer a client must take within Stall.
const piece = 64 << 10

// state is where a spot's request is.
type state uint8

const (
	waiting   state = iota // for its answer
	answering              // the answer is being written
	idle                   // answered, and the next request has not come
	gone                   // the spot no longer owns the connection
)

// spot is one connection in the lot.
type spot struct {
	lot *Lot
	id  uint64
	raw syscall.RawConn // nil if the connection has none

	// Guarded by the lot's mutex; conn, early and timer are set once.
	conn  net.Conn
	early []byte // of the next request, read by the server
	timer *time.Timer
	over  func() // nil once it has been called
	state state
	more  bool // the next request has begun to arrive
	left  bool // the client sends nothing any more
}

// leave ends the wait for an answer, or for the next request.
func (s *spot) leave() {
	s.lot.mu.Lock()
	if s.state == idle {
		s.lot.mu.Unlock()
		s.drop()
		return
	}
	over := s.over
	s.over = nil
	s.lot.mu.Unlock()
	if over != nil {
		over()
	}
}

// arrived finds out what an event means.
func (s *spot) arrived() {
	more, left := s.peek()
	s.lot.mu.Lock()
	s.more, s.left = s.more || more, s.left || left
	idling := s.state == idle
	s.lot.mu.Unlock()
	switch {
	case more && idling:
		s.giveBack()
	case left:
		s.leave()
	}
}

// peek looks at what a client has sent without taking it.
func (s *spot) peek() (more, left bool) {
	err := s.raw.Read(func(fd uintptr) bool {
		var b [1]byte
		for {
			n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
			switch {
			case errors.Is(err, unix.EINTR):
				continue
			case errors.Is(err, unix.EAGAIN):
			case err != nil || n == 0:
				left = true
			default:
				more = true
			}
			return true
		}
	})
	return more, left || err != nil
}

// answer writes what the client takes at once, and leaves the rest to a goroutine.
func (s *spot) answer(pieces ...[]byte) {
	s.lot.mu.Lock()
	if s.state != waiting {
		s.lot.mu.Unlock()
		return
	}
	s.state, s.over = answering, nil
	s.lot.mu.Unlock()
	if len(pieces) == 0 {
		s.drop()
		return
	}
	if s.raw == nil {
		s.finish(pieces)
		return
	}
	for i, p := range pieces {
		n, err := s.write(p)
		if err != nil {
			s.drop()
			return
		}
		if n < len(p) {
			s.finish(append([][]byte{p[n:]}, pieces[i+1:]...))
			return
		}
	}
	s.answered()
}

// write writes as much as can be without waiting.
func (s *spot) write(b []byte) (n int, err error) {
	failed := s.raw.Write(func(fd uintptr) bool {
		for n < len(b) {
			var m int
			m, err = unix.Write(int(fd), b[n:])
			n += max(m, 0)
			switch {
			case errors.Is(err, unix.EINTR):
				err = nil
			case errors.Is(err, unix.EAGAIN):
				err = nil
				return true
			case err != nil:
				return true
			}
		}
		return true
	})
	if err == nil {
		err = failed
	}
	return n, err
}

// finish goes on to write an answer as its client takes it.
func (s *spot) finish(rest [][]byte) {
	s.lot.mu.Lock()
	defer s.lot.mu.Unlock()
	if s.state != gone { // else Run may have seen the last one end
		s.lot.late.Go(func() { s.trickle(rest) })
	}
}

func (s *spot) trickle(rest [][]byte) {
	for _, b := range rest {
		for len(b) > 0 {
			_ = s.conn.SetWriteDeadline(time.Now().Add(s.lot.cfg.Stall)) // fails if the connection is closed, and so does the write
			n, err := s.conn.Write(b[:min(len(b), piece)])
			if err != nil {
				s.drop()
				return
			}
			b = b[n:]
		}
	}
	_ = s.conn.SetWriteDeadline(time.Time{}) // as above
	s.answered()
}

// answered keeps the connection for its next request, which may be there already.
func (s *spot) answered() {
	s.lot.mu.Lock()
	end := s.left || s.lot.ending || s.state != answering
	more := s.more
	if !end && !more {
		s.state = idle
		s.timer.Reset(s.lot.cfg.Idle)
	}
	s.lot.mu.Unlock()
	switch {
	case end:
		s.drop()
	case more:
		s.giveBack()
	}
}

// giveBack hands the connection to the server.
func (s *spot) giveBack() {
	s.lot.mu.Lock()
	mine := s.lot.forget(s)
	s.lot.mu.Unlock()
	if !mine {
		return
	}
	if s.raw != nil {
		s.lot.events.remove(s.raw)
	}
	c := &returned{Conn: s.conn, early: s.early}
	select {
	case s.lot.back <- c:
	case <-s.lot.closed:
		s.shut()
	}
}

// drop closes the connection, whatever it is at.
func (s *spot) drop() {
	s.lot.mu.Lock()
	mine := s.lot.forget(s) && s.conn != nil
	s.lot.mu.Unlock()
	if mine {
		s.shut()
	}
}

func (s *spot) shut() {
	_ = s.conn.Close() // nothing is lost with it
	if s.lot.cfg.Left != nil {
		s.lot.cfg.Left(s.conn)
	}
}
