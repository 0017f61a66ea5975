package netdrv

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead-net/fairlead/internal/ipam"
	"github.com/fairlead-net/fairlead/internal/model"
)

// TunnelPort is the UDP port that hosts send overlays' packets to: neither VXLAN's
// own (4789, which Swarm uses too) nor flannel's (8472).
const TunnelPort = 14789

// TunnelOverhead is what an overlay's packets grow by on the way, at most: the
// headers of IPv6, UDP, VXLAN and the inner Ethernet, in bytes.
const TunnelOverhead = 40 + 8 + 8 + 14

// ErrUnreachable says that an overlay's transport does not lead to a host.
var ErrUnreachable = errors.New("the overlay's transport does not lead there")

// Overlay is what one host has to know of a network that spans several.
type Overlay struct {
	Network model.Network
	// Node and Addr are this host's name and its address for the others.
	Node model.NodeName
	Addr netip.Addr
	// Blocks are the parts of the network's pools that this host's endpoints are in.
	Blocks []netip.Prefix
	// Peers are the other hosts that have blocks, sorted by name.
	Peers []Peer
}

// Peer is another host that has blocks of an overlay.
type Peer struct {
	Node   model.NodeName
	Addr   netip.Addr
	Blocks []netip.Prefix
}

// clone returns a copy that shares nothing with o.
func (o Overlay) clone() Overlay {
	o.Network, o.Blocks, o.Peers = o.Network.Clone(), slices.Clone(o.Blocks), slices.Clone(o.Peers)
	for i := range o.Peers {
		o.Peers[i].Blocks = slices.Clone(o.Peers[i].Blocks)
	}
	return o
}

// TunnelName is the name of an overlay's VXLAN device.
func TunnelName(n model.NetworkName) string { return "flx" + shortHash(string(n)) }

// tunnelMAC is the address of a host's VXLAN device of a network: every host can
// tell it of every other.
func tunnelMAC(n model.NetworkName, node model.NodeName) net.HardwareAddr {
	sum := sha256.Sum256([]byte(string(n) + "\x00" + string(node)))
	return net.HardwareAddr{0x02, 0xfc, sum[0], sum[1], sum[2], sum[3]}
}

// EnsureOverlay makes this host a part of the overlay: its bridge, the VXLAN device,
// and the ways to the other hosts' blocks; what is there of hosts that are no peers
// any more goes. Nothing is learned and nothing flooded: every host's address is
// static. A peer that the transport does not lead to gives ErrUnreachable, and
// does not keep the others from being reached. Errors: ErrNoIPv6, ErrNameClash.
func (h *Host) EnsureOverlay(ctx context.Context, o Overlay) error {
	h.purging.RLock()
	defer h.purging.RUnlock()
	defer h.networks.busy.lock(BridgeName(o.Network.Name))()
	if err := live(ctx, "network "+string(o.Network.Name)); err != nil {
		return err
	}
	err := h.ensureOverlay(o)
	if err == nil || errors.Is(err, ErrUnreachable) {
		kept := o.clone()
		h.networks.want(wantedNetwork{kept.Network, &kept})
	}
	if err != nil {
		return fmt.Errorf("network %s: %w", o.Network.Name, err)
	}
	return nil
}

func (h *Host) ensureOverlay(o Overlay) error {
	br, err := h.bridge(o.Network, o.addresses())
	if err != nil {
		return err
	}
	var tunnel netlink.Link
	if o.Network.Transport != model.TransportDirect && len(o.Peers) > 0 {
		if tunnel, err = h.ensureTunnel(o); err != nil {
			return err
		}
	}
	neighbours, err := h.linkNeighbours(o.Addr)
	if err != nil {
		return err
	}
	w := ways{h: h, o: o, bridge: br, tunnel: tunnel, near: neighbours}
	err = w.plan()
	return errors.Join(err, h.syncRoutes(o.Network, w.routes), h.syncTunnel(tunnel, w.ends))
}

// pool is the network's pool of a block's family.
func (o Overlay) pool(block netip.Prefix) (model.Pool, bool) {
	if block.Addr().Is4() {
		return o.Network.Pool4()
	}
	return o.Network.Pool6()
}

