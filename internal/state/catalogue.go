package state

import "github.com/fairlead-net/fairlead/internal/model"

// Catalogue calls f with every record that agents hold too, nodes first and
// instances next, until f returns false.
func (s *Snapshot) Catalogue(f func(Change) bool) {
	more := true
	each(s.nodes, &more, func(v *model.Node) bool { return f(Change{Node: v}) })
	each(s.instances, &more, func(v *model.Instance) bool { return f(Change{Instance: v}) })
	each(s.checks, &more, func(v *model.Check) bool { return f(Change{Check: v}) })
	each(s.vips, &more, func(v *model.VIP) bool { return f(Change{VIP: v}) })
	each(s.networks, &more, func(v *model.Network) bool { return f(Change{Network: v}) })
	each(s.endpoints, &more, func(v *model.Endpoint) bool { return f(Change{Endpoint: v}) })
	each(s.leases, &more, func(v *model.AddressLease) bool { return f(Change{Lease: v}) })
	each(s.blocks, &more, func(v *model.Block) bool { return f(Change{Block: v}) })
	each(s.caRoots, &more, func(v *model.CARoot) bool { return f(Change{CARoot: v}) })
}

func each[V any](t *table[V], more *bool, f func(V) bool) {
	if !*more {
		return
	}
	list, _ := t.all()
	for _, v := range list {
		if *more = f(v); !*more {
			return
		}
	}
}

// Preload shows the content of an earlier run until Reset brings the present
// one: readers have answers, and the state is not synced. A rev below the
// current index panics.
func (s *State) Preload(rev model.Index, records []Change) {
	s.replace(rev, records, false)
}
