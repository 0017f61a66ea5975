package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/netdrv"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/task"
)

// resync is how often the kernel is compared with the catalogue without a
// reason; it repairs what somebody else removed.
const resync = 30 * time.Second

// dnsPort is where the resolvers of networks listen.
const dnsPort = 53

// Run brings the kernel to the catalogue, calls ready once everything recorded
// has been tried, and keeps it so until ctx ends. It leaves the kernel as it is:
// workloads outlive their agent.
func (s *Set) Run(ctx context.Context, ready func()) error {
	select {
	case <-s.cfg.State.Synced():
	case <-ctx.Done():
		return nil
	}
	if err := s.scopes.start(); err != nil {
		return err
	}
	defer s.release()
	s.setAdopting(true)
	backoff := task.Backoff{Min: 100 * time.Millisecond, Max: 10 * time.Second}
	full := true
	for first := true; ; first = false {
		snap := s.cfg.State.Snapshot()
		_, networks := snap.Networks()
		_, endpoints := snap.Endpoints()
		err := s.reconcile(ctx, snap, full)
		wait := task.Jitter(resync)
		if err != nil {
			s.log.Warn("reconcile endpoints", "index", snap.Index(), "error", err)
			wait = backoff.Next()
		} else {
			backoff.Reset()
		}
		if first {
			ready()
		}
		full = false
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-networks.Changed:
		case <-endpoints.Changed:
		case <-t.C:
			full = true
		}
		t.Stop()
	}
}

// Scopes lists the scopes of this node's workloads, sorted by number, and the
// host's own; the channel closes when the list may have changed.
func (s *Set) Scopes() ([]Scope, <-chan struct{}) {
	all, changed := s.scopes.inUse()
	host := Scope{ID: 1, Host: true}
	s.mu.Lock()
	for name := range s.networks {
		host.Networks = append(host.Networks, name)
	}
	s.mu.Unlock()
	slices.Sort(host.Networks)
	return append([]Scope{host}, all...), changed
}

// Namespaces lists the paths of the attached workloads' network namespaces.
func (s *Set) Namespaces() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for _, p := range s.attached {
		all = append(all, p.endpoint.NetNS)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// reconcile goes through the catalogue once and joins what went wrong. Unless it
// is full, what was brought about before is taken to be still there. Nothing is
// pruned from the data path while anything is in doubt.
func (s *Set) reconcile(ctx context.Context, snap *state.Snapshot, full bool) error {
	var errs []error
	wanted := map[model.NetworkName]bool{}
	networks, _ := snap.Networks()
	for _, n := range networks {
		if n.Node != s.cfg.Node || n.Driver != model.DriverBridge {
			continue
		}
		wanted[n.Name] = true
		err := s.ensureNetwork(ctx, *n, full)
		s.problem("network "+string(n.Name), err)
		errs = append(errs, err)
	}
	endpoints, _ := snap.Endpoints()
	here := map[model.EndpointID]bool{}
	for _, e := range endpoints {
		if e.Node != s.cfg.Node {
			continue
		}
		here[e.ID] = true
		if !full && s.stands(e) {
			continue
		}
		err := s.restore(ctx, e.ID)
		s.problem("endpoint "+string(e.ID), err)
		errs = append(errs, err)
	}
	for _, e := range s.strays(here) {
		errs = append(errs, s.collect(ctx, e))
	}
	s.setAdopting(false)
	errs = append(errs, s.dropNetworks(ctx, wanted), s.applyRules(ctx))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return errors.Join(s.pruneMaps(), s.scopes.prune())
}

// stands reports whether an endpoint was brought about as it is recorded.
func (s *Set) stands(e *model.Endpoint) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.attached[e.ID]
	if p == nil || s.problems["endpoint "+string(e.ID)] != "" {
		return false
	}
	a, b := p.endpoint, *e
	a.Stamp, b.Stamp = model.Stamp{}, model.Stamp{}
	return reflect.DeepEqual(a, b)
}

