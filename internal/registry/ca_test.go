package registry_test

import (
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-net/fairlead/internal/identity"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/registry"
)

func roots(e *env) (active *model.CARoot, old []*model.CARoot) {
	all, _ := e.snap().CARoots()
	for _, r := range all {
		if r.Active {
			active = r
		} else {
			old = append(old, r)
		}
	}
	return active, old
}

func TestServersThatStartTogetherAgreeOnTheRoot(t *testing.T) {
	e := setup(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := newRegistry(e.fake, e.st).CA().Ensure(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	all, _ := e.snap().CARoots()
	if len(all) != 1 || !all[0].Active || all[0].Owner != model.OwnerServers || !strings.HasSuffix(all[0].TrustDomain, ".consul") {
		t.Fatalf("roots = %+v", all)
	}
	e.unwritten(func() { e.must(e.CA().Ensure(t.Context())) })
	i, ttl, _, err := e.CA().Issuer()
	if err != nil || i.Root() != all[0].ID || ttl != identity.DefaultLeafTTL {
		t.Errorf("issuer %v, %v, %v", i, ttl, err)
	}
}

func TestWithoutARootNothingIsIssued(t *testing.T) {
	e := setup(t)
	ca := e.CA()
	_, _, changed, err := ca.Issuer()
	if !errors.Is(err, identity.ErrNoRoot) {
		t.Fatalf("issuer: %v", err)
	}
	if _, err := ca.Rotate(t.Context()); !errors.Is(err, identity.ErrNoRoot) {
		t.Errorf("rotate: %v", err)
	}
	e.must(ca.Ensure(t.Context()))
	<-changed
	if _, _, _, err := ca.Issuer(); err != nil {
		t.Error(err)
	}
}

func TestARotationIsStaged(t *testing.T) {
	e := setup(t)
	ca := e.CA()
	e.must(ca.Ensure(t.Context()))
	first, _ := roots(e)
	_, _, changed, err := ca.Issuer()
	if err != nil {
		t.Fatal(err)
	}
	e.must(ca.Rotate(t.Context()))
	<-changed
	active, old := roots(e)
	if active.ID == first.ID || active.TrustDomain != first.TrustDomain || len(active.Intermediates) != 1 {
		t.Errorf("active = %+v", active)
	}
	if len(old) != 1 || old[0].ID != first.ID || old[0].RotatedOut.IsZero() {
		t.Errorf("rotated out = %+v", old)
	}
	if key, _ := e.snap().CAKey(first.ID); key != nil {
		t.Error("the key of the root that was rotated out is still there")
	}
	if i, _, _, err := ca.Issuer(); err != nil || i.Root() != active.ID {
		t.Errorf("issuer: %v, %v", i, err)
	}
}

func TestRotationsAtOnce(t *testing.T) {
	e := setup(t)
	e.must(e.CA().Ensure(t.Context()))
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if _, err := newRegistry(e.fake, e.st).CA().Rotate(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if active, old := roots(e); active == nil || len(old) != 3 {
		t.Errorf("active %v, %d rotated out, want 3", active, len(old))
	}
}

func TestTheKeeperRotatesAndPrunes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := setup(t)
		if _, _, err := e.PutSetting(t.Context(), identity.Setting, `{"LeafCertTTL": "24h", "RotationPeriod": "720h"}`, nil); err != nil {
			t.Fatal(err)
		}
		ca := e.CA()
		ended, ready := make(chan error, 1), make(chan struct{})
		ctx := t.Context()
		go func() { ended <- ca.Keep(ctx, func() { close(ready) }) }()
		<-ready
		synctest.Wait()
		first, _ := roots(e)
		if first == nil {
			t.Fatal("no root at the start")
		}
		if _, ttl, _, err := ca.Issuer(); err != nil || ttl != 24*time.Hour {
			t.Errorf("leaves are good for %v, %v", ttl, err)
		}
		<-time.After(719 * time.Hour)
		synctest.Wait()
		if active, old := roots(e); active.ID != first.ID || len(old) != 0 {
			t.Error("rotated before its time")
		}
		<-time.After(3 * time.Hour)
		synctest.Wait()
		if active, old := roots(e); active.ID == first.ID || len(old) != 1 {
			t.Error("not rotated in time")
		}
		<-time.After(140 * time.Hour)
		synctest.Wait()
		if _, old := roots(e); len(old) != 1 {
			t.Error("pruned while its leaves may live")
		}
		<-time.After(10 * time.Hour)
		synctest.Wait()
		if active, old := roots(e); active == nil || len(old) != 0 {
			t.Error("not pruned")
		}
	})
}

func TestTheKeeperTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := setup(t)
		e.mu.Lock()
		e.fail = errors.New("no leader")
		e.mu.Unlock()
		var logged strings.Builder
		r := registry.New(e.fake, e.st, registry.Config{Node: "n1", Log: slog.New(slog.NewTextHandler(&logged, nil))})
		ctx := t.Context()
		go func() { _ = r.CA().Keep(ctx, func() {}) }()
		<-time.After(10 * time.Second)
		synctest.Wait()
		if active, _ := roots(e); active == nil || !strings.Contains(logged.String(), "no leader") {
			t.Errorf("root %v, logged %q", active, logged.String())
		}
		active, _ := roots(e)
		key, _ := e.snap().CAKey(active.ID)
		if strings.Contains(logged.String(), key.Key[30:60]) {
			t.Error("the key is in the log")
		}
	})
}

func TestTheRootOnAStore(t *testing.T) {
	s, st := startStore(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := newRegistry(s, st).CA().Ensure(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if all, _ := st.Snapshot().CARoots(); len(all) != 1 {
		t.Errorf("%d roots", len(all))
	}
	if _, err := newRegistry(s, st).CA().Rotate(t.Context()); err != nil {
		t.Error(err)
	}
	if all, _ := st.Snapshot().CARoots(); len(all) != 2 {
		t.Errorf("%d roots after a rotation", len(all))
	}
}
