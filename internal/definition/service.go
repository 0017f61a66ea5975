package definition

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/fairlead-net/fairlead/internal/model"
)

const (
	maxMetaPairs, maxMetaKey, maxMetaValue = 64, 128, 512
	reservedMeta                           = "consul-"
)

var metaKey = regexp.MustCompile(`^[a-zA-Z0-9_-]+$`)

// serviceBody is a service as it is written. The fields that Fairlead cannot act
// on are here to be refused by name and not as unknown.
type serviceBody struct {
	Kind              string
	ID                string
	Name              string
	Tags              []string
	Address           string
	TaggedAddresses   map[string]addressBody
	Meta              map[string]string
	Port              int
	SocketPath        string
	Check             *checkBody
	Checks            []*checkBody
	Weights           *weightsBody
	Token             string
	EnableTagOverride bool
	Proxy             *proxyBody
	Connect           *connectBody
	Locality          *localityBody
}

type addressBody struct {
	Address string
	Port    int
}

type weightsBody struct{ Passing, Warning *int }

type localityBody struct{ Region, Zone string }

type connectBody struct {
	Native         bool
	SidecarService json.RawMessage
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

// UnmarshalJSON implements json.Unmarshaler, as its siblings do.
func (b *serviceBody) UnmarshalJSON(data []byte) error { return Decode(data, b) }

// UnmarshalJSON implements json.Unmarshaler.
func (b *addressBody) UnmarshalJSON(data []byte) error {
	return Decode(single(data, reflect.TypeFor[addressBody]()), b)
}

// UnmarshalJSON implements json.Unmarshaler.
func (b *weightsBody) UnmarshalJSON(data []byte) error { return Decode(data, b) }

// UnmarshalJSON implements json.Unmarshaler.
func (b *localityBody) UnmarshalJSON(data []byte) error { return Decode(data, b) }

// UnmarshalJSON implements json.Unmarshaler.
func (b *connectBody) UnmarshalJSON(data []byte) error { return Decode(data, b) }

// UnmarshalJSON implements json.Unmarshaler.
func (b *proxyBody) UnmarshalJSON(data []byte) error { return Decode(data, b) }

// Service reads one service with its checks. Its instance has no node and no
// owner yet. The warnings say what was changed on the way.
func Service(data []byte) (model.Registration, []string, error) {
	var b serviceBody
	if err := decodeObject(data, &b); err != nil {
		return model.Registration{}, nil, err
	}
	return b.registration()
}

func (b *serviceBody) registration() (model.Registration, []string, error) {
	var none model.Registration
	if err := b.validate(); err != nil {
		return none, nil, err
	}
	i := model.Instance{
		ID:                model.ServiceID(cmp.Or(b.ID, b.Name)),
		Service:           model.ServiceName(b.Name),
		Tags:              b.Tags,
		Address:           b.Address,
		Port:              b.Port,
		SocketPath:        b.SocketPath,
		Meta:              b.Meta,
		TaggedAddresses:   b.taggedAddresses(),
		Weights:           b.weights(),
		EnableTagOverride: b.EnableTagOverride,
		Native:            b.Connect != nil && b.Connect.Native,
	}
	if b.Kind == model.KindConnectProxy {
		i.Kind = b.Kind
		i.Proxy = model.Proxy{
			Service:      model.ServiceName(b.Proxy.DestinationServiceName),
			ID:           model.ServiceID(b.Proxy.DestinationServiceID),
			LocalAddress: b.Proxy.LocalServiceAddress,
			LocalPort:    b.Proxy.LocalServicePort,
			LocalSocket:  b.Proxy.LocalServiceSocketPath,
		}
	}
	if b.Locality != nil {
		i.Locality = model.Locality(*b.Locality)
	}
	checks, warnings, err := b.checks(i)
	if err != nil {
		return none, nil, err
	}
	return model.Registration{Instance: i, Checks: checks, Token: b.Token}, warnings, nil
}

// weights are those that were said; Consul takes one that is left out for 0.
func (b *serviceBody) weights() model.Weights {
	if b.Weights == nil {
		return model.DefaultWeights
	}
	w := model.Weights{}
	if p := b.Weights.Passing; p != nil {
		w.Passing = *p
	}
	if p := b.Weights.Warning; p != nil {
		w.Warning = *p
	}
	return w
}

// validate follows Consul's order and texts.
func (b *serviceBody) validate() error {
	if b.Name == "" {
		return refuse("Missing service name")
	}
	if a, err := netip.ParseAddr(strings.Trim(b.Address, "[]")); err == nil && a.Unmap().IsUnspecified() {
		return refuse("Invalid service address")
	}
	switch w := b.weights(); {
	case w.Passing < 1:
		return refuse("Invalid Weights: Passing must be greater than 0")
	case w.Warning < 0:
		return refuse("Invalid Weights: Warning must be greater or equal than 0")
	case w.Passing > 65535 || w.Warning > 65535:
		return refuse("Invalid Weights: DNS Weight must be between 0 and 65535")
	}
	if err := validateMeta(b.Meta); err != nil {
		return refuse("Invalid Service Meta: %v", err)
	}
	ports := []int{b.Port}
	for _, a := range b.TaggedAddresses {
		ports = append(ports, a.Port)
	}
	for _, p := range ports {
		if p < 0 || p > 65535 {
			return refuse("Validation failed: port %d is not between 0 and 65535", p)
		}
	}
	for _, name := range append([]string{b.Name, b.ID, b.Address, b.SocketPath}, b.Tags...) {
		if strings.ContainsFunc(name, unicode.IsControl) {
			return refuse("Validation failed: %q contains control characters", name)
		}
	}
	return b.validateMesh()
}

// validateMesh checks what concerns proxies, and names what the definition asks
// for and Fairlead does not do, rather than register something other than what
// was asked for.
func (b *serviceBody) validateMesh() error {
	bad := func(format string, args ...any) error { return refuse("Validation failed: "+format, args...) }
	switch b.Kind {
	case model.KindTypical, "typical", "typical-service":
		if b.Proxy.said() {
			return bad("Proxy is for services of kind %q only", model.KindConnectProxy)
		}
	case model.KindConnectProxy:
		switch {
		case b.Port == 0 && b.SocketPath == "":
			return bad("Port or SocketPath must be set for a %s", b.Kind)
		case b.Proxy == nil || strings.TrimSpace(b.Proxy.DestinationServiceName) == "":
			return bad("Proxy.DestinationServiceName must be non-empty for Connect proxy services")
		case b.Proxy.DestinationServiceName == "*":
			return bad("Proxy.DestinationServiceName must not be a wildcard for Connect proxy services")
		case b.Connect != nil && b.Connect.Native:
			return bad("A Proxy cannot also be Connect Native, only typical services")
		}
	default:
		return bad("services of kind %q are not supported; leave Kind out, or register a %q", b.Kind, model.KindConnectProxy)
	}
	if b.Connect != nil && present(b.Connect.SidecarService) {
		return bad("Connect.SidecarService is not supported; register the proxy as a service of kind %q", model.KindConnectProxy)
	}
	if name := b.Proxy.unsupported(); name != "" {
		return bad("Proxy.%s is not supported: Fairlead configures no proxies; leave it out", name)
	}
	return nil
}

// said reports whether b says for whom a proxy stands.
func (b *proxyBody) said() bool {
	return b != nil && (b.DestinationServiceName != "" || b.DestinationServiceID != "" || b.LocalServiceAddress != "" ||
		b.LocalServicePort != 0 || b.LocalServiceSocketPath != "")
}

// unsupported names a field that only somebody who configures proxies could act
// on; empty if none is set.
func (b *proxyBody) unsupported() string {
	if b == nil {
		return ""
	}
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"Config", present(b.Config)},
		{"Upstreams", present(b.Upstreams)},
		{"MeshGateway", present(b.MeshGateway)},
		{"Expose", present(b.Expose)},
		{"TransparentProxy", present(b.TransparentProxy)},
		{"EnvoyExtensions", present(b.EnvoyExtensions)},
		{"AccessLogs", present(b.AccessLogs)},
		{"Mode", b.Mode != ""},
		{"MutualTLSMode", b.MutualTLSMode != ""},
	} {
		if f.set {
			return f.name
		}
	}
	return ""
}

