package registry

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairlead-net/fairlead/internal/ipam"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/store"
)

// CreateNetwork records a network. Its name must be free (ErrExists), and its
// pools may overlap neither another network's nor the VIPs'
// (*ipam.OverlapError); what overlaps the host's own routes is its caller's to
// find. An overlay gets a VNI.
func (r *Registry) CreateNetwork(ctx context.Context, n model.Network) (model.Index, error) {
	what := fmt.Sprintf("create network %q", n.Name)
	n = n.Clone()
	if n.Driver == "" {
		n.Driver = model.DriverBridge
	}
	if n.Node == "" && n.Driver != model.DriverOverlay {
		n.Node = r.cfg.Node
	}
	if n.Owner == "" {
		n.Owner = model.OwnerOperator
	}
	if err := validateNetwork(&n); err != nil {
		return 0, fmt.Errorf("%s: %w", what, err)
	}
	leave, err := r.queues.enter(ctx, "networks")
	if err != nil {
		return 0, fmt.Errorf("%s: %w", what, err)
	}
	defer leave()
	return r.write(ctx, what, func(snap *state.Snapshot, p *plan) {
		cur, _ := snap.Network(n.Name)
		p.read(store.NetworkKey(n.Name), cur)
		if cur != nil {
			p.refuse(fmt.Errorf("a network of that name %w", ErrExists))
			return
		}
		// A network written after this snapshot might overlap.
		p.unchanged(store.NetworkPrefix(), snap.Index())
		claims := r.claims(snap)
		for _, pool := range n.Pools {
			if err := ipam.CheckOverlap(pool.Prefix, claims); err != nil {
				p.refuse(err)
				return
			}
		}
		n := n
		if n.Driver == model.DriverOverlay {
			if n.VNI, err = freeVNI(snap); err != nil {
				p.refuse(err)
				return
			}
		}
		p.put(store.NetworkKey(n.Name), &n)
	})
}

func (r *Registry) claims(snap *state.Snapshot) []ipam.Claim {
	claims := []ipam.Claim{
		{Prefix: r.cfg.VIPPool4, Who: "the services' virtual addresses"},
		{Prefix: r.cfg.VIPPool6, Who: "the services' virtual addresses"},
	}
	networks, _ := snap.Networks()
	for _, n := range networks {
		for _, pool := range n.Pools {
			claims = append(claims, ipam.Claim{Prefix: pool.Prefix, Who: fmt.Sprintf("network %q", n.Name)})
		}
	}
	return claims
}

// DeleteNetwork removes a network that has no endpoints; else ErrInUse, which
// names them. Errors: ErrUnknownNetwork.
func (r *Registry) DeleteNetwork(ctx context.Context, name model.NetworkName) (model.Index, error) {
	return r.write(ctx, fmt.Sprintf("delete network %q", name), func(snap *state.Snapshot, p *plan) {
		cur, _ := snap.Network(name)
		p.remove(store.NetworkKey(name), cur)
		if cur == nil {
			p.refuse(ErrUnknownNetwork)
			return
		}
		if eps, _ := snap.NetworkEndpoints(name); len(eps) > 0 {
			p.read(store.EndpointKey(eps[0].ID), eps[0])
			p.refuse(fmt.Errorf("%w by %s; stop them first", ErrInUse, nameEndpoints(eps)))
			return
		}
		// Every endpoint has its name in the network, and leases.
		p.unchanged(store.NamePrefix(name), 0)
		p.unchanged(store.LeasePrefix(name), 0)
		blocks, _ := snap.NetworkBlocks(name)
		for _, b := range blocks {
			p.remove(store.BlockKey(name, b.Prefix), b)
		}
		p.unchanged(store.BlockPrefix(name), snap.Index())
	})
}

// nameEndpoints names a few endpoints, as their users know them.
func nameEndpoints(eps []*model.Endpoint) string {
	const few = 5
	var names []string
	for _, e := range eps[:min(few, len(eps))] {
		names = append(names, fmt.Sprintf("%q on node %q", e.Workload, e.Node))
	}
	if more := len(eps) - few; more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return strings.Join(names, ", ")
}

