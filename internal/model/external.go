package model

import (
	"reflect"
	"time"
)

// ConsulService is the service that every server's node carries. It belongs to
// the servers.
const ConsulService ServiceName = "consul"

// ExternalRegistration is what somebody other than a node's agent says of the
// node, written in one step.
type ExternalRegistration struct {
	Node Node
	// SkipNodeUpdate leaves the record of a node that exists as it is; Node then
	// needs only a name.
	SkipNodeUpdate bool
	// Service may be nil; its Node is the registration's.
	Service *Instance
	// Checks are the node's, the service's or those of another instance of the
	// node. Those that are not named stay as they are.
	Checks []Check
}

// CheckDefinition is what an external program, such as a monitor of external
// services, has to do to find out a check's state. Nothing here runs it.
type CheckDefinition struct {
	HTTP            string              `json:"http,omitempty"`
	Header          map[string][]string `json:"header,omitempty"`
	Method          string              `json:"method,omitempty"`
	Body            string              `json:"body,omitempty"`
	NoRedirects     bool                `json:"no_redirects,omitempty"`
	TLSServerName   string              `json:"tls_server_name,omitempty"`
	TLSSkipVerify   bool                `json:"tls_skip_verify,omitempty"`
	TCP             string              `json:"tcp,omitempty"`
	TCPUseTLS       bool                `json:"tcp_use_tls,omitempty"`
	UDP             string              `json:"udp,omitempty"`
	GRPC            string              `json:"grpc,omitempty"`
	GRPCUseTLS      bool                `json:"grpc_use_tls,omitempty"`
	H2Ping          string              `json:"h2ping,omitempty"`
	OSService       string              `json:"os_service,omitempty"`
	SessionName     string              `json:"session_name,omitempty"`
	Interval        time.Duration       `json:"interval,omitempty"`
	Timeout         time.Duration       `json:"timeout,omitempty"`
	DeregisterAfter time.Duration       `json:"deregister_after,omitempty"`
}

// Type is the kind of check as the catalogue shows it; empty if none is set.
func (d *CheckDefinition) Type() string {
	switch {
	case d == nil:
		return ""
	case d.GRPC != "":
		return "grpc"
	case d.HTTP != "":
		return "http"
	case d.TCP != "":
		return "tcp"
	case d.UDP != "":
		return "udp"
	case d.H2Ping != "":
		return "h2ping"
	case d.OSService != "":
		return "os_service"
	}
	return ""
}

// Empty reports whether d says nothing.
func (d CheckDefinition) Empty() bool {
	if len(d.Header) == 0 {
		d.Header = nil
	}
	return reflect.DeepEqual(d, CheckDefinition{})
}

func (d *CheckDefinition) same(o *CheckDefinition) bool { return reflect.DeepEqual(d, o) }
