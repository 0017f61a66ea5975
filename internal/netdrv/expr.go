package netdrv

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"go4.org/netipx"
	"golang.org/x/sys/unix"
)

// Registers of the nftables virtual machine: 1 to 4 are 16 bytes each; 8 on are
// the same memory in 4-byte pieces. A concatenated key lies in neighbouring
// pieces.
const (
	reg1     = 1
	reg2     = 2 // the 16 bytes after reg1
	regPiece = 9 // the 4 bytes after the first 4 of reg1
)

// exprs is a rule under construction.
type exprs []expr.Any

func matchBytes(key expr.Any, op expr.CmpOp, data []byte) exprs {
	return exprs{key, &expr.Cmp{Op: op, Register: reg1, Data: data}}
}

// family matches packets of an address's family.
func family(a netip.Addr) exprs {
	proto := byte(unix.NFPROTO_IPV4)
	if a.Is6() {
		proto = unix.NFPROTO_IPV6
	}
	return matchBytes(&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg1}, expr.CmpOpEq, []byte{proto})
}

// address loads a packet's source or destination of the family of like.
func address(like netip.Addr, source bool) expr.Any {
	at, size := uint32(16), uint32(4)
	if like.Is6() {
		at, size = 24, 16
	}
	if source {
		at -= size
	}
	return &expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: at, Len: size}
}

// destinationIn matches packets addressed into p (or, with CmpOpNeq, of p's
// family and addressed elsewhere).
func destinationIn(p netip.Prefix, op expr.CmpOp) exprs { return addressIn(p, false, op) }

// sourceIn matches packets that come from p.
func sourceIn(p netip.Prefix) exprs { return addressIn(p, true, expr.CmpOpEq) }

func addressIn(p netip.Prefix, source bool, op expr.CmpOp) exprs {
	size := p.Addr().BitLen() / 8
	mask := make([]byte, size)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return append(family(p.Addr()),
		address(p.Addr(), source),
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: uint32(size), Mask: mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: op, Register: reg1, Data: p.Masked().Addr().AsSlice()},
	)
}

// toThisHost matches packets addressed to an address of the host.
func toThisHost() exprs {
	return matchBytes(&expr.Fib{Register: reg1, FlagDADDR: true, ResultADDRTYPE: true}, expr.CmpOpEq, native32(unix.RTN_LOCAL))
}

// cameByRightLink matches packets whose sender would be answered through the
// link they came in by: a stranger cannot claim a neighbour's address.
func cameByRightLink() exprs {
	return matchBytes(&expr.Fib{Register: reg1, FlagSADDR: true, FlagIIF: true, ResultOIF: true, FlagPRESENT: true}, expr.CmpOpEq, []byte{1})
}

// conntrack matches packets whose connection has one of the bits.
func conntrack(key expr.CtKey, bits uint32) exprs {
	return exprs{
		&expr.Ct{Key: key, Register: reg1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: native32(bits), Xor: native32(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: native32(0)},
	}
}

// link matches packets whose link (iifname or oifname) is in the set.
func link(key expr.MetaKey, set *nftables.Set, not bool) exprs {
	return exprs{
		&expr.Meta{Key: key, Register: reg1},
		&expr.Lookup{SourceRegister: reg1, SetName: set.Name, SetID: set.ID, Invert: not},
	}
}

// linkIs matches packets whose link is the named one.
func linkIs(key expr.MetaKey, name string) exprs {
	return matchBytes(&expr.Meta{Key: key, Register: reg1}, expr.CmpOpEq, ifname(name))
}

// sameLink matches packets that leave by the link they came in by, if set says
// so.
func sameLink(set *nftables.Set) exprs {
	return exprs{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg1},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg2},
		&expr.Lookup{SourceRegister: reg1, SetName: set.Name, SetID: set.ID},
	}
}

// dnatBy sends the packet where the map of protocol and port says, if it says.
func dnatBy(m *nftables.Set, v6 bool) exprs {
	fam, port := uint32(unix.NFPROTO_IPV4), uint32(regPiece)
	if v6 {
		fam, port = unix.NFPROTO_IPV6, reg2
	}
	return exprs{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1},
		&expr.Payload{DestRegister: regPiece, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: reg1, DestRegister: reg1, IsDestRegSet: true, SetName: m.Name, SetID: m.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: fam, RegAddrMin: reg1, RegProtoMin: port},
	}
}

func verdict(kind expr.VerdictKind) exprs { return exprs{&expr.Verdict{Kind: kind}} }

func goTo(chain string) exprs {
	return exprs{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}
}

// native32 is a number the kernel compares in its own byte order.
func native32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// cell pads a part of a concatenated key to whole registers.
func cell(b []byte) []byte {
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func portCell(port uint16) []byte { return cell(binary.BigEndian.AppendUint16(nil, port)) }

// ifname is a link's name as a set's key.
func ifname(name string) []byte { return append([]byte(name), make([]byte, 16-len(name))...) }

// intervals are the elements of an interval set: each range is its first
// address and an end mark one past its last. Prefixes are disjoint and sorted.
func intervals(prefixes []netip.Prefix) []nftables.SetElement {
	var all []nftables.SetElement
	for _, p := range prefixes {
		all = append(all, nftables.SetElement{Key: p.Masked().Addr().AsSlice()})
		if after := netipx.PrefixLastIP(p).Next(); after.IsValid() {
			all = append(all, nftables.SetElement{Key: after.AsSlice(), IntervalEnd: true})
		}
	}
	return all
}
