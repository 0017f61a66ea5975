package store

import (
	"slices"
	"sync/atomic"

	"github.com/fairlead-net/fairlead/internal/model"
)

// Status is what a store can say about itself and its cluster.
type Status struct {
	// Leader is the name of the leading server; empty while there is none, or
	// while the store does not run.
	Leader string
	// Peers are the names of all voting servers, sorted.
	Peers []string
	// Term is etcd's election term.
	Term uint64
	// Index is the newest revision of this server's log, Applied the newest that
	// its state shows.
	Index, Applied model.Index
	// Generation names the set of keys in force.
	Generation string
	// DBSize and DBInUse are the database's size on disk and its used part;
	// Quota is how much may be used before writes are refused, DiskFree what its
	// file system has left. All in bytes.
	DBSize, DBInUse, Quota, DiskFree int64
	// Full says what is full and what to do while writes are refused for it; else
	// it is empty.
	Full string
	// Compacted is the index behind which no older content can be read any more.
	Compacted model.Index
	// Alarms are etcd's, such as "NOSPACE".
	Alarms []string
	Stats  Stats
}

// NearQuota reports whether most of the quota is in use: writes go on, but somebody
// should know.
func (s Status) NearQuota() bool { return s.Quota > 0 && nearQuota(s.DBInUse, s.Quota) }

// Stats counts what the store did since it was made.
type Stats struct {
	Batches     uint64 // etcd transactions
	Ops         uint64 // transactions committed in them
	Conflicts   uint64 // transactions that waited for a later batch because their sets met
	Refusals    uint64 // transactions whose compares failed
	Retries     uint64 // further proposals of a batch
	Readbacks   uint64 // batches whose lost outcome was read back
	Splits      uint64 // batches that etcd refused whole
	Reloads     uint64 // watches that broke
	Compactions uint64
	// Defragmentations counts how often the database was rewritten.
	Defragmentations uint64
	Unreadable       uint64 // records that could not be decoded
}

type counters struct {
	batches, ops, conflicts, refusals, retries          atomic.Uint64
	readbacks, splits, reloads, compactions, unreadable atomic.Uint64
	defragmentations                                    atomic.Uint64
}

func (c *counters) snapshot() Stats {
	return Stats{
		Batches: c.batches.Load(), Ops: c.ops.Load(), Conflicts: c.conflicts.Load(),
		Refusals: c.refusals.Load(), Retries: c.retries.Load(), Readbacks: c.readbacks.Load(),
		Splits: c.splits.Load(), Reloads: c.reloads.Load(), Compactions: c.compactions.Load(),
		Unreadable: c.unreadable.Load(), Defragmentations: c.defragmentations.Load(),
	}
}

// HasLeader reports whether the servers have a leader. It is cheap.
func (s *Store) HasLeader() bool {
	r := s.running.Load()
	return r != nil && r.server.Server.Leader() != 0
}

// leads reports whether this server is the leader.
func (r *running) leads() bool { return r.server.Server.Leader() == r.server.Server.MemberID() }

// Status reads the store's state from memory; it never waits.
func (s *Store) Status() Status {
	st := Status{Quota: s.room.quota, Compacted: model.Index(s.compacted.Load()), Stats: s.stats.snapshot()}
	if full := s.room.full.Load(); full != nil {
		st.Full = full.Error()
	}
	r := s.running.Load()
	if r == nil {
		return st
	}
	srv := r.server.Server
	leader := srv.Leader()
	for _, m := range srv.Cluster().Members() {
		if m.IsLearner {
			continue
		}
		name := memberOf(m.Name, m.PeerURLs)
		if m.ID == srv.MemberID() {
			name = s.cfg.Name // etcd's is made from it
		}
		st.Peers = append(st.Peers, name)
		if m.ID == leader {
			st.Leader = name
		}
	}
	slices.Sort(st.Peers)
	st.Index, st.Applied = model.Index(srv.KV().Rev()), model.Index(r.follow.applied.Load())
	st.Term = srv.Term()
	if g := s.gen.Load(); g != nil {
		st.Generation = g.name
	}
	st.DiskFree = s.room.diskFree.Load()
	st.DBSize, st.DBInUse = srv.Backend().Size(), srv.Backend().SizeInUse()
	for _, a := range srv.Alarms() {
		st.Alarms = append(st.Alarms, a.Alarm.String())
	}
	return st
}
