package local

import (
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"

	"github.com/fairlead-net/fairlead/internal/model"
)

// consulService is the servers' own service.
const consulService = "consul"

// normalize completes a registration (the copy that it returns) as Consul does
// and checks its shape. Its errors are ErrInvalid and say what is wrong.
func normalize(r model.Registration, me model.NodeName) (model.Registration, error) {
	r = clone(r)
	i := &r.Instance
	if i.Service == "" {
		return r, invalid("a service needs a name")
	}
	if i.ID == "" {
		i.ID = model.ServiceID(i.Service)
	}
	i.Node, i.Stamp = me, model.Stamp{Owner: model.NodeOwner(me)}
	if i.Weights == (model.Weights{}) {
		i.Weights = model.DefaultWeights
	}
	switch {
	case i.ID == consulService || i.Service == consulService:
		return r, invalid("the service %q belongs to the servers", consulService)
	case i.Port < 0 || i.Port > 65535:
		return r, invalid("service %q: port %d is not from 0 to 65535", i.ID, i.Port)
	case i.Weights.Passing < 1 || i.Weights.Warning < 0:
		return r, invalid("service %q: weights are %d while passing and %d while warning; at least 1 and 0 are needed",
			i.ID, i.Weights.Passing, i.Weights.Warning)
	}
	seen := map[model.CheckID]bool{}
	for n := range r.Checks {
		c := &r.Checks[n]
		complete(c, *i, n, len(r.Checks))
		if err := validateCheck(c); err != nil {
			return r, err
		}
		if seen[c.ID] {
			return r, invalid("service %q has two checks with the id %q", i.ID, c.ID)
		}
		seen[c.ID] = true
	}
	return r, nil
}

// complete gives the nth check of so many the names that Consul gives.
func complete(c *model.CheckSpec, i model.Instance, n, many int) {
	c.ServiceID = i.ID
	if c.ID == "" {
		c.ID = model.CheckID("service:" + i.ID)
		if many > 1 {
			c.ID = model.CheckID(fmt.Sprintf("service:%s:%d", i.ID, n+1))
		}
	}
	if c.Name == "" {
		c.Name = fmt.Sprintf("Service '%s' check", i.Service)
	}
}

// normalizeCheck completes a check that comes by itself (the copy that it
// returns) and checks its shape.
func normalizeCheck(c model.CheckSpec) (model.CheckSpec, error) {
	c = cloneCheck(c)
	if c.ID == "" {
		c.ID = model.CheckID(c.Name)
	}
	if c.ID == "" {
		return c, invalid("a check needs a name")
	}
	if c.Name == "" {
		c.Name = string(c.ID)
	}
	err := validateCheck(&c)
	return c, err
}

func validateCheck(c *model.CheckSpec) error {
	kinds := 0
	asks := c.HTTP != "" || c.TCP != "" || c.UDP != "" || c.GRPC != "" || c.H2Ping != "" || len(c.Args) > 0 || c.OSService != ""
	for _, set := range []bool{
		c.HTTP != "", c.TCP != "", c.UDP != "", c.GRPC != "", c.H2Ping != "", len(c.Args) > 0, c.OSService != "",
		c.AliasService != "" || c.AliasNode != "", c.Maintenance, c.TTL != 0,
	} {
		if set {
			kinds++
		}
	}
	switch {
	case c.ID == model.SerfHealth:
		return invalid("the check %q belongs to the servers", c.ID)
	case kinds != 1:
		return invalid("check %q needs exactly one of http, tcp, udp, grpc, h2ping, args, os_service, alias and ttl", c.ID)
	case c.Docker != "" && len(c.Args) == 0:
		return invalid("check %q: a check in a container needs args", c.ID)
	case asks && c.Interval <= 0:
		return invalid("check %q: Interval must be > 0 for %s checks", c.ID, c.Type())
	case c.TTL < 0:
		return invalid("check %q: TTL must be > 0 for TTL checks", c.ID)
	case c.TTL > 0 && c.Interval > 0:
		return invalid("check %q: Interval and TTL cannot both be specified", c.ID)
	case c.Timeout < 0 || c.DeregisterAfter < 0:
		return invalid("check %q has a negative duration", c.ID)
	case c.Status != "" && !c.Status.Valid():
		return invalid("check %q: status %q is not passing, warning or critical", c.ID, c.Status)
	case c.OutputMaxSize < 0:
		return invalid("check %q: OutputMaxSize must be positive", c.ID)
	case c.SuccessBeforePassing < 0 || c.FailuresBeforeWarning < 0 || c.FailuresBeforeCritical < 0:
		return invalid("check %q has a negative threshold", c.ID)
	case c.FailuresBeforeWarning > max(c.FailuresBeforeCritical, 1):
		return invalid("check %q: FailuresBeforeWarning can't be higher than FailuresBeforeCritical", c.ID)
	}
	return validateTarget(c)
}

func validateTarget(c *model.CheckSpec) error {
	grpc, _, _ := strings.Cut(c.GRPC, "/")
	for _, p := range []struct {
		kind, address string
		set           bool
	}{{"tcp", c.TCP, c.TCP != ""}, {"udp", c.UDP, c.UDP != ""}, {"grpc", grpc, c.GRPC != ""}, {"h2ping", c.H2Ping, c.H2Ping != ""}} {
		if !p.set {
			continue
		}
		if _, _, err := net.SplitHostPort(p.address); err != nil {
			return invalid("check %q: %s must be host:port: %v", c.ID, p.kind, err)
		}
	}
	if c.HTTP != "" {
		u, err := url.Parse(c.HTTP)
		if err != nil {
			return invalid("check %q: http must be a URL: %v", c.ID, err)
		}
		if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			return invalid("check %q: http must be a URL such as http://127.0.0.1:80/, not %q", c.ID, c.HTTP)
		}
	}
	return nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

// clone returns a copy that shares nothing with r.
func clone(r model.Registration) model.Registration {
	r.Instance = r.Instance.Clone()
	r.Checks = slices.Clone(r.Checks)
	for i, c := range r.Checks {
		r.Checks[i] = cloneCheck(c)
	}
	return r
}

func cloneCheck(c model.CheckSpec) model.CheckSpec {
	h := maps.Clone(c.Header)
	for name, values := range h {
		h[name] = slices.Clone(values)
	}
	c.Header, c.Args = h, slices.Clone(c.Args)
	return c
}
