package promsd

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// prefix begins every label. What follows is what follows __meta_consul_ in
// Prometheus' own discovery of Consul, so that relabelling rules need only this
// word changed; site is our word for dc.
const prefix = "__meta_fairlead_"

// labels says all that the catalogue knows of an instance.
func (h *handler) labels(m *state.Member) map[string]string {
	n, i := m.Node, m.Instance
	site := cmp.Or(n.Datacenter, h.cfg.Site)
	l := map[string]string{
		prefix + "address":         n.Address,
		prefix + "dc":              site,
		prefix + "health":          health(m),
		prefix + "node":            string(n.Name),
		prefix + "service":         string(i.Service),
		prefix + "service_address": i.Address,
		prefix + "service_id":      string(i.ID),
		prefix + "service_port":    strconv.Itoa(i.Port),
		prefix + "site":            site,
		// Commas around each, so that a rule can look for ",tag,".
		prefix + "tags": "," + strings.Join(i.Tags, ",") + ",",
	}
	add := func(kind string, pairs map[string]string) {
		for _, k := range slices.Sorted(maps.Keys(pairs)) {
			l[prefix+kind+"_"+labelName(k)] = pairs[k]
		}
	}
	add("metadata", n.Meta)
	add("service_metadata", i.Meta)
	add("tagged_address", n.TaggedAddresses)
	return l
}

// labelName makes of any text what a label's name may have.
func labelName(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '_' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' {
			return r
		}
		return '_'
	}, s)
}

// The checks of maintenance mode.
const (
	nodeMaintenance    = "_node_maintenance"
	serviceMaintenance = "_service_maintenance:"
)

// health is the worst state of an instance's checks, or maintenance, which is
// worse than all of them.
func health(m *state.Member) string {
	for _, c := range m.Checks {
		if c.ID == nodeMaintenance || strings.HasPrefix(string(c.ID), serviceMaintenance) {
			return "maintenance"
		}
	}
	if s := m.Status(); s.Valid() {
		return string(s)
	}
	return string(model.Critical)
}
