package cluster

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-net/fairlead/internal/identity"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/registry"
	"github.com/fairlead-net/fairlead/internal/rpc"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/store"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestOddNumbersVote(t *testing.T) {
	for _, c := range []struct{ voters, learners, want int }{
		{1, 0, 0}, {1, 1, 0}, {1, 2, 2}, {1, 3, 2}, {2, 0, 0}, {2, 1, 1}, {3, 0, 0}, {3, 1, 0}, {3, 2, 2}, {4, 1, 1}, {5, 3, 0}, {0, 0, 0},
	} {
		if got := promotions(c.voters, c.learners); got != c.want {
			t.Errorf("%d voters, %d learners: %d are promoted, want %d", c.voters, c.learners, got, c.want)
		}
	}
}

// members are servers as the leader sees them.
type members struct {
	mu       sync.Mutex
	list     []store.Member
	behind   map[string]int // how often each has still not caught up
	promoted []string
}

func (m *members) Members() []store.Member {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.list)
}

func (m *members) Promote(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.behind[id] > 0 {
		m.behind[id]--
		return store.ErrLearner
	}
	for i := range m.list {
		if m.list[i].ID == id {
			m.list[i].Learner = false
		}
	}
	m.promoted = append(m.promoted, id)
	return nil
}

func (m *members) AddServer(context.Context, string) (map[string]string, error) { return nil, nil }
func (m *members) RemoveServer(context.Context, string) error                   { return nil }
func (m *members) TransferLeader(context.Context, string) error                 { return nil }

func TestServersVoteWhenTheyHaveCaughtUp(t *testing.T) {
	badge, _ := identity.OpenBadge(t.TempDir(), nil)
	dir, err := rpc.OpenDirectory("", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		m := &members{behind: map[string]int{"b": 3}, list: []store.Member{{ID: "a", Leader: true, Self: true}, {ID: "b", Learner: true}}}
		st := state.New()
		c := New(Config{Members: m, State: st, Badge: badge, Directory: dir, Log: quiet()})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Keep(ctx, func() {}) }()
		time.Sleep(time.Minute)
		m.mu.Lock()
		if len(m.promoted) != 0 {
			t.Errorf("%v vote: two voters bear no more failures than one", m.promoted)
		}
		m.list = append(m.list, store.Member{ID: "c", Learner: true})
		m.mu.Unlock()
		c.Announced(rpc.Peer{ID: "b"}, 1)
		time.Sleep(4 * time.Second)
		m.mu.Lock()
		if len(m.promoted) != 0 {
			t.Errorf("%v vote before the third has caught up", m.promoted)
		}
		m.mu.Unlock()
		for range 10 {
			c.Announced(rpc.Peer{ID: "b"}, 1)
			c.Announced(rpc.Peer{ID: "c"}, 1)
			time.Sleep(time.Second)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if slices.Sort(m.promoted); !slices.Equal(m.promoted, []string{"b", "c"}) {
			t.Errorf("%v vote", m.promoted)
		}
	})
}

// site is a real registry with a cluster in front.
type site struct {
	*Cluster
	st    *state.State
	reg   *registry.Registry
	badge *identity.Badge
}

