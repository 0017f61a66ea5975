// Package presence tells which nodes are alive, on a server: it hears of the
// sessions that nodes hold here, and judges those whose server is gone.
//
// A node whose connection is cut off is suspect after a second, and dead after
// three; one that is silent is dead when its session ends by that; one that says
// that it restarts has half a minute. Every verdict is on one session: a node that
// has opened another one, wherever, is not hit by it.
//
// All methods may be called concurrently.
package presence

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead-net/fairlead/internal/identity"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/registry"
	"github.com/fairlead-net/fairlead/internal/rpc"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/task"
)

const (
	// suspectAfter is how long a node that was cut off has to come back before its
	// instances are left out, deadAfter until it is dead.
	suspectAfter, deadAfter = time.Second, 3 * time.Second
	// restartTime is what a node has that said that it restarts.
	restartTime = 30 * time.Second
	// markTTL is how long a server's mark outlives its last renewal; orphanTime is
	// what its nodes have after that to find another server.
	markTTL, markEvery, orphanTime = 4 * time.Second, time.Second, 10 * time.Second
	// writeLimit bounds one verdict.
	writeLimit = 10 * time.Second
)

// Registry is where nodes' lives are recorded.
type Registry interface {
	Attach(ctx context.Context, n identity.Node, server string) (epoch uint64, err error)
	Alive(ctx context.Context, node model.NodeName, epoch uint64) error
	Suspect(ctx context.Context, node model.NodeName, epoch uint64) error
	Dead(ctx context.Context, node model.NodeName, epoch uint64, why string) error
	KeepMark(ctx context.Context, server string, lease int64) (model.Index, error)
	Leases() registry.Leaser
}

// Presence is one server's part.
type Presence struct {
	server string
	reg    Registry
	st     *state.State
	leads  func() bool
	log    *slog.Logger

	mu   sync.Mutex // guards following
	held map[model.NodeName]*session
	ctx  context.Context // of Run; nil before
	wg   sync.WaitGroup
}

var _ rpc.Presence = (*Presence)(nil)

// session is one that a node holds here.
type session struct {
	node  identity.Node
	epoch uint64
	heard atomic.Int64 // Unix time in nanoseconds
	// over ends what is still to be done for it.
	over context.CancelFunc
}

// New returns the presence of a server by its id. leads says whether it is the
// leader, who judges the nodes of servers that are gone; each judges its own.
func New(server string, reg Registry, st *state.State, leads func() bool, log *slog.Logger) *Presence {
	return &Presence{server: server, reg: reg, st: st, leads: leads, log: log, held: map[model.NodeName]*session{}}
}

// errEnded is for sessions that come too early or too late.
var errEnded = errors.New("this server takes no sessions now")

// Attach takes a node's session, see rpc.Presence.
func (p *Presence) Attach(ctx context.Context, n identity.Node, _ netip.Addr) (beat func(), gone func(string), err error) {
	p.mu.Lock()
	run := p.ctx
	p.mu.Unlock()
	if run == nil || run.Err() != nil {
		return nil, nil, errEnded
	}
	epoch, err := p.reg.Attach(ctx, n, p.server)
	if err != nil {
		return nil, nil, err
	}
	sctx, cancel := context.WithCancel(run)
	s := &session{node: n, epoch: epoch, over: cancel}
	s.heard.Store(time.Now().UnixNano())
	p.mu.Lock()
	if old := p.held[n.Name]; old != nil {
		old.over()
	}
	p.held[n.Name] = s
	p.wg.Go(func() { p.welcome(sctx, s) })
	p.mu.Unlock()
	return func() { s.heard.Store(time.Now().UnixNano()) }, func(goodbye string) { p.gone(run, s, goodbye) }, nil
}

// Own attaches the node of this very server, before it holds a session with
// another one: without that nobody would notice its end. It tries until ctx ends.
func (p *Presence) Own(ctx context.Context, n identity.Node) {
	retry := task.Backoff{Min: 100 * time.Millisecond, Max: 2 * time.Second}
	for {
		err := p.write(ctx, func(ctx context.Context) error {
			_, _, err := p.Attach(ctx, n, netip.Addr{})
			return err
		})
		if err == nil || ctx.Err() != nil {
			return
		}
		p.log.Warn("attach this server's own node", "error", err)
		if task.Sleep(ctx, retry.Next()) != nil {
			return
		}
	}
}

// welcome says that a node lives, as soon as it has registered itself.
func (p *Presence) welcome(ctx context.Context, s *session) {
	retry := task.Backoff{Min: 100 * time.Millisecond, Max: 5 * time.Second}
	for ctx.Err() == nil {
		_, mark := p.st.Snapshot().Node(s.node.Name)
		err := p.write(ctx, func(ctx context.Context) error { return p.reg.Alive(ctx, s.node.Name, s.epoch) })
		if err == nil {
			return
		}
		if errors.Is(err, registry.ErrUnknownNode) {
			select {
			case <-mark.Changed:
			case <-ctx.Done():
			}
			continue
		}
		p.log.Warn("record that a node lives", "node", string(s.node.Name), "error", err)
		if task.Sleep(ctx, retry.Next()) != nil {
			return
		}
	}
}

