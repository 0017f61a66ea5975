package dns

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	miekg "github.com/miekg/dns"
)

const (
	// idleTimeout is how long a connection may stay open without a query, and
	// messageTimeout how long one message may take to come or go.
	idleTimeout    = 10 * time.Second
	messageTimeout = 5 * time.Second
	// maxPipelined bounds the queries of one connection that are answered at a
	// time; further ones are not read meanwhile.
	maxPipelined = 64
	// acceptPause is how long to wait when the process has no file descriptors
	// left.
	acceptPause = 50 * time.Millisecond
)

// stream answers queries that come over connections, each as soon as its answer is
// there (RFC 7766, section 7).
type stream struct {
	answer func(ctx context.Context, wire []byte, asker netip.Addr) []byte
	conns  sync.WaitGroup
}

// serve takes connections from ln until ctx ends or ln dies; then all of them have
// been closed.
func (s *stream) serve(ctx context.Context, ln net.Listener) error {
	defer s.conns.Wait()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	for {
		c, err := ln.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				c.Close()
			}
			return nil
		case err == nil:
			s.conns.Go(func() { s.converse(ctx, c) })
		case errors.Is(err, net.ErrClosed):
			return err
		default: // too many files, or a connection that went before it was taken
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
		}
	}
}

// converse answers the queries of one connection until it idles, fails or is
// closed. What was asked before the end is still answered.
func (s *stream) converse(ctx context.Context, c net.Conn) {
	defer c.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	asker := addrPort(c.RemoteAddr()).Addr()
	var (
		queries sync.WaitGroup
		open    atomic.Int32 // queries without an answer
		writing sync.Mutex
		slots   = make(chan struct{}, maxPipelined)
	)
	defer queries.Wait()
	r := bufio.NewReaderSize(c, 1<<11)
	for {
		wire, err := readMessage(c, r)
		if errors.Is(err, os.ErrDeadlineExceeded) && len(wire) == 0 && open.Load() > 0 {
			continue // it waits for us
		}
		if err != nil {
			return
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		open.Add(1)
		queries.Go(func() {
			defer func() { open.Add(-1); <-slots }()
			reply := s.answer(ctx, wire, asker)
			if reply == nil {
				return
			}
			writing.Lock()
			defer writing.Unlock()
			_ = c.SetWriteDeadline(time.Now().Add(messageTimeout))
			framed := append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(reply)), uint16(len(reply))), reply...)
			if _, err := c.Write(framed); err != nil {
				cancel() // half a message: nothing after it would make sense
			}
		})
	}
}

// readMessage reads one message with its length in front. With the error, the
// message is empty if nothing of it has come.
func readMessage(c net.Conn, r *bufio.Reader) ([]byte, error) {
	if r.Buffered() == 0 {
		if err := c.SetReadDeadline(time.Now().Add(idleTimeout)); err != nil {
			return nil, err
		}
		if _, err := r.Peek(1); err != nil {
			return nil, err
		}
	}
	if err := c.SetReadDeadline(time.Now().Add(messageTimeout)); err != nil {
		return nil, err
	}
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return length[:], err
	}
	wire := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(r, wire)
	return wire, err
}

// answerWire answers a message as it came over a connection, nil for what gets no
// answer.
func (s *Server) answerWire(ctx context.Context, wire []byte, asker netip.Addr) []byte {
	return s.answerOver(ctx, wire, asker, false)
}

// answerOver is answerWire for UDP, too.
func (s *Server) answerOver(ctx context.Context, wire []byte, asker netip.Addr, udp bool) []byte {
	req := new(miekg.Msg)
	if len(wire) < headerSize {
		return nil
	}
	h := miekg.Header{
		Id: binary.BigEndian.Uint16(wire), Bits: binary.BigEndian.Uint16(wire[2:]),
		Qdcount: binary.BigEndian.Uint16(wire[4:]), Ancount: binary.BigEndian.Uint16(wire[6:]),
		Nscount: binary.BigEndian.Uint16(wire[8:]), Arcount: binary.BigEndian.Uint16(wire[10:]),
	}
	rcode := miekg.RcodeFormatError
	switch accept(h) {
	case miekg.MsgIgnore:
		return nil
	case miekg.MsgRejectNotImplemented:
		rcode = miekg.RcodeNotImplemented
	case miekg.MsgAccept:
		if req.Unpack(wire) == nil {
			return s.serve(ctx, req, asker, udp)
		}
	}
	m := &miekg.Msg{MsgHdr: miekg.MsgHdr{Id: h.Id, Response: true, Opcode: int(h.Bits>>11) & 0xF, Rcode: rcode}}
	s.metrics.replied(m)
	refusal, err := m.Pack()
	if err != nil {
		return nil
	}
	return refusal
}
