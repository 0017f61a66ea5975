package ipam_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead-net/fairlead/internal/ipam"
	"github.com/fairlead-net/fairlead/internal/model"
)

func addr(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s)
}

func prefixes(s string) (all []netip.Prefix) {
	for f := range strings.FieldsSeq(s) {
		all = append(all, netip.MustParsePrefix(f))
	}
	return all
}

func TestNewPool(t *testing.T) {
	for _, c := range []struct {
		prefix, gateway, reserved string
		want                      string // gateway
		err                       error
		text                      string
	}{
		{"10.1.0.0/24", "", "", "10.1.0.1", nil, ""},
		{"10.1.0.0/24", "10.1.0.254", "", "10.1.0.254", nil, ""},
		{"10.1.0.0/24", "", "10.1.0.0/28", "10.1.0.1", nil, ""},
		{"fd00:1::/64", "", "", "fd00:1::1", nil, ""},
		{"fd00:1::/64", "fd00:1::ffff:ffff:ffff:ffff", "", "fd00:1::ffff:ffff:ffff:ffff", nil, ""},
		{"240.1.0.0/24", "", "", "240.1.0.1", nil, ""},
		{"10.1.0.0/31", "", "", "10.1.0.0", nil, ""},
		{"10.1.0.0/31", "10.1.0.1", "", "10.1.0.1", nil, ""},
		{"fd00::/127", "", "", "fd00::", nil, ""},
		{"10.1.0.0/30", "", "", "10.1.0.1", nil, ""},

		{"10.1.0.0/32", "", "", "", ipam.ErrTooSmall, "10.1.0.0/32 with gateway 10.1.0.0"},
		{"fd00::1/128", "", "", "", ipam.ErrTooSmall, ""},
		{"10.1.0.0/30", "", "10.1.0.2/32", "", ipam.ErrTooSmall, ""},
		{"10.1.0.0/24", "", "10.1.0.0/24", "", ipam.ErrTooSmall, ""},
		{"10.1.0.5/24", "", "", "", ipam.ErrBadPrefix, "did you mean 10.1.0.0/24"},
		{"::ffff:10.1.0.0/120", "", "", "", ipam.ErrBadPrefix, "IPv4-mapped"},
		{"127.0.0.0/24", "", "", "", ipam.ErrBadPrefix, "loopback"},
		{"224.0.0.0/24", "", "", "", ipam.ErrBadPrefix, "multicast"},
		{"169.254.0.0/24", "", "", "", ipam.ErrBadPrefix, "link-local"},
		{"fe80::/64", "", "", "", ipam.ErrBadPrefix, "link-local"},
		{"ff00::/64", "", "", "", ipam.ErrBadPrefix, "multicast"},
		{"10.0.0.0/7", "", "", "", ipam.ErrTooWide, ""},
		{"0.0.0.0/0", "", "", "", ipam.ErrTooWide, ""},
		{"fc00::/7", "", "", "", ipam.ErrTooWide, ""},
		{"10.1.0.0/24", "10.2.0.1", "", "", ipam.ErrOutside, "gateway 10.2.0.1"},
		{"10.1.0.0/24", "fd00::1", "", "", ipam.ErrOutside, ""},
		{"10.1.0.0/24", "10.1.0.0", "", "", ipam.ErrReserved, "network or broadcast"},
		{"10.1.0.0/24", "10.1.0.255", "", "", ipam.ErrReserved, "network or broadcast"},
		{"fd00::/64", "fd00::", "", "", ipam.ErrReserved, ""},
		{"10.1.0.0/24", "", "10.2.0.0/28", "", ipam.ErrOutside, "reserved range 10.2.0.0/28"},
		{"10.1.0.0/24", "", "10.0.0.0/8", "", ipam.ErrOutside, ""},
	} {
		pool, err := ipam.NewPool(netip.MustParsePrefix(c.prefix), addr(c.gateway), prefixes(c.reserved))
		if !errors.Is(err, c.err) || (c.err == nil && pool.Gateway != addr(c.want)) {
			t.Errorf("NewPool(%s, %q, %q) = %v, %v; want gateway %q, error %v", c.prefix, c.gateway, c.reserved, pool, err, c.want, c.err)
		}
		if c.text != "" && !strings.Contains(err.Error(), c.text) {
			t.Errorf("NewPool(%s): error %q does not say %q", c.prefix, err, c.text)
		}
	}
	if _, err := ipam.NewPool(netip.Prefix{}, netip.Addr{}, nil); !errors.Is(err, ipam.ErrBadPrefix) {
		t.Errorf("zero prefix: %v", err)
	}
}

