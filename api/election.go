package api

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
)

// Election is one in which candidates compete for the lock of a key; its holder leads.
type Election struct {
	c    *Client
	key  string
	opts LockOptions
}

// NewElection returns an election. The candidate's value is what others see of it while
// it leads, such as its address; the options' Value is not used.
func (c *Client) NewElection(key, candidate string, o LockOptions) *Election {
	o.Value = []byte(candidate)
	return &Election{c: c, key: key, opts: o}
}

// Term is the time for which a candidate leads. What is said of two holders of a Lock
// holds for two leaders.
type Term struct{ lock *Lock }

// Campaign waits until the candidate leads, or ctx ends.
func (e *Election) Campaign(ctx context.Context) (*Term, error) {
	l, err := e.c.lock(ctx, e.key, e.opts)
	if err != nil {
		return nil, fmt.Errorf("election %s: %w", e.key, err)
	}
	return &Term{l}, nil
}

// Lost is closed when the candidate no longer leads.
func (t *Term) Lost() <-chan struct{} { return t.lock.Lost() }

// Err says why the candidate no longer leads; nil while it does and after Resign.
func (t *Term) Err() error { return t.lock.Err() }

// Fence is a number that is greater for every leader than for those before.
func (t *Term) Fence() uint64 { return t.lock.Fence() }

// Resign ends the term, so that another can lead at once.
func (t *Term) Resign(ctx context.Context) error { return t.lock.Release(ctx) }

// Lead campaigns and, each time that the candidate is elected, calls fn, whose context
// ends when it no longer leads. It campaigns again when fn returned nil because of that,
// and returns when fn returned by itself, with its error, or ctx ended.
func (e *Election) Lead(ctx context.Context, fn func(context.Context, *Term) error) error {
	for {
		t, err := e.Campaign(ctx)
		if err != nil {
			return err
		}
		term, end := t.lock.Context(ctx)
		err = fn(term, t)
		lost := t.Err() != nil
		end()
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), beatTimeout)
		released := t.Resign(bounded)
		cancel()
		switch {
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case !lost:
			return released
		}
	}
}

// Leader is who leads.
type Leader struct {
	Candidate string // its value
	Session   string // empty if nobody leads
}

// Observe yields the leader, at once and whenever that changes, until ctx ends or the
// loop is left. Nobody leads between two terms.
func (e *Election) Observe(ctx context.Context) iter.Seq[Leader] {
	return func(yield func(Leader) bool) {
		var shown Leader
		first := true
		for all := range e.c.FollowKV(ctx, e.key) {
			var now Leader
			if len(all) == 1 && all[0].Session != "" {
				now = Leader{Candidate: string(all[0].Value), Session: all[0].Session}
			}
			if !first && now == shown {
				continue
			}
			first, shown = false, now
			if !yield(now) {
				return
			}
		}
	}
}

func sameKV(a, b []KV) bool {
	return slices.EqualFunc(a, b, func(a, b KV) bool {
		return a.Key == b.Key && a.ModifyIndex == b.ModifyIndex && a.Session == b.Session
	})
}

func containsFold(s, part string) bool { return strings.Contains(strings.ToLower(s), part) }
