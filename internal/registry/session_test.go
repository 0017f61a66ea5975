package registry_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/registry"
	"github.com/fairlead-net/fairlead/internal/store"
)

// session creates a session on n1 that depends on no check.
func (e *env) session(s model.Session) string {
	e.t.Helper()
	if s.Node == "" {
		s.Node = "n1"
	}
	if s.NodeChecks == nil {
		s.NodeChecks = []model.CheckID{}
	}
	id, index, err := e.CreateSession(e.t.Context(), s)
	e.must(index, err)
	return id
}

func (e *env) check(c model.Check) {
	e.t.Helper()
	e.must(e.PutCheck(e.t.Context(), c))
}

// lock takes a lock, which has to succeed.
func (e *env) lock(key, session string) {
	e.t.Helper()
	ok, index, err := e.LockKV(e.t.Context(), model.KV{Key: key, Value: []byte("locked"), Session: session})
	if e.must(index, err); !ok {
		e.t.Fatalf("lock of %s by %s: false", key, session)
	}
}

// holder is who holds the lock of an entry, "" for nobody.
func (e *env) holder(key string) string {
	if kv, _ := e.snap().KV(key); kv != nil {
		return kv.Session
	}
	return ""
}

func TestCreateSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := setup(t)
		e.check(model.Check{Node: "n1", ID: model.SerfHealth, Status: model.Passing})
		given := model.Session{ID: "mine", Node: "n1", Name: "x", TTL: 10 * time.Second, TTLText: "10s", LockDelay: time.Hour}
		id, index, err := e.CreateSession(t.Context(), given)
		e.must(index, err)
		s, _ := e.snap().Session(id)
		if uuid.Validate(id) != nil || s.ID != id || s.CreateIndex != index {
			t.Errorf("session %q = %+v, want a new id, made at %d", id, s, index)
		}
		if s.Behavior != model.SessionRelease || !slices.Equal(s.NodeChecks, []model.CheckID{model.SerfHealth}) || s.LockDelay != time.Hour || s.TTLText != "10s" {
			t.Errorf("session = %+v", s)
		}
		alive, _ := e.snap().Alive(id)
		if alive == nil || alive.CreateIndex >= index {
			t.Errorf("mark %+v, want one from before the session, %d", alive, index)
		}
		begin := time.Now()
		e.st.Wait(t.Context(), index+1) // the mark goes by itself
		if alive, _ := e.snap().Alive(id); alive != nil || time.Since(begin) != 20*time.Second {
			t.Errorf("mark %+v after %v, want none after twice the TTL", alive, time.Since(begin))
		}
	})
}

func TestSessionWithoutTTLHasNoMark(t *testing.T) {
	e := setup(t)
	id := e.session(model.Session{})
	if alive, _ := e.snap().Alive(id); alive != nil || len(e.leases) != 0 {
		t.Errorf("mark %+v", alive)
	}
	if s, err := e.RenewSession(t.Context(), id); err != nil || s.ID != id {
		t.Errorf("renewal: %+v, %v", s, err)
	}
}

func TestSessionsThatCannotBe(t *testing.T) {
	e := setup(t)
	e.check(model.Check{Node: "n1", ID: "ok", Status: model.Warning})
	e.check(model.Check{Node: "n1", ID: "bad", Status: model.Critical})
	tests := []struct {
		give model.Session
		want string
		is   error
	}{
		{model.Session{}, "Must provide Node", registry.ErrInvalid},
		{model.Session{Node: "n1", Behavior: "explode"}, "Invalid Behavior setting 'explode'", registry.ErrInvalid},
		{model.Session{Node: "n1", TTL: time.Second}, "Invalid Session TTL '1000000000', must be between [10s=24h0m0s]", registry.ErrInvalid},
		{model.Session{Node: "n1", TTL: 25 * time.Hour}, "Invalid Session TTL '90000000000000', must be between [10s=24h0m0s]", registry.ErrInvalid},
		{model.Session{Node: "n1", TTL: -1}, "Invalid Session TTL '-1', must be between [10s=24h0m0s]", registry.ErrInvalid},
		{model.Session{Node: "nowhere"}, "Missing node registration", registry.ErrUnknownNode},
		{model.Session{Node: "n1"}, "Missing check 'serfHealth' registration", nil},
		{model.Session{Node: "n1", NodeChecks: []model.CheckID{"ok", "gone"}, TTL: time.Minute}, "Missing check 'gone' registration", nil},
		{model.Session{Node: "n1", NodeChecks: []model.CheckID{"bad"}}, "Check 'bad' is in critical state", nil},
		{model.Session{Node: "n1", NodeChecks: []model.CheckID{}, ServiceChecks: []model.SessionService{{ID: "bad"}}, TTL: time.Minute}, "Check 'bad' is in critical state", nil},
	}
	for _, tt := range tests {
		_, _, err := e.CreateSession(t.Context(), tt.give)
		if err == nil || err.Error() != tt.want || tt.is != nil && !errors.Is(err, tt.is) {
			t.Errorf("%+v: %v, want %s", tt.give, err, tt.want)
		}
	}
	if list, _ := e.snap().Sessions(); len(list) != 0 || e.living() != 0 {
		t.Errorf("left: %d sessions, %d leases", len(list), e.living())
	}
	e.session(model.Session{TTL: 10 * time.Second, NodeChecks: []model.CheckID{"ok"}})
}

