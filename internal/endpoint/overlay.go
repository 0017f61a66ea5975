package endpoint

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/netdrv"
	"github.com/fairlead-net/fairlead/internal/state"
)

// underlayMTU is that of the links between hosts, in bytes.
const underlayMTU = 1500

// overlayMTU is what fits through every transport.
const overlayMTU = underlayMTU - netdrv.TunnelOverhead

// overlay is what this host's kernel is to know of a network that spans several:
// the blocks of addresses that are its own, and those of the nodes that are in the
// catalogue.
func (s *Set) overlay(snap *state.Snapshot, n model.Network) netdrv.Overlay {
	o := netdrv.Overlay{Network: n, Node: s.cfg.Node, Addr: s.cfg.Addr}
	blocks, _ := snap.NetworkBlocks(n.Name)
	others := map[model.NodeName][]netip.Prefix{}
	for _, b := range blocks {
		if b.Node == s.cfg.Node {
			o.Blocks = append(o.Blocks, b.Prefix)
		} else {
			others[b.Node] = append(others[b.Node], b.Prefix)
		}
	}
	for name, prefixes := range others {
		node, _ := snap.Node(name)
		if node == nil {
			continue // its blocks go back after a while
		}
		addr, err := netip.ParseAddr(node.Address)
		if err != nil {
			continue // an external node's name; no agent has one
		}
		o.Peers = append(o.Peers, netdrv.Peer{Node: name, Addr: addr.Unmap(), Blocks: prefixes})
	}
	slices.SortFunc(o.Peers, func(a, b netdrv.Peer) int { return strings.Compare(string(a.Node), string(b.Node)) })
	return o
}

// hasBlock reports whether this node has a block of an overlay.
func (s *Set) hasBlock(snap *state.Snapshot, n model.NetworkName) bool {
	blocks, _ := snap.NetworkBlocks(n)
	return slices.ContainsFunc(blocks, func(b *model.Block) bool { return b.Node == s.cfg.Node })
}
