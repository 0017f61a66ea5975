package registry_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/registry"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake commits as etcd does, in memory: keys with revisions, one revision per
// transaction that writes. It shows every commit to state at once, unless held.
type fake struct {
	st *state.State

	mu      sync.Mutex
	rev     model.Index
	keys    map[string]*fakeKey
	held    chan struct{} // not nil: state lags behind; closes at the first commit it lacks
	pending []func()
	txns    []store.Txn // every transaction committed or refused
	before  func()      // runs once, before the next transaction is compared
	fail    error       // the next commit's error
	always  error       // every commit's
	leases  []*fakeLease
}

// fakeLease runs out when its timer fires.
type fakeLease struct {
	ttl   time.Duration
	timer *time.Timer
	key   string // of the mark that hangs on it
	gone  bool
}

type fakeKey struct {
	create, mod model.Index
	value       []byte
}

func newFake() *fake {
	f := &fake{st: state.New(), rev: 1, keys: map[string]*fakeKey{}}
	f.st.Reset(1, nil)
	return f
}

func (f *fake) Commit(ctx context.Context, t store.Txn) (store.Result, error) {
	f.mu.Lock()
	if run := f.before; run != nil {
		f.before = nil
		f.mu.Unlock()
		run()
		f.mu.Lock()
	}
	defer f.mu.Unlock()
	f.txns = append(f.txns, t)
	if err := f.fail; err != nil {
		f.fail = nil
		return store.Result{}, err
	}
	if err := errors.Join(ctx.Err(), f.always); err != nil {
		return store.Result{}, err
	}
	for _, c := range t.Compares {
		if !f.holds(c) {
			return store.Result{Index: f.rev}, nil
		}
	}
	if len(t.Puts)+len(t.Deletes)+len(t.DeletePrefixes) == 0 {
		return store.Result{OK: true, Index: f.rev}, nil
	}
	f.rev++
	f.show(f.rev, f.change(t))
	return store.Result{OK: true, Index: f.rev}, nil
}

// failing makes every commit fail, until it is called with nil.
func (f *fake) failing(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.always = err
}

// force writes past everything.
func (f *fake) force(t store.Txn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rev++
	f.show(f.rev, f.change(t))
}

func (f *fake) holds(c store.Compare) bool {
	if !c.Prefix {
		k := f.keys[c.Key]
		return k == nil && c.ModIndex == 0 || k != nil && k.mod == c.ModIndex
	}
	for name, k := range f.keys {
		if strings.HasPrefix(name, c.Key) && k.mod > c.ModIndex {
			return false
		}
	}
	return true
}

// sound panics over a transaction that the store would not take.
func sound(t store.Txn) {
	seen := map[string]bool{}
	for _, p := range t.Puts {
		under := func(prefix string) bool { return strings.HasPrefix(p.Key, prefix) }
		if seen[p.Key] || slices.Contains(t.Deletes, p.Key) || slices.ContainsFunc(t.DeletePrefixes, under) {
			panic("put twice, or put and deleted: " + p.Key)
		}
		seen[p.Key] = true
	}
}

func (f *fake) change(t store.Txn) []state.Change {
	sound(t)
	var changes []state.Change
	add := func(c state.Change, visible bool, err error) {
		if err != nil {
			panic(err)
		}
		if visible {
			changes = append(changes, c)
		}
	}
	touched := map[string]bool{}
	drop := func(name string) {
		if f.keys[name] != nil {
			delete(f.keys, name)
			add(store.DecodeDelete(name))
		}
	}
	for _, d := range t.Deletes {
		drop(d)
	}
	for _, d := range t.DeletePrefixes {
		for name := range f.keys {
			if strings.HasPrefix(name, d) {
				drop(name)
			}
		}
	}
	for _, p := range t.Puts {
		k := f.keys[p.Key]
		if k == nil {
			k = &fakeKey{create: f.rev}
			f.keys[p.Key] = k
		}
		k.mod, k.value = f.rev, p.Value
		if kv, ok := strings.CutPrefix(p.Key, store.KVLockKey("")); ok {
			touched[kv] = true
			continue
		}
		add(store.Decode(p.Key, k.value, k.create, k.mod))
	}
	for key := range touched {
		if k := f.keys[store.KVKey(key)]; k != nil && k.mod != f.rev {
			add(store.Decode(store.KVKey(key), k.value, k.create, k.mod))
		}
	}
	for _, c := range changes {
		f.mergeLock(c)
	}
	return changes
}

