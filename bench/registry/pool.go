package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// perSource is how many connections come from one loopback address: Consul refuses the 201st (limits.http_max_conns_per_client).
	perSource = 150
	// patience is how long a server may leave all connections unanswered.
	patience = 10 * time.Second
)

// A pool is a set of kept HTTP connections that one goroutine drives through epoll: no goroutine, timer or buffer for a
// connection, since 5,000 of them are held and since the client's CPU is missing to the server. Not for concurrent use.
type pool struct {
	epoll  int
	conns  []conn
	buffer []byte
	events []unix.EpollEvent
}

type conn struct {
	fd    int
	sent  time.Time
	reply response
}

// loopback is an address that load may be sent to.
func loopback(hostport string) (netip.AddrPort, error) {
	tcp, err := net.ResolveTCPAddr("tcp", hostport)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("address of the server: %w", err)
	}
	addr := tcp.AddrPort()
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	if !addr.Addr().IsLoopback() {
		return netip.AddrPort{}, fmt.Errorf("%s is not a loopback address: load goes to this machine only", addr)
	}
	return addr, nil
}

func sockaddr(addr netip.AddrPort) unix.Sockaddr {
	if addr.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: addr.Addr().As4(), Port: int(addr.Port())}
	}
	return &unix.SockaddrInet6{Addr: addr.Addr().As16(), Port: int(addr.Port())}
}

func family(addr netip.AddrPort) int {
	if addr.Addr().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// dialPool opens n connections. The caller closes the pool.
func dialPool(ctx context.Context, addr netip.AddrPort, n int) (*pool, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	p := &pool{epoll: epoll, buffer: make([]byte, 256<<10), events: make([]unix.EpollEvent, 256)}
	for i := range n {
		if err := ctx.Err(); err != nil {
			p.close()
			return nil, err
		}
		fd, err := dialFrom(addr, i/perSource)
		if err != nil {
			p.close()
			return nil, fmt.Errorf("connection %d to %s: %w", i+1, addr, err)
		}
		p.conns = append(p.conns, conn{fd: fd})
		event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}
		if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
			p.close()
			return nil, fmt.Errorf("epoll: %w", err)
		}
	}
	return p, nil
}

// dialFrom connects from the source-th loopback address, where the server's is IPv4.
func dialFrom(addr netip.AddrPort, source int) (int, error) {
	fd, err := unix.Socket(family(addr), unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	limit := unix.NsecToTimeval(int64(patience))
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit), // bounds connect, too
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))
	if err == nil && source > 0 && addr.Addr().Is4() {
		from := netip.AddrFrom4([4]byte{127, 0, byte(source >> 8), byte(source)}).Next()
		err = errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1),
			unix.Bind(fd, sockaddr(netip.AddrPortFrom(from, 0))))
	}
	if err == nil {
		err = unix.Connect(fd, sockaddr(addr))
	}
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		closeQuietly(fd)
		return 0, err
	}
	return fd, nil
}

func closeQuietly(fd int) {
	_ = unix.Close(fd) // nothing was promised about what is still in it
}

func (p *pool) close() {
	for i := range p.conns {
		closeQuietly(p.conns[i].fd)
	}
	closeQuietly(p.epoll)
}

// send writes one request on a connection whose last answer is complete.
func (p *pool) send(i int, request []byte) error {
	c := &p.conns[i]
	c.reply.reset()
	c.sent = time.Now()
	n, err := unix.Write(c.fd, request)
	if err != nil {
		return fmt.Errorf("send a request: %w", err)
	}
	if n < len(request) {
		return fmt.Errorf("send a request: %d of %d bytes taken", n, len(request))
	}
	return nil
}

// poll waits for bytes, up to the limit, and calls done for each connection whose answer is now complete. It says whether any
// byte came. done may send the next request on the connection.
func (p *pool) poll(limit time.Duration, done func(i int, c *conn) error) (bool, error) {
	n, err := unix.EpollWait(p.epoll, p.events, int(limit/time.Millisecond))
	if err != nil && !errors.Is(err, unix.EINTR) {
		return false, fmt.Errorf("epoll: %w", err)
	}
	for _, event := range p.events[:max(n, 0)] {
		i := int(event.Fd)
		c := &p.conns[i]
		got, err := unix.Read(c.fd, p.buffer)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("read an answer: %w", err)
		}
		if got == 0 {
			return false, fmt.Errorf("the server closed connection %d of %d", i+1, len(p.conns))
		}
		complete, err := c.reply.feed(p.buffer[:got])
		if err != nil {
			return false, fmt.Errorf("read an answer: %w", err)
		}
		if !complete {
			continue
		}
		if err := done(i, c); err != nil {
			return false, err
		}
	}
	return n > 0, nil
}
