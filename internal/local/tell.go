package local

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/task"
)

// do does the works, as few calls as there can be and several at a time, and
// returns the first error that is not the refusal of an entry, which shows it by
// itself. When many fail, the rest is not tried: it would fail in the same way,
// only later.
func (a *Agent) do(ctx context.Context, works []work) error {
	var registers, puts, others []work
	for _, w := range works {
		switch {
		case w.register != nil:
			registers = append(registers, w)
		case len(w.checks) > 0:
			puts = append(puts, w)
		default:
			others = append(others, w)
		}
	}
	var failures atomic.Int32
	g := errgroup.Group{}
	g.SetLimit(parallel)
	call := func(do func(context.Context) error) {
		g.Go(func() error {
			if failures.Load() >= parallel {
				return nil
			}
			ctx, cancel := context.WithTimeout(ctx, callLimit)
			defer cancel()
			err := do(ctx)
			if err != nil {
				failures.Add(1)
			}
			return err
		})
	}
	for some := range slices.Chunk(registers, together) {
		call(func(ctx context.Context) error { return a.assert(ctx, some) })
	}
	for some := range slices.Chunk(puts, together) {
		call(func(ctx context.Context) error { return a.putChecks(ctx, some) })
	}
	for _, w := range others {
		call(func(ctx context.Context) error { return a.settle(w, a.remove(ctx, w)) })
	}
	return g.Wait()
}

func refused(err error) bool {
	var r interface{ Refused() bool }
	return errors.As(err, &r) && r.Refused()
}

// assert registers services.
func (a *Agent) assert(ctx context.Context, works []work) error {
	instances, checks := make([]model.Instance, len(works)), make([][]model.Check, len(works))
	for i, w := range works {
		instances[i], checks[i] = *w.register, w.checks
	}
	var first error
	for i, err := range a.cat.RegisterMany(ctx, instances, checks) {
		w := works[i]
		if err != nil {
			err = fmt.Errorf("register service %q: %w", w.id, err)
		} else {
			a.written(w.checks)
		}
		if err = a.settle(w, err); first == nil {
			first = err
		}
	}
	return first
}

// putChecks puts the checks of services that are there. One that is refused holds
// up no other, not even of its service.
func (a *Agent) putChecks(ctx context.Context, works []work) error {
	var checks []model.Check
	for _, w := range works {
		checks = append(checks, w.checks...)
	}
	errs := a.cat.PutChecks(ctx, checks)
	var first error
	for _, w := range works {
		var failed error
		for i, c := range w.checks {
			err := errs[i]
			switch {
			case err == nil:
				a.written(w.checks[i : i+1])
				continue
			case refused(err):
				a.refuseCheck(w, c.ID, err)
			}
			if failed == nil || refused(failed) {
				failed = fmt.Errorf("put check %q: %w", c.ID, err)
			}
		}
		errs = errs[len(w.checks):]
		if failed = a.settle(w, failed); first == nil {
			first = failed
		}
	}
	return first
}

// remove does the steps of a work that takes something out of the catalogue.
func (a *Agent) remove(ctx context.Context, w work) error {
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
	return nil
}

// written notes that the catalogue has these outputs.
func (a *Agent) written(checks []model.Check) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range checks {
		c := a.checks[w.ID]
		if c == nil {
			continue
		}
		c.refusal = refusal{}
		if c.output == w.Output {
			c.due = time.Time{}
		} else { // there is a newer one already
			c.due = time.Now().Add(task.Jitter(outputHold))
			a.alarms.set(w.ServiceID, c.due)
		}
	}
}

// refuseCheck notes that the catalogue does not take a check of an entry that it
// has.
func (a *Agent) refuseCheck(w work, id model.CheckID, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.checks[id]
	if e := a.entries[w.id]; c != nil && e != nil && e.version == w.version {
		c.refuse(err)
		a.alarms.set(w.id, c.until)
	}
}

// settle notes how a work went, and returns its error unless it is a refusal,
// which the entry shows.
func (a *Agent) settle(w work, err error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.entries[w.id]
	if e == nil || e.version != w.version { // not one of ours, or no more
		return err
	}
	switch {
	case err == nil:
		for _, spec := range e.reg.Checks {
			if c := a.checks[spec.ID]; c.err != nil {
				e.err = c.err // as before
				return nil
			}
		}
		e.confirm()
		return nil
	case !refused(err):
		return err
	}
	if w.register == nil {
		e.err = err // its checks wait by themselves
	} else {
		e.refuse(err)
		a.alarms.set(w.id, e.until)
	}
	e.stir()
	a.cfg.Log.Warn("the catalogue refuses a service", "service", w.id, "error", err)
	return nil
}
