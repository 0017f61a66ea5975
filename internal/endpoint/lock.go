package endpoint

import (
	"context"
	"sync"
)

// keyed makes those who work on the same thing take turns. A thing that nobody
// works on takes no memory.
type keyed[K comparable] struct {
	mu    sync.Mutex // guards following
	turns map[K]*turn
}

type turn struct {
	taken chan struct{} // holds one while somebody works
	users int           // who works and who waits; guarded by keyed.mu
}

// lock waits for its turn, or for the end of ctx.
func (k *keyed[K]) lock(ctx context.Context, key K) (unlock func(), err error) {
	k.mu.Lock()
	if k.turns == nil {
		k.turns = map[K]*turn{}
	}
	t := k.turns[key]
	if t == nil {
		t = &turn{taken: make(chan struct{}, 1)}
		k.turns[key] = t
	}
	t.users++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(k.turns, key)
		}
	}
	select {
	case t.taken <- struct{}{}:
		return func() { <-t.taken; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
