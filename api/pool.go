package api

import (
	"context"
	"sync"
	"time"

	"github.com/fairlead-net/fairlead/api/internal/load"
)

// DefaultPatience is how long a request or a connection that no instance has seen
// may wait for one that takes it.
const DefaultPatience = 2 * time.Second

// The pause before instances that have all refused are asked again.
const (
	firstRound   = 25 * time.Millisecond
	longestRound = 400 * time.Millisecond
)

// pool chooses among the instances of one selection.
type pool struct {
	target *Target
	set    *load.Set[Instance]

	mu      sync.Mutex // guards following
	applied *Snapshot  // what set holds
}

func newPool(t *Target, timeout time.Duration) *pool {
	return &pool{target: t, set: load.New[Instance](timeout)}
}

// snapshot is what is known now, which set holds as well.
func (p *pool) snapshot() *Snapshot {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.target.Snapshot()
	if s == p.applied {
		return s
	}
	members := make([]load.Member[Instance], 0, len(s.Instances))
	for _, i := range s.Instances {
		members = append(members, load.Member[Instance]{Key: i.key(), Weight: i.Weight, Value: i})
	}
	p.set.Update(members)
	p.applied = s
	return s
}

// search chooses instances for one request, each only once in a round.
type search struct {
	pool  *pool
	tried map[string]bool
	until time.Time // when patience ends
	round time.Duration
}

func (p *pool) search(patience time.Duration) *search {
	return &search{pool: p, until: time.Now().Add(patience), round: firstRound}
}

// next chooses an instance. It waits while there is none and, if all have been
// tried, for a moment before they are tried again; but not beyond the patience. Then
// it returns nil and the reason.
func (s *search) next(ctx context.Context) (*load.Pick[Instance], error) {
	ctx, cancel := context.WithDeadline(ctx, s.until)
	defer cancel()
	for {
		now := s.pool.snapshot()
		if pick := s.pool.set.Pick(func(key string) bool { return s.tried[key] }); pick != nil {
			if s.tried == nil {
				s.tried = map[string]bool{}
			}
			s.tried[pick.Key] = true
			return pick, nil
		}
		if ctx.Err() != nil {
			return nil, s.pool.target.none(now, nil)
		}
		if len(s.tried) > 0 {
			round, stop := context.WithTimeout(ctx, jittered(s.round))
			wait(round, now)
			stop()
			s.round = min(2*s.round, longestRound)
			clear(s.tried)
			continue
		}
		wait(ctx, now)
	}
}

// wait returns when ctx ends or there is a newer snapshot.
func wait(ctx context.Context, s *Snapshot) {
	select {
	case <-ctx.Done():
	case <-s.Changed():
	}
}

// pools are those of a client, by selection.
type pools struct {
	mu  sync.Mutex // guards following
	all map[Selection]*pool
}

func (ps *pools) of(r *Resolver, s Selection, timeout time.Duration) *pool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.all[s]
	if p == nil {
		if ps.all == nil {
			ps.all = map[Selection]*pool{}
		}
		p = newPool(r.Select(s), timeout)
		ps.all[s] = p
	}
	return p
}
