package consulapi

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

var catalogRoutes = []route{
	get("/v1/catalog/datacenters", (*handler).catalogDatacenters),
	share("/v1/catalog/nodes", (*handler).catalogNodes),
	share("/v1/catalog/node/", (*handler).catalogNode),
	share("/v1/catalog/services", (*handler).catalogServices),
	share("/v1/catalog/service/", (*handler).catalogService),
	share("/v1/catalog/node-services/", (*handler).catalogNodeServices),
	share("/v1/catalog/connect/", (*handler).catalogConnect),
	get("/v1/catalog/gateway-services/", (*handler).catalogGatewayServices),
	put("/v1/catalog/register", (*handler).catalogRegister),
	put("/v1/catalog/deregister", (*handler).catalogDeregister),
}

// catalogDatacenters lists the one site there is.
func (h *handler) catalogDatacenters(*call) (answer, error) {
	return value([]string{h.cfg.Node.Datacenter}), nil
}

func (h *handler) catalogNodes(c *call) (answer, error) {
	f, err := newFilter(c, nodeShape{})
	if err != nil {
		return answer{}, err
	}
	want := nodeMeta(c)
	v, err := h.query(c, func(s *state.Snapshot) (any, []state.Mark, error) {
		nodes, mark := s.Nodes()
		nodes, err := visible(c, nodes, seeNode)
		if err != nil {
			return nil, nil, err
		}
		nodes = nearest(c, h.cfg.Node.Name, nodes, func(n *model.Node) model.NodeName { return n.Name })
		var all []nodeShape
		for _, n := range nodes {
			if hasMeta(n.Meta, want) {
				all = append(all, shapeNode(n, h.cfg.Node.Datacenter))
			}
		}
		out, err := f.slice(all)
		return out, marks(mark), err
	})
	return value(v), err
}

// catalogNode answers null for a node that does not exist, as Consul does.
func (h *handler) catalogNode(c *call) (answer, error) {
	return h.onNode(c, func(n *model.Node, services []serviceShape) any {
		if n == nil {
			return nil
		}
		byID := map[string]serviceShape{}
		for _, s := range services {
			byID[s.ID] = s
		}
		return struct {
			Node     nodeShape
			Services map[string]serviceShape
		}{shapeNode(n, h.cfg.Node.Datacenter), byID}
	})
}

// catalogNodeServices is catalogNode with a list, also for a node that does not
// exist.
func (h *handler) catalogNodeServices(c *call) (answer, error) {
	return h.onNode(c, func(n *model.Node, services []serviceShape) any {
		out := struct {
			Node     *nodeShape
			Services []serviceShape
		}{nil, services}
		if n != nil {
			out.Node = new(shapeNode(n, h.cfg.Node.Datacenter))
		}
		return out
	})
}

// onNode answers with what show makes of a node and its services that pass; nil
// and none for a node that is not there or not to be seen.
func (h *handler) onNode(c *call, show func(*model.Node, []serviceShape) any) (answer, error) {
	if c.rest == "" {
		return answer{}, badRequest("Missing node name")
	}
	f, err := newFilter(c, serviceShape{})
	if err != nil {
		return answer{}, err
	}
	v, err := h.query(c, func(s *state.Snapshot) (any, []state.Mark, error) {
		n, nm := s.Node(model.NodeName(c.rest))
		instances, im := s.NodeInstances(model.NodeName(c.rest))
		if n == nil {
			_, err := c.authorizer()
			return show(nil, []serviceShape{}), marks(nm, im), err
		}
		ok, err := maySee(c, n, seeNode)
		if err != nil || !ok {
			return show(nil, []serviceShape{}), marks(nm, im), err
		}
		if instances, err = visible(c, instances, seeInstance); err != nil {
			return nil, nil, err
		}
		all := make([]serviceShape, len(instances))
		for i, inst := range instances {
			all[i] = shapeService(inst)
		}
		services, err := f.slice(all)
		return show(n, services), marks(nm, im), err
	})
	return value(v), err
}

