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
	holdTo  time.Time // refused: not to be tried before
}

type wantCheck struct {
	model.Check
	due    time.Time // see check.due
	holdTo time.Time // refused by itself
}

// have is what the catalogue shows of this node, or of the services that are
// looked at.
type have struct {
	instances []*model.Instance
	checks    []*model.Check
}

// work is what the catalogue has to be told about one service, or, without an id,
// about checks that belong to none. It has one of the steps.
type work struct {
	id      model.ServiceID
	version uint64

	deregister bool            // the instance and all its checks
	remove     []model.CheckID // checks
	register   *model.Instance // together with checks
	checks     []model.Check   // without register: each by itself
}

// agenda is what plan finds to do: now, and later although nothing changes.
type agenda struct {
	works []work
	later map[model.ServiceID]time.Time
	// held are services of which a part waits that was refused by itself.
	held map[model.ServiceID]bool
}

func (g *agenda) wait(id model.ServiceID, t time.Time) { g.later[id] = sooner(t, g.later[id]) }

// plan compares the two sides. It is a pure function.
//
// Only what has this node's owner is touched, and external entries under this
// node's name, which are removed, or taken over, as Consul does: what a node runs
// is known to its agent only.
func plan(owner model.Owner, wants []want, h have, now time.Time) agenda {
	g := agenda{later: map[model.ServiceID]time.Time{}, held: map[model.ServiceID]bool{}}
	ours := func(o model.Owner) bool { return o == owner || o == model.OwnerExternal }
	instances := make(map[model.ServiceID]*model.Instance, len(h.instances))
	for _, i := range h.instances {
		instances[i.ID] = i
	}
	checks := make(map[model.CheckID]*model.Check, len(h.checks))
	for _, c := range h.checks {
		checks[c.ID] = c
	}
	wanted, wantedChecks := make(map[model.ServiceID]bool, len(wants)), make(map[model.CheckID]bool, len(h.checks))
	for _, w := range wants {
		wanted[w.inst.ID] = true
		for _, c := range w.checks {
			wantedChecks[c.ID] = true
		}
		if w.holdTo.After(now) {
			g.wait(w.inst.ID, w.holdTo)
			continue
		}
		g.assert(owner, w, instances[w.inst.ID], checks, now)
	}
	// Checks that go without a word of their own: with their instance, or because
	// it is registered without them.
	gone := map[model.ServiceID]bool{}
	for _, k := range g.works {
		gone[k.id] = k.register != nil
	}
	for _, i := range h.instances {
		if !wanted[i.ID] && ours(i.Owner) && i.ID != consulService {
			gone[i.ID] = true
			g.works = append(g.works, work{id: i.ID, deregister: true})
		}
	}
	var strays []model.CheckID
	for _, c := range h.checks {
		if !gone[c.ServiceID] && !wantedChecks[c.ID] && ours(c.Owner) && c.ID != model.SerfHealth {
			strays = append(strays, c.ID)
		}
	}
	if len(strays) > 0 {
		g.works = append(g.works, work{remove: strays})
	}
	return g
}

// assert plans for one service that is to be there.
func (g *agenda) assert(owner model.Owner, w want, has *model.Instance, shown map[model.CheckID]*model.Check, now time.Time) {
	id := w.inst.ID
	k := work{id: id, version: w.version}
	missing := id != nodeEntry && (has == nil || has.Owner != owner || !has.Same(w.inst))
	for _, c := range w.checks {
		s := shown[c.ID]
		switch {
		case s == nil: // it comes with its instance, in one step
			missing = missing || id != nodeEntry
		case s.Owner == owner && s.SameButOutput(c.Check) && s.Output == c.Output:
			continue
		case s.Owner == owner && s.SameButOutput(c.Check) && c.due.After(now):
			g.wait(id, c.due)
			continue
		}
		if c.holdTo.After(now) {
			g.wait(id, c.holdTo)
			g.held[id] = true
			continue
		}
		k.checks = append(k.checks, c.Check)
	}
	if missing {
		inst := w.inst
		k.register = &inst
		k.checks = make([]model.Check, 0, len(w.checks))
		for _, c := range w.checks {
			k.checks = append(k.checks, c.Check)
		}
	}
	if k.register != nil || len(k.checks) > 0 {
		g.works = append(g.works, k)
	}
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
