// Package endpoint attaches workloads to networks and keeps them attached.
//
// It owns this node's part of the network: for every network on the node a
// bridge and a listening resolver, for every endpoint its interface, its entries
// in the data path's maps and its published ports. What is wanted is in the
// catalogue; Run brings the kernel to it, at start and at every change, so that
// a restarted agent finds, completes or collects what it had made before.
//
// All methods are safe for concurrent use. Attach and Detach of one endpoint
// wait for each other.
package endpoint

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/fairlead-net/fairlead/internal/datapath"
	"github.com/fairlead-net/fairlead/internal/ipam"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/netdrv"
	"github.com/fairlead-net/fairlead/internal/state"
)

// The refusals of Attach and Detach. They are wrapped with what was asked.
var (
	ErrNoNetwork   = errors.New("no such network")
	ErrOtherNode   = errors.New("the network lives on another node")
	ErrDriver      = errors.New("the network's driver takes no endpoints")
	ErrName        = errors.New("not a valid workload name")
	ErrPort        = errors.New("not a valid published port")
	ErrPortTaken   = errors.New("the host port is taken")
	ErrNoEndpoint  = errors.New("no such endpoint")
	ErrNotThisNode = errors.New("the endpoint lives on another node")
	ErrAttached    = errors.New("a workload of that name is attached from another namespace")
)

// callTimeout bounds one round of kernel and catalogue work for one endpoint.
const callTimeout = 10 * time.Second

// Registry is where endpoints and their addresses are recorded.
type Registry interface {
	// CreateEndpoint records the endpoint with addresses leased for it; the same
	// endpoint again answers with what is recorded.
	CreateEndpoint(ctx context.Context, e model.Endpoint, want []netip.Addr) (model.Endpoint, model.Index, error)
	// UpdateEndpoint changes a record but for its identity and addresses.
	UpdateEndpoint(ctx context.Context, e model.Endpoint) (model.Index, error)
	// DeleteEndpoint removes the record and returns the addresses.
	DeleteEndpoint(ctx context.Context, id model.EndpointID) (model.Index, error)
	// CreateNetwork records a network that nobody has.
	CreateNetwork(ctx context.Context, n model.Network) (model.Index, error)
	// DeleteNetwork removes a network that has no endpoints.
	DeleteNetwork(ctx context.Context, name model.NetworkName) (model.Index, error)
}

// Driver changes the kernel's interfaces, addresses and rules.
type Driver interface {
	EnsureNetwork(ctx context.Context, n model.Network) error
	RemoveNetwork(ctx context.Context, name model.NetworkName) error
	Attach(ctx context.Context, p netdrv.Plug) (netdrv.Plugged, error)
	Detach(ctx context.Context, e model.Endpoint) error
	SetRules(ctx context.Context, r netdrv.Rules) error
	HoldPort(proto model.Protocol, port uint16) (io.Closer, error)
	Claims(ctx context.Context) ([]ipam.Claim, error)
	// Identity names the namespace that a path leads to.
	Identity(path string) (string, error)
}

// Path is the eBPF data path.
type Path interface {
	// AttachVeth puts the program on a host-side interface.
	AttachVeth(v datapath.Veth) error
	SetEndpoint(e datapath.NetEndpoint) error
	DeleteEndpoint(network uint32, addr netip.Addr) error
	Endpoints() ([]datapath.NetEndpoint, error)
	SetScope(cookie uint64, s datapath.Scope) error
	DeleteScope(cookie uint64) error
	Scopes() (map[uint64]datapath.Scope, error)
}

// Resolver answers names at the networks' gateways.
type Resolver interface {
	Listen(ctx context.Context, addr netip.AddrPort) error
	Unlisten(addr netip.AddrPort)
}

// Config is what a Set is made of.
type Config struct {
	Node     model.NodeName
	State    *state.State
	Registry Registry
	Driver   Driver
	Path     Path
	Resolver Resolver
	// VIPPools are the prefixes that no network may overlap.
	VIPPools []netip.Prefix
	// HostCookie is the cookie of the host's own network namespace.
	HostCookie uint64
	Log        *slog.Logger
}

// Set is this node's endpoints.
type Set struct {
	cfg    Config
	log    *slog.Logger
	locks  keyed
	scopes *scopes

	mu       sync.Mutex // guards following
	attached map[model.EndpointID]*place
	networks map[model.NetworkName]*bridged
	problems map[string]string

	// rulesMu is held while the driver takes rules, so that the last ones it
	// took are the newest; it guards following. Taken before mu.
	rulesMu   sync.Mutex
	lastRules netdrv.Rules
	rulesSet  bool
	// adopting is set while the first round of Run goes through what a
	// predecessor left. Its rules stay until all of it is known: the rules of a
	// part would close the published ports of the rest for a moment.
	adopting bool
}

