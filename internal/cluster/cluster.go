// Package cluster makes several servers one: it lets hosts in, gives nodes their
// certificates, tells servers of each other and decides which of them vote.
//
// A Cluster runs on every server and may be used by many goroutines. Found makes
// the first server of a site, Renew keeps the certificate of a node that is none.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/fairlead-net/fairlead/internal/identity"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/registry"
	"github.com/fairlead-net/fairlead/internal/rpc"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/store"
)

const (
	// lookEvery is how often members and certificates are looked at.
	lookEvery = time.Second
	// stepLimit bounds each change of either.
	stepLimit = 10 * time.Second
	// JoinTTL is for how long a token is good that says nothing of it.
	JoinTTL = time.Hour
)

// Members are the servers that keep the registry; a store has them.
type Members interface {
	Members() []store.Member
	AddServer(ctx context.Context, id string) (map[string]string, error)
	Promote(ctx context.Context, id string) error
	RemoveServer(ctx context.Context, id string) error
	TransferLeader(ctx context.Context, id string) error
}

// Config is what a Cluster needs.
type Config struct {
	// Self is this server, with the address that others reach it at.
	Self      rpc.Peer
	Site      string
	Badge     *identity.Badge
	Directory *rpc.Directory
	Members   Members
	Registry  *registry.Registry
	State     *state.State
	// VIPPools are the site's, as every node has to have them.
	VIPPools [2]netip.Prefix
	Log      *slog.Logger
}

// Cluster is this server's part in it. It is an rpc.Gate.
type Cluster struct {
	cfg Config

	mu   sync.Mutex // guards told
	told map[string]told
}

// told is what a server last said of itself.
type told struct {
	applied model.Index
	at      time.Time
}

var _ rpc.Gate = (*Cluster)(nil)

// New returns a Cluster. It starts nothing.
func New(cfg Config) *Cluster { return &Cluster{cfg: cfg, told: map[string]told{}} }

// Token makes a join token of this site, good for some hosts (0 is any number)
// until ttl is over. Only one made with server admits servers.
func (c *Cluster) Token(ctx context.Context, ttl time.Duration, uses int, server bool) (identity.JoinToken, error) {
	root, err := c.activeRoot()
	if err != nil {
		return identity.JoinToken{}, err
	}
	addrs := []string{c.cfg.Self.Addr.String()}
	peers, _ := c.cfg.Directory.Peers()
	for _, p := range peers {
		if p.ID != c.cfg.Self.ID {
			addrs = append(addrs, p.Addr.String())
		}
	}
	t, err := identity.NewJoinToken(addrs, root.RootCert)
	if err != nil {
		return t, err
	}
	now := time.Now().UTC()
	_, err = c.cfg.Registry.PutJoinGrant(ctx, registry.JoinGrant{
		ID: t.ID, Hash: identity.SecretHash(t.Secret), Server: server, Uses: uses, Created: now, Expires: now.Add(ttl),
	})
	return t, err
}

// activeRoot is the site's root that signs at present.
func (c *Cluster) activeRoot() (*model.CARoot, error) {
	roots, _ := c.cfg.State.Snapshot().CARoots()
	for _, r := range roots {
		if r.Active {
			return r, nil
		}
	}
	return nil, identity.ErrNoRoot
}

// Admit makes a node of a host that shows a good token. A token with one use left
// is gone then.
func (c *Cluster) Admit(ctx context.Context, req rpc.JoinRequest, from netip.Addr) (rpc.Admission, error) {
	n := identity.Node{ID: req.ID, Name: req.Name, Site: c.cfg.Site, Server: req.Server}
	// What cannot be certified does not use up the token.
	if _, err := c.certify(n, req.Request); err != nil {
		return rpc.Admission{}, fmt.Errorf("admit node %q: %w", req.Name, err)
	}
	if _, err := c.cfg.Registry.UseJoinGrant(ctx, req.Token, req.Secret, n); err != nil {
		return rpc.Admission{}, err
	}
	return c.certify(n, req.Request)
}

// Renew gives a node another certificate for the one that it has shown.
func (c *Cluster) Renew(_ context.Context, n identity.Node, request string) (rpc.Admission, error) {
	return c.certify(n, request)
}

