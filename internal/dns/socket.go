package dns

import (
	"context"
	"net"

	"golang.org/x/sys/unix"
)

// socket is a UDP socket of ours. Its calls are given the descriptor, and made
// again when there is something to wait for, for as long as they report false.
type socket interface {
	Read(call func(fd uintptr) bool) error
	Write(call func(fd uintptr) bool) error
}

// takeSocket makes of a bound socket, which is gone then, one to serve. It ends when
// ctx does: what waits in a call comes back. After that, and when nothing uses it any
// more, done closes it.
type takeSocket func(ctx context.Context, conn *net.UDPConn) (s socket, done func(), err error)

// polled waits in the runtime's poller, together with all else.
func polled(ctx context.Context, conn *net.UDPConn) (socket, func(), error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	return raw, func() { stop(); conn.Close() }, nil
}

// blocking is a socket that keeps a thread while it waits. Who waits for it alone is
// woken by the kernel itself, and a query costs one system call less: the poller finds
// a goroutine to run, wakes another thread to look for more work, and has to be told
// that there is nothing more to read.
type blocking struct{ fd int }

func (b blocking) Read(call func(fd uintptr) bool) error {
	for !call(uintptr(b.fd)) { // as after a signal; it has waited
	}
	return nil
}

func (b blocking) Write(call func(fd uintptr) bool) error { return b.Read(call) }

// blocked takes a socket out of the runtime's poller.
func blocked(ctx context.Context, conn *net.UDPConn) (socket, func(), error) {
	defer conn.Close() // the poller would be woken for every datagram
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	fd := -1
	if failed := raw.Control(func(from uintptr) {
		if fd, err = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0); err == nil {
			err = unix.SetNonblock(fd, false)
		}
	}); failed != nil {
		return nil, nil, failed
	}
	if err != nil {
		unix.Close(fd)
		return nil, nil, err
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		// It is not connected, which is what the error says; who waits is woken.
		_ = unix.Shutdown(fd, unix.SHUT_RDWR)
	})
	return blocking{fd}, func() {
		if !stop() {
			<-ended // the descriptor may soon be somebody else's
		}
		unix.Close(fd)
	}, nil
}
