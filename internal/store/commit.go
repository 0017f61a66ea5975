package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/fairlead-net/fairlead/internal/model"
)

const (
	// attemptLimit is how long one proposal is waited for before the same batch
	// is proposed again: a proposal that dies with the leader never answers.
	attemptLimit = time.Second
	// outcomeLimit is how long after its first proposal a batch may be without
	// an answer.
	outcomeLimit = 5 * time.Second
	// retryPause keeps a server that refuses at once from being asked in a loop.
	retryPause = 20 * time.Millisecond
)

// generation is the set of keys that is in force, as the pointer key names it.
type generation struct {
	name string
	mod  int64 // revision of the pointer key
}

func (g *generation) prefix() string { return generationPrefix(g.name) }

// proposeFunc sends one etcd transaction. Tests put a lossy one in its place.
type proposeFunc func(ctx context.Context, ifs []clientv3.Cmp, then, els []clientv3.Op) (*clientv3.TxnResponse, error)

// committer turns the queue into batches and proposes them, one at a time. Its
// fields belong to the one goroutine that calls run, the atomics excepted.
type committer struct {
	queue   *queue
	kv      clientv3.KV
	propose proposeFunc
	gen     *atomic.Pointer[generation]
	stats   *counters
	key     string // of the batch marker
	// prev is the marker's value as last seen; nil if there is none yet. A marker
	// is the id of the run that wrote it, then the number of the batch in it.
	prev []byte
	run  [8]byte
	seq  uint64
	// settled is the newest revision that no unanswered batch needs to look
	// behind.
	settled atomic.Int64
	// under is held while a batch is under way, and by what must not meet one.
	under sync.Mutex
}

func newCommitter(q *queue, kv clientv3.KV, server string, gen *atomic.Pointer[generation], stats *counters) *committer {
	c := &committer{queue: q, kv: kv, gen: gen, stats: stats, key: batchKey(server)}
	c.propose = func(ctx context.Context, ifs []clientv3.Cmp, then, els []clientv3.Op) (*clientv3.TxnResponse, error) {
		return kv.Txn(ctx).If(ifs...).Then(then...).Else(els...).Commit()
	}
	_, _ = rand.Read(c.run[:]) // never fails
	return c
}

// load reads the marker that an earlier run left.
func (c *committer) load(ctx context.Context) error {
	resp, err := c.kv.Get(ctx, c.key)
	if err != nil {
		return fmt.Errorf("read the batch marker: %w", err)
	}
	if len(resp.Kvs) > 0 {
		c.prev = resp.Kvs[0].Value
	}
	c.settled.Store(resp.Header.Revision)
	return nil
}

// loop commits batches until ctx ends. A batch under way is given the time of
// one attempt to finish.
func (c *committer) loop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.queue.wake:
		}
		for ctx.Err() == nil {
			// Let those whom the batch before answered queue up again, or they
			// would always miss the next one.
			runtime.Gosched()
			batch, conflicts := c.queue.take()
			if len(batch) == 0 {
				break
			}
			c.stats.conflicts.Add(uint64(conflicts))
			c.commit(ctx, batch)
		}
	}
}

// commit sees one batch through: every transaction in it gets its outcome.
func (c *committer) commit(ctx context.Context, batch []*op) {
	c.under.Lock()
	defer c.under.Unlock()
	c.stats.batches.Add(1)
	c.stats.ops.Add(uint64(len(batch)))
	err := c.settle(ctx, batch)
	if err == nil {
		return
	}
	if refused(err) && len(batch) > 1 {
		// One of them is to blame: let each stand for itself.
		c.stats.splits.Add(1)
		for _, o := range batch {
			if err := c.settle(ctx, []*op{o}); err != nil {
				o.fail(err)
			}
		}
		return
	}
	for _, o := range batch {
		o.fail(err)
	}
}

// catchUp settles what others wrote up to a revision that has been seen: while no
// batch is under way, the next one will look behind newer ones only.
func (c *committer) catchUp(rev int64) {
	if c.under.TryLock() {
		defer c.under.Unlock()
		c.settled.Store(max(c.settled.Load(), rev))
	}
}

// settle proposes a batch until it is known whether it was applied, and tells
// each transaction. After an error it has told none.
func (c *committer) settle(ctx context.Context, batch []*op) error {
	c.seq++
	mine := binary.BigEndian.AppendUint64(bytes.Clone(c.run[:]), c.seq)
	deadline := time.Now().Add(outcomeLimit)
	met := 0        // how often the outer compare failed
	var maybe error // why an earlier proposal may yet be, or have been, applied
	for {
		gen := c.gen.Load()
		resp, err := c.attempt(ctx, gen, mine, batch)
		switch {
		case err == nil && resp.Succeeded:
			c.prev = mine
			c.answer(batch, resp)
			return nil
		case err == nil:
			applied, err := c.examine(resp, gen, mine, maybe != nil)
			if err != nil {
				return err
			}
			if applied > 0 {
				c.prev = mine
				return c.readBack(ctx, batch, applied, deadline)
			}
			if time.Now().Before(deadline) && ctx.Err() == nil {
				// Not applied, and what stood in the way is known now. It stands
				// there again only if somebody else keeps putting it there.
				if met++; met > 1 {
					pause(ctx, retryPause)
				}
				continue
			}
			return fmt.Errorf("%w: another process writes the batch marker %s", ErrNoLeader, c.key)
		case refused(err) && maybe == nil:
			return classify(err)
		case !unapplied(err) && !refused(err):
			maybe = err
		}
		c.stats.retries.Add(1)
		if time.Now().After(deadline) || ctx.Err() != nil {
			if maybe != nil {
				return unknown(maybe)
			}
			return fmt.Errorf("%w: %w", ErrNoLeader, err)
		}
		pause(ctx, retryPause)
	}
}

