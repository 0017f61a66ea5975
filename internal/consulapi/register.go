package consulapi

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/fairlead-net/fairlead/internal/model"
)

const (
	// minInterval and minDeregister are what shorter durations are raised to.
	minInterval   = time.Second
	minDeregister = time.Minute

	maxMetaPairs, maxMetaKey, maxMetaValue = 64, 128, 512
	reservedMeta                           = "consul-"
)

var metaKey = regexp.MustCompile(`^[a-zA-Z0-9_-]+$`)

// registration turns a body into what the agent keeps, with warnings about what
// was changed on the way. Every error is the client's.
func (s *serviceBody) registration(node model.NodeName) (model.Registration, []string, error) {
	var none model.Registration
	if err := s.validate(); err != nil {
		return none, nil, err
	}
	i := model.Instance{
		Node:              node,
		ID:                model.ServiceID(cmp.Or(s.ID, s.Name)),
		Service:           model.ServiceName(s.Name),
		Tags:              s.Tags,
		Address:           s.Address,
		Port:              s.Port,
		Meta:              s.Meta,
		TaggedAddresses:   s.taggedAddresses(),
		Weights:           model.DefaultWeights,
		EnableTagOverride: s.EnableTagOverride,
		Stamp:             model.Stamp{Owner: model.NodeOwner(node)},
	}
	if s.Weights != nil {
		i.Weights = model.Weights(*s.Weights)
	}
	checks, warnings, err := s.checks(i)
	if err != nil {
		return none, nil, err
	}
	return model.Registration{Instance: i, Checks: checks, Token: s.Token}, warnings, nil
}

func (s *serviceBody) validate() error {
	if s.Name == "" {
		return badRequest("Missing service name")
	}
	if a, err := netip.ParseAddr(strings.Trim(s.Address, "[]")); err == nil && a.Unmap().IsUnspecified() {
		return badRequest("Invalid service address")
	}
	if w := s.Weights; w != nil {
		switch {
		case w.Passing < 1:
			return badRequest("Invalid Weights: Passing must be greater than 0")
		case w.Warning < 0:
			return badRequest("Invalid Weights: Warning must be greater or equal than 0")
		case w.Passing > 65535 || w.Warning > 65535:
			return badRequest("Invalid Weights: DNS Weight must be between 0 and 65535")
		}
	}
	if err := validateMeta(s.Meta); err != nil {
		return badRequest("Invalid Service Meta: %v", err)
	}
	ports := []int{s.Port}
	for _, a := range s.TaggedAddresses {
		ports = append(ports, a.Port)
	}
	for _, p := range ports {
		if p < 0 || p > 65535 {
			return badRequest("Validation failed: port %d is not between 0 and 65535", p)
		}
	}
	for _, name := range append([]string{s.Name, s.ID, s.Address}, s.Tags...) {
		if strings.ContainsFunc(name, unicode.IsControl) {
			return badRequest("Validation failed: %q contains control characters", name)
		}
	}
	return s.unsupported()
}

// unsupported names what the body asks for and this version cannot do, rather
// than register something other than what was asked for.
func (s *serviceBody) unsupported() error {
	switch {
	case s.Kind != "" && s.Kind != "typical":
		return badRequest("Validation failed: services of kind %q are not supported yet", s.Kind)
	case s.SocketPath != "":
		return badRequest("Validation failed: SocketPath is not supported yet; use Address and Port")
	case present(s.Proxy):
		return badRequest("Validation failed: Proxy is not supported yet")
	case s.Connect != nil && (s.Connect.Native || present(s.Connect.SidecarService)):
		return badRequest("Validation failed: Connect is not supported yet")
	}
	return nil
}

// present reports whether a raw field says more than null or {}.
func present(raw json.RawMessage) bool {
	b := bytes.TrimSpace(raw)
	return len(b) > 0 && !bytes.Equal(b, []byte("null")) && !bytes.Equal(b, []byte("{}"))
}

func validateMeta(meta map[string]string) error {
	if len(meta) > maxMetaPairs {
		return fmt.Errorf("Node metadata cannot contain more than %d key/value pairs", maxMetaPairs) //nolint:staticcheck // Consul's text
	}
	for k, v := range meta {
		why := ""
		switch {
		case k == "":
			why = "Key cannot be blank"
		case !metaKey.MatchString(k):
			why = "Key contains invalid characters"
		case len(k) > maxMetaKey:
			why = fmt.Sprintf("Key is too long (limit: %d characters)", maxMetaKey)
		case strings.HasPrefix(k, reservedMeta):
			why = fmt.Sprintf("Key prefix '%s' is reserved for internal use", reservedMeta)
		case len(v) > maxMetaValue:
			why = fmt.Sprintf("Value is too long (limit: %d characters)", maxMetaValue)
		}
		if why != "" {
			return fmt.Errorf("Couldn't load metadata pair ('%s', '%s'): %s", k, v, why) //nolint:staticcheck // Consul's text
		}
	}
	return nil
}

