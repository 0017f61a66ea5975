// Package workload is what a container or process is to the agent: its endpoints,
// the service it answers for and the process behind it, attached together,
// listed together and cleared away together.
//
// It holds no state of its own: endpoints are in the catalogue, registrations in
// the node's local file and processes with their supervisors. All methods are
// safe for concurrent use.
package workload

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/fairlead-net/fairlead/api"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// The refusals of this package.
var (
	// ErrNoWorkload says that no workload of that name is on this node.
	ErrNoWorkload = errors.New("no such workload")
	// ErrSpec refuses a workload whose description cannot be.
	ErrSpec = errors.New("not a valid workload")
	// ErrServiceTaken says that somebody else has registered a service under the
	// workload's name.
	ErrServiceTaken = errors.New("a service of that id is registered already")
)

// Endpoints attaches and detaches; endpoint.Set does it.
type Endpoints interface {
	Attach(ctx context.Context, w model.Endpoint, want []netip.Addr) (model.Endpoint, error)
	Detach(ctx context.Context, id model.EndpointID) error
}

// Registrations registers what answers on this node; local.Agent does it.
type Registrations interface {
	Register(ctx context.Context, r model.Registration) (warning string, err error)
	Deregister(ctx context.Context, id model.ServiceID) error
	Services() []model.Registration
}

// Processes are the supervised plain processes of this node.
type Processes interface {
	// List returns every process with a supervisor, or whose supervisor ended
	// without having been cleared away.
	List() ([]api.Workload, error)
	// Stop ends a process and returns when it is gone; unknown names are no error.
	Stop(ctx context.Context, name string, grace time.Duration) error
	// Clear removes what an ended process left.
	Clear(name string) error
	// Changed closes when a process ends.
	Changed(ctx context.Context) <-chan struct{}
}

// Firewalls names foreign packet filters that would drop forwarded traffic.
type Firewalls interface {
	ForeignDrops(ctx context.Context) ([]string, error)
}

// Balancer programs the data path; lb.Balancer does it.
type Balancer interface {
	// Await returns when the data path has what the catalogue and the endpoints
	// had at the call.
	Await(ctx context.Context) error
}

// balancerWait bounds how long an attach waits for the balancer: it takes
// milliseconds, and a workload can run without.
const balancerWait = 2 * time.Second

// Config is what a Set is made of.
type Config struct {
	Node          model.NodeName
	State         *state.State
	Endpoints     Endpoints
	Registrations Registrations
	Processes     Processes
	Firewalls     Firewalls
	Balancer      Balancer
	// HostAddr is the address at which others reach this host's published ports.
	HostAddr netip.Addr
	// Domain is the domain of names inside networks, "internal".
	Domain string
	Log    *slog.Logger
}

// Set is this node's workloads.
type Set struct {
	cfg Config
	log *slog.Logger

	// releasing makes Stop and Run, which see the same process end, take turns.
	releasing sync.Mutex
	// attaching is held shared while an endpoint and its registration are made,
	// so that the second is not taken for what is left of an earlier one.
	attaching sync.RWMutex
}

// New returns a set.
func New(cfg Config) *Set { return &Set{cfg: cfg, log: cfg.Log} }

// Attach connects a workload to a network and registers the service that it
// answers for. It is idempotent; when it fails nothing new remains.
func (s *Set) Attach(ctx context.Context, w api.WorkloadSpec) (api.Attachment, error) {
	if w.NetNS == "" {
		return api.Attachment{}, fmt.Errorf("%w: netns is missing: the path of the workload's network namespace", ErrSpec)
	}
	if err := checkService(w.Service); err != nil {
		return api.Attachment{}, err
	}
	s.attaching.RLock()
	defer s.attaching.RUnlock()
	if err := s.serviceFree(w); err != nil {
		return api.Attachment{}, err
	}
	before := s.endpoints(w.Name)
	e, err := s.cfg.Endpoints.Attach(ctx, draft(w), w.Addrs)
	if err != nil {
		return api.Attachment{}, err
	}
	a := s.attachment(ctx, e)
	if w.Service == nil {
		return s.settle(ctx, a), nil
	}
	warning, err := s.cfg.Registrations.Register(ctx, s.registration(w, e))
	if err != nil {
		err = fmt.Errorf("register service %s: %w", w.Service.Name, err)
		if !slices.ContainsFunc(before, func(o *model.Endpoint) bool { return o.ID == e.ID }) {
			err = errors.Join(err, s.cfg.Endpoints.Detach(context.WithoutCancel(ctx), e.ID))
		}
		return api.Attachment{}, err
	}
	if warning != "" {
		a.Warnings = append(a.Warnings, "service "+w.Service.Name+": "+warning)
	}
	return s.settle(ctx, a), nil
}

