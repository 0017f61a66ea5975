package state

import (
	"net/netip"
	"sync/atomic"

	"github.com/fairlead-net/fairlead/internal/model"
)

// Snapshot is the whole catalogue as of one index. What it returns is shared:
// never change it, lists included; clone a list before sorting or shuffling it.
type Snapshot struct {
	index   model.Index
	changed chan struct{}
	// announced is set once all who wait for a change up to here are woken.
	announced atomic.Bool

	// The tables, by their keys.
	nodes     *table[*model.Node]         // name
	instances *table[*model.Instance]     // node, id
	checks    *table[*model.Check]        // node, id
	vips      *table[*model.VIP]          // service
	networks  *table[*model.Network]      // name
	endpoints *table[*model.Endpoint]     // id
	members   *table[*model.Endpoint]     // network, id
	leases    *table[*model.AddressLease] // network, address
	blocks    *table[*model.Block]        // network, prefix
	kv        *table[*model.KV]           // key
	servers                               // what only servers hold

	// What is derived from them: kept as tables because it has marks of its own.
	services *table[*Service] // name; those with an instance or a VIP
	tags     *table[[]string] // name; those with an instance
	// connected are the ways to a service with mutual TLS: service, node, id.
	connected *table[*Member]

	// Secondary indexes.
	checksOf   *lookup[*model.Check]    // node, service id (empty: the node's), id
	vipsByAddr *lookup[*model.VIP]      // address
	epsByAddr  *lookup[*model.Endpoint] // address, id
	epsByName  *lookup[*model.Endpoint] // network, folded name, id

	// Lists that many ask for, made by the first reader and kept as long as
	// their tables stay as they are.
	serviceList func() []*Service
	tagMap      func() map[model.ServiceName][]string
}

// emptySnapshot has nothing in it and every index at rev.
func emptySnapshot(rev model.Index) *Snapshot {
	s := &Snapshot{
		index:   rev,
		changed: make(chan struct{}),

		nodes:     newTable[*model.Node](rev),
		instances: newTable[*model.Instance](rev),
		checks:    newTable[*model.Check](rev),
		vips:      newTable[*model.VIP](rev),
		networks:  newTable[*model.Network](rev),
		endpoints: newTable[*model.Endpoint](rev),
		members:   newTable[*model.Endpoint](rev),
		leases:    newTable[*model.AddressLease](rev),
		blocks:    newTable[*model.Block](rev),
		kv:        newTable[*model.KV](rev),
		servers:   emptyServers(rev),
		services:  newTable[*Service](rev),
		tags:      newTable[[]string](rev),
		connected: newTable[*Member](rev),

		checksOf:   newLookup[*model.Check](rev),
		vipsByAddr: newLookup[*model.VIP](rev),
		epsByAddr:  newLookup[*model.Endpoint](rev),
		epsByName:  newLookup[*model.Endpoint](rev),
	}
	s.serviceList = listServices(s.services)
	s.tagMap = mapTags(s.tags)
	return s
}

// wakers close every channel that this snapshot's tables have handed out.
func (s *Snapshot) wakers() []func() {
	return append([]func(){
		s.nodes.wakeAll, s.instances.wakeAll, s.checks.wakeAll, s.vips.wakeAll,
		s.networks.wakeAll, s.endpoints.wakeAll, s.members.wakeAll,
		s.leases.wakeAll, s.blocks.wakeAll, s.kv.wakeAll, s.services.wakeAll, s.tags.wakeAll, s.connected.wakeAll,
	}, s.servers.wakers()...)
}

// Index is the revision this snapshot shows.
func (s *Snapshot) Index() model.Index { return s.index }

// Changed closes when a newer snapshot is published, whatever changed.
func (s *Snapshot) Changed() <-chan struct{} { return s.changed }

// Announced reports whether every Mark.Changed that this snapshot is news for has
// closed. A Mark from an earlier one that has not closed by then still holds as of
// this one: what was read is the same.
func (s *Snapshot) Announced() bool { return s.announced.Load() }

// Node returns a node, nil if there is none of that name.
func (s *Snapshot) Node(name model.NodeName) (*model.Node, Mark) {
	n, mark, _ := s.nodes.get(key(name))
	return n, mark
}

// Nodes returns all nodes, sorted by name.
func (s *Snapshot) Nodes() ([]*model.Node, Mark) { return s.nodes.all() }

// Instance returns one instance, nil if there is none.
func (s *Snapshot) Instance(n model.NodeName, id model.ServiceID) (*model.Instance, Mark) {
	i, mark, _ := s.instances.get(key2(n, id))
	return i, mark
}

