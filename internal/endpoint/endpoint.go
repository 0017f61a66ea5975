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
	"path/filepath"
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
	// EnsureOverlay makes this host's part of a network that spans several. Hosts
	// that cannot be reached (netdrv.ErrUnreachable) do not keep it from standing.
	EnsureOverlay(ctx context.Context, o netdrv.Overlay) error
	RemoveNetwork(ctx context.Context, name model.NetworkName) error
	Attach(ctx context.Context, p netdrv.Plug) (netdrv.Plugged, error)
	Detach(ctx context.Context, e model.Endpoint) error
	// Prune removes the interfaces of ours that keep does not want.
	Prune(ctx context.Context, keep func(link string) bool) ([]string, error)
	SetRules(ctx context.Context, r netdrv.Rules) error
	HoldPort(proto model.Protocol, port uint16) (io.Closer, error)
	Claims(ctx context.Context) ([]ipam.Claim, error)
	// Identity names the namespace that a path leads to.
	Identity(path string) (string, error)
}

// Path is the eBPF data path.
type Path interface {
	ScopeMap
	// AttachVeth puts the program on a host-side interface.
	AttachVeth(v datapath.Veth) error
	DetachVeth(ifindex int) error
	Veths() ([]datapath.Veth, error)
	SetEndpoint(e datapath.NetEndpoint) error
	DeleteEndpoint(network uint32, addr netip.Addr) error
	Endpoints() ([]datapath.NetEndpoint, error)
}

// Resolver answers names at the networks' gateways.
type Resolver interface {
	Listen(ctx context.Context, addr netip.AddrPort) error
	Unlisten(addr netip.AddrPort)
}

// Config is what a Set is made of.
type Config struct {
	Node     model.NodeName
	Addr     netip.Addr // this host's for the others
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
	locks  keyed[model.EndpointID]  // taken before bridges
	bridge keyed[model.NetworkName] // for work on a network's bridge and resolver
	choose keyed[struct{}]          // from choosing a subnet until it is recorded
	scopes *scopes

	mu       sync.Mutex // guards following
	attached map[model.EndpointID]*place
	networks map[model.NetworkName]bridged
	problems map[string]string
	// waiting are recorded endpoints that could not be found again so far. What the
	// packet filter does for them stays.
	waiting map[model.EndpointID]model.Endpoint
	// found: everything recorded has been looked for. Before that, rules of what
	// was found so far would cut off the rest.
	found bool

	// ruling is held while the driver takes rules, so that the last ones it took
	// are the newest; it guards following. Taken before mu.
	ruling    sync.Mutex
	lastRules *netdrv.Rules
}

// place is one endpoint as it stands in the kernel.
type place struct {
	endpoint model.Endpoint
	plugged  netdrv.Plugged
	held     map[portKey]io.Closer
	complete bool            // everything of it stands
	record   *model.Endpoint // known to say the same as endpoint; may be nil
}

// bridged is one network as it stands in the kernel.
type bridged struct {
	network   model.Network
	overlay   *netdrv.Overlay // nil unless the network is one
	listening []netip.AddrPort
	complete  bool
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
		networks: map[model.NetworkName]bridged{},
		problems: map[string]string{},
		waiting:  map[model.EndpointID]model.Endpoint{},
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
	e, err = s.attach(ctx, e, want)
	if err != nil {
		return model.Endpoint{}, fmt.Errorf("attach %s to %s: %w", r.Workload, r.Network, err)
	}
	return e, nil
}

func (s *Set) attach(ctx context.Context, e model.Endpoint, want []netip.Addr) (_ model.Endpoint, err error) {
	unlock, err := s.locks.lock(ctx, e.ID)
	if err != nil {
		return e, err
	}
	defer unlock()
	if e.NSID, err = s.cfg.Driver.Identity(e.NetNS); err != nil {
		return e, err
	}
	snap := s.cfg.State.Snapshot()
	n, _ := snap.Network(e.Network)
	if n == nil {
		return e, fmt.Errorf("network %q: %w; 'fairlead network ls' lists them, 'fairlead network create %s' makes it", e.Network, ErrNoNetwork, e.Network)
	}
	if err := s.usable(n); err != nil {
		return e, err
	}
	before, _ := snap.Endpoint(e.ID)
	if before != nil && before.NSID != e.NSID {
		if err := s.succeed(ctx, before, want); err != nil {
			return e, err
		}
	}
	held, err := s.holdPorts(e)
	if err != nil {
		return e, err
	}
	asked := e
	if e, err = s.record(ctx, e, want); err != nil {
		closeAll(held)
	} else {
		err = s.plug(ctx, *n, e, held)
	}
	// After an error it may have been recorded all the same.
	if err != nil && (before == nil || before.NSID != asked.NSID) {
		s.undo(ctx, asked)
	}
	return e, err
}

