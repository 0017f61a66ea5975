package dns

import (
	"encoding/binary"
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// maxQuery is the longest query read over UDP, and the longest kept answer, in
	// bytes.
	maxQuery = 4096
	// controlSize holds the control message that says to which address a query was
	// sent, of either family.
	controlSize = 64
)

// datagrams reads and writes many datagrams of one socket with one system call
// each. It belongs to one goroutine, and allocates nothing once it is made;
// golang.org/x/net makes an address for each datagram.
type datagrams struct {
	sock   socket
	in     []mmsghdr
	out    []mmsghdr // those to send, some of in
	bufs   [][]byte
	places []place

	recv, send func(fd uintptr) bool // made once, too
	n          int
	err        error
}

// mmsghdr is the kernel's struct of that name; see recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// place is where a datagram came from, and at which of our addresses.
type place struct {
	name    unix.RawSockaddrInet6 // or Inet4, which is shorter
	iov     unix.Iovec
	control [controlSize]byte
}

func (p *place) bytes() *byte { return (*byte)(unsafe.Pointer(&p.name)) }

// newDatagrams returns one for count datagrams at a time. With local, those for a
// socket of all addresses, whose answers have to leave from the one that was
// asked.
func newDatagrams(sock socket, count int, local bool) *datagrams {
	d := &datagrams{sock: sock, in: make([]mmsghdr, count), out: make([]mmsghdr, 0, count), bufs: make([][]byte, count), places: make([]place, count)}
	all := make([]byte, count*maxQuery)
	for i := range d.in {
		d.bufs[i] = all[i*maxQuery : (i+1)*maxQuery : (i+1)*maxQuery]
		p, h := &d.places[i], &d.in[i].hdr
		h.Name = p.bytes()
		h.Iov = &p.iov
		h.SetIovlen(1)
		if local {
			h.Control = &p.control[0]
		}
		p.iov.Base = &d.bufs[i][0]
	}
	d.recv = func(fd uintptr) bool {
		return d.call(unix.SYS_RECVMMSG, fd, d.in, unix.MSG_WAITFORONE)
	}
	d.send = func(fd uintptr) bool {
		return d.call(unix.SYS_SENDMMSG, fd, d.out, 0)
	}
	return d
}

// call makes a system call for some datagrams, which waits if the socket blocks. It
// reports whether there is no need to wait and call again.
func (d *datagrams) call(trap, fd uintptr, msgs []mmsghdr, flags uintptr) bool {
	for {
		n, _, errno := unix.Syscall6(trap, fd, uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)), flags, 0, 0)
		switch errno {
		case 0:
			d.n, d.err = int(n), nil
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		default:
			d.n, d.err = 0, errno
		}
		return true
	}
}

// read waits for datagrams and takes all that there are, up to the count.
func (d *datagrams) read() (int, error) {
	for i := range d.in {
		p, h := &d.places[i], &d.in[i].hdr
		h.Namelen = unix.SizeofSockaddrInet6
		if h.Control != nil {
			h.SetControllen(controlSize)
		}
		p.iov.SetLen(maxQuery)
	}
	d.out = d.out[:0]
	if err := d.sock.Read(d.recv); err != nil {
		return 0, err
	}
	return d.n, d.err
}

// from is who sent a datagram.
func (d *datagrams) from(i int) netip.Addr { return sockaddr(&d.places[i].name) }

func sockaddr(name *unix.RawSockaddrInet6) netip.Addr {
	switch name.Family {
	case unix.AF_INET:
		return netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(name)).Addr)
	case unix.AF_INET6:
		return netip.AddrFrom16(name.Addr)
	}
	return netip.Addr{}
}

// reply will send the first n bytes of a datagram's buffer to who sent it.
func (d *datagrams) reply(i, n int) {
	d.places[i].iov.SetLen(n)
	h := d.in[i]
	if h.hdr.Control != nil {
		h.hdr.SetControllen(answerFrom(d.places[i].control[:h.hdr.Controllen]))
	}
	d.out = append(d.out, h)
}

// flush sends the replies. The socket's end is the only error: who asked and
// cannot be answered is no fault of ours.
func (d *datagrams) flush() error {
	all := d.out
	defer func() { d.out = all[:0] }()
	for len(d.out) > 0 {
		if err := d.sock.Write(d.send); err != nil {
			return err
		}
		d.out = d.out[max(d.n, 1):] // without any it was the first that failed
	}
	return nil
}

// answerFrom makes of a received control message, which says to which address a
// datagram was sent, the one that sends from there. It returns its length.
func answerFrom(control []byte) int {
	if len(control) < unix.SizeofCmsghdr {
		return 0
	}
	h := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
	data := control[unix.SizeofCmsghdr:]
	switch {
	case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
		// The address to send from is in its place already; any interface will do.
		binary.NativeEndian.PutUint32(data, 0)
		return unix.CmsgSpace(unix.SizeofInet4Pktinfo)
	case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
		if !netip.AddrFrom16([16]byte(data[:16])).IsLinkLocalUnicast() {
			binary.NativeEndian.PutUint32(data[16:], 0)
		}
		return unix.CmsgSpace(unix.SizeofInet6Pktinfo)
	}
	return 0
}

// tellLocal makes a socket say to which address each datagram was sent.
func tellLocal(conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	if err := raw.Control(func(fd uintptr) {
		var family int
		if family, set = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN); set != nil {
			return
		}
		if family == unix.AF_INET6 {
			set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		} else {
			set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		}
	}); err != nil {
		return err
	}
	return set
}
