package api

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"
)

// LockFlags marks an entry as a lock. Consul's libraries use the same number, and
// refuse an entry with another, so that locks exclude each other.
const LockFlags = 0x2ddccbc058a50c18

// DefaultLockTTL is how long a lock outlives a holder that is not heard of.
const DefaultLockTTL = 15 * time.Second

// lockPause is between two attempts at a lock that nobody holds but that may not be
// taken yet.
const lockPause = time.Second

// The reasons for which a lock ends.
var (
	// ErrLockLost says that somebody else may hold the lock by now.
	ErrLockLost = errors.New("the lock is lost")
	// ErrNoLock says that the key is there and is no lock.
	ErrNoLock = errors.New("the key is in use and is no lock")
)

// LockOptions are what a lock may be told; the zero value is usable.
type LockOptions struct {
	// Value is stored with the lock, for people and observers.
	Value []byte
	// Name is that of the session; empty is the key.
	Name string
	// TTL is the time without a sign of life after which the lock is lost; 0 is
	// DefaultLockTTL. The agent asks for 10 s at least, by default.
	TTL time.Duration
	// Delay is how long nobody can take the lock after its holder was lost; nil is the
	// agent's default, 15 s. See Lock.
	Delay *time.Duration
}

// Lock is a lock that is held. It is held until Lost is closed.
//
// Two holders at the same time are kept apart by three things: the holder counts its
// lock as lost once it has not reached the agent for the TTL, counted from before the
// last call that did; the agent waits at least as long before it ends the session;
// and then nobody can take the lock for the delay (15 s), in which the last holder can
// finish what it began. None of them helps a process that is stopped altogether for
// longer than that and then goes on as if nothing had happened. What must not be done
// twice carries Fence along, and whoever carries it out refuses a number below one it
// has seen.
type Lock struct {
	c       *Client
	key     string
	session string
	ttl     time.Duration
	fence   uint64

	life   context.Context // ends, with the reason, when the lock is lost
	end    context.CancelCauseFunc
	wg     sync.WaitGroup
	closed sync.Once
}

// Lock takes the lock of a key, which it waits for until ctx ends. After that ctx does
// not matter: the lock is held until Release or until it is lost.
func (c *Client) Lock(ctx context.Context, key string, o LockOptions) (*Lock, error) {
	l, err := c.lock(ctx, key, o)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", key, err)
	}
	return l, nil
}

func (c *Client) lock(ctx context.Context, key string, o LockOptions) (*Lock, error) {
	if o.TTL == 0 {
		o.TTL = DefaultLockTTL
	}
	if o.Name == "" {
		o.Name = key
	}
	for {
		l := &Lock{c: c, key: key, ttl: o.TTL}
		began := time.Now()
		session, err := c.CreateSession(ctx, SessionSpec{Name: o.Name, TTL: o.TTL, LockDelay: o.Delay})
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case refused4xx(err):
			return nil, err
		case err != nil:
			sleep(ctx, jittered(lockPause))
			continue
		}
		l.session = session
		l.life, l.end = context.WithCancelCause(context.WithoutCancel(ctx))
		l.wg.Go(func() { l.renew(began) })
		err = l.acquire(ctx, o.Value)
		if err == nil {
			l.wg.Go(l.watch)
			return l, nil
		}
		lost := l.life.Err() != nil
		_ = l.giveUp(context.WithoutCancel(ctx)) // what fails is made good by the TTL
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case !lost:
			return nil, err
		}
		// The session ended while its holder waited: begin anew.
		sleep(ctx, jittered(lockPause))
	}
}

// Lost is closed when the lock is no longer held: it was released, its session ended,
// it was taken away, or the agent was out of reach for the TTL.
func (l *Lock) Lost() <-chan struct{} { return l.life.Done() }

