package lb

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
)

// undertaker ends the connections to instances that no service lists any more,
// beside the balancer's loop: finding them reads a large map, and meanwhile other
// instances may have to be taken out.
type undertaker struct {
	node Node
	wake chan struct{} // holds one

	mu   sync.Mutex                // guards following
	gone map[netip.AddrPort]uint64 // the turn in which each was taken
	turn uint64
}

func newUndertaker(n Node) *undertaker {
	return &undertaker{node: n, wake: make(chan struct{}, 1), gone: map[netip.AddrPort]uint64{}}
}

// take is told of instances that no frontend leads to any more.
func (u *undertaker) take(instances []netip.AddrPort) {
	if len(instances) == 0 {
		return
	}
	u.mu.Lock()
	u.turn++
	for _, a := range instances {
		u.gone[a] = u.turn
	}
	u.mu.Unlock()
	select {
	case u.wake <- struct{}{}:
	default: // it is awake, and will see these
	}
}

// spare is told of instances before a frontend leads to them again.
func (u *undertaker) spare(instances []netip.AddrPort) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, a := range instances {
		delete(u.gone, a)
	}
}

// still reports whether an instance is still to be ended.
func (u *undertaker) still(a netip.AddrPort) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.gone[a] != 0
}

// run works until ctx ends.
func (u *undertaker) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-u.wake:
		}
		u.mu.Lock()
		batch := maps.Clone(u.gone)
		u.mu.Unlock()
		if len(batch) == 0 {
			continue
		}
		u.node.Gone(ctx, slices.SortedFunc(maps.Keys(batch), netip.AddrPort.Compare), u.still)
		u.done(batch)
	}
}

// done forgets what was dealt with, but not what came back and went again
// meanwhile.
func (u *undertaker) done(batch map[netip.AddrPort]uint64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for a, turn := range batch {
		if u.gone[a] == turn {
			delete(u.gone, a)
		}
	}
}
