package local

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

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
	// calm is how long the catalogue's changes are left alone after a repair, so
	// that somebody who keeps changing this node's entries (a second agent of the
	// same name) costs one write a second and not thousands.
	calm = time.Second
	// parallel is how many services are written at a time; the store commits
	// what waits together at once.
	parallel = 16
)

// refusal is the catalogue's word that it does not take an entry as it is.
type refusal struct {
	err     error
	until   time.Time // not tried again before
	backoff task.Backoff
}

// syncLoop keeps the catalogue in line until ctx ends; it calls settled after
// the first comparison that left nothing to do.
func (a *Agent) syncLoop(ctx context.Context, settled func()) {
	retry := task.Backoff{Min: 250 * time.Millisecond, Max: 30 * time.Second}
	for ctx.Err() == nil {
		p := a.pass(ctx)
		if ctx.Err() != nil {
			return
		}
		a.note(p)
		wake := task.Jitter(fullSync)
		if p.err != nil {
			a.cfg.Log.Warn("bring the catalogue in line with this node", "error", p.err)
			wake = retry.Next()
		} else {
			retry.Reset()
		}
		if p.err == nil && p.synced {
			settled()
		}
		if !p.next.IsZero() {
			wake = min(wake, max(time.Until(p.next), 0))
		}
		a.rest(ctx, p, wake)
	}
}

// pass is what one comparison found and did.
type pass struct {
	synced   bool
	err      error
	repaired bool
	next     time.Time // zero: no reason to come back by itself
	snap     *state.Snapshot
}

// rest waits until there is a reason for the next comparison.
func (a *Agent) rest(ctx context.Context, p pass, wake time.Duration) {
	timer := time.NewTimer(wake)
	defer timer.Stop()
	if p.repaired {
		quiet := time.NewTimer(calm)
		defer quiet.Stop()
		select {
		case <-ctx.Done():
			return
		case <-a.kick:
			return
		case <-quiet.C:
		}
	}
	synced := a.st.Synced()
	if p.synced {
		synced = nil
	}
	_, node := p.snap.Node(a.me)
	_, instances := p.snap.NodeInstances(a.me)
	_, checks := p.snap.NodeChecks(a.me)
	select {
	case <-ctx.Done():
	case <-a.kick:
	case <-timer.C:
	case <-synced:
	case <-node.Changed:
	case <-instances.Changed:
	case <-checks.Changed:
	}
}

// note keeps how a pass went, for Status and for those who wait.
func (a *Agent) note(p pass) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last.err = p.err
	if p.synced && p.err == nil {
		a.last.at = time.Now()
	}
	a.stir()
}

// stir wakes those who wait for an entry's fate; a.mu is held.
func (a *Agent) stir() {
	close(a.moved)
	a.moved = make(chan struct{})
}

// pass compares once and tells the catalogue what it lacks. Before the state is
// synced it tells nothing: what the catalogue has is not known, and writing
// would replace good states with first guesses.
func (a *Agent) pass(ctx context.Context) pass {
	p := pass{next: a.reap(time.Now())}
	select {
	case <-a.st.Synced():
		p.synced = true
	default:
	}
	p.snap = a.st.Snapshot()
	if !p.synced {
		return p
	}
	a.adopt(p.snap)
	if p.err = a.assertNode(ctx, p.snap); p.err != nil {
		return p
	}
	h := have{}
	h.instances, _ = p.snap.NodeInstances(a.me)
	h.checks, _ = p.snap.NodeChecks(a.me)
	a.adoptTags(h.instances)

	wants := a.wants()
	works, next := plan(a.owner, wants, h, time.Now())
	p.next = sooner(p.next, next)
	for _, w := range works {
		p.repaired = p.repaired || w.repair
	}
	a.confirmRest(wants, works)
	p.err = a.do(ctx, works)
	return p
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

// wants is what this node has, as of now.
func (a *Agent) wants() []want {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := make([]want, 0, len(a.entries))
	for _, e := range a.entries {
		w := want{version: e.version, inst: e.reg.Instance, shown: e.shown, holdTo: e.until}
		for _, spec := range e.reg.Checks {
			c := a.checks[spec.ID]
			w.checks = append(w.checks, wantCheck{a.record(e, c), c.due})
		}
		all = append(all, w)
	}
	return all
}

// do does the works, several at a time, and returns the first error that is not
// the refusal of an entry, which shows it by itself. When many fail, the rest is
// not tried: it would fail in the same way, only later.
func (a *Agent) do(ctx context.Context, works []work) error {
	var failures atomic.Int32
	g := errgroup.Group{}
	g.SetLimit(parallel)
	for _, w := range works {
		g.Go(func() error {
			if failures.Load() >= parallel {
				return nil
			}
			err := a.doOne(ctx, w)
			if a.confirm(w, err) {
				if err != nil {
					a.cfg.Log.Warn("the catalogue refuses a service", "service", w.id, "error", err)
				}
				return nil
			}
			failures.Add(1)
			return err
		})
	}
	return g.Wait()
}

func refused(err error) bool {
	var r interface{ Refused() bool }
	return errors.As(err, &r) && r.Refused()
}

// doOne does the steps of one work.
func (a *Agent) doOne(ctx context.Context, w work) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	if w.deregister {
		if _, err := a.cat.Deregister(ctx, a.me, w.id); err != nil {
			return fmt.Errorf("deregister service %q: %w", w.id, err)
		}
	}
	for _, id := range w.remove {
		if _, err := a.cat.DeleteCheck(ctx, a.me, id); err != nil {
			return fmt.Errorf("delete check %q: %w", id, err)
		}
	}
	if w.register != nil {
		if _, err := a.cat.Register(ctx, *w.register, w.checks); err != nil {
			return fmt.Errorf("register service %q: %w", w.id, err)
		}
		a.written(w.checks)
		return nil
	}
	for i, c := range w.checks {
		if _, err := a.cat.PutCheck(ctx, c); err != nil {
			return fmt.Errorf("put check %q: %w", c.ID, err)
		}
		a.written(w.checks[i : i+1])
	}
	return nil
}

// written notes that the catalogue has these outputs.
func (a *Agent) written(checks []model.Check) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range checks {
		c := a.checks[w.ID]
		switch {
		case c == nil:
		case c.output == w.Output:
			c.due = time.Time{}
		default: // there is a newer one already
			c.due = time.Now().Add(task.Jitter(outputHold))
		}
	}
}

// confirm notes how a work went, and says whether that settles it for now.
func (a *Agent) confirm(w work, err error) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	defer a.stir()
	e := a.entries[w.id]
	if e == nil || e.version != w.version { // not one of ours, or no more
		return err == nil
	}
	switch {
	case err == nil:
		e.confirm()
	case refused(err):
		if e.err == nil {
			e.backoff = task.Backoff{Min: 5 * time.Second, Max: 5 * time.Minute}
		}
		e.err, e.until = err, time.Now().Add(e.backoff.Next())
	default:
		return false
	}
	return true
}

func (e *entry) confirm() { e.confirmed, e.shown, e.refusal = true, true, refusal{} }

// confirmRest notes that the catalogue has what needed no work.
func (a *Agent) confirmRest(wants []want, works []work) {
	busy := map[model.ServiceID]bool{}
	for _, w := range works {
		busy[w.id] = true
	}
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range wants {
		e := a.entries[w.inst.ID]
		if e != nil && e.version == w.version && !busy[w.inst.ID] && !w.holdTo.After(now) {
			e.confirm()
		}
	}
	a.stir()
}
