package local

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/task"
)

const (
	// fullSync is how often the two sides are compared although nothing is known
	// to have changed.
	fullSync = time.Minute
	// callLimit bounds one write, so that one that hangs does not hold up the rest.
	callLimit = 10 * time.Second
	// calm is the least time between two looks at everything because the catalogue
	// has changed. Most such changes are this loop's own; and somebody who keeps
	// changing this node's entries (a second agent of the same name) costs one write
	// a second and not thousands.
	calm = time.Second
	// parallel is how many calls are under way at a time; the store commits what
	// waits together at once.
	parallel = 16
	// together is how many services or checks one call writes at most, so that what
	// has failed is known soon.
	together = 512
)

// refusal is the catalogue's word that it does not take a record as it is.
type refusal struct {
	err     error
	until   time.Time // not tried again before
	backoff task.Backoff
}

func (r *refusal) refuse(err error) {
	if r.err == nil {
		r.backoff = task.Backoff{Min: 5 * time.Second, Max: 5 * time.Minute}
	}
	r.err, r.until = err, time.Now().Add(r.backoff.Next())
}

// rounds says when the loop looks at what.
type rounds struct {
	full    bool            // at everything now
	synced  <-chan struct{} // closes when the state is synced; nil: it is
	view    []<-chan struct{}
	last    time.Time // when everything was looked at
	next    time.Time // when it is again
	retry   task.Backoff
	failing bool // next is a retry
}

// syncLoop keeps the catalogue in line until ctx ends; it calls settled after
// the first comparison that left nothing to do.
func (a *Agent) syncLoop(ctx context.Context, settled func()) {
	r := &rounds{full: true, synced: a.st.Synced(), retry: task.Backoff{Min: 250 * time.Millisecond, Max: 30 * time.Second}}
	for ctx.Err() == nil {
		err := a.pass(ctx, r)
		if ctx.Err() != nil {
			return
		}
		a.note(r, err)
		r.plan(err)
		if err != nil {
			a.cfg.Log.Warn("bring the catalogue in line with this node", "error", err)
		} else if r.synced == nil && r.full {
			settled()
		}
		a.rest(ctx, r)
	}
}

// plan says when everything is looked at again. Whatever failed is tried then.
func (r *rounds) plan(err error) {
	now := time.Now()
	switch {
	case err != nil && (r.full || !r.failing):
		r.failing, r.next = true, now.Add(r.retry.Next())
	case r.full && err == nil:
		r.failing, r.next = false, now.Add(task.Jitter(fullSync))
		r.retry.Reset()
	}
}

// rest waits until there is a reason to look again.
func (a *Agent) rest(ctx context.Context, r *rounds) {
	a.mu.Lock()
	ring := a.alarms.next()
	a.mu.Unlock()
	for {
		timer := time.NewTimer(max(time.Until(sooner(r.next, ring)), 0))
		var view [3]<-chan struct{}
		copy(view[:], r.view)
		changed := false
		select {
		case <-ctx.Done():
		case <-a.kick:
		case <-timer.C:
		case <-r.synced:
			r.next = time.Now()
		case <-view[0]:
			changed = true
		case <-view[1]:
			changed = true
		case <-view[2]:
			changed = true
		}
		timer.Stop()
		if changed {
			r.view = nil
			if soon := r.last.Add(calm); soon.Before(r.next) {
				r.next = soon
			}
		}
		r.full = !time.Now().Before(r.next)
		if !changed || r.full {
			return
		}
	}
}

// note keeps how a pass went, for Status.
func (a *Agent) note(r *rounds, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil || r.full {
		a.last.err = err
	}
	if r.synced == nil && a.last.err == nil {
		a.last.at = time.Now()
	}
}

// pass compares what has changed here, or everything, and tells the catalogue
// what it lacks. Before the state is synced it tells nothing: what the catalogue
// has is not known, and writing would replace good states with first guesses.
func (a *Agent) pass(ctx context.Context, r *rounds) error {
	ids := a.takeDirty(r.full)
	if len(ids) == 0 && !r.full {
		return nil
	}
	a.reap(ids, time.Now())
	select {
	case <-a.st.Synced():
		r.full, r.synced = r.full || r.synced != nil, nil
	default:
		return nil
	}
	snap := a.st.Snapshot()
	a.adopt(snap)
	if err := a.assertNode(ctx, snap); err != nil {
		return err
	}
	var h have
	if r.full {
		h = a.everything(snap, r)
	} else {
		h = a.shown(snap, ids)
	}
	a.adoptTags(h.instances)
	wants := a.wants(ids, r.full)
	g := plan(a.owner, wants, h, time.Now())
	a.confirmRest(wants, g)
	return a.do(ctx, g.works)
}

// takeDirty returns the services to look at: those that have changed, whose alarm
// rings, or all of this node's.
func (a *Agent) takeDirty(full bool) []model.ServiceID {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.alarms.ring(time.Now(), func(id model.ServiceID) { a.dirty[id] = true })
	ids := make([]model.ServiceID, 0, len(a.dirty))
	if full {
		for id := range a.entries {
			ids = append(ids, id)
		}
	} else {
		for id := range a.dirty {
			ids = append(ids, id)
		}
	}
	a.dirty = map[model.ServiceID]bool{}
	return ids
}