// A check that becomes critical while the session is being made is noticed.
func TestCheckTurnsWhileASessionIsMade(t *testing.T) {
	e := setup(t)
	e.check(model.Check{Node: "n1", ID: "c", Status: model.Passing})
	e.before = func() {
		if _, err := e.PutCheck(context.Background(), model.Check{Node: "n1", ID: "c", Status: model.Critical}); err != nil {
			t.Error(err)
		}
	}
	_, _, err := e.CreateSession(t.Context(), model.Session{Node: "n1", NodeChecks: []model.CheckID{"c"}})
	if err == nil || err.Error() != "Check 'c' is in critical state" {
		t.Errorf("error %v", err)
	}
}

// A session whose mark has gone before its record is written is not written.
func TestMarkGoesWhileASessionIsMade(t *testing.T) {
	e := setup(t)
	e.before = func() { e.end(e.leases[0]) }
	_, _, err := e.CreateSession(t.Context(), model.Session{Node: "n1", NodeChecks: []model.CheckID{}, TTL: time.Minute})
	if list, _ := e.snap().Sessions(); err == nil || len(list) != 0 {
		t.Errorf("error %v, %d sessions", err, len(list))
	}
}

func TestSessionTTLMin(t *testing.T) {
	f := newFake()
	r := registry.New(f, f.st, registry.Config{Node: "n1", SessionTTLMin: time.Second})
	if _, err := r.RegisterNode(t.Context(), model.Node{Name: "n1", Address: "10.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	s := model.Session{Node: "n1", NodeChecks: []model.CheckID{}, TTL: time.Second}
	if _, _, err := r.CreateSession(t.Context(), s); err != nil {
		t.Error(err)
	}
	s.TTL--
	_, _, err := r.CreateSession(t.Context(), s)
	if err == nil || err.Error() != "Invalid Session TTL '999999999', must be between [1s=24h0m0s]" {
		t.Errorf("error %v", err)
	}
}

func TestRenewSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := setup(t)
		id := e.session(model.Session{TTL: 10 * time.Second, Name: "x"})
		for range 5 {
			time.Sleep(19 * time.Second) // on the fake clock
			if s, err := e.RenewSession(t.Context(), id); err != nil || s.Name != "x" {
				t.Fatalf("renewal: %+v, %v", s, err)
			}
		}
		time.Sleep(20 * time.Second) // on the fake clock
		synctest.Wait()
		if _, err := e.RenewSession(t.Context(), id); !errors.Is(err, registry.ErrUnknownSession) {
			t.Errorf("renewal after its time: %v", err)
		}
		if _, err := e.RenewSession(t.Context(), uuid.NewString()); !errors.Is(err, registry.ErrUnknownSession) {
			t.Errorf("renewal of another: %v", err)
		}
	})
}

// A snapshot that does not show the session yet must not deny it.
func TestRenewalOnASnapshotThatLags(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := setup(t)
		e.hold()
		go func() {
			_, _, err := e.CreateSession(context.Background(), model.Session{Node: "n1", NodeChecks: []model.CheckID{}})
			if err != nil {
				t.Error(err)
			}
		}()
		synctest.Wait()
		var id string
		for k := range e.keys {
			if name, ok := strings.CutPrefix(k, store.SessionKey("")); ok {
				id = name
			}
		}
		if s, _ := e.snap().Session(id); id == "" || s != nil {
			t.Fatalf("session %q = %+v, want one that the snapshot does not show", id, s)
		}
		renewed := make(chan error, 1)
		go func() { _, err := e.RenewSession(context.Background(), id); renewed <- err }()
		synctest.Wait()
		e.release()
		if err := <-renewed; err != nil {
			t.Errorf("renewal: %v", err)
		}
	})
}

func TestDestroySession(t *testing.T) {
	for _, tt := range []struct {
		name  string
		s     model.Session
		stays bool
		delay time.Duration
	}{
		{"release", model.Session{LockDelay: time.Second}, true, time.Second},
		{"delete", model.Session{LockDelay: time.Second, Behavior: model.SessionDelete}, false, time.Second},
		{"no delay", model.Session{TTL: time.Hour}, true, 0},
		{"longest delay", model.Session{LockDelay: time.Hour}, true, time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := setup(t)
			id := e.session(tt.s)
			e.lock("a", id)
			e.lock("b", id)
			if ok, index, err := e.UnlockKV(t.Context(), model.KV{Key: "b", Session: id}); !ok || err != nil {
				t.Fatal(index, err)
			}
			_, index, err := e.PutKV(t.Context(), model.KV{Key: "a", Value: []byte("written meanwhile"), Flags: 3}, nil)
			e.must(index, err)
			end := e.must(e.DestroySession(t.Context(), id))
			if s, _ := e.snap().Session(id); s != nil || e.living() != 0 {
				t.Errorf("left: session %+v, %d leases", s, e.living())
			}
			kv, _ := e.snap().KV("a")
			if (kv != nil) != tt.stays {
				t.Fatalf("entry = %+v", kv)
			}
			if tt.stays && (string(kv.Value) != "written meanwhile" || kv.Flags != 3 || kv.Session != "" || kv.LockIndex != 1 || kv.ModifyIndex != end) {
				t.Errorf("entry = %+v, want it released at %d", kv, end)
			}
			if kv, _ := e.snap().KV("b"); kv == nil {
				t.Error("an entry that was released before is gone")
			}
			if d, _ := e.snap().LockDelay("b"); d != nil {
				t.Errorf("delay of what was released: %+v", d)
			}
			if d, _ := e.snap().LockDelay("a"); d == nil && tt.delay != 0 || d != nil && d.Delay != tt.delay {
				t.Errorf("delay = %+v, want %v", d, tt.delay)
			}
			e.unwritten(func() { e.must(e.DestroySession(t.Context(), id)) })
		})
	}
}

