package state

import (
	"net/netip"

	"github.com/fairlead-net/fairlead/internal/model"
)

// edit is the next snapshot in the making. It belongs to the writer.
type edit struct {
	old *Snapshot
	rev model.Index

	nodes     *tableEdit[*model.Node]
	instances *tableEdit[*model.Instance]
	checks    *tableEdit[*model.Check]
	vips      *tableEdit[*model.VIP]
	networks  *tableEdit[*model.Network]
	endpoints *tableEdit[*model.Endpoint]
	members   *tableEdit[*model.Endpoint]
	leases    *tableEdit[*model.AddressLease]
	blocks    *tableEdit[*model.Block]
	kv        *tableEdit[*model.KV]
	servers   serversEdit
	services  *tableEdit[*Service]
	tags      *tableEdit[[]string]
	connected *tableEdit[*Member]

	checksOf   lookupEdit[*model.Check]
	vipsByAddr lookupEdit[*model.VIP]
	epsByAddr  lookupEdit[*model.Endpoint]
	epsByName  lookupEdit[*model.Endpoint]

	touched      touched
	touchedNodes map[model.NodeName]bool
	alike        alike
}

func newEdit(old *Snapshot, rev model.Index) *edit {
	return &edit{
		old: old, rev: rev,

		nodes:     old.nodes.edit(rev),
		instances: old.instances.edit(rev),
		checks:    old.checks.edit(rev),
		vips:      old.vips.edit(rev),
		networks:  old.networks.edit(rev),
		endpoints: old.endpoints.edit(rev),
		members:   old.members.edit(rev),
		leases:    old.leases.edit(rev),
		blocks:    old.blocks.edit(rev),
		kv:        old.kv.edit(rev),
		servers:   old.servers.edit(rev),
		services:  old.services.edit(rev),
		tags:      old.tags.edit(rev),
		connected: old.connected.edit(rev),

		checksOf:   editLookup(old.checksOf, rev),
		vipsByAddr: editLookup(old.vipsByAddr, rev),
		epsByAddr:  editLookup(old.epsByAddr, rev),
		epsByName:  editLookup(old.epsByName, rev),

		touched:      touched{},
		touchedNodes: map[model.NodeName]bool{},
		alike:        alike{map[model.ServiceName]*model.Instance{}, map[model.ServiceName]*model.Check{}},
	}
}

// apply makes one change in the tables and notes which services it concerns.
func (e *edit) apply(c *Change) {
	switch {
	case c.Node != nil:
		set(e.nodes, key(c.Node.Name), c.Node, c.Delete)
		e.touchedNodes[c.Node.Name] = true
	case c.Instance != nil:
		e.applyInstance(c.Instance, c.Delete)
	case c.Check != nil:
		e.applyCheck(c.Check, c.Delete)
	case c.VIP != nil:
		e.applyVIP(c.VIP, c.Delete)
	case c.Network != nil:
		set(e.networks, key(c.Network.Name), c.Network, c.Delete)
	case c.Endpoint != nil:
		e.applyEndpoint(c.Endpoint, c.Delete)
	case c.Lease != nil:
		set(e.leases, leaseKey(c.Lease), c.Lease, c.Delete)
	case c.Block != nil:
		set(e.blocks, key2(c.Block.Network, c.Block.Prefix.String()), c.Block, c.Delete)
	case c.KV != nil:
		before, _ := set(e.kv, key(c.KV.Key), c.KV, c.Delete)
		e.servers.lock(before, c.KV, c.Delete)
	default:
		e.servers.apply(c)
	}
}

// set puts or deletes and returns what was there before.
func set[V any](t *tableEdit[V], k string, v V, del bool) (before V, had bool) {
	if del {
		return t.delete(k)
	}
	return t.put(k, v)
}

func (e *edit) applyInstance(i *model.Instance, del bool) {
	// An instance that changes its service concerns both.
	before, had := set(e.instances, key2(i.Node, i.ID), i, del)
	if had {
		e.touched.instance(before)
	}
	if !del {
		e.shareInstance(i, before)
		e.touched.instance(i)
	}
}

func (e *edit) applyCheck(c *model.Check, del bool) {
	before, had := set(e.checks, key2(c.Node, c.ID), c, del)
	if had {
		e.checksOf.delete(key3(before.Node, before.ServiceID, before.ID))
		e.touchCheck(before)
	}
	if !del {
		e.shareCheck(c, before)
		e.checksOf.put(key3(c.Node, c.ServiceID, c.ID), c)
		e.touchCheck(c)
	}
}