// CreateEndpoint leases an address of each of the network's pools for an
// endpoint and records it. want asks for certain addresses, at most one per
// family. The result has the addresses filled in, and the MAC address if it was
// open. An endpoint that exists with
// the same id, workload, network and node is returned as it is recorded, if it
// has the addresses wanted.
//
// Errors: ErrUnknownNetwork, ErrNameTaken (another workload of that name in the
// network), ErrPortTaken, ErrExists (the id is another's), and those of
// ipam.Next.
func (r *Registry) CreateEndpoint(ctx context.Context, ep model.Endpoint, want []netip.Addr) (model.Endpoint, model.Index, error) {
	what := fmt.Sprintf("create endpoint of %q in network %q", ep.Workload, ep.Network)
	ep = ep.Clone()
	if ep.Node == "" {
		ep.Node = r.cfg.Node
	}
	if ep.Owner == "" {
		ep.Owner = model.NodeOwner(ep.Node)
	}
	if err := validateEndpoint(&ep); err != nil {
		return model.Endpoint{}, 0, fmt.Errorf("%s: %w", what, err)
	}
	leave, err := r.enterEndpoint(ctx, &ep)
	if err != nil {
		return model.Endpoint{}, 0, fmt.Errorf("%s: %w", what, err)
	}
	defer leave()

	var got model.Endpoint
	index, err := r.write(ctx, what, func(snap *state.Snapshot, p *plan) {
		cur, _ := snap.Endpoint(ep.ID)
		p.read(store.EndpointKey(ep.ID), cur)
		if cur != nil {
			got = cur.Clone()
			p.refuse(sameEndpoint(cur, &ep, want))
			return
		}
		got = ep.Clone()
		planEndpoint(snap, p, &got, want)
	})
	if err != nil {
		return model.Endpoint{}, index, err
	}
	// As recorded, with its indexes.
	if now, _ := r.st.Snapshot().Endpoint(ep.ID); now != nil {
		got = now.Clone()
	}
	return got, index, nil
}

// enterEndpoint queues those writes that compete for a network's addresses or a
// node's ports. The order is the same for everyone, so nobody waits in a circle.
func (r *Registry) enterEndpoint(ctx context.Context, ep *model.Endpoint) (leave func(), err error) {
	leaveNetwork, err := r.queues.enter(ctx, "network "+string(ep.Network))
	if err != nil || len(ep.Ports) == 0 {
		return leaveNetwork, err
	}
	leavePorts, err := r.queues.enter(ctx, "ports "+string(ep.Node))
	if err != nil {
		leaveNetwork()
		return nil, err
	}
	return func() { leavePorts(); leaveNetwork() }, nil
}

// sameEndpoint says why an existing endpoint is not the one to be created; nil
// if it is.
func sameEndpoint(cur, ep *model.Endpoint, want []netip.Addr) error {
	if cur.Workload != ep.Workload || cur.Network != ep.Network || cur.Node != ep.Node {
		return fmt.Errorf("endpoint %s %w: it is that of %s in network %q", ep.ID, ErrExists,
			nameEndpoints([]*model.Endpoint{cur}), cur.Network)
	}
	for _, w := range want {
		if !slices.Contains(cur.Addrs, w) {
			return fmt.Errorf("endpoint %s %w with other addresses: %v", ep.ID, ErrExists, cur.Addrs)
		}
	}
	return nil
}

// planEndpoint picks ep's addresses and writes it with its leases and its name.
func planEndpoint(snap *state.Snapshot, p *plan, ep *model.Endpoint, want []netip.Addr) {
	network, _ := snap.Network(ep.Network)
	p.read(store.NetworkKey(ep.Network), network)
	if network == nil {
		p.refuse(fmt.Errorf("%w %q; create it first", ErrUnknownNetwork, ep.Network))
		return
	}
	if other := workloadIn(snap, ep); other != nil {
		p.read(store.EndpointKey(other.ID), other)
		p.refuse(fmt.Errorf("%w: %s is in the network; choose another name", ErrNameTaken,
			nameEndpoints([]*model.Endpoint{other})))
		return
	}
	if !planPorts(snap, p, ep) {
		return
	}
	leases, _ := snap.Leases(ep.Network)
	pick := ipam.Next
	if network.Driver == model.DriverOverlay {
		pick = newBlocks(snap, p, network, ep.Node).next
	}
	addrs, err := pickAddrs(network, leases, want, pick)
	if err != nil {
		p.refuse(err)
		return
	}
	ep.Addrs = addrs
	if ep.MAC == "" {
		ep.MAC = ipam.MAC(ep.ID, addrs)
	}
	for _, a := range addrs {
		lease := model.AddressLease{Network: ep.Network, Addr: a, Endpoint: ep.ID, Stamp: model.Stamp{Owner: ep.Owner}}
		p.absent(store.LeaseKey(ep.Network, a))
		p.put(store.LeaseKey(ep.Network, a), &lease)
	}
	// Aliases may be shared: whoever asks for one gets all who have it.
	nameKey := store.NameKey(ep.Network, string(ep.Workload))
	p.absent(nameKey)
	p.put(nameKey, string(ep.ID))
	p.put(store.EndpointKey(ep.ID), ep)
}