// restore plugs a recorded endpoint, or collects it if its namespace is gone.
func (s *Set) restore(ctx context.Context, id model.EndpointID) error {
	unlock := s.locks.lock(id)
	defer unlock()
	snap := s.cfg.State.Snapshot()
	e, _ := snap.Endpoint(id)
	if e == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	alive, err := s.alive(e)
	if err != nil {
		return err
	}
	if !alive {
		s.log.Info("collect endpoint of a vanished namespace", "endpoint", id, "network", e.Network)
		err := s.unplug(ctx, *e)
		_, derr := s.cfg.Registry.DeleteEndpoint(ctx, id)
		return errors.Join(err, derr)
	}
	n, _ := snap.Network(e.Network)
	if n == nil {
		return fmt.Errorf("network %q: %w", e.Network, ErrNoNetwork)
	}
	held, err := s.holdPorts(*e)
	if err != nil {
		// Somebody took the port while no agent held it. The rules stay, so that
		// what worked goes on working, and the operator is told.
		s.log.Warn("hold published ports", "endpoint", id, "error", err)
		perr := s.plug(ctx, *n, *e, nil)
		return errors.Join(err, perr)
	}
	return s.plug(ctx, *n, *e, held)
}

// strays lists what is attached here though it is recorded no more.
func (s *Set) strays(here map[model.EndpointID]bool) []model.Endpoint {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []model.Endpoint
	for id, p := range s.attached {
		if !here[id] {
			all = append(all, p.endpoint)
		}
	}
	return all
}

// collect unplugs a stray, unless an Attach has recorded it in the meantime.
func (s *Set) collect(ctx context.Context, e model.Endpoint) error {
	unlock := s.locks.lock(e.ID)
	defer unlock()
	if now, _ := s.cfg.State.Snapshot().Endpoint(e.ID); now != nil {
		return nil
	}
	s.log.Info("collect endpoint without a record", "endpoint", e.ID, "network", e.Network)
	return s.unplug(ctx, e)
}

// ensureNetwork makes the bridge and the resolver's listeners. Unless it is full
// it relies on what it made before.
func (s *Set) ensureNetwork(ctx context.Context, n model.Network, full bool) error {
	n.Stamp = model.Stamp{}
	s.mu.Lock()
	b := s.networks[n.Name]
	known := b != nil && reflect.DeepEqual(b.network, n) && len(b.listening) == len(n.Pools)
	s.mu.Unlock()
	if known && !full {
		return nil
	}
	if err := s.cfg.Driver.EnsureNetwork(ctx, n); err != nil {
		return err
	}
	s.mu.Lock()
	b = s.networks[n.Name]
	fresh := b == nil
	if fresh {
		b = &bridged{}
		s.networks[n.Name] = b
	}
	b.network = n
	listening := slices.Clone(b.listening)
	s.mu.Unlock()
	if fresh {
		s.scopes.touch()
	}
	for _, p := range n.Pools {
		at := netip.AddrPortFrom(p.Gateway, dnsPort)
		if slices.Contains(listening, at) {
			continue
		}
		if err := s.cfg.Resolver.Listen(ctx, at); err != nil {
			return fmt.Errorf("answer names at %s: %w", at, err)
		}
		s.mu.Lock()
		b.listening = append(b.listening, at)
		s.mu.Unlock()
	}
	return nil
}

// dropNetworks removes the bridges of networks that are recorded no more.
func (s *Set) dropNetworks(ctx context.Context, wanted map[model.NetworkName]bool) error {
	s.mu.Lock()
	var gone []model.NetworkName
	for name := range s.networks {
		if !wanted[name] {
			gone = append(gone, name)
		}
	}
	s.mu.Unlock()
	var errs []error
	for _, name := range gone {
		if n, _ := s.cfg.State.Snapshot().Network(name); n != nil {
			continue // made since wanted was listed
		}
		errs = append(errs, s.dropNetwork(ctx, name))
	}
	return errors.Join(errs...)
}