// place is one endpoint as it stands in the kernel.
type place struct {
	endpoint model.Endpoint
	plugged  netdrv.Plugged
	held     map[portKey]io.Closer
}

// bridged is one network as it stands in the kernel.
type bridged struct {
	network   model.Network
	listening []netip.AddrPort
}

type portKey struct {
	proto model.Protocol
	port  uint16
}

// New returns a set that has done nothing yet; see Run.
func New(cfg Config) *Set {
	return &Set{
		cfg:      cfg,
		log:      cfg.Log,
		scopes:   newScopes(cfg.Path, cfg.HostCookie),
		attached: map[model.EndpointID]*place{},
		networks: map[model.NetworkName]*bridged{},
		problems: map[string]string{},
	}
}

// ID is the identity of a workload's endpoint in a network: the same workload of
// the same node gets the same one again, and with it its interface's name and
// MAC address.
func ID(node model.NodeName, w model.WorkloadName, n model.NetworkName) model.EndpointID {
	sum := sha256.Sum256([]byte(string(node) + "\x00" + string(w) + "\x00" + string(n)))
	return model.EndpointID(hex.EncodeToString(sum[:8]))
}

// label is a DNS label (RFC 1123), since names are answered by DNS.
var label = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)

// Attach gives a workload its place: a record with leased addresses, an interface
// in its namespace, names, and published ports. Of r it reads Workload, Network,
// NetNS, Aliases and Ports; want asks for addresses, at most one a family, and a
// family not named gets the next free one. Attach is idempotent; when it fails
// nothing of a new endpoint remains.
func (s *Set) Attach(ctx context.Context, r model.Endpoint, want []netip.Addr) (model.Endpoint, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	e, err := s.draft(r)
	if err != nil {
		return model.Endpoint{}, err
	}
	if e.NSID, err = s.cfg.Driver.Identity(e.NetNS); err != nil {
		return model.Endpoint{}, fmt.Errorf("attach %s: %w", r.Workload, err)
	}
	unlock := s.locks.lock(e.ID)
	defer unlock()

	snap := s.cfg.State.Snapshot()
	n, _ := snap.Network(r.Network)
	if n == nil {
		return model.Endpoint{}, fmt.Errorf("network %q: %w; 'fairlead network ls' lists them, 'fairlead network create %s' makes it", r.Network, ErrNoNetwork, r.Network)
	}
	if err := s.usable(n); err != nil {
		return model.Endpoint{}, err
	}
	before, _ := snap.Endpoint(e.ID)
	if before != nil && before.NSID != e.NSID {
		alive, err := s.alive(before)
		if err != nil {
			return model.Endpoint{}, fmt.Errorf("attach %s to %s: %w", r.Workload, r.Network, err)
		}
		if alive {
			return model.Endpoint{}, fmt.Errorf("attach %s to %s: %w (%s); stop that one or choose another name", r.Workload, r.Network, ErrAttached, before.NetNS)
		}
	}
	held, err := s.holdPorts(e)
	if err != nil {
		return model.Endpoint{}, err
	}
	e, err = s.record(ctx, e, want)
	if err != nil {
		closeAll(held)
		return model.Endpoint{}, fmt.Errorf("attach %s to %s: %w", r.Workload, r.Network, err)
	}
	if err := s.plug(ctx, *n, e, held); err != nil {
		if before == nil {
			s.undo(ctx, e)
		}
		return model.Endpoint{}, fmt.Errorf("attach %s to %s: %w", r.Workload, r.Network, err)
	}
	return e, nil
}

// record writes the endpoint down: a new one with leased addresses, one that is
// there with what is new of it.
func (s *Set) record(ctx context.Context, e model.Endpoint, want []netip.Addr) (model.Endpoint, error) {
	now, _, err := s.cfg.Registry.CreateEndpoint(ctx, e, want)
	if err != nil || same(now, e) {
		return now, err
	}
	e.Addrs = now.Addrs
	_, err = s.cfg.Registry.UpdateEndpoint(ctx, e)
	return e, err
}

// same reports whether a record says what was asked for, addresses aside.
func same(recorded, asked model.Endpoint) bool {
	recorded.Stamp, asked.Stamp = model.Stamp{}, model.Stamp{}
	recorded.Addrs, asked.Addrs = nil, nil
	return reflect.DeepEqual(recorded, asked)
}

