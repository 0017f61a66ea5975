package model

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// Status is the state of a check. The values are Consul's.
type Status string

// The states of a check, worst last; see Worse.
const (
	Passing  Status = "passing"
	Warning  Status = "warning"
	Critical Status = "critical"
)

// Valid reports whether s is one of the three states.
func (s Status) Valid() bool { return s == Passing || s == Warning || s == Critical }

// Worse returns the worse of two states; critical is the worst. An unknown
// state counts as critical.
func (s Status) Worse(t Status) Status {
	if s.rank() >= t.rank() {
		return s
	}
	return t
}

func (s Status) rank() int {
	switch s {
	case Passing:
		return 0
	case Warning:
		return 1
	}
	return 2
}

// SerfHealth is the id of the check that says whether a node is alive. It
// belongs to the servers.
const SerfHealth CheckID = "serfHealth"

// Node is a host that runs an agent, or an external one registered by hand.
type Node struct {
	ID              string            `json:"id,omitempty"` // UUID, stable over restarts
	Name            NodeName          `json:"name"`
	Address         string            `json:"address"` // usually an IP; Consul allows names
	Datacenter      string            `json:"dc,omitempty"`
	TaggedAddresses map[string]string `json:"tagged,omitempty"`
	Meta            map[string]string `json:"meta,omitempty"`
	Locality        Locality          `json:"locality,omitzero"`
	Stamp
}

// Weights are an instance's shares of traffic while it passes and while it
// warns, in arbitrary units relative to the other instances of the service.
type Weights struct {
	Passing int `json:"passing"`
	Warning int `json:"warning"`
}

// DefaultWeights is what an instance has that did not say.
var DefaultWeights = Weights{Passing: 1, Warning: 1}

// ServiceAddress is one of a service's tagged addresses. The tag "virtual" asks
// for a port of its own on the service's VIP.
type ServiceAddress struct {
	Address string `json:"address"`
	Port    int    `json:"port"`
}

// TagVirtual is the tagged address whose port, if not zero, is the port at
// which the service's VIP answers for this instance.
const TagVirtual = "virtual"

// Place is one address at which an instance answers, good within one scope: an
// instance has one address per network that its endpoint is in, and the host's
// own (published) address where it has one. Port is the instance's port there.
type Place struct {
	// Network is the network whose members can use Addr; empty means that any
	// caller that can reach the host's network can.
	Network NetworkName `json:"network,omitempty"`
	Addr    netip.Addr  `json:"addr"`
	Port    uint16      `json:"port"`
}

// The kinds of services.
const (
	KindTypical      = ""
	KindConnectProxy = "connect-proxy"
)

// Proxy is the service that a proxy answers for.
type Proxy struct {
	Service ServiceName `json:"service,omitempty"`
	// ID is the instance of this node that the proxy is for; empty: any.
	ID ServiceID `json:"id,omitempty"`
	// LocalAddress and LocalPort, or LocalSocket, are where that instance answers
	// the proxy.
	LocalAddress string `json:"local_address,omitempty"`
	LocalPort    int    `json:"local_port,omitempty"`
	LocalSocket  string `json:"local_socket,omitempty"`
}

// Locality is where in the world an instance runs, in its owner's words.
type Locality struct {
	Region string `json:"region,omitempty"`
	Zone   string `json:"zone,omitempty"`
}

// Instance is one registered address:port that answers for a service.
type Instance struct {
	Node              NodeName                  `json:"node"`
	ID                ServiceID                 `json:"id"`
	Service           ServiceName               `json:"service"`
	Tags              []string                  `json:"tags,omitempty"`
	Address           string                    `json:"address,omitempty"` // empty: the node's
	Port              int                       `json:"port,omitempty"`
	Meta              map[string]string         `json:"meta,omitempty"`
	TaggedAddresses   map[string]ServiceAddress `json:"tagged,omitempty"`
	Weights           Weights                   `json:"weights"`
	EnableTagOverride bool                      `json:"tag_override,omitempty"`
	// Kind is what sort of service this is: KindTypical or KindConnectProxy.
	Kind string `json:"kind,omitempty"`
	// Native says that the service itself speaks mutual TLS with the site's CA.
	Native bool `json:"native,omitempty"`
	// Proxy says for whom an instance of KindConnectProxy stands.
	Proxy Proxy `json:"proxy,omitzero"`
	// SocketPath is a Unix socket at which the instance answers on its node, in
	// the place of address and port.
	SocketPath string   `json:"socket_path,omitempty"`
	Locality   Locality `json:"locality,omitzero"`
	// Endpoint is the endpoint that this instance runs at; empty for an
	// instance in the host's own network.
	Endpoint EndpointID `json:"endpoint,omitempty"`
	// Places are the addresses a pick chooses from. Empty means Address (or the
	// node's), Port, in the host's scope.
	Places []Place `json:"places,omitempty"`
	Stamp
}