// settle waits until services can be reached from the new endpoint: a program
// that calls one as the first thing it does must not be refused.
func (s *Set) settle(ctx context.Context, a api.Attachment) api.Attachment {
	ctx, cancel := context.WithTimeout(ctx, balancerWait)
	defer cancel()
	if err := s.cfg.Balancer.Await(ctx); err != nil {
		a.Warnings = append(a.Warnings, "services may not be reachable for a moment: the balancer has not taken the workload in yet")
	}
	return a
}

// serviceFree refuses to replace a service that was not registered for a
// workload: it would go away with this one.
func (s *Set) serviceFree(w api.WorkloadSpec) error {
	if w.Service == nil {
		return nil
	}
	for _, r := range s.cfg.Registrations.Services() {
		if string(r.Instance.ID) == w.Name && r.Instance.Endpoint == "" {
			return fmt.Errorf("workload %q: %w, as an instance of %q; deregister that one or choose another name", w.Name, ErrServiceTaken, r.Instance.Service)
		}
	}
	return nil
}

func (s *Set) attachment(ctx context.Context, e model.Endpoint) api.Attachment {
	a := api.Attachment{Endpoint: Endpoint(e), Search: []string{string(e.Network) + "." + s.cfg.Domain}}
	if n, _ := s.cfg.State.Snapshot().Network(e.Network); n != nil {
		for _, p := range n.Pools {
			a.Nameservers = append(a.Nameservers, p.Gateway)
		}
	}
	drops, err := s.cfg.Firewalls.ForeignDrops(ctx)
	if err != nil {
		s.log.Warn("look for foreign packet filters", "error", err)
	}
	for _, d := range drops {
		a.Warnings = append(a.Warnings, "this host's own firewall drops forwarded packets ("+d+"): the workload reaches its network, but neither the outside nor, from outside, its published ports")
	}
	return a
}

// Stop takes a workload out of its services, ends its process if it has one here
// and detaches its endpoints.
func (s *Set) Stop(ctx context.Context, name string, grace time.Duration) error {
	known := len(s.endpoints(name)) > 0
	procs, err := s.cfg.Processes.List()
	if err != nil {
		return err
	}
	for _, p := range procs {
		known = known || p.Name == name
	}
	if !known {
		return fmt.Errorf("workload %q: %w on this node; 'fairlead ps' lists them", name, ErrNoWorkload)
	}
	if err := s.deregister(ctx, name); err != nil {
		return err
	}
	if err := s.cfg.Processes.Stop(ctx, name, grace); err != nil {
		return fmt.Errorf("stop %s: %w", name, err)
	}
	return s.release(ctx, name)
}

