// Package lb programs the kernel's balancer: it turns the catalogue into the data
// path's frontends, one for every scope, VIP and port, each with the instances
// that can be reached from that scope and their weights.
//
// A Balancer is one reconciler with one goroutine (Run); Problems may be called
// from anywhere. It never blocks a reader of the data path: a frontend is
// replaced whole. Before the state is synced it does nothing, so that a restarted
// agent leaves alone what its predecessor programmed.
package lb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead-net/fairlead/internal/datapath"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/task"
)

// resync is how often the maps are read back and compared with what is wanted,
// and how late a new address of the host is noticed.
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
	// Gone ends the connections of local callers to instances that are no more. By
	// then no frontend leads to them. It looks for the connections first and then
	// asks still, since an instance may have come back meanwhile. Calls do not
	// overlap.
	Gone(ctx context.Context, instances []netip.AddrPort, still func(netip.AddrPort) bool)
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

	problems   atomic.Pointer[[]string]
	asks       chan chan<- struct{} // who waits for a round
	undertaker *undertaker

	// What follows belongs to Run's goroutine.

	programmed map[datapath.Frontend]datapath.Entry // what the maps hold
	owners     map[datapath.Frontend]model.ServiceName
	groups     map[model.ServiceName]*group
	instances  map[netip.AddrPort]int // how many groups list each
	basis      basis
	round      uint64
	readBack   bool // programmed is to be read from the maps
	unpruned   bool // programmed may have what nobody owns
}

// portsGroup is the group of the published ports; no service has an empty name.
const portsGroup model.ServiceName = ""

// group is the frontends that one service (or all published ports) accounts for.
type group struct {
	source    *state.Service // what it was made from; nil for published ports
	lookups   []lookup
	frontends []datapath.Frontend
	instances []netip.AddrPort
	err       error  // why not all of it is in the maps
	round     uint64 // in which it was last wanted
}

// basis is what groups depend on beside their own service: while it stays the
// same, a service that did not change need not be looked at.
type basis struct {
	callers   []callers
	addrs     []netip.Addr
	endpoints model.Index
}

// New returns a balancer that has done nothing yet; see Run.
func New(cfg Config) *Balancer {
	return &Balancer{
		cfg: cfg, log: cfg.Log, asks: make(chan chan<- struct{}), undertaker: newUndertaker(cfg.Local),
		owners:    map[datapath.Frontend]model.ServiceName{},
		groups:    map[model.ServiceName]*group{},
		instances: map[netip.AddrPort]int{},
		readBack:  true,
	}
}

// Problems lists what the maps do not hold as the catalogue wants it, sorted. It
// is tried again and again.
func (b *Balancer) Problems() []string {
	if p := b.problems.Load(); p != nil {
		return slices.Clone(*p)
	}
	return nil
}

