package local

import (
	"slices"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
)

// want is one service as this node has it, or, without an id, the node's checks.
type want struct {
	version uint64
	inst    model.Instance
	checks  []wantCheck
	shown   bool      // see entry.shown
	holdTo  time.Time // refused: not to be tried before
}

type wantCheck struct {
	model.Check
	due time.Time // see check.due
}

// have is what the catalogue shows of this node.
type have struct {
	instances []*model.Instance
	checks    []*model.Check
}

// work is what the catalogue has to be told about one service (or, without an
// id, about checks that belong to none). Its steps are done in the order of the
// fields.
type work struct {
	id      model.ServiceID
	version uint64

	deregister bool            // the instance and all its checks
	remove     []model.CheckID // checks
	register   *model.Instance // together with checks
	checks     []model.Check   // without register: each by itself
	repair     bool            // the catalogue had been changed by somebody else
}

// plan compares the two sides and returns what to tell the catalogue, and when
// there will be more to tell although nothing changes (zero: never). It is a pure
// function.
//
// Only what has this node's owner is touched, and external entries under this
// node's name, which are removed as Consul does: what a node runs is known to its
// agent only. An external entry in the place of one of ours must go first,
// because the catalogue does not let anyone overwrite what another owns.
func plan(owner model.Owner, wants []want, h have, now time.Time) (works []work, next time.Time) {
	ours := func(o model.Owner) bool { return o == owner || o == model.OwnerExternal }
	instances := map[model.ServiceID]*model.Instance{}
	for _, i := range h.instances {
		instances[i.ID] = i
	}
	checks := map[model.CheckID]*model.Check{}
	for _, c := range h.checks {
		checks[c.ID] = c
	}
	wanted, wantedChecks := map[model.ServiceID]bool{}, map[model.CheckID]bool{}
	for _, w := range wants {
		wanted[w.inst.ID] = true
		for _, c := range w.checks {
			wantedChecks[c.ID] = true
		}
		if w.holdTo.After(now) {
			next = sooner(next, w.holdTo)
			continue
		}
		work, later := assert(owner, w, instances[w.inst.ID], checks, now)
		next = sooner(next, later)
		if !work.empty() {
			works = append(works, work)
		}
	}
	// Checks that go without a word of their own: with their instance, or because
	// it is registered without them.
	gone, renewed := map[model.ServiceID]bool{}, map[model.ServiceID]bool{}
	for _, k := range works {
		gone[k.id], renewed[k.id] = k.deregister, k.register != nil
	}
	for _, i := range h.instances {
		if !wanted[i.ID] && ours(i.Owner) && i.ID != consulService {
			gone[i.ID] = true
			works = append(works, work{id: i.ID, deregister: true, repair: true})
		}
	}
	var strays []model.CheckID
	for _, c := range h.checks {
		goes := gone[c.ServiceID] || (renewed[c.ServiceID] && c.Owner == owner)
		if !goes && !wantedChecks[c.ID] && ours(c.Owner) && c.ID != model.SerfHealth {
			strays = append(strays, c.ID)
		}
	}
	if len(strays) > 0 {
		works = append(works, work{remove: strays, repair: true})
	}
	return works, next
}

func (w work) empty() bool {
	return !w.deregister && len(w.remove) == 0 && w.register == nil && len(w.checks) == 0
}

// assert plans for one service that is to be there.
func assert(owner model.Owner, w want, has *model.Instance, shown map[model.CheckID]*model.Check, now time.Time) (k work, next time.Time) {
	k = work{id: w.inst.ID, version: w.version, repair: w.shown}
	if has != nil && has.Owner == model.OwnerExternal {
		k.deregister = true
		has = nil
	}
	var differ []model.Check
	missing := false // one is: it comes with its instance, in one step
	for _, c := range w.checks {
		s := shown[c.ID]
		switch {
		case s != nil && s.Owner == model.OwnerExternal:
			if !k.deregister || s.ServiceID != w.inst.ID {
				k.remove = append(k.remove, c.ID)
			}
			s = nil
		case s != nil && k.deregister && s.ServiceID == w.inst.ID:
			s = nil // goes with the instance
		}
		switch {
		case s == nil:
			missing = true
			differ = append(differ, c.Check)
		case s.Owner != owner || !s.SameButOutput(c.Check):
			differ = append(differ, c.Check)
		case s.Output != c.Output && c.due.After(now):
			next = sooner(next, c.due)
		case s.Output != c.Output:
			differ = append(differ, c.Check)
		}
	}
	if w.inst.ID != nodeEntry && (has == nil || has.Owner != owner || !has.Same(w.inst) || missing) {
		inst := w.inst
		k.register = &inst
		k.checks = make([]model.Check, 0, len(w.checks))
		for _, c := range w.checks {
			k.checks = append(k.checks, c.Check)
		}
		return k, next
	}
	k.checks = differ
	return k, next
}

// overridden returns the tags that the catalogue has for a service that lets it
// have the last word on them; false if they are this node's. A change that the
// catalogue has not seen yet comes first.
func overridden(e *entry, has *model.Instance) ([]string, bool) {
	if !e.reg.Instance.EnableTagOverride || !e.shown {
		return nil, false
	}
	return has.Tags, !slices.Equal(has.Tags, e.reg.Instance.Tags)
}