// certify signs a node's request.
func (c *Cluster) certify(n identity.Node, request string) (rpc.Admission, error) {
	issuer, _, _, err := c.cfg.Registry.CA().Issuer()
	if err != nil {
		return rpc.Admission{}, err
	}
	n.Site, n.TrustDomain = c.cfg.Site, issuer.TrustDomain()
	cert, err := issuer.CertifyNode(request, n, time.Now(), identity.NodeTTL)
	if err != nil {
		return rpc.Admission{}, err
	}
	peers, _ := c.cfg.Directory.Peers()
	return rpc.Admission{
		Cert: cert, Roots: Roots(c.cfg.State.Snapshot()), Site: c.cfg.Site, Servers: peers,
		VIPPool4: c.cfg.VIPPools[0].String(), VIPPool6: c.cfg.VIPPools[1].String(),
	}, nil
}

// Roots are the roots that a snapshot trusts, in PEM form, one after the other.
func Roots(snap *state.Snapshot) string {
	text := ""
	roots, _ := snap.CARoots()
	for _, r := range roots {
		text += r.RootCert
	}
	return text
}

// AddServer makes a member of a server and returns what to start it with.
func (c *Cluster) AddServer(ctx context.Context, id string) (map[string]string, error) {
	return c.cfg.Members.AddServer(ctx, id)
}

// Announced takes note of where a server is now and how far it has come, unless p
// is nobody, and lists all that are known.
func (c *Cluster) Announced(p rpc.Peer, applied model.Index) []rpc.Peer {
	if p.ID != "" && p.ID != c.cfg.Self.ID {
		c.mu.Lock()
		c.told[p.ID] = told{applied, time.Now()}
		c.mu.Unlock()
		if err := c.cfg.Directory.Learn(p); err != nil {
			c.cfg.Log.Warn("a server's address", "server", string(p.Name), "error", err)
		}
	}
	list, _ := c.cfg.Directory.Peers()
	return list
}

// Keep promotes servers that have caught up and keeps this one's certificate and
// roots good, until ctx ends. It is the Run of a task.Unit.
func (c *Cluster) Keep(ctx context.Context, ready func()) error {
	ready()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := c.certificate(ctx); err != nil && ctx.Err() == nil {
			c.cfg.Log.Warn("keep this server's certificate", "ends", c.cfg.Badge.Ends(), "error", err)
		}
		c.promote(ctx)
	}
}

// promote lets learners that have caught up vote if that makes the number of
// voters odd: of an even number no more may fail than of one less.
func (c *Cluster) promote(ctx context.Context) {
	var learners []string
	voters, leads := 0, false
	for _, m := range c.cfg.Members.Members() {
		if m.Learner {
			if c.caughtUp(m.ID) {
				learners = append(learners, m.ID)
			}
		} else {
			voters++
		}
		leads = leads || m.Self && m.Leader
	}
	n := promotions(voters, len(learners))
	if !leads || n == 0 {
		return
	}
	for _, id := range learners {
		step, cancel := context.WithTimeout(ctx, stepLimit)
		err := c.cfg.Members.Promote(step, id)
		cancel()
		switch {
		case err == nil:
			c.cfg.Log.Info("a server votes", "audit", true, "id", id)
			if n--; n == 0 {
				return
			}
		case !errors.Is(err, store.ErrLearner) && ctx.Err() == nil:
			c.cfg.Log.Warn("promote a server", "id", id, "error", err)
		}
	}
}

// A server has caught up when it has said lately that it shows what this one
// does, but for the last few writes.
const toldFor, lag = 5 * time.Second, 1000

func (c *Cluster) caughtUp(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.told[id]
	return time.Since(t.at) < toldFor && t.applied+lag > c.cfg.State.Snapshot().Index() && t.applied > 0
}

// maxVoters is how many servers vote at most: more make writes slower and few
// failures more bearable.
const maxVoters = 5

// promotions is how many of so many learners are to be promoted.
func promotions(voters, learners int) int {
	target := min(voters+learners, maxVoters)
	if target%2 == 0 {
		target--
	}
	return max(target-voters, 0)
}

// certificate renews this server's own certificate when it is due and takes over
// the site's roots when they have changed.
func (c *Cluster) certificate(context.Context) error {
	snap := c.cfg.State.Snapshot()
	roots := Roots(snap)
	if roots == "" {
		return nil // not loaded yet
	}
	if n, ok := c.cfg.Badge.Node(); !ok || time.Now().Before(c.cfg.Badge.Due()) {
		if roots == c.cfg.Badge.Roots() {
			return nil
		}
		return c.cfg.Badge.Set("", "", roots)
	} else if registry.Revoked(snap, n.ID) {
		return identity.ErrRevoked
	}
	n, _ := c.cfg.Badge.Node()
	key, request, err := identity.NewRequest()
	if err != nil {
		return err
	}
	a, err := c.certify(n, request)
	if err != nil {
		return err
	}
	return c.cfg.Badge.Set(a.Cert, key, a.Roots)
}
