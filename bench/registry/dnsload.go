package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	dnsTypeA   = 1
	dnsTypeSRV = 33

	// lostAfter is when a query without an answer counts as failed and is asked again.
	lostAfter = 500 * time.Millisecond
	// maxAnswer is the largest datagram that is read whole, in bytes.
	maxAnswer = 1500
	maxBatch  = 64
)

// dnsQuery is one query in wire form (RFC 1035, section 4) with identifier 0 and without EDNS.
func dnsQuery(name string, kind uint16) []byte {
	b := []byte{0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0} // recursion desired, one question
	for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		b = append(b, byte(len(label)))
		b = append(b, label...)
	}
	b = append(b, 0)
	b = binary.BigEndian.AppendUint16(b, kind)
	return binary.BigEndian.AppendUint16(b, 1)
}

// dnsFailure says what is wrong with an answer, "" if it is a success with at least one record.
func dnsFailure(answer []byte) string {
	if len(answer) < 12 || answer[2]&0x80 == 0 {
		return "not a DNS answer"
	}
	if code := answer[3] & 15; code != 0 {
		return fmt.Sprintf("DNS answer code %d", code)
	}
	if binary.BigEndian.Uint16(answer[6:]) == 0 {
		return "DNS answer without a record"
	}
	return ""
}

// A dnsSocket keeps a fixed number of queries in flight over one connected socket, read and written in batches. The identifier of a
// query is its slot and a generation, so that an answer that comes after it was given up is not taken for another's.
type dnsSocket struct {
	fd      int
	batch   batch
	sent    []time.Time
	gen     []uint16
	idle    []int // slots to send
	queries [][]byte
}

func openDNS(addr netip.AddrPort, inFlight int, queries [][]byte) (*dnsSocket, error) {
	fd, err := unix.Socket(family(addr), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("socket for DNS: %w", err)
	}
	if err := unix.Connect(fd, sockaddr(addr)); err != nil {
		closeQuietly(fd)
		return nil, fmt.Errorf("socket for DNS: %w", err)
	}
	s := &dnsSocket{fd: fd, sent: make([]time.Time, inFlight), gen: make([]uint16, inFlight), queries: queries}
	for slot := range inFlight {
		s.idle = append(s.idle, slot)
	}
	s.batch.init(inFlight)
	return s, nil
}

// fill sends a query for each idle slot.
func (s *dnsSocket) fill(m *meter) error {
	if len(s.idle) == 0 || m.full() {
		return nil
	}
	now := time.Now()
	for i, slot := range s.idle {
		query := s.batch.buffers[i]
		s.batch.setLength(i, copy(query, s.queries[m.issued%uint64(len(s.queries))]))
		binary.BigEndian.PutUint16(query, uint16(slot)|s.gen[slot]<<6)
		s.sent[slot] = now
		m.issued++
	}
	if err := s.batch.send(s.fd, len(s.idle)); err != nil {
		return err
	}
	s.idle = s.idle[:0]
	return nil
}

// drain takes all answers that are there.
func (s *dnsSocket) drain(m *meter) error {
	for {
		n, err := s.batch.receive(s.fd)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read DNS answers: %w", err)
		}
		now := time.Now()
		for i := range n {
			answer := s.batch.received(i)
			if len(answer) < 12 {
				continue
			}
			id := binary.BigEndian.Uint16(answer)
			slot := int(id & (maxBatch - 1))
			if slot >= len(s.sent) || s.sent[slot].IsZero() || id>>6 != s.gen[slot]&1023 {
				continue
			}
			m.done(now.Sub(s.sent[slot]), dnsFailure(answer))
			s.free(slot)
		}
		if n < len(s.sent) {
			return nil
		}
	}
}

func (s *dnsSocket) free(slot int) {
	s.sent[slot] = time.Time{}
	s.gen[slot]++
	s.idle = append(s.idle, slot)
}

// giveUp frees the slots whose query was lost.
func (s *dnsSocket) giveUp(m *meter, now time.Time) {
	for slot, sent := range s.sent {
		if !sent.IsZero() && now.Sub(sent) > lostAfter {
			m.done(now.Sub(sent), "no answer over UDP")
			s.free(slot)
		}
	}
}

// loadDNS keeps inFlight queries (at most 64) unanswered on each of n sockets for the window.
func loadDNS(ctx context.Context, addr netip.AddrPort, pid, n, inFlight int, w window, queries [][]byte) (*cell, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	defer closeQuietly(epoll)
	var sockets []*dnsSocket
	defer func() {
		for _, s := range sockets {
			closeQuietly(s.fd)
		}
	}()
	for i := range n {
		s, err := openDNS(addr, inFlight, queries)
		if err != nil {
			return nil, err
		}
		sockets = append(sockets, s)
		event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}
		if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, s.fd, &event); err != nil {
			return nil, fmt.Errorf("epoll: %w", err)
		}
	}
	m, err := startMeter(pid, w)
	if err != nil {
		return nil, err
	}
	for _, s := range sockets {
		if err := s.fill(m); err != nil {
			return nil, err
		}
	}
	events := make([]unix.EpollEvent, 128)
	for looked := time.Now(); m.answered < m.issued || !m.over; {
		ready, err := unix.EpollWait(epoll, events, 20)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("epoll: %w", err)
		}
		for _, event := range events[:max(ready, 0)] {
			s := sockets[event.Fd]
			if err := errors.Join(s.drain(m), s.fill(m)); err != nil {
				return nil, err
			}
		}
		now := time.Now()
		if err := errors.Join(m.at(now), ctx.Err()); err != nil {
			return nil, err
		}
		if now.Sub(looked) < lostAfter/5 {
			continue
		}
		looked = now
		for _, s := range sockets {
			s.giveUp(m, now)
			if err := s.fill(m); err != nil {
				return nil, err
			}
		}
	}
	return &m.cell, nil
}
