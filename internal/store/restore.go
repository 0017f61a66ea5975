package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/fairlead-net/fairlead/internal/archive"
	"github.com/fairlead-net/fairlead/internal/model"
)

// ErrRestoring means that another restore is under way; nothing was changed.
var ErrRestoring = errors.New("another restore is under way")

const (
	// A chunk of a new generation is one etcd transaction. Small ones leave room
	// for the writers in between.
	chunkBytes = 512 << 10
	chunkOps   = 1024
	// stepLimit bounds one transaction of a restore, stepTries how often it is
	// tried: a proposal that dies with the leader never answers.
	stepLimit = 10 * time.Second
	stepTries = 4
	// holdTTL is how long a restore's claim outlives its process, in seconds.
	holdTTL = 30
	// flipRounds is how often a restore looks anew at the hosts, if networks or
	// endpoints have changed while it looked.
	flipRounds = 10
	// parallelLeases is how many leases are granted or renewed at a time.
	parallelLeases = 32
)

// Restore replaces the registry's content by that of an archive which Save wrote,
// as one step at the index it returns; every waiter wakes. Until then the old
// content stays in force, whatever fails: the archive is verified as a whole
// before anything is written, and what a restore that failed has left behind is
// removed. Sessions live on with their full TTL. What hosts do right now is kept
// as it is and not taken from the archive; DESIGN.md says what that is.
//
// Errors: archive.ErrFormat, archive.ErrDamaged, ErrRestoring, ErrNoSpace,
// ErrNoLeader, ErrUnknownOutcome.
func (s *Store) Restore(ctx context.Context, in io.Reader) (model.SnapshotMeta, model.Index, error) {
	r, err := s.run(ctx)
	if err != nil {
		return model.SnapshotMeta{}, 0, err
	}
	if !s.restoring.CompareAndSwap(false, true) {
		return model.SnapshotMeta{}, 0, ErrRestoring
	}
	defer s.restoring.Store(false)
	file, meta, err := spool(r.dir, in)
	if err != nil {
		return meta, 0, err
	}
	defer file.Close()
	if err := s.fits(r, meta); err != nil {
		return meta, 0, err
	}
	at, err := s.replace(ctx, r, file)
	if err != nil {
		return meta, 0, fmt.Errorf("restore: %w", err)
	}
	s.cfg.Log.Info("restored a snapshot", "index", at, "saved", meta.Time, "saved_index", meta.Index, "records", meta.Records)
	return meta, at, nil
}

// spool copies an archive into a file without a name and verifies it.
func spool(dir string, in io.Reader) (_ *os.File, meta model.SnapshotMeta, err error) {
	f, err := os.CreateTemp(dir, "restore-*")
	if err != nil {
		return nil, meta, fmt.Errorf("make a file for the snapshot: %w", err)
	}
	// Without a name it goes with the process, however that ends.
	err = os.Remove(f.Name())
	if err == nil {
		meta, err = archive.Read(io.TeeReader(&capped{in, quotaBytes}, f), quotaBytes, checkRecord)
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, meta, err
	}
	return f, meta, nil
}

// capped fails where io.LimitedReader would end.
type capped struct {
	r    io.Reader
	left int64
}

func (c *capped) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	if c.left -= int64(n); c.left < 0 {
		return n, archive.ErrTooLarge
	}
	return n, err
}

// fits refuses what has no room beside the generation in force.
func (s *Store) fits(r *running, meta model.SnapshotMeta) error {
	const perRecord = 256 // revision, bookkeeping, free space within pages
	need := meta.Bytes + int64(meta.Records)*perRecord
	b := r.server.Server.Backend()
	free := b.Size() - b.SizeInUse()
	grows := max(need-free, 0)
	if free := s.room.diskFree.Load(); grows > free-diskReserve {
		return fmt.Errorf("%w: the snapshot needs %d bytes more, and of the %d bytes that its file system has left %d are kept", ErrNoSpace, grows, free, diskReserve)
	}
	if b.SizeInUse()+need > s.room.quota/10*9 {
		return fmt.Errorf("%w: the snapshot needs %d bytes beside the present content, of which there are %d", ErrNoSpace, need, b.SizeInUse())
	}
	return nil
}

// replace writes the new generation and puts it in force.
func (s *Store) replace(ctx context.Context, r *running, file io.Reader) (model.Index, error) {
	j, release, err := s.claim(ctx, r)
	if err != nil {
		return 0, err
	}
	defer s.tidy()
	var leases []int64
	var lost bool
	defer func() { // behind release: no late step can put them in force then
		if lost {
			j.drop(context.WithoutCancel(ctx), leases)
		}
	}()
	defer release()
	if err := j.look(ctx); err != nil {
		return 0, err
	}
	if _, err := archive.Read(file, quotaBytes, func(key string, value []byte) error { return j.take(ctx, key, value) }); err != nil {
		return 0, err
	}
	if err := j.flush(ctx); err != nil {
		return 0, err
	}
	leases, err = j.revive(ctx)
	if err != nil {
		lost = true
		return 0, err
	}
	at, err := j.finish(ctx)
	if err != nil {
		lost = !errors.Is(err, ErrUnknownOutcome) // else the sessions may be in force
		return 0, err
	}
	j.renew(context.WithoutCancel(ctx), leases)
	return at, nil
}

