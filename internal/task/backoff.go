package task

import (
	"context"
	"math/rand/v2"
	"time"
)

// Bounds of a Backoff that sets none.
const (
	shortest = 100 * time.Millisecond
	longest  = 30 * time.Second
)

// Backoff says how long to wait before the next attempt: exponentially longer
// delays with jitter, so that many that failed together do not come back
// together. The zero value waits from 100 ms to 30 s. It belongs to one
// goroutine.
type Backoff struct {
	// Min is the first delay and Max the longest, before jitter; 0 means the
	// defaults.
	Min, Max time.Duration

	last time.Duration
}

// Next returns the delay before the next attempt: twice the one before, at most
// Max, of which a random part of up to one half is taken off ("equal jitter").
func (b *Backoff) Next() time.Duration {
	least, most := b.Min, b.Max
	if least <= 0 {
		least = shortest
	}
	if most <= 0 {
		most = max(longest, least)
	}
	switch {
	case b.last == 0:
		b.last = min(least, most)
	case b.last > most/2:
		b.last = most
	default:
		b.last *= 2
	}
	return b.last - rand.N(b.last/2+1)
}

// Reset makes the next delay the first one again; called after a success.
func (b *Backoff) Reset() { b.last = 0 }

// Jitter returns a duration between d and d + d/16, for things that happen
// regularly on many nodes.
func Jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return d + rand.N(d/16+1)
}

// Sleep waits for d, or until ctx ends, whose error it then returns.
func Sleep(ctx context.Context, d time.Duration) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