func mustPool(t *testing.T, prefix, gateway, reserved string) model.Pool {
	t.Helper()
	p, err := ipam.NewPool(netip.MustParsePrefix(prefix), addr(gateway), prefixes(reserved))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestNextUntilExhausted hands out everything a small pool has.
func TestNextUntilExhausted(t *testing.T) {
	for _, c := range []struct {
		prefix, gateway, reserved, want string
	}{
		{"10.1.0.0/29", "", "", "10.1.0.2 10.1.0.3 10.1.0.4 10.1.0.5 10.1.0.6"},
		{"10.1.0.0/29", "10.1.0.3", "10.1.0.4/31", "10.1.0.1 10.1.0.2 10.1.0.6"},
		{"10.1.0.0/29", "", "10.1.0.0/30 10.1.0.0/31", "10.1.0.4 10.1.0.5 10.1.0.6"},
		{"10.1.0.0/30", "", "", "10.1.0.2"},
		{"10.1.0.0/31", "", "", "10.1.0.1"},
		{"10.1.0.0/31", "10.1.0.1", "", "10.1.0.0"},
		{"255.255.254.252/30", "", "", "255.255.254.254"},
		{"fd00::/126", "", "", "fd00::2 fd00::3"},
		{"fd00::/127", "", "", "fd00::1"},
		{"fdff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126", "", "", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:fffe fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
	} {
		pool := mustPool(t, c.prefix, c.gateway, c.reserved)
		var got []string
		held := map[netip.Addr]bool{}
		for {
			a, err := ipam.Next(pool, func(a netip.Addr) bool { return held[a] }, netip.Addr{})
			if err != nil {
				if !errors.Is(err, ipam.ErrExhausted) || !strings.Contains(err.Error(), c.prefix) {
					t.Errorf("%s: error %v", c.prefix, err)
				}
				break
			}
			held[a] = true
			got = append(got, a.String())
		}
		if !slices.Equal(got, strings.Fields(c.want)) {
			t.Errorf("%s gateway %q reserved %q gave\n%v\nwant\n%v", c.prefix, c.gateway, c.reserved, got, c.want)
		}
	}
}

func TestNextReusesTheLowest(t *testing.T) {
	pool := mustPool(t, "10.1.0.0/24", "", "")
	held := func(a netip.Addr) bool { return a != addr("10.1.0.7") && a.Less(addr("10.1.0.20")) }
	if a, err := ipam.Next(pool, held, netip.Addr{}); err != nil || a != addr("10.1.0.7") {
		t.Fatalf("Next = %v, %v", a, err)
	}
}

// TestNextWideReserved: a reserved range of 2^63 addresses is skipped in one
// step, and a /64 whose lowest addresses are taken asks about only those.
func TestNextWideReserved(t *testing.T) {
	pool := mustPool(t, "fd00::/64", "", "fd00::/65")
	asked := 0
	a, err := ipam.Next(pool, func(a netip.Addr) bool {
		asked++
		return a.Less(addr("fd00::8000:0:0:3e8"))
	}, netip.Addr{})
	if err != nil || a != addr("fd00::8000:0:0:3e8") || asked != 1001 {
		t.Fatalf("Next = %v, %v after asking about %d addresses", a, err, asked)
	}
}

func TestNextWanted(t *testing.T) {
	pool := mustPool(t, "10.1.0.0/24", "", "10.1.0.128/25")
	held := func(a netip.Addr) bool { return a == addr("10.1.0.9") }
	for _, c := range []struct {
		want string
		err  error
	}{
		{"10.1.0.8", nil},
		{"10.1.0.9", ipam.ErrTaken},
		{"10.1.0.1", ipam.ErrReserved},
		{"10.1.0.0", ipam.ErrReserved},
		{"10.1.0.255", ipam.ErrReserved},
		{"10.1.0.200", ipam.ErrReserved},
		{"10.1.1.2", ipam.ErrOutside},
		{"fd00::2", ipam.ErrOutside},
		{"::ffff:10.1.0.8", ipam.ErrOutside},
	} {
		a, err := ipam.Next(pool, held, addr(c.want))
		if !errors.Is(err, c.err) || (err == nil && a != addr(c.want)) {
			t.Errorf("Next(want %s) = %v, %v; want error %v", c.want, a, err, c.err)
		}
		if err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("Next(want %s): error %q does not name it", c.want, err)
		}
	}
}

func TestCheckOverlap(t *testing.T) {
	claims := []ipam.Claim{
		{netip.MustParsePrefix("0.0.0.0/0"), "route default dev eth0"},
		{netip.MustParsePrefix("128.0.0.0/1"), "route 128.0.0.0/1 dev tun0"},
		{netip.Prefix{}, "nobody"},
		{netip.MustParsePrefix("10.0.0.0/8"), "route 10.0.0.0/8 dev eth0"},
		{netip.MustParsePrefix("10.5.0.0/24"), "network web"},
		{netip.MustParsePrefix("fd00::/64"), "address of eth1"},
	}
	for _, c := range []struct{ prefix, who string }{
		{"10.5.0.0/16", "10.5.0.0/24 of network web"},
		{"10.5.0.128/25", "10.5.0.0/24 of network web"},
		{"10.6.0.0/16", "10.0.0.0/8 of route 10.0.0.0/8 dev eth0"},
		{"fd00::/48", "fd00::/64 of address of eth1"},
		{"192.168.0.0/24", ""},
		{"fd01::/64", ""},
	} {
		err := ipam.CheckOverlap(netip.MustParsePrefix(c.prefix), claims)
		if c.who == "" {
			if err != nil {
				t.Errorf("CheckOverlap(%s) = %v", c.prefix, err)
			}
			continue
		}
		var o *ipam.OverlapError
		if !errors.As(err, &o) || !strings.HasSuffix(err.Error(), c.who) || !strings.HasPrefix(err.Error(), c.prefix) {
			t.Errorf("CheckOverlap(%s) = %v; want %s named", c.prefix, err, c.who)
		}
	}
}

func TestChoose(t *testing.T) {
	claim := func(s string) (all []ipam.Claim) {
		for _, p := range prefixes(s) {
			all = append(all, ipam.Claim{Prefix: p, Who: p.String()})
		}
		return all
	}
	for _, c := range []struct {
		claims string
		v6     bool
		want   string
	}{
		{"", false, "10.210.0.0/24"},
		{"0.0.0.0/0 ::/0", false, "10.210.0.0/24"},
		{"10.210.0.0/23 10.210.3.7/32", false, "10.210.2.0/24"},
		{"10.210.0.0/23 10.210.2.0/24 10.210.3.7/32", false, "10.210.4.0/24"},
		{"10.0.0.0/8", false, "172.29.0.0/24"},
		{"10.0.0.0/8 172.16.0.0/12", false, ""},
		{"", true, "fdfa:1ead:210::/64"},
		{"fdfa:1ead:210::/56", true, "fdfa:1ead:210:100::/64"},
		{"fc00::/7", true, ""},
	} {
		got, err := ipam.Choose(claim(c.claims), c.v6)
		if c.want == "" {
			if !errors.Is(err, ipam.ErrNoDefault) {
				t.Errorf("Choose(%s) = %v, %v", c.claims, got, err)
			}
			continue
		}
		if err != nil || got.String() != c.want {
			t.Errorf("Choose(%s) = %v, %v; want %s", c.claims, got, err, c.want)
		}
	}
}
