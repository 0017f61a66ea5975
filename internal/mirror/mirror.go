// Package mirror keeps an agent's copy of the catalogue: it reads a server's
// change feed into the agent's state, goes to another server when that one falls
// silent, and keeps the copy in a file, so that an agent that starts without any
// server has answers.
//
// The state's index never goes backwards: a server that is behind what the agent
// shows already is left alone until it has caught up.
package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/task"
	"github.com/fairlead-net/fairlead/internal/wire"
)

const (
	// silence is how long a server may say nothing.
	silence = 3 * time.Second
	// saveEvery is how often the copy is written, while it changes.
	saveEvery = 30 * time.Second
	// retryFirst and retryMax are the pauses between attempts, with jitter: servers
	// are not asked by all agents at once.
	retryFirst, retryMax = 50 * time.Millisecond, 3 * time.Second
)

// ErrBehind is for a server that shows less than the agent does.
var ErrBehind = errors.New("the server is behind this agent")

// Feed opens a server's change feed behind an index of a run; rpc.Client.Feed is
// one.
type Feed func(ctx context.Context, from model.Index, run string) (io.ReadCloser, error)

// Config is what a Mirror needs.
type Config struct {
	Feed  Feed
	State *state.State
	// File is where the copy is kept; empty: nowhere.
	File string
	Log  *slog.Logger
}

// Mirror is an agent's writer of state. It may be used by many goroutines.
type Mirror struct {
	cfg Config
	run string // whose indexes the state shows; only of Run's goroutine

	mu        sync.Mutex // guards following
	heard     time.Time  // of the last commit; the zero time before the first
	connected bool
}

// New returns a mirror, and shows what is in its file.
func New(cfg Config) *Mirror {
	m := &Mirror{cfg: cfg}
	if cfg.File != "" {
		if err := m.load(); err != nil {
			cfg.Log.Warn("the kept catalogue is not used", "file", cfg.File, "error", err)
		}
	}
	return m
}

// Connected reports whether a server's feed is read at present.
func (m *Mirror) Connected() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.connected
}

// LastContact is how long ago a server was heard of; the time since the start if
// none was.
func (m *Mirror) LastContact() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.connected || m.heard.IsZero() {
		return 0
	}
	return time.Since(m.heard)
}

func (m *Mirror) note(connected bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.connected = connected
	if connected {
		m.heard = time.Now()
	}
}

// Run follows servers until ctx ends. ready is called when the state shows
// something: the feed's, or the file's. It is the Run of a task.Unit.
func (m *Mirror) Run(ctx context.Context, ready func()) error {
	if m.cfg.State.Snapshot().Index() > 0 {
		ready()
		ready = func() {}
	}
	var saving sync.WaitGroup
	saving.Go(func() { m.keep(ctx) })
	defer saving.Wait()
	once := sync.OnceFunc(ready)
	retry := task.Backoff{Min: retryFirst, Max: retryMax}
	for ctx.Err() == nil {
		err := m.follow(ctx, func() {
			retry.Reset()
			once()
		})
		was := m.Connected()
		m.note(false)
		if ctx.Err() != nil {
			break
		}
		if was {
			m.cfg.Log.Warn("the change feed was lost", "error", err)
		} else {
			m.cfg.Log.Debug("no change feed", "error", err)
		}
		if task.Sleep(ctx, retry.Next()) != nil {
			break
		}
	}
	return nil
}

// follow reads one feed until it breaks; up is called at each commit.
func (m *Mirror) follow(ctx context.Context, up func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := time.AfterFunc(silence, func() { cancel(fmt.Errorf("it says nothing for %v", silence)) })
	defer silent.Stop()
	from := model.Index(0) // everything, until it has been seen to be the servers' own
	if m.synced() {
		from = m.cfg.State.Snapshot().Index()
	}
	body, err := m.cfg.Feed(ctx, from, m.run)
	if err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	defer body.Close()
	defer context.AfterFunc(ctx, func() { _ = body.Close() })()
	in := wire.NewReader(body)
	var group group
	for {
		f, err := in.Next()
		if err != nil {
			return errors.Join(err, context.Cause(ctx))
		}
		silent.Reset(silence)
		switch f.Kind {
		case wire.Begin:
			group = start(f)
			if !f.Full && (f.Run != m.run || from == 0) {
				return fmt.Errorf("%w: it goes on where nothing was", wire.ErrFormat)
			}
		case wire.Records:
			group.changes = append(group.changes, f.Changes...)
		case wire.Commit:
			if err := m.apply(&group, f.Index); err != nil {
				return err
			}
			m.note(true)
			up()
		}
	}
}

// group is the records since the last commit.
type group struct {
	run     string
	full    bool // they are everything
	changes []state.Change
}

func start(f wire.Frame) group { return group{run: f.Run, full: f.Full} }

func (m *Mirror) synced() bool {
	select {
	case <-m.cfg.State.Synced():
		return true
	default:
		return false
	}
}

// apply shows a group, which is complete at an index.
func (m *Mirror) apply(g *group, at model.Index) error {
	now := m.cfg.State.Snapshot().Index()
	switch {
	case g.full && at < now:
		return fmt.Errorf("%w: it shows index %d, and this agent %d", ErrBehind, at, now)
	case g.full:
		m.cfg.State.Reset(at, g.changes)
		m.run = g.run
	case at > now:
		m.cfg.State.Apply(at, g.changes)
	}
	// What ends at or below the present index is in the state.
	*g = group{run: g.run}
	return nil
}
