// Package lb programs the kernel's balancer: it turns the catalogue into the data
// path's frontends, one for every scope, VIP and port, each with the instances
// that can be reached from that scope and their weights.
//
// A Balancer is one reconciler with one goroutine (Run). It never blocks a reader
// of the data path: a frontend is replaced whole. Before the state is synced it
// does nothing, so that a restarted agent leaves alone what its predecessor
// programmed.
package lb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"time"

	"github.com/fairlead-net/fairlead/internal/datapath"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/task"
)

// resync is how often the maps are read back and compared with what is wanted.
const resync = time.Minute

// Maps is the part of the data path that the balancer owns.
type Maps interface {
	SetFrontend(f datapath.Frontend, s datapath.State, backends []datapath.Backend) error
	DeleteFrontend(f datapath.Frontend) error
	Frontends() (map[datapath.Frontend]datapath.Entry, error)
}

// Scope is a set of callers that can reach the same instances.
type Scope struct {
	ID datapath.Scope
	// Host is set for the host's own scope.
	Host bool
	// Networks whose endpoints the callers reach directly.
	Networks []model.NetworkName
}

// Node is what the balancer asks of the node that it runs on.
type Node interface {
	// Scopes lists the scopes in use; the channel closes when they change.
	Scopes() ([]Scope, <-chan struct{})
	// Addrs lists the host's addresses, loopback included, at which published
	// ports answer.
	Addrs() ([]netip.Addr, error)
	// Gone ends the connections of local callers to an instance that is no more.
	Gone(ctx context.Context, instance netip.AddrPort)
}

// Config is what a Balancer is made of.
type Config struct {
	Node  model.NodeName
	State *state.State
	Maps  Maps
	Local Node
	Log   *slog.Logger
}

// Balancer reconciles the data path's frontends with the catalogue.
type Balancer struct {
	cfg Config
	log *slog.Logger

	programmed map[datapath.Frontend]datapath.Entry
	groups     map[string]*group
	basis      basis
}

// group is the frontends that one service (or all published ports) accounts for.
// Groups do not overlap, since a VIP belongs to one service.
type group struct {
	source    *state.Service // what it was made from; nil for published ports
	frontends []datapath.Frontend
	instances map[netip.AddrPort]bool
}

// basis is what every group depends on beside its own service: while it stays
// the same, a service that did not change need not be looked at.
type basis struct {
	scopes    []Scope
	endpoints model.Index
	addrs     []netip.Addr
}

// New returns a balancer that has done nothing yet; see Run.
func New(cfg Config) *Balancer {
	return &Balancer{cfg: cfg, log: cfg.Log}
}

// Run keeps the frontends as the catalogue wants them until ctx ends; it calls
// ready after the first round. Frontends stay when it ends.
func (b *Balancer) Run(ctx context.Context, ready func()) error {
	select {
	case <-b.cfg.State.Synced():
	case <-ctx.Done():
		return nil
	}
	backoff := task.Backoff{Min: 50 * time.Millisecond, Max: 5 * time.Second}
	readBack := true
	for first := true; ; first = false {
		snap := b.cfg.State.Snapshot()
		scopes, scopesChanged := b.cfg.Local.Scopes()
		_, services := snap.Services()
		_, vips := snap.VIPs()
		_, endpoints := snap.Endpoints()
		wait := task.Jitter(resync)
		if err := b.reconcile(ctx, snap, scopes, readBack); err != nil {
			b.log.Warn("program the balancer", "index", snap.Index(), "error", err)
			wait = backoff.Next()
			readBack = true
		} else {
			backoff.Reset()
			readBack = false
		}
		if first {
			ready()
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-services.Changed:
		case <-vips.Changed:
		case <-endpoints.Changed:
		case <-scopesChanged:
		case <-t.C:
			readBack = true
		}
		t.Stop()
	}
}

