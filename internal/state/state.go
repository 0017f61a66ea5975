// Package state holds a node's copy of the replicated catalogue: typed tables
// in immutable snapshots, with a watch channel for every object.
//
// There is one writer (store on a server, mirror on an agent), which calls Apply
// and Reset; everybody else takes a Snapshot, which never changes, costs no lock
// and may be kept as long as one likes. Every read answers with a Mark: the index
// of the last change of what was read, and a channel that closes at the next one.
package state

import (
	"context"
	"net/netip"

	"github.com/fairlead-net/fairlead/internal/model"
)

// Mark goes with every read.
type Mark struct {
	// Index is the revision at which what was read last changed, deletions
	// included. It never goes backwards on a node.
	Index model.Index
	// Changed closes when what was read changes (now and then also when it did
	// not).
	Changed <-chan struct{}
}

// Change is one record put or deleted. Exactly one of the pointers is set; with
// Delete the record needs only the fields of its key.
type Change struct {
	Delete   bool
	Node     *model.Node
	Instance *model.Instance
	Check    *model.Check
	VIP      *model.VIP
	Network  *model.Network
	Endpoint *model.Endpoint
	Lease    *model.AddressLease
	KV       *model.KV
}

// State is the current snapshot and its one writer's door.
type State struct{}

// New returns an empty, unsynced state.
func New() *State { panic("stub") }

// Snapshot returns the current snapshot.
func (s *State) Snapshot() *Snapshot { panic("stub") }

// Apply publishes a snapshot at index rev with the changes made. Only the one
// writer calls it, with revisions that rise.
func (s *State) Apply(rev model.Index, changes []Change) { panic("stub") }

// Reset replaces everything: the full content as of rev. It wakes every waiter,
// raises every index to rev and marks the state synced.
func (s *State) Reset(rev model.Index, records []Change) { panic("stub") }

// Wait returns the first snapshot whose index is at least index, or ctx's error.
func (s *State) Wait(ctx context.Context, index model.Index) (*Snapshot, error) { panic("stub") }

// Synced closes when the state has held one full snapshot. Until then
// reconcilers add but never delete.
func (s *State) Synced() <-chan struct{} { panic("stub") }

// Snapshot is the whole catalogue as of one index. What it returns is shared:
// never change it.
type Snapshot struct{}

// Index is the revision this snapshot shows.
func (s *Snapshot) Index() model.Index { panic("stub") }

// Changed closes when a newer snapshot is published, whatever changed.
func (s *Snapshot) Changed() <-chan struct{} { panic("stub") }

// Node returns a node, nil if there is none of that name.
func (s *Snapshot) Node(name model.NodeName) (*model.Node, Mark) { panic("stub") }

// Nodes returns all nodes, sorted by name.
func (s *Snapshot) Nodes() ([]*model.Node, Mark) { panic("stub") }

// Member is an instance with what health answers need beside it.
type Member struct {
	Node     *model.Node
	Instance *model.Instance
	// Checks are the node's and then the instance's, each sorted by id.
	Checks []*model.Check
}

// Status is the worst state of the member's checks; passing without any.
func (m *Member) Status() model.Status { panic("stub") }

// Addr is where the instance says it can be reached: its address, or its node's.
func (m *Member) Addr() string { panic("stub") }

// Service is all instances of one service, ready to be answered from.
type Service struct {
	Name    model.ServiceName
	VIP     *model.VIP // nil until one is allocated
	Members []*Member  // sorted by node, then id
	Index   model.Index
}

// Service returns one service; without instances it has no members, and is never
// nil. The mark covers instances, their checks, their nodes and the VIP.
func (s *Snapshot) Service(name model.ServiceName) (*Service, Mark) { panic("stub") }

// Services returns every service that has an instance, sorted by name. Its mark
// covers every service.
func (s *Snapshot) Services() ([]*Service, Mark) { panic("stub") }

// ServiceTags returns the sorted names of services with the union of their
// instances' tags; its mark changes with names and tags only (and not with
// health).
func (s *Snapshot) ServiceTags() (map[model.ServiceName][]string, Mark) { panic("stub") }

// Instance returns one instance, nil if there is none.
func (s *Snapshot) Instance(n model.NodeName, id model.ServiceID) (*model.Instance, Mark) {
	panic("stub")
}

// NodeInstances returns a node's instances, sorted by id.
func (s *Snapshot) NodeInstances(n model.NodeName) ([]*model.Instance, Mark) { panic("stub") }

// NodeChecks returns a node's checks and those of its instances, sorted by id.
func (s *Snapshot) NodeChecks(n model.NodeName) ([]*model.Check, Mark) { panic("stub") }

// ServiceChecks returns the checks of a service's instances, sorted by node and id.
func (s *Snapshot) ServiceChecks(name model.ServiceName) ([]*model.Check, Mark) { panic("stub") }

// Checks returns every check in a state, or all of them for the empty state,
// sorted by node and id. The mark covers all checks.
func (s *Snapshot) Checks(status model.Status) ([]*model.Check, Mark) { panic("stub") }

// VIPs returns every allocated VIP, sorted by service.
func (s *Snapshot) VIPs() ([]*model.VIP, Mark) { panic("stub") }

// VIP returns a service's VIP, nil if it has none.
func (s *Snapshot) VIP(name model.ServiceName) (*model.VIP, Mark) { panic("stub") }

// VIPByAddr returns the VIP that has the address, nil if none has.
func (s *Snapshot) VIPByAddr(a netip.Addr) *model.VIP { panic("stub") }

// Network returns a network, nil if there is none of that name.
func (s *Snapshot) Network(name model.NetworkName) (*model.Network, Mark) { panic("stub") }

// Networks returns all networks, sorted by name.
func (s *Snapshot) Networks() ([]*model.Network, Mark) { panic("stub") }

// Endpoint returns an endpoint, nil if there is none of that id.
func (s *Snapshot) Endpoint(id model.EndpointID) (*model.Endpoint, Mark) { panic("stub") }

// Endpoints returns all endpoints, sorted by id.
func (s *Snapshot) Endpoints() ([]*model.Endpoint, Mark) { panic("stub") }

// NetworkEndpoints returns a network's endpoints, sorted by id.
func (s *Snapshot) NetworkEndpoints(n model.NetworkName) ([]*model.Endpoint, Mark) { panic("stub") }

// EndpointByAddr returns the endpoint that holds an address, nil if none does.
func (s *Snapshot) EndpointByAddr(a netip.Addr) *model.Endpoint { panic("stub") }

// EndpointsByName returns the endpoints of a network that answer to a name
// (their workload's or an alias), compared without regard to case.
func (s *Snapshot) EndpointsByName(n model.NetworkName, name string) []*model.Endpoint {
	panic("stub")
}

// Leases returns a network's address leases, sorted by address.
func (s *Snapshot) Leases(n model.NetworkName) ([]*model.AddressLease, Mark) { panic("stub") }

// KV returns one entry, nil if there is none. The mark's index covers the key's
// deletion.
func (s *Snapshot) KV(key string) (*model.KV, Mark) { panic("stub") }

// KVTree returns the entries whose keys begin with prefix, sorted by key. The
// mark covers the prefix, deletions included.
func (s *Snapshot) KVTree(prefix string) ([]*model.KV, Mark) { panic("stub") }
