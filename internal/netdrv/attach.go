package netdrv

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead-net/fairlead/internal/model"
)

const flagUp = net.FlagUp

// addrGenNone is IN6_ADDR_GEN_MODE_NONE: no link-local address.
const addrGenNone = 1

// Plug is an endpoint and the network it is in. The endpoint's ID, Addrs and
// NetNS must be set; its MAC may be.
type Plug struct {
	Network  model.Network
	Endpoint model.Endpoint
}

// Plugged is what Attach made or found.
type Plugged struct {
	HostIf        string // name of the host-side interface
	HostIfIndex   int
	BridgeIfIndex int
	IfName        string // name inside the workload's namespace
	// Cookie of the workload's network namespace: the same number that
	// bpf_get_netns_cookie gives.
	Cookie uint64
	MAC    string
}

// Attach connects the endpoint's namespace to its network: a veth pair whose
// peer is made right in the namespace (eth0, or the next free number), with
// addresses and, unless the network is internal or another interface has one
// already, default routes. Repeated calls complete what is missing and change
// nothing else. Errors: ErrNoNetwork, ErrNoNamespace, ErrNotNamespace,
// ErrHostNamespace, ErrNameClash.
func (h *Host) Attach(ctx context.Context, p Plug) (Plugged, error) {
	what := fmt.Sprintf("attach endpoint %s to network %s", p.Endpoint.ID, p.Network.Name)
	name := HostIf(p.Endpoint.ID)
	h.purging.RLock()
	defer h.purging.RUnlock()
	defer h.plugs.busy.lock(name)()
	if err := h.waitDeleted(ctx, name); err != nil {
		return Plugged{}, fmt.Errorf("%s: %w", what, err)
	}
	ns, err := h.openNamespace(p.Endpoint.NetNS)
	if err != nil {
		return Plugged{}, fmt.Errorf("%s: %w", what, err)
	}
	defer closeQuietly(ns)
	br, err := h.nl.LinkByName(BridgeName(p.Network.Name))
	if missing(err) {
		err = ErrNoNetwork
	}
	if err != nil {
		return Plugged{}, fmt.Errorf("%s: %w", what, err)
	}
	a := attachment{h: h, plug: p, ns: ns, bridge: br}
	if a.mac, err = net.ParseMAC(MAC(p.Endpoint)); err != nil || len(a.mac) != 6 {
		return Plugged{}, fmt.Errorf("%s: MAC %q is none: %w", what, p.Endpoint.MAC, errors.Join(err, unix.EINVAL))
	}
	if err := inNamespace(ns, a.do); err != nil {
		return Plugged{}, fmt.Errorf("%s: %w", what, err)
	}
	return a.result, nil
}

// openNamespace opens the network namespace at path and checks that it is one,
// and not the host's own.
func (h *Host) openNamespace(path string) (*os.File, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%q: %w", path, ErrNoNamespace)
	}
	if err != nil {
		return nil, err
	}
	var sfs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &sfs); err != nil || int64(sfs.Type) != unix.NSFS_MAGIC { //nolint:unconvert // int32 on other platforms
		closeQuietly(f)
		return nil, fmt.Errorf("%q: %w", path, ErrNotNamespace)
	}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		closeQuietly(f)
		return nil, fmt.Errorf("%q: %w", path, ErrNotNamespace)
	}
	id, err := identify(f)
	if err == nil && id == h.nsID {
		err = fmt.Errorf("%q: %w", path, ErrHostNamespace)
	}
	if err != nil {
		closeQuietly(f)
		return nil, err
	}
	return f, nil
}

// attachment is one Attach at work. do runs on a thread in the workload's
// namespace; h.nl still acts on the host's.
type attachment struct {
	h      *Host
	plug   Plug
	ns     *os.File
	bridge netlink.Link
	inner  *netlink.Handle
	mac    net.HardwareAddr
	result Plugged
}

func (a *attachment) do() error {
	inner, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink in the workload's namespace: %w", err)
	}
	defer inner.Close()
	if err := inner.SetSocketTimeout(netlinkTimeout); err != nil {
		return err
	}
	a.inner = inner
	a.result = Plugged{
		HostIf: HostIf(a.plug.Endpoint.ID), BridgeIfIndex: a.bridge.Attrs().Index, MAC: a.mac.String(),
	}
	if a.result.Cookie, err = namespaceCookie(); err != nil {
		return err
	}
	links, err := whole(inner.LinkList)
	if err != nil {
		return fmt.Errorf("list the workload's links: %w", err)
	}
	peer, err := a.pair(links)
	if err != nil {
		return err
	}
	a.result.IfName = peer.Attrs().Name
	if err := a.configure(links, peer); err != nil {
		return err
	}
	return a.awaitCarrier(peer)
}

