package main

import (
	"math/bits"
	"slices"
	"time"
)

// subBits is how many bits of a duration below its highest one a bucket keeps: buckets are at most 1/64 wide, so a percentile is
// read 1.6 % too high at worst.
const subBits = 6

// A histogram counts durations in buckets that widen with them, from 1 ns to hours, without allocating. Its zero value is empty.
type histogram struct {
	counts [(64 - subBits + 1) << subBits]uint64
	total  uint64
}

func bucketOf(ns uint64) int {
	if ns < 1<<subBits {
		return int(ns)
	}
	shift := bits.Len64(ns) - 1 - subBits
	return (shift+1)<<subBits + int(ns>>shift) - 1<<subBits
}

// upperBound is the largest duration of a bucket, in nanoseconds.
func upperBound(bucket int) uint64 {
	if bucket < 1<<subBits {
		return uint64(bucket)
	}
	shift := bucket>>subBits - 1
	return (uint64(bucket&(1<<subBits-1))+1<<subBits+1)<<shift - 1
}

func (h *histogram) add(d time.Duration) {
	h.counts[bucketOf(uint64(max(d, 0)))]++
	h.total++
}

// percentile is the duration that the share p (0 to 1) of all does not exceed; 0 of an empty histogram.
func (h *histogram) percentile(p float64) time.Duration {
	if h.total == 0 {
		return 0
	}
	rank := uint64(p * float64(h.total))
	rank = min(rank, h.total-1)
	var seen uint64
	for i, n := range &h.counts {
		seen += n
		if seen > rank {
			return time.Duration(upperBound(i))
		}
	}
	return 0
}

// median is the middle value, the mean of the two in the middle of an even number, and 0 of none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	mid := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[mid]
	}
	return (sorted[mid-1] + sorted[mid]) / 2
}