// A lock that is taken between the look at a session's locks and its end goes
// with it.
func TestLockTakenWhileItsSessionEnds(t *testing.T) {
	e := setup(t)
	id := e.session(model.Session{})
	e.lock("a", id)
	e.before = func() { e.lock("b", id) }
	e.must(e.DestroySession(t.Context(), id))
	if a, b := e.holder("a"), e.holder("b"); a != "" || b != "" {
		t.Errorf("held by %q and %q after the end", a, b)
	}
	if _, _, err := e.LockKV(t.Context(), model.KV{Key: "c", Session: id}); err == nil || err.Error() != fmt.Sprintf("invalid session %q", id) || !errors.Is(err, registry.ErrUnknownSession) {
		t.Errorf("lock with the dead session: %v", err)
	}
}

// A lock that is released between the look at a session's locks and its end does
// not go with it, and leaves no delay.
func TestLockReleasedWhileItsSessionEnds(t *testing.T) {
	e := setup(t)
	id := e.session(model.Session{Behavior: model.SessionDelete, LockDelay: time.Minute})
	e.lock("k", id)
	e.before = func() {
		if ok, _, err := e.UnlockKV(context.Background(), model.KV{Key: "k", Value: []byte("locked"), Session: id}); !ok {
			t.Error(ok, err)
		}
	}
	e.must(e.DestroySession(t.Context(), id))
	kv, _ := e.snap().KV("k")
	delay, _ := e.snap().LockDelay("k")
	if kv == nil || delay != nil {
		t.Errorf("entry %+v, delay %+v; want the entry as it was released", kv, delay)
	}
}

// With more locks than go into one transaction a session dies first, and then
// loses them.
func TestSessionWithManyLocks(t *testing.T) {
	const locks = 2500
	e := setup(t)
	id := e.session(model.Session{LockDelay: time.Second, TTL: time.Minute})
	for i := range locks {
		e.lock(fmt.Sprint("many/", i), id)
	}
	first := len(e.txns)
	e.before = func() {
		// A lock more, before the session is marked as dying.
		e.lock("late", id)
		e.before = func() {
			e.before = func() {
				if ok, _, err := e.LockKV(context.Background(), model.KV{Key: "too late", Session: id}); ok || !errors.Is(err, registry.ErrUnknownSession) {
					t.Errorf("lock with a dying session: %v, %v", ok, err)
				}
				if _, err := e.RenewSession(context.Background(), id); !errors.Is(err, registry.ErrUnknownSession) {
					t.Errorf("renewal of a dying session: %v", err)
				}
			}
		}
	}
	e.must(e.DestroySession(t.Context(), id))
	if s, _ := e.snap().Session(id); s != nil || len(e.snap().Locked(id)) != 0 || e.living() != 0 {
		t.Errorf("left: %+v, %d locks, %d leases", s, len(e.snap().Locked(id)), e.living())
	}
	delays, _ := e.snap().LockDelays()
	if len(delays) != locks+1 {
		t.Errorf("%d lock delays, want %d", len(delays), locks+1)
	}
	for _, txn := range e.txns[first:] {
		if n := max(len(txn.Puts)+len(txn.Deletes), len(txn.Compares)); n > store.MaxTxnOps {
			t.Errorf("a transaction with %d operations", n)
		}
	}
}

// Keys of any length go into chunks that the store takes.
func TestSessionWithLongKeys(t *testing.T) {
	f, st := startStore(t)
	r := newRegistry(f, st)
	if _, err := r.RegisterNode(t.Context(), model.Node{Name: "n1", Address: "10.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	id, _, err := r.CreateSession(t.Context(), model.Session{Node: "n1", NodeChecks: []model.CheckID{}, LockDelay: time.Second, Behavior: model.SessionDelete})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		kv := model.KV{Key: fmt.Sprintf("%0100000d", i), Session: id}
		if ok, _, err := r.LockKV(t.Context(), kv); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	if _, err := r.DestroySession(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if list, _ := st.Snapshot().KVTree(""); len(list) != 0 {
		t.Errorf("%d entries left", len(list))
	}
}
