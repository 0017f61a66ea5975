package netdrv

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"go4.org/netipx"
	"golang.org/x/sys/unix"

	"github.com/fairlead-net/fairlead/internal/model"
)

// overlayPlan is what the table does for networks that span several hosts.
type overlayPlan struct {
	tunnels []tunnelPair
	pools   []netip.Prefix // whose packets keep their source
	senders []sender
	direct  []subnet // other hosts' blocks that may come by a route, and the bridge they may go to
}

type tunnelPair struct{ bridge, tunnel string }

// sender is a host that may send packets of an overlay from a block.
type sender struct {
	host  netip.Addr
	vni   uint32
	block netip.Prefix
}

func planOverlays(all []Overlay) (p overlayPlan) {
	for _, o := range all {
		bridge := BridgeName(o.Network.Name)
		p.tunnels = append(p.tunnels, tunnelPair{bridge, TunnelName(o.Network.Name)})
		for _, pool := range o.Network.Pools {
			p.pools = append(p.pools, pool.Prefix)
		}
		for _, peer := range o.Peers {
			for _, b := range peer.Blocks {
				p.senders = append(p.senders, sender{peer.Addr, o.Network.VNI, b})
				if o.Network.Transport != model.TransportVXLAN {
					p.direct = append(p.direct, subnet{bridge, b})
				}
			}
		}
	}
	slices.SortFunc(p.tunnels, func(a, b tunnelPair) int { return cmp.Compare(a.bridge, b.bridge) })
	slices.SortFunc(p.pools, comparePrefixes)
	slices.SortFunc(p.senders, func(a, b sender) int {
		return cmp.Or(a.host.Compare(b.host), cmp.Compare(a.vni, b.vni), comparePrefixes(a.block, b.block))
	})
	slices.SortFunc(p.direct, func(a, b subnet) int {
		return cmp.Or(cmp.Compare(a.bridge, b.bridge), comparePrefixes(a.prefix, b.prefix))
	})
	return p
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// String is one fact a line.
func (p overlayPlan) String() string {
	var b strings.Builder
	for _, t := range p.tunnels {
		fmt.Fprintf(&b, "overlay %s by %s\n", t.bridge, t.tunnel)
	}
	for _, pool := range p.pools {
		fmt.Fprintf(&b, "overlay pool %s\n", pool)
	}
	for _, s := range p.senders {
		fmt.Fprintf(&b, "overlay %d from %s at %s\n", s.vni, s.block, s.host)
	}
	for _, d := range p.direct {
		fmt.Fprintf(&b, "overlay %s from %s by route\n", d.bridge, d.prefix)
	}
	return b.String()
}

// What a VXLAN packet has behind its IP header: UDP (RFC 768), VXLAN (RFC 7348),
// Ethernet. Offsets in bytes.
const (
	vniAt       = 8 + 4 // with the reserved byte behind it
	etherTypeAt = 8 + 8 + 12
	innerAt     = 8 + 8 + 14
)

// piece is the register of the 4 bytes that begin n bytes after reg1.
func piece(n int) uint32 { return uint32(8 + n/4) }

// guard lets packets into a tunnel only from the hosts of the overlay, and only with
// sources of their own blocks: a neighbour on the underlay cannot put any in.
func (b *builder) guard(p overlayPlan) {
	if len(p.tunnels) == 0 {
		return
	}
	arrive := b.chain("tunnel", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	tunnelled := slices.Concat(
		matchBytes(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1}, expr.CmpOpEq, []byte{unix.IPPROTO_UDP}),
		matchBytes(&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, expr.CmpOpEq,
			binary.BigEndian.AppendUint16(nil, TunnelPort)),
		toThisHost())
	for _, outer := range families {
		for _, inner := range families {
			set, load := b.senders(p, outer.like, inner.like)
			kind := uint16(unix.ETH_P_IP)
			if inner.like.Is6() {
				kind = unix.ETH_P_IPV6
			}
			b.rule(arrive, family(outer.like), tunnelled,
				matchBytes(&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: etherTypeAt, Len: 2}, expr.CmpOpEq,
					binary.BigEndian.AppendUint16(nil, kind)),
				load, exprs{&expr.Lookup{SourceRegister: reg1, SetName: set.Name, SetID: set.ID}}, verdict(expr.VerdictAccept))
		}
	}
	b.rule(arrive, tunnelled, verdict(expr.VerdictDrop))
}