// NodeInstances returns a node's instances, sorted by id.
func (s *Snapshot) NodeInstances(n model.NodeName) ([]*model.Instance, Mark) {
	return s.instances.under(key2(n, ""))
}

// NodeChecks returns a node's checks and those of its instances, sorted by id.
func (s *Snapshot) NodeChecks(n model.NodeName) ([]*model.Check, Mark) {
	return s.checks.under(key2(n, ""))
}

// Check returns one check, nil if there is none.
func (s *Snapshot) Check(n model.NodeName, id model.CheckID) (*model.Check, Mark) {
	c, mark, _ := s.checks.get(key2(n, id))
	return c, mark
}

// InstanceChecks returns the checks of one instance, sorted by id.
func (s *Snapshot) InstanceChecks(n model.NodeName, id model.ServiceID) []*model.Check {
	return under(s.checksOf, key3(n, id, ""))
}

// Checks returns every check in a state, or all of them for the empty state,
// sorted by node and id. The mark covers all checks.
func (s *Snapshot) Checks(status model.Status) ([]*model.Check, Mark) {
	all, mark := s.checks.all()
	if status == "" {
		return all, mark
	}
	list := []*model.Check{}
	for _, c := range all {
		if c.Status == status {
			list = append(list, c)
		}
	}
	return list, mark
}

// VIPs returns every allocated VIP, sorted by service.
func (s *Snapshot) VIPs() ([]*model.VIP, Mark) { return s.vips.all() }

// VIP returns a service's VIP, nil if it has none.
func (s *Snapshot) VIP(name model.ServiceName) (*model.VIP, Mark) {
	v, mark, _ := s.vips.get(key(name))
	return v, mark
}

// VIPByAddr returns the VIP that has the address, nil if none has.
func (s *Snapshot) VIPByAddr(a netip.Addr) *model.VIP {
	v, _ := s.vipsByAddr.get(addrKey(a))
	return v
}

// Network returns a network, nil if there is none of that name.
func (s *Snapshot) Network(name model.NetworkName) (*model.Network, Mark) {
	n, mark, _ := s.networks.get(key(name))
	return n, mark
}

// Networks returns all networks, sorted by name.
func (s *Snapshot) Networks() ([]*model.Network, Mark) { return s.networks.all() }

// Endpoint returns an endpoint, nil if there is none of that id.
func (s *Snapshot) Endpoint(id model.EndpointID) (*model.Endpoint, Mark) {
	e, mark, _ := s.endpoints.get(key(id))
	return e, mark
}

// Endpoints returns all endpoints, sorted by id.
func (s *Snapshot) Endpoints() ([]*model.Endpoint, Mark) { return s.endpoints.all() }

// NetworkEndpoints returns a network's endpoints, sorted by id.
func (s *Snapshot) NetworkEndpoints(n model.NetworkName) ([]*model.Endpoint, Mark) {
	return s.members.under(key2(n, ""))
}

// EndpointByAddr returns the endpoint that holds an address, nil if none does.
// Should two hold it, it is the one with the lower id.
func (s *Snapshot) EndpointByAddr(a netip.Addr) *model.Endpoint {
	k := addrKey(a)
	if k == "" {
		return nil
	}
	var first *model.Endpoint
	top, _ := s.epsByAddr.seek(key2(k, ""))
	top.walk(func(_ string, e *model.Endpoint) bool {
		first = e
		return true
	})
	return first
}

// EndpointsByName returns the endpoints of a network that answer to a name
// (their workload's or an alias), sorted by id. Names are compared without
// regard to case.
func (s *Snapshot) EndpointsByName(n model.NetworkName, name string) []*model.Endpoint {
	return under(s.epsByName, key3(n, nameKey(name), ""))
}

// Leases returns a network's address leases, sorted by address.
func (s *Snapshot) Leases(n model.NetworkName) ([]*model.AddressLease, Mark) {
	return s.leases.under(key2(n, ""))
}

// Blocks returns all blocks of overlays, sorted by network.
func (s *Snapshot) Blocks() ([]*model.Block, Mark) { return s.blocks.all() }

// NetworkBlocks returns the blocks of one network.
func (s *Snapshot) NetworkBlocks(n model.NetworkName) ([]*model.Block, Mark) {
	return s.blocks.under(key2(n, ""))
}

// KV returns one entry, nil if there is none. The mark's index covers the key's
// deletion.
func (s *Snapshot) KV(key string) (*model.KV, Mark) {
	kv, mark, _ := s.kv.get(key)
	return kv, mark
}

// KVTree returns the entries whose keys begin with prefix, sorted by key. The
// mark covers the prefix, deletions included.
func (s *Snapshot) KVTree(prefix string) ([]*model.KV, Mark) {
	return s.kv.under(prefix)
}
