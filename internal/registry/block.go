package registry

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"time"

	"github.com/fairlead-net/fairlead/internal/ipam"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/store"
)

// The VNIs of overlays: 24 bits (RFC 7348), above those that others begin with.
const (
	firstVNI uint32 = 0x800001
	lastVNI  uint32 = 0xfffffe
)

// blockQuarantine is how long a block stays a node's that has no endpoint in the
// network any more: until then other hosts may still hold routes, and callers
// remember its addresses.
const blockQuarantine = 10 * time.Minute

// ErrVNIsExhausted says that no overlay can be added.
var ErrVNIsExhausted = errors.New("every VXLAN network identifier is in use")

// ErrOtherBlock says that an address is another node's to hand out.
var ErrOtherBlock = errors.New("the address lies in the block of another node")

// freeVNI is the lowest that no network has.
func freeVNI(snap *state.Snapshot) (uint32, error) {
	taken := map[uint32]bool{}
	networks, _ := snap.Networks()
	for _, n := range networks {
		taken[n.VNI] = true
	}
	for vni := firstVNI; vni <= lastVNI; vni++ {
		if !taken[vni] {
			return vni, nil
		}
	}
	return 0, ErrVNIsExhausted
}

// blocks picks addresses of an overlay for one node, from blocks that are the
// node's or become it by the same plan.
type blocks struct {
	p       *plan
	network *model.Network
	node    model.NodeName
	all     []*model.Block
}

func newBlocks(snap *state.Snapshot, p *plan, n *model.Network, node model.NodeName) *blocks {
	all, _ := snap.NetworkBlocks(n.Name)
	return &blocks{p, n, node, all}
}

func (b *blocks) of(prefix netip.Prefix) *model.Block {
	for _, have := range b.all {
		if have.Prefix == prefix {
			return have
		}
	}
	return nil
}

// next is ipam.Next within the node's blocks. A wanted address that lies in
// nobody's block makes that the node's.
func (b *blocks) next(pool model.Pool, taken func(netip.Addr) bool, want netip.Addr) (netip.Addr, error) {
	if want.IsValid() {
		return b.wanted(pool, taken, want)
	}
	for _, have := range b.all {
		if have.Node != b.node || !pool.Prefix.Contains(have.Prefix.Addr()) {
			continue
		}
		a, err := ipam.Next(ipam.BlockPool(pool, have.Prefix), taken, want)
		if err == nil {
			b.use(have)
			return a, nil
		}
		if !errors.Is(err, ipam.ErrExhausted) {
			return a, err
		}
	}
	prefix, err := ipam.NextBlock(pool, func(p netip.Prefix) bool { return b.of(p) != nil })
	if err != nil {
		return netip.Addr{}, err
	}
	b.lease(prefix)
	return ipam.Next(ipam.BlockPool(pool, prefix), taken, want)
}

func (b *blocks) wanted(pool model.Pool, taken func(netip.Addr) bool, want netip.Addr) (netip.Addr, error) {
	if want == pool.Gateway {
		return ipam.Next(pool, taken, want) // which says so
	}
	prefix, err := ipam.BlockOf(pool, want)
	if err != nil {
		return want, err
	}
	switch have := b.of(prefix); {
	case have == nil:
		b.lease(prefix)
	case have.Node != b.node:
		return want, fmt.Errorf("%s: %w: %s is of node %q; choose one of a block of node %q or of nobody's", want, ErrOtherBlock, prefix, have.Node, b.node)
	default:
		b.use(have)
	}
	return ipam.Next(ipam.BlockPool(pool, prefix), taken, want)
}

// lease makes a block the node's.
func (b *blocks) lease(prefix netip.Prefix) {
	key := store.BlockKey(b.network.Name, prefix)
	b.p.absent(key)
	b.p.put(key, &model.Block{Network: b.network.Name, Prefix: prefix, Node: b.node, Stamp: model.Stamp{Owner: model.OwnerServers}})
}

// use makes the plan depend on a block's staying the node's.
func (b *blocks) use(have *model.Block) {
	key := store.BlockKey(have.Network, have.Prefix)
	if have.Idle == 0 {
		b.p.read(key, have)
		return
	}
	next := *have
	next.Idle = 0
	b.p.replace(key, have, &next)
}

