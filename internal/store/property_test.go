package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/fairlead-net/fairlead/internal/model"
)

// Whatever transactions come at once, and whatever happens to the proposals of their batches, each has exactly the result that it
// would have had alone, in some order that agrees with the indexes it was told.
func TestEachSeesWhatItWouldHaveSeenAlone(t *testing.T) {
	for name, mishap := range map[string]func(*rand.Rand) func(*Store){
		"all goes well":          func(*rand.Rand) func(*Store) { return func(*Store) {} },
		"proposals meet mishaps": mishaps,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			n := startStore(t, "", mishap(source(seed, 0)), func(s *Store) { s.compactEvery = time.Hour })
			h := runHistory(t, n, seed)
			h.check(t, source(seed, 1))
			t.Logf("%d transactions, %d of them refused and %d without an answer; %+v", len(h.all), h.refused, h.unknown, n.Status().Stats)
			if st := n.Status().Stats; st.Conflicts == 0 || h.refused == 0 || name != "all goes well" && st.Readbacks == 0 {
				t.Error("too little happened; the test shows nothing")
			}
		})
	}
}

func source(seed, n uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, n)) } //nolint:gosec // not a secret

// mishaps loses proposals and answers, proposes twice and lets copies come late.
func mishaps(r *rand.Rand) func(*Store) {
	var mu sync.Mutex
	draw := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return r.IntN(n)
	}
	return lossy(func(next proposeFunc) proposeFunc {
		return func(ctx context.Context, ifs []clientv3.Cmp, then, els []clientv3.Op) (*clientv3.TxnResponse, error) {
			late := func(d time.Duration) { // it fails when the store has ended before
				time.AfterFunc(d, func() { _, _ = next(context.WithoutCancel(ctx), ifs, then, els) })
			}
			switch draw(12) {
			case 0: // the proposal is lost
				return nil, errLost
			case 1: // the answer is
				_, _ = next(ctx, ifs, then, els)
				return nil, errLost
			case 2: // it is applied while, or long after, the next copy is proposed
				late(time.Duration(draw(60)) * time.Millisecond)
				return nil, errLost
			case 3: // it is applied twice, and answered late
				_, _ = next(ctx, ifs, then, els)
			case 4: // a copy comes after later batches
				late(time.Duration(draw(20)) * time.Millisecond)
			case 5:
				return nil, errors.New("raft proposal dropped")
			}
			return next(ctx, ifs, then, els)
		}
	})
}

// call is one transaction and what its caller was told.
type call struct {
	id  int
	txn Txn
	res Result
	err error
}

// history is all that callers were told, and all that happened.
type history struct {
	all              []*call
	refused, unknown int
	// events are etcd's, by revision: key and value, or nil if it was deleted.
	events map[model.Index]map[string][]byte
	last   model.Index
}