// mergeLock completes an entry with its lock, as the store does.
func (f *fake) mergeLock(c state.Change) {
	if c.KV == nil || c.Delete {
		return
	}
	k := f.keys[store.KVLockKey(c.KV.Key)]
	if k == nil {
		return
	}
	var lock store.Lock
	if err := json.Unmarshal(k.value[1:], &lock); err != nil {
		panic(err)
	}
	c.KV.Session, c.KV.LockIndex, c.KV.LockModified = lock.Session, lock.LockIndex, k.mod
	c.KV.ModifyIndex = max(c.KV.ModifyIndex, k.mod)
}

func (f *fake) GrantLease(_ context.Context, ttl time.Duration) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := &fakeLease{ttl: ttl}
	l.timer = time.AfterFunc(ttl, func() { f.end(l) })
	f.leases = append(f.leases, l)
	return int64(len(f.leases)), nil
}

func (f *fake) PutAlive(_ context.Context, session string, lease int64) (model.Index, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.leases[lease-1]
	if l.gone {
		return 0, store.ErrNoLease
	}
	l.key = store.AliveKey(session)
	value, err := store.Encode(model.Alive{Session: session, Lease: lease})
	if err != nil {
		return 0, err
	}
	f.rev++
	f.show(f.rev, f.change(store.Txn{Puts: []store.Put{{Key: l.key, Value: value}}}))
	return f.rev, nil
}

func (f *fake) RenewLease(_ context.Context, lease int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.leases[lease-1]
	if l.gone {
		return store.ErrNoLease
	}
	l.timer.Reset(l.ttl)
	return nil
}

func (f *fake) RevokeLease(_ context.Context, lease int64) error {
	f.mu.Lock()
	l := f.leases[lease-1]
	f.mu.Unlock()
	f.end(l)
	return nil
}

// end is the end of a lease, and of the mark that hangs on it.
func (f *fake) end(l *fakeLease) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l.timer.Stop()
	l.gone = true
	if f.keys[l.key] != nil {
		f.rev++
		f.show(f.rev, f.change(store.Txn{Deletes: []string{l.key}}))
	}
}

// living is how many leases have not ended.
func (f *fake) living() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(slices.DeleteFunc(slices.Clone(f.leases), func(l *fakeLease) bool { return l.gone }))
}

func (f *fake) show(rev model.Index, changes []state.Change) {
	if f.held != nil {
		if len(f.pending) == 0 {
			close(f.held)
		}
		f.pending = append(f.pending, func() { f.st.Apply(rev, changes) })
		return
	}
	f.st.Apply(rev, changes)
}

// hold makes the state lag behind until release. The channel closes at the
// first commit that it does not show.
func (f *fake) hold() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held = make(chan struct{})
	return f.held
}

func (f *fake) release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held = nil
	for _, apply := range f.pending {
		apply()
	}
	f.pending = nil
}

// commits is how many transactions there were.
func (f *fake) commits() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.txns)
}

// count is how many keys begin with prefix.
func (f *fake) count(prefix string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for k := range f.keys {
		if strings.HasPrefix(k, prefix) {
			n++
		}
	}
	return n
}

func (f *fake) revision() model.Index {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rev
}

// env is a registry on a fake, with two nodes registered.
type env struct {
	*registry.Registry
	*fake
	t *testing.T
}

func setup(t *testing.T) *env {
	t.Helper()
	f := newFake()
	e := &env{Registry: newRegistry(f, f.st), fake: f, t: t}
	for _, n := range []model.NodeName{"n1", "n2"} {
		if _, err := e.RegisterNode(t.Context(), model.Node{Name: n, Address: "10.0.0.1"}); err != nil {
			t.Fatal(err)
		}
	}
	return e
}

func newRegistry(c registry.Committer, st *state.State) *registry.Registry {
	return registry.New(c, st, registry.Config{Node: "n1", VIPPool6: registry.SitePool6("dc1")})
}

func (e *env) snap() *state.Snapshot { return e.st.Snapshot() }

// must returns the index of a write that has to succeed.
func (e *env) must(index model.Index, err error) model.Index {
	e.t.Helper()
	if err != nil {
		e.t.Fatal(err)
	}
	if now := e.snap().Index(); now < index {
		e.t.Fatalf("written at %d, but the state shows %d", index, now)
	}
	return index
}

// unwritten checks that do moves no index and writes nothing.
func (e *env) unwritten(do func()) {
	e.t.Helper()
	before := e.revision()
	do()
	if now := e.revision(); now != before {
		e.t.Errorf("revision went from %d to %d, want no write", before, now)
	}
}

func web(node, id string) model.Instance {
	return model.Instance{Node: model.NodeName(node), ID: model.ServiceID(id), Service: "web", Port: 80}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }
