package node

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairlead-net/fairlead/internal/store"
)

// storeMetrics are those of the registry's database and its room.
func (a *Agent) storeMetrics() []prometheus.Collector {
	if a.follower != nil {
		return a.follower.metrics()
	}
	of := func(f func(store.Status) float64) func() float64 {
		return func() float64 { return f(a.store.Status()) }
	}
	return []prometheus.Collector{
		gauge("store_has_leader", "1 while the registry has a leader.", of(func(s store.Status) float64 {
			if s.Leader == "" {
				return 0
			}
			return 1
		})),
		gauge("store_size_bytes", "Size of the registry's database.", of(func(s store.Status) float64 { return float64(s.DBSize) })),
		gauge("store_in_use_bytes", "Used part of the registry's database.", of(func(s store.Status) float64 { return float64(s.DBInUse) })),
		gauge("store_quota_bytes", "How much of it may be used before writes are refused.", of(func(s store.Status) float64 { return float64(s.Quota) })),
		gauge("store_disk_free_bytes", "Free bytes of the file system that it lies on.", of(func(s store.Status) float64 { return float64(s.DiskFree) })),
		gauge("store_full", "1 while writes are refused for want of room.", of(func(s store.Status) float64 {
			if s.Full == "" {
				return 0
			}
			return 1
		})),
		gauge("store_compacted_index", "Index behind which older content is dropped.", of(func(s store.Status) float64 { return float64(s.Compacted) })),
		count("store_batches_total", "Transactions proposed to the log.", of(func(s store.Status) float64 { return float64(s.Stats.Batches) })),
		count("store_operations_total", "Writes committed in them.", of(func(s store.Status) float64 { return float64(s.Stats.Ops) })),
		count("store_conflicts_total", "Writes that waited for a later batch.", of(func(s store.Status) float64 { return float64(s.Stats.Conflicts) })),
		count("store_compactions_total", "How often older content was dropped.", of(func(s store.Status) float64 { return float64(s.Stats.Compactions) })),
		count("store_defragmentations_total", "How often the database was rewritten.", of(func(s store.Status) float64 { return float64(s.Stats.Defragmentations) })),
		count("store_retries_total", "Proposals made again for want of an answer.", of(func(s store.Status) float64 { return float64(s.Stats.Retries) })),
	}
}