// succeed lets an endpoint begin a new life in another namespace, once the one of
// its last life is gone. It keeps its addresses unless others are wanted.
func (s *Set) succeed(ctx context.Context, before *model.Endpoint, want []netip.Addr) error {
	alive, err := s.alive(before)
	if err != nil {
		return err
	}
	if alive {
		return fmt.Errorf("%w (%s); stop that one or choose another name", ErrAttached, before.NetNS)
	}
	for _, a := range want {
		if !slices.Contains(before.Addrs, a) {
			return s.remove(ctx, *before)
		}
	}
	return nil
}

// record writes the endpoint down: a new one with leased addresses, one that is
// there with what is new of it.
func (s *Set) record(ctx context.Context, e model.Endpoint, want []netip.Addr) (model.Endpoint, error) {
	now, _, err := s.cfg.Registry.CreateEndpoint(ctx, e, want)
	if err != nil || same(now, e) {
		return now, err
	}
	e.Addrs, e.MAC = now.Addrs, now.MAC
	_, err = s.cfg.Registry.UpdateEndpoint(ctx, e)
	return e, err
}

// same reports whether a record says what was asked for, addresses aside.
func same(recorded, asked model.Endpoint) bool {
	recorded.Stamp, asked.Stamp = model.Stamp{}, model.Stamp{}
	recorded.Addrs, asked.Addrs = nil, nil
	recorded.MAC, asked.MAC = "", ""
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
	if !filepath.IsAbs(r.NetNS) {
		return model.Endpoint{}, fmt.Errorf("network namespace %q: %w: want its absolute path", r.NetNS, netdrv.ErrNoNamespace)
	}
	ports, err := checkPorts(r.Ports)
	if err != nil {
		return model.Endpoint{}, err
	}
	var aliases []string // nil if there are none, as in a record
	aliases = append(aliases, r.Aliases...)
	id := ID(s.cfg.Node, r.Workload, r.Network)
	return model.Endpoint{
		ID: id, Workload: r.Workload, Network: r.Network, Node: s.cfg.Node,
		Aliases: aliases, Ports: ports, NetNS: r.NetNS,
		HostIf: netdrv.HostIf(id),
		Stamp:  model.Stamp{Owner: model.NodeOwner(s.cfg.Node)},
	}, nil
}

func (s *Set) usable(n *model.Network) error {
	if n.Driver == model.DriverOverlay {
		return nil
	}
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
	if err := s.remove(ctx, e); err != nil {
		s.log.Warn("undo attach", "endpoint", e.ID, "error", err)
	}
}

// remove takes an endpoint out of the kernel and out of the catalogue. The caller
// holds the endpoint's lock.
func (s *Set) remove(ctx context.Context, e model.Endpoint) error {
	err := s.unplug(ctx, e)
	_, derr := s.cfg.Registry.DeleteEndpoint(ctx, e.ID)
	return errors.Join(err, derr)
}

// Detach takes a workload out of a network: ports, maps, interface, record and
// addresses. It returns ErrNoEndpoint when there is nothing to take out.
func (s *Set) Detach(ctx context.Context, id model.EndpointID) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	unlock, err := s.locks.lock(ctx, id)
	if err != nil {
		return fmt.Errorf("detach endpoint %s: %w", id, err)
	}
	defer unlock()
	e, _ := s.cfg.State.Snapshot().Endpoint(id)
	if e == nil {
		return fmt.Errorf("endpoint %s: %w", id, ErrNoEndpoint)
	}
	if e.Node != s.cfg.Node {
		return fmt.Errorf("endpoint %s is on node %q: %w", id, e.Node, ErrNotThisNode)
	}
	if err := s.remove(ctx, *e); err != nil {
		return fmt.Errorf("detach %s from %s: %w", e.Workload, e.Network, err)
	}
	return nil
}
