package main

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is the kernel's struct mmsghdr (recvmmsg(2)); Go pads it as C does.
type mmsghdr struct {
	header unix.Msghdr
	length uint32
}

// A batch holds the buffers of one sendmmsg or recvmmsg on a connected socket. golang.org/x/net/ipv4 has both calls, but allocates an
// address for each datagram received, and the client's CPU is missing to the server. init it; it must not be copied.
type batch struct {
	headers []mmsghdr
	iovecs  []unix.Iovec
	buffers [][]byte
}

func (b *batch) init(n int) {
	b.headers, b.iovecs = make([]mmsghdr, n), make([]unix.Iovec, n)
	for i := range n {
		buffer := make([]byte, maxAnswer)
		b.buffers = append(b.buffers, buffer)
		b.iovecs[i].Base = &buffer[0]
		b.headers[i].header.Iov = &b.iovecs[i]
		b.headers[i].header.SetIovlen(1)
	}
}

// setLength says how much of buffer i is to be sent.
func (b *batch) setLength(i, n int) { b.iovecs[i].SetLen(n) }

// send sends the first n buffers. A socket that takes no more is an error: the batches are small.
func (b *batch) send(fd, n int) error {
	for at := 0; at < n; {
		sent, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.headers[at])), uintptr(n-at), 0, 0, 0)
		if errno != 0 && !errors.Is(errno, unix.EINTR) {
			return fmt.Errorf("send DNS queries: %w", errno)
		}
		if errno == 0 {
			at += int(sent)
		}
	}
	return nil
}

// receive reads as many datagrams as are there and fit.
func (b *batch) receive(fd int) (int, error) {
	for i := range b.iovecs {
		b.iovecs[i].SetLen(maxAnswer)
	}
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.headers[0])), uintptr(len(b.headers)), 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// received is the i-th datagram of the last receive, valid until the next call.
func (b *batch) received(i int) []byte { return b.buffers[i][:b.headers[i].length] }
