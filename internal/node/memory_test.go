package node

import "testing"

// TestMemoryIsGivenBackAfterBursts, and neither during them nor for little.
func TestMemoryIsGivenBackAfterBursts(t *testing.T) {
	const MB = 1 << 20
	b := burst{last: 100 * MB}
	total := uint64(100 * MB)
	for i, look := range []struct {
		grown uint64
		over  bool
	}{
		{0, false}, {1 * MB, false}, // nothing to speak of
		{300 * MB, false}, {200 * MB, false}, {1 * MB, true}, // a burst ends
		{1 * MB, false}, {0, false}, // once
		{3 * MB, false}, {20 * MB, false}, {3 * MB, false}, {8 * MB, false}, {1 * MB, true}, // little by little it adds up
	} {
		total += look.grown
		if got := b.over(total); got != look.over {
			t.Errorf("look %d, %d MB more: over is %v", i, look.grown/MB, got)
		}
	}
}

// TestAllocatedGrows: the runtime still knows the metric.
func TestAllocatedGrows(t *testing.T) {
	before := allocated()
	kept := make([]byte, 8<<20)
	if after := allocated(); after < before+uint64(len(kept)) {
		t.Errorf("%d bytes, then %d", before, after)
	}
}
