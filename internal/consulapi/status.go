package consulapi

var statusRoutes = []route{
	get("/v1/status/leader", (*handler).statusLeader),
	get("/v1/status/peers", (*handler).statusPeers),
}

func (h *handler) statusLeader(c *call) (answer, error) {
	if err := h.checkDatacenter(c); err != nil {
		return answer{}, err
	}
	return value(h.Cluster.Leader()), nil
}

func (h *handler) statusPeers(c *call) (answer, error) {
	if err := h.checkDatacenter(c); err != nil {
		return answer{}, err
	}
	return value(list(h.Cluster.Peers())), nil
}