// addresses are those of the bridge: the gateways, which every host has, and the
// host's own. None makes the kernel believe that a whole pool is on the link.
func (o Overlay) addresses() []netip.Prefix {
	var all []netip.Prefix
	alone := func(a netip.Addr) { all = append(all, netip.PrefixFrom(a, a.BitLen())) }
	for _, p := range o.Network.Pools {
		alone(p.Gateway)
	}
	for _, b := range o.Blocks {
		if p, ok := o.pool(b); ok {
			alone(ipam.HostAddr(p, b))
		}
	}
	return all
}

// ensureTunnel makes the VXLAN device. One that was made for another address or
// identifier is replaced.
func (h *Host) ensureTunnel(o Overlay) (netlink.Link, error) {
	name, alias := TunnelName(o.Network.Name), "fairlead overlay "+string(o.Network.Name)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = name, mtuOf(o.Network), tunnelMAC(o.Network.Name, o.Node)
	want := &netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: int(o.Network.VNI), SrcAddr: o.Addr.AsSlice(), Port: TunnelPort, Learning: false,
		// Without a checksum the inner ones still hold; IPv6 asks for one (RFC 8200, 8.1).
		UDPCSum: o.Addr.Is6(),
	}
	link, err := h.nl.LinkByName(name)
	switch {
	case missing(err):
	case err != nil:
		return nil, fmt.Errorf("look up %s: %w", name, err)
	default:
		have, is := link.(*netlink.Vxlan)
		switch {
		case !is || have.Alias != "" && have.Alias != alias:
			return nil, fmt.Errorf("%s (%s %q): %w", name, link.Type(), link.Attrs().Alias, ErrNameClash)
		case have.VxlanId == want.VxlanId && have.SrcAddr.Equal(want.SrcAddr) && have.Port == want.Port && have.MTU == want.MTU:
			return link, h.upTunnel(link)
		}
		if err := h.nl.LinkDel(link); err != nil && !missing(err) {
			return nil, fmt.Errorf("replace %s: %w", name, err)
		}
	}
	if err := h.nl.LinkAdd(want); err != nil {
		return nil, fmt.Errorf("create VXLAN device %s: %w", name, err)
	}
	if link, err = h.nl.LinkByName(name); err != nil {
		return nil, fmt.Errorf("look up new %s: %w", name, err)
	}
	if err := h.nl.LinkSetAlias(link, alias); err != nil {
		return nil, fmt.Errorf("label %s: %w", name, err)
	}
	h.log.Info("overlay device created", "network", o.Network.Name, "link", name, "vni", o.Network.VNI)
	return link, h.upTunnel(link)
}

