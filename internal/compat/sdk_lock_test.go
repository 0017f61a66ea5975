package compat

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/api"
)

// A leader leads on while its agent restarts, the next one is elected when it resigns, and nobody leads between the loss of a
// leader and the end of the lock delay.
func TestSDKElection(t *testing.T) {
	a := startAgent(t, "dev=false")
	client, err := api.New(a.http)
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 3*settleLimit)
	defer cancel()
	delay := 2 * time.Second
	candidate := func(name string) *api.Election {
		return client.NewElection("leader", name, api.LockOptions{Delay: &delay})
	}
	first, err := candidate("one").Campaign(ctx)
	must(t, err)

	a.restart()
	if _, err := client.PutKV(ctx, api.KV{Key: "elsewhere"}, nil); err != nil {
		t.Fatal(err)
	}
	held(t, "after a restart", first.Lost())

	elected := make(chan *api.Term, 1)
	go func() {
		second, err := candidate("two").Campaign(ctx)
		if err != nil {
			t.Error(err)
		}
		elected <- second
	}()
	eventually(t, func() error { // the second one waits
		sessions, err := client.Sessions(ctx, "")
		if err == nil && len(sessions) != 2 {
			err = errors.New("the second candidate has no session")
		}
		return err
	})
	select {
	case <-elected:
		t.Fatal("two lead")
	default:
	}
	must(t, first.Resign(ctx))
	second := <-elected
	if second == nil || second.Fence() <= first.Fence() {
		t.Fatalf("second term %+v; want a fence above %d", second, first.Fence())
	}

	var session string
	for leader := range candidate("").Observe(ctx) {
		if leader.Candidate == "two" && leader.Session != "" {
			session = leader.Session
			break
		}
	}
	must(t, client.DestroySession(ctx, session))
	lost(t, "its session was destroyed", second.Lost())
	if err := second.Err(); !errors.Is(err, api.ErrLockLost) {
		t.Errorf("the second term ended with %v", err)
	}
	if ok, err := client.AcquireKV(ctx, api.KV{Key: "leader", Flags: api.LockFlags, Session: sessionInDelay(t, client)}); ok || err != nil {
		t.Errorf("the lock is taken within its delay: %v, %v", ok, err)
	}
	third, err := candidate("three").Campaign(ctx)
	must(t, err)
	must(t, third.Resign(ctx))
}

func sessionInDelay(t *testing.T, c *api.Client) string {
	t.Helper()
	id, err := c.CreateSession(t.Context(), api.SessionSpec{Name: "in the delay"})
	must(t, err)
	return id
}