// Run clears away workloads whose process ended by itself, and registrations
// whose endpoint is gone, until ctx ends.
func (s *Set) Run(ctx context.Context, ready func()) error {
	ready()
	changed := s.cfg.Processes.Changed(ctx)
	for ctx.Err() == nil {
		_, endpoints := s.cfg.State.Snapshot().Endpoints()
		procs, err := s.cfg.Processes.List()
		if err != nil {
			s.log.Warn("list processes", "error", err)
		}
		for _, p := range procs {
			if p.State != "exited" {
				continue
			}
			if err := s.releaseEnded(ctx, p.Name); err != nil {
				s.log.Warn("clear away workload", "workload", p.Name, "error", err)
			}
		}
		if err := s.deregisterOrphans(ctx); err != nil {
			s.log.Warn("clear away registrations of vanished endpoints", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-endpoints.Changed:
		case <-changed:
			changed = s.cfg.Processes.Changed(ctx)
		}
	}
	<-changed // its goroutine ends with ctx
	return nil
}

// orphans lists registrations whose endpoint is not in the catalogue: whoever
// saw its namespace vanish, such as the start of an agent, collected it alone.
func (s *Set) orphans() []model.ServiceID {
	var all []model.ServiceID
	regs := s.cfg.Registrations.Services()
	snap := s.cfg.State.Snapshot() // newer than regs, so it has their endpoints
	for _, r := range regs {
		if r.Instance.Endpoint == "" {
			continue
		}
		if e, _ := snap.Endpoint(r.Instance.Endpoint); e == nil {
			all = append(all, r.Instance.ID)
		}
	}
	return all
}

func (s *Set) deregisterOrphans(ctx context.Context) error {
	if len(s.orphans()) == 0 {
		return nil
	}
	s.attaching.Lock()
	defer s.attaching.Unlock()
	s.releasing.Lock()
	defer s.releasing.Unlock()
	var errs []error
	for _, id := range s.orphans() {
		s.log.Info("deregister service of a vanished endpoint", "service", id)
		errs = append(errs, s.cfg.Registrations.Deregister(ctx, id))
	}
	return errors.Join(errs...)
}

// releaseEnded releases a workload whose process has ended; by the time it has
// its turn another one may have its name.
func (s *Set) releaseEnded(ctx context.Context, name string) error {
	s.releasing.Lock()
	defer s.releasing.Unlock()
	procs, err := s.cfg.Processes.List()
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(procs, func(p api.Workload) bool { return p.Name == name && p.State == "exited" }) {
		return nil
	}
	return s.releaseLocked(ctx, name)
}

// release removes registrations, endpoints and what the process left.
func (s *Set) release(ctx context.Context, name string) error {
	s.releasing.Lock()
	defer s.releasing.Unlock()
	return s.releaseLocked(ctx, name)
}

// releaseLocked is release for who holds s.releasing. That somebody else, such
// as the collection of vanished namespaces, was faster is no error.
func (s *Set) releaseLocked(ctx context.Context, name string) error {
	errs := []error{s.deregister(ctx, name)}
	for _, e := range s.endpoints(name) {
		err := s.cfg.Endpoints.Detach(ctx, e.ID)
		if err == nil {
			continue
		}
		if now, _ := s.cfg.State.Snapshot().Endpoint(e.ID); now == nil {
			s.log.Warn("detach what is recorded no more", "endpoint", e.ID, "error", err)
			continue
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return s.cfg.Processes.Clear(name)
}

func (s *Set) deregister(ctx context.Context, name string) error {
	mine := map[model.EndpointID]bool{}
	for _, e := range s.endpoints(name) {
		mine[e.ID] = true
	}
	var errs []error
	for _, r := range s.cfg.Registrations.Services() {
		if r.Instance.Endpoint == "" || !mine[r.Instance.Endpoint] {
			continue
		}
		if err := s.cfg.Registrations.Deregister(ctx, r.Instance.ID); err != nil && s.registered(r.Instance.ID) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (s *Set) registered(id model.ServiceID) bool {
	return slices.ContainsFunc(s.cfg.Registrations.Services(), func(r model.Registration) bool { return r.Instance.ID == id })
}

// endpoints lists the workload's endpoints on this node.
func (s *Set) endpoints(name string) []*model.Endpoint {
	var mine []*model.Endpoint
	all, _ := s.cfg.State.Snapshot().Endpoints()
	for _, e := range all {
		if e.Node == s.cfg.Node && string(e.Workload) == name {
			mine = append(mine, e)
		}
	}
	return mine
}

// List returns this node's workloads with their endpoints, sorted by name.
func (s *Set) List() ([]api.Workload, error) {
	procs, err := s.cfg.Processes.List()
	if err != nil {
		return nil, err
	}
	byName := map[string]*api.Workload{}
	for _, p := range procs {
		byName[p.Name] = &p
	}
	services := map[model.EndpointID]string{}
	for _, r := range s.cfg.Registrations.Services() {
		services[r.Instance.Endpoint] = string(r.Instance.Service)
	}
	all, _ := s.cfg.State.Snapshot().Endpoints()
	for _, e := range all {
		if e.Node != s.cfg.Node {
			continue
		}
		w := byName[string(e.Workload)]
		if w == nil {
			w = &api.Workload{Name: string(e.Workload), State: "unknown"}
			byName[w.Name] = w
		}
		w.Endpoints = append(w.Endpoints, Endpoint(*e))
		if name := services[e.ID]; name != "" {
			w.Service = name
		}
	}
	out := make([]api.Workload, 0, len(byName))
	for _, w := range byName {
		if w.Endpoints == nil {
			w.Endpoints = []api.Endpoint{}
		}
		out = append(out, *w)
	}
	slices.SortFunc(out, func(a, b api.Workload) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func draft(w api.WorkloadSpec) model.Endpoint {
	e := model.Endpoint{
		Workload: model.WorkloadName(w.Name), Network: model.NetworkName(w.Network),
		NetNS: w.NetNS, Aliases: w.Aliases,
	}
	for _, p := range w.Ports {
		e.Ports = append(e.Ports, model.PublishedPort{
			Proto: model.Protocol(p.Proto), HostPort: p.HostPort, Port: p.Port, Expose: model.Expose(p.Expose),
		})
	}
	return e
}

func checkService(v *api.Service) error {
	switch {
	case v == nil:
		return nil
	case v.Name == "":
		return fmt.Errorf("%w: the service has no name", ErrSpec)
	case v.Port == 0:
		return fmt.Errorf("%w: service %q has no port; say which port it answers at", ErrSpec, v.Name)
	case v.Check != nil && (v.Check.HTTP != "") == v.Check.TCP:
		return fmt.Errorf("%w: the check of service %q must be exactly one of http and tcp", ErrSpec, v.Name)
	case v.Check != nil && v.Check.HTTP != "" && !strings.HasPrefix(v.Check.HTTP, "/"):
		return fmt.Errorf("%w: the HTTP check of service %q is %q: want a path that begins with /", ErrSpec, v.Name, v.Check.HTTP)
	}
	return nil
}

// registration is what the workload's service looks like in the catalogue: one
// instance that answers at all of the endpoint's addresses and, where its port is
// published to more than the host, at the host's.
func (s *Set) registration(w api.WorkloadSpec, e model.Endpoint) model.Registration {
	node := s.cfg.Node
	in := model.Instance{
		Node: node, ID: model.ServiceID(w.Name), Service: model.ServiceName(w.Service.Name),
		Tags: w.Service.Tags, Port: int(w.Service.Port), Weights: model.DefaultWeights, Endpoint: e.ID,
		Stamp: model.Stamp{Owner: model.NodeOwner(node)},
	}
	for _, a := range e.Addrs {
		if in.Address == "" {
			in.Address = a.String()
		}
		in.Places = append(in.Places, model.Place{Network: e.Network, Addr: a, Port: w.Service.Port})
	}
	for _, p := range e.Ports {
		// A service is asked over TCP unless its callers know better; a port that
		// is published for UDP alone is no place for them.
		if p.Proto == model.TCP && p.Port == w.Service.Port && p.Expose != model.ExposeHost && s.hostReaches(e) {
			in.Places = append(in.Places, model.Place{Addr: s.cfg.HostAddr, Port: p.HostPort})
			break
		}
	}
	r := model.Registration{Instance: in}
	if c := w.Service.Check; c != nil {
		at := net.JoinHostPort(in.Address, strconv.Itoa(in.Port))
		spec := model.CheckSpec{
			ID: model.CheckID("service:" + w.Name), Name: "Service '" + w.Service.Name + "' check",
			ServiceID: in.ID, Interval: c.Interval, Timeout: c.Timeout,
			DeregisterAfter: c.DeregisterAfter, NetNS: w.NetNS,
		}
		if c.TCP {
			spec.TCP = at
		} else {
			spec.HTTP = "http://" + at + c.HTTP
		}
		if spec.Interval == 0 {
			spec.Interval = 10 * time.Second
		}
		r.Checks = append(r.Checks, spec)
	}
	return r
}

// hostReaches reports whether the host's address leads to published ports of the
// endpoint: it is not loopback, and the endpoint has an address of its family.
func (s *Set) hostReaches(e model.Endpoint) bool {
	a := s.cfg.HostAddr
	return a.IsValid() && !a.IsLoopback() && (a.Is4() && e.Addr4().IsValid() || a.Is6() && e.Addr6().IsValid())
}

// Endpoint is an endpoint as the native API shows it.
func Endpoint(e model.Endpoint) api.Endpoint {
	out := api.Endpoint{
		ID: string(e.ID), Workload: string(e.Workload), Network: string(e.Network), Node: string(e.Node),
		Aliases: e.Aliases, Addrs: e.Addrs, MAC: e.MAC, HostIf: e.HostIf, NetNS: e.NetNS,
	}
	for _, p := range e.Ports {
		out.Ports = append(out.Ports, api.Port{Proto: string(p.Proto), HostPort: p.HostPort, Port: p.Port, Expose: string(p.Expose)})
	}
	return out
}
