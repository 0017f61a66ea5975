package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/fairlead-net/fairlead/internal/identity"
	"github.com/fairlead-net/fairlead/internal/registry"
	"github.com/fairlead-net/fairlead/internal/rpc"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/store"
	"github.com/fairlead-net/fairlead/internal/task"
)

// foundLimit bounds the making of a site.
const foundLimit = 2 * time.Minute

// Found makes a site of one server, or a site of what a lone server has: it runs
// the registry for a moment, alone, to make the authority and this server's own
// certificate. cfg is that of a lone store; the badge gets what was made.
func Found(ctx context.Context, cfg store.Config, badge *identity.Badge, self identity.Node, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, foundLimit)
	defer cancel()
	st := state.New()
	s := store.New(cfg, st)
	err := task.Run(ctx,
		task.Unit{Name: "store", Run: s.Run},
		task.Unit{Name: "authority", Run: func(ctx context.Context, ready func()) error {
			defer cancel() // that was all
			if err := found(ctx, registry.New(s, st, registry.Config{Node: self.Name, Log: log}), st, badge, self); err != nil {
				return err
			}
			ready()
			return nil
		}},
	)
	if _, done := badge.Node(); err == nil && !done {
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("found the site: %w", err)
	}
	return nil
}

func found(ctx context.Context, r *registry.Registry, st *state.State, badge *identity.Badge, self identity.Node) error {
	if _, err := r.CA().Ensure(ctx); err != nil {
		return err
	}
	issuer, _, _, err := r.CA().Issuer()
	if err != nil {
		return err
	}
	key, request, err := identity.NewRequest()
	if err != nil {
		return err
	}
	self.TrustDomain = issuer.TrustDomain()
	cert, err := issuer.CertifyNode(request, self, time.Now(), identity.NodeTTL)
	if err != nil {
		return err
	}
	return badge.Set(cert, key, Roots(st.Snapshot()))
}

// Join makes this host a node of the site that a token is of, and learns of its
// servers.
func Join(ctx context.Context, t identity.JoinToken, badge *identity.Badge, dir *rpc.Directory, self identity.Node, codes rpc.Codes) (rpc.Admission, error) {
	key, request, err := identity.NewRequest()
	if err != nil {
		return rpc.Admission{}, err
	}
	a, err := rpc.Join(ctx, t, rpc.JoinRequest{ID: self.ID, Name: self.Name, Server: self.Server, Request: request}, codes)
	if err != nil {
		return a, err
	}
	if err := badge.Set(a.Cert, key, a.Roots); err != nil {
		return a, err
	}
	return a, dir.Learn(a.Servers...)
}

// Renewer keeps the certificate of a node that is no server, and the roots, good.
type Renewer struct {
	Badge  *identity.Badge
	Client *rpc.Client
	State  *state.State
	Log    *slog.Logger
}

// Keep does so until ctx ends. It is the Run of a task.Unit.
func (k Renewer) Keep(ctx context.Context, ready func()) error {
	ready()
	retry := task.Backoff{Min: time.Second, Max: time.Minute}
	for {
		wait := lookEvery
		if err := k.step(ctx); err == nil {
			retry.Reset()
		} else if ctx.Err() == nil {
			k.Log.Warn("keep this node's certificate", "ends", k.Badge.Ends(), "error", err)
			wait = retry.Next()
		}
		if task.Sleep(ctx, wait) != nil {
			return nil
		}
	}
}

func (k Renewer) step(ctx context.Context) error {
	if time.Now().Before(k.Badge.Due()) {
		if roots := Roots(k.State.Snapshot()); roots != "" && roots != k.Badge.Roots() {
			return k.Badge.Set("", "", roots)
		}
		return nil
	}
	key, request, err := identity.NewRequest()
	if err != nil {
		return err
	}
	a, err := k.Client.Renew(ctx, request)
	if err != nil {
		return err
	}
	return k.Badge.Set(a.Cert, key, a.Roots)
}
