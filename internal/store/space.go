package store

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"
)

const (
	// quotaBytes is how much of the database may be in use. It is the store that
	// keeps to it, not etcd, which would refuse deletes as well.
	quotaBytes = 8 << 30
	// roomEvery is how often the space left is looked at.
	roomEvery = 200 * time.Millisecond
	// The file system's reserve. etcd dies of a full disk: it needs 64 MB at once
	// for the next segment of its log, 16 MiB for the database's next step, and
	// what is written between two looks. Writes are refused below diskReserve and
	// taken again above diskEnough, in bytes.
	diskReserve = 128 << 20
	diskEnough  = diskReserve + 32<<20
	// diskFactor is how much a written byte takes up at most, pages half empty.
	diskFactor = 2
	// diskUnknown stands for what nobody has looked at, or can: etcd will tell.
	diskUnknown = math.MaxInt64 / 2
	// A database is rewritten when more than defragBytes of it, and more than
	// half, are free.
	defragBytes = 256 << 20
	// defragInUse bounds what is copied, and by that how long commits wait: about
	// 14 ms a MiB. Beyond it only a full disk is a reason.
	defragInUse = 512 << 20
	// hurry is how often old revisions are dropped while there is no room.
	hurry = time.Second
)

// room is whether there is any for what grows: in the quota and on the disk. The
// one that calls look owns it, atomics excepted.
type room struct {
	quota int64
	dir   string
	free  func(dir string) (int64, error) // bytes of the file system; tests put another in its place

	diskFree atomic.Int64
	// admitted are the bytes let in since the last look, recent those of the time
	// between the two before: etcd writes late, so the disk may not show them.
	admitted, recent atomic.Int64
	full             atomic.Pointer[fullError] // nil while there is room
	inUse            atomic.Int64              // of the database, when last looked at
	size             int64                     // of the database file, as far as it has its blocks
	warned           bool
}

// fullError says what is full and what to do.
type fullError struct {
	disk bool
	text string
}

func (e *fullError) Error() string { return ErrNoSpace.Error() + ": " + e.text }

// Is makes it ErrNoSpace.
func (e *fullError) Is(target error) bool { return target == ErrNoSpace }

// admit refuses what would take up room that there is not. Whatever only deletes
// is always taken; what puts and deletes, such as the end of a session, has a
// twentieth of the quota on top.
func (r *room) admit(t *Txn) error {
	if len(t.Puts) == 0 {
		return nil
	}
	full := r.full.Load()
	if full == nil {
		size := int64(t.size())
		r.admitted.Add(size)
		if full = r.fills(r.diskFree.Load(), r.inUse.Load(), nil); full != nil {
			r.admitted.Add(-size)
		}
	}
	if full == nil || len(t.Deletes)+len(t.DeletePrefixes) > 0 && (full.disk || r.inUse.Load() < r.quota/20*21) {
		return nil
	}
	return full
}

// fills says what is full, if anything is. was is what has been full.
func (r *room) fills(free, inUse int64, was *fullError) *fullError {
	coming := r.admitted.Load() + r.recent.Load()
	free, inUse = free-diskFactor*coming, inUse+coming
	switch {
	case free < diskReserve, was != nil && was.disk && free < diskEnough:
		return &fullError{disk: true, text: fmt.Sprintf("no space left on the file system of %s: %d MiB are free, writes are taken from %d MiB on; "+
			"make room there", r.dir, max(free, 0)>>20, diskEnough>>20)}
	case inUse >= r.quota, was != nil && inUse >= r.quota/100*98:
		return &fullError{text: fmt.Sprintf("database quota exceeded: %d of %d bytes are in use; delete what is not needed, "+
			"its space is there again within a minute", inUse, r.quota)}
	}
	return nil
}

// look finds out how much room there is. It returns true if that has changed.
func (r *room) look(size, inUse int64) bool {
	r.inUse.Store(inUse)
	was := r.full.Load()
	free, err := r.free(r.dir)
	if err != nil {
		free = diskUnknown
	}
	r.diskFree.Store(free)
	if size > r.size && free >= diskReserve {
		r.allocate()
		r.size = size
	}
	r.recent.Store(r.admitted.Swap(0))
	now := r.fills(free, inUse, was)
	r.full.Store(now)
	return (was == nil) != (now == nil)
}

// allocate gives the database file the blocks behind its holes while there are
// any: writing within the file cannot fail then. Not every file system can.
func (r *room) allocate() {
	f, err := os.OpenFile(filepath.Join(r.dir, "etcd", "member", "snap", "db"), os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil {
		_ = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, info.Size())
	}
}

// nears reports, once each time, that most of the quota is in use.
func (r *room) nears() bool {
	near := nearQuota(r.inUse.Load(), r.quota)
	first := near && !r.warned
	r.warned = near
	return first
}

