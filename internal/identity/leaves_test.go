package identity_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-net/fairlead/internal/identity"
	"github.com/fairlead-net/fairlead/internal/model"
)

// site is a source whose root a test changes.
type site struct {
	mu      sync.Mutex
	issuer  *identity.Issuer
	ttl     time.Duration
	index   model.Index
	changed chan struct{}
}

func (s *site) Issuer() (*identity.Issuer, time.Duration, <-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.issuer == nil {
		return nil, s.ttl, s.changed, identity.ErrNoRoot
	}
	return s.issuer, s.ttl, s.changed, nil
}

func (s *site) Index() model.Index {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.index
}

func (s *site) set(i *identity.Issuer, index model.Index) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.issuer, s.index = i, index
	close(s.changed)
	s.changed = make(chan struct{})
}

func newSite(t *testing.T) *site {
	return &site{issuer: newAuthority(t, "x.consul", nil).issuer, ttl: 10 * time.Hour, index: 5, changed: make(chan struct{})}
}

func TestOneLeafForAllWhoAsk(t *testing.T) {
	l := identity.NewLeaves(newSite(t), "dc1")
	var wg sync.WaitGroup
	serials := make([]string, 50)
	for i := range serials {
		wg.Go(func() {
			leaf, err := l.Leaf(t.Context(), "web", 0, 0)
			if err != nil {
				t.Error(err)
				return
			}
			serials[i] = leaf.Serial
		})
	}
	wg.Wait()
	for _, s := range serials {
		if s != serials[0] {
			t.Fatalf("two leaves: %s and %s", s, serials[0])
		}
	}
	other, err := l.Leaf(t.Context(), "api", 0, 0)
	if err != nil || other.Serial == serials[0] || other.URI != "spiffe://x.consul/ns/default/dc/dc1/svc/api" {
		t.Errorf("another service's leaf: %+v, %v", other, err)
	}
	// These would lead somewhere else in the name.
	for _, bad := range []string{"", ".", ".."} {
		if leaf, err := l.Leaf(t.Context(), bad, 0, 0); !errors.Is(err, model.ErrInvalid) {
			t.Errorf("a leaf for %q: %+v, %v", bad, leaf, err)
		}
	}
	if odd, err := l.Leaf(t.Context(), "../svc/web", 0, 0); err != nil || odd.URI != "spiffe://x.consul/ns/default/dc/dc1/svc/..%2Fsvc%2Fweb" {
		t.Errorf("a leaf for a name with slashes: %+v, %v", odd, err)
	}
}

func TestALeafIsRenewedAheadOfTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		l := identity.NewLeaves(s, "dc1")
		first, err := l.Leaf(t.Context(), "web", 0, 0)
		if err != nil || first.Index != 5 {
			t.Fatalf("%+v, %v", first, err)
		}
		start := time.Now()
		// Nothing comes within the wait: what there is.
		same, err := l.Leaf(t.Context(), "web", first.Index, time.Hour)
		if err != nil || same != first || time.Since(start) != time.Hour {
			t.Fatalf("after %v: %+v, %v", time.Since(start), same, err)
		}
		next, err := l.Leaf(t.Context(), "web", first.Index, 10*time.Hour)
		if took := time.Since(start); err != nil || took < 6*time.Hour || took > 8*time.Hour {
			t.Errorf("renewed after %v, %v, want in the third fifth of 10h", took, err)
		}
		if next.Serial == first.Serial || next.Index <= first.Index {
			t.Errorf("renewed: %s at %d after %s at %d", next.Serial, next.Index, first.Serial, first.Index)
		}
		// An index of another life is answered at once.
		if got, err := l.Leaf(t.Context(), "web", 1000, time.Hour); err != nil || got != next {
			t.Errorf("an unknown index: %+v, %v", got, err)
		}
	})
}

func TestAnotherRootMeansAnotherLeaf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		l := identity.NewLeaves(s, "dc1")
		first, err := l.Leaf(t.Context(), "web", 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan *identity.Leaf, 20)
		for range cap(got) {
			go func() {
				leaf, err := l.Leaf(t.Context(), "web", first.Index, time.Hour)
				if err != nil {
					t.Error(err)
				}
				got <- leaf
			}()
		}
		synctest.Wait()
		two := newAuthority(t, "x.consul", s.issuer)
		s.set(two.issuer, 9)
		next := <-got
		for range cap(got) - 1 {
			if leaf := <-got; leaf != next {
				t.Errorf("two leaves of the new root: %s and %s", leaf.Serial, next.Serial)
			}
		}
		if next.Root != two.root.ID || next.Index != 9 {
			t.Errorf("leaf of %s at %d, want of %s at 9", next.Root, next.Index, two.root.ID)
		}
	})
}

func TestWithoutARoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		issuer := s.issuer
		s.set(nil, 5)
		l := identity.NewLeaves(s, "dc1")
		if _, err := l.Leaf(t.Context(), "web", 0, 0); !errors.Is(err, identity.ErrNoRoot) {
			t.Errorf("without a root: %v", err)
		}
		if _, err := l.Leaf(t.Context(), "web", 3, time.Minute); !errors.Is(err, identity.ErrNoRoot) {
			t.Errorf("without a root, after a wait: %v", err)
		}
		go func() {
			<-time.After(time.Second)
			s.set(issuer, 6)
		}()
		leaf, err := l.Leaf(t.Context(), "web", 3, time.Minute)
		if err != nil || leaf.Index != 6 {
			t.Fatalf("when it comes: %+v, %v", leaf, err)
		}
		// A leaf that is good survives the loss of the root, and nobody spins over it.
		s.set(nil, 7)
		start := time.Now()
		kept, err := l.Leaf(t.Context(), "web", leaf.Index, 9*time.Hour)
		if err != nil || kept != leaf || time.Since(start) != 9*time.Hour {
			t.Errorf("after %v: %+v, %v", time.Since(start), kept, err)
		}
		if _, err := l.Leaf(t.Context(), "web", leaf.Index, 2*time.Hour); err != nil {
			t.Errorf("at its end: %v", err)
		}
		if _, err := l.Leaf(t.Context(), "web", 0, 0); !errors.Is(err, identity.ErrNoRoot) {
			t.Errorf("after its end: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := l.Leaf(ctx, "web", 3, time.Hour); !errors.Is(err, identity.ErrNoRoot) {
			t.Errorf("with a request that has ended: %v", err)
		}
	})
}

func TestTheNumberOfLeavesIsBounded(t *testing.T) {
	s := newSite(t)
	s.set(nil, 5) // without a root nothing is signed: only the places count
	l := identity.NewLeaves(s, "dc1")
	for i := range identity.MaxLeaves + 100 {
		_, _ = l.Leaf(t.Context(), time.Duration(i).String(), 0, 0)
	}
	if n := l.Len(); n > identity.MaxLeaves {
		t.Errorf("%d leaves are kept", n)
	}
}
