package definition

import (
	"cmp"
	"fmt"
	"net"
	"net/url"
	"reflect"
	"strings"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
)

const (
	// minInterval and minDeregister are what shorter durations are raised to.
	minInterval   = time.Second
	minDeregister = time.Minute
)

// checkBody is a check as it is written.
type checkBody struct {
	CheckID           string
	ID                string
	Name              string
	Status            string
	Notes             string
	ServiceID         string
	Token             string
	ScriptArgs        []string
	Args              []string
	Script            string
	HTTP              string
	H2PING            string
	H2PingUseTLS      *bool
	Header            map[string][]string
	Method            string
	Body              string
	DisableRedirects  bool
	TCP               string
	TCPUseTLS         bool
	UDP               string
	Interval          Duration
	AliasNode         string
	AliasService      string
	DockerContainerID string
	Shell             string
	GRPC              string
	GRPCUseTLS        bool
	OSService         string
	TLSServerName     string
	TLSSkipVerify     bool
	Timeout           Duration
	TTL               Duration

	SuccessBeforePassing           int
	FailuresBeforeWarning          int
	FailuresBeforeCritical         int
	ProxyHTTP                      string
	ProxyGRPC                      string
	DeregisterCriticalServiceAfter Duration
	OutputMaxSize                  int
}

// UnmarshalJSON implements json.Unmarshaler.
func (b *checkBody) UnmarshalJSON(data []byte) error { return Decode(data, b) }

func (b *checkBody) empty() bool { return reflect.ValueOf(*b).IsZero() }

// Check reads one check that comes without a service around it: it is of the
// service that it names, or of the whole node. The warnings say what was changed
// on the way.
func Check(data []byte) (model.CheckSpec, []string, error) {
	var b checkBody
	if err := decodeObject(data, &b); err != nil {
		return model.CheckSpec{}, nil, err
	}
	return b.alone()
}

func (b *checkBody) alone() (model.CheckSpec, []string, error) {
	switch {
	case b.Name == "":
		return model.CheckSpec{}, nil, refuse("Missing check name")
	case b.Status != "" && !model.Status(b.Status).Valid():
		return model.CheckSpec{}, nil, refuse("Bad check status")
	}
	spec, warnings, err := b.spec()
	if err != nil {
		return model.CheckSpec{}, nil, err
	}
	spec.ID = model.CheckID(cmp.Or(string(spec.ID), b.Name))
	spec.ServiceID, spec.Token = model.ServiceID(b.ServiceID), b.Token
	for i, w := range warnings {
		warnings[i] = fmt.Sprintf("check %q: %s", spec.ID, w)
	}
	return spec, warnings, nil
}

// args is the program to run, with its arguments.
func (b *checkBody) args() []string {
	switch {
	case len(b.ScriptArgs) > 0:
		return b.ScriptArgs
	case len(b.Args) > 0:
		return b.Args
	case b.Script != "":
		return []string{cmp.Or(b.Shell, "/bin/sh"), "-c", b.Script}
	}
	return nil
}

// spec validates a check and returns its definition, without the defaults that
// its service gives it.
func (b *checkBody) spec() (model.CheckSpec, []string, error) {
	if err := b.validate(); err != nil {
		return model.CheckSpec{}, nil, err
	}
	spec := model.CheckSpec{
		ID:                     model.CheckID(cmp.Or(b.CheckID, b.ID)),
		Name:                   b.Name,
		Notes:                  b.Notes,
		HTTP:                   b.HTTP,
		Method:                 b.Method,
		Header:                 b.Header,
		Body:                   b.Body,
		NoRedirects:            b.DisableRedirects,
		TCP:                    b.TCP,
		TCPUseTLS:              b.TCPUseTLS,
		UDP:                    b.UDP,
		GRPC:                   b.GRPC,
		GRPCUseTLS:             b.GRPCUseTLS,
		H2Ping:                 b.H2PING,
		H2PingNoTLS:            b.H2PING != "" && b.H2PingUseTLS != nil && !*b.H2PingUseTLS,
		Args:                   b.args(),
		Docker:                 b.DockerContainerID,
		OSService:              b.OSService,
		AliasService:           model.ServiceID(b.AliasService),
		AliasNode:              model.NodeName(b.AliasNode),
		TTL:                    time.Duration(b.TTL),
		TLSSkipVerify:          b.TLSSkipVerify,
		TLSServerName:          b.TLSServerName,
		Interval:               time.Duration(b.Interval),
		Timeout:                time.Duration(b.Timeout),
		Status:                 model.Status(b.Status),
		SuccessBeforePassing:   b.SuccessBeforePassing,
		FailuresBeforeWarning:  b.FailuresBeforeWarning,
		FailuresBeforeCritical: b.FailuresBeforeCritical,
		DeregisterAfter:        time.Duration(b.DeregisterCriticalServiceAfter),
		OutputMaxSize:          b.OutputMaxSize,
	}
	var warnings []string
	raise := func(d *time.Duration, low time.Duration, what string) {
		if *d > 0 && *d < low {
			warnings = append(warnings, fmt.Sprintf("%s %s is below the minimum and was raised to %s", what, *d, low))
			*d = low
		}
	}
	raise(&spec.Interval, minInterval, "Interval")
	raise(&spec.DeregisterAfter, minDeregister, "DeregisterCriticalServiceAfter")
	return spec, warnings, nil
}

