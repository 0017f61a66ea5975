package consulapi

import (
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

var healthRoutes = []route{
	share("/v1/health/service/", (*handler).healthService),
	share("/v1/health/checks/", (*handler).healthChecks),
	share("/v1/health/state/", (*handler).healthState),
	share("/v1/health/node/", (*handler).healthNode),
	share("/v1/health/connect/", (*handler).healthConnect),
	share("/v1/health/ingress/", (*handler).healthIngress),
}

func (h *handler) healthService(c *call) (answer, error) {
	return h.entries(c, func(s *state.Snapshot) ([]*state.Member, state.Mark, error) {
		svc, mark := s.Service(model.ServiceName(c.rest))
		return svc.Members, mark, nil
	})
}

// entries answers with the members that find finds, with their checks.
func (h *handler) entries(c *call, find func(*state.Snapshot) ([]*state.Member, state.Mark, error)) (answer, error) {
	if c.rest == "" {
		return answer{}, badRequest("Missing service name")
	}
	f, err := newFilter(c, entryShape{Checks: make([]checkShape, 1)})
	if err != nil {
		return answer{}, err
	}
	passing, err := flag(c, "passing")
	if err != nil {
		return answer{}, err
	}
	v, err := h.query(c, func(s *state.Snapshot) (any, []state.Mark, error) {
		members, mark, err := find(s)
		if err != nil {
			return nil, nil, err
		}
		if members, err = visible(c, h.choose(c, members, passing), seeMember); err != nil {
			return nil, nil, err
		}
		all := make([]entryShape, len(members))
		for i, m := range members {
			all[i] = shapeEntry(m, h.cfg.Node.Datacenter)
		}
		out, err := f.slice(all)
		return out, marks(mark), err
	})
	return value(v), err
}

func (h *handler) healthChecks(c *call) (answer, error) {
	if c.rest == "" {
		return answer{}, badRequest("Missing service name")
	}
	return h.checks(c, func(s *state.Snapshot) ([]*model.Check, state.Mark) {
		return s.ServiceChecks(model.ServiceName(c.rest))
	})
}

func (h *handler) healthNode(c *call) (answer, error) {
	if c.rest == "" {
		return answer{}, badRequest("Missing node name")
	}
	return h.checks(c, func(s *state.Snapshot) ([]*model.Check, state.Mark) {
		return s.NodeChecks(model.NodeName(c.rest))
	})
}

// healthState takes passing, warning, critical or any; no check is in a state of
// another name.
func (h *handler) healthState(c *call) (answer, error) {
	if c.rest == "" {
		return answer{}, badRequest("Missing check state")
	}
	status := model.Status(c.rest)
	return h.checks(c, func(s *state.Snapshot) ([]*model.Check, state.Mark) {
		switch {
		case status.Valid():
			return s.Checks(status)
		case status == "any":
			return s.Checks("")
		}
		_, mark := s.Checks("")
		return nil, mark
	})
}

// checks answers with the checks that get finds, filtered.
func (h *handler) checks(c *call, find func(*state.Snapshot) ([]*model.Check, state.Mark)) (answer, error) {
	f, err := newFilter(c, checkShape{})
	if err != nil {
		return answer{}, err
	}
	want := nodeMeta(c)
	v, err := h.query(c, func(s *state.Snapshot) (any, []state.Mark, error) {
		found, mark := find(s)
		found, err := visible(c, found, seeCheck)
		if err != nil {
			return nil, nil, err
		}
		var all []checkShape
		for _, ch := range found {
			if len(want) > 0 {
				n, _ := s.Node(ch.Node)
				if n == nil || !hasMeta(n.Meta, want) {
					continue
				}
			}
			all = append(all, shapeCheck(ch))
		}
		out, err := f.slice(all)
		return out, marks(mark), err
	})
	return value(v), err
}