// dueBlocks finds blocks whose node has no endpoint in the network: they are
// noted, and go back when the quarantine is over.
func (r *Registry) dueBlocks(snap *state.Snapshot, now time.Time) (all []due, next time.Time) {
	blocks, _ := snap.Blocks()
	if len(blocks) == 0 {
		return nil, time.Time{}
	}
	used := usedNetworks(snap)
	for _, b := range blocks {
		busy := used[placeOf{b.Network, b.Node}]
		until := time.Unix(b.Idle, 0).Add(blockQuarantine)
		switch {
		case busy && b.Idle == 0:
			continue
		case busy, b.Idle == 0: // to be noted
		case now.Before(until):
			next = earlier(next, until)
			continue
		}
		all = append(all, due{store.BlockKey(b.Network, b.Prefix), func(ctx context.Context) error { return r.turnBlock(ctx, b) }})
	}
	return all, next
}

type placeOf struct {
	network model.NetworkName
	node    model.NodeName
}

func usedNetworks(snap *state.Snapshot) map[placeOf]bool {
	used := map[placeOf]bool{}
	endpoints, _ := snap.Endpoints()
	for _, e := range endpoints {
		used[placeOf{e.Network, e.Node}] = true
	}
	return used
}

// turnBlock brings a block's record to what its node does with it. An endpoint that
// is created meanwhile writes or reads the block, and one of the two has to look
// again.
func (r *Registry) turnBlock(ctx context.Context, was *model.Block) error {
	_, err := r.write(ctx, fmt.Sprintf("look after block %s of network %q", was.Prefix, was.Network), func(snap *state.Snapshot, p *plan) {
		var cur *model.Block
		blocks, _ := snap.NetworkBlocks(was.Network)
		for _, b := range blocks {
			if b.Prefix == was.Prefix {
				cur = b
			}
		}
		if cur == nil {
			return
		}
		key, next, now := store.BlockKey(cur.Network, cur.Prefix), *cur, time.Now()
		busy := usedNetworks(snap)[placeOf{cur.Network, cur.Node}]
		// Leases are in the block as long as the endpoints are.
		p.unchanged(store.LeasePrefix(cur.Network), snap.Index())
		switch {
		case busy:
			next.Idle = 0
		case cur.Idle == 0:
			next.Idle = now.Unix()
		case !now.Before(time.Unix(cur.Idle, 0).Add(blockQuarantine)):
			p.remove(key, cur)
			return
		}
		p.replace(key, cur, &next)
	})
	return err
}

// estates are what nodes left behind that are no more: since when a reaper has
// seen them gone. Somebody may have deregistered a node that lives, which is back
// in a moment.
type estates map[model.NodeName]time.Time

// due finds endpoints of nodes that have been gone for the quarantine: nobody else
// would give their addresses back.
func (es estates) due(r *Registry) func(*state.Snapshot, time.Time) ([]due, time.Time) {
	return func(snap *state.Snapshot, now time.Time) (all []due, next time.Time) {
		gone := map[model.NodeName]bool{}
		endpoints, _ := snap.Endpoints()
		for _, e := range endpoints {
			if n, _ := snap.Node(e.Node); n != nil {
				continue
			}
			gone[e.Node] = true
			if es[e.Node].IsZero() {
				es[e.Node] = now
			}
			if until := es[e.Node].Add(blockQuarantine); now.Before(until) {
				next = earlier(next, until)
				continue
			}
			all = append(all, due{store.EndpointKey(e.ID), func(ctx context.Context) error { return r.forgetEndpoint(ctx, e) }})
		}
		maps.DeleteFunc(es, func(n model.NodeName, _ time.Time) bool { return !gone[n] })
		return all, next
	}
}

// forgetEndpoint deletes an endpoint whose node is gone, unless it has come back.
func (r *Registry) forgetEndpoint(ctx context.Context, e *model.Endpoint) error {
	_, err := r.write(ctx, fmt.Sprintf("forget endpoint %q of node %q, which is gone", e.ID, e.Node), func(snap *state.Snapshot, p *plan) {
		node, _ := snap.Node(e.Node)
		p.read(store.NodeKey(e.Node), node)
		if node == nil {
			planDeleteEndpoint(snap, p, e.ID)
		}
	})
	return err
}
