package parking

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// events tells of many sockets when something has arrived, by one goroutine. The
// Go runtime polls them too, each for whoever reads it; that would take a
// goroutine for each.
type events struct {
	file   *os.File
	raw    syscall.RawConn
	closed atomic.Bool
}

func newEvents() (*events, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	// What does not block is polled by the runtime: this is a poll in a poll, and
	// takes no thread.
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(fmt.Errorf("epoll: %w", err), unix.Close(fd))
	}
	f := os.NewFile(uintptr(fd), "epoll")
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("epoll: %w", err), f.Close())
	}
	return &events{file: f, raw: raw}, nil
}

// close ends run.
func (e *events) close() error {
	e.closed.Store(true)
	return e.file.Close()
}

// add tells of the socket from now on, and at once if something is there.
func (e *events) add(c syscall.RawConn, id uint64) error {
	return e.control(c, unix.EPOLL_CTL_ADD, &unix.EpollEvent{
		Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(uint32(id)), Pad: int32(uint32(id >> 32)), //nolint:gosec // both halves of a number
	})
}

// remove does so no more. A socket that is closed needs no removal.
func (e *events) remove(c syscall.RawConn) {
	_ = e.control(c, unix.EPOLL_CTL_DEL, nil) // it fails where nothing is to be removed
}

func (e *events) control(c syscall.RawConn, op int, ev *unix.EpollEvent) (err error) {
	failed := c.Control(func(fd uintptr) {
		outer := e.raw.Control(func(ep uintptr) { err = unix.EpollCtl(int(ep), op, int(fd), ev) })
		err = errors.Join(err, outer)
	})
	return errors.Join(failed, err)
}

// run calls f for each socket at which something has arrived, until close.
func (e *events) run(f func(id uint64)) error {
	var got [128]unix.EpollEvent
	for {
		var n int
		var err error
		failed := e.raw.Read(func(ep uintptr) bool {
			for {
				n, err = unix.EpollWait(int(ep), got[:], 0)
				if !errors.Is(err, unix.EINTR) {
					return n != 0
				}
			}
		})
		switch {
		case e.closed.Load(): // the error of a raw read does not say so
			return nil
		case failed != nil:
			return fmt.Errorf("epoll: %w", failed)
		case err != nil:
			return fmt.Errorf("epoll: %w", err)
		}
		for _, ev := range got[:n] {
			f(uint64(uint32(ev.Fd)) | uint64(uint32(ev.Pad))<<32) //nolint:gosec // as in add
		}
	}
}
