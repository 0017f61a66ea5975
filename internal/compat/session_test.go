package compat

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// newSession creates a session; nil is one with the defaults.
func newSession(t testing.TB, c *api.Client, e *api.SessionEntry) string {
	t.Helper()
	id, _, err := c.Session().Create(e, nil)
	must(t, err)
	return id
}

func acquire(t testing.TB, c *api.Client, key, session string) bool {
	t.Helper()
	ok, _, err := c.KV().Acquire(&api.KVPair{Key: key, Value: []byte(session), Session: session}, nil)
	must(t, err)
	return ok
}

func TestSessionMethods(t *testing.T) {
	c := startAgent(t).client()
	s := c.Session()
	plain := newSession(t, c, nil)
	e, meta, err := s.Info(plain, nil)
	must(t, err)
	if e.ID != plain || e.Node != "n1" || e.LockDelay != 15*time.Second || e.Behavior != api.SessionBehaviorRelease || e.TTL != "" ||
		!slices.Equal(e.NodeChecks, []string{"serfHealth"}) || len(e.ServiceChecks) != 0 || e.CreateIndex == 0 || meta.LastIndex < e.CreateIndex {
		t.Errorf("a session with the defaults: %+v, %+v", e, meta)
	}
	full := newSession(t, c, &api.SessionEntry{Name: "mine", Node: "n1", LockDelay: 20 * time.Second, Behavior: api.SessionBehaviorDelete, TTL: "30s"})
	if e, _, err = s.Info(full, nil); err != nil || e.Name != "mine" || e.LockDelay != 20*time.Second || e.Behavior != "delete" || e.TTL != "30s" {
		t.Errorf("a session with everything: %+v, %v", e, err)
	}
	free, _, err := s.CreateNoChecks(&api.SessionEntry{Name: "free", TTL: "30s"}, nil)
	must(t, err)
	if e, _, err = s.Info(free, nil); err != nil || len(e.NodeChecks) != 0 {
		t.Errorf("a session without checks: %+v, %v", e, err)
	}
	for name, list := range map[string]func() ([]*api.SessionEntry, *api.QueryMeta, error){
		"list": func() ([]*api.SessionEntry, *api.QueryMeta, error) { return s.List(nil) },
		"node": func() ([]*api.SessionEntry, *api.QueryMeta, error) { return s.Node("n1", nil) },
	} {
		if all, _, err := list(); err != nil || len(all) != 3 {
			t.Errorf("%s: %d sessions, %v", name, len(all), err)
		}
	}
	if all, _, err := s.Node("elsewhere", nil); err != nil || len(all) != 0 {
		t.Errorf("sessions of a node that is not there: %v, %v", all, err)
	}
	if e, _, err := s.Renew(full, nil); err != nil || e == nil || e.ID != full {
		t.Errorf("renew: %+v, %v", e, err)
	}
	if e, _, err := s.Renew(plain, nil); err != nil || e == nil {
		t.Errorf("renew a session without a TTL: %+v, %v", e, err)
	}
	if e, _, err := s.Renew("none", nil); err != nil || e != nil {
		t.Errorf("renew what is not there: %+v, %v", e, err)
	}
	for range 2 {
		_, err = s.Destroy(full, nil)
		must(t, err)
	}
	if e, _, err := s.Info(full, nil); err != nil || e != nil {
		t.Errorf("after its end: %+v, %v", e, err)
	}
}

func TestSessionRefusals(t *testing.T) {
	c := startAgent(t).client()
	must(t, c.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: "db", Check: &api.AgentServiceCheck{TTL: "1h"}}))
	for _, x := range []struct {
		e    api.SessionEntry
		want string
	}{
		{api.SessionEntry{TTL: "1s"}, "Invalid Session TTL '1000000000', must be between [10s=24h0m0s]"},
		{api.SessionEntry{TTL: "48h"}, "Invalid Session TTL"},
		{api.SessionEntry{TTL: "x"}, "Session TTL 'x' invalid"},
		{api.SessionEntry{Behavior: "x"}, "Invalid Behavior setting 'x'"},
		{api.SessionEntry{Node: "none"}, "Missing node registration"},
		{api.SessionEntry{NodeChecks: []string{"none"}}, "Missing check 'none' registration"},
		{api.SessionEntry{ServiceChecks: []api.ServiceCheck{{ID: "service:db"}}}, "Check 'service:db' is in critical state"},
	} {
		_, _, err := c.Session().Create(&x.e, nil)
		if err == nil || !strings.Contains(err.Error(), "500 ("+x.want) {
			t.Errorf("%+v: %v, want 500 %s", x.e, err, x.want)
		}
	}
}

