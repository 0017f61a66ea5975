package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-net/fairlead/api"
)

// lockAgent has one key, which a session may hold; what it says of sessions can be changed.
type lockAgent struct {
	holder  string
	flags   uint64 // of an entry that nobody holds; 0: there is none
	ended   bool   // the session
	refuses int    // so many attempts more
}

func (a *fakeAgent) locks(l *lockAgent) {
	a.answer = func(r *http.Request, _ string) (int, string) {
		a.mu.Lock()
		defer a.mu.Unlock()
		path, q := r.URL.Path, r.URL.Query()
		switch {
		case path == "/v1/session/create":
			l.ended = false
			return 200, `{"ID": "me"}`
		case strings.HasPrefix(path, "/v1/session/renew/") && l.ended:
			return 404, "no such session"
		case q.Has("acquire") && l.ended:
			return 500, `invalid session "me"`
		case q.Has("acquire"):
			if l.refuses > 0 {
				l.refuses--
				return 200, "false"
			}
			l.holder = "me"
			return 200, "true"
		case q.Has("release"):
			l.holder = ""
			return 200, "true"
		case r.Method == http.MethodGet && l.holder == "" && l.flags == 0:
			return 404, ""
		case r.Method == http.MethodGet:
			flags := l.flags
			if l.holder != "" {
				flags = api.LockFlags
			}
			b, _ := json.Marshal([]api.KV{{Key: "k", Flags: flags, Session: l.holder, ModifyIndex: 7}})
			return 200, string(b)
		}
		return 200, "true"
	}
}

func takeLock(t *testing.T, c *api.Client) *api.Lock {
	t.Helper()
	l, err := c.Lock(t.Context(), "k", api.LockOptions{Value: []byte("v")})
	if err != nil {
		t.Fatal(err)
	}
	if l.Fence() != 7 || l.Err() != nil {
		t.Errorf("fence %d, %v; want 7", l.Fence(), l.Err())
	}
	return l
}

func TestLockIsHeldUntilReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, c := newFakeAgent(t)
		var k lockAgent
		a.locks(&k)
		l := takeLock(t, c)
		time.Sleep(10 * time.Minute)
		select {
		case <-l.Lost():
			t.Fatal("the lock is lost", l.Err())
		default:
		}
		if err := l.Release(t.Context()); err != nil || k.holder != "" || l.Err() != nil {
			t.Errorf("Release = %v; held by %q, %v", err, k.holder, l.Err())
		}
		<-l.Lost()
		if err := l.Release(t.Context()); err != nil {
			t.Errorf("second Release: %v", err)
		}
	})
}

// Who cannot reach the agent gives the lock up before the agent can give it to another.
func TestLockIsLostWithTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, c := newFakeAgent(t)
		a.locks(&lockAgent{})
		l := takeLock(t, c)
		work, stop := l.Context(t.Context())
		defer stop()
		time.Sleep(time.Minute)
		began := time.Now()
		a.set(func() { a.away = true })
		<-l.Lost()
		if took := time.Since(began); took > api.DefaultLockTTL || !errors.Is(l.Err(), api.ErrLockLost) {
			t.Errorf("lost after %s: %v", took, l.Err())
		}
		<-work.Done()
		if err := context.Cause(work); !errors.Is(err, api.ErrLockLost) {
			t.Errorf("the work ended with %v", err)
		}
	})
}

// An agent that is away for less than the TTL takes no lock.
func TestLockOutlivesAShortAbsence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, c := newFakeAgent(t)
		a.locks(&lockAgent{})
		l := takeLock(t, c)
		for range 5 {
			a.set(func() { a.away = true })
			time.Sleep(api.DefaultLockTTL / 3)
			a.set(func() { a.away = false })
			time.Sleep(api.DefaultLockTTL)
		}
		if l.Err() != nil {
			t.Errorf("lost: %v", l.Err())
		}
		if err := l.Release(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestLockIsLost(t *testing.T) {
	for name, lose := range map[string]func(*lockAgent){
		"its session has ended": func(k *lockAgent) { k.ended = true },
		"it was taken away":     func(k *lockAgent) { k.holder = "you" },
	} {
		synctest.Test(t, func(t *testing.T) {
			a, c := newFakeAgent(t)
			var k lockAgent
			a.locks(&k)
			l := takeLock(t, c)
			a.set(func() { lose(&k) })
			<-l.Lost()
			if err := l.Err(); !errors.Is(err, api.ErrLockLost) || !strings.Contains(err.Error(), name) {
				t.Errorf("Err = %v; want %s", err, name)
			}
		})
	}
}

// A lock that nobody holds but that is refused, for the delay, is asked for again; not in a loop.
func TestLockWaitsForTheDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, c := newFakeAgent(t)
		a.locks(&lockAgent{refuses: 15})
		began := time.Now()
		l := takeLock(t, c)
		if took := time.Since(began); took < 15*time.Second || took > 20*time.Second {
			t.Errorf("taken after %s; want after 15 pauses of a second", took)
		}
		if err := l.Release(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestLockErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, c := newFakeAgent(t)
		a.locks(&lockAgent{flags: 1})
		if _, err := c.Lock(t.Context(), "k", api.LockOptions{}); !errors.Is(err, api.ErrNoLock) {
			t.Errorf("lock of what is no lock: %v", err)
		}
		a.locks(&lockAgent{refuses: 1 << 30})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := c.Lock(ctx, "k", api.LockOptions{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("lock that is not to be had: %v", err)
		}
	})
}

// A leader that is lost campaigns again; one whose function returns is done.
func TestLeadAgainAfterALoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, c := newFakeAgent(t)
		var k lockAgent
		a.locks(&k)
		terms := 0
		err := c.NewElection("k", "me", api.LockOptions{}).Lead(t.Context(), func(ctx context.Context, _ *api.Term) error {
			if terms++; terms == 3 {
				return nil
			}
			a.set(func() { k.ended = true })
			<-ctx.Done()
			return nil
		})
		if err != nil || terms != 3 {
			t.Errorf("Lead = %v after %d terms; want 3", err, terms)
		}
	})
}