// kinds names the kinds of check that b says it is, TTL excepted.
func (b *checkBody) kinds() []string {
	var kinds []string
	for _, k := range []struct {
		name string
		set  bool
	}{
		{"HTTP", b.HTTP != ""},
		{"TCP", b.TCP != ""},
		{"UDP", b.UDP != ""},
		{"GRPC", b.GRPC != ""},
		{"H2PING", b.H2PING != ""},
		{"Args", len(b.args()) > 0},
		{"OSService", b.OSService != ""},
		{"AliasNode or AliasService", b.AliasNode != "" || b.AliasService != ""},
	} {
		if k.set {
			kinds = append(kinds, k.name)
		}
	}
	return kinds
}

// validate follows Consul's order and texts, and refuses further what can never
// pass.
func (b *checkBody) validate() error {
	bad := func(format string, args ...any) error { return refuse("Invalid check: "+format, args...) }
	kinds := b.kinds()
	alias := b.AliasNode != "" || b.AliasService != ""
	asks := len(kinds) > 1 || (len(kinds) == 1 && !alias)
	switch {
	case b.Interval > 0 && b.TTL > 0:
		return bad("Interval and TTL cannot both be specified")
	case asks && b.Interval <= 0:
		return bad("Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks")
	case asks && alias:
		return bad("Interval cannot be set for Alias checks")
	case alias && b.TTL > 0:
		return bad("TTL must be not be set for Alias checks")
	case b.DockerContainerID != "" && len(b.args()) == 0:
		return bad("DockerContainerID needs Args: the program to run in the container, and its arguments")
	case len(kinds) == 0 && b.TTL <= 0:
		return bad("TTL must be > 0 for TTL checks")
	case b.OutputMaxSize < 0:
		return bad("MaxOutputMaxSize must be positive")
	case b.FailuresBeforeWarning > b.FailuresBeforeCritical:
		return bad("FailuresBeforeWarning can't be higher than FailuresBeforeCritical")
	case len(kinds) > 1:
		return bad("it can only be of one kind, not %s; write one check for each", strings.Join(kinds, " and "))
	case b.Timeout < 0 || b.DeregisterCriticalServiceAfter < 0:
		return bad("durations must not be negative")
	case b.SuccessBeforePassing < 0 || b.FailuresBeforeWarning < 0 || b.FailuresBeforeCritical < 0:
		return bad("thresholds must not be negative")
	case b.Status != "" && !model.Status(b.Status).Valid():
		return refuse("Status for checks must 'passing', 'warning', 'critical'")
	}
	return b.validateTarget(bad)
}

func (b *checkBody) validateTarget(bad func(string, ...any) error) error {
	if b.HTTP != "" {
		u, err := url.Parse(b.HTTP)
		if err != nil {
			return bad("%v", err)
		}
		if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			return bad("HTTP must be a URL beginning with http:// or https://, not %q", b.HTTP)
		}
	}
	grpc, _, _ := strings.Cut(b.GRPC, "/")
	for _, p := range []struct{ name, address string }{
		{"TCP", b.TCP}, {"UDP", b.UDP}, {"GRPC", grpc}, {"H2PING", b.H2PING},
	} {
		if p.address == "" && !(p.name == "GRPC" && b.GRPC != "") {
			continue
		}
		if _, _, err := net.SplitHostPort(p.address); err != nil {
			return bad("%s must be host:port: %v", p.name, err)
		}
	}
	if id := model.CheckID(cmp.Or(b.CheckID, b.ID)); id == model.SerfHealth {
		return bad("the id %q is reserved", id)
	}
	return nil
}
