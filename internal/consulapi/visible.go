package consulapi

import (
	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// visible returns what the request's token may see of a list, in order, and
// notes in the answer's header whether anything was left out. The list itself is
// not changed.
func visible[T any](c *call, in []T, may func(acl.Authorizer, T) bool) ([]T, error) {
	a, err := c.authorizer()
	if err != nil {
		return nil, err
	}
	for i, v := range in {
		if may(a, v) {
			continue
		}
		c.filtered()
		out := append([]T{}, in[:i]...)
		for _, v := range in[i+1:] {
			if may(a, v) {
				out = append(out, v)
			}
		}
		return out, nil
	}
	return in, nil
}

// maySee asks for one thing the way visible asks for the things of a list.
func maySee[T any](c *call, v T, may func(acl.Authorizer, T) bool) (bool, error) {
	seen, err := visible(c, []T{v}, may)
	return len(seen) > 0, err
}

func seeNode(a acl.Authorizer, n *model.Node) bool { return seeNodeName(a, n.Name) }

func seeNodeName(a acl.Authorizer, n model.NodeName) bool {
	return a.Allow(acl.Node, string(n), acl.Read)
}

func seeServiceName(a acl.Authorizer, s model.ServiceName) bool {
	return a.Allow(acl.Service, string(s), acl.Read)
}

func seeInstance(a acl.Authorizer, i *model.Instance) bool { return seeServiceName(a, i.Service) }

func seeRegistration(a acl.Authorizer, r model.Registration) bool {
	return seeServiceName(a, r.Instance.Service)
}

// seeMember takes the right to both the service and the node that it runs on.
func seeMember(a acl.Authorizer, m *state.Member) bool {
	return seeNodeName(a, m.Instance.Node) && seeInstance(a, m.Instance)
}

// seeCheck is for checks in the catalogue: the node's must be visible, and the
// service's if it is a service's check.
func seeCheck(a acl.Authorizer, c *model.Check) bool {
	return seeNodeName(a, c.Node) && (c.ServiceName == "" || seeServiceName(a, c.ServiceName))
}

// seeOwnCheck is for checks at the agent that runs them: a service's check takes
// the right to the service alone.
func seeOwnCheck(a acl.Authorizer, c model.Check) bool {
	if c.ServiceName != "" {
		return seeServiceName(a, c.ServiceName)
	}
	return seeNodeName(a, c.Node)
}

func seeKV(a acl.Authorizer, kv *model.KV) bool { return a.Allow(acl.Key, kv.Key, acl.Read) }

func seeService(a acl.Authorizer, s *state.Service) bool { return seeServiceName(a, s.Name) }