// runHistory lets many writers loose on a few keys.
func runHistory(t *testing.T, n *node, seed uint64) *history {
	const writers, rounds = 24, 60
	var h history
	var mu sync.Mutex
	seen := map[string]model.Index{} // newest known revisions, so that compares may hold
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			r := source(seed, uint64(100+w))
			for i := range rounds {
				c := &call{id: w*rounds + i}
				mu.Lock()
				c.txn = randomTxn(r, c.id, seen, h.last)
				mu.Unlock()
				ctx, cancel := t.Context(), context.CancelFunc(func() {})
				// What nobody waits for must be found again: by what it puts.
				if len(c.txn.Puts) > 0 && r.IntN(6) == 0 {
					ctx, cancel = context.WithTimeout(ctx, time.Duration(r.IntN(3000))*time.Microsecond)
				}
				c.res, c.err = n.Commit(ctx, c.txn)
				cancel()
				mu.Lock()
				h.all = append(h.all, c)
				h.last = max(h.last, c.res.Index)
				for _, p := range c.txn.Puts {
					if c.err == nil && c.res.OK {
						seen[p.Key] = max(seen[p.Key], c.res.Index)
					}
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	h.last = n.must(t, put("the end", ""), true)
	h.watch(t, n)
	return &h
}

var propertyKeys = []string{"a", "a/b", "a/c", "a/c/d", "ab", "b", "b/x", "c"}

func randomTxn(r *rand.Rand, id int, seen map[string]model.Index, last model.Index) Txn {
	key := func() string { return KVKey(propertyKeys[r.IntN(len(propertyKeys))]) }
	prefix := func() string { return KVPrefix([]string{"a", "a/", "a/c", "b", "c"}[r.IntN(5)]) }
	for {
		var t Txn
		for range r.IntN(3) {
			k := key()
			t.Compares = append(t.Compares, Compare{Key: k, ModIndex: []model.Index{0, seen[k], seen[k]}[r.IntN(3)]})
		}
		if r.IntN(4) == 0 {
			t.Compares = append(t.Compares, Compare{Key: prefix(), ModIndex: []model.Index{0, last, max(last, 2) - 2}[r.IntN(3)], Prefix: true})
		}
		if r.IntN(6) == 0 {
			t.Reads = append(t.Reads, key())
		}
		for range r.IntN(3) {
			t.Puts = append(t.Puts, Put{Key: key(), Value: putKV("", fmt.Sprint(id)).Value})
		}
		if r.IntN(4) == 0 {
			t.Deletes = append(t.Deletes, key())
		}
		if r.IntN(6) == 0 {
			t.DeletePrefixes = append(t.DeletePrefixes, prefix())
		}
		if len(t.Compares) > 0 || t.writes() {
			if t.check() == nil {
				return t
			}
		}
	}
}

// watch reads everything that was ever written.
func (h *history) watch(t *testing.T, n *node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	prefix := n.gen.Load().prefix()
	h.events = map[model.Index]map[string][]byte{}
	for resp := range n.running.Load().cli.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(1)) {
		if err := resp.Err(); err != nil {
			t.Fatal(err)
		}
		for _, e := range resp.Events {
			at := model.Index(e.Kv.ModRevision)
			if h.events[at] == nil {
				h.events[at] = map[string][]byte{}
			}
			value := e.Kv.Value
			if e.Type == mvccpb.Event_DELETE {
				value = nil
			}
			h.events[at][strings.TrimPrefix(string(e.Kv.Key), prefix)] = value
			if at == h.last {
				return
			}
		}
	}
	t.Fatal("the watch ended")
}

// check tells the history again, one transaction after the other.
func (h *history) check(t *testing.T, r *rand.Rand) {
	t.Helper()
	batches, reads := map[model.Index][]*call{}, map[model.Index][]*call{}
	for _, c := range h.all {
		switch {
		case errors.Is(c.err, ErrUnknownOutcome):
			h.unknown++
			if at := h.find(c); at != 0 {
				c.res = Result{OK: true, Index: at}
				batches[at] = append(batches[at], c)
			}
		case errors.Is(c.err, context.DeadlineExceeded):
			if at := h.find(c); at != 0 {
				t.Errorf("%+v was withdrawn, but is written at %d", c, at)
			}
		case c.err != nil:
			t.Errorf("%+v: %v", c.txn, c.err)
		case c.txn.writes():
			batches[c.res.Index] = append(batches[c.res.Index], c)
		default:
			reads[c.res.Index] = append(reads[c.res.Index], c)
		}
		if c.err == nil && !c.res.OK {
			h.refused++
		}
	}
	keys := world{}
	for at := model.Index(1); at < h.last; at++ {
		before := maps.Clone(keys)
		batch := batches[at]
		r.Shuffle(len(batch), func(i, j int) { batch[i], batch[j] = batch[j], batch[i] })
		for _, c := range batch {
			if got := keys.holds(&c.txn); got != c.res.OK {
				t.Errorf("index %d: %+v was told %v; alone it would have been %v", at, c.txn, c.res.OK, got)
			}
			if c.res.OK {
				keys.apply(&c.txn, at)
			}
		}
		if want := keys.since(before, at); !maps.EqualFunc(want, h.events[at], slices.Equal) {
			t.Errorf("index %d: %d transactions, but etcd has %q, not %q", at, len(batch), h.events[at], want)
		}
		for _, c := range reads[at] {
			if got := keys.holds(&c.txn); got != c.res.OK {
				t.Errorf("index %d: %+v was told %v; alone it would have been %v", at, c.txn, c.res.OK, got)
			}
		}
	}
}

// find is where a transaction was written, by a value that no other puts; 0 if nowhere.
func (h *history) find(c *call) model.Index {
	for at, events := range h.events {
		if v := events[c.txn.Puts[0].Key]; v != nil && slices.Equal(v, c.txn.Puts[0].Value) {
			return at
		}
	}
	return 0
}

// world is the model: each key's value and when it was written.
type world map[string]written

type written struct {
	value []byte
	mod   model.Index
}

func (w world) holds(t *Txn) bool {
	for _, c := range t.Compares {
		if !c.Prefix && w[c.Key].mod != c.ModIndex {
			return false
		}
		for k, v := range w {
			if c.Prefix && strings.HasPrefix(k, c.Key) && v.mod > c.ModIndex {
				return false
			}
		}
	}
	return true
}

func (w world) apply(t *Txn, at model.Index) {
	for _, k := range t.Deletes {
		delete(w, k)
	}
	for _, p := range t.DeletePrefixes {
		maps.DeleteFunc(w, func(k string, _ written) bool { return strings.HasPrefix(k, p) })
	}
	for _, p := range t.Puts {
		w[p.Key] = written{p.Value, at}
	}
}

// since is what has happened since before, as events of index at.
func (w world) since(before world, at model.Index) map[string][]byte {
	events := map[string][]byte{}
	for k := range before {
		if _, there := w[k]; !there {
			events[k] = nil
		}
	}
	for k, v := range w {
		if v.mod == at {
			events[k] = v.value
		}
	}
	return events
}
