package registry

import (
	"context"
	"sync"
	"time"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/store"
	"github.com/fairlead-net/fairlead/internal/task"
)

const (
	// maxReaping is how many things end at the same time; group commit makes few
	// transactions of them.
	maxReaping = 64
	// reapLimit bounds the end of one thing.
	reapLimit = 30 * time.Second
	// longestPause is between two attempts at ending the same thing.
	longestPause = 5 * time.Second
	// After a look around a table the reaper rests restFactor times as long as it
	// took, so that it costs little of a core however much happens, and at most
	// longestRest, so that nobody waits longer than that.
	restFactor  = 10
	longestRest = 150 * time.Millisecond
)

// Reap ends what has run out: sessions whose time is over or whose node or checks
// are gone or critical, lock delays, expired ACL tokens. It is the Run of a
// task.Unit and returns nil when ctx has ended and so have its goroutines.
//
// It sleeps until the state changes or the next known deadline comes. Every end
// is committed on the condition that its ground still holds, so any number of
// servers may reap at the same time, and a session that is alive after all stays.
func (r *Registry) Reap(ctx context.Context, ready func()) error {
	ready()
	select {
	case <-r.st.Synced():
	case <-ctx.Done():
		return nil
	}
	p := &reaper{r: r, ended: make(chan ending), plots: []*plot{
		{find: r.dueSessions, tables: []state.Table{state.SessionTable, state.AliveTable, state.NodeTable, state.CheckTable}},
		{find: r.dueLockDelays, tables: []state.Table{state.LockDelayTable}},
		{find: r.dueTokens, tables: []state.Table{state.TokenTable}},
		{find: estates{}.due(r), tables: []state.Table{state.EndpointTable, state.NodeTable}},
		{find: r.dueBlocks, tables: []state.Table{state.BlockTable, state.EndpointTable}},
	}}
	p.run(ctx)
	return nil
}

// due is something that has run out: a name for it, and what ends it.
type due struct {
	key string
	end func(ctx context.Context) error
}

// plot is one kind of thing to reap.
type plot struct {
	tables []state.Table
	// find returns what is due in a snapshot and when the next will be by itself;
	// the zero Time for never.
	find func(snap *state.Snapshot, now time.Time) ([]due, time.Time)

	seen  []model.Index // of the tables at the last look
	next  time.Time     // look again then, whatever changes; zero for never
	rest  time.Time     // but not before that
	tries map[string]*try
}

// try is what is known of something that is due or was.
type try struct {
	busy    bool // its end is under way, or waits for its turn
	backoff task.Backoff
	after   time.Time // not before that
}

// reaper is the state of one Reap. Only Reap's goroutine touches it.
type reaper struct {
	r       *Registry
	plots   []*plot
	queue   []func() ending
	running int
	ended   chan ending
	wg      sync.WaitGroup
}

// ending is the outcome of one attempt.
type ending struct {
	plot *plot
	key  string
	err  error
}

func (p *reaper) run(ctx context.Context) {
	defer p.wg.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		snap, now := p.r.st.Snapshot(), time.Now()
		var wake time.Time
		for _, pl := range p.plots {
			wake = earlier(wake, p.visit(ctx, pl, snap, now))
		}
		for p.running < maxReaping && len(p.queue) > 0 {
			p.launch(ctx)
		}
		timer.Stop()
		if !wake.IsZero() {
			timer.Reset(time.Until(wake))
		}
		select {
		case <-ctx.Done():
			return
		case <-snap.Changed():
		case <-timer.C:
		case e := <-p.ended:
			p.settle(ctx, e)
		}
	}
}

// visit looks at a plot if there is reason to, queues what is due and returns
// when to come back.
func (p *reaper) visit(ctx context.Context, pl *plot, snap *state.Snapshot, now time.Time) time.Time {
	changed := pl.changed(snap)
	if !changed && (pl.next.IsZero() || now.Before(pl.next)) {
		return pl.next
	}
	if now.Before(pl.rest) {
		return pl.rest
	}
	pl.look(snap)
	list, next := pl.find(snap, now)
	tries := make(map[string]*try, len(list))
	for key, t := range pl.tries {
		if t.busy {
			tries[key] = t
		}
	}
	for _, d := range list {
		t := pl.tries[d.key]
		if t == nil {
			t = &try{backoff: task.Backoff{Max: longestPause}}
		}
		tries[d.key] = t
		switch {
		case t.busy:
		case now.Before(t.after):
			next = earlier(next, t.after)
		default:
			t.busy = true
			p.queue = append(p.queue, func() ending {
				ctx, cancel := context.WithTimeout(ctx, reapLimit)
				defer cancel()
				return ending{pl, d.key, d.end(ctx)}
			})
		}
	}
	pl.tries, pl.next = tries, next
	pl.rest = time.Now().Add(min(restFactor*time.Since(now), longestRest))
	return next
}

