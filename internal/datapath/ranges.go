package datapath

import (
	"slices"
	"time"
)

// rest is how long a place is left alone after it was given back, if there are others. A program that picked up its number just before
// needs microseconds unless it is interrupted; if it is, it finds another set's number in the place and starts over.
const rest = 100 * time.Millisecond

// ranges hands out stretches of an array, the lowest that fits, so that what is in use stays close together.
type ranges struct {
	free    []stretch // in order, with gaps between them
	resting []rested  // in order of time
}

type stretch struct{ start, count uint32 }

type rested struct {
	stretch
	since time.Time
}

func newRanges(size uint32) *ranges {
	return &ranges{free: []stretch{{0, size}}}
}

// take returns the start of count free places.
func (r *ranges) take(count uint32, now time.Time) (uint32, bool) {
	for len(r.resting) > 0 && now.Sub(r.resting[0].since) >= rest {
		r.wake()
	}
	start, ok := r.cut(count)
	for !ok && len(r.resting) > 0 {
		r.wake()
		start, ok = r.cut(count)
	}
	return start, ok
}

// wake makes free what has rested longest.
func (r *ranges) wake() {
	r.insert(r.resting[0].stretch)
	r.resting = r.resting[1:]
}

// cut takes from the first stretch that is long enough.
func (r *ranges) cut(count uint32) (uint32, bool) {
	i := slices.IndexFunc(r.free, func(s stretch) bool { return s.count >= count })
	if i < 0 {
		return 0, false
	}
	f := &r.free[i]
	start := f.start
	f.start, f.count = f.start+count, f.count-count
	if f.count == 0 {
		r.free = slices.Delete(r.free, i, i+1)
	}
	return start, true
}

// give returns places that were taken or reserved.
func (r *ranges) give(start, count uint32, now time.Time) {
	r.resting = append(r.resting, rested{stretch{start, count}, now})
}

// reserve takes exactly these places, which are free.
func (r *ranges) reserve(start, count uint32) {
	i := r.after(start) - 1
	f := r.free[i]
	behind := stretch{start + count, f.start + f.count - start - count}
	r.free[i].count = start - f.start
	if behind.count > 0 {
		r.free = slices.Insert(r.free, i+1, behind)
	}
	if r.free[i].count == 0 {
		r.free = slices.Delete(r.free, i, i+1)
	}
}

// after returns the index of the first free stretch that starts behind at.
func (r *ranges) after(at uint32) int {
	i, _ := slices.BinarySearchFunc(r.free, at, func(s stretch, at uint32) int {
		if s.start <= at {
			return -1
		}
		return 1
	})
	return i
}

// insert adds a free stretch and joins it with its neighbours.
func (r *ranges) insert(s stretch) {
	i := r.after(s.start)
	if i < len(r.free) && s.start+s.count == r.free[i].start {
		s.count += r.free[i].count
		r.free = slices.Delete(r.free, i, i+1)
	}
	if i > 0 && r.free[i-1].start+r.free[i-1].count == s.start {
		r.free[i-1].count += s.count
		return
	}
	r.free = slices.Insert(r.free, i, s)
}