// TestSessionEndsWithItsCheck: a session that depends on a service's check ends
// when that becomes critical, and its locks with it.
func TestSessionEndsWithItsCheck(t *testing.T) {
	c := startAgent(t).client()
	must(t, c.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: "db", Check: &api.AgentServiceCheck{TTL: "1h", Status: api.HealthPassing}}))
	keep := newSession(t, c, &api.SessionEntry{ServiceChecks: []api.ServiceCheck{{ID: "service:db"}}, LockDelay: time.Millisecond})
	gone := newSession(t, c, &api.SessionEntry{Checks: []string{"serfHealth", "service:db"}, Behavior: api.SessionBehaviorDelete, LockDelay: time.Millisecond})
	other := newSession(t, c, nil)
	for key, id := range map[string]string{"keep": keep, "gone": gone, "other": other} {
		if !acquire(t, c, key, id) {
			t.Fatal("could not lock " + key)
		}
	}
	before, _, err := c.KV().Get("keep", nil)
	must(t, err)
	must(t, c.Agent().UpdateTTL("service:db", "dead", api.HealthCritical))
	eventually(t, func() error {
		kept, _, err1 := c.KV().Get("keep", nil)
		removed, _, err2 := c.KV().Get("gone", nil)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		if kept == nil || kept.Session != "" || string(kept.Value) != keep || kept.LockIndex != 1 || kept.ModifyIndex <= before.ModifyIndex || removed != nil {
			return fmt.Errorf("released %+v, deleted %+v", kept, removed)
		}
		return nil
	})
	all, _, err := c.Session().List(nil)
	must(t, err)
	if len(all) != 1 || all[0].ID != other {
		t.Errorf("sessions left: %+v", all)
	}
	if p, _, err := c.KV().Get("other", nil); err != nil || p.Session != other {
		t.Errorf("a lock of another session: %+v, %v", p, err)
	}
}

// TestSessionExpires: without a renewal a session lives at least its TTL and not
// much longer than two; a waiting reader hears of its end.
func TestSessionExpires(t *testing.T) {
	const ttl = time.Second
	c := startAgent(t, "session-ttl-min=1s").client()
	start := time.Now()
	id := newSession(t, c, &api.SessionEntry{TTL: ttl.String(), LockDelay: time.Millisecond})
	if !acquire(t, c, "leader", id) {
		t.Fatal("could not lock")
	}
	_, meta, err := c.KV().Get("leader", nil)
	must(t, err)
	p, _, err := c.KV().Get("leader", &api.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: settleLimit})
	must(t, err)
	if took := time.Since(start); p == nil || p.Session != "" || took < ttl || took > 2*ttl+3*time.Second {
		t.Errorf("after %v: %+v", took, p)
	}
	if e, _, err := c.Session().Renew(id, nil); err != nil || e != nil {
		t.Errorf("renew after the end: %+v, %v", e, err)
	}
	if _, _, err := c.KV().Acquire(&api.KVPair{Key: "leader", Session: id}, nil); err == nil || !strings.Contains(err.Error(), `invalid session "`+id+`"`) {
		t.Errorf("lock with a session that has ended: %v", err)
	}
}

// TestSessionLivesOnRenewals: renewed in time, a session outlives its TTL many
// times; once its owner stops, it is destroyed.
func TestSessionLivesOnRenewals(t *testing.T) {
	const ttl = time.Second
	c := startAgent(t, "session-ttl-min=1s").client()
	id := newSession(t, c, &api.SessionEntry{TTL: ttl.String()})
	done, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- c.Session().RenewPeriodic(ttl.String(), id, nil, done) }()
	_, meta, err := c.Session().Info(id, nil)
	must(t, err)
	// Nothing happens to it for four TTLs.
	e, _, err := c.Session().Info(id, &api.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: 4 * ttl})
	if err != nil || e == nil {
		t.Fatalf("while it was renewed: %+v, %v", e, err)
	}
	close(done)
	must(t, <-ended)
	if e, _, err := c.Session().Info(id, nil); err != nil || e != nil {
		t.Errorf("after its owner stopped: %+v, %v", e, err)
	}
	// Whoever renews what has gone is told so.
	ctx, cancel := context.WithTimeout(t.Context(), settleLimit)
	defer cancel()
	if err := c.Session().RenewPeriodic(ttl.String(), id, (&api.WriteOptions{}).WithContext(ctx), make(chan struct{})); !errors.Is(err, api.ErrSessionExpired) {
		t.Errorf("renewing what has gone: %v", err)
	}
}

