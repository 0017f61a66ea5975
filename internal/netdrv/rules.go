package netdrv

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	mdnetlink "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead-net/fairlead/internal/model"
)

// TableName is the name of our table; its family is inet.
const TableName = "fairlead"

// Sizes for the netlink sockets of nftables, in bytes: a table goes to the
// kernel in one message, and every part of it is acknowledged.
const (
	nftWriteBuffer = 8 << 20
	nftReadBuffer  = 4 << 20
)

// elementsPerMessage keeps a message's nested attribute below its 64 KiB.
const elementsPerMessage = 400

// Codes of the nftables reject expression.
const (
	rejectICMPX          = unix.NFT_REJECT_ICMPX_UNREACH
	rejectReset          = unix.NFT_REJECT_TCP_RST
	icmpxAdminProhibited = unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED
)

// ctStatusDNAT is IPS_DST_NAT.
const ctStatusDNAT = 1 << 5

// rulesState is what SetRules has to keep up.
type rulesState struct {
	mu      sync.Mutex // held while the table is being replaced; guards following
	wanted  *Rules     // nil: the table is not to exist
	applied plan
	print   string // fingerprint of the table as it was made
}

// SetRules replaces the table `inet fairlead`, in one transaction, by one that
// does what r says, and makes the VIP pools unreachable by route. It does nothing
// if all is so already. From then on
// Run keeps it so, also when SetRules failed. With nothing in r the table still
// rejects packets to VIPs. Errors: ErrPortClash, ErrRouteClash.
func (h *Host) SetRules(ctx context.Context, r Rules) error {
	if err := live(ctx, "packet filter"); err != nil {
		return err
	}
	h.rules.mu.Lock()
	defer h.rules.mu.Unlock()
	next := Rules{
		Networks: cloneAll(r.Networks, model.Network.Clone), Endpoints: cloneAll(r.Endpoints, model.Endpoint.Clone),
		Overlays: cloneAll(r.Overlays, Overlay.clone),
	}
	if _, err := newPlan(next, h.cfg.VIPPools, nil); err != nil {
		return fmt.Errorf("packet filter: %w", err)
	}
	h.rules.wanted = &next
	return h.applyRules()
}

func cloneAll[T any](all []T, clone func(T) T) []T {
	out := make([]T, len(all))
	for i, v := range all {
		out[i] = clone(v)
	}
	return out
}

// applyRules brings the kernel to what is wanted. rules.mu is held.
func (h *Host) applyRules() error {
	onLink, err := h.connected()
	if err != nil {
		return fmt.Errorf("packet filter: %w", err)
	}
	p, err := newPlan(*h.rules.wanted, h.cfg.VIPPools, onLink)
	if err != nil {
		return fmt.Errorf("packet filter: %w", err)
	}
	if err := h.ensureVIPRoutes(); err != nil {
		return err
	}
	if h.rules.print != "" && p.String() == h.rules.applied.String() {
		if now, err := h.fingerprint(); err == nil && now == h.rules.print {
			return nil
		}
	}
	if err := h.replaceTable(p); err != nil {
		return fmt.Errorf("replace table inet %s: %w", TableName, err)
	}
	if h.rules.print != "" { // what an earlier agent had applied is not known
		h.forgetFlows(p.udpMoved(h.rules.applied))
	}
	h.rules.applied = p
	if h.rules.print, err = h.fingerprint(); err != nil {
		return fmt.Errorf("read back table inet %s: %w", TableName, err)
	}
	return nil
}

// connected are the prefixes of the host's addresses, merged.
func (h *Host) connected() ([]netip.Prefix, error) {
	addrs, err := whole(func() ([]netlink.Addr, error) { return h.nl.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var all []netip.Prefix
	for _, a := range addrs {
		n := a.IPNet
		if a.Peer != nil {
			n = a.Peer
		}
		if p, ok := prefixOf(n); ok {
			all = append(all, p)
		}
	}
	return lanPrefixes(all), nil
}

// nft opens a connection for a few exchanges. The caller closes it.
func (h *Host) nft() (*nftables.Conn, error) {
	c, err := nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(int(h.ns.Fd())), nftables.WithSockOptions(func(c *mdnetlink.Conn) error {
		return errors.Join(
			c.SetDeadline(time.Now().Add(netlinkTimeout)),
			c.SetReadBuffer(nftReadBuffer),
			c.SetWriteBuffer(nftWriteBuffer),
		)
	}))
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return c, nil
}

func closeNFT(c *nftables.Conn) { _ = c.CloseLasting() }

// ourTable is the handle that every message names.
func ourTable() *nftables.Table {
	return &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}
}

