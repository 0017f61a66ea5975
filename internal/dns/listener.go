package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"

	miekg "github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

const (
	// maxConns bounds the TCP connections of one listener, and maxConnsEach those
	// of one address but for the host's own: workloads must use up neither the
	// agent's file descriptors nor each other's connections.
	maxConns     = 1024
	maxConnsEach = 128
	// portTries is how often a port that is free for TCP is tried for UDP, too.
	portTries = 16
	// qrBit of a header marks a reply.
	qrBit = 1 << 15
)

// listener is one address with its sockets.
type listener struct {
	addr   netip.AddrPort
	ctx    context.Context // ends when the listener is told to stop
	cancel context.CancelFunc
	failed chan error     // a socket's end that nobody asked for
	socks  sync.WaitGroup // the goroutines that read from the sockets
	owner  sync.WaitGroup // those that look after the listener
}

// open starts listening. With free, the address need not be usable yet: that of
// a new bridge takes a second to be.
func (s *Server) open(ctx context.Context, addr string, free bool) (*listener, error) {
	pc, ln, err := bind(ctx, addr, free)
	if err != nil {
		return nil, bindError(addr, err)
	}
	l := &listener{addr: addrPort(pc.LocalAddr()), failed: make(chan error, 1+maxSockets)}
	l.ctx, l.cancel = context.WithCancel(ctx)
	socks, batch, take := []*net.UDPConn{pc}, extraBatch, polled
	if !free {
		host, _, _ := net.SplitHostPort(addr) // bind has seen that it can be split
		socks, batch, take = spread(ctx, pc, host, sockets()), mainBatch, blocked
	}
	serve := func(run func() error) {
		l.socks.Go(func() {
			if err := run(); err != nil {
				l.failed <- fmt.Errorf("answer DNS on %s: %w", addr, err)
			}
		})
	}
	inFull := make(chan struct{}, maxInFull)
	for _, sock := range socks {
		serve(func() error { return s.serveUDP(l.ctx, sock, take, batch, inFull) })
	}
	serve(func() error {
		tcp := &stream{answer: s.answerWire}
		return tcp.serve(l.ctx, &limited{Listener: ln, max: maxConns, each: maxConnsEach})
	})
	return l, nil
}

// wait returns nil when ctx ends, or why the listener died before.
func (l *listener) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-l.failed:
		return err
	}
}

// close ends the sockets and the queries in hand, and waits for them.
func (l *listener) close() {
	l.cancel()
	l.socks.Wait()
}

// stop is close, waiting also for who looks after the listener.
func (l *listener) stop() {
	l.close()
	l.owner.Wait()
}

// bind opens an address for UDP and TCP, at one port.
func bind(ctx context.Context, addr string, free bool) (*net.UDPConn, net.Listener, error) {
	var lc net.ListenConfig
	if free {
		lc.Control = freebind
	}
	for try := 1; ; try++ {
		ln, err := lc.Listen(ctx, "tcp", addr)
		if err != nil {
			return nil, nil, err
		}
		port := addrPort(ln.Addr()).Port()
		host, asked, err := net.SplitHostPort(addr)
		if err != nil {
			ln.Close()
			return nil, nil, err
		}
		pc, err := lc.ListenPacket(ctx, "udp", net.JoinHostPort(host, fmt.Sprint(port)))
		if udp, ok := pc.(*net.UDPConn); ok && err == nil {
			return udp, ln, nil
		}
		ln.Close()
		if asked != "0" || try == portTries || !errors.Is(err, unix.EADDRINUSE) {
			return nil, nil, err
		}
	}
}

func freebind(network, _ string, c syscall.RawConn) error {
	var err error // of set, which runs within Control
	set := func(fd uintptr) {
		if network == "udp6" || network == "tcp6" {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
		} else {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1)
		}
	}
	if failed := c.Control(set); failed != nil {
		return failed
	}
	return err
}

// bindError says what to do about an address that cannot be listened on.
func bindError(addr string, err error) error {
	fix := ""
	_, port, _ := net.SplitHostPort(addr)
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		fix = fmt.Sprintf("; another program has port %s of this address or of all addresses ('ss -lnptu sport = :%s' shows which): stop it or make it listen on its own addresses only", port, port)
	case errors.Is(err, unix.EACCES):
		fix = fmt.Sprintf("; port %s needs root or the capability CAP_NET_BIND_SERVICE", port)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		fix = "; no interface of this host has this address"
	}
	return fmt.Errorf("listen for DNS on %s: %w%s", addr, err, fix)
}

// accept looks at a message's header before anything else of it is read.
func accept(h miekg.Header) miekg.MsgAcceptAction {
	switch {
	case h.Bits&qrBit != 0:
		return miekg.MsgIgnore // answering replies makes loops
	case h.Bits>>11&0xF != miekg.OpcodeQuery:
		return miekg.MsgRejectNotImplemented
	case h.Qdcount != 1 || h.Ancount > 0 || h.Nscount > 0:
		return miekg.MsgReject
	}
	return miekg.MsgAccept
}

// limited is a TCP listener that hangs up on connections beyond max, and on those
// of one address beyond each; 0 is no limit.
type limited struct {
	net.Listener
	max, each int

	mu   sync.Mutex // guards following
	open int
	by   map[netip.Addr]int
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		asker := addrPort(c.RemoteAddr()).Addr()
		if l.take(asker) {
			return &counted{Conn: c, once: sync.OnceFunc(func() { l.release(asker) })}, nil
		}
		c.Close()
	}
}

func (l *limited) take(asker netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= l.max || l.each > 0 && !asker.IsLoopback() && l.by[asker] >= l.each {
		return false
	}
	if l.by == nil {
		l.by = map[netip.Addr]int{}
	}
	l.open++
	l.by[asker]++
	return true
}

func (l *limited) release(asker netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.by[asker]--; l.by[asker] == 0 {
		delete(l.by, asker)
	}
}

type counted struct {
	net.Conn
	once func()
}

func (c *counted) Close() error {
	c.once()
	return c.Conn.Close()
}
