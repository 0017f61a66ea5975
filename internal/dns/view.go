package dns

import (
	"net/netip"
	"slices"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// view is the snapshot that one question is answered from. It is the only way to
// it, so that a kept answer knows all that it was made of.
type view struct {
	snap *state.Snapshot
	read *reads // nil: nobody wants to know
}

// reads are what was read of a snapshot, and what was found. They hold in a later
// snapshot if everything would be found as it was; see hold.
type reads struct {
	records []readRecord
	addrs   []readAddr
	// whole: something was read that cannot be compared.
	whole bool
	// name and live are the last choice among instances, before it was put in a
	// random order; no live without one.
	name string
	live []*state.Member
}

type readTable byte

const (
	readService readTable = iota // by name, as are the next three
	readConnected
	readNode
	readNetwork
	readTags // whole tables
	readNodes
	readNetworks
)

// readRecord is one record, or one whole table, with its index at the time.
type readRecord struct {
	table readTable
	name  string
	index model.Index
}

// readAddr is who held an address among the endpoints, nil for nobody.
type readAddr struct {
	ip netip.Addr
	e  *model.Endpoint
}

func (v view) note(t readTable, name string, m state.Mark) {
	if v.read != nil {
		v.read.records = append(v.read.records, readRecord{t, name, m.Index})
	}
}

// all is the snapshot itself, for what reads all over it.
func (v view) all() *state.Snapshot {
	if v.read != nil {
		v.read.whole = true
	}
	return v.snap
}

// Index is no read: the answers that it is in are marked otherwise; see
// kept.serial.
func (v view) Index() model.Index { return v.snap.Index() }

func (v view) Service(name model.ServiceName) *state.Service {
	svc, mark := v.snap.Service(name)
	v.note(readService, string(name), mark)
	return svc
}

func (v view) Connected(name model.ServiceName) []*state.Member {
	members, mark := v.snap.Connected(name)
	v.note(readConnected, string(name), mark)
	return members
}

func (v view) ServiceTags() (map[model.ServiceName][]string, state.Mark) {
	tags, mark := v.snap.ServiceTags()
	v.note(readTags, "", mark)
	return tags, mark
}

func (v view) Node(name model.NodeName) *model.Node {
	n, mark := v.snap.Node(name)
	v.note(readNode, string(name), mark)
	return n
}

func (v view) Nodes() []*model.Node {
	all, mark := v.snap.Nodes()
	v.note(readNodes, "", mark)
	return all
}

func (v view) Network(name model.NetworkName) *model.Network {
	n, mark := v.snap.Network(name)
	v.note(readNetwork, string(name), mark)
	return n
}

func (v view) Networks() []*model.Network {
	all, mark := v.snap.Networks()
	v.note(readNetworks, "", mark)
	return all
}

func (v view) EndpointByAddr(ip netip.Addr) *model.Endpoint {
	e := v.snap.EndpointByAddr(ip)
	if v.read != nil {
		v.read.addrs = append(v.read.addrs, readAddr{ip, e})
	}
	return e
}

// chose notes what an answer chooses from, in the catalogue's order.
func (v view) chose(name string, live []*state.Member) {
	if v.read != nil {
		v.read.name, v.read.live = name, slices.Clone(live)
	}
}

// hold reports whether all of it would be read alike in a snapshot. A record's
// index rises with every change of it, its end included, so equal indexes mean
// equal records; and nothing is compared by channels, which close a moment after
// the snapshot can be seen.
func (r *reads) hold(snap *state.Snapshot) bool {
	for i := range r.records {
		if r.records[i].now(snap) != r.records[i].index {
			return false
		}
	}
	for i := range r.addrs {
		if snap.EndpointByAddr(r.addrs[i].ip) != r.addrs[i].e {
			return false
		}
	}
	return true
}

// now is the record's index in a snapshot.
func (r *readRecord) now(snap *state.Snapshot) model.Index {
	var mark state.Mark
	switch r.table {
	case readService:
		_, mark = snap.Service(model.ServiceName(r.name))
	case readConnected:
		_, mark = snap.Connected(model.ServiceName(r.name))
	case readNode:
		_, mark = snap.Node(model.NodeName(r.name))
	case readNetwork:
		_, mark = snap.Network(model.NetworkName(r.name))
	case readTags:
		_, mark = snap.ServiceTags()
	case readNodes:
		mark = snap.Mark(state.NodeTable)
	case readNetworks:
		_, mark = snap.Networks()
	}
	return mark.Index
}

// tidy lets go of what nobody needs any more.
func (r *reads) tidy() {
	r.name, r.live = "", nil
	r.records = slices.Clip(slices.Compact(r.records))
	slices.SortFunc(r.addrs, func(a, b readAddr) int { return a.ip.Compare(b.ip) })
	r.addrs = slices.Clip(slices.Compact(r.addrs))
}
