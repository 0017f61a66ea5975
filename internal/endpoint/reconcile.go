package endpoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
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
	defer s.release()
	backoff := task.Backoff{Min: 100 * time.Millisecond, Max: 10 * time.Second}
	resyncs := time.NewTimer(task.Jitter(resync))
	defer resyncs.Stop()
	r := round{full: true, sync: true, prune: true}
	for first := true; ; first = false {
		r.snap = s.cfg.State.Snapshot()
		_, networks := r.snap.Networks()
		_, endpoints := r.snap.Endpoints()
		_, blocks := r.snap.Blocks()
		_, nodes := r.snap.Nodes()
		var retry <-chan time.Time
		if err := s.reconcile(ctx, &r); err != nil {
			s.log.Warn("reconcile endpoints", "index", r.snap.Index(), "error", err)
			retry = time.After(backoff.Next())
		} else {
			backoff.Reset()
		}
		r.full = false
		if first {
			ready()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-networks.Changed:
		case <-endpoints.Changed:
		case <-blocks.Changed:
		case <-nodes.Changed:
		case <-retry:
		case <-resyncs.C:
			r.full, r.sync, r.prune = true, true, true
			resyncs.Reset(task.Jitter(resync))
		}
	}
}

// round is what one reconcile has to do.
type round struct {
	snap *state.Snapshot
	// full: what was brought about before is not taken to be still there.
	full bool
	// sync: the scopes are to be compared with the data path's.
	sync bool
	// prune: what nobody accounts for is due to be removed. It is left for a later
	// round while anything is in doubt.
	prune bool
}

// reconcile goes through the catalogue once and joins what went wrong.
func (s *Set) reconcile(ctx context.Context, r *round) error {
	var errs []error
	wanted, recorded, known := map[model.NetworkName]bool{}, map[model.EndpointID]bool{}, map[string]bool{problemOfRules: true}
	networks, _ := r.snap.Networks()
	for _, n := range networks {
		if !s.here(r.snap, n) {
			continue
		}
		what := problemOfNetwork(n.Name)
		wanted[n.Name], known[what] = true, true
		err := s.ensureNetwork(ctx, n.Name, r.full)
		if errors.Is(err, ErrNoNetwork) {
			err = nil // removed since; the next round knows
		}
		s.problem(what, err)
		errs = append(errs, err)
	}
	endpoints, _ := r.snap.Endpoints()
	for _, e := range endpoints {
		if e.Node != s.cfg.Node {
			continue
		}
		what := problemOf(e)
		recorded[e.ID], known[what] = true, true
		if !r.full && s.stands(e) {
			continue
		}
		err := s.restore(ctx, e.ID, r.full)
		if err != nil {
			s.await(*e)
		}
		s.problem(what, err)
		errs = append(errs, err)
	}
	for _, e := range s.strays(recorded) {
		errs = append(errs, s.collect(ctx, e))
	}
	for _, name := range s.leftNetworks(wanted) {
		errs = append(errs, s.dropNetwork(ctx, name))
	}
	s.looked(recorded, known)
	errs = append(errs, s.applyRules(ctx))
	if r.sync {
		err := s.scopes.sync(false)
		r.sync = err != nil
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil || !r.prune {
		return err
	}
	err := s.prune(ctx)
	r.prune = err != nil
	return err
}

// await keeps the rules of an endpoint that was not found.
func (s *Set) await(e model.Endpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.attached[e.ID] == nil {
		s.waiting[e.ID] = e
	}
}

// looked notes that everything recorded has been looked for, and forgets what is
// recorded no more.
func (s *Set) looked(recorded map[model.EndpointID]bool, problems map[string]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.found = true
	maps.DeleteFunc(s.waiting, func(id model.EndpointID, _ model.Endpoint) bool { return !recorded[id] })
	maps.DeleteFunc(s.problems, func(what, _ string) bool { return !problems[what] })
}

// stands reports whether an endpoint was brought about as it is recorded.
func (s *Set) stands(e *model.Endpoint) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.attached[e.ID]
	if p == nil || !p.complete {
		return false
	}
	if p.record == e {
		return true
	}
	a, b := p.endpoint, *e
	a.Stamp, b.Stamp = model.Stamp{}, model.Stamp{}
	if !reflect.DeepEqual(a, b) {
		return false
	}
	p.record = e
	return true
}

// restore plugs a recorded endpoint, or collects it if its namespace is gone.
func (s *Set) restore(ctx context.Context, id model.EndpointID, full bool) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	unlock, err := s.locks.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	snap := s.cfg.State.Snapshot()
	e, _ := snap.Endpoint(id)
	if e == nil || !full && s.stands(e) {
		return nil // somebody else was faster
	}
	alive, err := s.alive(e)
	if err != nil {
		return err
	}
	if !alive {
		s.log.Info("collect endpoint of a vanished namespace", "endpoint", id, "network", e.Network)
		return s.remove(ctx, *e)
	}
	n, _ := snap.Network(e.Network)
	if n == nil {
		return fmt.Errorf("network %q: %w", e.Network, ErrNoNetwork)
	}
	held, err := s.holdPorts(*e)
	if err != nil {
		// Somebody took the port while no agent held it. The rules stay, so that
		// what worked goes on working, and the operator is told.
		return errors.Join(err, s.plug(ctx, *n, *e, nil))
	}
	return s.plug(ctx, *n, *e, held)
}

// strays lists what is attached here though it is recorded no more.
func (s *Set) strays(recorded map[model.EndpointID]bool) []model.Endpoint {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []model.Endpoint
	for id, p := range s.attached {
		if !recorded[id] {
			all = append(all, p.endpoint)
		}
	}
	return all
}