// TestLockDelay: a lock that a session's end took away cannot be taken again for
// its lock delay; one that was released can, at once.
func TestLockDelay(t *testing.T) {
	const delay = 2 * time.Second
	c := startAgent(t).client()
	first := newSession(t, c, &api.SessionEntry{LockDelay: delay})
	next := newSession(t, c, nil)
	if !acquire(t, c, "released", first) || !acquire(t, c, "lost", first) || acquire(t, c, "lost", next) {
		t.Fatal("the first session does not hold both locks alone")
	}
	if ok, _, err := c.KV().Release(&api.KVPair{Key: "released", Session: first}, nil); err != nil || !ok {
		t.Fatalf("release: %v, %v", ok, err)
	}
	if !acquire(t, c, "released", next) {
		t.Error("a lock that was released is delayed")
	}
	start := time.Now()
	_, err := c.Session().Destroy(first, nil)
	must(t, err)
	eventually(t, func() error {
		if !acquire(t, c, "lost", next) {
			return errors.New("the lock is still delayed")
		}
		return nil
	})
	if took := time.Since(start); took < delay {
		t.Errorf("the lock was to be had after %v, before its delay of %v", took, delay)
	}
	if p, _, err := c.KV().Get("lost", nil); err != nil || p.Session != next || p.LockIndex != 2 {
		t.Errorf("the lock: %+v, %v", p, err)
	}
}

// TestLockedEntries: what a lock does to an entry, and what it does not.
func TestLockedEntries(t *testing.T) {
	c := startAgent(t).client()
	id, other := newSession(t, c, nil), newSession(t, c, nil)
	if !acquire(t, c, "k", id) {
		t.Fatal("could not lock")
	}
	p, _, err := c.KV().Get("k", nil)
	must(t, err)
	if p.Session != id || p.LockIndex != 1 || string(p.Value) != id {
		t.Errorf("locked: %+v", p)
	}
	// The holder may take it again, which only writes.
	if !acquire(t, c, "k", id) {
		t.Error("the holder is refused")
	}
	// Who does not ask for the lock is not bound by it.
	_, err = c.KV().Put(kv("k", "blind"), nil)
	must(t, err)
	if p, _, err = c.KV().Get("k", nil); err != nil || p.Session != id || p.LockIndex != 1 || string(p.Value) != "blind" {
		t.Errorf("after a write without the lock: %+v, %v", p, err)
	}
	if ok, _, err := c.KV().CAS(at(p, "cas"), nil); err != nil || !ok {
		t.Errorf("cas of a locked entry: %v, %v", ok, err)
	}
	if ok, _, err := c.KV().Release(&api.KVPair{Key: "k", Session: other}, nil); err != nil || ok {
		t.Errorf("released by another session: %v, %v", ok, err)
	}
	if ok, _, err := c.KV().Release(&api.KVPair{Key: "k", Value: []byte("free"), Session: id}, nil); err != nil || !ok {
		t.Errorf("release: %v, %v", ok, err)
	}
	if !acquire(t, c, "k", other) {
		t.Error("another session is refused after the release")
	}
	if p, _, err = c.KV().Get("k", nil); err != nil || p.Session != other || p.LockIndex != 2 {
		t.Errorf("locked again: %+v, %v", p, err)
	}
	// Removing an entry removes its lock.
	_, err = c.KV().Delete("k", nil)
	must(t, err)
	if !acquire(t, c, "k", id) {
		t.Error("the lock outlived its entry")
	}
	if p, _, err = c.KV().Get("k", nil); err != nil || p.LockIndex != 1 {
		t.Errorf("a new entry: %+v, %v", p, err)
	}
	for _, session := range []string{"none", "22222222-2222-2222-2222-222222222222"} {
		if _, _, err := c.KV().Acquire(&api.KVPair{Key: "k", Session: session}, nil); err == nil || !strings.Contains(err.Error(), `500 (invalid session "`+session+`")`) {
			t.Errorf("lock with the session %s: %v", session, err)
		}
	}
}
