package store

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	clientv3 "go.etcd.io/etcd/client/v3"
)

var errLost = errors.New("etcdserver: request timed out")

// lossy puts f around a committer's way to etcd.
func lossy(f func(next proposeFunc) proposeFunc) func(*Store) {
	return func(s *Store) {
		s.prepare = func(r *running) { r.commit.propose = f(r.commit.propose) }
	}
}

// loseReplies applies the proposals whose number lose holds for and answers
// with an error.
func loseReplies(lose func(n int64) bool) func(*Store) {
	var n atomic.Int64
	return lossy(func(next proposeFunc) proposeFunc {
		return func(ctx context.Context, ifs []clientv3.Cmp, then, els []clientv3.Op) (*clientv3.TxnResponse, error) {
			resp, err := next(ctx, ifs, then, els)
			if lose(n.Add(1)) {
				return nil, errLost
			}
			return resp, err
		}
	})
}

func TestLostRepliesAreReadBack(t *testing.T) {
	n := startStore(t, "", loseReplies(func(i int64) bool { return i%2 == 1 }))
	idx := n.must(t, put("a", "1"), true)
	if kv := n.st.at(t, idx)["a"]; kv.ModifyIndex != idx || kv.CreateIndex != idx {
		t.Errorf("applied twice or elsewhere: %+v, index %d", kv, idx)
	}
	create := put("a", "2")
	create.Compares = []Compare{absent("a")}
	if at := n.must(t, create, false); at <= idx {
		t.Errorf("refused at %d", at)
	}
	// What leaves no key behind has an outcome too.
	n.must(t, Txn{Compares: []Compare{{Key: KVPrefix("a"), ModIndex: idx - 1, Prefix: true}}, Deletes: []string{KVKey("a")}}, false)
	gone := n.must(t, Txn{Compares: []Compare{{Key: KVKey("a"), ModIndex: idx}, {Key: KVPrefix("b"), Prefix: true}}, Deletes: []string{KVKey("a")}}, true)
	if kv := n.st.at(t, gone); len(kv) != 0 {
		t.Errorf("left: %v", kv)
	}
	if st := n.Status().Stats; st.Readbacks != 4 || st.Retries != 4 {
		t.Errorf("%+v", st)
	}
}

// Counters raised by compare-and-set show every double application and every
// success that was none.
func TestCountersUnderLoss(t *testing.T) {
	var i atomic.Int64
	n := startStore(t, "", loseReplies(func(int64) bool { return i.Add(1)%3 == 0 }))
	const writers, rounds = 8, 30
	var wg sync.WaitGroup
	var raised [writers]int
	for w := range writers {
		wg.Go(func() {
			key := fmt.Sprint("counter", w%4) // two writers each
			for range rounds {
				n.st.mu.Lock()
				now := n.st.kv[key]
				n.st.mu.Unlock()
				txn := put(key, string(now.Value)+"x")
				txn.Compares = []Compare{{Key: KVKey(key), ModIndex: now.ModifyIndex}}
				res, err := n.Commit(t.Context(), txn)
				if err != nil {
					t.Errorf("Commit: %v", err)
					return
				}
				if res.OK {
					raised[w]++
				}
				n.st.at(t, res.Index)
			}
		})
	}
	wg.Wait()
	kv := n.st.at(t, n.Status().Index)
	for c := range 4 {
		if want, got := raised[c]+raised[c+4], len(kv[fmt.Sprint("counter", c)].Value); got != want {
			t.Errorf("counter %d is %d after %d successes", c, got, want)
		}
	}
	t.Logf("%+v", n.Status().Stats)
}

func TestGenerationFlipsWhileAReplyIsLost(t *testing.T) {
	var flipped atomic.Bool
	var n *node
	n = startStore(t, "", lossy(func(next proposeFunc) proposeFunc {
		return func(ctx context.Context, ifs []clientv3.Cmp, then, els []clientv3.Op) (*clientv3.TxnResponse, error) {
			resp, err := next(ctx, ifs, then, els)
			if flipped.CompareAndSwap(false, true) {
				if _, err := n.running.Load().cli.Put(ctx, pointerKey, "2"); err != nil {
					t.Error(err)
				}
				return nil, errLost
			}
			return resp, err
		}
	}))
	create := put("a", "1")
	create.Compares = []Compare{absent("a")}
	idx := n.must(t, create, true) // it was, in the generation of its time
	if kv := n.st.at(t, idx+1); len(kv) != 0 {
		t.Errorf("the new generation has %v", kv)
	}
	n.must(t, create, true)
}

func TestNeverAppliedIsNotUnknown(t *testing.T) {
	n := startStore(t, "", func(s *Store) {
		var i atomic.Int64
		s.prepare = func(r *running) {
			next := r.commit.propose
			r.commit.propose = func(ctx context.Context, ifs []clientv3.Cmp, then, els []clientv3.Op) (*clientv3.TxnResponse, error) {
				if i.Add(1) < 4 {
					return nil, errors.New("raft proposal dropped")
				}
				return next(ctx, ifs, then, els)
			}
		}
	})
	n.must(t, put("a", ""), true)
	if st := n.Status().Stats; st.Retries != 3 || st.Readbacks != 0 {
		t.Errorf("%+v", st)
	}
}