// workloadIn finds another endpoint whose workload has ep's name, without regard
// to case.
func workloadIn(snap *state.Snapshot, ep *model.Endpoint) *model.Endpoint {
	for _, other := range snap.EndpointsByName(ep.Network, string(ep.Workload)) {
		if other.ID != ep.ID && strings.EqualFold(string(other.Workload), string(ep.Workload)) {
			return other
		}
	}
	return nil
}

// planPorts refuses ports that other endpoints of the node have published.
func planPorts(snap *state.Snapshot, p *plan, ep *model.Endpoint) bool {
	if len(ep.Ports) == 0 {
		return true
	}
	all, _ := snap.Endpoints()
	for _, other := range all {
		if other.Node != ep.Node || other.ID == ep.ID {
			continue
		}
		for _, theirs := range other.Ports {
			for _, ours := range ep.Ports {
				if ours.HostPort == theirs.HostPort && ours.Proto == theirs.Proto {
					p.read(store.EndpointKey(other.ID), other)
					p.refuse(fmt.Errorf("%w: %s %d of node %q is published by %q; choose another", ErrPortTaken,
						ours.Proto, ours.HostPort, ep.Node, other.Workload))
					return false
				}
			}
		}
	}
	return true
}

// pickAddrs picks one address from each pool.
func pickAddrs(n *model.Network, leases []*model.AddressLease, want []netip.Addr,
	pick func(model.Pool, func(netip.Addr) bool, netip.Addr) (netip.Addr, error),
) ([]netip.Addr, error) {
	holders := make(map[netip.Addr]model.EndpointID, len(leases))
	for _, l := range leases {
		holders[l.Addr] = l.Endpoint
	}
	taken := func(a netip.Addr) bool { _, held := holders[a]; return held }
	left := slices.Clone(want)
	var addrs []netip.Addr
	for _, pool := range n.Pools {
		var w netip.Addr
		if i := slices.IndexFunc(left, func(a netip.Addr) bool { return a.Is4() == pool.Prefix.Addr().Is4() }); i >= 0 {
			w = left[i]
			left = slices.Delete(left, i, i+1)
		}
		a, err := pick(pool, taken, w)
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, a)
	}
	if len(left) > 0 {
		return nil, invalid("address", "%s is wanted, but network %q has no further pool of its family", left[0], n.Name)
	}
	return addrs, nil
}

// UpdateEndpoint changes an endpoint, but for its workload, network, node and
// addresses. Errors: ErrUnknownEndpoint, ErrPortTaken.
func (r *Registry) UpdateEndpoint(ctx context.Context, ep model.Endpoint) (model.Index, error) {
	what := fmt.Sprintf("update endpoint %q", ep.ID)
	ep = ep.Clone()
	if ep.Owner == "" {
		ep.Owner = model.NodeOwner(ep.Node)
	}
	if err := validateEndpoint(&ep); err != nil {
		return 0, fmt.Errorf("%s: %w", what, err)
	}
	leave, err := r.enterEndpoint(ctx, &ep)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", what, err)
	}
	defer leave()
	return r.write(ctx, what, func(snap *state.Snapshot, p *plan) {
		cur, _ := snap.Endpoint(ep.ID)
		switch {
		case cur == nil:
			p.read(store.EndpointKey(ep.ID), nil)
			p.refuse(ErrUnknownEndpoint)
			return
		case sameEndpoint(cur, &ep, ep.Addrs) != nil || len(ep.Addrs) != len(cur.Addrs):
			p.read(store.EndpointKey(ep.ID), cur)
			p.refuse(invalid("endpoint", "keeps its workload, network, node and addresses; delete it and create another"))
			return
		}
		if p.replace(store.EndpointKey(ep.ID), cur, &ep) {
			planPorts(snap, p, &ep)
		}
	})
}

// DeleteEndpoint removes an endpoint and frees its addresses and its name.
// Removing what is not there changes nothing.
func (r *Registry) DeleteEndpoint(ctx context.Context, id model.EndpointID) (model.Index, error) {
	return r.write(ctx, fmt.Sprintf("delete endpoint %q", id), func(snap *state.Snapshot, p *plan) {
		planDeleteEndpoint(snap, p, id)
	})
}

func planDeleteEndpoint(snap *state.Snapshot, p *plan, id model.EndpointID) {
	cur, _ := snap.Endpoint(id)
	p.remove(store.EndpointKey(id), cur)
	if cur == nil {
		return
	}
	// These are the endpoint's alone for as long as it is there.
	p.txn.Deletes = append(p.txn.Deletes, store.NameKey(cur.Network, string(cur.Workload)))
	for _, a := range cur.Addrs {
		p.txn.Deletes = append(p.txn.Deletes, store.LeaseKey(cur.Network, a))
	}
}
