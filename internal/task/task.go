// Package task runs a process's long-lived parts: it starts them in order,
// stops them in reverse order and waits for each; beside it are the two small
// values every retry loop needs, a back-off and an interruptible sleep.
//
// Anything may import it; it imports only the standard library. Run may be
// called from any goroutine and nested inside a unit; Backoff is a value of one
// goroutine.
package task

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// ErrNotReady is returned by Run when a unit returned nil without ever having
// called ready: what comes after it must not start on top of nothing.
var ErrNotReady = errors.New("returned before it was ready")

// Unit is one part of a process.
type Unit struct {
	// Name goes into the errors of Run.
	Name string
	// Run does the unit's work until ctx ends and returns when all its
	// goroutines are gone. It calls ready once (further calls do nothing) when
	// the units after it may start. Returning nil after ready means that the
	// unit has finished its work; the others go on.
	Run func(ctx context.Context, ready func()) error
}

// Run starts the units in order, each when the one before it called ready (or
// finished after that). When ctx ends or a unit fails, it stops the units that
// were started, in reverse order, waiting for each before it stops the next: a
// unit may rely on those before it until it has returned. It returns when all
// are gone.
//
// The result is the first error of a unit, wrapped with its name, or nil if ctx
// ended or every unit finished. A unit that returns its own cancellation after
// it was told to stop has not failed. Panics are not recovered: they end the
// process.
//
// Each unit's context has the values of ctx, not its cancellation.
func Run(ctx context.Context, units ...Unit) error {
	g := group{exits: make(chan exit, len(units))}
	err := g.start(ctx, units)
	for err == nil && g.alive > 0 && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case e := <-g.exits:
			err = g.ended(e)
		}
	}
	if stop := g.stop(); err == nil {
		err = stop
	}
	return err
}

// exit is what a unit's goroutine says last.
type exit struct {
	unit *started
	err  error
}

type started struct {
	name     string
	cancel   context.CancelFunc
	ready    chan struct{}
	done     bool // its exit has been received
	stopping bool // it has been told to stop
}

// group is the state of one Run. Only Run's goroutine touches it.
type group struct {
	units []*started
	alive int
	exits chan exit
}

// start starts the units one after the other until all are ready, ctx ends or
// one fails.
func (g *group) start(ctx context.Context, units []Unit) error {
	for _, u := range units {
		if ctx.Err() != nil {
			return nil
		}
		s := g.launch(ctx, u)
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return nil
			case <-s.ready:
				waiting = false
			case e := <-g.exits:
				if err := g.ended(e); err != nil {
					return err
				}
				waiting = e.unit != s
			}
		}
	}
	return nil
}

func (g *group) launch(ctx context.Context, u Unit) *started {
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s := &started{name: u.Name, cancel: cancel, ready: make(chan struct{})}
	g.units = append(g.units, s)
	g.alive++
	ready := sync.OnceFunc(func() { close(s.ready) })
	go func() { g.exits <- exit{s, u.Run(own, ready)} }()
	return s
}

// ended notes a unit's end and says whether that is an error.
func (g *group) ended(e exit) error {
	s := e.unit
	s.done = true
	g.alive--
	s.cancel()
	switch {
	case e.err != nil && s.stopping && errors.Is(e.err, context.Canceled):
		return nil
	case e.err != nil:
		return fmt.Errorf("%s: %w", s.name, e.err)
	case s.stopping:
		return nil
	}
	select {
	case <-s.ready:
		return nil
	default:
		return fmt.Errorf("%s: %w", s.name, ErrNotReady)
	}
}

// stop stops what still runs, last first, and returns the first error.
func (g *group) stop() error {
	var first error
	for i := len(g.units) - 1; i >= 0; i-- {
		s := g.units[i]
		s.stopping = true
		s.cancel()
		for !s.done {
			if err := g.ended(<-g.exits); err != nil && first == nil {
				first = err
			}
		}
	}
	return first
}
