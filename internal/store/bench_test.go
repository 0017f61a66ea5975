package store

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// BenchmarkCommit puts small KV entries from so many writers at once, fsync on.
func BenchmarkCommit(b *testing.B) {
	for _, writers := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			n := startStore(b, b.TempDir())
			before := n.Status().Stats
			var next atomic.Int64
			var wg sync.WaitGroup
			b.ResetTimer()
			for w := range writers {
				wg.Go(func() {
					for next.Add(1) <= int64(b.N) {
						if _, err := n.Commit(b.Context(), put(fmt.Sprint(w), "value")); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			st := n.Status().Stats
			b.ReportMetric(float64(st.Ops-before.Ops)/float64(max(1, st.Batches-before.Batches)), "ops/batch")
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
		})
	}
}

// BenchmarkStart measures from nothing to the first committed write and back.
func BenchmarkStart(b *testing.B) {
	for range b.N {
		begin := time.Now()
		n := startStore(b, b.TempDir())
		n.must(b, put("a", ""), true)
		b.ReportMetric(float64(time.Since(begin).Milliseconds()), "ms/first-write")
		begin = time.Now()
		if err := n.stop(); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(time.Since(begin).Milliseconds()), "ms/stop")
	}
}
