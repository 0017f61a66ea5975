package registry

import (
	"context"
	"sync"
)

// queues makes writes wait for each other that would otherwise conflict for
// certain, such as two endpoints that both want a network's lowest free address.
// They only spare rounds; it is the compares that keep writes right, also
// against those of other servers.
type queues struct {
	mu sync.Mutex
	q  map[string]*queue // guarded by mu
}

type queue struct {
	turn    chan struct{} // holds a token while it is nobody's turn
	members int           // guarded by queues.mu
}

// enter waits for its turn in the queue of that name. The caller calls leave
// once, unless there is an error, which is ctx's.
func (qs *queues) enter(ctx context.Context, name string) (leave func(), err error) {
	qs.mu.Lock()
	q := qs.q[name]
	if q == nil {
		q = &queue{turn: make(chan struct{}, 1)}
		q.turn <- struct{}{}
		if qs.q == nil {
			qs.q = map[string]*queue{}
		}
		qs.q[name] = q
	}
	q.members++
	qs.mu.Unlock()

	quit := func() {
		qs.mu.Lock()
		defer qs.mu.Unlock()
		if q.members--; q.members == 0 {
			delete(qs.q, name)
		}
	}
	select {
	case <-q.turn:
		return func() { q.turn <- struct{}{}; quit() }, nil
	case <-ctx.Done():
		quit()
		return nil, ctx.Err()
	}
}

// enterAll waits for its turn in several queues. Names have to be sorted: then no
// two callers can wait for each other.
func (qs *queues) enterAll(ctx context.Context, names []string) (leave func(), err error) {
	var entered []func()
	leave = func() {
		for _, l := range entered {
			l()
		}
	}
	for _, name := range names {
		l, err := qs.enter(ctx, name)
		if err != nil {
			leave()
			return nil, err
		}
		entered = append(entered, l)
	}
	return leave, nil
}