// claimed is the value of restoreKey, which one restore holds at a time.
type claimed struct {
	Server     string `json:"server"`
	Generation string `json:"generation"` // that is being written
}

// claim takes the place of the one restore of the cluster. release gives it up.
func (s *Store) claim(ctx context.Context, r *running) (_ *restore, release func(), err error) {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	name := hex.EncodeToString(id[:])
	value, err := json.Marshal(claimed{s.cfg.Name, name})
	if err != nil {
		return nil, nil, err
	}
	short, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	lease, err := r.cli.Grant(short, holdTTL)
	if err != nil {
		return nil, nil, readError(ctx, err)
	}
	resp, err := r.cli.Txn(short).
		If(clientv3.Compare(clientv3.CreateRevision(restoreKey), "=", 0)).
		Then(clientv3.OpPut(restoreKey, string(value), clientv3.WithLease(lease.ID)), clientv3.OpGet(pointerKey)).
		Commit()
	if err == nil && !resp.Succeeded {
		err = ErrRestoring
	}
	if err == nil && len(resp.Responses[1].GetResponseRange().Kvs) == 0 {
		err = errors.New("the generation pointer is gone")
	}
	held, stop := context.WithCancel(context.WithoutCancel(ctx))
	release = func() {
		stop()
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepLimit)
		defer cancel()
		if _, err := r.cli.Revoke(end, lease.ID); err != nil {
			s.cfg.Log.Warn("give up the claim of a restore", "error", err)
		}
	}
	if err != nil {
		release()
		return nil, nil, err
	}
	kv := resp.Responses[1].GetResponseRange().Kvs[0]
	j := &restore{
		store: s, cli: r.cli, name: name,
		old: generation{name: string(kv.Value), mod: kv.ModRevision}, claim: resp.Header.Revision,
	}
	go keepAlive(held, r.cli, lease.ID)
	return j, release, nil
}

// keepAlive renews a lease until ctx ends. Whoever relies on the lease compares
// what hangs on it, so a renewal that fails needs no word.
func keepAlive(ctx context.Context, cli *clientv3.Client, lease clientv3.LeaseID) {
	tick := time.NewTicker(holdTTL * time.Second / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_, _ = cli.KeepAliveOnce(ctx, lease)
		}
	}
}

// restore is one restore under way. It belongs to one goroutine.
type restore struct {
	store *Store
	cli   *clientv3.Client
	name  string     // of the new generation
	old   generation // the one in force
	claim int64      // revision of restoreKey

	ops   []clientv3.Op
	bytes int

	present  *survey
	offered  []entry           // what the archive has of networks and VIPs
	sessions []model.Session   // those with a TTL
	carried  map[string]string // what was written for the sake of the hosts
}

// entry is a record that waits for its turn.
type entry struct{ key, value string }

func (j *restore) prefix() string { return generationPrefix(j.name) }

// guard is what every write of a restore rests on: its claim, and that the
// generation it replaces is in force.
func (j *restore) guard() []clientv3.Cmp {
	return []clientv3.Cmp{
		clientv3.Compare(clientv3.ModRevision(restoreKey), "=", j.claim),
		clientv3.Compare(clientv3.ModRevision(pointerKey), "=", j.old.mod),
	}
}

// add queues one write of the new generation.
func (j *restore) add(ctx context.Context, op clientv3.Op) error {
	j.ops = append(j.ops, op)
	j.bytes += len(op.KeyBytes()) + len(op.ValueBytes())
	if len(j.ops) < chunkOps && j.bytes < chunkBytes {
		return nil
	}
	return j.flush(ctx)
}

func (j *restore) put(ctx context.Context, key, value string) error {
	return j.add(ctx, clientv3.OpPut(j.prefix()+key, value))
}

// flush writes what is queued.
func (j *restore) flush(ctx context.Context) error {
	if len(j.ops) == 0 {
		return nil
	}
	resp, err := j.step(ctx, j.guard(), j.ops)
	if err != nil {
		return fmt.Errorf("write generation %s: %w", j.name, err)
	}
	if !resp.Succeeded {
		return fmt.Errorf("write generation %s: the claim is lost: %w", j.name, ErrRestoring)
	}
	clear(j.ops)
	j.ops, j.bytes = j.ops[:0], 0
	return nil
}