// Clone returns a copy that shares nothing with i.
func (i Instance) Clone() Instance {
	i.Tags = slices.Clone(i.Tags)
	i.Meta = maps.Clone(i.Meta)
	i.TaggedAddresses = maps.Clone(i.TaggedAddresses)
	i.Places = slices.Clone(i.Places)
	return i
}

// Same reports whether i and o say the same, whoever owns them and whenever
// they were written.
func (i Instance) Same(o Instance) bool {
	return i.Node == o.Node && i.ID == o.ID && i.Service == o.Service &&
		slices.Equal(i.Tags, o.Tags) && i.Address == o.Address && i.Port == o.Port &&
		maps.Equal(i.Meta, o.Meta) && maps.Equal(i.TaggedAddresses, o.TaggedAddresses) &&
		i.Weights == o.Weights && i.EnableTagOverride == o.EnableTagOverride &&
		i.Kind == o.Kind && i.Native == o.Native && i.Proxy == o.Proxy &&
		i.SocketPath == o.SocketPath && i.Locality == o.Locality &&
		i.Endpoint == o.Endpoint && slices.Equal(i.Places, o.Places)
}

// Check is a health check's definition and its last outcome, as the catalogue
// shows it.
type Check struct {
	Node        NodeName    `json:"node"`
	ID          CheckID     `json:"id"`
	Name        string      `json:"name"`
	Status      Status      `json:"status"`
	Notes       string      `json:"notes,omitempty"`
	Output      string      `json:"output,omitempty"`
	ServiceID   ServiceID   `json:"service_id,omitempty"` // empty: a check of the whole node
	ServiceName ServiceName `json:"service_name,omitempty"`
	ServiceTags []string    `json:"service_tags,omitempty"`
	Type        string      `json:"type,omitempty"` // see CheckSpec.Type; empty: no agent runs it
	Interval    string      `json:"interval,omitempty"`
	Timeout     string      `json:"timeout,omitempty"`
	// Definition says how to find out the state, for a check that came by the
	// catalogue API; nil for all others.
	Definition *CheckDefinition `json:"definition,omitempty"`
	Stamp
}

// Same reports whether c and o say the same but for owner and indexes.
func (c Check) Same(o Check) bool { return c.Output == o.Output && c.SameButOutput(o) }

// SameButOutput is Same without regard to the check's output.
func (c Check) SameButOutput(o Check) bool {
	return c.Node == o.Node && c.ID == o.ID && c.Name == o.Name && c.Status == o.Status &&
		c.Notes == o.Notes && c.ServiceID == o.ServiceID && c.ServiceName == o.ServiceName &&
		slices.Equal(c.ServiceTags, o.ServiceTags) && c.Type == o.Type &&
		c.Interval == o.Interval && c.Timeout == o.Timeout && c.Definition.same(o.Definition)
}