// foundSite makes a site in a directory and runs its registry until the test ends.
func foundSite(t *testing.T) *site {
	t.Helper()
	dir, self := t.TempDir(), identity.Node{ID: "id-a", Name: "a", Site: "dc1", Server: true}
	badge, err := identity.OpenBadge(t.TempDir(), nil)
	if !errors.Is(err, identity.ErrNoBadge) {
		t.Fatal(err)
	}
	cfg := store.Config{Dir: dir, Name: "a", Log: quiet()}
	if err := Found(t.Context(), cfg, badge, self, quiet()); err != nil {
		t.Fatal(err)
	}
	st := state.New()
	s := store.New(cfg, st)
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- s.Run(ctx, func() { close(ready) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	<-ready
	dirOfServers, err := rpc.OpenDirectory("", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	reg := registry.New(s, st, registry.Config{Node: "a"})
	peer := rpc.Peer{ID: "id-a", Name: "a", Addr: netip.MustParseAddrPort("127.0.0.1:8300")}
	c := New(Config{Self: peer, Site: "dc1", Badge: badge, Directory: dirOfServers, Members: s, Registry: reg, State: st, Log: quiet()})
	return &site{c, st, reg, badge}
}

func TestASiteIsFoundedAndHostsAreAdmitted(t *testing.T) {
	s := foundSite(t)
	if n, ok := s.badge.Node(); !ok || !n.Server || n.Name != "a" || n.TrustDomain == "" || s.badge.Roots() != Roots(s.st.Snapshot()) {
		t.Errorf("the first server is %+v", n)
	}
	token, err := s.Token(t.Context(), time.Hour, 1, false)
	if err != nil {
		t.Fatal(err)
	}
	_, request, err := identity.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	req := rpc.JoinRequest{Token: token.ID, Secret: token.Secret, ID: "id-b", Name: "b", Request: request}
	bad := req
	bad.Request = "nonsense"
	if _, err := s.Admit(t.Context(), bad, netip.Addr{}); !errors.Is(err, identity.ErrBadRequest) {
		t.Errorf("nonsense: %v", err)
	}
	asServer := req
	asServer.Server = true
	if _, err := s.Admit(t.Context(), asServer, netip.Addr{}); !errors.Is(err, registry.ErrJoinRefused) {
		t.Errorf("as a server: %v", err)
	}
	a, err := s.Admit(t.Context(), req, netip.Addr{})
	if err != nil || a.Site != "dc1" || a.Roots != s.badge.Roots() || a.Cert == "" {
		t.Fatalf("%+v, %v", a, err)
	}
	if _, err := s.Admit(t.Context(), req, netip.Addr{}); !errors.Is(err, registry.ErrJoinRefused) {
		t.Errorf("with a token that was used: %v", err)
	}
	again, err := s.Renew(t.Context(), identity.Node{ID: "id-b", Name: "b"}, request)
	if err != nil || again.Cert == a.Cert {
		t.Errorf("renewed: %v", err)
	}
}

func TestAServersCertificateFollowsTheAuthority(t *testing.T) {
	s := foundSite(t)
	before := s.badge.Ends()
	if err := s.certificate(t.Context()); err != nil || s.badge.Ends() != before {
		t.Errorf("renewed at %v, although it is good: %v", s.badge.Ends(), err)
	}
	if _, err := s.reg.CA().Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.certificate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.badge.Roots() != Roots(s.st.Snapshot()) {
		t.Error("it does not know the new root")
	}
	// One whose half life is over.
	key, request, err := identity.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	issuer, _, _, err := s.reg.CA().Issuer()
	if err != nil {
		t.Fatal(err)
	}
	n, _ := s.badge.Node()
	old, err := issuer.CertifyNode(request, n, time.Now().Add(-identity.NodeTTL*2/3), identity.NodeTTL)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.badge.Set(old, key, s.badge.Roots()); err != nil {
		t.Fatal(err)
	}
	if err := s.certificate(t.Context()); err != nil || time.Until(s.badge.Due()) < time.Hour {
		t.Errorf("due at %v: %v", s.badge.Due(), err)
	}
	if _, err := s.reg.RevokeNode(t.Context(), n.ID, n.Name); err != nil {
		t.Fatal(err)
	}
	if err := s.badge.Set(old, key, s.badge.Roots()); err != nil {
		t.Fatal(err)
	}
	if err := s.certificate(t.Context()); !errors.Is(err, identity.ErrRevoked) {
		t.Errorf("a revoked server renews its certificate: %v", err)
	}
}

func TestServersAreKnownByTheirOwnWord(t *testing.T) {
	s := foundSite(t)
	if got := s.Announced(rpc.Peer{ID: "id-b", Name: "b", Addr: netip.MustParseAddrPort("127.0.0.2:8300")}, 0); len(got) != 1 || got[0].Name != model.NodeName("b") {
		t.Errorf("%+v", got)
	}
}
