package compat

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// lost waits until a holder hears that it holds no more.
func lost(t *testing.T, what string, leader <-chan struct{}) {
	t.Helper()
	select {
	case <-leader:
	case <-time.After(settleLimit):
		t.Fatalf("%s: the holder did not hear of it", what)
	}
}

func held(t *testing.T, what string, leader <-chan struct{}) {
	t.Helper()
	select {
	case <-leader:
		t.Fatalf("%s: the lock is lost", what)
	default:
	}
}

func takeLock(t *testing.T, l *api.Lock) <-chan struct{} {
	t.Helper()
	leader, err := l.Lock(nil)
	if err != nil || leader == nil {
		t.Fatalf("lock: %v, %v", leader, err)
	}
	return leader
}

func newLock(t *testing.T, c *api.Client, o api.LockOptions) *api.Lock {
	t.Helper()
	l, err := c.LockOpts(&o)
	must(t, err)
	return l
}

func TestLockMethods(t *testing.T) {
	c := startAgent(t).client()
	l, err := c.LockKey("lock/a")
	must(t, err)
	if err := l.Unlock(); !errors.Is(err, api.ErrLockNotHeld) {
		t.Errorf("unlock before lock: %v", err)
	}
	leader := takeLock(t, l)
	if _, err := l.Lock(nil); !errors.Is(err, api.ErrLockHeld) {
		t.Errorf("lock twice: %v", err)
	}
	if err := l.Destroy(); !errors.Is(err, api.ErrLockHeld) {
		t.Errorf("destroy while holding: %v", err)
	}
	held(t, "after misuse", leader)

	// One that does not want to wait for ever goes away with nothing.
	once := newLock(t, c, api.LockOptions{Key: "lock/a", LockTryOnce: true, LockWaitTime: 100 * time.Millisecond})
	if leader, err := once.Lock(nil); err != nil || leader != nil {
		t.Errorf("try once: %v, %v", leader, err)
	}
	// One that is stopped while it waits, too.
	waiting := newLock(t, c, api.LockOptions{Key: "lock/a", LockWaitTime: 100 * time.Millisecond})
	stop := make(chan struct{})
	close(stop)
	if leader, err := waiting.Lock(stop); err != nil || leader != nil {
		t.Errorf("stopped: %v, %v", leader, err)
	}

	// The next in line gets it when it is released.
	next := newLock(t, c, api.LockOptions{Key: "lock/a", Value: []byte("next")})
	got := make(chan (<-chan struct{}), 1)
	go func() {
		leader, err := next.Lock(nil)
		if err != nil {
			t.Error(err)
		}
		got <- leader
	}()
	must(t, l.Unlock())
	lost(t, "unlocked", leader)
	leader = <-got
	held(t, "the next in line", leader)
	if p, _, err := c.KV().Get("lock/a", nil); err != nil || string(p.Value) != "next" || p.Flags != api.LockFlagValue {
		t.Errorf("the lock's entry: %+v, %v", p, err)
	}
	if err := l.Destroy(); !errors.Is(err, api.ErrLockInUse) {
		t.Errorf("destroy while another holds: %v", err)
	}
	must(t, next.Unlock())
	must(t, next.Destroy())
	if p, _, err := c.KV().Get("lock/a", nil); err != nil || p != nil {
		t.Errorf("after destroying it: %+v, %v", p, err)
	}
	must(t, l.Destroy()) // what is not there is destroyed already

	_, err = c.KV().Put(kv("lock/b", "no lock"), nil)
	must(t, err)
	foreign := newLock(t, c, api.LockOptions{Key: "lock/b"})
	if _, err := foreign.Lock(nil); !errors.Is(err, api.ErrLockConflict) {
		t.Errorf("an entry that is no lock: %v", err)
	}
}

// TestLostLocks: every way in which a holder can lose its lock is told to it.
func TestLostLocks(t *testing.T) {
	c := startAgent(t, "session-ttl-min=1s").client()
	for name, take := range map[string]func(session string) error{
		"session destroyed": func(s string) error { _, err := c.Session().Destroy(s, nil); return err },
		"entry removed":     func(string) error { _, err := c.KV().Delete("lost", nil); return err },
		"tree removed":      func(string) error { _, err := c.KV().DeleteTree("", nil); return err },
		"released by force": func(s string) error {
			_, _, err := c.KV().Release(&api.KVPair{Key: "lost", Session: s, Flags: api.LockFlagValue}, nil)
			return err
		},
		"session expired": func(string) error { return nil },
	} {
		session := newSession(t, c, &api.SessionEntry{LockDelay: time.Millisecond, TTL: map[bool]string{true: "1s"}[name == "session expired"]})
		l := newLock(t, c, api.LockOptions{Key: "lost", Session: session})
		leader := takeLock(t, l)
		must(t, take(session))
		lost(t, name, leader)
		_, err := c.KV().DeleteTree("", nil)
		must(t, err)
	}
}

