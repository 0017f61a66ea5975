package netdrv

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead-net/fairlead/internal/model"
)

const defaultMTU = 1500

// gatewayLL is each bridge's link-local address: the same on every one, so that
// an endpoint's IPv6 next hop never depends on the host.
var gatewayLL = netip.MustParsePrefix("fe80::1/64")

// networksState is what EnsureNetwork has to keep up.
type networksState struct {
	busy keyed // by the bridge's name

	mu     sync.Mutex // guards following
	wanted map[model.NetworkName]wantedNetwork
}

// EnsureNetwork makes the network's bridge, or completes it: up, with a stable
// MAC address and the pools' gateways. It turns on forwarding for the families
// the network has; see DATAPATH rule 4 for the order. Addresses that are not the
// network's are taken off the bridge. Errors: ErrNoIPv6, ErrNameClash.
func (h *Host) EnsureNetwork(ctx context.Context, n model.Network) error {
	h.purging.RLock()
	defer h.purging.RUnlock()
	defer h.networks.busy.lock(BridgeName(n.Name))()
	if err := live(ctx, "network "+string(n.Name)); err != nil {
		return err
	}
	if err := h.ensureNetwork(n); err != nil {
		return fmt.Errorf("network %s: %w", n.Name, err)
	}
	h.networks.want(wantedNetwork{Network: n})
	return nil
}

// wantedNetwork is a network and, if it is an overlay, what was said of that.
type wantedNetwork struct {
	model.Network
	overlay *Overlay
}

func (s *networksState) want(n wantedNetwork) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.wanted == nil {
		s.wanted = map[model.NetworkName]wantedNetwork{}
	}
	s.wanted[n.Name] = n
}

func (h *Host) ensureNetwork(n model.Network) error {
	var gateways []netip.Prefix
	for _, p := range n.Pools {
		gateways = append(gateways, netip.PrefixFrom(p.Gateway, p.Prefix.Bits()))
	}
	_, err := h.bridge(n, gateways)
	return err
}

// bridge makes a network's bridge, or completes it, with the given addresses.
func (h *Host) bridge(n model.Network, addrs []netip.Prefix) (netlink.Link, error) {
	_, has6 := n.Pool6()
	err := h.inHost(func() error {
		if _, has4 := n.Pool4(); has4 {
			if err := h.known.enableForwarding4(); err != nil {
				return err
			}
		}
		if has6 {
			return h.known.enableForwarding6()
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	br, err := h.ensureBridge(n)
	if err != nil {
		return nil, err
	}
	if has6 {
		if err := h.inHost(func() error { return tuneBridge6(br.Attrs().Name) }); err != nil {
			return nil, err
		}
		addrs = append(slices.Clone(addrs), gatewayLL)
	}
	if br.Attrs().Flags&flagUp == 0 {
		if err := h.nl.LinkSetUp(br); err != nil {
			return nil, fmt.Errorf("set %s up: %w", br.Attrs().Name, err)
		}
	}
	return br, h.ensureAddrs(br, addrs)
}

func (h *Host) ensureBridge(n model.Network) (netlink.Link, error) {
	name, mtu := BridgeName(n.Name), mtuOf(n)
	alias := "fairlead network " + string(n.Name)
	link, err := h.nl.LinkByName(name)
	switch {
	case missing(err):
		return h.createBridge(n, name, alias, mtu)
	case err != nil:
		return nil, fmt.Errorf("look up %s: %w", name, err)
	case link.Type() != "bridge" || (link.Attrs().Alias != "" && link.Attrs().Alias != alias):
		return nil, fmt.Errorf("%s (%s %q): %w", name, link.Type(), link.Attrs().Alias, ErrNameClash)
	}
	if link.Attrs().MTU != mtu {
		if err := h.nl.LinkSetMTU(link, mtu); err != nil {
			return nil, fmt.Errorf("set MTU of %s: %w", name, err)
		}
	}
	return link, nil
}

// mtuOf is the MTU of a network's links.
func mtuOf(n model.Network) int {
	if n.MTU > 0 {
		return n.MTU
	}
	return defaultMTU
}

func (h *Host) createBridge(n model.Network, name, alias string, mtu int) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = name, mtu, bridgeMAC(n.Name)
	off := false
	// Without a querier, snooping can only lose neighbour discovery.
	br := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off}
	if err := h.nl.LinkAdd(br); err != nil {
		return nil, fmt.Errorf("create bridge %s: %w", name, err)
	}
	link, err := h.nl.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("look up new bridge %s: %w", name, err)
	}
	if err := h.nl.LinkSetAlias(link, alias); err != nil {
		return nil, fmt.Errorf("label bridge %s: %w", name, err)
	}
	h.log.Info("bridge created", "network", n.Name, "link", name)
	return link, nil
}

