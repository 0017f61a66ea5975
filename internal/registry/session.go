package registry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/store"
)

const (
	// leaseFactor is how many TTLs a session lives on without a renewal: Consul
	// promises one and keeps two, and clients count on the second.
	leaseFactor = 2
	// revokeLimit bounds the end of a lease that nobody needs any more.
	revokeLimit = 2 * time.Second
	// A session's end is one transaction as long as it has at most so many locks,
	// whose keys have at most so many bytes.
	maxChunk      = 1000
	maxChunkBytes = 128 << 10
)

// CreateSession records a session under a new id, which it returns, and starts
// its time. Without NodeChecks (nil; an empty list means none) the session
// depends on serfHealth. LockDelay stays as it is: 0 is no delay, and more than
// model.MaxLockDelay counts as that.
//
// What is wrong with the session is said in Consul's words. The node must exist
// (ErrUnknownNode), and its checks must exist and not be critical.
func (r *Registry) CreateSession(ctx context.Context, s model.Session) (string, model.Index, error) {
	s = s.Clone()
	if err := r.completeSession(&s); err != nil {
		return "", 0, err
	}
	what := "create session " + s.ID
	var lease int64
	var alive model.Index
	if s.TTL > 0 {
		// First the mark, then the record that needs it: the other way round the
		// session would look as if its time had run out.
		var err error
		if lease, alive, err = r.quicken(ctx, &s); err != nil {
			return "", 0, fmt.Errorf("%s: %w", what, err)
		}
	}
	index, err := r.write(ctx, what, func(snap *state.Snapshot, p *plan) {
		if s.TTL > 0 {
			p.at(store.AliveKey(s.ID), alive)
		}
		p.absent(store.SessionKey(s.ID))
		planSessionGrounds(snap, p, &s)
		p.put(store.SessionKey(s.ID), &s)
	})
	if err != nil {
		r.revoke(ctx, lease)
		return "", index, bare(err)
	}
	return s.ID, index, nil
}

// completeSession checks what does not depend on the catalogue and fills in the
// rest.
func (r *Registry) completeSession(s *model.Session) error {
	if s.Node == "" {
		return say(ErrInvalid, "Must provide Node")
	}
	switch s.Behavior {
	case "":
		s.Behavior = model.SessionRelease
	case model.SessionRelease, model.SessionDelete:
	default:
		return say(ErrInvalid, "Invalid Behavior setting '%s'", s.Behavior)
	}
	if least := r.cfg.SessionTTLMin; s.TTL != 0 && (s.TTL < least || s.TTL > model.SessionTTLMax) {
		return say(ErrInvalid, "Invalid Session TTL '%d', must be between [%v=%v]", s.TTL, least, model.SessionTTLMax)
	}
	if s.NodeChecks == nil {
		s.NodeChecks = []model.CheckID{model.SerfHealth}
	}
	if s.Owner == "" {
		s.Owner = model.OwnerOperator
	}
	s.ID, s.Dying = uuid.NewString(), false
	return nil
}

// quicken puts the mark that a session is alive.
func (r *Registry) quicken(ctx context.Context, s *model.Session) (lease int64, at model.Index, err error) {
	lease, err = r.commit.GrantLease(ctx, leaseFactor*s.TTL)
	if err != nil {
		return 0, 0, err
	}
	at, err = r.commit.PutAlive(ctx, s.ID, lease)
	if err != nil {
		r.revoke(ctx, lease)
		return 0, 0, err
	}
	return lease, at, nil
}

// revoke ends a lease that has no more use. If it cannot, the lease runs out by
// itself.
func (r *Registry) revoke(ctx context.Context, lease int64) {
	if lease == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), revokeLimit)
	defer cancel()
	if err := r.commit.RevokeLease(ctx, lease); err != nil {
		r.log.Debug("a lease stays until it runs out", "error", err)
	}
}

// planSessionGrounds makes the plan depend on what a new session depends on.
func planSessionGrounds(snap *state.Snapshot, p *plan, s *model.Session) {
	node, _ := snap.Node(s.Node)
	p.read(store.NodeKey(s.Node), node)
	if node == nil {
		p.refuse(say(ErrUnknownNode, "Missing node registration"))
		return
	}
	for _, id := range sessionChecks(s) {
		c, _ := snap.Check(s.Node, id)
		p.read(store.CheckKey(s.Node, id), c)
		switch {
		case c == nil:
			p.refuse(say(nil, "Missing check '%s' registration", id))
			return
		case c.Status == model.Critical:
			p.refuse(say(nil, "Check '%s' is in %s state", id, c.Status))
			return
		}
	}
}

// sessionChecks are the checks that a session depends on.
func sessionChecks(s *model.Session) []model.CheckID {
	ids := make([]model.CheckID, 0, len(s.NodeChecks)+len(s.ServiceChecks))
	ids = append(ids, s.NodeChecks...)
	for _, c := range s.ServiceChecks {
		ids = append(ids, c.ID)
	}
	return ids
}

