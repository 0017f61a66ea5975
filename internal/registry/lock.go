package registry

import (
	"context"
	"fmt"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/store"
)

// LockKV takes an entry's lock for kv.Session and writes its value and flags, in
// one step. It returns false, without writing, while another session holds the
// lock or a lock delay keeps it. For the holder it only writes. The lock binds
// nobody but those who ask for it: PutKV and DeleteKV go on as ever.
//
// An unknown session is an error in Consul's words (ErrUnknownSession).
func (r *Registry) LockKV(ctx context.Context, kv model.KV) (bool, model.Index, error) {
	return r.lockWrite(ctx, "lock", kv, planLock)
}

// UnlockKV releases an entry's lock and writes its value and flags, in one step.
// It returns false, without writing, unless kv.Session holds the lock. No lock
// delay follows: the holder knows that it is done.
func (r *Registry) UnlockKV(ctx context.Context, kv model.KV) (bool, model.Index, error) {
	return r.lockWrite(ctx, "unlock", kv, planUnlock)
}

func (r *Registry) lockWrite(ctx context.Context, verb string, kv model.KV, planFor func(*state.Snapshot, *plan, *model.KV)) (bool, model.Index, error) {
	what := fmt.Sprintf("%s key %q", verb, kv.Key)
	if err := validateKV(&kv); err != nil {
		return false, 0, fmt.Errorf("%s: %w", what, err)
	}
	if kv.Session == "" {
		return false, 0, errMissingSession
	}
	if kv.Owner == "" {
		kv.Owner = model.OwnerOperator
	}
	leave, err := r.queues.enter(ctx, kvQueue(kv.Key))
	if err != nil {
		return false, 0, fmt.Errorf("%s: %w", what, err)
	}
	defer leave()
	ok, index, err := casResult(r.write(ctx, what, func(snap *state.Snapshot, p *plan) { planFor(snap, p, &kv) }))
	return ok, index, bare(err)
}

// kvQueue names the queue of those who would get into each other's way at an
// entry.
func kvQueue(key string) string { return "kv/" + key }

var errMissingSession = say(ErrInvalid, "missing session")

// unknownSession is what Consul says to a lock with a session that is not there.
func unknownSession(id string) error { return say(ErrUnknownSession, "invalid session %q", id) }

func planLock(snap *state.Snapshot, p *plan, kv *model.KV) {
	s, _ := snap.Session(kv.Session)
	p.read(store.SessionKey(kv.Session), s)
	if s == nil || s.Dying {
		p.refuse(unknownSession(kv.Session))
		return
	}
	delay, _ := snap.LockDelay(kv.Key)
	p.read(store.LockDelayKey(kv.Key), delay)
	cur, _ := snap.KV(kv.Key)
	p.readLock(kv.Key, cur)
	lock := store.Lock{Session: kv.Session, LockIndex: 1}
	switch {
	case delayed(delay):
		p.refuse(errMismatch)
		return
	case cur == nil:
	case cur.Session == kv.Session:
		p.putValue(cur, kv)
		return
	case cur.Session != "":
		p.refuse(errMismatch)
		return
	default:
		lock.LockIndex = cur.LockIndex + 1
	}
	p.put(store.KVKey(kv.Key), kv)
	p.put(store.KVLockKey(kv.Key), lock)
	p.put(store.HoldKey(kv.Session), "")
}

func planUnlock(snap *state.Snapshot, p *plan, kv *model.KV) {
	cur, _ := snap.KV(kv.Key)
	p.readLock(kv.Key, cur)
	if cur == nil || cur.Session != kv.Session {
		if cur == nil {
			p.readValue(kv.Key, nil)
		}
		p.refuse(errMismatch)
		return
	}
	p.putValue(cur, kv)
	p.put(store.KVLockKey(kv.Key), store.Lock{LockIndex: cur.LockIndex})
}

// putValue writes the half of an entry that is not its lock, unless it would
// change nothing.
func (p *plan) putValue(cur, kv *model.KV) {
	if p.same(cur, kv) {
		p.readValue(kv.Key, cur)
		return
	}
	p.put(store.KVKey(kv.Key), kv)
}

// delayed reports whether a lock delay, which may be nil, still holds by this
// process's clock.
func delayed(d *model.LockDelay) bool { return d != nil && time.Since(d.Seen) < d.Delay }
