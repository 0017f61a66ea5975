package datapath

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestRangesNeverOverlap takes, gives and reserves at random and keeps a map of who has what.
func TestRangesNeverOverlap(t *testing.T) {
	const size = 200
	r := rand.New(rand.NewPCG(3, 4))
	now := time.Unix(0, 0)
	a := newRanges(size)
	taken := map[stretch]bool{}
	var used [size]bool
	mark := func(s stretch, to bool) {
		t.Helper()
		for i := s.start; i < s.start+s.count; i++ {
			if used[i] == to {
				t.Fatalf("place %d is in %v twice", i, s)
			}
			used[i] = to
		}
	}
	for range 20_000 {
		now = now.Add(time.Duration(r.IntN(40)) * time.Millisecond)
		if r.IntN(2) == 0 {
			count := uint32(1 + r.IntN(30))
			start, ok := a.take(count, now)
			if !ok {
				run := uint32(0)
				for _, u := range used {
					if run++; u {
						run = 0
					}
					if run >= count {
						t.Fatalf("no room for %d places, but there is", count)
					}
				}
				continue
			}
			taken[stretch{start, count}] = true
			mark(stretch{start, count}, true)
			continue
		}
		for s := range taken {
			delete(taken, s)
			mark(s, false)
			a.give(s.start, s.count, now)
			break
		}
		if r.IntN(100) == 0 { // the agent restarts
			a = newRanges(size)
			for s := range taken {
				a.reserve(s.start, s.count)
			}
		}
	}
	for s := range taken {
		a.give(s.start, s.count, now)
	}
	if start, ok := a.take(size, now.Add(rest)); !ok || start != 0 {
		t.Errorf("after everything was given back, %v is free", a.free)
	}
}

func TestPlacesRestBeforeTheyAreUsedAgain(t *testing.T) {
	now := time.Unix(0, 0)
	a := newRanges(10)
	first, _ := a.take(3, now)
	a.give(first, 3, now)
	if next, ok := a.take(3, now); !ok || next == first {
		t.Errorf("place %d, which has just been given back, was taken again (%v)", next, ok)
	}
	if next, ok := a.take(3, now.Add(rest)); !ok || next != first {
		t.Errorf("place %d was taken, want %d (%v)", next, first, ok)
	}
}