func (h *Host) replaceTable(p plan) error {
	c, err := h.nft()
	if err != nil {
		return err
	}
	defer closeNFT(c)
	b := builder{conn: c, table: ourTable()}
	// Deleting needs a table to be there; adding one that is there does nothing.
	c.AddTable(b.table)
	c.DelTable(b.table)
	c.AddTable(b.table)
	b.sets(p)
	b.natChains(p)
	b.filterChains(p)
	b.guard(p.overlays)
	b.waitForDNS()
	if b.err != nil {
		return b.err
	}
	return c.Flush()
}

// builder writes one table into a transaction.
type builder struct {
	conn  *nftables.Conn
	table *nftables.Table
	err   error
	ids   uint32

	bridges, internal, same *nftables.Set
	dns                     [2]*nftables.Set // by family, as all that follow
	onLink                  [2]*nftables.Set
	anyone, lan, local      [2]*nftables.Set
}

var families = [2]struct {
	suffix string
	like   netip.Addr
	kind   nftables.SetDatatype
}{
	{"4", netip.IPv4Unspecified(), nftables.TypeIPAddr},
	{"6", netip.IPv6Unspecified(), nftables.TypeIP6Addr},
}

func (b *builder) set(s nftables.Set, elements []nftables.SetElement) *nftables.Set {
	b.ids++
	s.Table, s.ID = b.table, b.ids
	err := b.conn.AddSet(&s, nil)
	for part := range slices.Chunk(elements, elementsPerMessage) {
		err = errors.Join(err, b.conn.SetAddElements(&s, part))
	}
	b.err = errors.Join(b.err, err)
	return &s
}

func (b *builder) sets(p plan) {
	names := func(links []string) (all []nftables.SetElement) {
		for _, l := range links {
			all = append(all, nftables.SetElement{Key: ifname(l)})
		}
		return all
	}
	var same []nftables.SetElement
	pair := func(from, to string) {
		same = append(same, nftables.SetElement{Key: append(ifname(from), ifname(to)...)})
	}
	members := slices.Clone(p.bridges)
	for _, l := range p.bridges {
		pair(l, l)
	}
	for _, t := range p.overlays.tunnels {
		members = append(members, t.tunnel)
		pair(t.bridge, t.tunnel)
		pair(t.tunnel, t.bridge)
	}
	b.bridges = b.set(nftables.Set{Name: "networks", KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}, names(members))
	b.internal = b.set(nftables.Set{Name: "internal", KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}, names(p.internal))
	b.same = b.set(nftables.Set{
		Name: "same", Concatenation: true, KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIFName),
	}, same)

	for i, f := range families {
		isFamily := func(a netip.Addr) bool { return a.Is6() == f.like.Is6() }
		var dns []nftables.SetElement
		for _, a := range p.gateways {
			if isFamily(a) {
				dns = append(dns, nftables.SetElement{Key: append(a.AsSlice(), portCell(53)...)})
			}
		}
		onLink := slices.DeleteFunc(slices.Clone(p.onLink), func(l netip.Prefix) bool { return !isFamily(l.Addr()) })
		b.dns[i] = b.set(nftables.Set{
			Name: "dns" + f.suffix, Concatenation: true, KeyType: nftables.MustConcatSetType(f.kind, nftables.TypeInetService),
		}, dns)
		b.onLink[i] = b.set(nftables.Set{Name: "onlink" + f.suffix, Interval: true, KeyType: f.kind}, intervals(onLink))
		published := func(name string, all []mapping) *nftables.Set {
			var elements []nftables.SetElement
			for _, m := range all {
				if isFamily(m.to.Addr()) {
					elements = append(elements, nftables.SetElement{
						Key: append(cell([]byte{m.proto}), portCell(m.port)...),
						Val: append(m.to.Addr().AsSlice(), portCell(m.to.Port())...),
					})
				}
			}
			return b.set(nftables.Set{
				Name: name + f.suffix, IsMap: true, Concatenation: true,
				KeyType:  nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService),
				DataType: nftables.MustConcatSetType(f.kind, nftables.TypeInetService),
			}, elements)
		}
		b.anyone[i], b.lan[i], b.local[i] = published("any", p.anyone), published("lan", p.lan), published("local", p.local)
	}
}

func (b *builder) chain(name string, kind nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
	c := &nftables.Chain{Name: name, Table: b.table, Type: kind, Hooknum: hook, Priority: prio}
	if hook != nil {
		accept := nftables.ChainPolicyAccept
		c.Policy = &accept
	}
	return b.conn.AddChain(c)
}

func (b *builder) rule(c *nftables.Chain, parts ...exprs) {
	b.conn.AddRule(&nftables.Rule{Table: b.table, Chain: c, Exprs: slices.Concat(parts...)})
}