// alive reports whether the namespace that an endpoint was recorded with is
// still there. An error means that it cannot be told.
func (s *Set) alive(e *model.Endpoint) (bool, error) {
	id, err := s.cfg.Driver.Identity(e.NetNS)
	for _, gone := range []error{netdrv.ErrNoNamespace, netdrv.ErrNotNamespace, netdrv.ErrHostNamespace} {
		if errors.Is(err, gone) {
			return false, nil
		}
	}
	return id == e.NSID, err
}

// draft turns a request into the record that it asks for.
func (s *Set) draft(r model.Endpoint) (model.Endpoint, error) {
	if !label.MatchString(string(r.Workload)) {
		return model.Endpoint{}, fmt.Errorf("workload %q: %w: want 1 to 63 letters, digits and inner hyphens", r.Workload, ErrName)
	}
	for _, a := range r.Aliases {
		if !label.MatchString(a) {
			return model.Endpoint{}, fmt.Errorf("alias %q: %w: want 1 to 63 letters, digits and inner hyphens", a, ErrName)
		}
	}
	ports, err := checkPorts(r.Ports)
	if err != nil {
		return model.Endpoint{}, err
	}
	id := ID(s.cfg.Node, r.Workload, r.Network)
	return model.Endpoint{
		ID: id, Workload: r.Workload, Network: r.Network, Node: s.cfg.Node,
		Aliases: r.Aliases, Ports: ports, NetNS: r.NetNS,
		HostIf: netdrv.HostIf(id),
		Stamp:  model.Stamp{Owner: model.NodeOwner(s.cfg.Node)},
	}, nil
}

func (s *Set) usable(n *model.Network) error {
	if n.Driver != model.DriverBridge {
		return fmt.Errorf("network %q has driver %q: %w", n.Name, n.Driver, ErrDriver)
	}
	if n.Node != s.cfg.Node {
		return fmt.Errorf("network %q is on node %q: %w", n.Name, n.Node, ErrOtherNode)
	}
	return nil
}

// undo removes what a failed first attach left. The caller's context may be the
// reason of the failure, so it has one of its own.
func (s *Set) undo(ctx context.Context, e model.Endpoint) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	if err := s.unplug(ctx, e); err != nil {
		s.log.Warn("undo attach", "endpoint", e.ID, "error", err)
	}
	if _, err := s.cfg.Registry.DeleteEndpoint(ctx, e.ID); err != nil {
		s.log.Warn("undo attach", "endpoint", e.ID, "error", err)
	}
}

// Detach takes a workload out of a network: ports, maps, interface, record and
// addresses. It returns ErrNoEndpoint when there is nothing to take out.
func (s *Set) Detach(ctx context.Context, id model.EndpointID) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	unlock := s.locks.lock(id)
	defer unlock()
	e, _ := s.cfg.State.Snapshot().Endpoint(id)
	if e == nil {
		return fmt.Errorf("endpoint %s: %w", id, ErrNoEndpoint)
	}
	if e.Node != s.cfg.Node {
		return fmt.Errorf("endpoint %s is on node %q: %w", id, e.Node, ErrNotThisNode)
	}
	err := s.unplug(ctx, *e)
	if _, derr := s.cfg.Registry.DeleteEndpoint(ctx, id); derr != nil {
		err = errors.Join(err, derr)
	}
	if err != nil {
		return fmt.Errorf("detach %s from %s: %w", e.Workload, e.Network, err)
	}
	return nil
}

// Problems lists what does not stand as the catalogue wants it, sorted.
func (s *Set) Problems() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for what, why := range s.problems {
		all = append(all, what+": "+why)
	}
	slices.Sort(all)
	return all
}

func (s *Set) problem(what string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		delete(s.problems, what)
		return
	}
	s.problems[what] = err.Error()
}

// keyed is one lock per endpoint; a lock that nobody holds takes no memory.
type keyed struct {
	mu   sync.Mutex // guards following
	held map[model.EndpointID]*lockEntry
}

type lockEntry struct {
	mu    sync.Mutex
	users int // guarded by keyed.mu
}

func (k *keyed) lock(id model.EndpointID) (unlock func()) {
	k.mu.Lock()
	if k.held == nil {
		k.held = map[model.EndpointID]*lockEntry{}
	}
	l := k.held[id]
	if l == nil {
		l = &lockEntry{}
		k.held[id] = l
	}
	l.users++
	k.mu.Unlock()
	l.mu.Lock()
	return func() {
		l.mu.Unlock()
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.held, id)
		}
	}
}