// Await returns when a round that began after the call is over: the maps then
// have what the state and the scopes had at the call, but for what failed. It
// needs Run to be running, and ends with ctx.
func (b *Balancer) Await(ctx context.Context) error {
	over := make(chan struct{})
	select {
	case b.asks <- over:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-over:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Run keeps the frontends as the catalogue wants them until ctx ends; it calls
// ready after the first round. Frontends stay when it ends.
func (b *Balancer) Run(ctx context.Context, ready func()) error {
	select {
	case <-b.cfg.State.Synced():
	case <-ctx.Done():
		return nil
	}
	var beside sync.WaitGroup
	defer beside.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	beside.Go(func() { b.undertaker.run(ctx) })
	backoff := task.Backoff{Min: 50 * time.Millisecond, Max: 5 * time.Second}
	resyncs := time.NewTimer(task.Jitter(resync))
	defer resyncs.Stop()
	var waiting []chan<- struct{}
	for first := true; ; first = false {
		scopes, scopesChanged := b.cfg.Local.Scopes()
		snap := b.cfg.State.Snapshot()
		_, services := snap.Services()
		_, networks := snap.Networks()
		_, endpoints := snap.Endpoints()
		var retry <-chan time.Time
		if err := b.reconcile(snap, scopes); err != nil {
			b.log.Warn("program the balancer", "index", snap.Index(), "error", err)
			retry = time.After(backoff.Next())
		} else {
			backoff.Reset()
		}
		for _, over := range waiting {
			close(over)
		}
		waiting = nil
		if first {
			ready()
		}
		select {
		case over := <-b.asks:
			waiting = append(waiting, over)
		case <-ctx.Done():
			return nil
		case <-services.Changed:
		case <-networks.Changed:
		case <-endpoints.Changed:
		case <-scopesChanged:
		case <-retry:
		case <-resyncs.C:
			b.readBack = true
			resyncs.Reset(task.Jitter(resync))
		}
	}
}

// reconcile makes the frontends what the snapshot wants, and ends the connections
// to instances that no service lists any more. What fails is left for the next
// round, which does it first of all it finds.
func (b *Balancer) reconcile(snap *state.Snapshot, scopes []Scope) error {
	if b.readBack {
		if err := b.adopt(); err != nil {
			return b.report(err)
		}
	}
	_, endpoints := snap.Endpoints()
	now := basis{callers: know(snap, scopes), endpoints: endpoints.Index}
	moved := now.endpoints != b.basis.endpoints
	all := b.unpruned || !reflect.DeepEqual(now.callers, b.basis.callers)

	var gone []netip.AddrPort
	b.round++
	services, _ := snap.Services()
	for _, s := range services {
		if g := b.groups[s.Name]; all || g == nil || g.source != s || g.err != nil || moved && !g.inPlace(snap) {
			gone = append(gone, b.program(s.Name, planService(snap, s, now.callers))...)
		}
		b.groups[s.Name].round = b.round
	}
	stale := len(b.groups) - len(services)
	if b.groups[portsGroup] != nil {
		stale--
	}
	if stale > 0 {
		for name, g := range b.groups {
			if g.round != b.round && name != portsGroup {
				gone = append(gone, b.program(name, plan{})...)
			}
		}
	}
	// Services come before this: the list of addresses waits for a lock of the
	// kernel's that the end of a namespace holds for long, just when an instance
	// has to be taken out.
	var err error
	if now.addrs, err = b.cfg.Local.Addrs(); err != nil {
		err = fmt.Errorf("list the host's addresses: %w", err)
	} else {
		if g := b.groups[portsGroup]; all || moved || g == nil || g.err != nil || !slices.Equal(now.addrs, b.basis.addrs) {
			b.program(portsGroup, b.planPorts(snap, now))
		}
		b.basis = now
		err = b.prune()
	}
	b.undertaker.take(slices.DeleteFunc(gone, func(a netip.AddrPort) bool {
		return b.instances[a] > 0 // another service took it over
	}))
	return b.report(err)
}

// program brings one group's frontends about. It returns the instances that no
// group lists any more; as long as something fails, those the group had are
// still listed. Instances that are merely critical are, too.
func (b *Balancer) program(name model.ServiceName, p plan) (gone []netip.AddrPort) {
	was := b.groups[name]
	if was == nil {
		was = &group{}
	}
	now := &group{source: p.source, lookups: p.lookups, instances: p.instances}
	b.undertaker.spare(now.instances)
	var errs []error
	for f, e := range p.want {
		now.frontends = append(now.frontends, f)
		b.owners[f] = name
		if have, ok := b.programmed[f]; ok && have.Equal(e) {
			continue
		}
		if err := b.cfg.Maps.SetFrontend(f, e.State, e.Backends); err != nil {
			errs = append(errs, fmt.Errorf("set frontend %s: %w", f, err))
			continue
		}
		b.programmed[f] = e
	}
	for _, f := range was.frontends {
		// A VIP that was given to another service is that one's.
		if _, ok := p.want[f]; ok || b.owners[f] != name {
			continue
		}
		if err := b.remove(f); err != nil {
			now.frontends = append(now.frontends, f)
			errs = append(errs, err)
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	if now.err = errors.Join(errs...); now.err != nil {
		now.instances = distinct(slices.Concat(now.instances, was.instances))
	}
	for _, a := range now.instances {
		b.instances[a]++
	}
	for _, a := range was.instances {
		if b.instances[a]--; b.instances[a] == 0 {
			delete(b.instances, a)
			gone = append(gone, a)
		}
	}
	b.groups[name] = now
	if p.source == nil && name != portsGroup && now.err == nil {
		delete(b.groups, name)
	}
	return gone
}

// inPlace reports whether the addresses that a group was made from still belong
// to the same networks.
func (g *group) inPlace(snap *state.Snapshot) bool {
	for _, l := range g.lookups {
		if networkOf(snap, l.addr) != l.network {
			return false
		}
	}
	return true
}

func (b *Balancer) remove(f datapath.Frontend) error {
	if err := b.cfg.Maps.DeleteFrontend(f); err != nil {
		return fmt.Errorf("delete frontend %s: %w", f, err)
	}
	delete(b.programmed, f)
	delete(b.owners, f)
	return nil
}

// adopt takes over what the maps hold: at first that of a predecessor, later what
// was programmed here, unless somebody else's hand was in it.
func (b *Balancer) adopt() error {
	have, err := b.cfg.Maps.Frontends()
	if err != nil {
		return fmt.Errorf("read the frontends: %w", err)
	}
	b.programmed = have
	b.readBack, b.unpruned = false, true
	return nil
}

// prune removes what the maps hold and no group accounts for: what a predecessor
// programmed for services that are no more.
func (b *Balancer) prune() error {
	if !b.unpruned {
		return nil
	}
	var errs []error
	for f := range b.programmed {
		if _, owned := b.owners[f]; !owned {
			errs = append(errs, b.remove(f))
		}
	}
	err := errors.Join(errs...)
	b.unpruned = err != nil
	return err
}

// report publishes what is wrong, err and the groups' own errors, and returns
// the gist of it.
func (b *Balancer) report(err error) error {
	var all []string
	first := err
	if err != nil {
		all = append(all, "balancer: "+oneLine(err))
	}
	for name, g := range b.groups {
		if g.err == nil {
			continue
		}
		what := fmt.Sprintf("balancer: service %s", name)
		if name == portsGroup {
			what = "balancer: published ports"
		}
		all = append(all, what+": "+oneLine(g.err))
		if first == nil {
			first = g.err
		}
	}
	slices.Sort(all)
	b.problems.Store(&all)
	if len(all) > 1 {
		return fmt.Errorf("%d problems, one of them: %w", len(all), first)
	}
	return first
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
