package registry

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/fairlead-net/fairlead/internal/identity"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/store"
	"github.com/fairlead-net/fairlead/internal/task"
)

const (
	// caInterval is how often the roots are looked at.
	caInterval = time.Hour
	// caMargin is how long before its end a root is replaced at the latest.
	caMargin = 365 * 24 * time.Hour
	// caLimit bounds one such look.
	caLimit = 30 * time.Second
)

// CA is the site's certificate authority as this server's state has it. It is an
// identity.Source, and may be used by many goroutines.
type CA struct {
	r      *Registry
	issuer atomic.Pointer[identity.Issuer] // of the root that was active last
}

var _ identity.Source = (*CA)(nil)

// CA returns the site's certificate authority.
func (r *Registry) CA() *CA { return &CA{r: r} }

// Keep makes the site's first root if there is none, replaces the active one
// when it is due and drops those that nobody's leaf comes from any more, until
// ctx ends. Every server may run it: all of it is compared and set.
func (ca *CA) Keep(ctx context.Context, ready func()) error {
	ready()
	retry := task.Backoff{Min: time.Second, Max: time.Minute}
	for {
		wake := task.Jitter(caInterval)
		if err := ca.tidy(ctx); err == nil {
			retry.Reset()
		} else if ctx.Err() == nil {
			ca.r.log.Warn("keep the certificate authority", "error", err)
			wake = retry.Next()
		}
		if task.Sleep(ctx, wake) != nil {
			return nil
		}
	}
}

func (ca *CA) tidy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, caLimit)
	defer cancel()
	if _, err := ca.Ensure(ctx); err != nil {
		return err
	}
	active := activeRoot(ca.r.st.Snapshot())
	cfg := caConfig(ca.r.st.Snapshot())
	now := time.Now()
	if active != nil && (now.After(active.NotAfter.Add(-caMargin)) || cfg.Rotation > 0 && now.After(active.NotBefore.Add(cfg.Rotation))) {
		if _, err := ca.Rotate(ctx); err != nil {
			return err
		}
	}
	return ca.prune(ctx, now)
}

// Ensure makes the site's first root unless there is one. Of servers that start
// together one makes it, and all have that one.
func (ca *CA) Ensure(ctx context.Context) (model.Index, error) {
	return ca.r.write(ctx, "make the certificate authority", func(snap *state.Snapshot, p *plan) {
		if roots, _ := snap.CARoots(); len(roots) > 0 {
			for _, root := range roots {
				p.read(store.CARootKey(root.ID), root)
			}
			return
		}
		p.unchanged(store.CARootPrefix(), 0)
		p.newRoot(identity.NewTrustDomain(), nil)
	})
}

// Rotate makes a new root the active one. Its predecessor signs it, so that those
// who know only that one accept the new leaves; it is trusted until its own
// leaves have ended, and its key goes at once.
func (ca *CA) Rotate(ctx context.Context) (model.Index, error) {
	return ca.r.write(ctx, "rotate the certificate authority", func(snap *state.Snapshot, p *plan) {
		active := activeRoot(snap)
		if active == nil {
			p.err = identity.ErrNoRoot
			return
		}
		key, _ := snap.CAKey(active.ID)
		if key == nil {
			p.err = fmt.Errorf("%w: this server does not have the active root's key", identity.ErrNoRoot)
			return
		}
		issuer, err := identity.NewIssuer(*active, *key)
		if err != nil {
			p.err = err
			return
		}
		out := *active
		out.Active, out.RotatedOut = false, time.Now().UTC()
		p.replace(store.CARootKey(out.ID), active, &out)
		p.remove(store.CAKeyKey(out.ID), key)
		p.newRoot(active.TrustDomain, issuer)
	})
}

// newRoot puts a new active root and its key.
func (p *plan) newRoot(trustDomain string, predecessor *identity.Issuer) {
	root, key, err := identity.NewRoot(trustDomain, time.Now(), predecessor)
	if err != nil {
		p.err = err
		return
	}
	root.Owner, key.Owner = model.OwnerServers, model.OwnerServers
	p.put(store.CARootKey(root.ID), &root)
	p.put(store.CAKeyKey(root.ID), &key)
}

// prune removes roots that were rotated out twice a leaf's life ago.
func (ca *CA) prune(ctx context.Context, now time.Time) error {
	ended := func(snap *state.Snapshot) (list []*model.CARoot) {
		keep := 2 * max(caConfig(snap).LeafTTL, identity.DefaultLeafTTL)
		roots, _ := snap.CARoots()
		for _, root := range roots {
			if !root.Active && now.After(root.RotatedOut.Add(keep)) {
				list = append(list, root)
			}
		}
		return list
	}
	if len(ended(ca.r.st.Snapshot())) == 0 {
		return nil
	}
	_, err := ca.r.write(ctx, "prune the certificate authority", func(snap *state.Snapshot, p *plan) {
		for _, root := range ended(snap) {
			p.remove(store.CARootKey(root.ID), root)
		}
	})
	return err
}

// Issuer implements identity.Source.
func (ca *CA) Issuer() (*identity.Issuer, time.Duration, <-chan struct{}, error) {
	snap := ca.r.st.Snapshot()
	_, mark := snap.CARoots()
	ttl := caConfig(snap).LeafTTL
	active := activeRoot(snap)
	if active == nil {
		return nil, ttl, mark.Changed, identity.ErrNoRoot
	}
	if i := ca.issuer.Load(); i != nil && i.Root() == active.ID {
		return i, ttl, mark.Changed, nil
	}
	key, _ := snap.CAKey(active.ID)
	if key == nil {
		return nil, ttl, mark.Changed, identity.ErrNoRoot
	}
	i, err := identity.NewIssuer(*active, *key)
	if err != nil {
		return nil, ttl, mark.Changed, err
	}
	ca.issuer.Store(i)
	return i, ttl, mark.Changed, nil
}

// Index implements identity.Source.
func (ca *CA) Index() model.Index { return ca.r.st.Snapshot().Index() }

func activeRoot(snap *state.Snapshot) *model.CARoot {
	roots, _ := snap.CARoots()
	for _, root := range roots {
		if root.Active {
			return root
		}
	}
	return nil
}

// caConfig is the site's configuration; what cannot be read was written by a
// later version, and the default stands.
func caConfig(snap *state.Snapshot) identity.Config {
	text := ""
	if s, _ := snap.Setting(identity.Setting); s != nil {
		text = s.Value
	}
	cfg, err := identity.ParseConfig(text)
	if err != nil {
		cfg, _ = identity.ParseConfig("")
	}
	return cfg
}