// CheckSpec is what an agent has to do to find out a check's state. Exactly one
// of the kinds that Type knows is set.
type CheckSpec struct {
	ID        CheckID   `json:"id"`
	Name      string    `json:"name"`
	ServiceID ServiceID `json:"service_id,omitempty"` // empty: a check of the whole node
	Notes     string    `json:"notes,omitempty"`

	HTTP        string              `json:"http,omitempty"` // URL
	Method      string              `json:"method,omitempty"`
	Header      map[string][]string `json:"header,omitempty"`
	Body        string              `json:"body,omitempty"`
	NoRedirects bool                `json:"no_redirects,omitempty"`
	TCP         string              `json:"tcp,omitempty"` // host:port
	TCPUseTLS   bool                `json:"tcp_use_tls,omitempty"`
	UDP         string              `json:"udp,omitempty"`  // host:port
	GRPC        string              `json:"grpc,omitempty"` // host:port, or host:port/service
	GRPCUseTLS  bool                `json:"grpc_use_tls,omitempty"`
	H2Ping      string              `json:"h2ping,omitempty"` // host:port
	H2PingNoTLS bool                `json:"h2ping_no_tls,omitempty"`
	// Args is a program and its arguments, run on the host or, where Docker names
	// a container, in that.
	Args   []string `json:"args,omitempty"`
	Docker string   `json:"docker,omitempty"` // id or name
	// OSService is a unit of the host's service manager.
	OSService string `json:"os_service,omitempty"`
	// AliasService and AliasNode name a service or node whose state this check
	// takes over; without AliasNode the service is this node's.
	AliasService ServiceID     `json:"alias_service,omitempty"`
	AliasNode    NodeName      `json:"alias_node,omitempty"`
	TTL          time.Duration `json:"ttl,omitempty"`
	// Maintenance makes a check that is critical for as long as it is there.
	Maintenance bool `json:"maintenance,omitempty"`

	TLSSkipVerify bool          `json:"tls_skip_verify,omitempty"`
	TLSServerName string        `json:"tls_server_name,omitempty"`
	Interval      time.Duration `json:"interval,omitempty"`
	Timeout       time.Duration `json:"timeout,omitempty"`
	// Status is the state before the first outcome; empty means critical.
	Status Status `json:"status,omitempty"`
	// The check changes its state only after so many outcomes in a row; 0 means
	// at the first.
	SuccessBeforePassing   int `json:"success_before_passing,omitempty"`
	FailuresBeforeWarning  int `json:"failures_before_warning,omitempty"`
	FailuresBeforeCritical int `json:"failures_before_critical,omitempty"`
	// DeregisterAfter removes the check's service once the check has been
	// critical for so long; 0 means never.
	DeregisterAfter time.Duration `json:"deregister_after,omitempty"`
	OutputMaxSize   int           `json:"output_max_size,omitempty"` // bytes; 0 means 4096
	// NetNS is the path of the network namespace to run the check in; empty
	// means the agent's own. Checks of an endpoint run inside its namespace.
	NetNS string `json:"netns,omitempty"`
	// Token is the secret that authorised a check which came without a service.
	Token string `json:"token,omitempty"`
	// Declared says that a definition file says so, which says it again at each
	// start.
	Declared bool `json:"-"`
}

// Type is the kind of check as the catalogue shows it; empty if none is set.
func (c CheckSpec) Type() string {
	switch {
	case c.GRPC != "":
		return "grpc"
	case c.HTTP != "":
		return "http"
	case c.TTL > 0:
		return "ttl"
	case c.TCP != "":
		return "tcp"
	case c.UDP != "":
		return "udp"
	case c.AliasService != "" || c.AliasNode != "":
		return "alias"
	case c.Docker != "":
		return "docker"
	case len(c.Args) > 0:
		return "script"
	case c.H2Ping != "":
		return "h2ping"
	case c.OSService != "":
		return "os_service"
	case c.Maintenance:
		return "maintenance"
	}
	return ""
}

// RunsPrograms reports whether the check runs a program of its owner's choice,
// on the host or in a container: such checks need leave.
func (c CheckSpec) RunsPrograms() bool { return len(c.Args) > 0 }

// Registration is one service as an agent keeps it in its local file: what the
// client said, and the checks that came with it.
type Registration struct {
	Instance Instance    `json:"instance"`
	Checks   []CheckSpec `json:"checks,omitempty"`
	// Token is the secret that authorised the registration; it authorises its
	// re-assertion too.
	Token string `json:"token,omitempty"`
	// Declared says that the service comes from a definition file, which says it
	// again at each start.
	Declared bool `json:"-"`
}

// VIP is a service's stable virtual addresses.
type VIP struct {
	Service ServiceName `json:"service"`
	V4      netip.Addr  `json:"v4"`
	V6      netip.Addr  `json:"v6"`
	Stamp
}

// KV is one entry of the key/value store. LockIndex counts how often the key was
// locked; Session holds the lock, if any.
type KV struct {
	Key       string `json:"key"`
	Value     []byte `json:"value"`
	Flags     uint64 `json:"flags,omitempty"`
	LockIndex uint64 `json:"lock_index,omitempty"`
	Session   string `json:"session,omitempty"`
	// ValueModified and LockModified are the indexes of its two halves, which
	// are keys of their own; ModifyIndex is the larger. LockModified is 0 for an
	// entry that was never locked.
	ValueModified Index `json:"-"`
	LockModified  Index `json:"-"`
	Stamp
}
