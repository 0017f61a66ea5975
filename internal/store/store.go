package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"golang.org/x/sync/errgroup"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// compactEvery is how often old revisions are dropped, and how old they are then
// at least.
const compactEvery = 30 * time.Second

// Applier is what the store changes: the server's state. Only the store's one
// follower calls it, with revisions that rise.
type Applier interface {
	// Apply publishes the changes of one revision; none for a revision that
	// changed no record.
	Apply(rev model.Index, changes []state.Change)
	// Reset replaces everything by the content as of rev.
	Reset(rev model.Index, records []state.Change)
}

var _ Applier = (*state.State)(nil)

// Config says where a store keeps its data and what it is called.
type Config struct {
	// Dir is the data directory, used by one process at a time. Empty means a
	// temporary one without fsync that goes with the store.
	Dir string
	// Temp is where a temporary one is made; empty means the system's place.
	Temp string
	// Name is the server's, unique in the cluster and the same after a restart.
	Name string
	// Site and Version, the program's, are noted in archives.
	Site, Version string
	// VIPPools are where the site's VIPs lie: a VIP outside of them is not
	// restored. None means that all are.
	VIPPools []netip.Prefix
	// Cluster is set for a server that has others beside it, or may have.
	Cluster *Cluster
	Log     *slog.Logger
}

// Store is the replicated log of one server.
type Store struct {
	cfg   Config
	state Applier
	queue *queue
	stats counters
	pins  pins
	room  room
	gen   atomic.Pointer[generation]
	// up closes when running is set, ended when Run has returned.
	up, ended chan struct{}
	running   atomic.Pointer[running]

	restoring atomic.Bool   // one Restore at a time
	litter    chan struct{} // holds one: there may be generations to remove

	compactEvery time.Duration
	defragAbove  int64        // free bytes in the database
	compacted    atomic.Int64 // the revision behind which none can be read any more
	// prepare changes the parts of a running store before they are used, and
	// beforeFlip runs each time that a restored generation is complete; tests
	// set them.
	prepare    func(*running)
	beforeFlip func()
}

// running is what exists while the store runs.
type running struct {
	server *server
	cli    *clientv3.Client
	commit *committer
	follow *follower
	dir    string // the data directory
}

// New returns a store that will keep st up to date. It starts nothing.
func New(cfg Config, st Applier) *Store {
	s := &Store{
		cfg: cfg, state: st, queue: newQueue(), compactEvery: compactEvery, litter: make(chan struct{}, 1),
		defragAbove: defragBytes, room: room{quota: quotaBytes, free: freeBytes},
		up: make(chan struct{}), ended: make(chan struct{}),
	}
	s.room.diskFree.Store(diskUnknown)
	return s
}

// Run claims the data directory, starts etcd, loads state, calls ready and then
// commits and follows until ctx ends (nil) or etcd fails. ErrLocked and ErrDir
// say what is wrong with the directory. A store runs once.
func (s *Store) Run(ctx context.Context, ready func()) (err error) {
	defer close(s.ended)
	defer s.queue.close()
	dir, err := openDir(s.cfg.Dir, s.cfg.Temp)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.release()) }()
	srv, err := startServer(ctx, dir.dir, s.cfg)
	if err != nil {
		return orStopped(ctx, err)
	}
	defer srv.Close()
	cli := v3client.New(srv.Server)
	defer cli.Close()

	s.room.dir = dir.dir
	if err := disarm(ctx, cli); err != nil {
		return orStopped(ctx, err)
	}
	r := &running{server: srv, cli: cli, dir: dir.dir}
	r.commit = newCommitter(s.queue, cli.KV, s.cfg.Name, &s.gen, &s.stats)
	r.follow = &follower{cli: cli, state: s.state, log: s.cfg.Log, gen: &s.gen, stats: &s.stats}
	if s.prepare != nil {
		s.prepare(r)
	}
	if err := r.follow.load(ctx); err != nil {
		return orStopped(ctx, fmt.Errorf("load state: %w", err))
	}
	if err := r.commit.load(ctx); err != nil {
		return orStopped(ctx, err)
	}
	if err := s.abandon(ctx, cli); err != nil {
		return orStopped(ctx, err)
	}
	s.lookForRoom(r)
	s.running.Store(r)
	defer s.running.Store(nil)
	close(s.up)
	ready()

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.commit.loop(ctx) })
	g.Go(func() error { return r.follow.loop(ctx) })
	g.Go(func() error { return s.keepRoom(ctx, r) })
	g.Go(func() error { return s.sweep(ctx, r) })
	g.Go(func() error { return srv.watchOver(ctx) })
	return g.Wait()
}

// orStopped is nil if ctx has ended, which is no error of the store's, else err.
func orStopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Commit writes t if its compares hold. It returns when the outcome is known: OK
// false is a refusal, an error that is not ErrUnknownOutcome means that nothing
// was written. Transactions that wait together are committed together. Before
// Run is ready Commit waits.
func (s *Store) Commit(ctx context.Context, t Txn) (Result, error) {
	if err := t.check(); err != nil {
		return Result{}, err
	}
	if t.writes() {
		if err := s.room.admit(&t); err != nil {
			return Result{}, err
		}
		return s.queue.do(ctx, t)
	}
	r, err := s.run(ctx)
	if err != nil {
		return Result{}, err
	}
	return r.commit.compareOnly(ctx, &t)
}

// ReadIndex returns an index that every write confirmed before the call has; a
// snapshot that reaches it answers a consistent read. It fails with ErrNoLeader
// when the servers cannot tell.
func (s *Store) ReadIndex(ctx context.Context) (model.Index, error) {
	r, err := s.run(ctx)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, outcomeLimit)
	defer cancel()
	resp, err := r.cli.Get(ctx, pointerKey, clientv3.WithCountOnly())
	if err != nil {
		return 0, readError(ctx, err)
	}
	return model.Index(resp.Header.Revision), nil
}

// run waits until the store is ready.
func (s *Store) run(ctx context.Context) (*running, error) {
	select {
	case <-s.up:
	case <-s.ended:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if r := s.running.Load(); r != nil {
		return r, nil
	}
	return nil, ErrClosed
}