// everything is all that the catalogue shows of this node, and what closes when
// that changes.
func (a *Agent) everything(snap *state.Snapshot, r *rounds) (h have) {
	_, node := snap.Node(a.me)
	var instances, checks state.Mark
	h.instances, instances = snap.NodeInstances(a.me)
	h.checks, checks = snap.NodeChecks(a.me)
	r.view = []<-chan struct{}{node.Changed, instances.Changed, checks.Changed}
	r.last = time.Now()
	return h
}

// shown is what the catalogue shows of some services and of the checks that they
// should have.
func (a *Agent) shown(snap *state.Snapshot, ids []model.ServiceID) (h have) {
	among := make(map[model.ServiceID]bool, len(ids))
	for _, id := range ids {
		among[id] = true
	}
	seen := map[model.CheckID]bool{}
	add := func(c *model.Check) {
		if c == nil || seen[c.ID] {
			return
		}
		seen[c.ID] = true
		// One that another service has now is that one's to tell of.
		if own := a.checks[c.ID]; own == nil || among[own.spec.ServiceID] {
			h.checks = append(h.checks, c)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, id := range ids {
		if i, _ := snap.Instance(a.me, id); i != nil {
			h.instances = append(h.instances, i)
		}
		for _, c := range snap.InstanceChecks(a.me, id) {
			add(c)
		}
		if e := a.entries[id]; e != nil {
			for _, spec := range e.reg.Checks {
				c, _ := snap.Check(a.me, spec.ID)
				add(c)
			}
		}
	}
	return h
}

// assertNode puts this node's own record into the catalogue.
func (a *Agent) assertNode(ctx context.Context, snap *state.Snapshot) error {
	n := a.cfg.Node
	shown, _ := snap.Node(a.me)
	if shown != nil && shown.Owner == n.Owner && shown.ID == n.ID && shown.Address == n.Address &&
		shown.Datacenter == n.Datacenter && maps.Equal(shown.TaggedAddresses, n.TaggedAddresses) &&
		maps.Equal(shown.Meta, n.Meta) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	if _, err := a.cat.RegisterNode(ctx, n); err != nil {
		return fmt.Errorf("register node %q: %w", a.me, err)
	}
	return nil
}

// adoptTags takes over tags from the catalogue where it has the last word.
func (a *Agent) adoptTags(instances []*model.Instance) {
	for _, i := range instances {
		a.mu.Lock()
		e := a.entries[i.ID]
		var tags []string
		differ := false
		if e != nil {
			tags, differ = overridden(e, i)
		}
		a.mu.Unlock()
		if !differ {
			continue
		}
		if err := a.adoptTagsOf(i.ID, e, tags); err != nil {
			a.cfg.Log.Warn("keep the tags that the catalogue has for a service", "service", i.ID, "error", err)
		}
	}
}

func (a *Agent) adoptTagsOf(id model.ServiceID, e *entry, tags []string) error {
	return a.journal.do(a.apply, &change{id: id, edit: func(old *model.Registration) (*model.Registration, error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if old == nil || a.entries[id] != e || !same(*old, e.reg) {
			return old, nil // removed or registered anew meanwhile
		}
		next := clone(*old)
		next.Instance.Tags = slices.Clone(tags)
		return &next, nil
	}, touch: touch{adopted: true}})
}

// wants is what this node has of some services, or of all that it has as of now.
func (a *Agent) wants(ids []model.ServiceID, all bool) []want {
	a.mu.Lock()
	defer a.mu.Unlock()
	wants := make([]want, 0, len(ids))
	if all {
		for _, e := range a.entries {
			wants = append(wants, a.want(e))
		}
		return wants
	}
	for _, id := range ids {
		if e := a.entries[id]; e != nil {
			wants = append(wants, a.want(e))
		}
	}
	return wants
}

func (a *Agent) want(e *entry) want {
	w := want{version: e.version, inst: e.reg.Instance, holdTo: e.until}
	for _, spec := range e.reg.Checks {
		c := a.checks[spec.ID]
		w.checks = append(w.checks, wantCheck{a.record(e, c), c.due, c.until})
	}
	return w
}

// confirmRest notes that the catalogue has what needed no work, and sets alarms
// for what waits.
func (a *Agent) confirmRest(wants []want, g agenda) {
	busy := make(map[model.ServiceID]bool, len(g.works))
	for _, w := range g.works {
		busy[w.id] = true
	}
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, t := range g.later {
		a.alarms.set(id, t)
	}
	for _, w := range wants {
		id := w.inst.ID
		e := a.entries[id]
		if e != nil && e.version == w.version && !busy[id] && !g.held[id] && !w.holdTo.After(now) {
			e.confirm()
		}
	}
}

func (e *entry) confirm() {
	e.confirmed, e.shown, e.refusal = true, true, refusal{}
	e.stir()
}
