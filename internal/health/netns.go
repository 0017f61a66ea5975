package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// loopbacks are what "localhost" and an empty host mean inside a namespace.
var loopbacks = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}

// nsDialer returns a dialFunc for TCP and UDP from inside the network namespace
// at path. The namespace is opened anew for each connection: a workload that was
// restarted has another one under the same path.
//
// Addresses must be literal ("localhost" excepted): looking a name up inside the
// namespace would need its resolv.conf too.
func nsDialer(path string) dialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		targets, err := literals(address)
		if err != nil {
			return nil, &net.OpError{Op: "dial", Net: network, Err: err}
		}
		var conn net.Conn
		for _, to := range targets {
			if conn, err = nsDial(ctx, path, network, to); err == nil {
				return conn, nil
			}
		}
		var at net.Addr = net.TCPAddrFromAddrPort(targets[0])
		if network == "udp" {
			at = net.UDPAddrFromAddrPort(targets[0])
		}
		return nil, &net.OpError{Op: "dial", Net: network, Addr: at, Err: err}
	}
}

// literals returns the addresses that host:port means without a name server.
func literals(address string) ([]netip.AddrPort, error) {
	host, p, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(p, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("port %q is not a number from 0 to 65535", p)
	}
	if host == "" || host == "localhost" {
		var all []netip.AddrPort
		for _, a := range loopbacks {
			all = append(all, netip.AddrPortFrom(a, uint16(port)))
		}
		return all, nil
	}
	a, err := netip.ParseAddr(host)
	if err != nil || a.Zone() != "" {
		return nil, fmt.Errorf("%q is not an IP address: checks inside a network namespace look no names up", host)
	}
	return []netip.AddrPort{netip.AddrPortFrom(a.Unmap(), uint16(port))}, nil
}

// nsDial connects from inside a namespace. A socket belongs for good to the
// namespace it was made in, so only its making happens there, on a thread that
// nothing else runs on meanwhile; the waiting goes through Go's poller, and a
// thousand checks that hang hold no thread.
func nsDial(ctx context.Context, path, network string, to netip.AddrPort) (net.Conn, error) {
	fd, err := nsSocket(path, network, to)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), network)
	defer f.Close() // FileConn works on a duplicate
	if err := connect(ctx, f, to); err != nil {
		return nil, err
	}
	return net.FileConn(f)
}

// nsSocket makes a socket inside the namespace at path.
func nsSocket(path, network string, to netip.AddrPort) (fd int, err error) {
	family, kind := unix.AF_INET, unix.SOCK_STREAM
	if to.Addr().Is6() {
		family = unix.AF_INET6
	}
	if network == "udp" {
		kind = unix.SOCK_DGRAM
	}
	err = nsDo(path, func() (err error) {
		fd, err = unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		return os.NewSyscallError("socket", err)
	})
	return fd, err
}

// nsDo calls do from inside the namespace at path, on a thread that nothing else
// runs on meanwhile.
func nsDo(path string, do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		restored, err := nsVisit(path, do)
		if restored {
			runtime.UnlockOSThread()
		}
		// A thread that could not go home stays locked and dies with the
		// goroutine: nobody else may run in the wrong namespace.
		done <- err
	}()
	return <-done
}

// nsVisit moves the calling thread into the namespace, calls do and moves the
// thread back; restored says whether that worked.
func nsVisit(path string, do func() error) (restored bool, err error) {
	home, err := netns.Get()
	if err != nil {
		return true, fmt.Errorf("find own network namespace: %w", err)
	}
	defer home.Close()
	there, err := netns.GetFromPath(path)
	if err != nil {
		return true, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer there.Close()
	if err := netns.Set(there); err != nil {
		return true, fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	err = do()
	return netns.Set(home) == nil, err
}

// connect connects the non-blocking socket f, waiting until ctx ends.
func connect(ctx context.Context, f *os.File, to netip.AddrPort) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var pending error
	if err := raw.Control(func(fd uintptr) { pending = unix.Connect(int(fd), sockaddr(to)) }); err != nil {
		return err
	}
	if pending == nil {
		return nil
	}
	if !errors.Is(pending, unix.EINPROGRESS) {
		return os.NewSyscallError("connect", pending)
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	var outcome error
	err = raw.Write(func(fd uintptr) bool {
		var over bool
		over, outcome = connected(int(fd))
		return over
	})
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return os.ErrDeadlineExceeded // reads "i/o timeout", as from net.Dial
	case err != nil:
		return err
	}
	return outcome
}

// connected says whether a connect that was under way is over, and how.
func connected(fd int) (over bool, err error) {
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return true, os.NewSyscallError("getsockopt", err)
	}
	if code != 0 {
		return true, os.NewSyscallError("connect", unix.Errno(code))
	}
	_, err = unix.Getpeername(fd)
	return err == nil, nil
}

func sockaddr(to netip.AddrPort) unix.Sockaddr {
	if to.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
}
