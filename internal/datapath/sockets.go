package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// PickedTo returns the cookies of the connected sockets, in all network namespaces, whose connection to a frontend was sent to addr.
// For DestroySockets, when an instance is gone. UDP sockets that only send (sendto) are not among them: they get another instance with
// their next datagram.
func (k *Kernel) PickedTo(addr netip.AddrPort, proto uint8) ([]uint64, error) {
	records, err := k.readPicks()
	if err != nil {
		return nil, fmt.Errorf("find sockets picked to %s: %w", addr, err)
	}
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	var out []uint64
	for _, p := range records {
		if addrPort(p.Backend.W, p.BackendPort) == addr && p.Proto == uint32(proto) {
			out = append(out, p.Cookie)
		}
	}
	return out, nil
}

// readPicks reads the storage of all sockets by way of an iterator program, which is loaded for each call: instances go rarely, and
// loading it takes the kernel's type information, which is large.
func (k *Kernel) readPicks() ([]connectPick, error) {
	spec, err := loadConnect()
	if err != nil {
		return nil, err
	}
	prog, err := ebpf.NewProgram(spec.Programs[connectProgFlPicks])
	if err != nil {
		if errors.Is(err, ebpf.ErrNotSupported) {
			return nil, fmt.Errorf("%w: eBPF iterators (CONFIG_DEBUG_INFO_BTF): %w", ErrUnsupported, err)
		}
		return nil, err
	}
	defer prog.Close()
	it, err := link.AttachIter(link.IterOptions{Program: prog, Map: k.maps[connectMapPicks]})
	if err != nil {
		return nil, err
	}
	defer it.Close()
	r, err := it.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var out []connectPick
	for {
		var p connectPick
		err := binary.Read(r, binary.NativeEndian, &p)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
}

// DestroySockets ends the sockets with these cookies (SO_COOKIE) that are in the network namespace of the calling thread; their owners
// see ECONNABORTED at once. It returns how many it ended; cookies that are in other namespaces, or gone, are no error.
func DestroySockets(cookies []uint64) (int, error) {
	wanted := make(map[uint64]bool, len(cookies))
	for _, c := range cookies {
		wanted[c] = true
	}
	done := 0
	for _, kind := range []struct {
		proto, family uint8
		list          func(uint8) ([]*netlink.Socket, error)
	}{
		{unix.IPPROTO_TCP, unix.AF_INET, netlink.SocketDiagTCP},
		{unix.IPPROTO_TCP, unix.AF_INET6, netlink.SocketDiagTCP},
		{unix.IPPROTO_UDP, unix.AF_INET, netlink.SocketDiagUDP},
		{unix.IPPROTO_UDP, unix.AF_INET6, netlink.SocketDiagUDP},
	} {
		if done == len(wanted) {
			break
		}
		sockets, err := kind.list(kind.family)
		if err != nil {
			return done, fmt.Errorf("list sockets: %w", err)
		}
		for _, s := range sockets {
			if !wanted[uint64(s.ID.Cookie[1])<<32|uint64(s.ID.Cookie[0])] {
				continue
			}
			switch err := destroy(kind.proto, s); {
			case err == nil:
				done++
			case errors.Is(err, unix.ENOENT): // closed in between
			case errors.Is(err, unix.EOPNOTSUPP):
				return done, fmt.Errorf("%w: SOCK_DESTROY (CONFIG_INET_DIAG_DESTROY)", ErrUnsupported)
			default:
				return done, fmt.Errorf("destroy socket: %w", err)
			}
		}
	}
	return done, nil
}

const sockDestroy = 21 // SOCK_DESTROY of linux/sock_diag.h

// destroyRequest is struct inet_diag_req_v2 of linux/inet_diag.h.
type destroyRequest []byte

func (r destroyRequest) Len() int          { return len(r) }
func (r destroyRequest) Serialize() []byte { return r }

func destroy(proto uint8, s *netlink.Socket) error {
	b := make([]byte, 0, 56)
	b = append(b, s.Family, proto, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, 0xffffffff)
	b = binary.BigEndian.AppendUint16(b, s.ID.SourcePort)
	b = binary.BigEndian.AppendUint16(b, s.ID.DestinationPort)
	for _, ip := range [][]byte{s.ID.Source, s.ID.Destination} {
		if a, ok := netip.AddrFromSlice(ip); ok && s.Family == unix.AF_INET {
			v4 := a.Unmap().As4()
			ip = append(v4[:], make([]byte, 12)...)
		}
		b = append(b, ip...)
	}
	b = binary.NativeEndian.AppendUint32(b, s.ID.Interface)
	b = binary.NativeEndian.AppendUint32(b, s.ID.Cookie[0])
	b = binary.NativeEndian.AppendUint32(b, s.ID.Cookie[1])
	req := nl.NewNetlinkRequest(sockDestroy, unix.NLM_F_ACK)
	req.AddData(destroyRequest(b))
	_, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
	return err
}
