package dns

import (
	"net/netip"
	"strings"
	"sync/atomic"

	miekg "github.com/miekg/dns"

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

func (f *folds) service(snap *state.Snapshot, lower string) (model.ServiceName, bool) {
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
	svc, _ := a.snap.Service(model.ServiceName(lower))
	if len(svc.Members) > 0 || svc.VIP != nil {
		return svc
	}
	if name, ok := a.folds.service(a.snap, lower); ok {
		svc, _ = a.snap.Service(name)
	}
	return svc
}

// findNode returns the node that a name means, nil if there is none. exact is
// the name as it was written, which saves looking through all nodes.
func (a *answering) findNode(lower, exact string) *model.Node {
	if n, _ := a.snap.Node(model.NodeName(lower)); n != nil {
		return n
	}
	if n, _ := a.snap.Node(model.NodeName(exact)); n != nil {
		return n
	}
	all, _ := a.snap.Nodes()
	for _, n := range all {
		if strings.EqualFold(string(n.Name), lower) {
			return n
		}
	}
	return nil
}

// findNetwork returns the network that a lower-case name means, nil if there is
// none.
func (a *answering) findNetwork(lower string) *model.Network {
	if n, _ := a.snap.Network(model.NetworkName(lower)); n != nil {
		return n
	}
	all, _ := a.snap.Networks()
	for _, n := range all {
		if strings.EqualFold(string(n.Name), lower) {
			return n
		}
	}
	return nil
}

// nodeName answers for a node.
func (a *answering) nodeName(name string) outcome {
	n := a.findNode(name, name)
	if n == nil {
		return nowhere
	}
	if _, err := netip.ParseAddr(n.Address); err != nil {
		if target := hostname(n.Address); target != "" && (a.wants(miekg.TypeA) || a.wants(miekg.TypeAAAA) || a.qtype == miekg.TypeCNAME) {
			return a.cname(target)
		}
		return found
	}
	for _, ip := range a.nodeAddrs(n) {
		a.addAddr(ip)
	}
	return found
}

// nodeAddrs returns a node's address, and the one of the other family if it told
// one.
func (a *answering) nodeAddrs(n *model.Node) []netip.Addr {
	if n == nil {
		return nil
	}
	main, err := netip.ParseAddr(n.Address)
	if err != nil {
		return nil
	}
	main = main.Unmap().WithZone("")
	other := "lan_ipv6"
	if main.Is6() {
		other = "lan_ipv4"
	}
	addrs := []netip.Addr{main}
	if ip, err := netip.ParseAddr(n.TaggedAddresses[other]); err == nil && ip.Unmap().Is4() != main.Is4() {
		addrs = append(addrs, ip.Unmap().WithZone(""))
	}
	return addrs
}