// natChains: published ports, and the way out.
func (b *builder) natChains(p plan) {
	pre := b.chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	out := b.chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	post := b.chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	loopback := [2]netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	for i, f := range families {
		v6 := f.like.Is6()
		// A published port 53 must not take the networks' own DNS.
		b.rule(pre, family(f.like), exprs{
			address(f.like, false),
			&expr.Payload{DestRegister: afterAddress(v6), Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Lookup{SourceRegister: reg1, SetName: b.dns[i].Name, SetID: b.dns[i].ID},
		}, verdict(expr.VerdictReturn))
		b.rule(pre, family(f.like), toThisHost(), dnatBy(b.anyone[i], v6))
		b.rule(pre, family(f.like), exprs{
			address(f.like, true),
			&expr.Lookup{SourceRegister: reg1, SetName: b.onLink[i].Name, SetID: b.onLink[i].ID},
		}, cameByRightLink(), toThisHost(), dnatBy(b.lan[i], v6))
		// Loopback would need route_localnet; the connect hook serves it.
		b.rule(out, destinationIn(loopback[i], expr.CmpOpNeq), toThisHost(), dnatBy(b.local[i], v6))
	}
	// An endpoint that reached a neighbour by the host's address would see the
	// answer come from the neighbour's own. Such packets never leave the bridge
	// (br_netfilter), so here they have no iifname.
	for _, l := range p.subnets {
		b.rule(post, conntrack(expr.CtKeySTATUS, ctStatusDNAT), linkIs(expr.MetaKeyOIFNAME, l.bridge), sourceIn(l.prefix), exprs{&expr.Masq{}})
	}
	// An endpoint of an internal network can answer nobody beyond its gateway.
	b.rule(post, conntrack(expr.CtKeySTATUS, ctStatusDNAT), link(expr.MetaKeyOIFNAME, b.internal, false), exprs{&expr.Masq{}})
	b.keepSources(post, p.overlays)
	b.rule(post, link(expr.MetaKeyIIFNAME, b.bridges, false), link(expr.MetaKeyOIFNAME, b.bridges, true), exprs{&expr.Masq{}})
}

func afterAddress(v6 bool) uint32 {
	if v6 {
		return reg2
	}
	return regPiece
}

// waitForDNS keeps the host from telling its networks that nobody listens at a
// port 53. While no agent runs that is so, and a resolver that is told gives up at
// once, where one that hears nothing asks again.
func (b *builder) waitForDNS() {
	out := b.chain("unheard", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityFilter)
	for _, of := range []struct {
		proto      byte
		kind, code byte
		header     uint32 // bytes of the IP header of the packet that the message is about
	}{
		{unix.IPPROTO_ICMP, 3, 3, 20},   // port unreachable (RFC 792)
		{unix.IPPROTO_ICMPV6, 1, 4, 40}, // port unreachable (RFC 4443, 3.1)
	} {
		b.rule(out, link(expr.MetaKeyOIFNAME, b.bridges, false),
			matchBytes(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1}, expr.CmpOpEq, []byte{of.proto}),
			matchBytes(&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Len: 2}, expr.CmpOpEq, []byte{of.kind, of.code}),
			matchBytes(&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: 8 + of.header + 2, Len: 2}, expr.CmpOpEq, []byte{0, 53}),
			verdict(expr.VerdictDrop))
	}
}

// filterChains: VIPs never travel, and nobody comes in uninvited.
func (b *builder) filterChains(p plan) {
	vip := b.chain("vip", "", nil, nil)
	b.rule(vip, matchBytes(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1}, expr.CmpOpEq, []byte{unix.IPPROTO_TCP}),
		exprs{&expr.Reject{Type: rejectReset}})
	b.rule(vip, exprs{&expr.Reject{Type: rejectICMPX, Code: icmpxAdminProhibited}})

	// They are refused where they arrive, before routing: the unreachable route
	// would answer by ICMP, which a caller whose socket is busy connecting does
	// not heed, and a reset it does.
	arrive := b.chain("arrive", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityMangle)
	fwd := b.chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	for _, pool := range p.pools {
		match := destinationIn(pool, expr.CmpOpEq)
		if pool.Overlaps(broadcast) { // DHCP's address is part of class E
			match = append(match, destinationIn(broadcast, expr.CmpOpNeq)...)
		}
		b.rule(arrive, match, goTo(vip.Name))
		b.rule(fwd, match, goTo(vip.Name))
	}
	accept, drop := verdict(expr.VerdictAccept), verdict(expr.VerdictDrop)
	b.rule(fwd, conntrack(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept)
	b.rule(fwd, sameLink(b.same), accept)
	b.passOverlays(fwd, p.overlays)
	b.rule(fwd, link(expr.MetaKeyIIFNAME, b.internal, false), drop)
	b.rule(fwd, link(expr.MetaKeyOIFNAME, b.bridges, true), accept)
	b.rule(fwd, conntrack(expr.CtKeySTATUS, ctStatusDNAT), accept)
	b.rule(fwd, drop)
}