// attempt proposes the batch once. It is not cut short by the end of ctx, so
// that a stop in good order does not leave outcomes unknown.
func (c *committer) attempt(ctx context.Context, gen *generation, mine []byte, batch []*op) (*clientv3.TxnResponse, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), attemptLimit)
	defer cancel()
	unchanged := clientv3.Compare(clientv3.CreateRevision(c.key), "=", 0)
	if c.prev != nil {
		unchanged = clientv3.Compare(clientv3.Value(c.key), "=", string(c.prev))
	}
	ifs := []clientv3.Cmp{unchanged, clientv3.Compare(clientv3.ModRevision(pointerKey), "=", gen.mod)}
	then := make([]clientv3.Op, 1, 1+len(batch))
	then[0] = clientv3.OpPut(c.key, string(mine))
	prefix := gen.prefix()
	for _, o := range batch {
		if o.txn.blind() {
			// Nothing can refuse it, so it needs no transaction of its own, which
			// costs etcd as much again as the write in it.
			then = appendWrites(then, prefix, &o.txn)
		} else {
			then = append(then, clientv3.OpTxn(compares(prefix, &o.txn), appendWrites(nil, prefix, &o.txn), nil))
		}
	}
	els := []clientv3.Op{clientv3.OpGet(c.key), clientv3.OpGet(pointerKey)}
	return c.propose(ctx, ifs, then, els)
}

// answer hands out the outcomes of a batch that was applied just now.
func (c *committer) answer(batch []*op, resp *clientv3.TxnResponse) {
	at := model.Index(resp.Header.Revision)
	c.settled.Store(resp.Header.Revision)
	next := 1 // behind the marker's
	for _, o := range batch {
		if o.txn.blind() {
			next += o.txn.ops()
			o.finish(true, at)
			continue
		}
		ok := resp.Responses[next].GetResponseTxn().Succeeded
		next++
		if !ok {
			c.stats.refusals.Add(1)
		}
		o.finish(ok, at)
	}
}

// examine finds out why a batch's outer compare failed. It returns the revision
// at which an earlier copy of the batch was applied; 0 if none was, in which
// case prev and generation are up to date now.
func (c *committer) examine(resp *clientv3.TxnResponse, gen *generation, mine []byte, proposed bool) (int64, error) {
	marker, pointer := resp.Responses[0].GetResponseRange().Kvs, resp.Responses[1].GetResponseRange().Kvs
	if len(pointer) == 0 {
		return 0, errors.New("the generation pointer is gone")
	}
	if p := pointer[0]; p.ModRevision > gen.mod {
		c.gen.CompareAndSwap(gen, &generation{name: string(p.Value), mod: p.ModRevision})
	}
	if len(marker) == 0 {
		c.prev = nil
		return 0, nil
	}
	seen := marker[0].Value
	switch {
	case bytes.Equal(seen, mine):
		return marker[0].ModRevision, nil
	case bytes.Equal(seen, c.prev):
	case bytes.HasPrefix(seen, c.run[:]), !proposed:
		// A batch of ours whose outcome was unknown came through after all, or
		// one of the run before.
	default:
		return 0, unknown(errors.New("another process writes this server's batch marker"))
	}
	c.prev = seen
	return 0, nil
}

// readBack finds the outcomes of a batch that was applied at revision at and
// whose answer was lost. The sets of its transactions do not meet, so each was
// decided by what its compares say of the revision before.
func (c *committer) readBack(ctx context.Context, batch []*op, at int64, deadline time.Time) error {
	c.stats.readbacks.Add(1)
	for {
		held, err := c.heldBefore(ctx, batch, at)
		if err == nil {
			c.settled.Store(at)
			for i, o := range batch {
				o.finish(held[i], model.Index(at))
			}
			return nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return unknown(fmt.Errorf("read back revision %d: %w", at, err))
		}
		pause(ctx, retryPause)
	}
}

// heldBefore reports for each transaction of a batch whether its compares held
// when the batch was applied at revision at.
func (c *committer) heldBefore(ctx context.Context, batch []*op, at int64) ([]bool, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), attemptLimit)
	defer cancel()
	// The copy that was applied may be from before a change of generation.
	pointer, err := c.kv.Get(ctx, pointerKey, clientv3.WithRev(at-1), clientv3.WithSerializable())
	if err != nil {
		return nil, err
	}
	if len(pointer.Kvs) == 0 {
		return nil, errors.New("there was no generation pointer")
	}
	prefix := generationPrefix(string(pointer.Kvs[0].Value))
	held := make([]bool, len(batch))
	for i, o := range batch {
		if held[i], err = c.heldAt(ctx, prefix, &o.txn, at-1); err != nil {
			return nil, err
		}
	}
	return held, nil
}

