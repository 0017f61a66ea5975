package dns

import (
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	miekg "github.com/miekg/dns"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// folds remembers which services have capital letters in their names. It is a
// memo of the snapshot and changes no answer.
type folds struct{ memo atomic.Pointer[foldMemo] }

type foldMemo struct {
	index model.Index
	names map[string]model.ServiceName // by their lower-case form
}

func (f *folds) service(snap view, lower string) (model.ServiceName, bool) {
	tags, mark := snap.ServiceTags()
	memo := f.memo.Load()
	if memo == nil || memo.index != mark.Index {
		memo = &foldMemo{index: mark.Index, names: map[string]model.ServiceName{}}
		for name := range tags {
			if l := strings.ToLower(string(name)); l != string(name) {
				memo.names[l] = max(memo.names[l], name) // the same one each time
			}
		}
		f.memo.Store(memo)
	}
	name, ok := memo.names[lower]
	return name, ok
}

// findService returns the service that a lower-case name means; without members
// and VIP if there is none.
func (a *answering) findService(lower string) *state.Service {
	svc := a.snap.Service(model.ServiceName(lower))
	if len(svc.Members) > 0 || svc.VIP != nil {
		return svc
	}
	if name, ok := a.folds.service(a.snap, lower); ok {
		svc = a.snap.Service(name)
	}
	return svc
}

// findNode returns the node that a name means, nil if there is none. exact is
// the name as it was written, which saves looking through all nodes.
func (a *answering) findNode(lower, exact string) *model.Node {
	if n := a.snap.Node(model.NodeName(lower)); n != nil {
		return n
	}
	if n := a.snap.Node(model.NodeName(exact)); n != nil {
		return n
	}
	for _, n := range a.snap.Nodes() {
		if strings.EqualFold(string(n.Name), lower) {
			return n
		}
	}
	return nil
}

// findNetwork returns the network that a lower-case name means, nil if there is
// none.
func (a *answering) findNetwork(lower string) *model.Network {
	if n := a.snap.Network(model.NetworkName(lower)); n != nil {
		return n
	}
	for _, n := range a.snap.Networks() {
		if strings.EqualFold(string(n.Name), lower) {
			return n
		}
	}
	return nil
}

// nodeName answers for a node: its addresses, and its metadata to who asks for
// it.
func (a *answering) nodeName(name string) outcome {
	n := a.findNode(name, name)
	known := model.NodeName(name)
	if n != nil {
		known = n.Name
	}
	if !a.may.Allow(acl.Node, string(known), acl.Read) {
		a.prohibit("the node %s may not be read", name)
		return nowhere
	}
	if n == nil {
		a.explain("no node %s is registered", name)
		return nowhere
	}
	a.ttl = a.nodeTTL
	addrs := a.nodeAddrs(n)
	if len(addrs) == 0 {
		if target := hostname(n.Address); target != "" && (a.wants(miekg.TypeA) || a.wants(miekg.TypeAAAA) || a.qtype == miekg.TypeCNAME) {
			return a.cname(target)
		}
	}
	for _, ip := range addrs {
		a.addAddr(ip)
	}
	if a.wants(miekg.TypeTXT) {
		a.text(n.Meta)
	}
	return found
}

// nodeAddrs returns a node's address, and those of the families it is not of that
// the node told as tagged addresses.
func (a *answering) nodeAddrs(n *model.Node) []netip.Addr {
	if n == nil {
		return nil
	}
	var addrs []netip.Addr
	if main, err := netip.ParseAddr(n.Address); err == nil {
		addrs = append(addrs, main.Unmap().WithZone(""))
	}
	for _, tag := range []string{tagIPv4, tagIPv6} {
		ip, err := netip.ParseAddr(n.TaggedAddresses[tag])
		ip = ip.Unmap().WithZone("")
		if err != nil || ip.Is4() != (tag == tagIPv4) {
			continue
		}
		if !slices.ContainsFunc(addrs, func(o netip.Addr) bool { return o.Is4() == ip.Is4() }) {
			addrs = append(addrs, ip)
		}
	}
	return addrs
}

// The tagged addresses that speak of a family.
const (
	tagIPv4 = "lan_ipv4"
	tagIPv6 = "lan_ipv6"
)
