package netdrv

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// routeProtocol marks the routes that are ours.
const routeProtocol = 0xFA

// ensureVIPRoutes makes the kernel answer at once to whoever sends to a VIP
// without having been balanced.
func (h *Host) ensureVIPRoutes() error {
	has6 := h.hasIPv6()
	for _, p := range h.cfg.VIPPools {
		if p.Addr().Is6() && !has6 {
			continue // nobody can send there
		}
		err := h.nl.RouteAdd(vipRoute(p))
		if errors.Is(err, unix.EEXIST) {
			err = h.checkVIPRoute(p)
		}
		if err != nil {
			return fmt.Errorf("add route unreachable %s: %w", p, err)
		}
	}
	return nil
}

func vipRoute(p netip.Prefix) *netlink.Route {
	return &netlink.Route{Dst: ipNet(p.Masked()), Type: unix.RTN_UNREACHABLE, Protocol: routeProtocol, Table: unix.RT_TABLE_MAIN}
}

func (h *Host) hasIPv6() bool {
	return h.inHost(func() error {
		if off, err := readSysctl("net/ipv6/conf/all/disable_ipv6"); err != nil || off != "0" {
			return ErrNoIPv6
		}
		return nil
	}) == nil
}

// checkVIPRoute looks whether the route that is there already is ours.
func (h *Host) checkVIPRoute(p netip.Prefix) error {
	mine, err := h.ourRoutes()
	if err != nil {
		return err
	}
	for _, r := range mine {
		if have, ok := prefixOf(r.Dst); ok && have == p.Masked() {
			return nil
		}
	}
	return ErrRouteClash
}

// ourRoutes are the routes of our protocol number, in any table.
func (h *Host) ourRoutes() ([]netlink.Route, error) {
	var all []netlink.Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := whole(func() ([]netlink.Route, error) {
			return h.nl.RouteListFiltered(family, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		all = append(all, routes...)
	}
	return all, nil
}

// forgetFlows drops what conntrack knows of UDP flows to the given ports of the
// host: a caller that never pauses would be sent to where the port led before.
// A kernel that cannot (no ctnetlink) leaves such callers to conntrack's own
// time-out.
func (h *Host) forgetFlows(ports []uint16) {
	if len(ports) == 0 {
		return // reading conntrack's table takes 30 ms and more
	}
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		if _, err := h.nl.ConntrackDeleteFilters(netlink.ConntrackTable, family, udpTo(ports)); err != nil {
			h.log.Warn("UDP flows not moved", "ports", ports, "error", err)
		}
	}
}

// udpTo selects UDP flows whose caller used one of the ports, which are sorted.
type udpTo []uint16

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (ports udpTo) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	_, found := slices.BinarySearch(ports, f.Forward.DstPort)
	return found && f.Forward.Protocol == unix.IPPROTO_UDP
}
