package ipam_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/fairlead-net/fairlead/internal/ipam"
)

func TestBlocks(t *testing.T) {
	tests := []struct {
		pool, gateway, first, host, address string
		bits                                int
	}{
		{"10.211.0.0/16", "10.211.0.1", "10.211.0.0/24", "10.211.0.2", "10.211.0.3", 24},
		{"10.0.0.0/8", "10.0.0.1", "10.0.0.0/24", "10.0.0.2", "10.0.0.3", 24},
		{"10.1.0.0/20", "10.1.15.254", "10.1.0.0/26", "10.1.0.1", "10.1.0.2", 26},
		{"10.1.0.0/24", "10.1.0.1", "10.1.0.0/28", "10.1.0.2", "10.1.0.3", 28},
		{"fd00::/64", "fd00::1", "fd00::/112", "fd00::2", "fd00::3", 112},
	}
	for _, tt := range tests {
		pool, err := ipam.NewPool(netip.MustParsePrefix(tt.pool), netip.MustParseAddr(tt.gateway), nil)
		if err != nil {
			t.Fatal(err)
		}
		bits, err := ipam.BlockBits(pool.Prefix)
		if err != nil || bits != tt.bits {
			t.Errorf("%s is cut into /%d %v, want /%d", tt.pool, bits, err, tt.bits)
		}
		b, err := ipam.NextBlock(pool, func(netip.Prefix) bool { return false })
		if err != nil || b.String() != tt.first {
			t.Errorf("first block of %s: %s %v, want %s", tt.pool, b, err, tt.first)
		}
		if host := ipam.HostAddr(pool, b); host.String() != tt.host {
			t.Errorf("host's address in %s: %s, want %s", b, host, tt.host)
		}
		a, err := ipam.Next(ipam.BlockPool(pool, b), func(netip.Addr) bool { return false }, netip.Addr{})
		if err != nil || a.String() != tt.address {
			t.Errorf("first address of %s: %s %v, want %s", b, a, err, tt.address)
		}
		if of, err := ipam.BlockOf(pool, a); err != nil || of != b {
			t.Errorf("block of %s: %s %v, want %s", a, of, err, b)
		}
	}
	if _, err := ipam.BlockBits(netip.MustParsePrefix("10.0.0.0/25")); !errors.Is(err, ipam.ErrTooSmall) {
		t.Errorf("a /25 for hosts to share: %v", err)
	}
}

// Every block is given once, those that the pool reserves are left out, and then the pool is exhausted.
func TestBlocksAreGivenOnce(t *testing.T) {
	pool, err := ipam.NewPool(netip.MustParsePrefix("10.1.0.0/24"), netip.Addr{}, []netip.Prefix{netip.MustParsePrefix("10.1.0.32/27")})
	if err != nil {
		t.Fatal(err)
	}
	taken := map[netip.Prefix]bool{}
	for range 14 {
		b, err := ipam.NextBlock(pool, func(p netip.Prefix) bool { return taken[p] })
		if err != nil || taken[b] || b.Overlaps(pool.Reserved[0]) {
			t.Fatalf("%s after %d: %v", b, len(taken), err)
		}
		taken[b] = true
	}
	if b, err := ipam.NextBlock(pool, func(p netip.Prefix) bool { return taken[p] }); !errors.Is(err, ipam.ErrExhausted) {
		t.Errorf("a 15th block: %s %v", b, err)
	}
	inside := ipam.BlockPool(pool, netip.MustParsePrefix("10.1.0.0/28"))
	for _, held := range []string{"10.1.0.1", "10.1.0.2"} { // the gateway, the host
		if _, err := ipam.Next(inside, func(netip.Addr) bool { return false }, netip.MustParseAddr(held)); !errors.Is(err, ipam.ErrReserved) {
			t.Errorf("%s: %v, want it reserved", held, err)
		}
	}
}
