package consulapi

import (
	"encoding/json"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
)

// The parts of bodies and answers that speak of proxies, places and checks which
// something else runs. What is of use only to somebody who configures proxies is
// read over.

type localityBody struct{ Region, Zone string }

type connectBody struct {
	Native         bool
	SidecarService json.RawMessage
	PeerMeta       json.RawMessage
}

type proxyBody struct {
	DestinationServiceName string
	DestinationServiceID   string
	LocalServiceAddress    string
	LocalServicePort       int
	LocalServiceSocketPath string
	Mode                   string
	Config                 json.RawMessage
	Upstreams              json.RawMessage
	MeshGateway            json.RawMessage
	Expose                 json.RawMessage
	TransparentProxy       json.RawMessage
	EnvoyExtensions        json.RawMessage
	AccessLogs             json.RawMessage
	MutualTLSMode          string
}

// definitionBody is a check's definition as clients send it; the durations have
// two names each.
type definitionBody struct {
	HTTP                                   string
	Header                                 map[string][]string
	Method                                 string
	Body                                   string
	DisableRedirects                       bool
	TLSServerName                          string
	TLSSkipVerify                          bool
	TCP                                    string
	TCPUseTLS                              bool
	UDP                                    string
	GRPC                                   string
	GRPCUseTLS                             bool
	H2PING                                 string
	H2PingUseTLS                           json.RawMessage
	OSService                              string
	SessionName                            string
	Interval, IntervalDuration             duration
	Timeout, TimeoutDuration               duration
	DeregisterCriticalServiceAfter         duration
	DeregisterCriticalServiceAfterDuration duration
	OutputMaxSize                          json.RawMessage
	ScriptArgs                             json.RawMessage
	DockerContainerID                      json.RawMessage
	Shell                                  json.RawMessage
	AliasNode                              json.RawMessage
	AliasService                           json.RawMessage
	TTL                                    json.RawMessage
}

// definitionShape is the same as it is shown.
type definitionShape struct {
	Interval                       string              `json:",omitempty"`
	Timeout                        string              `json:",omitempty"`
	DeregisterCriticalServiceAfter string              `json:",omitempty"`
	HTTP                           string              `json:",omitempty"`
	TLSServerName                  string              `json:",omitempty"`
	TLSSkipVerify                  bool                `json:",omitempty"`
	Header                         map[string][]string `json:",omitempty"`
	Method                         string              `json:",omitempty"`
	Body                           string              `json:",omitempty"`
	DisableRedirects               bool                `json:",omitempty"`
	TCP                            string              `json:",omitempty"`
	TCPUseTLS                      bool                `json:",omitempty"`
	UDP                            string              `json:",omitempty"`
	H2PING                         string              `json:",omitempty"`
	OSService                      string              `json:",omitempty"`
	GRPC                           string              `json:",omitempty"`
	GRPCUseTLS                     bool                `json:",omitempty"`
	SessionName                    string              `json:",omitempty"`
}

// UnmarshalJSON implements json.Unmarshaler.
func (b *localityBody) UnmarshalJSON(data []byte) error { return decodeFields(data, b) }

// UnmarshalJSON implements json.Unmarshaler.
func (b *connectBody) UnmarshalJSON(data []byte) error { return decodeFields(data, b) }

// UnmarshalJSON implements json.Unmarshaler.
func (b *proxyBody) UnmarshalJSON(data []byte) error { return decodeFields(data, b) }

// UnmarshalJSON implements json.Unmarshaler.
func (b *definitionBody) UnmarshalJSON(data []byte) error { return decodeFields(data, b) }

func (b *proxyBody) proxy() model.Proxy {
	return model.Proxy{
		Service: model.ServiceName(b.DestinationServiceName), ID: model.ServiceID(b.DestinationServiceID),
		LocalAddress: b.LocalServiceAddress, LocalPort: b.LocalServicePort, LocalSocket: b.LocalServiceSocketPath,
	}
}

// definition is nil for a body that says nothing.
func (b *definitionBody) definition() *model.CheckDefinition {
	d := model.CheckDefinition{
		HTTP: b.HTTP, Header: b.Header, Method: b.Method, Body: b.Body, NoRedirects: b.DisableRedirects,
		TLSServerName: b.TLSServerName, TLSSkipVerify: b.TLSSkipVerify, TCP: b.TCP, TCPUseTLS: b.TCPUseTLS, UDP: b.UDP,
		GRPC: b.GRPC, GRPCUseTLS: b.GRPCUseTLS, H2Ping: b.H2PING, OSService: b.OSService, SessionName: b.SessionName,
		Interval: either(b.Interval, b.IntervalDuration), Timeout: either(b.Timeout, b.TimeoutDuration),
		DeregisterAfter: either(b.DeregisterCriticalServiceAfter, b.DeregisterCriticalServiceAfterDuration),
	}
	if d.Empty() {
		return nil
	}
	return &d
}

func either(a, b duration) time.Duration {
	if b != 0 {
		return time.Duration(b)
	}
	return time.Duration(a)
}

func shapeDefinition(d *model.CheckDefinition) definitionShape {
	if d == nil {
		return definitionShape{}
	}
	return definitionShape{
		Interval: durationText(d.Interval), Timeout: durationText(d.Timeout), DeregisterCriticalServiceAfter: durationText(d.DeregisterAfter),
		HTTP: d.HTTP, TLSServerName: d.TLSServerName, TLSSkipVerify: d.TLSSkipVerify, Header: d.Header, Method: d.Method, Body: d.Body,
		DisableRedirects: d.NoRedirects, TCP: d.TCP, TCPUseTLS: d.TCPUseTLS, UDP: d.UDP, H2PING: d.H2Ping, OSService: d.OSService,
		GRPC: d.GRPC, GRPCUseTLS: d.GRPCUseTLS, SessionName: d.SessionName,
	}
}

// durationText is a duration as it is shown; nothing for none.
func durationText(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return d.String()
}
