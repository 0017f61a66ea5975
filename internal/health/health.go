// Package health finds out the state of a node's checks: it asks ports, programs
// and containers at intervals, counts down TTLs, follows what an alias stands
// for, applies the thresholds and reports every outcome that counts.
//
// Only local uses it. A Runner's methods may be called from any goroutine, also
// before Run; outcomes reach the Reporter one at a time per check, and none comes
// after Set or Remove for its check has returned. The rules (thresholds, TTL
// wording) are values without a clock or a goroutine; one loop per check drives
// them.
//
// The package imports vishvananda/netns, although netlink is netdrv's: a check of
// an endpoint connects from inside the endpoint's network namespace, and entering
// one needs nothing of netlink (see nsDial).
package health

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/fairlead-net/fairlead/internal/model"
)

// The errors of TTL.
var (
	// ErrUnknownCheck: no check of that id is set.
	ErrUnknownCheck = errors.New("unknown check")
	// ErrNotTTL: the check is there, but finds out its state by itself.
	ErrNotTTL = errors.New("not a TTL check")
)

// Reporter hears the outcomes.
type Reporter interface {
	// Report is called with each outcome that counts, the first included, also
	// if nothing has changed. It must not call the Runner, nor wait for anybody
	// who does.
	Report(id model.CheckID, status model.Status, output string)
}

// Targets knows the state of what alias checks stand for.
type Targets interface {
	// Target returns the state of what the alias check stands for, empty if it is
	// not known yet, a line that says why, and two channels of which one is closed
	// when that may have changed. It must not call the Runner.
	Target(alias model.CheckSpec) (status model.Status, output string, changed [2]<-chan struct{})
}

// Config is what checks need beside their definitions.
type Config struct {
	Log *slog.Logger
	// MayRun says whether a check may run its program, on the host or in a
	// container. One that may not is critical; without MayRun none may.
	MayRun func(model.CheckSpec) bool
	// DockerSocket is the path of the container engine's socket; empty means
	// Docker's own.
	DockerSocket string
	// Targets answers for alias checks; without it they are critical.
	Targets Targets
}

// Runner runs checks.
type Runner struct {
	rep   Reporter
	cfg   Config
	probe func(model.CheckSpec) probe // newProbe, but in tests

	mu     sync.Mutex // guards the following
	checks map[model.CheckID]*check
	ctx    context.Context // nil until Run has been called
	loops  sync.WaitGroup
}

// New returns a runner without checks. It starts nothing.
func New(rep Reporter, cfg Config) *Runner {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Runner{
		rep: rep, cfg: cfg, checks: map[model.CheckID]*check{},
		probe: func(spec model.CheckSpec) probe { return newProbe(spec, cfg) },
	}
}

// Run runs the checks until ctx ends and returns when every goroutine and
// connection of theirs is gone; the result is nil. It may be called once.
func (r *Runner) Run(ctx context.Context) error {
	r.mu.Lock()
	r.ctx = ctx
	for _, c := range r.checks {
		r.launch(c)
	}
	r.mu.Unlock()

	<-ctx.Done()
	// Whoever takes the lock from now on sees that ctx is over and launches
	// nothing, so that no loop begins during Wait.
	r.mu.Lock()
	r.mu.Unlock() //nolint:gocritic,staticcheck // a barrier
	r.loops.Wait()
	return nil
}

// Set adds a check or replaces the one of that id. The check's state is initial
// until the first outcome; those that ask do so at once and then at each
// interval, TTL checks have their whole TTL to go, and a maintenance check stays
// as it is. When a TTL check replaces another, the last words of the old one are
// kept for the message of expiry.
func (r *Runner) Set(spec model.CheckSpec, initial model.Status) {
	c := newCheck(spec, initial, r.rep, r.cfg.Log)
	r.mu.Lock()
	old := r.checks[spec.ID]
	r.checks[spec.ID] = c
	r.mu.Unlock()

	if old != nil {
		c.inherit(old.retire())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// Another Set or Remove may have come in between.
	if r.checks[spec.ID] == c && r.ctx != nil {
		r.launch(c)
	}
}

// Remove ends a check; an unknown id is no error.
func (r *Runner) Remove(id model.CheckID) {
	r.mu.Lock()
	c := r.checks[id]
	delete(r.checks, id)
	r.mu.Unlock()
	if c != nil {
		c.retire()
	}
}

// TTL notes what the owner of a TTL check says about it, reports that and gives
// it its whole TTL again. It fails with ErrUnknownCheck or ErrNotTTL.
func (r *Runner) TTL(id model.CheckID, status model.Status, output string) error {
	for {
		r.mu.Lock()
		c := r.checks[id]
		r.mu.Unlock()
		if c == nil {
			return fmt.Errorf("check %q: %w", id, ErrUnknownCheck)
		}
		if c.spec.TTL <= 0 {
			return fmt.Errorf("check %q: %w", id, ErrNotTTL)
		}
		if c.beat(status, output) {
			return nil
		}
		// It was taken out of the map before it died: the next round sees what there
		// is in its place.
	}
}

// launch starts a check's loop; r.mu is held.
func (r *Runner) launch(c *check) {
	if r.ctx.Err() != nil || !c.begin() {
		return
	}
	ctx, cancel := context.WithCancel(r.ctx)
	stop := context.AfterFunc(c.gone, cancel)
	r.loops.Go(func() {
		defer cancel()
		defer stop()
		switch c.spec.Type() {
		case "ttl":
			c.countDown(ctx)
		case "alias":
			c.follow(ctx, r.cfg.Targets)
		case "maintenance":
		default:
			c.poll(ctx, r.probe(c.spec))
		}
	})
}
