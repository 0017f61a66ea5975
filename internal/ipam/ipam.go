// Package ipam decides which addresses a network may hand out: it makes pools,
// picks the next free address of one, and says which other user of an address
// range stands in the way of a new one.
//
// It is pure: values in, values out, no I/O, no state, no goroutine. Who holds
// which address is the registry's knowledge and comes in as a function. Any
// package may call it from any goroutine.
package ipam

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"go4.org/netipx"

	"github.com/fairlead-net/fairlead/internal/model"
)

// Errors of this package, each wrapped with the address or prefix concerned.
var (
	// ErrBadPrefix: the prefix cannot be a pool: not valid, with host bits set,
	// or of a kind of address that no interface carries.
	ErrBadPrefix = errors.New("not usable as a pool")
	// ErrTooWide: a pool wider than /8 (IPv4) or /16 (IPv6).
	ErrTooWide = errors.New("pool too wide")
	// ErrTooSmall: nothing is left for endpoints after the gateway and the
	// reserved ranges.
	ErrTooSmall = errors.New("pool has no room for an endpoint")
	// ErrOutside: an address or a reserved range does not lie in the pool.
	ErrOutside = errors.New("outside the pool")
	// ErrReserved: the address is the pool's gateway, network or broadcast
	// address, or lies in a reserved range.
	ErrReserved = errors.New("reserved in the pool")
	// ErrTaken: the address asked for is held by somebody else.
	ErrTaken = errors.New("address already taken")
	// ErrExhausted: every address of the pool is taken.
	ErrExhausted = errors.New("pool exhausted")
	// ErrNoDefault: every default range is in use; the operator has to name one.
	ErrNoDefault = errors.New("no free default range")
)

// NewPool returns the pool of prefix. A zero gateway means the first usable
// address. The gateway may lie in a reserved range. Errors: ErrBadPrefix,
// ErrTooWide, ErrTooSmall, ErrOutside, ErrReserved (a gateway that is the
// network or broadcast address).
func NewPool(prefix netip.Prefix, gateway netip.Addr, reserved []netip.Prefix) (model.Pool, error) {
	if err := checkPrefix(prefix); err != nil {
		return model.Pool{}, err
	}
	first, last := usable(prefix)
	if !gateway.IsValid() {
		gateway = first
	}
	switch {
	case !prefix.Contains(gateway) || gateway.Zone() != "":
		return model.Pool{}, fmt.Errorf("gateway %s of pool %s: %w", gateway, prefix, ErrOutside)
	case gateway.Less(first) || last.Less(gateway):
		return model.Pool{}, fmt.Errorf("gateway %s is the network or broadcast address of %s: %w", gateway, prefix, ErrReserved)
	}
	sorted := make([]netip.Prefix, 0, len(reserved))
	for _, r := range reserved {
		if !r.IsValid() || r.Bits() < prefix.Bits() || !prefix.Contains(r.Addr()) {
			return model.Pool{}, fmt.Errorf("reserved range %s of pool %s: %w", r, prefix, ErrOutside)
		}
		sorted = append(sorted, r.Masked())
	}
	slices.SortFunc(sorted, comparePrefix)
	pool := model.Pool{Prefix: prefix, Gateway: gateway}
	if len(sorted) > 0 {
		pool.Reserved = slices.Compact(sorted)
	}
	none := func(netip.Addr) bool { return false }
	if _, err := Next(pool, none, netip.Addr{}); err != nil {
		return model.Pool{}, fmt.Errorf("%s with gateway %s: %w", prefix, gateway, ErrTooSmall)
	}
	return pool, nil
}

