package local

import (
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"

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

func validateCheck(c *model.CheckSpec) error {
	kinds := 0
	for _, set := range []bool{c.HTTP != "", c.TCP != "", c.TTL != 0} {
		if set {
			kinds++
		}
	}
	asks := c.HTTP != "" || c.TCP != ""
	switch {
	case c.ID == model.SerfHealth:
		return invalid("the check %q belongs to the servers", c.ID)
	case kinds != 1:
		return invalid("check %q needs exactly one of http, tcp and ttl", c.ID)
	case asks && c.Interval <= 0:
		return invalid("check %q: Interval must be > 0 for HTTP and TCP checks", c.ID)
	case !asks && c.TTL <= 0:
		return invalid("check %q: TTL must be > 0 for TTL checks", c.ID)
	case !asks && c.Interval > 0:
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
	if c.TCP != "" {
		if _, _, err := net.SplitHostPort(c.TCP); err != nil {
			return invalid("check %q: tcp must be host:port: %v", c.ID, err)
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
	for i := range r.Checks {
		h := maps.Clone(r.Checks[i].Header)
		for name, values := range h {
			h[name] = slices.Clone(values)
		}
		r.Checks[i].Header = h
	}
	return r
}