func (pl *plot) changed(snap *state.Snapshot) bool {
	for i, t := range pl.tables {
		if i >= len(pl.seen) || snap.Mark(t).Index != pl.seen[i] {
			return true
		}
	}
	return false
}

func (pl *plot) look(snap *state.Snapshot) {
	pl.seen = pl.seen[:0]
	for _, t := range pl.tables {
		pl.seen = append(pl.seen, snap.Mark(t).Index)
	}
}

// launch starts what is first in the queue.
func (p *reaper) launch(ctx context.Context) {
	end := p.queue[0]
	p.queue[0] = nil
	p.queue = p.queue[1:]
	p.running++
	p.wg.Go(func() {
		e := end()
		select {
		case p.ended <- e:
		case <-ctx.Done():
		}
	})
}

// settle takes note of an outcome. What could not be ended is tried again, later
// each time.
func (p *reaper) settle(ctx context.Context, e ending) {
	p.running--
	t := e.plot.tries[e.key]
	t.busy = false
	if e.err == nil {
		t.backoff.Reset()
		// There may be more of it, seen while this was under way.
		e.plot.next = earlier(e.plot.next, time.Now())
		return
	}
	wait := t.backoff.Next()
	t.after = time.Now().Add(wait)
	e.plot.next = earlier(e.plot.next, t.after)
	if ctx.Err() == nil {
		p.r.log.Warn("cannot end what has run out", "what", e.key, "again_in", wait, "error", e.err)
	}
}

// earlier is the earlier of two times, of which a zero one is none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func (r *Registry) dueSessions(snap *state.Snapshot, _ time.Time) (list []due, next time.Time) {
	sessions, _ := snap.Sessions()
	for _, s := range sessions {
		if why, _ := lost(snap, s); why == "" && !s.Dying {
			continue
		}
		list = append(list, due{"session " + s.ID, func(ctx context.Context) error {
			var reason string
			_, err := r.endSession(ctx, s.ID, func(snap *state.Snapshot, s *model.Session, p *plan) bool {
				why, rests := lost(snap, s)
				if reason = why; why == "" {
					return false
				}
				p.txn.Compares = append(p.txn.Compares, rests)
				return true
			})
			if err == nil && reason != "" {
				r.log.Info("session ended", "session", s.ID, "node", s.Node, "reason", reason)
			}
			return err
		}})
	}
	return list, time.Time{}
}

// lost says why a session cannot go on, "" if it can, and what that rests on.
func lost(snap *state.Snapshot, s *model.Session) (why string, rests store.Compare) {
	if s.TTL > 0 {
		if alive, _ := snap.Alive(s.ID); alive == nil {
			return "its time has run out", store.Compare{Key: store.AliveKey(s.ID)}
		}
	}
	if n, _ := snap.Node(s.Node); n == nil {
		return "its node is gone", store.Compare{Key: store.NodeKey(s.Node)}
	}
	for _, id := range sessionChecks(s) {
		c, _ := snap.Check(s.Node, id)
		switch {
		case c == nil:
			return "its check " + string(id) + " is gone", store.Compare{Key: store.CheckKey(s.Node, id)}
		case c.Status == model.Critical:
			return "its check " + string(id) + " is critical", store.Compare{Key: store.CheckKey(s.Node, id), ModIndex: c.ModifyIndex}
		}
	}
	return "", store.Compare{}
}

func (r *Registry) dueLockDelays(snap *state.Snapshot, now time.Time) (list []due, next time.Time) {
	delays, _ := snap.LockDelays()
	for _, d := range delays {
		if over := d.Seen.Add(d.Delay); now.Before(over) {
			next = earlier(next, over)
			continue
		}
		list = append(list, due{"lock delay " + d.Key, func(ctx context.Context) error {
			_, err := r.write(ctx, "remove a lock delay", func(snap *state.Snapshot, p *plan) {
				if cur, _ := snap.LockDelay(d.Key); cur != nil && !delayed(cur) {
					p.remove(store.LockDelayKey(d.Key), cur)
				}
			})
			return err
		}})
	}
	return list, next
}

func (r *Registry) dueTokens(snap *state.Snapshot, now time.Time) (list []due, next time.Time) {
	tokens, _ := snap.Tokens()
	for _, t := range tokens {
		switch {
		case t.ExpirationTime == nil:
		case !acl.Expired(t, now):
			next = earlier(next, *t.ExpirationTime)
		case len(list) == 0:
			list = append(list, due{"expired tokens", r.ReapTokens})
		}
	}
	return list, next
}
