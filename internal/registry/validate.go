package registry

import (
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/fairlead-net/fairlead/internal/ipam"
	"github.com/fairlead-net/fairlead/internal/model"
)

// Limits of what a record may hold. Those of metadata are Consul's.
const (
	maxName      = 512 // bytes
	maxLabel     = 63  // bytes, RFC 1035
	maxMeta      = 64  // entries
	maxMetaKey   = 128 // bytes
	maxMetaValue = 512 // bytes
	maxWeight    = 65535
	minMTU4      = 576  // RFC 791
	minMTU6      = 1280 // RFC 8200
	maxMTU       = 65535
)

// validateName accepts whatever Consul's clients use as names, but not what
// would break keys, logs and terminals.
func validateName[S ~string](field string, name S) error {
	switch {
	case name == "":
		return invalid(field, "is missing; give it one")
	case len(name) > maxName:
		return invalid(field, "has %d bytes; it may have at most %d", len(name), maxName)
	case !utf8.ValidString(string(name)):
		return invalid(field, "%q is not UTF-8", string(name))
	case strings.ContainsFunc(string(name), unicode.IsControl):
		return invalid(field, "%q has control characters; leave them out", string(name))
	}
	return nil
}

// validateLabel accepts what is one label of a DNS name, with underscores.
func validateLabel[S ~string](field string, name S) error {
	if name == "" {
		return invalid(field, "is missing; give it one")
	}
	ok := len(name) <= maxLabel && isAlnum(name[0]) && isAlnum(name[len(name)-1])
	for i := range len(name) {
		ok = ok && (isAlnum(name[i]) || name[i] == '-' || name[i] == '_')
	}
	if !ok {
		return invalid(field, "%q cannot be a DNS name; use up to %d letters, digits, - and _, letters or digits at both ends", string(name), maxLabel)
	}
	return nil
}