// taggedAddresses adds the ones that Consul derives from an IP address.
func (s *serviceBody) taggedAddresses() map[string]model.ServiceAddress {
	out := map[string]model.ServiceAddress{}
	if a, err := netip.ParseAddr(s.Address); err == nil {
		family := "_ipv6"
		if a.Unmap().Is4() {
			family = "_ipv4"
		}
		for _, scope := range []string{"lan", "wan"} {
			out[scope+family] = model.ServiceAddress{Address: s.Address, Port: s.Port}
		}
	}
	for tag, a := range s.TaggedAddresses {
		out[tag] = model.ServiceAddress(a)
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// checks returns the checks of a body with their defaults filled in: Check
// first, then Checks; of two with one id the later stands.
func (s *serviceBody) checks(i model.Instance) ([]model.CheckSpec, []string, error) {
	var bodies []*checkBody
	for _, b := range append([]*checkBody{s.Check}, s.Checks...) {
		if b != nil && !(b == s.Check && b.empty()) {
			bodies = append(bodies, b)
		}
	}
	var specs []model.CheckSpec
	var warnings []string
	for n, b := range bodies {
		spec, warns, err := b.spec()
		if err != nil {
			return nil, nil, err
		}
		if spec.ID == "" {
			spec.ID = model.CheckID("service:" + string(i.ID))
			if len(bodies) > 1 {
				spec.ID += model.CheckID(fmt.Sprintf(":%d", n+1))
			}
		}
		spec.ServiceID = i.ID
		spec.Name = cmp.Or(spec.Name, fmt.Sprintf("Service '%s' check", i.Service))
		specs = slices.DeleteFunc(specs, func(o model.CheckSpec) bool { return o.ID == spec.ID })
		specs = append(specs, spec)
		for _, w := range warns {
			warnings = append(warnings, fmt.Sprintf("check %q: %s", spec.ID, w))
		}
	}
	return specs, warnings, nil
}

func (b *checkBody) empty() bool { return reflect.ValueOf(*b).IsZero() }

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
		TLSSkipVerify:          b.TLSSkipVerify,
		TLSServerName:          b.TLSServerName,
		NoRedirects:            b.DisableRedirects,
		TCP:                    b.TCP,
		TTL:                    time.Duration(b.TTL),
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

// validate follows Consul's order and texts, and refuses further what can never
// pass and what this version cannot run.
func (b *checkBody) validate() error {
	bad := func(format string, args ...any) error {
		return badRequest("Invalid check: "+format, args...)
	}
	var kinds []string
	for _, k := range []struct {
		name string
		set  bool
	}{
		{"HTTP", b.HTTP != ""}, {"TCP", b.TCP != ""}, {"script", len(b.ScriptArgs)+len(b.Args) > 0},
		{"docker", b.DockerContainerID != ""}, {"gRPC", b.GRPC != ""}, {"H2PING", b.H2PING != ""},
		{"UDP", b.UDP != ""}, {"OSService", b.OSService != ""}, {"alias", b.AliasNode != "" || b.AliasService != ""},
		{"TCP with TLS", b.TCPUseTLS},
	} {
		if k.set {
			kinds = append(kinds, k.name)
		}
	}
	for _, k := range kinds {
		if k != "HTTP" && k != "TCP" {
			return bad("%s checks are not supported yet; HTTP, TCP and TTL checks are", k)
		}
	}
	switch {
	case b.Interval > 0 && b.TTL > 0:
		return bad("Interval and TTL cannot both be specified")
	case len(kinds) > 0 && b.TTL > 0, len(kinds) > 1:
		return bad("exactly one of HTTP, TCP and TTL must be specified")
	case len(kinds) > 0 && b.Interval <= 0:
		return bad("Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks")
	case len(kinds) == 0 && b.TTL <= 0:
		return bad("TTL must be > 0 for TTL checks")
	case b.OutputMaxSize < 0:
		return bad("MaxOutputMaxSize must be positive")
	case b.FailuresBeforeWarning > b.FailuresBeforeCritical:
		return bad("FailuresBeforeWarning can't be higher than FailuresBeforeCritical")
	case b.Timeout < 0 || b.DeregisterCriticalServiceAfter < 0:
		return bad("durations must not be negative")
	case b.SuccessBeforePassing < 0 || b.FailuresBeforeWarning < 0 || b.FailuresBeforeCritical < 0:
		return bad("thresholds must not be negative")
	case b.Status != "" && !model.Status(b.Status).Valid():
		return badRequest("Status for checks must 'passing', 'warning', 'critical'")
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
	if b.TCP != "" {
		if _, _, err := net.SplitHostPort(b.TCP); err != nil {
			return bad("TCP must be host:port: %v", err)
		}
	}
	if id := model.CheckID(cmp.Or(b.CheckID, b.ID)); id == model.SerfHealth {
		return bad("the id %q is reserved", id)
	}
	return nil
}
