package datapath

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Pick is a connected socket and the instance that its connection was sent to.
type Pick struct {
	Cookie   uint64 // SO_COOKIE
	Instance netip.AddrPort
}

// PickedTo returns the sockets, in all network namespaces, whose last connection to a frontend was sent to one of the instances. They may
// have connected elsewhere since. For DestroySockets, when instances are gone: it reads the whole map once, which takes tens of
// milliseconds. UDP sockets that only send (sendto) are not among them: they get another instance with their next datagram.
func (k *Kernel) PickedTo(instances ...netip.AddrPort) ([]Pick, error) {
	wanted := make(map[netip.AddrPort]bool, len(instances))
	for _, a := range instances {
		wanted[netip.AddrPortFrom(a.Addr().Unmap(), a.Port())] = true
	}
	found := map[Pick]bool{}
	look := func(p connectPick) {
		if at := addrPort(p.Backend.W, p.BackendPort); p.Cookie != 0 && wanted[at] {
			found[Pick{Cookie: p.Cookie, Instance: at}] = true
		}
	}
	err := readAll(k.maps[connectMapPicks], func(_ uint32, p connectPick) { look(p) })
	if err == nil {
		err = readAll(k.maps[connectMapMorePicks], func(_ uint64, p connectPick) { look(p) })
	}
	if err != nil {
		return nil, fmt.Errorf("find sockets picked to %v: %w", instances, err)
	}
	return slices.SortedFunc(maps.Keys(found), func(a, b Pick) int {
		return cmp.Or(cmp.Compare(a.Cookie, b.Cookie), a.Instance.Compare(b.Instance))
	}), nil
}

// DestroySockets ends those of the sockets that are in the network namespace of the calling thread and still connected to their instance;
// their owners see ECONNABORTED at once. It returns how many it ended; sockets that are in other namespaces, or gone, are no error.
func DestroySockets(picks []Pick) (int, error) {
	wanted := make(map[Pick]bool, len(picks))
	for _, p := range picks {
		wanted[p] = true
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
			to, _ := netip.AddrFromSlice(s.ID.Destination)
			if !wanted[Pick{
				Cookie:   uint64(s.ID.Cookie[1])<<32 | uint64(s.ID.Cookie[0]),
				Instance: netip.AddrPortFrom(to.Unmap(), s.ID.DestinationPort),
			}] {
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