// senders is the set of host, identifier and block for packets of two families, and
// what loads those of a packet.
func (b *builder) senders(p overlayPlan, outer, inner netip.Addr) (*nftables.Set, exprs) {
	kindOf := map[bool]nftables.SetDatatype{false: nftables.TypeIPAddr, true: nftables.TypeIP6Addr}
	name := map[bool]string{false: "4", true: "6"}
	var elements []nftables.SetElement
	for _, s := range p.senders {
		if s.host.Is6() != outer.Is6() || s.block.Addr().Is6() != inner.Is6() {
			continue
		}
		key := binary.BigEndian.AppendUint32(s.host.AsSlice(), s.vni<<8)
		elements = append(elements, nftables.SetElement{
			Key:    append(slices.Clone(key), s.block.Masked().Addr().AsSlice()...),
			KeyEnd: append(key, netipx.PrefixLastIP(s.block).AsSlice()...),
		})
	}
	set := b.set(nftables.Set{
		Name: "senders" + name[outer.Is6()] + name[inner.Is6()], Concatenation: true, Interval: true,
		KeyType: nftables.MustConcatSetType(kindOf[outer.Is6()], nftables.TypeInteger, kindOf[inner.Is6()]),
	}, elements)
	size, at := outer.BitLen()/8, uint32(12)
	if inner.Is6() {
		at = 8
	}
	return set, exprs{
		address(outer, true),
		&expr.Payload{DestRegister: piece(size), Base: expr.PayloadBaseTransportHeader, Offset: vniAt, Len: 4},
		&expr.Payload{DestRegister: piece(size + 4), Base: expr.PayloadBaseTransportHeader, Offset: innerAt + at, Len: uint32(inner.BitLen() / 8)},
	}
}

// keepSources leaves packets within overlays as they are: the other host's endpoint
// sees who asked.
func (b *builder) keepSources(post *nftables.Chain, p overlayPlan) {
	for _, pool := range p.pools {
		b.rule(post, link(expr.MetaKeyIIFNAME, b.bridges, false), destinationIn(pool, expr.CmpOpEq), sourceIn(pool), verdict(expr.VerdictAccept))
	}
}

// passOverlays lets packets of an overlay pass between its bridge and the other
// hosts, and nothing else out of a tunnel.
func (b *builder) passOverlays(fwd *nftables.Chain, p overlayPlan) {
	if len(p.tunnels) == 0 {
		return
	}
	var names []nftables.SetElement
	for _, t := range p.tunnels {
		names = append(names, nftables.SetElement{Key: ifname(t.tunnel)})
	}
	tunnels := b.set(nftables.Set{Name: "tunnels", KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}, names)
	b.rule(fwd, link(expr.MetaKeyIIFNAME, tunnels, false), verdict(expr.VerdictDrop))
	for _, d := range p.direct {
		b.rule(fwd, linkIs(expr.MetaKeyOIFNAME, d.bridge), link(expr.MetaKeyIIFNAME, b.bridges, true), sourceIn(d.prefix), cameByRightLink(), verdict(expr.VerdictAccept))
		b.rule(fwd, linkIs(expr.MetaKeyIIFNAME, d.bridge), link(expr.MetaKeyOIFNAME, b.bridges, true), destinationIn(d.prefix, expr.CmpOpEq), verdict(expr.VerdictAccept))
	}
}
