// Package registry is the only write path to replicated state: it validates a
// record, reads what the write rests on from the current snapshot, and commits
// it on the condition that none of that has changed meanwhile.
//
// Every server has one Registry; the APIs, the local agent and the reconcilers
// write through it and never through store. A Registry is safe for use by many
// goroutines and starts none.
//
// Every method returns when this node's state shows the write, with the index
// of it. What changes nothing is compared but not written, so no index moves and
// nobody is woken. A refusal that rests on the catalogue (ErrOwner, ErrExists,
// a compare-and-set that does not match) is confirmed by the servers like a
// write, so that a snapshot which lags behind cannot refuse wrongly.
package registry

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/store"
)

// maxRounds is how often a write is planned anew after a conflict.
const maxRounds = 5

// showLimit is how long this node's state may take to show a write. It takes
// milliseconds; only a state that stands still takes longer.
const showLimit = 10 * time.Second

// Committer commits transactions and keeps leases: a store, or what forwards to
// one.
type Committer interface {
	Commit(ctx context.Context, t store.Txn) (store.Result, error)
	Leaser
}

// Leaser keeps the leases that the marks of living sessions hang on. Renewing
// and marking fail with store.ErrNoLease when the lease has run out.
type Leaser interface {
	GrantLease(ctx context.Context, ttl time.Duration) (lease int64, err error)
	PutAlive(ctx context.Context, session string, lease int64) (model.Index, error)
	RenewLease(ctx context.Context, lease int64) error
	RevokeLease(ctx context.Context, lease int64) error
}

// Config is what a Registry has to know.
type Config struct {
	// Node is this node; it stands in where a network or an endpoint names none.
	Node model.NodeName
	// VIPPool4 is where services' IPv4 VIPs come from; the zero Prefix means
	// 240.0.0.0/4.
	VIPPool4 netip.Prefix
	// VIPPool6 is where services' IPv6 VIPs come from, see SitePool6; the zero
	// Prefix means that services get none.
	VIPPool6 netip.Prefix
	// SessionTTLMin is the shortest TTL of a session; 0 means
	// model.MinSessionTTL.
	SessionTTLMin time.Duration
	// ACLResetFile is the file that allows a second ACL bootstrap when it holds
	// the index that the refusal of one names; empty for none. It is removed then.
	ACLResetFile string
	// Log may be nil.
	Log *slog.Logger
}

// Registry writes to the catalogue.
type Registry struct {
	commit Committer
	st     *state.State
	cfg    Config
	log    *slog.Logger
	queues queues
}

// New returns a registry that commits through c and reads from st, which has to
// show what c commits.
func New(c Committer, st *state.State, cfg Config) *Registry {
	if !cfg.VIPPool4.IsValid() {
		cfg.VIPPool4 = DefaultVIPPool4
	}
	if cfg.SessionTTLMin == 0 {
		cfg.SessionTTLMin = model.MinSessionTTL
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Registry{commit: c, st: st, cfg: cfg, log: log}
}

// write plans, commits and plans anew until the plan meets the catalogue as it
// was planned for. what says what is being done, for errors.
func (r *Registry) write(ctx context.Context, what string, planFor func(*state.Snapshot, *plan)) (model.Index, error) {
	snap := r.st.Snapshot()
	for round := 1; round <= maxRounds; round++ {
		var p plan
		planFor(snap, &p)
		if p.err != nil {
			return 0, fmt.Errorf("%s: %w", what, p.err)
		}
		res, err := r.commit.Commit(ctx, p.final())
		if err != nil {
			return 0, fmt.Errorf("%s: %w", what, err)
		}
		newer, err := r.shown(ctx, res.Index)
		switch {
		case err != nil && res.OK && p.refusal == nil:
			return res.Index, fmt.Errorf("%s: written at index %d, which this node does not show yet: %w", what, res.Index, err)
		case err != nil:
			return 0, fmt.Errorf("%s: wait for index %d: %w", what, res.Index, err)
		case res.OK && p.refusal != nil:
			return res.Index, fmt.Errorf("%s: %w", what, p.refusal)
		case res.OK:
			return res.Index, nil
		}
		r.log.Debug("conflicting write, planning anew", "write", what, "round", round,
			"index", snap.Index(), "conflict", res.Index)
		snap = newer
	}
	return 0, fmt.Errorf("%s: %w", what, ErrConflict)
}

// shown waits until this node's state shows an index. A write that it does not
// show in time is one of unknown outcome.
func (r *Registry) shown(ctx context.Context, at model.Index) (*state.Snapshot, error) {
	snap := r.st.Snapshot()
	if snap.Index() >= at {
		return snap, nil
	}
	// Every write comes by here: a timer is cheaper than a context with a deadline.
	limit := time.NewTimer(showLimit)
	defer limit.Stop()
	for ; snap.Index() < at; snap = r.st.Snapshot() {
		select {
		case <-snap.Changed():
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-limit.C:
			return nil, fmt.Errorf("%w: %w", store.ErrUnknownOutcome, context.DeadlineExceeded)
		}
	}
	return snap, nil
}