// present reports whether a raw field says more than null, {} or [].
func present(raw json.RawMessage) bool {
	b := bytes.TrimSpace(raw)
	return len(b) > 0 && !slices.Contains([]string{"null", "{}", "[]"}, string(b))
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
func (b *serviceBody) taggedAddresses() map[string]model.ServiceAddress {
	out := map[string]model.ServiceAddress{}
	if a, err := netip.ParseAddr(b.Address); err == nil {
		family := "_ipv6"
		if a.Unmap().Is4() {
			family = "_ipv4"
		}
		for _, scope := range []string{"lan", "wan"} {
			out[scope+family] = model.ServiceAddress{Address: b.Address, Port: b.Port}
		}
	}
	for tag, a := range b.TaggedAddresses {
		out[tag] = model.ServiceAddress(a)
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// checks returns the checks of a service with their defaults filled in: Check
// first, then Checks; of two with one id the later stands.
func (b *serviceBody) checks(i model.Instance) ([]model.CheckSpec, []string, error) {
	var bodies []*checkBody
	for _, c := range append([]*checkBody{b.Check}, b.Checks...) {
		if c != nil && !(c == b.Check && c.empty()) {
			bodies = append(bodies, c)
		}
	}
	var specs []model.CheckSpec
	var warnings []string
	for n, c := range bodies {
		spec, warns, err := c.spec()
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