// catalogServices lists names and tags. Without a filter its index moves with
// names and tags only, not with health.
func (h *handler) catalogServices(c *call) (answer, error) {
	f, err := newFilter(c, catalogShape{})
	if err != nil {
		return answer{}, err
	}
	want := nodeMeta(c)
	v, err := h.query(c, func(s *state.Snapshot) (any, []state.Mark, error) {
		if f == nil && len(want) == 0 {
			tags, mark := s.ServiceTags()
			names, err := visible(c, slices.Collect(maps.Keys(tags)), seeServiceName)
			if err != nil {
				return nil, nil, err
			}
			out := make(map[string][]string, len(tags))
			for _, name := range names {
				out[string(name)] = list(tags[name])
			}
			return out, marks(mark), nil
		}
		services, mark := s.Services()
		services, err := visible(c, services, seeService)
		if err != nil {
			return nil, nil, err
		}
		out := map[string][]string{}
		for _, svc := range services {
			tags, found, err := h.tagsOf(svc, f, want)
			if err != nil {
				return nil, nil, err
			}
			if found {
				out[string(svc.Name)] = tags
			}
		}
		return out, marks(mark), nil
	})
	return value(v), err
}

// tagsOf is the sorted union of the tags of the members that pass, and whether
// any passes.
func (h *handler) tagsOf(svc *state.Service, f *filter[catalogShape], want map[string]string) ([]string, bool, error) {
	tags, found := []string{}, false
	for _, m := range svc.Members {
		if !memberHasMeta(m, want) {
			continue
		}
		ok, err := f.match(shapeCatalog(m, h.cfg.Node.Datacenter))
		if err != nil {
			return nil, false, err
		}
		if !ok {
			continue
		}
		found = true
		tags = append(tags, m.Instance.Tags...)
	}
	slices.Sort(tags)
	return slices.Compact(tags), found, nil
}

func (h *handler) catalogService(c *call) (answer, error) {
	if c.rest == "" {
		return answer{}, badRequest("Missing service name")
	}
	f, err := newFilter(c, catalogShape{})
	if err != nil {
		return answer{}, err
	}
	v, err := h.query(c, func(s *state.Snapshot) (any, []state.Mark, error) {
		svc, mark := s.Service(model.ServiceName(c.rest))
		members, err := visible(c, h.choose(c, svc.Members, false), seeMember)
		if err != nil {
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

// choose applies ?tag, ?node-meta and ?near to a service's members, for
// catalog/service and health/service alike: clients index the answer of one by
// the other and need the same order.
func (h *handler) choose(c *call, members []*state.Member, passing bool) []*state.Member {
	want, tags := nodeMeta(c), c.params["tag"]
	var out []*state.Member
	for _, m := range members {
		if memberHasMeta(m, want) && hasTags(m.Instance.Tags, tags) && (!passing || m.Status() == model.Passing) {
			out = append(out, m)
		}
	}
	return nearest(c, h.cfg.Node.Name, out, func(m *state.Member) model.NodeName { return m.Instance.Node })
}

// nearest puts what is on the node that ?near names first, and keeps the order
// otherwise: how far apart nodes are is not known.
func nearest[T any](c *call, self model.NodeName, list []T, on func(T) model.NodeName) []T {
	near := model.NodeName(c.params.Get("near"))
	switch near {
	case "":
		return list
	case "_agent":
		near = self
	}
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b T) int { return cmp.Compare(b2i(on(a) != near), b2i(on(b) != near)) })
	return list
}

func memberHasMeta(m *state.Member, want map[string]string) bool {
	if m.Node == nil {
		return len(want) == 0
	}
	return hasMeta(m.Node.Meta, want)
}

// hasTags reports whether every wanted tag is there, without regard to case.
func hasTags(tags, want []string) bool {
	for _, w := range want {
		found := false
		for _, t := range tags {
			found = found || strings.EqualFold(t, w)
		}
		if !found {
			return false
		}
	}
	return true
}
