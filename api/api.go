// Package api is the Go SDK: what a program needs to be found, to find others and to
// agree with them, by way of the agent on its host.
//
//   - Client.Register registers the program itself, and drains it when it ends.
//   - Resolver follows services, and outlives the agent's restarts.
//   - Transport and Dialer send HTTP requests and connections to the best instance.
//   - Client.KV, Client.PutKV, Client.FollowKV and others are the key/value store.
//   - Client.Lock and Client.NewElection let one of many do something.
//
// gRPC has a package of its own, api/grpc. The other methods of Client are the agent's
// native API (networks, workloads, services and status, under /fairlead/v1), and what the
// command line needs of Consul's API, at the same address.
//
// A Client is safe for concurrent use. Calls take a context; one without a deadline gets
// a minute. The package imports the standard library only.
package api

import (
	"net/netip"
	"time"
)

// Prefix is the path below which the native API lives.
const Prefix = "/fairlead/v1"

// Network is a named L2/L3 domain.
type Network struct {
	Name   string `json:"name"`
	Driver string `json:"driver"`
	// Node is the host that the network is on; empty for an overlay.
	Node string `json:"node,omitempty"`
	// Transport is how an overlay's packets get from host to host: "auto" (by route
	// on a shared link, else VXLAN), "vxlan" or "direct"; empty is "auto".
	Transport string `json:"transport,omitempty"`
	// VNI is an overlay's VXLAN network identifier; the registry chooses it.
	VNI uint32 `json:"vni,omitempty"`
	// Subnets has at most one prefix per family; empty lets the agent choose.
	Subnets []Subnet `json:"subnets"`
	// MTU in bytes; 0 means the driver's default.
	MTU int `json:"mtu,omitempty"`
	// Internal networks have no way to the outside.
	Internal bool              `json:"internal,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	// Endpoints is filled in by inspection only.
	Endpoints []Endpoint `json:"endpoints,omitempty"`
}

// Subnet is one pool of a network's addresses.
type Subnet struct {
	Prefix   netip.Prefix   `json:"prefix"`
	Gateway  netip.Addr     `json:"gateway,omitzero"` // zero: the first address
	Reserved []netip.Prefix `json:"reserved,omitempty"`
}

// Endpoint is one workload's place in one network.
type Endpoint struct {
	ID       string       `json:"id"`
	Workload string       `json:"workload"`
	Network  string       `json:"network"`
	Node     string       `json:"node"`
	Aliases  []string     `json:"aliases,omitempty"`
	Addrs    []netip.Addr `json:"addrs"`
	MAC      string       `json:"mac,omitempty"`
	HostIf   string       `json:"host_if,omitempty"`
	NetNS    string       `json:"netns,omitempty"`
	Ports    []Port       `json:"ports,omitempty"`
}

// Port is a port of the host that leads to a port of a workload.
type Port struct {
	Proto    string `json:"proto"` // "tcp" or "udp"
	HostPort uint16 `json:"host_port"`
	Port     uint16 `json:"port"`
	Expose   string `json:"expose"` // "host", "lan" or "any"
}

// Service is what a workload answers for.
type Service struct {
	Name string   `json:"name"`
	Port uint16   `json:"port"`
	Tags []string `json:"tags,omitempty"`
	// Check is optional; without one the instance counts as healthy while its
	// workload lives.
	Check *Check `json:"check,omitempty"`
}

// Check is how a workload's health is found out. One of HTTP and TCP is set.
type Check struct {
	HTTP            string        `json:"http,omitempty"` // a path, such as "/healthz"
	TCP             bool          `json:"tcp,omitempty"`
	Interval        time.Duration `json:"interval"` // nanoseconds
	Timeout         time.Duration `json:"timeout"`
	DeregisterAfter time.Duration `json:"deregister_after,omitempty"`
}

// WorkloadSpec asks for a workload to be connected.
type WorkloadSpec struct {
	Name    string `json:"name"`
	Network string `json:"network"`
	// NetNS is the path of the workload's network namespace on the host.
	NetNS   string   `json:"netns"`
	Aliases []string `json:"aliases,omitempty"`
	// Addrs asks for these addresses; empty lets the network choose.
	Addrs   []netip.Addr `json:"addrs,omitempty"`
	Ports   []Port       `json:"ports,omitempty"`
	Service *Service     `json:"service,omitempty"`
}

// Workload is a connected container or process.
type Workload struct {
	Name      string     `json:"name"`
	PID       int        `json:"pid,omitempty"` // of its first process; 0 if it is not known
	Command   []string   `json:"command,omitempty"`
	Started   time.Time  `json:"started,omitzero"`
	State     string     `json:"state"` // "running", "exited" or "unknown"
	ExitCode  *int       `json:"exit_code,omitempty"`
	Cgroup    string     `json:"cgroup,omitempty"`
	Log       string     `json:"log,omitempty"`
	Service   string     `json:"service,omitempty"`
	Endpoints []Endpoint `json:"endpoints"`
}

// Attachment is what a workload needs to know of its place.
type Attachment struct {
	Endpoint Endpoint `json:"endpoint"`
	// Nameservers are the addresses at which the network's DNS answers.
	Nameservers []netip.Addr `json:"nameservers"`
	// Search is the resolver's search list.
	Search []string `json:"search"`
	// Warnings name what does not work as asked, such as a foreign firewall.
	Warnings []string `json:"warnings,omitempty"`
}

// Host says where an agent wants its workloads.
type Host struct {
	Node string `json:"node"`
	// RunDir is the directory that holds workloads' namespaces and states.
	RunDir string `json:"run_dir"`
	// Cgroup is the cgroup (a directory) below which each workload gets its own.
	Cgroup string `json:"cgroup"`
}

// ServiceInfo is a service with its VIP and instances.
type ServiceInfo struct {
	Name      string         `json:"name"`
	VIP4      netip.Addr     `json:"vip4,omitzero"`
	VIP6      netip.Addr     `json:"vip6,omitzero"`
	Tags      []string       `json:"tags"`
	Instances []InstanceInfo `json:"instances"`
}

// InstanceInfo is one instance of a service.
type InstanceInfo struct {
	ID      string            `json:"id"`
	Node    string            `json:"node"`
	Address string            `json:"address"`
	Port    int               `json:"port"`
	Status  string            `json:"status"`
	Tags    []string          `json:"tags"`
	Meta    map[string]string `json:"meta,omitempty"`
	// Endpoint is the id of the endpoint that the instance runs at, if any.
	Endpoint string      `json:"endpoint,omitempty"`
	Checks   []CheckInfo `json:"checks,omitempty"`
}

// CheckInfo is a check's last outcome.
type CheckInfo struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Status string `json:"status"`
	Output string `json:"output,omitempty"`
}

// Status is how an agent is doing.
type Status struct {
	Node     string   `json:"node"`
	Site     string   `json:"site"`
	Version  string   `json:"version"`
	PID      int      `json:"pid"`
	Leader   string   `json:"leader"`
	Servers  []string `json:"servers"`
	Index    uint64   `json:"index"` // revision of the newest snapshot
	Services int      `json:"services"`
	Nodes    int      `json:"nodes"`
	Networks int      `json:"networks"`
	// Endpoints counts those of this node.
	Endpoints int `json:"endpoints"`
	// Problems are what needs a person, such as a foreign firewall that drops
	// forwarded packets.
	Problems []string `json:"problems"`
}
