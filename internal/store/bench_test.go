package store

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead-net/fairlead/internal/model"
)

// BenchmarkCommit writes small KV entries from so many writers at once, fsync on:
// blindly, and on the condition that an entry is as its writer left it.
func BenchmarkCommit(b *testing.B) {
	for _, kind := range []string{"put", "cas"} {
		for _, writers := range []int{1, 16, 64, 256} {
			b.Run(fmt.Sprintf("%s/writers=%d", kind, writers), func(b *testing.B) { benchCommit(b, writers, kind == "cas") })
		}
	}
}

func benchCommit(b *testing.B, writers int, cas bool) {
	n := startStore(b, b.TempDir())
	before := n.Status().Stats
	took := make([]time.Duration, b.N)
	var next atomic.Int64
	var wg sync.WaitGroup
	cpu := cpuTime(b)
	b.ResetTimer()
	for w := range writers {
		wg.Go(func() {
			txn := put(fmt.Sprint(w), "value")
			var at model.Index
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				if cas {
					txn.Compares = []Compare{{Key: txn.Puts[0].Key, ModIndex: at}}
				}
				begin := time.Now()
				res, err := n.Commit(b.Context(), txn)
				if err != nil || !res.OK {
					b.Errorf("%+v, %v", res, err)
					return
				}
				took[i-1], at = time.Since(begin), res.Index
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	cpu = cpuTime(b) - cpu
	st := n.Status().Stats
	slices.Sort(took)
	b.ReportMetric(float64(st.Ops-before.Ops)/float64(max(1, st.Batches-before.Batches)), "ops/batch")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
	b.ReportMetric(float64(cpu.Microseconds())/float64(b.N), "cpu-us/op")
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
}

// cpuTime is what this process has used so far.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
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
