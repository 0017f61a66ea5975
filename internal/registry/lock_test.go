package registry_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/registry"
	"github.com/fairlead-net/fairlead/internal/store"
)

// What becomes of one entry, step by step.
func TestLockAndUnlock(t *testing.T) {
	e := setup(t)
	ids := map[string]string{"a": e.session(model.Session{}), "b": e.session(model.Session{}), "": ""}
	type entry struct {
		holder    string
		lockIndex uint64
		value     string
	}
	steps := []struct {
		do, session, value string
		ok                 bool
		want               *entry
		written            bool
	}{
		{"unlock", "a", "0", false, nil, false},
		{"lock", "a", "1", true, &entry{"a", 1, "1"}, true},
		{"lock", "a", "1", true, &entry{"a", 1, "1"}, false},
		{"lock", "a", "2", true, &entry{"a", 1, "2"}, true},
		{"lock", "b", "3", false, &entry{"a", 1, "2"}, false},
		{"unlock", "b", "3", false, &entry{"a", 1, "2"}, false},
		{"put", "", "4", true, &entry{"a", 1, "4"}, true},
		{"unlock", "a", "5", true, &entry{"", 1, "5"}, true},
		{"unlock", "a", "5", false, &entry{"", 1, "5"}, false},
		{"lock", "b", "5", true, &entry{"b", 2, "5"}, true},
		{"unlock", "b", "5", true, &entry{"", 2, "5"}, true},
		{"lock", "b", "6", true, &entry{"b", 3, "6"}, true},
		{"delete", "", "", true, nil, true},
		{"lock", "a", "7", true, &entry{"a", 1, "7"}, true},
		{"put", "", "7", true, &entry{"a", 1, "7"}, false},
	}
	for i, step := range steps {
		before := e.revision()
		kv := model.KV{Key: "k", Value: []byte(step.value), Session: ids[step.session]}
		var ok bool
		var index model.Index
		var err error
		switch step.do {
		case "lock":
			ok, index, err = e.LockKV(t.Context(), kv)
		case "unlock":
			ok, index, err = e.UnlockKV(t.Context(), kv)
		case "put":
			ok, index, err = e.PutKV(t.Context(), kv, nil)
		case "delete":
			ok, index, err = e.DeleteKV(t.Context(), "k", nil)
		}
		e.must(index, err)
		if written := e.revision() != before; ok != step.ok || written != step.written {
			t.Errorf("step %d, %s by %q: %v, written %v; want %v, %v", i, step.do, step.session, ok, written, step.ok, step.written)
		}
		var got *entry
		if kv, _ := e.snap().KV("k"); kv != nil {
			got = &entry{value: string(kv.Value), lockIndex: kv.LockIndex}
			for name, id := range ids {
				if id == kv.Session {
					got.holder = name
				}
			}
			if step.written && kv.ModifyIndex != index {
				t.Errorf("step %d: modified at %d, want %d", i, kv.ModifyIndex, index)
			}
		}
		if (got == nil) != (step.want == nil) || got != nil && *got != *step.want {
			t.Errorf("step %d, %s by %q: %+v, want %+v", i, step.do, step.session, got, step.want)
		}
	}
}

// Keys are bytes; what is recorded of a lock's delay must find its key again.
func TestLockDelayOfAKeyThatIsNoText(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := setup(t)
		const key = "k\xff/<\x01"
		id := e.session(model.Session{LockDelay: time.Second})
		e.lock(key, id)
		e.must(e.DestroySession(t.Context(), id))
		again := model.KV{Key: key, Session: e.session(model.Session{})}
		ok, index, err := e.LockKV(t.Context(), again)
		if e.must(index, err); ok {
			t.Error("locked during the delay")
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() {
			if err := e.Reap(ctx, func() {}); err != nil {
				t.Error(err)
			}
		}()
		<-time.After(time.Minute)
		synctest.Wait()
		if n := e.count(store.LockDelayKey("")); n != 0 {
			t.Errorf("%d lock delays are left", n)
		}
		ok, index, err = e.LockKV(t.Context(), again)
		if e.must(index, err); !ok {
			t.Error("not locked after the delay")
		}
	})
}

func TestLockRefusals(t *testing.T) {
	e := setup(t)
	id := e.session(model.Session{})
	tests := []struct {
		kv   model.KV
		want string
		is   error
	}{
		{model.KV{Key: "k", Session: "nobody"}, `invalid session "nobody"`, registry.ErrUnknownSession},
		{model.KV{Key: "k"}, "missing session", registry.ErrInvalid},
		{model.KV{Session: id}, "", registry.ErrInvalid},
		{model.KV{Key: "k", Session: id, Value: make([]byte, registry.MaxValue+1)}, "", registry.ErrValueTooLarge},
	}
	for _, tt := range tests {
		ok, _, err := e.LockKV(t.Context(), tt.kv)
		if ok || !errors.Is(err, tt.is) || tt.want != "" && err.Error() != tt.want {
			t.Errorf("%+v: %v, %v; want %s", tt.kv.Key, ok, err, tt.want)
		}
	}
	// A session that is gone holds nothing, so Consul does not look it up.
	if ok, _, err := e.UnlockKV(t.Context(), model.KV{Key: "k", Session: "nobody"}); ok || err != nil {
		t.Errorf("unlock with an unknown session: %v, %v", ok, err)
	}
	if kv, _ := e.snap().KV("k"); kv != nil {
		t.Errorf("written: %+v", kv)
	}
}

func TestLockDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := setup(t)
		old := e.session(model.Session{LockDelay: 15 * time.Second, Behavior: model.SessionDelete})
		next := e.session(model.Session{})
		e.lock("k", old)
		e.must(e.DestroySession(t.Context(), old))
		try := func() bool {
			ok, _, err := e.LockKV(t.Context(), model.KV{Key: "k", Session: next})
			if err != nil {
				t.Error(err)
			}
			return ok
		}
		if try() {
			t.Error("locked at once")
		}
		time.Sleep(15*time.Second - 1) // on the fake clock
		if try() {
			t.Error("locked a moment before the delay was over")
		}
		// Everybody else may write it.
		_, index, err := e.PutKV(t.Context(), model.KV{Key: "k", Value: []byte("v")}, nil)
		e.must(index, err)
		time.Sleep(time.Nanosecond)
		if !try() {
			t.Error("not locked after the delay")
		}
	})
}

// Who plans on a snapshot from before a lock was taken and lost again must still
// see the delay that followed, even if the entry is as absent as before.
func TestLockDelayThatCameMeanwhile(t *testing.T) {
	e := setup(t)
	first := e.session(model.Session{LockDelay: time.Minute, Behavior: model.SessionDelete})
	second := e.session(model.Session{})
	e.before = func() {
		e.lock("k", first)
		e.must(e.DestroySession(context.Background(), first))
	}
	// A registry of its own, as on another server: no queue in common.
	ok, _, err := newRegistry(e.fake, e.st).LockKV(t.Context(), model.KV{Key: "k", Session: second})
	if ok || err != nil {
		t.Errorf("locked during the delay: %v, %v", ok, err)
	}
}

// Conditional writes go by the larger of the indexes of value and lock, and
// notice a change of either.
func TestConditionalWritesOfLockedEntries(t *testing.T) {
	e := setup(t)
	id := e.session(model.Session{})
	e.lock("k", id)
	mod := func() model.Index { kv, _ := e.snap().KV("k"); return kv.ModifyIndex }
	cas := func(value string, at model.Index) bool {
		t.Helper()
		ok, index, err := e.PutKV(t.Context(), model.KV{Key: "k", Value: []byte(value)}, &at)
		e.must(index, err)
		return ok
	}
	first := mod()
	if !cas("1", first) || cas("2", first) || !cas("2", mod()) {
		t.Error("compare and set of a held entry")
	}
	value := mod()
	if ok, index, err := e.UnlockKV(t.Context(), model.KV{Key: "k", Value: []byte("2"), Session: id}); !ok {
		t.Fatal(index, err)
	}
	if cas("3", value) {
		t.Error("set, though the lock had changed")
	}
	if !cas("3", mod()) {
		t.Error("not set with the lock's index")
	}
	if kv, _ := e.snap().KV("k"); kv.LockIndex != 1 || string(kv.Value) != "3" {
		t.Errorf("entry = %+v", kv)
	}
	// The lock alone changes between plan and commit.
	release := func() {
		kv, _ := e.snap().KV("k")
		if ok, _, err := e.UnlockKV(context.Background(), model.KV{Key: "k", Value: kv.Value, Session: id}); !ok {
			t.Error(ok, err)
		}
	}
	e.lock("k", id)
	at := mod()
	e.before = release
	if cas("4", at) {
		t.Error("set, though the lock changed meanwhile")
	}
	e.lock("k", id)
	at = mod()
	e.before = release
	if ok, _, err := e.DeleteKV(t.Context(), "k", &at); ok || err != nil {
		t.Errorf("deleted, though the lock changed meanwhile: %v", err)
	}
	if ok, _, err := e.DeleteKV(t.Context(), "k", new(mod())); !ok || err != nil {
		t.Errorf("delete: %v, %v", ok, err)
	}
}

// Who releases a lock that has passed to another meanwhile releases nothing.
func TestUnlockOfWhatHasPassedOn(t *testing.T) {
	e := setup(t)
	old, next := e.session(model.Session{}), e.session(model.Session{})
	e.lock("k", old)
	e.before = func() {
		e.must(e.DestroySession(context.Background(), old))
		e.lock("k", next)
	}
	// A registry of its own, as on another server: no queue in common.
	ok, _, err := newRegistry(e.fake, e.st).UnlockKV(t.Context(), model.KV{Key: "k", Value: []byte("mine no more"), Session: old})
	if ok || err != nil || e.holder("k") != next {
		t.Errorf("released: %v, %v; held by %q, want %q", ok, err, e.holder("k"), next)
	}
}

// Two who plan to take a free lock at once cannot both get it.
func TestLockTakenMeanwhile(t *testing.T) {
	e := setup(t)
	one, two := e.session(model.Session{}), e.session(model.Session{})
	e.before = func() { e.lock("k", one) }
	ok, _, err := newRegistry(e.fake, e.st).LockKV(t.Context(), model.KV{Key: "k", Session: two})
	if ok || err != nil || e.holder("k") != one {
		t.Errorf("locked too: %v, %v; held by %q", ok, err, e.holder("k"))
	}
}