// With nothing but silence the outcome is unknown, and never a refusal.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, tt := range map[string]struct {
			err  error
			want error
		}{
			"no answer":    {errLost, ErrUnknownOutcome},
			"not proposed": {errors.New("raft proposal dropped"), ErrNoLeader},
		} {
			c := newCommitter(newQueue(), nil, "n1", new(atomic.Pointer[generation]), new(counters))
			c.gen.Store(&generation{name: "1", mod: 1})
			proposals := 0
			c.propose = func(context.Context, []clientv3.Cmp, []clientv3.Op, []clientv3.Op) (*clientv3.TxnResponse, error) {
				proposals++
				return nil, tt.err
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- c.loop(ctx) }()
			if _, err := c.queue.do(ctx, put("a", "")); !errors.Is(err, tt.want) {
				t.Errorf("%s: %v", name, err)
			}
			if proposals < 5 {
				t.Errorf("%s: proposed %d times", name, proposals)
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
}

// A batch whose outcome stayed unknown may be applied later, or never; the next
// one has to get by either way.
func TestUnknownOutcomeThatComesThrough(t *testing.T) {
	for _, late := range []bool{false, true} {
		t.Run(fmt.Sprint(late), func(t *testing.T) {
			n := startStore(t, "")
			r := n.running.Load()
			r.commit.seq++
			lost := append(append([]byte{}, r.commit.run[:]...), 0, 0, 0, 0, 0, 0, 0, byte(r.commit.seq))
			if late {
				if _, err := r.cli.Put(t.Context(), r.commit.key, string(lost)); err != nil {
					t.Fatal(err)
				}
			}
			idx := n.must(t, put("a", "1"), true)
			if kv := n.st.at(t, idx)["a"]; kv.ModifyIndex != idx {
				t.Errorf("%+v", kv)
			}
		})
	}
}

func TestForeignMarker(t *testing.T) {
	foreign := func(r *running) {
		if _, err := r.cli.Put(context.Background(), r.commit.key, "somebody else's"); err != nil {
			t.Error(err)
		}
	}
	t.Run("before the first proposal", func(t *testing.T) {
		n := startStore(t, "")
		foreign(n.running.Load())
		n.must(t, put("a", ""), true)
	})
	t.Run("after one", func(t *testing.T) {
		var n *node
		var did atomic.Bool
		n = startStore(t, "", lossy(func(next proposeFunc) proposeFunc {
			return func(ctx context.Context, ifs []clientv3.Cmp, then, els []clientv3.Op) (*clientv3.TxnResponse, error) {
				if did.CompareAndSwap(false, true) {
					foreign(n.running.Load())
					return nil, errLost
				}
				return next(ctx, ifs, then, els)
			}
		}))
		if _, err := n.Commit(t.Context(), put("a", "")); !errors.Is(err, ErrUnknownOutcome) || !strings.Contains(err.Error(), "another process") {
			t.Errorf("Commit: %v", err)
		}
	})
}

// A batch that etcd refuses whole is taken apart, so that only the transactions
// to blame fail.
func TestRefusedBatchIsSplit(t *testing.T) {
	gate, waiting := make(chan struct{}), make(chan struct{})
	var once sync.Once
	n := startStore(t, "", lossy(func(next proposeFunc) proposeFunc {
		return func(ctx context.Context, ifs []clientv3.Cmp, then, els []clientv3.Op) (*clientv3.TxnResponse, error) {
			once.Do(func() { close(waiting); <-gate })
			// etcd itself refuses a key put twice: give it one.
			for _, op := range then[1:] {
				if op.IsPut() && strings.HasSuffix(string(op.KeyBytes()), "bad") {
					then = append(then, op)
				}
			}
			return next(ctx, ifs, then, els)
		}
	}))
	var wg sync.WaitGroup
	commit := func(key string, want error) {
		wg.Go(func() {
			res, err := n.Commit(t.Context(), put(key, ""))
			if !errors.Is(err, want) || err == nil && !res.OK {
				t.Errorf("%s: %+v, %v", key, res, err)
			}
		})
	}
	commit("first", nil)
	<-waiting
	for i := range 10 {
		commit(fmt.Sprint(i), nil)
	}
	commit("bad", ErrInvalidTxn)
	waitQueued(n.queue, 11)
	close(gate)
	wg.Wait()
	if st := n.Status().Stats; st.Splits != 1 {
		t.Errorf("%+v", st)
	}
}

func TestWithdrawnTransaction(t *testing.T) {
	gate, waiting := make(chan struct{}), make(chan struct{})
	var once sync.Once
	n := startStore(t, "", lossy(func(next proposeFunc) proposeFunc {
		return func(ctx context.Context, ifs []clientv3.Cmp, then, els []clientv3.Op) (*clientv3.TxnResponse, error) {
			once.Do(func() { close(waiting); <-gate })
			return next(ctx, ifs, then, els)
		}
	}))
	inFlight, queued := make(chan error, 1), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { _, err := n.Commit(ctx, put("in flight", "")); inFlight <- err }()
	<-waiting
	go func() { _, err := n.Commit(ctx, put("queued", "")); queued <- err }()
	waitQueued(n.queue, 1)
	cancel()
	if err := <-inFlight; !errors.Is(err, ErrUnknownOutcome) || !errors.Is(err, context.Canceled) {
		t.Errorf("in flight: %v", err)
	}
	if err := <-queued; errors.Is(err, ErrUnknownOutcome) || !errors.Is(err, context.Canceled) {
		t.Errorf("queued: %v", err)
	}
	close(gate)
	idx := n.must(t, put("after", ""), true)
	if kv := n.st.at(t, idx); len(kv) != 2 {
		t.Errorf("state shows %v", kv)
	}
}

// waitQueued returns when so many transactions wait in the queue.
func waitQueued(q *queue, want int) {
	for {
		q.mu.Lock()
		got := len(q.ops)
		q.mu.Unlock()
		if got >= want {
			return
		}
		runtime.Gosched()
	}
}
