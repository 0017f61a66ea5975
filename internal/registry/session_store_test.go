package registry_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/registry"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/store"
)

// site is a store with its state and two registries on it, as two servers would
// have them, with one node.
type site struct {
	t    *testing.T
	st   *state.State
	regs [2]*registry.Registry
	stop func()
}

// startSite runs a site on a directory, "" for a temporary one, until stop or the
// end of the test. Sessions may be as short as a second.
func startSite(t *testing.T, dir string) *site {
	t.Helper()
	s := &site{t: t, st: state.New()}
	db := store.New(store.Config{Dir: dir, Name: "s1", Log: slog.New(slog.DiscardHandler)}, s.st)
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- db.Run(ctx, func() { close(ready) }) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("store: %v", err)
		}
	})
	t.Cleanup(s.stop)
	select {
	case <-ready:
	case err := <-ended:
		ended <- nil
		t.Fatalf("store: %v", err)
	}
	for i := range s.regs {
		s.regs[i] = registry.New(db, s.st, registry.Config{Node: "n1", SessionTTLMin: time.Second})
	}
	if _, err := s.regs[0].RegisterNode(t.Context(), model.Node{Name: "n1", Address: "10.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	return s
}

// reap runs a reaper for each registry until the returned function is called, or
// the test ends.
func (s *site) reap() func() {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, r := range s.regs {
		wg.Go(func() {
			if err := r.Reap(ctx, func() {}); err != nil {
				s.t.Errorf("reaper: %v", err)
			}
		})
	}
	stop := sync.OnceFunc(func() { cancel(); wg.Wait() })
	s.t.Cleanup(stop)
	return stop
}

func (s *site) session(change model.Session) string {
	s.t.Helper()
	change.Node, change.NodeChecks = "n1", []model.CheckID{}
	id, _, err := s.regs[0].CreateSession(s.t.Context(), change)
	if err != nil {
		s.t.Fatal(err)
	}
	return id
}

// until waits for a condition on the state.
func (s *site) until(what string, ok func(*state.Snapshot) bool) {
	s.t.Helper()
	limit := time.After(20 * time.Second)
	for {
		snap := s.st.Snapshot()
		if ok(snap) {
			return
		}
		select {
		case <-snap.Changed():
		case <-limit:
			s.t.Fatalf("never: %s", what)
		}
	}
}

// Many clients race for one lock through two servers, and each that has it counts
// without any other protection: at most one holds it at a time.
func TestManyRaceForOneLock(t *testing.T) {
	s := startSite(t, "")
	const clients, each = 12, 8
	var inside, turns atomic.Int64
	counter := 0 // what the lock protects
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			r := s.regs[c%2]
			id, _, err := r.CreateSession(t.Context(), model.Session{Node: "n1", NodeChecks: []model.CheckID{}})
			if err != nil {
				t.Error(err)
				return
			}
			for done := 0; done < each; {
				snap := s.st.Snapshot()
				ok, _, err := r.LockKV(t.Context(), model.KV{Key: "lock", Value: []byte(id), Session: id})
				if err != nil && !errors.Is(err, registry.ErrConflict) {
					t.Error(err)
					return
				}
				if !ok {
					<-snap.Changed()
					continue
				}
				if inside.Add(1) != 1 {
					t.Error("two hold the lock")
				}
				counter++
				done++
				inside.Add(-1)
				turns.Add(1)
				if ok, _, err := r.UnlockKV(t.Context(), model.KV{Key: "lock", Session: id}); !ok || err != nil {
					t.Errorf("unlock by the holder: %v, %v", ok, err)
					return
				}
			}
		})
	}
	wg.Wait()
	kv, _ := s.st.Snapshot().KV("lock")
	if counter != clients*each || kv.LockIndex != uint64(turns.Load()) {
		t.Errorf("counted to %d in %d turns, the lock says %d", counter, turns.Load(), kv.LockIndex)
	}
}

