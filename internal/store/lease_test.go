package store

import (
	"errors"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
)

// living are the marks that the state shows, by session.
func (f *fakeState) living() map[string]model.Alive {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]model.Alive{}
	for _, c := range f.other {
		switch {
		case c.Alive == nil:
		case c.Delete:
			delete(out, c.Alive.Session)
		default:
			out[c.Alive.Session] = *c.Alive
		}
	}
	return out
}

// untilDead waits until the state does not show a session's mark any more, and
// calls meanwhile now and then.
func (n *node) untilDead(t *testing.T, session string, meanwhile func()) {
	t.Helper()
	limit := time.After(20 * time.Second)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		n.st.mu.Lock()
		changed := n.st.changed
		n.st.mu.Unlock()
		if _, alive := n.st.living()[session]; !alive {
			return
		}
		select {
		case <-changed:
		case <-tick.C:
			meanwhile()
		case <-limit:
			t.Fatalf("session %s stays alive", session)
		}
	}
}

// alive marks a session as alive for ttl and returns its lease.
func (n *node) alive(t *testing.T, session string, ttl time.Duration) int64 {
	t.Helper()
	lease, err := n.GrantLease(t.Context(), ttl)
	if err != nil {
		t.Fatal(err)
	}
	idx, err := n.PutAlive(t.Context(), session, lease)
	if err != nil {
		t.Fatal(err)
	}
	n.st.at(t, idx)
	if a := n.st.living()[session]; a.Lease != lease || a.CreateIndex != idx {
		t.Fatalf("mark %+v, want lease %d at index %d", a, lease, idx)
	}
	return lease
}

// What is not renewed goes by itself, what is renewed stays, and what depends on
// either knows.
func TestMarksGoWithTheirLeases(t *testing.T) {
	n := startStore(t, "")
	dead, kept := n.alive(t, "dead", time.Second), n.alive(t, "kept", time.Second)
	marks := n.st.living()
	n.untilDead(t, "dead", func() {
		if err := n.RenewLease(t.Context(), kept); err != nil {
			t.Error(err)
		}
	})
	if _, alive := n.st.living()["kept"]; !alive {
		t.Error("the renewed mark is gone too")
	}
	if err := n.RenewLease(t.Context(), dead); !errors.Is(err, ErrNoLease) {
		t.Errorf("renewal of what has run out: %v", err)
	}
	if _, err := n.PutAlive(t.Context(), "dead", dead); !errors.Is(err, ErrNoLease) {
		t.Errorf("mark on what has run out: %v", err)
	}
	if err := n.RevokeLease(t.Context(), dead); err != nil {
		t.Errorf("end of what has run out: %v", err)
	}
	for session, want := range map[string]bool{"dead": false, "kept": true} {
		txn := put(session, "")
		txn.Compares = []Compare{{Key: AliveKey(session), ModIndex: marks[session].ModifyIndex}}
		n.must(t, txn, want)
	}
}

func TestRevokedLeaseTakesItsMarkAtOnce(t *testing.T) {
	n := startStore(t, "")
	lease := n.alive(t, "s", time.Hour)
	if err := n.RevokeLease(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	n.untilDead(t, "s", func() {})
	if err := n.RenewLease(t.Context(), lease); !errors.Is(err, ErrNoLease) {
		t.Errorf("renewal: %v", err)
	}
}

func TestLeasesOutliveARestart(t *testing.T) {
	dir := t.TempDir()
	n := startStore(t, dir)
	lease, short := n.alive(t, "s", time.Hour), n.alive(t, "short", time.Second)
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	if err := n.RenewLease(t.Context(), lease); !errors.Is(err, ErrClosed) {
		t.Errorf("renewal at a store that has ended: %v", err)
	}
	n = startStore(t, dir)
	if a := n.st.living()["s"]; a.Lease != lease {
		t.Errorf("mark after the restart: %+v", a)
	}
	if err := n.RenewLease(t.Context(), lease); err != nil {
		t.Errorf("renewal after the restart: %v", err)
	}
	n.untilDead(t, "short", func() {})
	if err := n.RenewLease(t.Context(), short); !errors.Is(err, ErrNoLease) {
		t.Errorf("renewal of what ran out after the restart: %v", err)
	}
}

// A mark belongs to the generation in force, also when this server has not heard
// of it yet.
func TestMarkFollowsTheGeneration(t *testing.T) {
	n := startStore(t, "")
	old := n.gen.Load()
	if _, err := n.running.Load().cli.Put(t.Context(), pointerKey, "2"); err != nil {
		t.Fatal(err)
	}
	n.st.at(t, model.Index(old.mod)+1)
	n.gen.Store(old)
	n.alive(t, "s", time.Hour)
}
