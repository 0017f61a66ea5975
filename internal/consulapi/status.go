package consulapi

func (h *handler) statusLeader(c *call) (answer, error) {
	if err := h.checkDatacenter(c); err != nil {
		return answer{}, err
	}
	return value(h.cluster.Leader()), nil
}

func (h *handler) statusPeers(c *call) (answer, error) {
	if err := h.checkDatacenter(c); err != nil {
		return answer{}, err
	}
	return value(list(h.cluster.Peers())), nil
}