// namespaceCookie is the cookie of the calling thread's network namespace.
func namespaceCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("socket for the namespace cookie: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("read the namespace cookie: %w", err)
	}
	return cookie, nil
}

// pair finds or makes the veth pair and returns its inner end. A link of the
// same name whose other end is not in this namespace is a left-over of an
// earlier life of the endpoint; it is replaced.
func (a *attachment) pair(links []netlink.Link) (netlink.Link, error) {
	host, err := a.h.nl.LinkByName(a.result.HostIf)
	switch {
	case missing(err):
		return a.create(links)
	case err != nil:
		return nil, fmt.Errorf("look up %s: %w", a.result.HostIf, err)
	case host.Type() != "veth":
		return nil, fmt.Errorf("%s (%s): %w", a.result.HostIf, host.Type(), ErrNameClash)
	}
	peer := a.peerOf(host, links)
	if peer == nil {
		a.h.log.Warn("stale link replaced", "endpoint", a.plug.Endpoint.ID, "link", a.result.HostIf)
		if err := a.h.nl.LinkDel(host); err != nil && !missing(err) {
			return nil, fmt.Errorf("delete stale %s: %w", a.result.HostIf, err)
		}
		return a.create(links)
	}
	a.result.HostIfIndex = host.Attrs().Index
	if host.Attrs().MasterIndex != a.bridge.Attrs().Index {
		if err := a.h.nl.LinkSetMaster(host, a.bridge); err != nil {
			return nil, fmt.Errorf("plug %s into its bridge: %w", a.result.HostIf, err)
		}
	}
	if host.Attrs().Flags&flagUp == 0 {
		if err := a.h.nl.LinkSetUp(host); err != nil {
			return nil, fmt.Errorf("set %s up: %w", a.result.HostIf, err)
		}
	}
	return peer, nil
}

// peerOf returns the end of host's pair that is in this namespace, or nil.
func (a *attachment) peerOf(host netlink.Link, links []netlink.Link) netlink.Link {
	id, err := a.h.nl.GetNetNsIdByFd(int(a.ns.Fd()))
	if err != nil || id != host.Attrs().NetNsID {
		return nil
	}
	for _, l := range links {
		if l.Type() == "veth" && l.Attrs().Index == host.Attrs().ParentIndex && l.Attrs().ParentIndex == host.Attrs().Index {
			return l
		}
	}
	return nil
}

func (a *attachment) create(links []netlink.Link) (netlink.Link, error) {
	inside := freeName(links)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = a.result.HostIf, a.mtu(), a.bridge.Attrs().Index
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace, veth.PeerHardwareAddr = inside, netlink.NsFd(a.ns.Fd()), a.mac
	if err := a.h.nl.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("create veth %s: %w", a.result.HostIf, err)
	}
	a.result.HostIfIndex = veth.Attrs().Index
	alias := fmt.Sprintf("fairlead endpoint %s", a.plug.Endpoint.ID)
	// A bridge port speaks no IPv6 itself; without it there are no multicast
	// reports and no addresses on it.
	err := errors.Join(
		a.h.nl.LinkSetAlias(veth, alias[:min(len(alias), 255)]),
		ignore(a.h.nl.LinkSetIP6AddrGenMode(veth, addrGenNone), unix.EAFNOSUPPORT),
		a.h.nl.LinkSetUp(veth),
	)
	if err != nil {
		return nil, fmt.Errorf("set up %s: %w", a.result.HostIf, err)
	}
	peer, err := a.inner.LinkByName(inside)
	if err != nil {
		return nil, fmt.Errorf("look up %s in the workload's namespace: %w", inside, err)
	}
	return peer, nil
}

func (a *attachment) mtu() int { return mtuOf(a.plug.Network) }

// freeName is the lowest ethN that the namespace does not have.
func freeName(links []netlink.Link) string {
	taken := map[string]bool{}
	for _, l := range links {
		taken[l.Attrs().Name] = true
	}
	for i := 0; ; i++ {
		if name := fmt.Sprintf("eth%d", i); !taken[name] {
			return name
		}
	}
}