// Context returns a context that ends with parent or with the lock.
func (l *Lock) Context(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(parent)
	stop := context.AfterFunc(l.life, func() { cancel(context.Cause(l.life)) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// Err says why the lock is lost; nil while it is held and after Release.
func (l *Lock) Err() error {
	if err := context.Cause(l.life); errors.Is(err, ErrLockLost) {
		return err
	}
	return nil
}

// Fence is a number that is greater for every holder of the key than for those before,
// as long as the registry was not restored from a snapshot in between.
func (l *Lock) Fence() uint64 { return l.fence }

// Release gives the lock back, so that it can be taken at once. An error means that
// the agent did not hear of it; the lock is then free after the TTL and the delay.
func (l *Lock) Release(ctx context.Context) error {
	var err error
	l.closed.Do(func() {
		l.end(nil)
		if _, err = l.c.ReleaseKV(ctx, KV{Key: l.key, Flags: LockFlags, Session: l.session}); err != nil && IsInvalidSession(err) {
			err = nil // it has ended already
		}
		err = errors.Join(err, l.giveUp(ctx))
	})
	if err != nil {
		return fmt.Errorf("release %s: %w", l.key, err)
	}
	return nil
}

// giveUp ends the session and what keeps it.
func (l *Lock) giveUp(ctx context.Context) error {
	l.end(nil)
	l.wg.Wait()
	ctx, cancel := context.WithTimeout(ctx, beatTimeout)
	defer cancel()
	return l.c.DestroySession(ctx, l.session)
}

// IsInvalidSession reports whether err is an agent's "that session has ended".
func IsInvalidSession(err error) bool {
	var e *Error
	return errors.As(err, &e) && containsFold(e.Message, "invalid session")
}

// renew keeps the session alive. The agent's clock for it starts after ours, so that
// ours runs out first.
func (l *Lock) renew(last time.Time) {
	every := l.ttl / 3
	for l.life.Err() == nil {
		left := l.ttl - time.Since(last)
		if left <= 0 {
			l.lose("the agent was out of reach for %s", l.ttl)
			return
		}
		sleep(l.life, min(jittered(every), left))
		if left = l.ttl - time.Since(last); left <= 0 || l.life.Err() != nil {
			continue
		}
		began := time.Now()
		ctx, cancel := context.WithTimeout(l.life, min(left, l.ttl/3))
		err := l.c.RenewSession(ctx, l.session)
		cancel()
		switch {
		case err == nil:
			last, every = began, l.ttl/3
		case IsNotFound(err):
			l.lose("its session has ended")
			return
		default:
			every = l.ttl / 10 // the agent may be back in time
		}
	}
}

// lose ends the lock. The first reason stays.
func (l *Lock) lose(format string, args ...any) {
	l.end(fmt.Errorf("%w: "+format, append([]any{ErrLockLost}, args...)...))
}

// acquire waits for the lock until ctx ends or the session does.
func (l *Lock) acquire(ctx context.Context, value []byte) error {
	ctx, cancel := l.Context(ctx)
	defer cancel()
	if kv, err := l.c.KV(ctx, l.key); err == nil && kv.Flags != LockFlags {
		return ErrNoLock
	}
	for {
		ok, err := l.c.AcquireKV(ctx, KV{Key: l.key, Value: value, Flags: LockFlags, Session: l.session})
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil && ok:
			return l.confirm(ctx)
		case IsInvalidSession(err):
			l.lose("its session has ended")
			return l.Err()
		case refused4xx(err):
			return err
		case err != nil:
			sleep(ctx, jittered(lockPause))
			continue
		}
		l.wait(ctx)
	}
}

// confirm reads the number of a lock that was taken.
func (l *Lock) confirm(ctx context.Context) error {
	for ctx.Err() == nil {
		kv, err := l.c.KV(ctx, l.key)
		switch {
		case err == nil && kv.Session == l.session:
			l.fence = kv.ModifyIndex
			return nil
		case err == nil || IsNotFound(err):
			l.lose("it was taken away")
			return l.Err()
		}
		sleep(ctx, jittered(firstPause))
	}
	return context.Cause(ctx)
}

// wait returns when it is worth while to ask for the lock again.
func (l *Lock) wait(ctx context.Context) {
	ctx, free := context.WithCancel(ctx)
	defer free()
	seen := false
	follow(ctx, func(ctx context.Context, index uint64) (uint64, error) {
		all, next, err := l.c.awaitKV(ctx, l.key, index, followWait)
		if err != nil {
			return 0, err
		}
		if len(all) == 1 && all[0].Session != "" {
			seen = true
			return next, nil
		}
		if !seen {
			sleep(ctx, lockPause) // nobody holds it, but it was refused: the delay
		}
		free()
		return next, nil
	}, func(error) {})
}

// watch follows the lock until it ends.
func (l *Lock) watch() {
	follow(l.life, func(ctx context.Context, index uint64) (uint64, error) {
		all, next, err := l.c.awaitKV(ctx, l.key, index, followWait)
		if err == nil && (len(all) != 1 || all[0].Session != l.session) {
			l.lose("it was taken away")
		}
		return next, err
	}, func(error) {}) // whether the session still lives is for renew to find out
}

// FollowKV yields what is there of the entry of that name, or of those that begin
// with it if it ends with "/" or is empty, sorted by key; at once and after every
// change, until ctx ends or the loop is left. Changes that follow each other within a
// moment may come as one. An agent that is away is waited for.
func (c *Client) FollowKV(ctx context.Context, name string) iter.Seq[[]KV] {
	return func(yield func([]KV) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		first := true
		var shown []KV
		follow(ctx, func(ctx context.Context, index uint64) (uint64, error) {
			all, next, err := c.awaitKV(ctx, name, index, followWait)
			if err != nil {
				return 0, err
			}
			if first || !sameKV(shown, all) {
				first, shown = false, all
				if !yield(all) {
					cancel()
				}
			}
			return next, nil
		}, func(error) {})
	}
}
