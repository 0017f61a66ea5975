package local

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// Register makes r one of this node's services or changes it. Once it returns
// without an error the registration is durable and survives a restart. The
// warning, if not empty, is one line for the client: the catalogue has not
// confirmed the registration within 2 s, or refuses it; it is tried again in the
// background until it does.
//
// Checks that the service had and r does not have go; one that had the same id
// keeps its state. Errors are ErrInvalid, ErrScripts and ErrFile; then nothing
// has changed.
func (a *Agent) Register(ctx context.Context, r model.Registration) (warning string, err error) {
	return a.register(ctx, r, false)
}

// Amend is Register, but the checks that the service had under other ids stay.
func (a *Agent) Amend(ctx context.Context, r model.Registration) (warning string, err error) {
	return a.register(ctx, r, true)
}

func (a *Agent) register(ctx context.Context, r model.Registration, keep bool) (string, error) {
	r, err := a.acceptable(r)
	if err != nil {
		return "", err
	}
	id := r.Instance.ID
	err = a.commit(&change{id: id, edit: func(old *model.Registration) (*model.Registration, error) {
		if old == nil || !keep {
			return &r, nil
		}
		next := clone(r)
		next.Checks = append(next.Checks, others(old.Checks, r.Checks)...)
		return &next, nil
	}, touch: touch{renewed: true}})
	if err != nil {
		return "", fmt.Errorf("register service %q: %w", id, err)
	}
	return a.awaitConfirmed(ctx, id, fmt.Sprintf("service %q", id)), nil
}

// acceptable returns a registration in the form that it is kept in, if this node
// and the catalogue take it.
func (a *Agent) acceptable(r model.Registration) (model.Registration, error) {
	r, err := normalize(r, a.me)
	if err != nil {
		return r, err
	}
	for _, c := range r.Checks {
		if err := a.mayRun(c); err != nil {
			return r, err
		}
	}
	if err := a.cat.Check(r.Instance, a.drafts(r)); err != nil {
		return r, fmt.Errorf("register service %q: %w", r.Instance.ID, err)
	}
	return r, nil
}

// others returns the checks in have whose ids are not in but.
func others(have, but []model.CheckSpec) []model.CheckSpec {
	var out []model.CheckSpec
	for _, c := range have {
		if !slices.ContainsFunc(but, func(o model.CheckSpec) bool { return o.ID == c.ID }) {
			out = append(out, c)
		}
	}
	return out
}

// drafts are the registration's checks as the catalogue would first show them.
func (a *Agent) drafts(r model.Registration) []model.Check {
	e := &entry{reg: r}
	var out []model.Check
	for _, spec := range r.Checks {
		out = append(out, a.record(e, &check{spec: spec, status: model.Critical}))
	}
	return out
}

// Deregister removes one of this node's services. Once it returns without an
// error the removal is durable; it waits up to 2 s for the catalogue to show it.
// Errors are ErrUnknownService and ErrFile.
func (a *Agent) Deregister(ctx context.Context, id model.ServiceID) error {
	err := a.commit(&change{id: id, edit: func(old *model.Registration) (*model.Registration, error) {
		if old == nil {
			return nil, ErrUnknownService
		}
		return nil, nil
	}})
	if err != nil {
		return fmt.Errorf("deregister service %q: %w", id, err)
	}
	a.awaitGone(ctx, id)
	return nil
}

// commit brings changes about durably, in memory and in the runner, and wakes
// the loop that tells the catalogue.
func (a *Agent) commit(changes ...*change) error {
	return a.journal.do(a.apply, changes...)
}

func (a *Agent) wake() {
	select {
	case a.kick <- struct{}{}:
	default: // it is awake
	}
}

// apply makes a batch of changes: file first, then memory, then the runner. The
// journal's lock is held, so that nobody else changes the set of registrations.
// What it costs depends on the batch alone.
func (a *Agent) apply(batch []*change) {
	d := a.draft(batch)
	for _, c := range batch {
		c.err = d.make(c)
	}
	if err := d.save(a.journal.file); err != nil {
		for _, c := range batch {
			if c.err == nil {
				c.err = err
			}
		}
		return
	}
	starts, stops := a.swap(d.regs, d.touched)
	a.wake()
	for _, id := range stops {
		a.runner.Remove(id)
	}
	for _, s := range starts {
		a.runner.Set(s.spec, s.status)
	}
}