// configure brings the inner end to what the endpoint says.
func (a *attachment) configure(links []netlink.Link, peer netlink.Link) error {
	for _, l := range links {
		if l.Attrs().Flags&net.FlagLoopback != 0 && l.Attrs().Flags&flagUp == 0 {
			if err := a.inner.LinkSetUp(l); err != nil {
				return fmt.Errorf("set the workload's loopback up: %w", err)
			}
		}
	}
	if a.plug.Endpoint.Addr6().IsValid() {
		if err := tuneInner6(peer.Attrs().Name); err != nil {
			return err
		}
	}
	if peer.Attrs().HardwareAddr.String() != a.result.MAC {
		if err := a.inner.LinkSetHardwareAddr(peer, a.mac); err != nil {
			return fmt.Errorf("set MAC %s: %w", a.mac, err)
		}
	}
	if peer.Attrs().MTU != a.mtu() {
		if err := a.inner.LinkSetMTU(peer, a.mtu()); err != nil {
			return fmt.Errorf("set MTU %d: %w", a.mtu(), err)
		}
	}
	for _, addr := range a.plug.Endpoint.Addrs {
		pool, ok := a.pool(addr)
		if !ok {
			return fmt.Errorf("address %s is in no pool of the network", addr)
		}
		bits := pool.Prefix.Bits()
		if a.routed() {
			bits = addr.BitLen()
		}
		if err := addAddr(a.inner, peer, netip.PrefixFrom(addr, bits)); err != nil {
			return err
		}
		if addr.Is6() {
			if err := addAddr(a.inner, peer, linkLocal(a.mac)); err != nil {
				return err
			}
		}
	}
	if peer.Attrs().Flags&flagUp == 0 {
		if err := a.inner.LinkSetUp(peer); err != nil {
			return fmt.Errorf("set the workload's %s up: %w", peer.Attrs().Name, err)
		}
	}
	if a.routed() {
		if err := a.addOverlayRoutes(peer); err != nil {
			return err
		}
	}
	if a.plug.Network.Internal {
		return nil
	}
	return a.addRoutes(peer)
}

// routed reports whether the endpoint reaches its network by its gateway: the
// others may be on any host.
func (a *attachment) routed() bool { return a.plug.Network.Driver == model.DriverOverlay }

// addOverlayRoutes adds the way to the gateway and, by that, to the whole network.
func (a *attachment) addOverlayRoutes(peer netlink.Link) error {
	for _, addr := range a.plug.Endpoint.Addrs {
		pool, _ := a.pool(addr)
		gateway := netip.PrefixFrom(pool.Gateway, pool.Gateway.BitLen())
		for _, r := range []*netlink.Route{
			{LinkIndex: peer.Attrs().Index, Dst: ipNet(gateway), Scope: scopeOf(gateway)},
			{LinkIndex: peer.Attrs().Index, Dst: ipNet(pool.Prefix), Gw: pool.Gateway.AsSlice()},
		} {
			if err := a.inner.RouteAdd(r); err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("add route to %s: %w", r.Dst, err)
			}
		}
	}
	return nil
}

// linkLocal is the address that the kernel would make of a MAC (RFC 4291,
// appendix A); it would do so later, in the background.
func linkLocal(mac net.HardwareAddr) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{
		0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5],
	}), 64)
}

func (a *attachment) pool(addr netip.Addr) (model.Pool, bool) {
	if addr.Is4() {
		return a.plug.Network.Pool4()
	}
	return a.plug.Network.Pool6()
}

// tuneInner6: addresses are ours to give and usable at once; nobody in the
// network may give further ones or another router.
func tuneInner6(name string) error {
	for _, s := range [][2]string{{"disable_ipv6", "0"}, {"accept_ra", "0"}, {"accept_dad", "0"}, {"addr_gen_mode", "1"}} {
		err := ensureSysctl("net/ipv6/conf/"+name+"/"+s[0], s[1])
		if errors.Is(err, fs.ErrNotExist) {
			return ErrNoIPv6
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// addRoutes adds the default routes. One that exists stays: it is this one, or
// that of the network the workload joined first.
func (a *attachment) addRoutes(peer netlink.Link) error {
	for _, addr := range a.plug.Endpoint.Addrs {
		pool, _ := a.pool(addr)
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if addr.Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		route := &netlink.Route{LinkIndex: peer.Attrs().Index, Dst: ipNet(all), Gw: pool.Gateway.AsSlice()}
		if err := a.inner.RouteAdd(route); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add default route via %s: %w", pool.Gateway, err)
		}
	}
	return nil
}

// ignore turns one expected error into none.
func ignore(err, expected error) error {
	if errors.Is(err, expected) {
		return nil
	}
	return err
}
