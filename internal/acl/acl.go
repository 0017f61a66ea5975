// Package acl decides what a token may do: Consul's rule language, in HCL and
// JSON, and the authorizers made of it.
//
// Authorizers are immutable and may be used by many goroutines.
package acl

// Resource is a kind of thing that rules speak of.
type Resource string

// The resources of the rule language.
const (
	ACL       Resource = "acl"
	Agent     Resource = "agent"
	Event     Resource = "event"
	Identity  Resource = "identity"
	Intention Resource = "intention"
	Key       Resource = "key"
	Keyring   Resource = "keyring"
	Mesh      Resource = "mesh"
	Node      Resource = "node"
	Operator  Resource = "operator"
	Peering   Resource = "peering"
	Query     Resource = "query"
	Service   Resource = "service"
	Session   Resource = "session"
)

// Access is what somebody wants to do with a thing.
type Access string

// The kinds of access; each of them includes those before it. List exists for
// keys only.
const (
	Read  Access = "read"
	List  Access = "list"
	Write Access = "write"
)

// Authorizer answers for one token.
type Authorizer interface {
	// Allow reports whether access to one thing is allowed. Resources without
	// names (acl, keyring, mesh, operator, peering) take an empty name.
	Allow(r Resource, name string, a Access) bool
	// AllowPrefix reports whether access is allowed to everything whose name
	// begins with prefix, whatever it may be called.
	AllowPrefix(r Resource, prefix string, a Access) bool
	// Accessor is the public id of the token, for messages.
	Accessor() string
}

// AllowAll allows everything; it is what a site without ACLs works with.
func AllowAll() Authorizer { return all(true) }

// DenyAll allows nothing.
func DenyAll() Authorizer { return all(false) }

type all bool

func (a all) Allow(Resource, string, Access) bool       { return bool(a) }
func (a all) AllowPrefix(Resource, string, Access) bool { return bool(a) }
func (a all) Accessor() string                          { return "" }
