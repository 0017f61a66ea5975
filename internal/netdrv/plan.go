package netdrv

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"go4.org/netipx"
	"golang.org/x/sys/unix"

	"github.com/fairlead-net/fairlead/internal/model"
)

// Rules is what the packet filter has to do: the networks of this host and the
// endpoints on them with their published ports.
type Rules struct {
	Networks  []model.Network
	Endpoints []model.Endpoint
	// Overlays are those of the networks that span several hosts.
	Overlays []Overlay
}

// plan is the content of our table, as a value. Everything is sorted, so that
// equal intents give equal plans.
type plan struct {
	bridges  []string       // of every network
	internal []string       // of those without a way out
	gateways []netip.Addr   // where the agent answers DNS
	subnets  []subnet       // of the networks
	pools    []netip.Prefix // VIPs
	onLink   []netip.Prefix // who counts as LAN
	anyone   []mapping      // published to everybody
	lan      []mapping      // published to onLink
	local    []mapping      // published at all: processes of this host may use them
	overlays overlayPlan
}

// subnet is what a network's bridge carries of one family.
type subnet struct {
	bridge string
	prefix netip.Prefix
}

// mapping is a port of the host and the endpoint's address it leads to; one for
// each family.
type mapping struct {
	proto uint8
	port  uint16
	to    netip.AddrPort
}

// newPlan works out the table. onLink are the host's connected prefixes.
func newPlan(r Rules, pools, onLink []netip.Prefix) (plan, error) {
	p := plan{pools: slices.Clone(pools), onLink: onLink, overlays: planOverlays(r.Overlays)}
	if len(p.overlays.pools) > 0 { // whose bridges carry none of them as a whole
		p.onLink = lanPrefixes(slices.Concat(onLink, p.overlays.pools))
	}
	for _, n := range r.Networks {
		p.bridges = append(p.bridges, BridgeName(n.Name))
		if n.Internal {
			p.internal = append(p.internal, BridgeName(n.Name))
		}
		for _, pool := range n.Pools {
			p.gateways = append(p.gateways, pool.Gateway)
			p.subnets = append(p.subnets, subnet{BridgeName(n.Name), pool.Prefix})
		}
	}
	slices.Sort(p.bridges)
	slices.Sort(p.internal)
	slices.SortFunc(p.gateways, netip.Addr.Compare)
	slices.SortFunc(p.subnets, func(a, b subnet) int {
		return cmp.Or(cmp.Compare(a.bridge, b.bridge), a.prefix.Addr().Compare(b.prefix.Addr()))
	})
	p.bridges, p.internal, p.gateways = slices.Compact(p.bridges), slices.Compact(p.internal), slices.Compact(p.gateways)

	type hostPort struct {
		proto model.Protocol
		port  uint16
	}
	by := map[hostPort]model.EndpointID{}
	for _, e := range r.Endpoints {
		for _, port := range e.Ports {
			key := hostPort{port.Proto, port.HostPort}
			if other, taken := by[key]; taken {
				return plan{}, fmt.Errorf("port %d/%s by endpoints %s and %s: %w", port.HostPort, port.Proto, other, e.ID, ErrPortClash)
			}
			by[key] = e.ID
			if err := p.publish(e, port); err != nil {
				return plan{}, err
			}
		}
	}
	for _, m := range [][]mapping{p.anyone, p.lan, p.local} {
		slices.SortFunc(m, compareMapping)
	}
	return p, nil
}

func (p *plan) publish(e model.Endpoint, port model.PublishedPort) error {
	var proto uint8
	switch port.Proto {
	case model.TCP:
		proto = unix.IPPROTO_TCP
	case model.UDP:
		proto = unix.IPPROTO_UDP
	default:
		return fmt.Errorf("endpoint %s: port %d: unknown protocol %q", e.ID, port.HostPort, port.Proto)
	}
	for _, addr := range e.Addrs {
		m := mapping{proto: proto, port: port.HostPort, to: netip.AddrPortFrom(addr, port.Port)}
		p.local = append(p.local, m)
		switch port.Expose {
		case model.ExposeAny:
			p.anyone = append(p.anyone, m)
		case model.ExposeLAN:
			p.lan = append(p.lan, m)
		case model.ExposeHost, "": // the narrowest is the default
		default:
			return fmt.Errorf("endpoint %s: port %d: unknown reach %q", e.ID, port.HostPort, port.Expose)
		}
	}
	return nil
}

func compareMapping(a, b mapping) int {
	return cmp.Or(cmp.Compare(a.proto, b.proto), cmp.Compare(a.port, b.port), a.to.Compare(b.to))
}

// udpMoved are the host's UDP ports that lead elsewhere, or from now on or no
// longer lead anywhere, when p replaces old. Conntrack would keep their callers
// where they were for as long as they go on sending.
func (p plan) udpMoved(old plan) []uint16 {
	count := map[mapping]int{}
	for _, m := range old.local {
		count[m]--
	}
	for _, m := range p.local {
		count[m]++
	}
	var ports []uint16
	for m, n := range count {
		if n != 0 && m.proto == unix.IPPROTO_UDP {
			ports = append(ports, m.port)
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// lanPrefixes are the disjoint ranges that prefixes make up, without link-local,
// multicast and loopback ones, which are nobody's LAN.
func lanPrefixes(prefixes []netip.Prefix) []netip.Prefix {
	var b netipx.IPSetBuilder
	for _, p := range prefixes {
		if a := p.Addr(); a.IsLoopback() || a.IsMulticast() || (a.Is6() && a.IsLinkLocalUnicast()) {
			continue
		}
		b.AddPrefix(p.Masked())
	}
	set, err := b.IPSet()
	if err != nil {
		return nil // only an invalid prefix fails, and none was added
	}
	return set.Prefixes()
}

// String is one fact a line, for logs and tests.
func (p plan) String() string {
	var b strings.Builder
	for _, br := range p.bridges {
		fmt.Fprintf(&b, "network %s internal=%t\n", br, slices.Contains(p.internal, br))
	}
	for _, s := range p.subnets {
		fmt.Fprintf(&b, "subnet %s %s\n", s.bridge, s.prefix)
	}
	for _, a := range p.gateways {
		fmt.Fprintf(&b, "gateway %s\n", a)
	}
	for _, pool := range p.pools {
		fmt.Fprintf(&b, "vips %s\n", pool)
	}
	for _, l := range p.onLink {
		fmt.Fprintf(&b, "lan %s\n", l)
	}
	for _, set := range []struct {
		who string
		all []mapping
	}{{"any", p.anyone}, {"lan", p.lan}, {"local", p.local}} {
		for _, m := range set.all {
			fmt.Fprintf(&b, "publish %s proto %d port %d to %s\n", set.who, m.proto, m.port, m.to)
		}
	}
	b.WriteString(p.overlays.String())
	return b.String()
}