// TestOneHolderAtATime: of many contenders exactly one holds the lock, and who
// waits for its release is woken.
func TestOneHolderAtATime(t *testing.T) {
	const contenders, rounds = 8, 10
	a := startAgent(t)
	var wg sync.WaitGroup
	var inside atomic.Int32
	for range contenders {
		c := a.client()
		id := newSession(t, c, nil)
		wg.Go(func() {
			for range rounds {
				for {
					ok, _, err := c.KV().Acquire(&api.KVPair{Key: "one", Session: id}, nil)
					if err != nil {
						t.Error(err)
						return
					}
					if ok {
						break
					}
					p, meta, err := c.KV().Get("one", nil)
					if err == nil && p.Session != "" {
						_, _, err = c.KV().Get("one", &api.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: settleLimit})
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
				if n := inside.Add(1); n != 1 {
					t.Errorf("%d holders", n)
				}
				inside.Add(-1)
				if ok, _, err := c.KV().Release(&api.KVPair{Key: "one", Session: id}, nil); err != nil || !ok {
					t.Errorf("release: %v, %v", ok, err)
				}
			}
		})
	}
	start := time.Now()
	wg.Wait()
	if took := time.Since(start); took >= settleLimit {
		t.Errorf("took %v: somebody was not woken", took)
	}
	if p, _, err := a.client().KV().Get("one", nil); err != nil || p.Session != "" || p.LockIndex != contenders*rounds {
		t.Errorf("in the end: %+v, %v", p, err)
	}
}

// unsteady is an agent behind a proxy that can be made to answer 500 to reads.
func unsteady(t *testing.T, a *agent) (*api.Client, *atomic.Bool) {
	t.Helper()
	u, err := url.Parse("http://" + a.http)
	must(t, err)
	var broken atomic.Bool
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(u) },
		ModifyResponse: func(r *http.Response) error {
			if broken.Load() && r.Request.Method == http.MethodGet {
				r.StatusCode = http.StatusInternalServerError
			}
			return nil
		},
	}
	srv := httptest.NewServer(proxy)
	t.Cleanup(srv.Close)
	cfg := api.DefaultNonPooledConfig()
	cfg.Address = strings.TrimPrefix(srv.URL, "http://")
	c, err := api.NewClient(cfg)
	must(t, err)
	return c, &broken
}

// TestLockMonitorRetries: a holder that retries rides out answers that fail; one
// that does not gives up, though it holds the lock.
func TestLockMonitorRetries(t *testing.T) {
	a := startAgent(t)
	c, broken := unsteady(t, a)
	steady := newLock(t, c, api.LockOptions{Key: "steady", MonitorRetries: 1000, MonitorRetryTime: 10 * time.Millisecond})
	leader := takeLock(t, steady)
	nervous := takeLock(t, newLock(t, c, api.LockOptions{Key: "nervous"}))
	broken.Store(true)
	for _, key := range []string{"steady", "nervous"} { // wakes the monitors, into the failure
		p, _, err := a.client().KV().Get(key, nil)
		must(t, err)
		_, err = a.client().KV().Put(&api.KVPair{Key: key, Value: []byte("x"), Flags: p.Flags}, nil)
		must(t, err)
	}
	lost(t, "without retries", nervous)
	broken.Store(false)
	held(t, "with retries", leader)
	must(t, steady.Unlock())
	lost(t, "unlocked", leader)
}

func newSemaphore(t *testing.T, c *api.Client, o api.SemaphoreOptions) *api.Semaphore {
	t.Helper()
	s, err := c.SemaphoreOpts(&o)
	must(t, err)
	return s
}

func takeSlot(t *testing.T, s *api.Semaphore) <-chan struct{} {
	t.Helper()
	slot, err := s.Acquire(nil)
	if err != nil || slot == nil {
		t.Fatalf("acquire: %v, %v", slot, err)
	}
	return slot
}