func (p *Presence) write(ctx context.Context, f func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, writeLimit)
	defer cancel()
	return f(ctx)
}

// gone begins to judge a node whose session has ended.
func (p *Presence) gone(run context.Context, s *session, goodbye string) {
	s.over()
	ctx, cancel := context.WithCancel(run)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held[s.node.Name] != s || run.Err() != nil {
		cancel() // it has another session here, or this server ends and others judge
		return
	}
	s.over = cancel
	silent := time.Since(time.Unix(0, s.heard.Load()))
	p.wg.Go(func() {
		defer cancel()
		p.judge(ctx, s, goodbye, silent)
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.held[s.node.Name] == s {
			delete(p.held, s.node.Name)
		}
	})
}

func (p *Presence) judge(ctx context.Context, s *session, goodbye string, silent time.Duration) {
	why := "Agent not live or unreachable"
	switch goodbye {
	case rpc.GoodbyeLeave:
		why = "Agent has left"
	case rpc.GoodbyeRestart:
		if task.Sleep(ctx, restartTime) != nil {
			return
		}
	default:
		if left := suspectAfter - silent; task.Sleep(ctx, max(left, 0)) != nil {
			return
		}
		if silent < deadAfter-suspectAfter {
			p.say(ctx, s, "suspect", p.reg.Suspect)
		}
		if task.Sleep(ctx, max(deadAfter-max(silent, suspectAfter), 0)) != nil {
			return
		}
	}
	p.say(ctx, s, "dead", func(ctx context.Context, n model.NodeName, epoch uint64) error {
		return p.reg.Dead(ctx, n, epoch, why)
	})
}

// say writes a verdict, again until it is written or the node has come back.
func (p *Presence) say(ctx context.Context, s *session, what string, verdict func(context.Context, model.NodeName, uint64) error) {
	p.log.Info("a node is judged", "verdict", what, "node", string(s.node.Name), "epoch", s.epoch)
	retry := task.Backoff{Min: 100 * time.Millisecond, Max: 5 * time.Second}
	for {
		err := p.write(ctx, func(ctx context.Context) error { return verdict(ctx, s.node.Name, s.epoch) })
		if err == nil || task.Sleep(ctx, retry.Next()) != nil {
			return
		}
		p.log.Warn("record a verdict", "verdict", what, "node", string(s.node.Name), "error", err)
	}
}

// Run keeps this server's mark, and judges nodes that did not come back after a
// restart of this server, and those of servers that are gone while this one
// leads, until ctx ends. It is the Run of a task.Unit.
func (p *Presence) Run(ctx context.Context, ready func()) error {
	p.mu.Lock()
	p.ctx = ctx
	p.mu.Unlock()
	defer p.wg.Wait()
	ready()
	orphans := map[model.NodeName]orphan{}
	tick := time.NewTicker(markEvery)
	defer tick.Stop()
	m := mark{p: p}
	for {
		if err := p.write(ctx, m.keep); err != nil && ctx.Err() == nil {
			p.log.Warn("keep this server's mark", "error", err)
		}
		p.adopt(ctx, orphans, time.Now())
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// mark is this server's sign of life.
type mark struct {
	p     *Presence
	lease int64
}

func (m *mark) keep(ctx context.Context) error {
	leases := m.p.reg.Leases()
	if m.lease != 0 && registry.ServerAlive(m.p.st.Snapshot(), m.p.server) {
		err := leases.RenewLease(ctx, m.lease)
		if err == nil {
			return nil
		}
		m.lease = 0
	}
	lease, err := leases.GrantLease(ctx, markTTL)
	if err == nil {
		_, err = m.p.reg.KeepMark(ctx, m.p.server, lease)
	}
	if err == nil {
		m.lease = lease
	}
	return err
}

// orphan is a node whose server is gone, since when as far as this one knows.
type orphan struct {
	epoch uint64
	since time.Time
}

// adopt judges nodes whose session has been nobody's for orphanTime: this very
// server does not hold it any more, or, for the leader to see, its server is gone.
func (p *Presence) adopt(ctx context.Context, orphans map[model.NodeName]orphan, now time.Time) {
	snap, leads := p.st.Snapshot(), p.leads()
	cared := func(a registry.Attachment) bool {
		if a.Server == p.server {
			return p.holds(a)
		}
		return !leads || registry.ServerAlive(snap, a.Server)
	}
	for _, a := range registry.Attachments(snap) {
		if a.Over || cared(a) {
			delete(orphans, a.Node)
			continue
		}
		o, known := orphans[a.Node]
		if !known || o.epoch != a.Epoch {
			orphans[a.Node] = orphan{a.Epoch, now}
			continue
		}
		if now.Sub(o.since) < orphanTime {
			continue
		}
		p.log.Info("a node has not come back since its server was lost", "node", string(a.Node), "server", a.Server)
		err := p.write(ctx, func(ctx context.Context) error {
			return p.reg.Dead(ctx, a.Node, a.Epoch, "Agent not live or unreachable")
		})
		if err == nil {
			delete(orphans, a.Node)
		}
	}
}

// holds reports whether a session is held, or judged, here.
func (p *Presence) holds(a registry.Attachment) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.held[a.Node]
	return s != nil && s.epoch == a.Epoch
}
