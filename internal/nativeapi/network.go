package nativeapi

import (
	"net/http"

	"github.com/fairlead-net/fairlead/api"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/workload"
)

func (h *handler) networks(*http.Request) (any, error) {
	all, _ := h.State.Snapshot().Networks()
	out := make([]api.Network, 0, len(all))
	for _, n := range all {
		out = append(out, network(n))
	}
	return out, nil
}

func (h *handler) network(r *http.Request) (any, error) {
	name := model.NetworkName(r.PathValue("name"))
	snap := h.State.Snapshot()
	n, _ := snap.Network(name)
	if n == nil {
		return nil, refuse(http.StatusNotFound, "network %q: no such network; 'fairlead network ls' lists them", name)
	}
	out := network(n)
	endpoints, _ := snap.NetworkEndpoints(name)
	for _, e := range endpoints {
		out.Endpoints = append(out.Endpoints, workload.Endpoint(*e))
	}
	return out, nil
}

func (h *handler) createNetwork(r *http.Request) (any, error) {
	in, err := body[api.Network](r)
	if err != nil {
		return nil, err
	}
	n := model.Network{
		Name: model.NetworkName(in.Name), Driver: in.Driver, Transport: model.Transport(in.Transport), MTU: in.MTU, Internal: in.Internal, Labels: in.Labels,
	}
	for _, s := range in.Subnets {
		n.Pools = append(n.Pools, model.Pool{Prefix: s.Prefix, Gateway: s.Gateway, Reserved: s.Reserved})
	}
	made, err := h.Networks.CreateNetwork(r.Context(), n)
	if err != nil {
		return nil, err
	}
	return network(&made), nil
}

func (h *handler) removeNetwork(r *http.Request) (any, error) {
	return nil, h.Networks.RemoveNetwork(r.Context(), model.NetworkName(r.PathValue("name")))
}

func network(n *model.Network) api.Network {
	out := api.Network{
		Name: string(n.Name), Driver: n.Driver, Node: string(n.Node), Transport: string(n.Transport), VNI: n.VNI, MTU: n.MTU, Internal: n.Internal, Labels: n.Labels,
		Subnets: []api.Subnet{},
	}
	for _, p := range n.Pools {
		out.Subnets = append(out.Subnets, api.Subnet{Prefix: p.Prefix, Gateway: p.Gateway, Reserved: p.Reserved})
	}
	return out
}

// services lists what people have registered: the servers' own service is there
// for clients of Consul, and is shown to those who ask for it by name.
func (h *handler) services(*http.Request) (any, error) {
	all, _ := h.State.Snapshot().Services()
	out := make([]api.ServiceInfo, 0, len(all))
	for _, s := range all {
		if s.Name != model.ConsulService {
			out = append(out, service(s))
		}
	}
	return out, nil
}

func (h *handler) service(r *http.Request) (any, error) {
	name := r.PathValue("name")
	s, _ := h.State.Snapshot().Service(model.ServiceName(name))
	if len(s.Members) == 0 {
		return nil, refuse(http.StatusNotFound, "service %q: no such service; 'fairlead service ls' lists them", name)
	}
	return service(s), nil
}

func service(s *state.Service) api.ServiceInfo {
	out := api.ServiceInfo{Name: string(s.Name), Tags: []string{}, Instances: []api.InstanceInfo{}}
	if s.VIP != nil {
		out.VIP4, out.VIP6 = s.VIP.V4, s.VIP.V6
	}
	seen := map[string]bool{}
	for _, m := range s.Members {
		i := api.InstanceInfo{
			ID: string(m.Instance.ID), Node: string(m.Instance.Node), Address: m.Addr(), Port: m.Instance.Port,
			Status: string(m.Status()), Tags: append([]string{}, m.Instance.Tags...), Meta: m.Instance.Meta,
			Endpoint: string(m.Instance.Endpoint),
		}
		for _, c := range m.Checks {
			i.Checks = append(i.Checks, api.CheckInfo{ID: string(c.ID), Name: c.Name, Status: string(c.Status), Output: c.Output})
		}
		for _, t := range i.Tags {
			if !seen[t] {
				seen[t] = true
				out.Tags = append(out.Tags, t)
			}
		}
		out.Instances = append(out.Instances, i)
	}
	return out
}
