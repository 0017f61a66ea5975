package local

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/fairlead-net/fairlead/internal/model"
)

// targets answers for what alias checks stand for: this node's own services from
// memory, where they are newest, and other nodes' from the catalogue.
type targets struct{ a *Agent }

// Target implements health.Targets.
func (t targets) Target(alias model.CheckSpec) (status model.Status, output string, changed [2]<-chan struct{}) {
	a := t.a
	if alias.AliasNode == "" || strings.EqualFold(string(alias.AliasNode), string(a.me)) {
		checks, found, news := a.aliased(alias)
		status, output = worst(alias, a.me, checks, found)
		return status, output, news
	}
	snap := a.st.Snapshot()
	select {
	case <-a.st.Synced():
	default:
		return "", "", [2]<-chan struct{}{a.st.Synced()}
	}
	node, mark := snap.Node(alias.AliasNode)
	found := node != nil
	if alias.AliasService != "" {
		instance, at := snap.Instance(alias.AliasNode, alias.AliasService)
		found, mark = instance != nil, at
	}
	checks, checksMark := snap.NodeChecks(alias.AliasNode)
	status, output = worst(alias, alias.AliasNode, checks, found)
	return status, output, [2]<-chan struct{}{checksMark.Changed, mark.Changed}
}

// aliased returns the local checks that an alias stands for, itself excepted,
// whether its service is there, and what is closed when that may change.
func (a *Agent) aliased(alias model.CheckSpec) (checks []*model.Check, found bool, news [2]<-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	found = alias.AliasService == nodeEntry
	ids := []model.ServiceID{nodeEntry, alias.AliasService}
	for n, id := range slices.Compact(ids) {
		news[n] = a.follow(id)
		e := a.entries[id]
		if e == nil {
			continue
		}
		found = found || id == alias.AliasService
		for _, spec := range e.reg.Checks {
			if spec.ID != alias.ID { // or it could never recover
				c := a.record(e, a.checks[spec.ID])
				checks = append(checks, &c)
			}
		}
	}
	slices.SortFunc(checks, func(x, y *model.Check) int { return cmp.Compare(x.ID, y.ID) })
	return checks, found, news
}

// worst is Consul's rule: the worst of the service's checks and those of its
// whole node; a service without checks passes.
func worst(alias model.CheckSpec, node model.NodeName, checks []*model.Check, found bool) (model.Status, string) {
	if !found {
		if alias.AliasService == "" {
			return model.Critical, fmt.Sprintf("Node %s could not be found", node)
		}
		return model.Critical, fmt.Sprintf("Service %s could not be found on node %s", alias.AliasService, node)
	}
	status, output := model.Passing, "No checks found."
	for _, c := range checks {
		if c.ServiceID != "" && c.ServiceID != alias.AliasService {
			continue
		}
		switch {
		case c.Status == model.Critical:
			return model.Critical, failing(c)
		case c.Status == model.Warning:
			status, output = model.Warning, failing(c)
		case status == model.Passing:
			output = "All checks passing."
		}
	}
	return status, output
}

func failing(c *model.Check) string {
	return fmt.Sprintf("Aliased check %q failing: %s", c.Name, c.Output)
}