func (e *edit) touchCheck(c *model.Check) {
	if c.ServiceID == "" {
		e.touchedNodes[c.Node] = true
		return
	}
	// An instance that only comes later in this edit touches itself.
	if i, ok := e.instances.get(key2(c.Node, c.ServiceID)); ok {
		e.touched.health(i)
	}
}

func (e *edit) applyVIP(v *model.VIP, del bool) {
	if before, had := set(e.vips, key(v.Service), v, del); had {
		for _, a := range vipAddrs(before) {
			// The address may already have gone to another service.
			if holder, ok := e.vipsByAddr.root.get(addrKey(a)); ok && holder == before {
				e.vipsByAddr.delete(addrKey(a))
			}
		}
	}
	if !del {
		for _, a := range vipAddrs(v) {
			e.vipsByAddr.put(addrKey(a), v)
		}
	}
	e.touched.service(v.Service)
}

func vipAddrs(v *model.VIP) []netip.Addr {
	var list []netip.Addr
	for _, a := range []netip.Addr{v.V4, v.V6} {
		if a.IsValid() {
			list = append(list, a)
		}
	}
	return list
}

func (e *edit) applyEndpoint(ep *model.Endpoint, del bool) {
	if before, had := set(e.endpoints, key(ep.ID), ep, del); had {
		for _, k := range addrKeys(before) {
			e.epsByAddr.delete(k)
		}
		for _, k := range nameKeys(before) {
			e.epsByName.delete(k)
		}
		if del || before.Network != ep.Network {
			e.members.delete(key2(before.Network, before.ID))
		}
	}
	if del {
		return
	}
	for _, k := range addrKeys(ep) {
		e.epsByAddr.put(k, ep)
	}
	for _, k := range nameKeys(ep) {
		e.epsByName.put(k, ep)
	}
	e.members.put(key2(ep.Network, ep.ID), ep)
}

func addrKeys(ep *model.Endpoint) []string {
	var keys []string
	for _, a := range ep.Addrs {
		if k := addrKey(a); k != "" {
			keys = append(keys, key2(k, ep.ID))
		}
	}
	return keys
}

func nameKeys(ep *model.Endpoint) []string {
	keys := []string{key3(ep.Network, nameKey(string(ep.Workload)), ep.ID)}
	for _, alias := range ep.Aliases {
		keys = append(keys, key3(ep.Network, nameKey(alias), ep.ID))
	}
	return keys
}

func leaseKey(l *model.AddressLease) string {
	return key2(l.Network, addrKey(l.Addr))
}

// commit returns the new snapshot and what wakes the waiters of what changed,
// to be run once the snapshot is published.
func (e *edit) commit() (*Snapshot, []func()) {
	e.rebuild()
	next := &Snapshot{
		index:   e.rev,
		changed: make(chan struct{}),

		checksOf:   e.checksOf.root,
		vipsByAddr: e.vipsByAddr.root,
		epsByAddr:  e.epsByAddr.root,
		epsByName:  e.epsByName.root,

		serviceList: e.old.serviceList,
		tagMap:      e.old.tagMap,
	}
	var wake []func()
	finish(&next.nodes, e.nodes, &wake)
	finish(&next.instances, e.instances, &wake)
	finish(&next.checks, e.checks, &wake)
	finish(&next.vips, e.vips, &wake)
	finish(&next.networks, e.networks, &wake)
	finish(&next.endpoints, e.endpoints, &wake)
	finish(&next.members, e.members, &wake)
	finish(&next.leases, e.leases, &wake)
	finish(&next.blocks, e.blocks, &wake)
	finish(&next.kv, e.kv, &wake)
	finish(&next.connected, e.connected, &wake)
	e.servers.commit(&next.servers, &wake)
	if finish(&next.services, e.services, &wake) {
		next.serviceList = listServices(next.services)
	}
	if finish(&next.tags, e.tags, &wake) {
		next.tagMap = mapTags(next.tags)
	}
	return next, wake
}

// finish commits one table into dst and reports whether it changed.
func finish[V any](dst **table[V], t *tableEdit[V], wake *[]func()) bool {
	next, notify := t.commit()
	*dst = next
	if notify == nil {
		return false
	}
	*wake = append(*wake, notify)
	return true
}
