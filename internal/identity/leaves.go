package identity

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
)

// ErrNoRoot says that the site has no active root yet, or this node does not have its
// key.
var ErrNoRoot = errors.New("the site has no certificate authority yet; try again when a server has made it")

// Source knows what signs at present.
type Source interface {
	// Issuer returns the active root's issuer and how long leaves are good for;
	// the channel closes when that may have changed. Its error is ErrNoRoot while
	// there is none, with the channel.
	Issuer() (i *Issuer, ttl time.Duration, changed <-chan struct{}, err error)
	// Index is the newest index of this node's state.
	Index() model.Index
}

// maxLeaves bounds the memory that leaves take up, about 2 KiB each: whoever asks
// decides on the names.
const maxLeaves = 8192

// Leaves holds the leaf of each service that was asked for, and renews it when
// it is due or another root has become active.
type Leaves struct {
	src Source
	dc  string

	mu    sync.Mutex
	slots map[string]*slot // by service; guarded by mu
}

// slot is the place of one service's leaf.
type slot struct {
	mu      sync.Mutex // held while a leaf is made, so that one is made at a time
	leaf    *Leaf
	renewed chan struct{} // closes at the next renewal
}

// NewLeaves returns leaves of a site (a datacenter, in their names).
func NewLeaves(src Source, site string) *Leaves {
	return &Leaves{src: src, dc: site, slots: map[string]*slot{}}
}

// Leaf returns the leaf of a service. With an index that is the leaf's own it
// waits for a renewal, until wait is over or ctx ends, and then returns what
// there is. While the site has no root it waits the same way, and fails with
// ErrNoRoot. A name that is none, such as "..", is model.ErrInvalid.
func (l *Leaves) Leaf(ctx context.Context, service string, index model.Index, wait time.Duration) (*Leaf, error) {
	if service == "" || service == "." || service == ".." {
		// Who reads a SPIFFE name as a path would end up at another one.
		return nil, fmt.Errorf("%w: no certificate can be for a service %q", model.ErrInvalid, service)
	}
	var over <-chan time.Time
	if index > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		over = t.C
	}
	s := l.slot(service)
	for {
		v := l.current(s, service)
		if index == 0 || (v.err == nil && v.leaf.Index != index) || !v.wait(ctx, over) {
			return v.leaf, v.err
		}
	}
}

// view is a leaf as of now, and what will change it. There is a leaf or an
// error.
type view struct {
	leaf             *Leaf
	err              error
	renewed, changed <-chan struct{}
	due              time.Time // zero: nothing to wait for but the channels
}

// wait returns true when there may be another leaf, false when the wait is over.
func (v view) wait(ctx context.Context, over <-chan time.Time) bool {
	var due <-chan time.Time
	if !v.due.IsZero() {
		t := time.NewTimer(time.Until(v.due))
		defer t.Stop()
		due = t.C
	}
	select {
	case <-v.renewed:
	case <-v.changed:
	case <-due:
	case <-over:
		return false
	case <-ctx.Done():
		return false
	}
	return true
}

// current is the leaf that is good now, made if need be.
func (l *Leaves) current(s *slot, service string) view {
	issuer, ttl, changed, err := l.src.Issuer()
	index := l.src.Index()
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if err == nil && (s.leaf == nil || s.leaf.Root != issuer.Root() || !now.Before(s.leaf.renewAt)) {
		err = s.renew(issuer, ServiceURI(issuer.TrustDomain(), l.dc, service), now, ttl, index)
	}
	v := view{leaf: s.leaf, renewed: s.renewed, changed: changed}
	switch {
	case err == nil:
		v.due = s.leaf.renewAt
	case s.leaf == nil || !now.Before(s.leaf.ValidBefore):
		v.leaf, v.err = nil, err
	}
	// Otherwise a leaf of before outlives a moment without a root.
	return v
}

// renew makes the next leaf; s.mu is held.
func (s *slot) renew(issuer *Issuer, uri *url.URL, now time.Time, ttl time.Duration, index model.Index) error {
	next, err := issuer.Issue(uri, now, ttl)
	if err != nil {
		return err
	}
	next.Index = max(index, 1)
	if s.leaf != nil {
		next.Index = max(next.Index, s.leaf.Index+1)
	}
	s.leaf = next
	close(s.renewed)
	s.renewed = make(chan struct{})
	return nil
}

// slot returns a service's place. Where there are too many, others go: those that
// have ended, or else any.
func (l *Leaves) slot(service string) *slot {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.slots[service]; s != nil {
		return s
	}
	if len(l.slots) >= maxLeaves {
		l.sweep(time.Now())
	}
	s := &slot{renewed: make(chan struct{})}
	l.slots[service] = s
	return s
}

// sweep drops leaves; l.mu is held.
func (l *Leaves) sweep(now time.Time) {
	for name, s := range l.slots {
		if s.mu.TryLock() { // else one is being made
			if s.leaf != nil && now.After(s.leaf.ValidBefore) {
				delete(l.slots, name)
			}
			s.mu.Unlock()
		}
	}
	for name := range l.slots {
		if len(l.slots) < maxLeaves {
			return
		}
		delete(l.slots, name)
	}
}