// collect unplugs a stray, unless an Attach has recorded it in the meantime.
func (s *Set) collect(ctx context.Context, e model.Endpoint) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	unlock, err := s.locks.lock(ctx, e.ID)
	if err != nil {
		return err
	}
	defer unlock()
	if now, _ := s.cfg.State.Snapshot().Endpoint(e.ID); now != nil {
		return nil
	}
	s.mu.Lock()
	_, still := s.attached[e.ID]
	s.mu.Unlock()
	if !still {
		return nil
	}
	s.log.Info("collect endpoint without a record", "endpoint", e.ID, "network", e.Network)
	return s.unplug(ctx, e)
}

// leftNetworks lists networks that stand here though they are recorded no more.
func (s *Set) leftNetworks(wanted map[model.NetworkName]bool) []model.NetworkName {
	s.mu.Lock()
	defer s.mu.Unlock()
	var gone []model.NetworkName
	for name := range s.networks {
		if !wanted[name] {
			gone = append(gone, name)
		}
	}
	return gone
}

// applyRules hands the driver the packet filter's rules if they differ from the
// last ones it took. What it refuses is a problem until it takes them.
func (s *Set) applyRules(ctx context.Context) error {
	s.ruling.Lock()
	defer s.ruling.Unlock()
	r, known := s.rules()
	if !known || s.lastRules != nil && reflect.DeepEqual(r, *s.lastRules) {
		return nil
	}
	err := s.cfg.Driver.SetRules(ctx, r)
	s.problem(problemOfRules, err)
	if err != nil {
		s.lastRules = nil // it may have taken a part
		return fmt.Errorf("set the packet filter's rules: %w", err)
	}
	s.lastRules = &r
	return nil
}

// rules is what the packet filter should carry now. Endpoints without published
// ports do not matter to it.
func (s *Set) rules() (r netdrv.Rules, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.found {
		return r, false
	}
	for _, b := range s.networks {
		r.Networks = append(r.Networks, b.network)
		if b.overlay != nil {
			r.Overlays = append(r.Overlays, *b.overlay)
		}
	}
	for _, p := range s.attached {
		if len(p.endpoint.Ports) > 0 {
			r.Endpoints = append(r.Endpoints, p.endpoint)
		}
	}
	for _, e := range s.waiting {
		if len(e.Ports) > 0 {
			r.Endpoints = append(r.Endpoints, e)
		}
	}
	slices.SortFunc(r.Networks, func(a, b model.Network) int { return strings.Compare(string(a.Name), string(b.Name)) })
	slices.SortFunc(r.Overlays, func(a, b netdrv.Overlay) int { return strings.Compare(string(a.Network.Name), string(b.Network.Name)) })
	slices.SortFunc(r.Endpoints, func(a, b model.Endpoint) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return r, true
}

// prune removes what nobody accounts for: entries of pinned maps, which outlive
// the agent that filled them, and interfaces of an agent whose records are gone.
func (s *Set) prune(ctx context.Context) error {
	_, err := s.cfg.Driver.Prune(ctx, s.keep())
	return errors.Join(err, s.pruneEndpoints(), s.pruneVeths(), s.scopes.sync(true))
}

// keep says which of our interfaces have a record. What is recorded later than
// keep was made counts as well.
func (s *Set) keep() func(link string) bool {
	links := s.recordedLinks(s.cfg.State.Snapshot())
	return func(link string) bool {
		return links[link] || s.recordedLinks(s.cfg.State.Snapshot())[link]
	}
}

func (s *Set) recordedLinks(snap *state.Snapshot) map[string]bool {
	links := map[string]bool{}
	networks, _ := snap.Networks()
	for _, n := range networks {
		if s.here(snap, n) {
			links[netdrv.BridgeName(n.Name)] = true
			links[netdrv.TunnelName(n.Name)] = true
		}
	}
	endpoints, _ := snap.Endpoints()
	for _, e := range endpoints {
		if e.Node == s.cfg.Node {
			links[netdrv.HostIf(e.ID)] = true
		}
	}
	return links
}

// pruneEndpoints reads the map before it asks what is attached: an Attach says so
// before it writes.
func (s *Set) pruneEndpoints() error {
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

// pruneVeths is pruneEndpoints for the interfaces that carry the program.
func (s *Set) pruneVeths() error {
	have, err := s.cfg.Path.Veths()
	if err != nil {
		return fmt.Errorf("read the interface map: %w", err)
	}
	wanted := map[int]bool{}
	s.mu.Lock()
	for _, p := range s.attached {
		wanted[p.plugged.HostIfIndex] = true
	}
	s.mu.Unlock()
	var errs []error
	for _, v := range have {
		if !wanted[v.IfIndex] {
			errs = append(errs, s.cfg.Path.DetachVeth(v.IfIndex))
		}
	}
	return errors.Join(errs...)
}

// release gives back what only a living agent holds. Kernel state stays.
func (s *Set) release() {
	var held []map[portKey]io.Closer
	var listening []netip.AddrPort
	s.mu.Lock()
	for _, p := range s.attached {
		held = append(held, p.held)
		p.held = nil
	}
	for name, b := range s.networks {
		listening = append(listening, b.listening...)
		b.listening, b.complete = nil, false
		s.networks[name] = b
	}
	s.mu.Unlock()
	for _, h := range held {
		closeAll(h)
	}
	for _, at := range listening {
		s.cfg.Resolver.Unlisten(at)
	}
}
