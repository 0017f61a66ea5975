package node

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// memoryLook is how often the agent looks at what it allocates.
	memoryLook = 2 * time.Second
	// burstBytes is what has to be allocated since memory was last given back for
	// that to be worth a collection, and quietBytes what may be in one look for
	// the burst to be over.
	burstBytes, quietBytes = 32 << 20, 2 << 20
)

// giveBack returns memory to the system after a burst of work is over, until ctx
// ends. The runtime alone keeps twice what is alive until its next collection,
// which comes only after as much work again, and is slow to return the rest.
func (a *Agent) giveBack(ctx context.Context, ready func()) error {
	ready()
	tick := time.NewTicker(memoryLook)
	defer tick.Stop()
	b := burst{last: allocated()}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if b.over(allocated()) {
				debug.FreeOSMemory()
			}
		}
	}
}

// burst tells when a burst of allocations is over.
type burst struct {
	last uint64 // bytes allocated in all, at the last look
	new  uint64 // since memory was given back
}

// over reports whether there was a burst and it is over, once for each.
func (b *burst) over(total uint64) bool {
	grown := total - b.last
	b.last = total
	b.new += grown
	if b.new < burstBytes || grown > quietBytes {
		return false
	}
	b.new = 0
	return true
}

// allocated is how many bytes the process has allocated in all.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