// RenewSession starts a session's time anew and returns the session. The error
// is ErrUnknownSession when there is none or its time has run out.
func (r *Registry) RenewSession(ctx context.Context, id string) (*model.Session, error) {
	what := "renew session " + id
	var s *model.Session
	var lease int64
	look := func(snap *state.Snapshot, p *plan) {
		lease = 0
		if s, _ = snap.Session(id); s == nil || s.Dying {
			p.read(store.SessionKey(id), s)
			p.refuse(ErrUnknownSession)
			return
		}
		if s.TTL == 0 {
			return
		}
		alive, _ := snap.Alive(id)
		if alive == nil {
			p.absent(store.AliveKey(id))
			p.refuse(fmt.Errorf("%w: its time has run out", ErrUnknownSession))
			return
		}
		lease = alive.Lease
	}
	var p plan
	if look(r.st.Snapshot(), &p); p.refusal != nil {
		// A snapshot that lags behind must not be what says so.
		if _, err := r.write(ctx, what, look); err != nil {
			return nil, err
		}
	}
	if lease == 0 {
		return s, nil
	}
	err := r.commit.RenewLease(ctx, lease)
	if errors.Is(err, store.ErrNoLease) {
		err = fmt.Errorf("%w: its time has run out", ErrUnknownSession)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return s, nil
}

// DestroySession ends a session: its locks are released, or their entries
// deleted, as its behaviour says, and cannot be taken again for its lock delay.
// Destroying what is not there changes nothing.
func (r *Registry) DestroySession(ctx context.Context, id string) (model.Index, error) {
	return r.endSession(ctx, id, func(*state.Snapshot, *model.Session, *plan) bool { return true })
}

// endSession removes a session as long as there is a ground for it, which it
// makes each transaction depend on, and invalidates its locks. Normally that is
// one transaction. With many locks the session is marked as dying first, so that
// it takes no more, and its locks go in several.
func (r *Registry) endSession(ctx context.Context, id string, ground func(*state.Snapshot, *model.Session, *plan) bool) (model.Index, error) {
	var lease int64
	for {
		done := true
		index, err := r.write(ctx, "end session "+id, func(snap *state.Snapshot, p *plan) {
			lease = 0
			s, _ := snap.Session(id)
			p.read(store.SessionKey(id), s)
			if done = s == nil || !s.Dying && !ground(snap, s, p); done {
				return
			}
			if alive, _ := snap.Alive(id); alive != nil {
				lease = alive.Lease
			}
			done = planSessionEnd(snap, p, s)
		})
		if err != nil {
			return index, err
		}
		if done {
			r.revoke(ctx, lease)
			return index, nil
		}
	}
}

// planSessionEnd is one step of a session's end; it reports whether that is the
// last.
func planSessionEnd(snap *state.Snapshot, p *plan, s *model.Session) bool {
	locks := snap.Locked(s.ID)
	chunk := firstChunk(locks)
	if len(chunk) < len(locks) && !s.Dying {
		dying := s.Clone()
		dying.Dying = true
		p.put(store.SessionKey(s.ID), &dying)
		return false
	}
	for _, kv := range chunk {
		p.invalidate(s, kv)
	}
	if len(chunk) < len(locks) {
		return false
	}
	// Whoever takes a lock depends on the session's record and writes this key, so
	// no lock taken after the snapshot can be left behind.
	p.unchanged(store.HoldKey(s.ID), snap.Index())
	planQueriesEnd(snap, p, s.ID)
	p.txn.Deletes = append(p.txn.Deletes, store.SessionKey(s.ID), store.HoldKey(s.ID), store.AliveKey(s.ID))
	return true
}

// firstChunk is as many of the locks as go into one transaction.
func firstChunk(locks []*model.KV) []*model.KV {
	bytes := 0
	for i, kv := range locks {
		bytes += len(kv.Key)
		if i == maxChunk || i > 0 && bytes > maxChunkBytes {
			return locks[:i]
		}
	}
	return locks
}

// invalidate takes a session's lock away.
func (p *plan) invalidate(s *model.Session, kv *model.KV) {
	p.readLock(kv.Key, kv)
	if s.Behavior == model.SessionDelete {
		p.txn.Deletes = append(p.txn.Deletes, store.KVKey(kv.Key), store.KVLockKey(kv.Key))
	} else {
		p.put(store.KVLockKey(kv.Key), store.Lock{LockIndex: kv.LockIndex})
	}
	if delay := min(s.LockDelay, model.MaxLockDelay); delay > 0 {
		p.put(store.LockDelayKey(kv.Key), &model.LockDelay{Delay: delay, Stamp: model.Stamp{Owner: model.OwnerServers}})
	}
}
