package consulapi_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/consulapi"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/registry"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/store"
)

// committer lets a real registry write into a world.
type committer struct {
	w *world

	mu   sync.Mutex
	keys map[string][2]model.Index // created, modified
}

func (c *committer) Commit(_ context.Context, t store.Txn) (store.Result, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	if c.w.fail != nil {
		return store.Result{}, c.w.fail
	}
	for _, cmp := range t.Compares {
		if cmp.Prefix {
			return store.Result{}, errors.New("compares of prefixes are not made here")
		}
		if c.keys[cmp.Key][1] != cmp.ModIndex {
			return store.Result{Index: c.w.rev}, nil
		}
	}
	if len(t.Puts)+len(t.Deletes) == 0 {
		return store.Result{OK: true, Index: c.w.rev}, nil
	}
	c.w.rev++
	var changes []state.Change
	show := func(ch state.Change, visible bool, err error) {
		if err != nil {
			panic(err)
		}
		if visible {
			changes = append(changes, ch)
		}
	}
	for _, k := range t.Deletes {
		delete(c.keys, k)
		show(store.DecodeDelete(k))
	}
	for _, p := range t.Puts {
		at := c.keys[p.Key]
		if at[0] == 0 {
			at[0] = c.w.rev
		}
		at[1] = c.w.rev
		c.keys[p.Key] = at
		show(store.Decode(p.Key, p.Value, at[0], at[1]))
	}
	c.w.st.Apply(c.w.rev, changes)
	return store.Result{OK: true, Index: c.w.rev}, nil
}

var errNoLeases = errors.New("there are no leases here")

func (c *committer) GrantLease(context.Context, time.Duration) (int64, error) {
	return 0, errNoLeases
}

func (c *committer) PutAlive(context.Context, string, int64) (model.Index, error) {
	return 0, errNoLeases
}
func (c *committer) RenewLease(context.Context, int64) error  { return errNoLeases }
func (c *committer) RevokeLease(context.Context, int64) error { return errNoLeases }

// secured is a world with ACLs.
type secured struct {
	*world
	reg       *registry.Registry
	authority consulapi.Authority
	http      http.Handler
}

// secure turns ACLs on in a world.
func secure(w *world, allow bool) *secured {
	policy := "deny"
	if allow {
		policy = "allow"
	}
	reg := registry.New(&committer{w: w, keys: map[string][2]model.Index{}}, w.st, registry.Config{Node: w.node.Name})
	resolver := acl.NewResolver(acl.Config{
		Source:     func() acl.Source { return w.st.Snapshot().ACLs() },
		Datacenter: w.node.Datacenter, DefaultAllow: allow,
	})
	d := w.deps()
	d.Authority, d.ACLs = resolver, reg
	cfg := consulapi.Config{Node: w.node, DefaultACLPolicy: policy, Log: slog.New(slog.DiscardHandler)}
	return &secured{w, reg, resolver, consulapi.New(cfg, d)}
}

// token makes a token with a policy of these rules, and returns its secret.
func (s *secured) token(rules string) string {
	ctx := context.Background()
	p, err := s.reg.PutPolicy(ctx, model.ACLPolicy{Name: "test", Rules: rules})
	if err != nil {
		panic(err)
	}
	t, err := s.reg.PutToken(ctx, model.ACLToken{Policies: []model.ACLLink{{ID: p.ID}}}, true)
	if err != nil {
		panic(err)
	}
	return t.SecretID
}