// step commits one transaction, which may be applied more than once.
func (j *restore) step(ctx context.Context, ifs []clientv3.Cmp, then []clientv3.Op) (resp *clientv3.TxnResponse, err error) {
	for range stepTries {
		try, cancel := context.WithTimeout(ctx, stepLimit)
		resp, err = j.cli.Txn(try).If(ifs...).Then(then...).Commit()
		cancel()
		switch {
		case err == nil:
			return resp, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case refused(err):
			return nil, classify(err)
		}
		pause(ctx, retryPause)
	}
	return nil, readError(ctx, err)
}

// revive gives every session with a TTL a mark on a lease of its own. It also
// returns the leases that it granted before it failed.
func (j *restore) revive(ctx context.Context) (leases []int64, err error) {
	for some := range slices.Chunk(j.sessions, chunkOps/2) {
		granted := make([]int64, len(some))
		g, within := errgroup.WithContext(ctx)
		g.SetLimit(parallelLeases)
		for i := range some {
			g.Go(func() (err error) {
				granted[i], err = j.store.GrantLease(within, aliveFactor*some[i].TTL)
				return err
			})
		}
		err := g.Wait()
		leases = append(leases, granted...)
		if err != nil {
			return leases, err
		}
		for i := range some {
			value, err := Encode(model.Alive{Session: some[i].ID, Lease: granted[i], Stamp: model.Stamp{Owner: model.OwnerServers}})
			if err != nil {
				return leases, err
			}
			put := clientv3.OpPut(j.prefix()+AliveKey(some[i].ID), string(value), clientv3.WithLease(clientv3.LeaseID(granted[i])))
			if err := j.add(ctx, put); err != nil {
				return leases, err
			}
		}
	}
	return leases, j.flush(ctx)
}

// drop gives up the leases of a restore that has failed.
func (j *restore) drop(ctx context.Context, leases []int64) {
	var g errgroup.Group
	g.SetLimit(parallelLeases)
	for _, lease := range leases {
		if lease != 0 {
			g.Go(func() error { return j.store.RevokeLease(ctx, lease) })
		}
	}
	if err := g.Wait(); err != nil { // they run out by themselves
		j.store.cfg.Log.Warn("give up the leases of a restore that failed", "error", err)
	}
}

// renew starts the sessions' time anew, since it has run since they were revived.
func (j *restore) renew(ctx context.Context, leases []int64) {
	var g errgroup.Group
	g.SetLimit(parallelLeases)
	for _, lease := range leases {
		g.Go(func() error { return j.store.RenewLease(ctx, lease) })
	}
	if err := g.Wait(); err != nil {
		j.store.cfg.Log.Warn("renew the sessions of a restored snapshot", "error", err)
	}
}

// finish brings what hosts do right now into the new generation and puts it in
// force, on the condition that this has not changed meanwhile.
func (j *restore) finish(ctx context.Context) (model.Index, error) {
	for range flipRounds {
		if err := j.look(ctx); err != nil {
			return 0, err
		}
		if err := j.carry(ctx); err != nil {
			return 0, err
		}
		if hook := j.store.beforeFlip; hook != nil {
			hook()
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		at, err := j.flip(ctx)
		if at != 0 || err != nil {
			return at, err
		}
		resp, err := j.step(ctx, j.guard(), nil)
		if err != nil {
			return 0, err
		}
		if !resp.Succeeded {
			return 0, fmt.Errorf("put generation %s in force: the claim is lost: %w", j.name, ErrRestoring)
		}
	}
	return 0, errors.New("networks and endpoints keep changing; try again later")
}

// flip points at the new generation. It returns 0 if hosts have changed.
func (j *restore) flip(ctx context.Context) (model.Index, error) {
	ifs := append(j.guard(), j.present.unchanged(j.old.prefix())...)
	then := []clientv3.Op{clientv3.OpPut(pointerKey, j.name)}
	// From here on it is too late to turn back: the outcome must be known.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepTries*stepLimit)
	defer cancel()
	resp, err := j.step(ctx, ifs, then)
	if err == nil && resp.Succeeded {
		return model.Index(resp.Header.Revision), nil
	}
	// An earlier try may have come through, its answer lost.
	read, rerr := j.cli.Get(ctx, pointerKey)
	switch {
	case rerr != nil:
		return 0, unknown(errors.Join(err, rerr))
	case len(read.Kvs) == 1 && string(read.Kvs[0].Value) == j.name:
		return model.Index(read.Kvs[0].ModRevision), nil
	case len(read.Kvs) != 1 || read.Kvs[0].ModRevision != j.old.mod:
		return 0, fmt.Errorf("put generation %s in force: the claim is lost: %w", j.name, ErrRestoring)
	}
	return 0, err
}
