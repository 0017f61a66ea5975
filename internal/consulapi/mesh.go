package consulapi

import (
	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// Where a service can be reached over mutual TLS: instances that speak it
// themselves, and proxies that stand for one. There are no gateways.

func (h *handler) catalogConnect(c *call) (answer, error) {
	if c.rest == "" {
		return answer{}, badRequest("Missing service name")
	}
	f, err := newFilter(c, catalogShape{})
	if err != nil {
		return answer{}, err
	}
	v, err := h.query(c, func(s *state.Snapshot) (any, []state.Mark, error) {
		members, mark, err := meshMembers(c, s)
		if err != nil {
			return nil, nil, err
		}
		if members, err = visible(c, h.choose(c, members, false), seeMember); err != nil {
			return nil, nil, err
		}
		all := make([]catalogShape, len(members))
		for i, m := range members {
			all[i] = shapeCatalog(m, h.cfg.Node.Datacenter)
		}
		out, err := f.slice(all)
		return out, marks(mark), err
	})
	return value(v), err
}

func (h *handler) healthConnect(c *call) (answer, error) {
	return h.entries(c, func(s *state.Snapshot) ([]*state.Member, state.Mark, error) { return meshMembers(c, s) })
}

// meshMembers is who answers for the service that the request names. Whoever may
// not read the service finds nobody.
func meshMembers(c *call, s *state.Snapshot) ([]*state.Member, state.Mark, error) {
	name := model.ServiceName(c.rest)
	members, mark := s.Connected(name)
	ok, err := maySee(c, name, seeServiceName)
	if err != nil || !ok {
		return nil, mark, err
	}
	return members, mark, nil
}

// healthIngress finds no gateway, since none can be configured.
func (h *handler) healthIngress(c *call) (answer, error) {
	return h.entries(c, func(s *state.Snapshot) ([]*state.Member, state.Mark, error) {
		_, mark := s.Service(model.ServiceName(c.rest))
		_, err := maySee(c, model.ServiceName(c.rest), seeServiceName)
		return nil, mark, err
	})
}

// catalogGatewayServices finds no service behind any gateway.
func (h *handler) catalogGatewayServices(c *call) (answer, error) {
	if c.rest == "" {
		return answer{}, badRequest("Missing gateway name")
	}
	v, err := h.query(c, func(s *state.Snapshot) (any, []state.Mark, error) {
		_, mark := s.Service(model.ServiceName(c.rest))
		return []struct{}{}, marks(mark), c.require(acl.Service, c.rest, acl.Read)
	})
	return value(v), err
}