// heldAt reports whether all compares of t held at a revision.
func (c *committer) heldAt(ctx context.Context, prefix string, t *Txn, rev int64) (bool, error) {
	for _, cmp := range t.Compares {
		opts := []clientv3.OpOption{clientv3.WithRev(rev), clientv3.WithSerializable(), clientv3.WithKeysOnly()}
		if cmp.Prefix {
			opts = append(opts, clientv3.WithPrefix(), clientv3.WithMinModRev(int64(cmp.ModIndex)+1))
		}
		resp, err := c.kv.Get(ctx, prefix+cmp.Key, opts...)
		if err != nil {
			return false, err
		}
		var mod model.Index
		if len(resp.Kvs) > 0 {
			mod = model.Index(resp.Kvs[0].ModRevision)
		}
		if cmp.Prefix && mod != 0 || !cmp.Prefix && mod != cmp.ModIndex {
			return false, nil
		}
	}
	return true, nil
}

// compareOnly evaluates a transaction that writes nothing. It needs no batch and
// leaves no revision behind.
func (c *committer) compareOnly(ctx context.Context, t *Txn) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, outcomeLimit)
	defer cancel()
	for {
		gen := c.gen.Load()
		ifs := append(compares(gen.prefix(), t), clientv3.Compare(clientv3.ModRevision(pointerKey), "=", gen.mod))
		resp, err := c.kv.Txn(ctx).If(ifs...).Else(clientv3.OpGet(pointerKey)).Commit()
		if err != nil {
			return Result{}, readError(ctx, err)
		}
		if !resp.Succeeded {
			kvs := resp.Responses[0].GetResponseRange().Kvs
			if len(kvs) > 0 && kvs[0].ModRevision > gen.mod {
				c.gen.CompareAndSwap(gen, &generation{name: string(kvs[0].Value), mod: kvs[0].ModRevision})
				continue
			}
		}
		return Result{OK: resp.Succeeded, Index: model.Index(resp.Header.Revision)}, nil
	}
}

func compares(prefix string, t *Txn) []clientv3.Cmp {
	cmps := make([]clientv3.Cmp, 0, len(t.Compares)+1)
	for _, c := range t.Compares {
		mod := clientv3.ModRevision(prefix + c.Key)
		if c.Prefix {
			cmps = append(cmps, clientv3.Compare(mod, "<", int64(c.ModIndex)+1).WithPrefix())
		} else {
			cmps = append(cmps, clientv3.Compare(mod, "=", int64(c.ModIndex)))
		}
	}
	return cmps
}

func appendWrites(ops []clientv3.Op, prefix string, t *Txn) []clientv3.Op {
	ops = slices.Grow(ops, len(t.Puts)+len(t.Deletes)+len(t.DeletePrefixes))
	for _, k := range t.Deletes {
		ops = append(ops, clientv3.OpDelete(prefix+k))
	}
	for _, k := range t.DeletePrefixes {
		ops = append(ops, clientv3.OpDelete(prefix+k, clientv3.WithPrefix()))
	}
	for _, p := range t.Puts {
		ops = append(ops, clientv3.OpPut(prefix+p.Key, string(p.Value)))
	}
	return ops
}

// refused reports whether etcd turned a transaction down without proposing it.
func refused(err error) bool {
	return errors.Is(err, rpctypes.ErrTooManyOps) || errors.Is(err, rpctypes.ErrRequestTooLarge) ||
		errors.Is(err, rpctypes.ErrDuplicateKey) || errors.Is(err, rpctypes.ErrNoSpace) ||
		errors.Is(err, rpctypes.ErrEmptyKey) || errors.Is(err, ErrTooLarge) ||
		errors.Is(err, ErrInvalidTxn) || errors.Is(err, ErrNoSpace)
}

// unapplied reports whether an error says that the transaction was not proposed,
// and may be tried again.
func unapplied(err error) bool {
	return errors.Is(err, rpctypes.ErrTooManyRequests) || errors.Is(err, rpctypes.ErrNoLeader) ||
		strings.Contains(err.Error(), "raft proposal dropped")
}

// classify turns etcd's refusals into ours.
func classify(err error) error {
	switch {
	case errors.Is(err, rpctypes.ErrTooManyOps), errors.Is(err, rpctypes.ErrRequestTooLarge):
		return fmt.Errorf("%w: %w", ErrTooLarge, err)
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return fmt.Errorf("%w: %w", ErrInvalidTxn, err)
}

func unknown(cause error) error { return fmt.Errorf("%w: %w", ErrUnknownOutcome, cause) }

// readError is the error of a linearizable read: the caller's own end, or that
// no leader answers.
func readError(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	if errors.Is(err, rpctypes.ErrStopped) || errors.Is(err, context.Canceled) {
		return ErrClosed
	}
	return fmt.Errorf("%w: %w", ErrNoLeader, err)
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