// nearQuota reports whether so much of a quota is in use that somebody should know.
func nearQuota(inUse, quota int64) bool { return inUse >= quota/10*7 }

func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * st.Bsize, nil //nolint:gosec // no file system has 2^63 bytes
}

// keepRoom looks at the space left, drops old revisions and rewrites the
// database when most of it is free, until ctx ends.
//
// Revisions go that are behind what state showed and what was settled one
// interval ago, which leaves other servers that long to catch up.
func (s *Store) keepRoom(ctx context.Context, r *running) error {
	look, tick := time.NewTicker(roomEvery), time.NewTicker(s.compactEvery)
	defer look.Stop()
	defer tick.Stop()
	c := compaction{store: s, running: r}
	var nudged time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
			s.lookForRoom(r)
			if s.room.full.Load() != nil && time.Since(nudged) >= hurry {
				nudged = time.Now()
				s.nudge(ctx)
				c.step(ctx)
			}
		case <-tick.C:
			c.step(ctx)
		}
	}
}

// lookForRoom says in the log when there is no more room, and when there is
// again.
func (s *Store) lookForRoom(r *running) {
	b := r.server.Server.Backend()
	if s.room.look(b.Size(), b.SizeInUse()) {
		if full := s.room.full.Load(); full != nil {
			s.cfg.Log.Error("writes are refused, only reading and deleting go on", "error", full)
		} else {
			s.cfg.Log.Info("writes are taken again", "bytes", b.SizeInUse(), "free", s.room.diskFree.Load())
		}
	}
	if s.room.nears() {
		s.cfg.Log.Warn("the database nears its quota, behind which writes are refused", "bytes", b.SizeInUse(), "quota", s.room.quota)
	}
}

// nudge commits a batch that changes nothing but its marker. Pages that a
// compaction has freed are free for etcd only after the next two commits, and
// while there is no room nobody else may come.
func (s *Store) nudge(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, outcomeLimit)
	defer cancel()
	if _, err := s.queue.do(ctx, Txn{Deletes: []string{SettingKey("")}}); err != nil && ctx.Err() == nil {
		s.cfg.Log.Warn("no batch to make room with", "error", err)
	}
}

// compaction is how far old revisions have been dropped.
type compaction struct {
	store      *Store
	running    *running
	done, next int64
}

func (c *compaction) step(ctx context.Context) {
	s, r := c.store, c.running
	// The leader drops them for all.
	if c.next = s.pins.oldest(c.next); c.next > c.done && r.leads() {
		short, cancel := context.WithTimeout(ctx, stepLimit)
		_, err := r.cli.Compact(short, c.next)
		cancel()
		switch {
		case err == nil:
			s.stats.compactions.Add(1)
			s.compacted.Store(c.next)
			c.done = c.next
		case ctx.Err() == nil:
			s.cfg.Log.Warn("compaction failed", "index", c.next, "error", err)
		}
	}
	r.commit.catchUp(r.follow.applied.Load())
	c.next = min(r.follow.applied.Load(), r.commit.settled.Load())
	if err := s.defragment(r); err != nil {
		s.cfg.Log.Warn("rewriting the database failed", "error", err)
	}
}

// defragment gives the file system what is free in the database, if that is
// much. Nothing can be committed meanwhile; the commits that come wait.
func (s *Store) defragment(r *running) error {
	b := r.server.Server.Backend()
	size, inUse := b.Size(), b.SizeInUse()
	least, most := s.defragAbove, int64(defragInUse)
	if full := s.room.full.Load(); full != nil && full.disk {
		least, most = min(least, diskEnough-diskReserve), math.MaxInt64
	}
	switch unused := size - inUse; {
	case unused <= least, unused <= size/2, inUse > most, len(r.server.Server.Cluster().Members()) > 1:
		return nil
	case s.room.diskFree.Load() < inUse+inUse/8+16<<20:
		return nil // no room for the copy
	}
	r.commit.under.Lock()
	defer r.commit.under.Unlock()
	begin := time.Now()
	if err := b.Defrag(); err != nil {
		return err
	}
	s.stats.defragmentations.Add(1)
	s.room.size = 0
	s.cfg.Log.Info("the database was rewritten", "before", size, "bytes", b.Size(), "took", time.Since(begin))
	return nil
}

// disarm takes back the alarm that an earlier version let etcd raise: under it
// etcd refuses every batch, deletes included.
func disarm(ctx context.Context, cli *clientv3.Client) error {
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	list, err := cli.AlarmList(ctx)
	if err != nil {
		return fmt.Errorf("read etcd's alarms: %w", err)
	}
	for _, a := range list.Alarms {
		if a.Alarm == pb.AlarmType_NOSPACE {
			if _, err := cli.AlarmDisarm(ctx, (*clientv3.AlarmMember)(a)); err != nil {
				return fmt.Errorf("take back etcd's alarm: %w", err)
			}
		}
	}
	return nil
}