// reconcile makes the frontends what the snapshot wants. With readBack it starts
// from what the maps hold rather than from what it remembers.
func (b *Balancer) reconcile(ctx context.Context, snap *state.Snapshot, scopes []Scope, readBack bool) error {
	if readBack || b.programmed == nil {
		if err := b.adopt(); err != nil {
			return err
		}
	}
	addrs, err := b.cfg.Local.Addrs()
	if err != nil {
		return fmt.Errorf("list the host's addresses: %w", err)
	}
	_, endpoints := snap.Endpoints()
	now := basis{scopes: scopes, endpoints: endpoints.Index, addrs: addrs}
	all := readBack || !reflect.DeepEqual(now, b.basis)
	b.basis = now

	var errs []error
	services, _ := snap.Services()
	seen := map[string]bool{portsGroup: true}
	for _, s := range services {
		name := "service/" + string(s.Name)
		seen[name] = true
		if g := b.groups[name]; !all && g != nil && g.source == s {
			continue
		}
		want, instances := planService(snap, s, scopes)
		errs = append(errs, b.program(ctx, name, s, want, instances))
	}
	if all {
		errs = append(errs, b.program(ctx, portsGroup, nil, b.planPorts(snap, scopes, addrs), nil))
	}
	for name := range b.groups {
		if !seen[name] {
			errs = append(errs, b.program(ctx, name, nil, nil, nil))
			delete(b.groups, name)
		}
	}
	if all {
		errs = append(errs, b.prune())
	}
	return errors.Join(errs...)
}

// portsGroup is the group of the published ports.
const portsGroup = "ports"

// program brings one group's frontends about and ends the connections to the
// instances that it has no more. Those that are merely critical are still listed
// and keep theirs.
func (b *Balancer) program(ctx context.Context, name string, source *state.Service, want map[datapath.Frontend]datapath.Entry, instances map[netip.AddrPort]bool) error {
	was := b.groups[name]
	if was == nil {
		was = &group{}
	}
	var errs []error
	now := &group{source: source, instances: instances}
	for f, e := range want {
		now.frontends = append(now.frontends, f)
		if have, ok := b.programmed[f]; ok && have.Equal(e) {
			continue
		}
		if err := b.cfg.Maps.SetFrontend(f, e.State, e.Backends); err != nil {
			errs = append(errs, fmt.Errorf("set frontend %s:%d: %w", f.Addr, f.Port, err))
			continue
		}
		b.programmed[f] = e
	}
	for _, f := range was.frontends {
		if _, ok := want[f]; !ok {
			errs = append(errs, b.remove(f))
		}
	}
	b.groups[name] = now
	for a := range was.instances {
		if !b.known(a) {
			b.cfg.Local.Gone(ctx, a)
		}
	}
	return errors.Join(errs...)
}

// known reports whether any group still lists an instance.
func (b *Balancer) known(a netip.AddrPort) bool {
	for _, g := range b.groups {
		if g.instances[a] {
			return true
		}
	}
	return false
}

func (b *Balancer) remove(f datapath.Frontend) error {
	if err := b.cfg.Maps.DeleteFrontend(f); err != nil {
		return fmt.Errorf("delete frontend %s:%d: %w", f.Addr, f.Port, err)
	}
	delete(b.programmed, f)
	return nil
}

// prune removes what the maps hold and no group accounts for: what a predecessor
// programmed for services that are no more.
func (b *Balancer) prune() error {
	owned := map[datapath.Frontend]bool{}
	for _, g := range b.groups {
		for _, f := range g.frontends {
			owned[f] = true
		}
	}
	var errs []error
	for f := range b.programmed {
		if !owned[f] {
			errs = append(errs, b.remove(f))
		}
	}
	return errors.Join(errs...)
}

// adopt takes over what the maps hold.
func (b *Balancer) adopt() error {
	have, err := b.cfg.Maps.Frontends()
	if err != nil {
		return fmt.Errorf("read the frontends: %w", err)
	}
	b.programmed = have
	if b.groups == nil {
		b.groups = map[string]*group{}
	}
	return nil
}
