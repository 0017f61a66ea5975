package ipam

import (
	"fmt"
	"net/netip"
	"slices"

	"go4.org/netipx"

	"github.com/fairlead-net/fairlead/internal/model"
)

// BlockBits is the length of the blocks that an overlay's pool is cut into: /24 of
// a /16 or wider, less of less, so that there are at least 16 of them; /112 of an
// IPv6 pool. A pool that is too narrow to be cut gives ErrTooSmall.
func BlockBits(pool netip.Prefix) (int, error) {
	bits := 112
	if pool.Addr().Is4() {
		switch {
		case pool.Bits() <= 16:
			bits = 24
		case pool.Bits() <= 20:
			bits = 26
		default:
			bits = 28
		}
	}
	const blocks = 4 // as a power of two
	if pool.Bits() > bits-blocks {
		return 0, fmt.Errorf("%s cannot be shared out among hosts: an overlay's pool is /%d or wider: %w", pool, bits-blocks, ErrTooSmall)
	}
	return bits, nil
}

// NextBlock returns the lowest block of an overlay's pool that nobody has and in
// which an address can be handed out. Errors: ErrExhausted, ErrTooSmall.
func NextBlock(p model.Pool, taken func(netip.Prefix) bool) (netip.Prefix, error) {
	bits, err := BlockBits(p.Prefix)
	if err != nil {
		return netip.Prefix{}, err
	}
	none := func(netip.Addr) bool { return false }
	for b := netip.PrefixFrom(p.Prefix.Addr(), bits); p.Prefix.Contains(b.Addr()); {
		if !taken(b) {
			if _, err := Next(BlockPool(p, b), none, netip.Addr{}); err == nil {
				return b, nil
			}
		}
		next := netipx.PrefixLastIP(b).Next()
		if !next.IsValid() {
			break
		}
		b = netip.PrefixFrom(next, bits)
	}
	return netip.Prefix{}, fmt.Errorf("every block of %s belongs to a host: %w", p.Prefix, ErrExhausted)
}

// BlockOf is the block of an overlay's pool that an address lies in.
func BlockOf(p model.Pool, a netip.Addr) (netip.Prefix, error) {
	if !p.Prefix.Contains(a) {
		return netip.Prefix{}, fmt.Errorf("%s in %s: %w", a, p.Prefix, ErrOutside)
	}
	bits, err := BlockBits(p.Prefix)
	if err != nil {
		return netip.Prefix{}, err
	}
	return a.Prefix(bits)
}

// HostAddr is the address that the host of a block has itself: the first usable one
// that is not the pool's gateway, which all hosts share.
func HostAddr(p model.Pool, block netip.Prefix) netip.Addr {
	first, _ := usable(block)
	if first == p.Gateway {
		return first.Next()
	}
	return first
}

// BlockPool is what a host hands out of its block: what the pool reserves stays
// reserved, and so does the host's own address.
func BlockPool(p model.Pool, block netip.Prefix) model.Pool {
	b := model.Pool{Prefix: block, Gateway: HostAddr(p, block)}
	for _, r := range append(slices.Clone(p.Reserved), netip.PrefixFrom(p.Gateway, p.Gateway.BitLen())) {
		if r.Overlaps(block) {
			b.Reserved = append(b.Reserved, r)
		}
	}
	slices.SortFunc(b.Reserved, comparePrefix)
	return b
}