// dropNetwork stops a network's resolver and removes its bridge.
func (s *Set) dropNetwork(ctx context.Context, name model.NetworkName) error {
	s.mu.Lock()
	b := s.networks[name]
	s.mu.Unlock()
	if b == nil {
		return nil
	}
	for _, at := range b.listening {
		s.cfg.Resolver.Unlisten(at)
	}
	if err := s.cfg.Driver.RemoveNetwork(ctx, name); err != nil {
		return fmt.Errorf("remove network %s: %w", name, err)
	}
	s.mu.Lock()
	delete(s.networks, name)
	s.mu.Unlock()
	s.problem("network "+string(name), nil)
	s.scopes.touch()
	return s.applyRules(ctx)
}

func (s *Set) setAdopting(on bool) {
	s.rulesMu.Lock()
	defer s.rulesMu.Unlock()
	s.adopting = on
}

// applyRules hands the driver the packet filter's rules if they differ from the
// last ones it took.
func (s *Set) applyRules(ctx context.Context) error {
	s.rulesMu.Lock()
	defer s.rulesMu.Unlock()
	if s.adopting {
		return nil
	}
	r := s.rules()
	if s.rulesSet && reflect.DeepEqual(ruled(r), s.lastRules) {
		return nil
	}
	if err := s.cfg.Driver.SetRules(ctx, r); err != nil {
		return fmt.Errorf("set the packet filter's rules: %w", err)
	}
	s.lastRules, s.rulesSet = ruled(r), true
	return nil
}

// rules is what the packet filter should carry now.
func (s *Set) rules() netdrv.Rules {
	s.mu.Lock()
	defer s.mu.Unlock()
	var r netdrv.Rules
	for _, b := range s.networks {
		r.Networks = append(r.Networks, b.network)
	}
	for _, p := range s.attached {
		r.Endpoints = append(r.Endpoints, p.endpoint)
	}
	slices.SortFunc(r.Networks, func(a, b model.Network) int { return strings.Compare(string(a.Name), string(b.Name)) })
	slices.SortFunc(r.Endpoints, func(a, b model.Endpoint) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return r
}

// ruled is the part of r that the packet filter depends on: endpoints without
// published ports do not matter to it.
func ruled(r netdrv.Rules) netdrv.Rules {
	out := netdrv.Rules{Networks: r.Networks}
	for _, e := range r.Endpoints {
		if len(e.Ports) > 0 {
			out.Endpoints = append(out.Endpoints, e)
		}
	}
	return out
}

// pruneMaps removes the data path's entries of endpoints that are attached no
// more; pinned maps outlive the agent that filled them.
func (s *Set) pruneMaps() error {
	have, err := s.cfg.Path.Endpoints()
	if err != nil {
		return fmt.Errorf("read the endpoint map: %w", err)
	}
	type key struct {
		network uint32
		addr    netip.Addr
	}
	wanted := map[key]bool{}
	s.mu.Lock()
	for _, p := range s.attached {
		for _, a := range p.endpoint.Addrs {
			wanted[key{uint32(p.plugged.BridgeIfIndex), a}] = true
		}
	}
	s.mu.Unlock()
	var errs []error
	for _, e := range have {
		if !wanted[key{e.Network, e.Addr}] {
			errs = append(errs, s.cfg.Path.DeleteEndpoint(e.Network, e.Addr))
		}
	}
	return errors.Join(errs...)
}

// release gives back what only a living agent holds. Kernel state stays.
func (s *Set) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.attached {
		closeAll(p.held)
		p.held = nil
	}
	for _, b := range s.networks {
		for _, at := range b.listening {
			s.cfg.Resolver.Unlisten(at)
		}
		b.listening = nil
	}
}