// tuneBridge6 makes the bridge a router's interface: it learns nothing from
// advertisements, and its own addresses are usable at once.
func tuneBridge6(name string) error {
	for _, s := range [][2]string{
		{"disable_ipv6", "0"}, {"accept_ra", "0"}, {"accept_dad", "0"}, {"addr_gen_mode", "1"}, {"forwarding", "1"},
	} {
		if err := ensureSysctl("net/ipv6/conf/"+name+"/"+s[0], s[1]); err != nil {
			return err
		}
	}
	return nil
}

// ensureAddrs makes a bridge carry the given addresses and no other ones that are
// not link-local.
func (h *Host) ensureAddrs(br netlink.Link, want []netip.Prefix) error {
	have, err := whole(func() ([]netlink.Addr, error) { return h.nl.AddrList(br, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", br.Attrs().Name, err)
	}
	present := map[netip.Prefix]bool{}
	for _, a := range have {
		p, ok := prefixOf(a.IPNet)
		if ok {
			present[p] = true
		}
	}
	wanted := map[netip.Prefix]bool{}
	for _, p := range want {
		wanted[p] = true
		if present[p] {
			continue
		}
		if err := addAddr(h.nl, br, p); err != nil {
			return err
		}
	}
	for _, a := range have {
		if p, ok := prefixOf(a.IPNet); ok && !wanted[p] && !p.Addr().IsLinkLocalUnicast() {
			if err := h.nl.AddrDel(br, &a); err != nil {
				return fmt.Errorf("remove address %s from %s: %w", p, br.Attrs().Name, err)
			}
		}
	}
	return nil
}

// addAddr puts an address on a link; IPv6 without duplicate address detection,
// since leases are unique and waiting costs a second.
func addAddr(nl *netlink.Handle, link netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
		if p.Addr().IsLinkLocalUnicast() {
			a.Scope = unix.RT_SCOPE_LINK
		}
	}
	if err := nl.AddrAdd(link, a); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add address %s to %s: %w", p, link.Attrs().Name, err)
	}
	return nil
}

// RemoveNetwork deletes the network's bridge. Endpoints still on it lose their
// network; the caller detaches them first. No bridge is no error. An overlay's
// VXLAN device and routes go as well. Forwarding stays on until Purge.
func (h *Host) RemoveNetwork(ctx context.Context, name model.NetworkName) error {
	defer h.networks.busy.lock(BridgeName(name))()
	if err := live(ctx, "network "+string(name)); err != nil {
		return err
	}
	h.networks.mu.Lock()
	was, known := h.networks.wanted[name]
	delete(h.networks.wanted, name)
	h.networks.mu.Unlock()
	if known && was.overlay != nil {
		if err := h.syncRoutes(was.Network, nil); err != nil {
			return fmt.Errorf("network %s: %w", name, err)
		}
	}
	for _, link := range []string{TunnelName(name), BridgeName(name)} {
		if err := h.removeLink(name, link); err != nil {
			return fmt.Errorf("network %s: %w", name, err)
		}
	}
	return nil
}

// removeLink deletes one of a network's links.
func (h *Host) removeLink(network model.NetworkName, name string) error {
	link, err := h.nl.LinkByName(name)
	if missing(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look up %s: %w", name, err)
	}
	if !ours(link) {
		return fmt.Errorf("%s: %w", name, ErrNameClash)
	}
	if err := h.nl.LinkDel(link); err != nil && !missing(err) {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	h.log.Info("link removed", "network", network, "link", name, "kind", link.Type())
	return nil
}

// wantedNetworks are those that EnsureNetwork made and nobody removed.
func (h *Host) wantedNetworks() []model.Network {
	h.networks.mu.Lock()
	defer h.networks.mu.Unlock()
	all := make([]model.Network, 0, len(h.networks.wanted))
	for _, n := range h.networks.wanted {
		all = append(all, n.Network)
	}
	return all
}