// draft is the set of registrations as a batch of changes leaves it: what differs
// from the agent's, which stays as it is meanwhile.
type draft struct {
	a       *Agent
	regs    map[model.ServiceID]*model.Registration // that were looked at; nil: none
	owners  map[model.CheckID]*model.ServiceID      // that differ; nil: none
	touched map[model.ServiceID]touch
	idle    map[model.ServiceID]bool // neither there before nor now
}

func (a *Agent) draft(batch []*change) *draft {
	d := &draft{
		a: a, regs: make(map[model.ServiceID]*model.Registration, len(batch)), owners: map[model.CheckID]*model.ServiceID{},
		touched: make(map[model.ServiceID]touch, len(batch)), idle: map[model.ServiceID]bool{},
	}
	for _, c := range batch {
		if old := d.reg(c.id); c.file && old != nil {
			// What files say moves from one service to another in any order.
			d.release(c.id, slices.DeleteFunc(slices.Clone(old.Checks), func(s model.CheckSpec) bool { return !s.Declared }))
		}
	}
	return d
}

// reg returns a registration, nil if there is none. The journal's lock, which is
// held, is enough to read the set.
func (d *draft) reg(id model.ServiceID) *model.Registration {
	r, seen := d.regs[id]
	if e := d.a.entries[id]; !seen && e != nil {
		copied := e.reg
		r = &copied
	}
	d.regs[id] = r
	return r
}

// make makes one change, unless it cannot be.
func (d *draft) make(c *change) error {
	old := d.reg(c.id)
	next, err := c.edit(old)
	if err != nil {
		return err
	}
	if next != nil && c.id == nodeEntry && len(next.Checks) == 0 {
		next = nil
	}
	if next == old {
		d.idle[c.id] = next == nil
		return nil
	}
	if next != nil {
		if err := d.free(c.id, next.Checks); err != nil {
			return err
		}
	}
	if old != nil {
		d.release(c.id, old.Checks)
	}
	if next != nil {
		d.claim(c.id, next.Checks)
	}
	d.touched[c.id], d.regs[c.id] = c.touch, next
	return nil
}

// save makes the draft durable.
func (d *draft) save(f *file) error {
	next := make(map[model.ServiceID][]byte, len(d.touched))
	for id, idle := range d.idle {
		if idle { // but the file may have checks for it: of a service that files do not declare any more
			next[id] = nil
		}
	}
	for id := range d.touched {
		b, err := lasting(id, d.regs[id])
		if err != nil {
			return fmt.Errorf("%w: %w", ErrFile, err)
		}
		next[id] = b
	}
	return f.save(next)
}

// owner says which service a check's id belongs to, or that it does to none.
func (d *draft) owner(id model.CheckID) (model.ServiceID, bool) {
	if by, differs := d.owners[id]; differs {
		if by == nil {
			return "", false
		}
		return *by, true
	}
	if c := d.a.checks[id]; c != nil {
		return c.spec.ServiceID, true
	}
	return "", false
}

func (d *draft) claim(id model.ServiceID, checks []model.CheckSpec) {
	for _, c := range checks {
		d.owners[c.ID] = &id
	}
}

func (d *draft) release(id model.ServiceID, checks []model.CheckSpec) {
	for _, c := range checks {
		if by, taken := d.owner(c.ID); taken && by == id {
			d.owners[c.ID] = nil
		}
	}
}

// free fails if one of the checks' ids belongs to another service: the two would
// overwrite each other's state.
func (d *draft) free(id model.ServiceID, checks []model.CheckSpec) error {
	for _, c := range checks {
		by, taken := d.owner(c.ID)
		switch {
		case !taken || by == id:
		case by == nodeEntry:
			return invalid("the id %q belongs to a check of this node", c.ID)
		default:
			return invalid("the id %q belongs to a check of service %q", c.ID, by)
		}
	}
	return nil
}

func same(x, y model.Registration) bool {
	return x.Token == y.Token && x.Declared == y.Declared && x.Instance.Same(y.Instance) &&
		len(x.Checks) == len(y.Checks) && slices.EqualFunc(x.Checks, y.Checks, sameSpec)
}

func sameSpec(x, y model.CheckSpec) bool { return reflect.DeepEqual(x, y) }

// start is a check to hand to the runner.
type start struct {
	spec   model.CheckSpec
	status model.Status
}

