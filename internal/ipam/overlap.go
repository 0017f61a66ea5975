package ipam

import (
	"fmt"
	"net/netip"
)

// Claim is an address range that somebody uses. Who says who, in words that end
// a sentence: "route 10.0.0.0/8 dev eth0", "network web".
type Claim struct {
	Prefix netip.Prefix
	Who    string
}

// OverlapError says that a prefix cannot be a pool because of a claim.
type OverlapError struct {
	Prefix netip.Prefix
	Claim  Claim
}

// Error names both sides.
func (e *OverlapError) Error() string {
	return fmt.Sprintf("%s overlaps %s of %s", e.Prefix, e.Claim.Prefix, e.Claim.Who)
}

// CheckOverlap returns an *OverlapError for the most specific claim that
// overlaps p, the first of equals; nil if none does. Claims of /0 and /1 do not
// count: they are default routes (a VPN splits its in two halves), which a more
// specific pool is meant to override.
func CheckOverlap(p netip.Prefix, claims []Claim) error {
	var worst *Claim
	for i, c := range claims {
		if !c.Prefix.IsValid() || c.Prefix.Bits() <= 1 || !c.Prefix.Overlaps(p) {
			continue
		}
		if worst == nil || c.Prefix.Bits() > worst.Prefix.Bits() {
			worst = &claims[i]
		}
	}
	if worst == nil {
		return nil
	}
	return &OverlapError{Prefix: p, Claim: *worst}
}

// The ranges that Choose cuts pools from, in this order. The second IPv4 range
// is for hosts that route all of 10.0.0.0/8 elsewhere.
var (
	defaults4 = []netip.Prefix{
		netip.MustParsePrefix("10.210.0.0/16"),
		netip.MustParsePrefix("172.29.0.0/16"),
	}
	defaults6 = []netip.Prefix{netip.MustParsePrefix("fdfa:1ead:210::/48")}
)

// overlays4 are cut into the pools of overlays, which all hosts share.
var overlays4 = []netip.Prefix{
	netip.MustParsePrefix("10.211.0.0/16"),
	netip.MustParsePrefix("10.212.0.0/14"),
	netip.MustParsePrefix("172.30.0.0/16"),
}

// Choose returns the lowest default range that no claim overlaps: a /24, or with
// v6 a unique local /64. The error wraps ErrNoDefault.
func Choose(claims []Claim, v6 bool) (netip.Prefix, error) {
	if v6 {
		return choose(claims, defaults6, 64)
	}
	return choose(claims, defaults4, 24)
}

// ChooseOverlay is Choose for an overlay: a /16, or with v6 a unique local /64.
func ChooseOverlay(claims []Claim, v6 bool) (netip.Prefix, error) {
	if v6 {
		return choose(claims, defaults6, 64)
	}
	return choose(claims, overlays4, 16)
}

func choose(claims []Claim, ranges []netip.Prefix, bits int) (netip.Prefix, error) {
	for _, r := range ranges {
		p := netip.PrefixFrom(r.Addr(), bits)
		for r.Contains(p.Addr()) {
			if CheckOverlap(p, claims) == nil {
				return p, nil
			}
			p = following(p)
		}
	}
	return netip.Prefix{}, fmt.Errorf("in %v: %w", ranges, ErrNoDefault)
}

// following is the prefix of the same length right above p, whose length is a
// whole number of bytes.
func following(p netip.Prefix) netip.Prefix {
	b := p.Addr().AsSlice()
	for i := p.Bits()/8 - 1; i >= 0; i-- {
		b[i]++
		if b[i] != 0 {
			break
		}
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(a, p.Bits())
}
