package store

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// A server that joins asks its peers who they are over a transport of etcd's
// that nobody closes: a connection of it may be idle for a while yet.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"),
		goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"),
		goleak.IgnoreAnyFunction("net/http.(*connReader).backgroundRead"), goleak.IgnoreAnyFunction("net/http.(*connReader).abortPendingRead"))
}

// fakeState keeps KV entries and the order of revisions.
type fakeState struct {
	mu      sync.Mutex
	rev     model.Index
	kv      map[string]model.KV
	other   []state.Change // all else that was applied since the last reset
	resets  int
	wrong   []string
	changed chan struct{}
}

func newFakeState() *fakeState {
	return &fakeState{kv: map[string]model.KV{}, changed: make(chan struct{})}
}

func (f *fakeState) Apply(rev model.Index, changes []state.Change) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if rev <= f.rev {
		f.wrong = append(f.wrong, fmt.Sprintf("revision %d after %d", rev, f.rev))
	}
	f.publish(rev, changes)
}

func (f *fakeState) Reset(rev model.Index, records []state.Change) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if rev < f.rev {
		f.wrong = append(f.wrong, fmt.Sprintf("reset to %d after %d", rev, f.rev))
	}
	f.resets++
	f.kv, f.other = map[string]model.KV{}, nil
	f.publish(rev, records)
}

func (f *fakeState) publish(rev model.Index, changes []state.Change) {
	for _, c := range changes {
		switch {
		case c.KV == nil:
			f.other = append(f.other, c)
		case c.Delete:
			delete(f.kv, c.KV.Key)
		default:
			f.kv[c.KV.Key] = *c.KV
		}
	}
	f.rev = rev
	close(f.changed)
	f.changed = make(chan struct{})
}

// at waits until the state shows rev and returns its entries.
func (f *fakeState) at(t testing.TB, rev model.Index) map[string]model.KV {
	t.Helper()
	limit := time.After(10 * time.Second)
	for {
		f.mu.Lock()
		seen, changed, kv := f.rev, f.changed, maps.Clone(f.kv)
		f.mu.Unlock()
		if seen >= rev {
			return kv
		}
		select {
		case <-changed:
		case <-limit:
			t.Fatalf("state stays at %d, waiting for %d", seen, rev)
		}
	}
}

// node is a store under test, its state and what ends it.
type node struct {
	*Store
	st   *fakeState
	stop func() error // ends the store and returns Run's error; again is harmless
}

// startStore runs a store until the test ends.
func startStore(t testing.TB, dir string, change ...func(*Store)) *node {
	t.Helper()
	st := newFakeState()
	s := New(Config{Dir: dir, Name: "n1", Log: quiet()}, st)
	for _, c := range change {
		c(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- s.Run(ctx, func() { close(ready) }) }()
	stop := sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	select {
	case <-ready:
	case err := <-done:
		cancel()
		t.Fatalf("Run: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("not ready")
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
		if st.wrong != nil {
			t.Errorf("state was told out of order: %v", st.wrong)
		}
	})
	return &node{Store: s, st: st, stop: stop}
}

// put is a blind write of a KV entry.
func put(key, value string) Txn {
	return Txn{Puts: []Put{putKV(key, value)}}
}

func putKV(key, value string) Put {
	b, err := Encode(model.KV{Key: key, Value: []byte(value)})
	if err != nil {
		panic(err)
	}
	return Put{Key: KVKey(key), Value: b}
}

// must commits and expects a result.
func (n *node) must(t testing.TB, txn Txn, ok bool) model.Index {
	t.Helper()
	res, err := n.Commit(t.Context(), txn)
	if err != nil {
		t.Fatalf("Commit: %v", err)
	}
	if res.OK != ok {
		t.Fatalf("Commit: OK is %v, want %v", res.OK, ok)
	}
	return res.Index
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }
