package registry_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/store"
)

// reaping runs a test in a bubble beside a reaper.
func reaping(t *testing.T, test func(t *testing.T, e *env)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		e := setup(t)
		ctx, cancel := context.WithCancel(context.Background())
		ready, ended := make(chan struct{}), make(chan error, 1)
		go func() { ended <- e.Reap(ctx, func() { close(ready) }) }()
		<-ready
		test(t, e)
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Reap: %v", err)
		}
	})
}

// alive reports whether a session is there.
func (e *env) alive(id string) bool {
	s, _ := e.snap().Session(id)
	return s != nil
}

func TestGroundsThatEndASession(t *testing.T) {
	put := func(e *env, id model.CheckID, status model.Status) {
		e.check(model.Check{Node: "n1", ID: id, Status: status})
	}
	for name, tt := range map[string]struct {
		happens func(t *testing.T, e *env)
		ends    bool
	}{
		"its node goes":     {func(t *testing.T, e *env) { e.must(e.DeregisterNode(t.Context(), "n1")) }, true},
		"another node goes": {func(t *testing.T, e *env) { e.must(e.DeregisterNode(t.Context(), "n2")) }, false},
		"its node changes": {func(t *testing.T, e *env) {
			e.must(e.RegisterNode(t.Context(), model.Node{Name: "n1", Address: "10.0.0.9"}))
		}, false},
		"serfHealth turns critical":            {func(_ *testing.T, e *env) { put(e, model.SerfHealth, model.Critical) }, true},
		"serfHealth warns":                     {func(_ *testing.T, e *env) { put(e, model.SerfHealth, model.Warning) }, false},
		"its service check turns critical":     {func(_ *testing.T, e *env) { put(e, "svc", model.Critical) }, true},
		"its service check goes":               {func(t *testing.T, e *env) { e.must(e.DeleteCheck(t.Context(), "n1", "svc")) }, true},
		"another check turns critical":         {func(_ *testing.T, e *env) { put(e, "other", model.Critical) }, false},
		"a check of that name on another node": {func(_ *testing.T, e *env) { e.check(model.Check{Node: "n2", ID: "svc", Status: model.Critical}) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			reaping(t, func(t *testing.T, e *env) {
				for _, c := range []model.CheckID{model.SerfHealth, "svc", "other"} {
					put(e, c, model.Passing)
				}
				id := e.session(model.Session{
					NodeChecks: []model.CheckID{model.SerfHealth}, ServiceChecks: []model.SessionService{{ID: "svc"}},
				})
				e.lock("k", id)
				begin := time.Now()
				tt.happens(t, e)
				synctest.Wait()
				if took := time.Since(begin); took != 0 {
					t.Errorf("took %v", took)
				}
				if e.alive(id) == tt.ends || (e.holder("k") == "") != tt.ends {
					t.Errorf("session alive: %v, lock held: %v; want an end: %v", e.alive(id), e.holder("k") != "", tt.ends)
				}
			})
		})
	}
}

