package netdrv

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead-net/fairlead/internal/ipam"
)

// Claims lists the address ranges that the host uses without us: the prefixes of
// its addresses and of its routes in every table, but default routes,
// link-local, loopback and multicast ones and our own. A range that is both an
// address's and a route's is listed once. VIP pools are not in it.
func (h *Host) Claims(ctx context.Context) ([]ipam.Claim, error) {
	if err := live(ctx, "list what the host uses"); err != nil {
		return nil, err
	}
	return h.claims(false)
}

// CheckPools refuses VIP pools that something else uses: an address or a route of
// the host, an earlier network of ours, or the protocols themselves. Every packet
// to such a pool is rejected, so a pool that holds the host's own address would
// cut it off. It changes nothing. Errors: *ipam.OverlapError.
func (h *Host) CheckPools() error {
	claims, err := h.claims(true)
	if err != nil {
		return err
	}
	// DHCP's broadcasts are let through; some of its servers route them.
	claims = slices.DeleteFunc(claims, func(c ipam.Claim) bool { return c.Prefix == broadcast })
	for _, p := range h.cfg.VIPPools {
		if err := ipam.CheckOverlap(p, append(claims, special...)); err != nil {
			return fmt.Errorf("virtual addresses: %w", err)
		}
	}
	return nil
}

// broadcast is to every host of a link (RFC 919).
var broadcast = netip.MustParsePrefix("255.255.255.255/32")

// special are the ranges that no virtual address works in (RFC 6890, RFC 4291).
var special = []ipam.Claim{
	{Prefix: netip.MustParsePrefix("0.0.0.0/8"), Who: "this host (RFC 1122)"},
	{Prefix: netip.MustParsePrefix("127.0.0.0/8"), Who: "loopback"},
	{Prefix: netip.MustParsePrefix("169.254.0.0/16"), Who: "link-local addresses"},
	{Prefix: netip.MustParsePrefix("224.0.0.0/4"), Who: "multicast"},
	{Prefix: netip.MustParsePrefix("::/96"), Who: "loopback"},
	{Prefix: netip.MustParsePrefix("::ffff:0:0/96"), Who: "IPv4-mapped addresses"},
	{Prefix: netip.MustParsePrefix("fe80::/10"), Who: "link-local addresses"},
	{Prefix: netip.MustParsePrefix("ff00::/8"), Who: "multicast"},
}

// claims is Claims, with what our own bridges carry if own is set.
func (h *Host) claims(own bool) ([]ipam.Claim, error) {
	links, err := whole(h.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	names, mine := map[int]string{}, map[int]bool{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
		mine[l.Attrs().Index] = !own && ours(l)
	}
	var claims []ipam.Claim
	seen := map[netip.Prefix]bool{}
	add := func(p netip.Prefix, who string) {
		if p = p.Masked(); claimable(p) && !seen[p] {
			seen[p] = true
			claims = append(claims, ipam.Claim{Prefix: p, Who: who})
		}
	}
	addrs, err := whole(func() ([]netlink.Addr, error) { return h.nl.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if p, ok := prefixOf(a.IPNet); ok && !mine[a.LinkIndex] {
			add(p, fmt.Sprintf("address %s on %s", p, names[a.LinkIndex]))
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		// A table filter without a table means every table.
		routes, err := whole(func() ([]netlink.Route, error) {
			return h.nl.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			p, ok := prefixOf(r.Dst)
			if ok && r.Table != unix.RT_TABLE_LOCAL && r.Protocol != routeProtocol && !mine[r.LinkIndex] {
				add(p, describeRoute(p, r, names))
			}
		}
	}
	return claims, nil
}

func claimable(p netip.Prefix) bool {
	a := p.Addr()
	return p.Bits() > 0 && !a.IsLoopback() && !a.IsMulticast() && !a.IsLinkLocalUnicast()
}

// describeRoute is the route as `ip route` shows it, shortened.
func describeRoute(p netip.Prefix, r netlink.Route, names map[int]string) string {
	var b strings.Builder
	b.WriteString("route ")
	if kind, ok := map[int]string{unix.RTN_BLACKHOLE: "blackhole ", unix.RTN_UNREACHABLE: "unreachable ", unix.RTN_PROHIBIT: "prohibit "}[r.Type]; ok {
		b.WriteString(kind)
	}
	b.WriteString(p.String())
	if r.Gw != nil {
		fmt.Fprintf(&b, " via %s", r.Gw)
	}
	if name := names[r.LinkIndex]; name != "" {
		fmt.Fprintf(&b, " dev %s", name)
	}
	if r.Table != unix.RT_TABLE_MAIN {
		fmt.Fprintf(&b, " table %d", r.Table)
	}
	return b.String()
}

// dumpTries bounds how often a list is read that changes meanwhile.
const dumpTries = 50

// whole reads a list of the kernel's again until nothing changed while it was
// told: one that was interrupted may lack what was there all the time.
func whole[T any](list func() ([]T, error)) ([]T, error) {
	for try := 1; ; try++ {
		all, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) || try == dumpTries {
			return all, err
		}
	}
}
