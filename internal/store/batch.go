package store

import (
	"context"
	"strings"
	"sync"

	"github.com/fairlead-net/fairlead/internal/model"
)

// Limits of one batch, which is one etcd transaction.
const (
	maxBatchTxns = 4096
	maxBatchOps  = 8192
)

// op is one transaction on its way through the queue.
type op struct {
	txn  Txn
	done chan outcome // holds one
	// taken and gone are guarded by the queue's mutex: in a batch, and left by
	// its caller.
	taken, gone bool
}

type outcome struct {
	res Result
	err error
}

func (o *op) finish(ok bool, at model.Index) { o.done <- outcome{res: Result{OK: ok, Index: at}} }
func (o *op) fail(err error)                 { o.done <- outcome{err: err} }

// queue holds the transactions that wait for the next batch, oldest first.
type queue struct {
	wake chan struct{} // holds one; a token says that there may be work

	mu     sync.Mutex // guards following
	ops    []*op
	closed bool
}

func newQueue() *queue { return &queue{wake: make(chan struct{}, 1)} }

// do queues a transaction and waits for its outcome. When ctx ends first, the
// transaction is withdrawn, or, if it is in a batch already, its outcome is
// unknown.
func (q *queue) do(ctx context.Context, t Txn) (Result, error) {
	o := &op{txn: t, done: make(chan outcome, 1)}
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return Result{}, ErrClosed
	}
	q.ops = append(q.ops, o)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
	select {
	case out := <-o.done:
		return out.res, out.err
	case <-ctx.Done():
	}
	q.mu.Lock()
	o.gone = true
	taken := o.taken
	q.mu.Unlock()
	if !taken {
		return Result{}, ctx.Err()
	}
	select {
	case out := <-o.done:
		return out.res, out.err
	default:
		return Result{}, unknown(ctx.Err())
	}
}

// take removes the next batch from the queue: the oldest transaction and, in
// order, all others that fit and whose sets do not meet those already in it. It
// also returns how many were left for a later batch because theirs did.
func (q *queue) take() (batch []*op, conflicts int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	var sets keySets
	var bytes, ops int
	rest := q.ops[:0]
	for i, o := range q.ops {
		if o.gone {
			continue
		}
		if len(batch) == maxBatchTxns {
			rest = append(rest, q.ops[i:]...)
			break
		}
		size, n := o.txn.size(), o.txn.ops()
		if len(batch) > 0 && (bytes+size > MaxTxnBytes || ops+n > maxBatchOps) {
			rest = append(rest, q.ops[i:]...)
			break
		}
		if len(batch) > 0 && sets.meet(&o.txn) {
			conflicts++
			rest = append(rest, o)
			continue
		}
		sets.add(&o.txn)
		bytes, ops = bytes+size, ops+n
		o.taken = true
		batch = append(batch, o)
	}
	clear(q.ops[len(rest):])
	q.ops = rest
	return batch, conflicts
}

// close refuses what waits and what comes.
func (q *queue) close() {
	q.mu.Lock()
	ops := q.ops
	q.ops, q.closed = nil, true
	q.mu.Unlock()
	for _, o := range ops {
		o.fail(ErrClosed)
	}
}

// keySets are the read and write sets of the transactions of one batch.
type keySets struct {
	reads, writes           map[string]struct{}
	readRanges, writeRanges []string // prefixes
}

func (s *keySets) add(t *Txn) {
	if s.reads == nil {
		s.reads, s.writes = map[string]struct{}{}, map[string]struct{}{}
	}
	for _, c := range t.Compares {
		if c.Prefix {
			s.readRanges = append(s.readRanges, c.Key)
		} else {
			s.reads[c.Key] = struct{}{}
		}
	}
	for _, k := range t.Reads {
		s.reads[k] = struct{}{}
	}
	s.readRanges = append(s.readRanges, t.ReadPrefixes...)
	for _, p := range t.Puts {
		s.writes[p.Key] = struct{}{}
	}
	for _, k := range t.Deletes {
		s.writes[k] = struct{}{}
	}
	s.writeRanges = append(s.writeRanges, t.DeletePrefixes...)
}

// meet reports whether t writes what the batch reads or writes, or reads what it
// writes.
func (s *keySets) meet(t *Txn) bool {
	for _, c := range t.Compares {
		if c.Prefix && s.rangeMeetsWrites(c.Key) || !c.Prefix && s.writesKey(c.Key) {
			return true
		}
	}
	for _, k := range t.Reads {
		if s.writesKey(k) {
			return true
		}
	}
	for _, p := range t.ReadPrefixes {
		if s.rangeMeetsWrites(p) {
			return true
		}
	}
	for _, p := range t.Puts {
		if s.writesKey(p.Key) || s.readsKey(p.Key) {
			return true
		}
	}
	for _, k := range t.Deletes {
		if s.writesKey(k) || s.readsKey(k) {
			return true
		}
	}
	for _, p := range t.DeletePrefixes {
		if s.rangeMeetsWrites(p) || anyUnder(s.reads, p) || anyOverlap(s.readRanges, p) {
			return true
		}
	}
	return false
}

func (s *keySets) writesKey(k string) bool {
	_, point := s.writes[k]
	return point || anyCovers(s.writeRanges, k)
}

func (s *keySets) readsKey(k string) bool {
	_, point := s.reads[k]
	return point || anyCovers(s.readRanges, k)
}

func (s *keySets) rangeMeetsWrites(p string) bool {
	return anyUnder(s.writes, p) || anyOverlap(s.writeRanges, p)
}

func anyCovers(prefixes []string, k string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(k, p) {
			return true
		}
	}
	return false
}

func anyUnder(keys map[string]struct{}, prefix string) bool {
	for k := range keys {
		if strings.HasPrefix(k, prefix) {
			return true
		}
	}
	return false
}

func anyOverlap(prefixes []string, p string) bool {
	for _, q := range prefixes {
		if strings.HasPrefix(p, q) || strings.HasPrefix(q, p) {
			return true
		}
	}
	return false
}