func TestTimeRunsOut(t *testing.T) {
	reaping(t, func(t *testing.T, e *env) {
		id := e.session(model.Session{TTL: 10 * time.Second, Behavior: model.SessionDelete, LockDelay: 5 * time.Second})
		e.lock("k", id)
		for range 10 {
			time.Sleep(15 * time.Second) // on the fake clock
			if _, err := e.RenewSession(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(20*time.Second - 1)
		if !e.alive(id) {
			t.Error("ended too early")
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if kv, _ := e.snap().KV("k"); e.alive(id) || kv != nil {
			t.Errorf("after its time: alive %v, entry %+v", e.alive(id), kv)
		}
		if d, _ := e.snap().LockDelay("k"); d == nil {
			t.Error("no lock delay")
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if d, _ := e.snap().LockDelay("k"); d != nil {
			t.Errorf("the lock delay is over, and still there: %+v", d)
		}
	})
}

// What had run out, or was half ended, before the reaper began.
func TestReaperFinishesWhatItFinds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := setup(t)
		expired := e.session(model.Session{TTL: 10 * time.Second})
		time.Sleep(30 * time.Second) // on the fake clock
		dying := e.session(model.Session{})
		e.lock("k", dying)
		s, _ := e.snap().Session(dying)
		half := s.Clone()
		half.Dying = true
		value, err := store.Encode(&half)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.Commit(t.Context(), store.Txn{Puts: []store.Put{{Key: store.SessionKey(dying), Value: value}}}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- e.Reap(ctx, func() {}) }()
		synctest.Wait()
		if e.alive(expired) || e.alive(dying) || e.holder("k") != "" {
			t.Errorf("left: %v, %v, lock held by %q", e.alive(expired), e.alive(dying), e.holder("k"))
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// A node's death ends all its sessions, more than are ended at the same time, and
// no other's.
func TestManySessionsEndTogether(t *testing.T) {
	const sessions = 300
	reaping(t, func(t *testing.T, e *env) {
		var last string
		for i := range sessions {
			last = e.session(model.Session{})
			e.lock(fmt.Sprint(i), last)
		}
		other := e.session(model.Session{Node: "n2"})
		e.must(e.DeregisterNode(t.Context(), "n1"))
		time.Sleep(time.Second) // on the fake clock; it rests in between
		if list, _ := e.snap().Sessions(); len(list) != 1 || list[0].ID != other {
			t.Errorf("%d sessions left", len(list))
		}
	})
}

// A session whose check recovers before the end is committed lives on.
func TestGroundThatVanishes(t *testing.T) {
	reaping(t, func(t *testing.T, e *env) {
		status := func(s model.Status) { e.check(model.Check{Node: "n1", ID: "c", Status: s}) }
		status(model.Passing)
		id := e.session(model.Session{NodeChecks: []model.CheckID{"c"}})
		ends := false
		e.before = func() { // the check's turn
			e.before = func() { // the end's
				ends = true
				status(model.Passing)
			}
		}
		status(model.Critical)
		synctest.Wait()
		if !ends || !e.alive(id) {
			t.Errorf("the end was tried: %v, the session is alive: %v", ends, e.alive(id))
		}
	})
}

func TestFailuresAreTriedAgainLater(t *testing.T) {
	reaping(t, func(t *testing.T, e *env) {
		id := e.session(model.Session{})
		e.failing(store.ErrNoLeader)
		e.force(store.Txn{Deletes: []string{store.NodeKey("n1")}})
		synctest.Wait()
		before := e.commits()
		time.Sleep(time.Minute) // on the fake clock
		if n := e.commits() - before; n < 5 || n > 40 {
			t.Errorf("%d attempts in a minute", n)
		}
		if !e.alive(id) {
			t.Fatal("ended without a commit")
		}
		e.failing(nil)
		time.Sleep(10 * time.Second)
		if e.alive(id) {
			t.Error("not ended though it could be")
		}
	})
}

// Nothing is judged by a state that is not loaded.
func TestReaperWaitsForTheState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		empty := state.New()
		r := newRegistry(f, empty)
		ctx, cancel := context.WithCancel(t.Context())
		ready, ended := make(chan struct{}), make(chan error, 1)
		go func() { ended <- r.Reap(ctx, func() { close(ready) }) }()
		<-ready // what comes after it need not wait
		empty.Apply(1, []state.Change{{Session: &model.Session{ID: "s", Node: "n1"}}})
		synctest.Wait()
		if f.commits() != 0 {
			t.Error("it ended a session")
		}
		empty.Reset(1, []state.Change{{Session: &model.Session{ID: "s", Node: "n1"}}})
		synctest.Wait()
		if f.commits() == 0 {
			t.Error("it does nothing though the state is loaded")
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestExpiredTokensGo(t *testing.T) {
	reaping(t, func(t *testing.T, e *env) {
		var put []store.Put
		// More at a time than are removed in one go.
		for i := range 2 * 600 {
			at := time.Now().Add(time.Duration(1+i/600) * time.Minute)
			tok := model.ACLToken{AccessorID: uuid.NewString(), SecretID: uuid.NewString(), ExpirationTime: &at}
			value, err := store.Encode(tok)
			if err != nil {
				t.Fatal(err)
			}
			put = append(put, store.Put{Key: store.TokenKey(tok.AccessorID), Value: value})
		}
		if _, err := e.Commit(t.Context(), store.Txn{Puts: put}); err != nil {
			t.Fatal(err)
		}
		for _, want := range []int{1200, 600, 0} {
			if list, _ := e.snap().Tokens(); len(list) != want {
				t.Errorf("%d tokens, want %d", len(list), want)
			}
			time.Sleep(time.Minute + time.Second) // on the fake clock
		}
	})
}

func TestReaperStopsInTheMiddle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := setup(t)
		e.session(model.Session{})
		e.force(store.Txn{Deletes: []string{store.NodeKey("n1")}})
		ctx, cancel := context.WithCancel(t.Context())
		e.before = cancel // in the middle of the end of the session
		if err := e.Reap(ctx, func() {}); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