func checkPrefix(p netip.Prefix) error {
	if !p.IsValid() {
		return fmt.Errorf("invalid prefix: %w", ErrBadPrefix)
	}
	a := p.Addr()
	switch {
	case a.Is4In6():
		return fmt.Errorf("%s is an IPv4-mapped prefix; write it as IPv4: %w", p, ErrBadPrefix)
	case p.Masked() != p:
		return fmt.Errorf("%s has host bits set, did you mean %s: %w", p, p.Masked(), ErrBadPrefix)
	case a.Is4() && p.Bits() < 8, a.Is6() && p.Bits() < 16:
		return fmt.Errorf("%s: %w", p, ErrTooWide)
	}
	for _, bad := range unusable {
		if bad.prefix.Overlaps(p) {
			return fmt.Errorf("%s is in the %s range %s: %w", p, bad.what, bad.prefix, ErrBadPrefix)
		}
	}
	return nil
}

// unusable ranges: RFC 6890 and RFC 4291. Class E (240.0.0.0/4) may be a pool.
var unusable = []struct {
	prefix netip.Prefix
	what   string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "unspecified"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
	{netip.MustParsePrefix("255.255.255.255/32"), "broadcast"},
	{netip.MustParsePrefix("::/96"), "unspecified and loopback"},
	{netip.MustParsePrefix("::ffff:0:0/96"), "IPv4-mapped"},
	{netip.MustParsePrefix("fe80::/10"), "link-local"},
	{netip.MustParsePrefix("ff00::/8"), "multicast"},
}

// Next returns a free address of p: want if it is given, else the lowest free
// one. It asks taken only about addresses that could be handed out, in rising
// order until one is free. Errors: ErrExhausted; with want also ErrOutside,
// ErrReserved and ErrTaken.
func Next(p model.Pool, taken func(netip.Addr) bool, want netip.Addr) (netip.Addr, error) {
	first, last := usable(p.Prefix)
	if want.IsValid() {
		return want, checkWanted(p, taken, want, first, last)
	}
	for a := first; a.IsValid() && !last.Less(a); {
		if end, ok := reservedUntil(p, a); ok {
			a = end.Next()
			continue
		}
		if !taken(a) {
			return a, nil
		}
		a = a.Next()
	}
	return netip.Addr{}, fmt.Errorf("%s: %w", p.Prefix, ErrExhausted)
}

func checkWanted(p model.Pool, taken func(netip.Addr) bool, want, first, last netip.Addr) error {
	if want.Zone() != "" || !p.Prefix.Contains(want) {
		return fmt.Errorf("%s in %s: %w", want, p.Prefix, ErrOutside)
	}
	if want == p.Gateway {
		return fmt.Errorf("%s is the gateway of %s: %w", want, p.Prefix, ErrReserved)
	}
	if want.Less(first) || last.Less(want) {
		return fmt.Errorf("%s is the network or broadcast address of %s: %w", want, p.Prefix, ErrReserved)
	}
	if _, ok := reservedUntil(p, want); ok {
		return fmt.Errorf("%s in %s: %w", want, p.Prefix, ErrReserved)
	}
	if taken(want) {
		return fmt.Errorf("%s in %s: %w", want, p.Prefix, ErrTaken)
	}
	return nil
}

// reservedUntil reports whether a must not be handed out, and the last address
// of the range that forbids it, so that a whole range is skipped in one step.
func reservedUntil(p model.Pool, a netip.Addr) (netip.Addr, bool) {
	if a == p.Gateway {
		return a, true
	}
	for _, r := range p.Reserved {
		if r.Contains(a) {
			return netipx.PrefixLastIP(r), true
		}
	}
	return netip.Addr{}, false
}

// usable is the first and last address of p that an interface may carry. The
// lowest is the network address (IPv4) or the subnet-router anycast address
// (RFC 4291), but on a point-to-point prefix both are usable (RFC 3021, RFC
// 6164), and a single address is itself.
func usable(p netip.Prefix) (first, last netip.Addr) {
	first, last = p.Addr(), netipx.PrefixLastIP(p)
	if p.Bits() >= p.Addr().BitLen()-1 {
		return first, last
	}
	if last.Is4() {
		last = last.Prev()
	}
	return first.Next(), last
}

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}