func TestSemaphoreMethods(t *testing.T) {
	c := startAgent(t).client()
	one, err := c.SemaphorePrefix("sem/a", 2)
	must(t, err)
	if err := one.Release(); !errors.Is(err, api.ErrSemaphoreNotHeld) {
		t.Errorf("release before acquire: %v", err)
	}
	first := takeSlot(t, one)
	if _, err := one.Acquire(nil); !errors.Is(err, api.ErrSemaphoreHeld) {
		t.Errorf("acquire twice: %v", err)
	}
	two := newSemaphore(t, c, api.SemaphoreOptions{Prefix: "sem/a", Limit: 2, Value: []byte("two")})
	second := takeSlot(t, two)
	// There are two slots and no third.
	once := newSemaphore(t, c, api.SemaphoreOptions{Prefix: "sem/a", Limit: 2, SemaphoreTryOnce: true, SemaphoreWaitTime: 100 * time.Millisecond})
	if slot, err := once.Acquire(nil); err != nil || slot != nil {
		t.Errorf("a third of two: %v, %v", slot, err)
	}
	other := newSemaphore(t, c, api.SemaphoreOptions{Prefix: "sem/a", Limit: 3})
	if _, err := other.Acquire(nil); err == nil || !strings.Contains(err.Error(), "limit conflict") {
		t.Errorf("another limit: %v", err)
	}
	if err := two.Destroy(); !errors.Is(err, api.ErrSemaphoreHeld) {
		t.Errorf("destroy while holding: %v", err)
	}
	three := newSemaphore(t, c, api.SemaphoreOptions{Prefix: "sem/a", Limit: 2})
	got := make(chan (<-chan struct{}), 1)
	go func() {
		slot, err := three.Acquire(nil)
		if err != nil {
			t.Error(err)
		}
		got <- slot
	}()
	must(t, one.Release())
	lost(t, "released", first)
	third := <-got
	held(t, "the second", second)
	held(t, "the next in line", third)
	if err := one.Destroy(); !errors.Is(err, api.ErrSemaphoreInUse) {
		t.Errorf("destroy while others hold: %v", err)
	}
	must(t, two.Release())
	must(t, three.Release())
	must(t, one.Destroy())
	if keys, _, err := c.KV().Keys("sem/", "", nil); err != nil || len(keys) != 0 {
		t.Errorf("left behind: %q, %v", keys, err)
	}
}

func TestLostSlots(t *testing.T) {
	c := startAgent(t).client()
	for name, take := range map[string]func(session string) error{
		"session destroyed":  func(s string) error { _, err := c.Session().Destroy(s, nil); return err },
		"contender removed":  func(s string) error { _, err := c.KV().Delete("sem/"+s, nil); return err },
		"everything removed": func(string) error { _, err := c.KV().DeleteTree("sem/", nil); return err },
	} {
		session := newSession(t, c, &api.SessionEntry{Behavior: api.SessionBehaviorDelete, LockDelay: time.Millisecond})
		slot := takeSlot(t, newSemaphore(t, c, api.SemaphoreOptions{Prefix: "sem", Limit: 1, Session: session}))
		must(t, take(session))
		lost(t, name, slot)
		_, err := c.KV().DeleteTree("", nil)
		must(t, err)
	}
}

// TestSemaphoreConflict: a lock's key is no semaphore's.
func TestSemaphoreConflict(t *testing.T) {
	c := startAgent(t).client()
	l := newLock(t, c, api.LockOptions{Key: "sem/" + api.DefaultSemaphoreKey})
	takeLock(t, l)
	if _, err := newSemaphore(t, c, api.SemaphoreOptions{Prefix: "sem", Limit: 1}).Acquire(nil); !errors.Is(err, api.ErrSemaphoreConflict) {
		t.Errorf("a semaphore where a lock is: %v", err)
	}
	must(t, l.Unlock())
	takeSlot(t, newSemaphore(t, c, api.SemaphoreOptions{Prefix: "other", Limit: 1}))
	if _, err := newLock(t, c, api.LockOptions{Key: "other/" + api.DefaultSemaphoreKey}).Lock(nil); !errors.Is(err, api.ErrLockConflict) {
		t.Errorf("a lock where a semaphore is: %v", err)
	}
}
