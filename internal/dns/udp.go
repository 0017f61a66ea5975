package dns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxSockets bounds the sockets of the main address, among which the kernel
	// spreads the askers.
	maxSockets = 4
	// mainBatch and extraBatch are how many queries are read at a time, at the main
	// address and at others.
	mainBatch, extraBatch = 64, 16
	// maxInFull bounds the queries of one address that are being answered in full;
	// beyond it they are dropped, as by a full socket.
	maxInFull = 4096
	// socketBuffer is asked for in bytes, for bursts.
	socketBuffer = 1 << 20
)

// udpServer answers what comes over one socket: with kept answers at once, all
// else in a goroutine for each query.
type udpServer struct {
	s       *Server
	sock    socket
	msgs    *datagrams
	inFull  chan struct{}  // room for those being answered
	queries sync.WaitGroup // they
}

// serveUDP answers until ctx ends or the socket dies, and closes it.
func (s *Server) serveUDP(ctx context.Context, conn *net.UDPConn, take takeSocket, batch int, inFull chan struct{}) error {
	_ = conn.SetReadBuffer(socketBuffer) // it works without
	local := addrPort(conn.LocalAddr()).Addr().IsUnspecified()
	if local {
		if err := tellLocal(conn); err != nil {
			conn.Close()
			return err
		}
	}
	sock, done, err := take(ctx, conn)
	if err != nil {
		conn.Close()
		return err
	}
	defer done()
	u := &udpServer{s: s, sock: sock, msgs: newDatagrams(sock, batch, local), inFull: inFull}
	defer u.queries.Wait()
	return u.serve(ctx)
}

func (u *udpServer) serve(ctx context.Context) error {
	c := &clerk{s: u.s}
	for {
		n, err := u.msgs.read()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // no memory for now, or what an earlier answer met with
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
			continue
		}
		now := u.s.moment()
		for i := range n {
			from := c.asker(u.msgs.from(i), &now)
			size := int(u.msgs.in[i].len)
			if end := c.answer(u.msgs.bufs[i], size, from, &now); end > 0 {
				u.msgs.reply(i, end)
			} else {
				u.full(ctx, i, size, from)
			}
		}
		c.count()
		if err := u.msgs.flush(); err != nil && ctx.Err() == nil {
			return err
		}
	}
}

// full answers a query in a goroutine of its own.
func (u *udpServer) full(ctx context.Context, i, size int, from askerOf) {
	select {
	case u.inFull <- struct{}{}:
	default:
		return
	}
	query, to, control := bytes.Clone(u.msgs.bufs[i][:size]), u.msgs.places[i], u.msgs.in[i].hdr.Controllen
	u.queries.Go(func() {
		defer func() { <-u.inFull }()
		if reply := u.s.answerOver(ctx, query, from.addr, true); reply != nil {
			u.send(reply, &to, to.control[:control])
		}
		u.s.keep(query, from)
	})
}

// send sends one reply. Who asked and does not wait for it is no fault of ours.
func (u *udpServer) send(reply []byte, to *place, control []byte) {
	one := mmsghdr{}
	to.iov.Base = &reply[0]
	to.iov.SetLen(len(reply))
	one.hdr.Name, one.hdr.Namelen = to.bytes(), unix.SizeofSockaddrInet6
	one.hdr.Iov = &to.iov
	one.hdr.SetIovlen(1)
	if n := answerFrom(control); n > 0 {
		one.hdr.Control = &control[0]
		one.hdr.SetControllen(n)
	}
	d := &datagrams{sock: u.sock, out: []mmsghdr{one}}
	d.send = func(fd uintptr) bool { return d.call(unix.SYS_SENDMMSG, fd, d.out, 0) }
	_ = d.flush()
}

// sockets is how many the main address has: one for each processor but one. Those
// that block (see blocked) each keep a processor of the runtime's for as long as no
// other work needs it; with none left over, its monitor takes them away and looks
// again every 20 us, which costs more than the queries.
func sockets() int { return min(maxSockets, max(1, runtime.GOMAXPROCS(0)-1)) }

// spread opens further sockets beside one, at the same address, for the kernel to
// divide the askers among, until there are want. The first was opened alone, so that
// an address that somebody else has is an error. Where there cannot be more, one
// does.
func spread(ctx context.Context, first *net.UDPConn, host string, want int) []*net.UDPConn {
	all := []*net.UDPConn{first}
	raw, err := first.SyscallConn()
	if err != nil || want == 1 || reuse("", "", raw) != nil {
		return all
	}
	lc := net.ListenConfig{Control: reuse}
	addr := net.JoinHostPort(host, fmt.Sprint(addrPort(first.LocalAddr()).Port()))
	for len(all) < want {
		pc, err := lc.ListenPacket(ctx, "udp", addr)
		if err != nil {
			break
		}
		conn, ok := pc.(*net.UDPConn)
		if !ok {
			pc.Close()
			break
		}
		all = append(all, conn)
	}
	return all
}

// reuse lets a socket share its address with others of the same user.
func reuse(_, _ string, c syscall.RawConn) error {
	var err error // of set, which runs within Control
	set := func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }
	if failed := c.Control(set); failed != nil {
		return failed
	}
	return err
}