// Sessions end in the very moment in which they take locks: whatever comes first,
// no lock is left with a session that is not there.
func TestSessionsEndWhileTheyLock(t *testing.T) {
	s := startSite(t, "")
	var taken, refused atomic.Int64
	var wg sync.WaitGroup
	for i := range 150 {
		id := s.session(model.Session{})
		wg.Go(func() {
			for k := range 3 {
				ok, _, err := s.regs[i%2].LockKV(t.Context(), model.KV{Key: fmt.Sprint(i, "/", k), Session: id})
				switch {
				case ok:
					taken.Add(1)
				case errors.Is(err, registry.ErrUnknownSession):
					refused.Add(1)
				default:
					t.Errorf("lock: %v, %v", ok, err)
				}
			}
		})
		wg.Go(func() {
			if _, err := s.regs[(i+1)%2].DestroySession(t.Context(), id); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	snap := s.st.Snapshot()
	tree, _ := snap.KVTree("")
	for _, kv := range tree {
		if kv.Session != "" {
			t.Errorf("%s is held by %s after its end", kv.Key, kv.Session)
		}
	}
	if list, _ := snap.Sessions(); len(list) != 0 {
		t.Errorf("%d sessions left", len(list))
	}
	t.Logf("%d locks taken, %d refused", taken.Load(), refused.Load())
	if taken.Load() == 0 || refused.Load() == 0 {
		t.Error("the two never met; the test shows nothing")
	}
}

// The time of a session that is not renewed runs out, and its lock goes to the
// next; one that is renewed keeps its own.
func TestSessionsRunOutOnTheStore(t *testing.T) {
	t.Parallel() // it waits for leases
	s := startSite(t, "")
	s.reap()
	dead, kept := s.session(model.Session{TTL: time.Second, Behavior: model.SessionDelete}), s.session(model.Session{TTL: time.Second})
	for key, id := range map[string]string{"dead": dead, "kept": kept} {
		if ok, _, err := s.regs[0].LockKV(t.Context(), model.KV{Key: key, Session: id}); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(300 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if _, err := s.regs[1].RenewSession(context.Background(), kept); err != nil {
				t.Errorf("renewal: %v", err)
			}
		}
	})
	s.until("the session ends", func(snap *state.Snapshot) bool {
		gone, _ := snap.Session(dead)
		kv, _ := snap.KV("dead")
		return gone == nil && kv == nil
	})
	cancel()
	wg.Wait()
	if kv, _ := s.st.Snapshot().KV("kept"); kv.Session != kept {
		t.Errorf("the renewed session has lost its lock: %+v", kv)
	}
}

// Sessions and locks outlive a restart of the server, with their time.
func TestSessionsOutliveARestart(t *testing.T) {
	t.Parallel() // it waits for leases
	dir := t.TempDir()
	s := startSite(t, dir)
	stop := s.reap()
	long, short := s.session(model.Session{TTL: time.Hour}), s.session(model.Session{TTL: time.Second, LockDelay: time.Second})
	for _, id := range []string{long, short} {
		if ok, _, err := s.regs[0].LockKV(t.Context(), model.KV{Key: id, Value: []byte("v"), Session: id}); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	stop()
	s.stop()

	s = startSite(t, dir)
	if kv, _ := s.st.Snapshot().KV(short); kv == nil || kv.Session != short || kv.LockIndex != 1 || string(kv.Value) != "v" {
		t.Errorf("lock after the restart: %+v", kv)
	}
	s.reap()
	if _, err := s.regs[0].RenewSession(t.Context(), long); err != nil {
		t.Errorf("renewal after the restart: %v", err)
	}
	s.until("the short one ends and its lock delay too", func(snap *state.Snapshot) bool {
		gone, _ := snap.Session(short)
		delays, _ := snap.LockDelays()
		return gone == nil && len(delays) == 0
	})
	kv, _ := s.st.Snapshot().KV(short)
	if kv == nil || kv.Session != "" || kv.LockIndex != 1 {
		t.Errorf("lock after the end: %+v", kv)
	}
	if kv, _ := s.st.Snapshot().KV(long); kv.Session != long {
		t.Errorf("the other's lock: %+v", kv)
	}
}

// Transactions that move amounts between entries, through two servers at once,
// keep the sum, and those that add up a tree never see another.
func TestTransactionsAreAtomicOnTheStore(t *testing.T) {
	s := startSite(t, "")
	const accounts, start, movers, moves = 5, 100, 6, 15
	account := func(i int) string { return fmt.Sprint("account/", i) }
	for i := range accounts {
		if _, _, err := s.regs[0].PutKV(t.Context(), model.KV{Key: account(i), Value: fmt.Append(nil, start)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	amount := func(kv *model.KV) int { n, _ := strconv.Atoi(string(kv.Value)); return n }
	var wg sync.WaitGroup
	for m := range movers {
		wg.Go(func() {
			for done := 0; done < moves; {
				snap := s.st.Snapshot()
				from, _ := snap.KV(account((m + done) % accounts))
				to, _ := snap.KV(account((m + done*2 + 1) % accounts))
				if from == to {
					done++
					continue
				}
				_, failed, _, err := s.regs[m%2].Transact(t.Context(), []model.TxnOp{
					op("cas", from.Key, value(strconv.Itoa(amount(from)-1)), at(from.ModifyIndex)),
					op("cas", to.Key, value(strconv.Itoa(amount(to)+1)), at(to.ModifyIndex)),
				})
				if err != nil && !errors.Is(err, registry.ErrConflict) {
					t.Error(err)
					return
				}
				if err == nil && len(failed) == 0 {
					done++
				}
			}
		})
	}
	wg.Go(func() {
		for range 20 {
			results, failed, _, err := s.regs[0].Transact(t.Context(), []model.TxnOp{op("get-tree", "account/"), op("set", "audited", value("yes"))})
			if errors.Is(err, registry.ErrConflict) {
				continue // too much was going on; it says so and has written nothing
			}
			if err != nil || len(failed) > 0 {
				t.Error(failed, err)
				return
			}
			sum := 0
			for _, r := range results[:accounts] {
				sum += amount(r.KV)
			}
			if sum != accounts*start {
				t.Errorf("a transaction saw the sum %d", sum)
			}
		}
	})
	wg.Wait()
	sum := 0
	tree, _ := s.st.Snapshot().KVTree("account/")
	for _, kv := range tree {
		sum += amount(kv)
	}
	if sum != accounts*start {
		t.Errorf("the sum is %d", sum)
	}
}

// The whole way of Patroni's leader lock through a failover.
func TestLeaderLockPassesOn(t *testing.T) {
	t.Parallel() // it waits for leases
	s := startSite(t, "")
	s.reap()
	first, second := s.session(model.Session{TTL: time.Second, Behavior: model.SessionDelete, LockDelay: time.Millisecond}), s.session(model.Session{})
	lead := func(id string) bool {
		ok, _, err := s.regs[1].LockKV(t.Context(), model.KV{Key: "leader", Value: []byte(id), Session: id})
		if err != nil && !errors.Is(err, registry.ErrUnknownSession) {
			t.Error(err)
		}
		return ok
	}
	if !lead(first) || lead(second) {
		t.Fatal("the first does not lead, or the second does too")
	}
	s.until("the leader's key goes with its session", func(snap *state.Snapshot) bool {
		kv, _ := snap.KV("leader")
		return kv == nil
	})
	s.until("the delay is over", func(snap *state.Snapshot) bool {
		d, _ := snap.LockDelay("leader")
		return d == nil
	})
	if !lead(second) {
		t.Error("the second does not lead")
	}
}

// The end of a session that holds entries with the longest keys fits in transactions.
func TestLongestKeys(t *testing.T) {
	r := startSite(t, "").regs[0]
	key := strings.Repeat("k", registry.MaxKey-1)
	if _, _, err := r.PutKV(t.Context(), model.KV{Key: key + "kk"}, nil); !errors.Is(err, registry.ErrInvalid) {
		t.Errorf("a longer key: %v", err)
	}
	for _, behavior := range []model.SessionBehavior{model.SessionRelease, model.SessionDelete} {
		id, _, err := r.CreateSession(t.Context(), model.Session{Node: "n1", NodeChecks: []model.CheckID{}, Behavior: behavior, LockDelay: time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			if ok, _, err := r.LockKV(t.Context(), model.KV{Key: key + strconv.Itoa(i), Session: id}); err != nil || !ok {
				t.Fatalf("lock: %v, %v", ok, err)
			}
		}
		if _, err := r.DestroySession(t.Context(), id); err != nil {
			t.Errorf("end: %v", err)
		}
		if _, err := r.DeleteKVTree(t.Context(), ""); err != nil {
			t.Error(err)
		}
	}
}
