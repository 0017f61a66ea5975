// Package model is Fairlead's vocabulary: the records that servers replicate,
// that agents mirror and that every other package speaks of.
//
// It imports only the standard library, starts nothing and holds no state.
// Records are values: once one has been published in a snapshot it is shared by
// every reader and must not be changed, its maps and slices included. Whoever
// wants a changed record makes a copy (see the Clone methods).
package model

import "errors"

// ErrInvalid marks an error that says what is wrong with something given: the
// giver has to change it.
var ErrInvalid = errors.New("invalid")

// Index is a position in the replicated log: the etcd revision at which
// something was last changed. It is what the Consul API calls X-Consul-Index
// and what every waiter waits for. Zero means "nothing yet".
type Index uint64

// Names of things, as their users write them. Distinct types keep a node's
// name from being handed over where a service's is meant.
type (
	// NodeName names a host that runs an agent, unique within a site.
	NodeName string
	// ServiceName is what callers of a service use.
	ServiceName string
	// ServiceID names one instance, unique on its node.
	ServiceID string
	// CheckID names one check, unique on its node.
	CheckID string
	// NetworkName names a network, unique within a site.
	NetworkName string
	// WorkloadName names a container or process, unique on its node.
	WorkloadName string
	// EndpointID names one workload's place in one network, unique within a site.
	EndpointID string
)

// Owner says who may change or remove a record, and whose end it does not
// survive: "node/<node name>", OwnerOperator or OwnerExternal.
type Owner string

const (
	// OwnerOperator owns what a person or a program created on purpose: KV
	// entries and networks. It is removed only on request.
	OwnerOperator Owner = "operator"
	// OwnerExternal owns catalogue entries written through the catalogue API
	// without an agent behind them.
	OwnerExternal Owner = "external"
	// OwnerServers owns what the servers keep up themselves: VIPs, the "consul"
	// service and the check serfHealth.
	OwnerServers Owner = "servers"
)

// NodeOwner is the owner of everything that the agent of a node registered.
func NodeOwner(n NodeName) Owner { return Owner("node/" + string(n)) }

// Stamp is the bookkeeping that every replicated record carries. CreateIndex and
// ModifyIndex are etcd's create and mod revisions of the record's key; they are
// filled in when a record is read and ignored when it is written.
type Stamp struct {
	Owner       Owner `json:"owner,omitempty"`
	CreateIndex Index `json:"-"`
	ModifyIndex Index `json:"-"`
}

// Modified is the record's ModifyIndex.
func (s *Stamp) Modified() Index { return s.ModifyIndex }

// Created is the record's CreateIndex.
func (s *Stamp) Created() Index { return s.CreateIndex }

// HeaderVia is the HTTP header with the name of the node that passed a request on
// to a server: what names no node is about that one.
const HeaderVia = "X-Fairlead-Via"