func isAlnum(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

func validateMeta(field string, meta map[string]string) error {
	if len(meta) > maxMeta {
		return invalid(field, "has %d entries; it may have at most %d", len(meta), maxMeta)
	}
	for k, v := range meta {
		switch {
		case k == "":
			return invalid(field, "has an entry without a key; name it or leave it out")
		case len(k) > maxMetaKey:
			return invalid(field, "key %.32q... has %d bytes; it may have at most %d", k, len(k), maxMetaKey)
		case len(v) > maxMetaValue:
			return invalid(field, "value of %q has %d bytes; it may have at most %d", k, len(v), maxMetaValue)
		}
	}
	return nil
}

func validateNode(n *model.Node) error {
	if err := validateName("node name", n.Name); err != nil {
		return err
	}
	if n.Address == "" {
		return invalid("node address", "is missing; give the address at which the node can be reached")
	}
	if err := validateAddress("node address", n.Address); err != nil {
		return err
	}
	return validateMeta("node metadata", n.Meta)
}

// validateAddress accepts addresses and names, but nothing that stands for "any".
func validateAddress(field, addr string) error {
	if addr == "" {
		return nil
	}
	if a, err := netip.ParseAddr(strings.Trim(addr, "[]")); err == nil && a.IsUnspecified() {
		return invalid(field, "is %s, at which nothing can be reached; give a real address", addr)
	}
	return validateName(field, addr)
}

// validateInstance also fills in the id and the weights, as Consul does.
func validateInstance(i *model.Instance) error {
	if i.ID == "" {
		i.ID = model.ServiceID(i.Service)
	}
	if i.Weights == (model.Weights{}) {
		i.Weights = model.DefaultWeights
	}
	for _, err := range []error{
		validateName("service name", i.Service),
		validateName("service id", i.ID),
		validateName("service node", i.Node),
		validateAddress("service address", i.Address),
		validatePort("service port", i.Port),
		validateMeta("service metadata", i.Meta),
		validateWeights(i.Weights),
	} {
		if err != nil {
			return err
		}
	}
	for tag, a := range i.TaggedAddresses {
		if tag == "" {
			return invalid("service tagged address", "%s has no tag; name it", a.Address)
		}
		if err := validatePort(fmt.Sprintf("service port of tagged address %q", tag), a.Port); err != nil {
			return err
		}
	}
	for _, p := range i.Places {
		if !p.Addr.IsValid() || p.Addr.IsUnspecified() {
			return invalid("service place", "in network %q has no address; give the instance's address there", p.Network)
		}
	}
	return nil
}

func validatePort(field string, port int) error {
	if port < 0 || port > 65535 {
		return invalid(field, "is %d; it must be from 0 to 65535", port)
	}
	return nil
}

func validateWeights(w model.Weights) error {
	if w.Passing < 1 || w.Passing > maxWeight {
		return invalid("service weight while passing", "is %d; it must be from 1 to %d", w.Passing, maxWeight)
	}
	if w.Warning < 0 || w.Warning > maxWeight {
		return invalid("service weight while warning", "is %d; it must be from 0 to %d", w.Warning, maxWeight)
	}
	return nil
}

func validateCheck(c *model.Check) error {
	if err := validateName("check id", c.ID); err != nil {
		return err
	}
	if err := validateName("check node", c.Node); err != nil {
		return err
	}
	if !c.Status.Valid() {
		return invalid("check status", "is %q; it must be passing, warning or critical", c.Status)
	}
	return nil
}

func validateKey(key string) error {
	if key == "" {
		return invalid("key", "is missing; name one")
	}
	if len(key) > MaxKey {
		return invalid("key", "has %d bytes; the limit is %d", len(key), MaxKey)
	}
	return nil
}

func validateKV(kv *model.KV) error {
	if err := validateKey(kv.Key); err != nil {
		return err
	}
	if len(kv.Value) > MaxValue {
		return fmt.Errorf("%w: %d bytes, the limit is %d; keep it elsewhere and store its address", ErrValueTooLarge, len(kv.Value), MaxValue)
	}
	return nil
}

// validateNetwork also completes the pools: gateway and order of reserved ranges.
func validateNetwork(n *model.Network) error {
	if err := validateLabel("network name", n.Name); err != nil {
		return err
	}
	switch n.Driver {
	case model.DriverBridge:
		if n.Transport != "" {
			return invalid("network transport", "is %q, which only an overlay has", n.Transport)
		}
		if err := validateName("network node", n.Node); err != nil {
			return err
		}
	case model.DriverOverlay:
		if err := validateOverlay(n); err != nil {
			return err
		}
	default:
		return invalid("network driver", "%q is not known; use %q or %q", n.Driver, model.DriverBridge, model.DriverOverlay)
	}
	minMTU, families := minMTU4, map[bool]netip.Prefix{}
	for i := range n.Pools {
		pool, err := ipam.NewPool(n.Pools[i].Prefix, n.Pools[i].Gateway, n.Pools[i].Reserved)
		if err != nil {
			return err
		}
		n.Pools[i] = pool
		is4 := pool.Prefix.Addr().Is4()
		if other, twice := families[is4]; twice {
			return invalid("network pools", "%s and %s are of one family; give at most one of each", other, pool.Prefix)
		}
		families[is4] = pool.Prefix
		if !is4 {
			minMTU = minMTU6
		}
	}
	if len(n.Pools) == 0 {
		return invalid("network pools", "are missing; give at least one prefix")
	}
	if n.MTU != 0 && (n.MTU < minMTU || n.MTU > maxMTU) {
		return invalid("network MTU", "is %d; it must be 0 for the default or from %d to %d", n.MTU, minMTU, maxMTU)
	}
	return nil
}

// validateOverlay also sets the transport.
func validateOverlay(n *model.Network) error {
	if n.Node != "" {
		return invalid("network node", "is %q, but an overlay is on all nodes; leave it out", n.Node)
	}
	if n.Transport == "" {
		n.Transport = model.TransportAuto
	}
	if n.Transport != model.TransportAuto && n.Transport != model.TransportVXLAN && n.Transport != model.TransportDirect {
		return invalid("network transport", "%q is not known; use %q, %q or %q", n.Transport, model.TransportAuto, model.TransportVXLAN, model.TransportDirect)
	}
	for _, p := range n.Pools {
		if _, err := ipam.BlockBits(p.Prefix); err != nil {
			return err
		}
	}
	return nil
}

func validateEndpoint(e *model.Endpoint) error {
	if err := validateName("endpoint id", e.ID); err != nil {
		return err
	}
	if err := validateLabel("workload name", e.Workload); err != nil {
		return err
	}
	if err := validateName("endpoint network", e.Network); err != nil {
		return err
	}
	if err := validateName("endpoint node", e.Node); err != nil {
		return err
	}
	for _, alias := range e.Aliases {
		if err := validateLabel("alias", alias); err != nil {
			return err
		}
	}
	type published struct {
		proto model.Protocol
		port  uint16
	}
	seen := map[published]bool{}
	for _, p := range e.Ports {
		switch {
		case p.Proto != model.TCP && p.Proto != model.UDP:
			return invalid("published protocol", "is %q; it must be tcp or udp", p.Proto)
		case p.HostPort == 0 || p.Port == 0:
			return invalid("published port", "%d:%d has a zero; both sides must be from 1 to 65535", p.HostPort, p.Port)
		case p.Expose != model.ExposeHost && p.Expose != model.ExposeLAN && p.Expose != model.ExposeAny:
			return invalid("published port's reach", "is %q; it must be host, lan or any", p.Expose)
		case seen[published{p.Proto, p.HostPort}]:
			return invalid("published port", "%s %d is there twice; publish it once", p.Proto, p.HostPort)
		}
		seen[published{p.Proto, p.HostPort}] = true
	}
	return nil
}