// swap makes regs the registrations in memory, of which only those touched have
// changed, and returns what that means for the runner.
func (a *Agent) swap(regs map[model.ServiceID]*model.Registration, touched map[model.ServiceID]touch) (starts []start, stops []model.CheckID) {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	// What goes has to go first: another service may have taken over a check's id.
	before := map[model.CheckID]model.CheckSpec{}
	for id := range touched {
		if e := a.entries[id]; e != nil {
			for _, spec := range e.reg.Checks {
				before[spec.ID] = spec
			}
			a.uninstall(e, regs[id])
		}
	}
	for id, how := range touched {
		r := regs[id]
		if r == nil {
			continue
		}
		a.install(*r, now, how)
		for _, spec := range r.Checks {
			// A check that goes on as it was is left alone; but a TTL begins anew
			// when its service is registered again, as with Consul.
			if old, had := before[spec.ID]; had && sameSpec(old, spec) && (spec.TTL <= 0 || !how.renews(spec.ID)) {
				continue
			}
			starts = append(starts, start{spec, a.checks[spec.ID].status})
		}
	}
	for id := range before {
		if a.checks[id] == nil {
			stops = append(stops, id)
		}
	}
	for id := range touched {
		a.tell(id)
		a.dirty[id] = true
	}
	return starts, stops
}

// uninstall takes out of memory what next does not go on with; a.mu is held.
func (a *Agent) uninstall(e *entry, next *model.Registration) {
	if next == nil {
		delete(a.entries, e.reg.Instance.ID)
		e.stir()
	}
	for _, spec := range e.reg.Checks {
		if next == nil || !slices.ContainsFunc(next.Checks, func(s model.CheckSpec) bool { return s.ID == spec.ID }) {
			delete(a.checks, spec.ID)
		}
	}
}

// install puts a registration into the place of the one of that id; a.mu is held.
// Checks that are there already keep their state.
func (a *Agent) install(r model.Registration, now time.Time, how touch) *entry {
	id := r.Instance.ID
	e := a.entries[id]
	if e == nil || !same(e.reg, r) {
		if e != nil {
			e.stir()
		}
		a.clock++
		e = &entry{version: a.clock, confirmed: how.adopted, shown: how.adopted}
		a.entries[id] = e
	}
	e.reg, e.refusal = r, refusal{} // whoever changed it may think that it works now
	for _, spec := range r.Checks {
		c := a.checks[spec.ID]
		if c == nil {
			c = &check{}
			initial := spec.Status
			if initial == "" {
				initial = model.Critical
			}
			c.become(initial, "", now)
			a.checks[spec.ID] = c
		}
		if how.renews(spec.ID) && !c.since.IsZero() {
			c.since = now // DeregisterAfter is for those that nobody cares for
		}
		c.spec, c.refusal = spec, refusal{}
	}
	return e
}

// awaitConfirmed waits for the catalogue to show an entry as it is now, and
// returns the client's warning about what if it does not.
func (a *Agent) awaitConfirmed(ctx context.Context, id model.ServiceID, what string) string {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	a.mu.Lock()
	e := a.entries[id]
	for {
		// An entry is of one version; who changes it puts another in its place.
		over := e == nil || e.confirmed || a.entries[id] != e
		var refused error
		var news <-chan struct{}
		if !over {
			refused, news = e.err, e.news()
		}
		a.mu.Unlock()
		switch {
		case over:
			return ""
		case refused != nil:
			return oneLine("%s is kept on this node, but the catalogue refuses it, and is asked again from time to time: %v", what, refused)
		}
		select {
		case <-news:
			a.mu.Lock()
			continue
		case <-timer.C:
		case <-ctx.Done():
		}
		a.mu.Lock()
		last := a.last.err
		a.mu.Unlock()
		if last != nil {
			return oneLine("%s is kept on this node; the catalogue has not confirmed it within %v and is told in the background; the last try failed: %v", what, patience, last)
		}
		return oneLine("%s is kept on this node; the catalogue has not confirmed it within %v and is told in the background", what, patience)
	}
}

// oneLine formats a text that goes into an HTTP header.
func oneLine(format string, args ...any) string {
	return strings.Join(strings.Fields(fmt.Sprintf(format, args...)), " ")
}

// awaitGone waits for the catalogue to have lost an instance.
func (a *Agent) awaitGone(ctx context.Context, id model.ServiceID) {
	a.awaitLost(ctx, func(snap *state.Snapshot) (bool, <-chan struct{}) {
		inst, mark := snap.Instance(a.me, id)
		return inst == nil || a.entries[id] != nil, mark.Changed
	})
}

// awaitLost waits for the catalogue to have lost what was removed here, as long as
// a change waits for it. lost says whether it has, or whether that was registered
// again; it is called with a.mu held.
func (a *Agent) awaitLost(ctx context.Context, lost func(*state.Snapshot) (bool, <-chan struct{})) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		a.mu.Lock()
		done, changed := lost(a.st.Snapshot())
		a.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}
