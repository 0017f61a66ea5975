package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fairlead-net/fairlead/api"
	"github.com/fairlead-net/fairlead/internal/cluster"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/registry"
	"github.com/fairlead-net/fairlead/internal/store"
)

// members are the servers by their names, sorted by ID.
func (p *peers) members(s *store.Store) []api.Server {
	known, _ := p.dir.Peers()
	var all []api.Server
	for _, m := range s.Members() {
		out := api.Server{ID: m.ID, Name: m.ID, Leader: m.Leader, Voter: !m.Learner}
		for _, k := range known {
			if k.ID == m.ID {
				out.Name, out.Addr = string(k.Name), k.Addr.String()
			}
		}
		all = append(all, out)
	}
	return all
}

// remove takes a server out and forgets where it was.
func (p *peers) remove(ctx context.Context, s *store.Store, id string) error {
	if err := s.RemoveServer(ctx, id); err != nil {
		return err
	}
	return p.dir.Forget(id)
}

// site is the site as this server's native API shows and changes it.
type site struct{ a *Agent }

// Servers are sorted by name.
func (s site) Servers() []api.Server {
	all := s.a.peers.members(s.a.store)
	slices.SortFunc(all, func(x, y api.Server) int { return strings.Compare(x.Name, y.Name) })
	return all
}

// find is the server of a name or an ID.
func (s site) find(name string) (api.Server, error) {
	for _, m := range s.Servers() {
		if m.Name == name || m.ID == name {
			return m, nil
		}
	}
	return api.Server{}, fmt.Errorf("%w %q: 'fairlead server ls' lists them", store.ErrUnknownServer, name)
}

// RemoveServer takes a server out; with replace only if another one waits.
func (s site) RemoveServer(ctx context.Context, name string, replace bool) error {
	m, err := s.find(name)
	if err != nil {
		return err
	}
	waits := slices.ContainsFunc(s.Servers(), func(o api.Server) bool { return !o.Voter && o.ID != m.ID })
	if replace && !waits {
		return fmt.Errorf("%w: no server waits to take the place of %q: join one with 'fairlead up --join TOKEN --server'", store.ErrLearner, name)
	}
	return s.a.peers.remove(ctx, s.a.store, m.ID)
}

// JoinTokens are those that are still good.
func (s site) JoinTokens() []api.JoinToken {
	all := []api.JoinToken{}
	for _, g := range registry.JoinGrants(s.a.state.Snapshot(), time.Now()) {
		all = append(all, api.JoinToken{ID: g.ID, Server: g.Server, Expires: g.Expires, Uses: g.Uses})
	}
	return all
}

// CreateJoinToken makes one.
func (s site) CreateJoinToken(ctx context.Context, spec api.JoinTokenSpec) (api.JoinToken, error) {
	if spec.TTL == 0 {
		spec.TTL = cluster.JoinTTL
	}
	t, err := s.a.peers.cluster.Token(ctx, spec.TTL, spec.Uses, spec.Server)
	if err != nil {
		return api.JoinToken{}, err
	}
	return api.JoinToken{ID: t.ID, Token: t.String(), Server: spec.Server, Uses: spec.Uses, Expires: time.Now().Add(spec.TTL).UTC()}, nil
}

// DeleteJoinToken withdraws one.
func (s site) DeleteJoinToken(ctx context.Context, id string) error {
	_, err := s.a.registry.DeleteJoinGrant(ctx, id)
	return err
}

var errSelfRevoke = errors.New("this is the server that is asked: ask another one")

// RevokeNode takes a node's certificates back.
func (s site) RevokeNode(ctx context.Context, name string) error {
	if name == string(s.a.self.Name) {
		return fmt.Errorf("%w: %w", model.ErrInvalid, errSelfRevoke)
	}
	n, _ := s.a.state.Snapshot().Node(model.NodeName(name))
	if n == nil {
		return fmt.Errorf("%w %q", registry.ErrUnknownNode, name)
	}
	_, err := s.a.registry.RevokeNode(ctx, n.ID, n.Name)
	return err
}