// upTunnel sets a VXLAN device up, without addresses of its own.
func (h *Host) upTunnel(link netlink.Link) error {
	name := link.Attrs().Name
	err := h.inHost(func() error {
		err := tuneBridge6(name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // no IPv6 on this host; whether the network needs it the bridge has told
		}
		return err
	})
	if err == nil && link.Attrs().Flags&flagUp == 0 {
		err = h.nl.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// onLink is a prefix that a link of the host is in.
type onLink struct {
	prefix netip.Prefix
	index  int
}

// linkNeighbours are the prefixes on the link that has the host's own address: who
// is in them can be routed to.
func (h *Host) linkNeighbours(own netip.Addr) ([]onLink, error) {
	addrs, err := whole(func() ([]netlink.Addr, error) { return h.nl.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	index := 0
	for _, a := range addrs {
		if p, ok := prefixOf(a.IPNet); ok && p.Addr() == own {
			index = a.LinkIndex
		}
	}
	var near []onLink
	for _, a := range addrs {
		if p, ok := prefixOf(a.IPNet); ok && a.LinkIndex == index && !p.IsSingleIP() && !p.Addr().IsLinkLocalUnicast() && !p.Addr().IsLoopback() {
			near = append(near, onLink{p.Masked(), index})
		}
	}
	return near, nil
}

// end is the other end of a tunnel.
type end struct {
	addr netip.Addr // of the host
	mac  string     // of its device
	hops []netip.Addr
}

// ways is the work of finding how each block is reached.
type ways struct {
	h      *Host
	o      Overlay
	bridge netlink.Link
	tunnel netlink.Link // nil: there is none
	near   []onLink
	routes []netlink.Route
	ends   []end
}

func (w *ways) plan() error {
	for _, p := range w.o.Network.Pools {
		// What nobody has is not to leave by the default route.
		w.routes = append(w.routes, netlink.Route{Dst: ipNet(p.Prefix), Type: unix.RTN_UNREACHABLE, Priority: unreachableMetric})
	}
	for _, b := range w.o.Blocks {
		pool, ok := w.o.pool(b)
		if !ok {
			continue
		}
		w.routes = append(w.routes, netlink.Route{
			Dst: ipNet(b), LinkIndex: w.bridge.Attrs().Index, Scope: scopeOf(b), Src: ipam.HostAddr(pool, b).AsSlice(),
		})
	}
	var errs []error
	for _, p := range w.o.Peers {
		errs = append(errs, w.peer(p))
	}
	return errors.Join(errs...)
}

// scopeOf is that of a route to what is on the link; IPv6 has no other.
func scopeOf(p netip.Prefix) netlink.Scope {
	if p.Addr().Is4() {
		return netlink.SCOPE_LINK
	}
	return netlink.SCOPE_UNIVERSE
}

// unreachableMetric is behind every other route.
const unreachableMetric = 1 << 20

func (w *ways) peer(p Peer) error {
	mac := tunnelMAC(w.o.Network.Name, p.Node)
	hops := map[bool]netip.Addr{}
	var errs []error
	for _, b := range p.Blocks {
		pool, ok := w.o.pool(b)
		if !ok {
			continue
		}
		src := w.source(b)
		if via, ok := w.direct(p, b); ok {
			w.routes = append(w.routes, netlink.Route{Dst: ipNet(b), LinkIndex: via.index, Gw: p.Addr.AsSlice(), Src: src})
			continue
		}
		if w.tunnel == nil {
			errs = append(errs, fmt.Errorf("node %s at %s: %w: transport %q needs a link shared with it, of the same address family as %s",
				p.Node, p.Addr, ErrUnreachable, w.o.Network.Transport, b))
			continue
		}
		if p.Addr.Is4() != w.o.Addr.Is4() {
			errs = append(errs, fmt.Errorf("node %s at %s: %w: this host's address is %s, of the other address family", p.Node, p.Addr, ErrUnreachable, w.o.Addr))
			continue
		}
		hop, known := hops[b.Addr().Is4()]
		if !known {
			hop = ipam.HostAddr(pool, b)
			if b.Addr().Is6() {
				hop = linkLocal(mac).Addr()
			}
			hops[b.Addr().Is4()] = hop
		}
		w.routes = append(w.routes, netlink.Route{
			Dst: ipNet(b), LinkIndex: w.tunnel.Attrs().Index, Gw: hop.AsSlice(), Flags: int(netlink.FLAG_ONLINK), Src: src,
		})
	}
	if len(hops) > 0 {
		e := end{addr: p.Addr, mac: mac.String()}
		for _, hop := range hops {
			e.hops = append(e.hops, hop)
		}
		slices.SortFunc(e.hops, netip.Addr.Compare)
		w.ends = append(w.ends, e)
	}
	return errors.Join(errs...)
}

// direct says by which link a block can be routed to without a tunnel.
func (w *ways) direct(p Peer, block netip.Prefix) (onLink, bool) {
	if w.o.Network.Transport == model.TransportVXLAN || p.Addr.Is4() != block.Addr().Is4() {
		return onLink{}, false
	}
	for _, n := range w.near {
		if n.prefix.Contains(p.Addr) {
			return n, true
		}
	}
	return onLink{}, false
}

// source is the host's own address for what it sends to a block itself: answers
// to it come back into its own block.
func (w *ways) source(block netip.Prefix) net.IP {
	for _, b := range w.o.Blocks {
		if b.Addr().Is4() != block.Addr().Is4() {
			continue
		}
		if pool, ok := w.o.pool(b); ok {
			return ipam.HostAddr(pool, b).AsSlice()
		}
	}
	return nil
}

// syncRoutes makes our routes within the network's pools the given ones.
func (h *Host) syncRoutes(n model.Network, want []netlink.Route) error {
	have, err := h.ourRoutes()
	if err != nil {
		return err
	}
	wanted := map[routeKey]*netlink.Route{}
	for i := range want {
		want[i].Protocol, want[i].Table = routeProtocol, unix.RT_TABLE_MAIN
		wanted[keyOfRoute(want[i])] = &want[i]
	}
	var errs []error
	for _, r := range have {
		p, ok := prefixOf(r.Dst)
		if !ok || !inPools(n, p) {
			continue
		}
		if w := wanted[keyOfRoute(r)]; w != nil && sameRoute(r, *w) {
			delete(wanted, keyOfRoute(r))
		} else if w == nil {
			if err := h.nl.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("delete route to %s: %w", p, err))
			}
		}
	}
	for _, r := range wanted {
		if err := h.nl.RouteReplace(r); err != nil {
			errs = append(errs, fmt.Errorf("set route to %s: %w", r.Dst, err))
		}
	}
	return errors.Join(errs...)
}

// routeKey is what the kernel tells routes apart by when it replaces one.
type routeKey struct {
	dst    string
	metric int
}

func keyOfRoute(r netlink.Route) routeKey {
	metric := r.Priority
	if r.Dst.IP.To4() == nil && metric == 0 {
		metric = 1024 // IP6_RT_PRIO_USER: what IPv6 makes of none
	}
	return routeKey{r.Dst.String(), metric}
}

func sameRoute(a, b netlink.Route) bool {
	typed := func(r netlink.Route) int { return max(r.Type, unix.RTN_UNICAST) }
	if typed(a) != typed(b) {
		return false
	}
	if typed(a) == unix.RTN_UNREACHABLE {
		return true // IPv6 shows it on lo
	}
	return a.LinkIndex == b.LinkIndex && a.Gw.Equal(b.Gw) && a.Src.Equal(b.Src)
}

func inPools(n model.Network, p netip.Prefix) bool {
	return slices.ContainsFunc(n.Pools, func(pool model.Pool) bool {
		return pool.Prefix.Bits() <= p.Bits() && pool.Prefix.Contains(p.Addr())
	})
}

// syncTunnel makes the static neighbours of a VXLAN device and the hosts behind
// them the given ones.
func (h *Host) syncTunnel(tunnel netlink.Link, ends []end) error {
	if tunnel == nil {
		return nil
	}
	index := tunnel.Attrs().Index
	want := map[string]netlink.Neigh{}
	for _, e := range ends {
		mac, err := net.ParseMAC(e.mac)
		if err != nil {
			return err
		}
		for _, n := range append([]netlink.Neigh{{
			LinkIndex: index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT, HardwareAddr: mac, IP: e.addr.AsSlice(),
		}}, neighbours(index, mac, e.hops)...) {
			want[neighKey(n)] = n
		}
	}
	var errs []error
	for _, family := range []int{unix.AF_BRIDGE, netlink.FAMILY_V4, netlink.FAMILY_V6} {
		have, err := whole(func() ([]netlink.Neigh, error) { return h.nl.NeighList(index, family) })
		if err != nil {
			errs = append(errs, fmt.Errorf("list neighbours of %s: %w", tunnel.Attrs().Name, err))
			continue
		}
		for _, n := range have {
			n.Family = family
			if _, wanted := want[neighKey(n)]; wanted && n.State&netlink.NUD_PERMANENT != 0 {
				delete(want, neighKey(n))
			} else if !wanted && n.State&netlink.NUD_NOARP == 0 {
				if err := h.nl.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
					errs = append(errs, fmt.Errorf("delete neighbour %s of %s: %w", n.IP, tunnel.Attrs().Name, err))
				}
			}
		}
	}
	for _, n := range want {
		if err := h.nl.NeighSet(&n); err != nil {
			errs = append(errs, fmt.Errorf("set neighbour %s of %s: %w", n.IP, tunnel.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}

func neighbours(index int, mac net.HardwareAddr, hops []netip.Addr) []netlink.Neigh {
	var all []netlink.Neigh
	for _, hop := range hops {
		family := netlink.FAMILY_V4
		if hop.Is6() {
			family = netlink.FAMILY_V6
		}
		all = append(all, netlink.Neigh{LinkIndex: index, Family: family, State: netlink.NUD_PERMANENT, HardwareAddr: mac, IP: hop.AsSlice()})
	}
	return all
}

func neighKey(n netlink.Neigh) string {
	return fmt.Sprint(n.Family, " ", n.HardwareAddr, " ", n.IP)
}
