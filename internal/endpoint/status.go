package endpoint

import (
	"fmt"
	"slices"

	"github.com/fairlead-net/fairlead/internal/datapath"
	"github.com/fairlead-net/fairlead/internal/model"
)

// Problems lists what does not stand as the catalogue wants it, sorted.
func (s *Set) Problems() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for what, why := range s.problems {
		all = append(all, what+": "+why)
	}
	slices.Sort(all)
	return all
}

func problemOf(e *model.Endpoint) string {
	return fmt.Sprintf("workload %s in network %s", e.Workload, e.Network)
}

// problemOfRules is what is wrong while the packet filter's rules are not as the
// catalogue wants them: published ports and the way out depend on them.
const problemOfRules = "packet filter"

func problemOfNetwork(n model.NetworkName) string { return "network " + string(n) }

func (s *Set) problem(what string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		delete(s.problems, what)
		return
	}
	s.problems[what] = err.Error()
}

// Scopes lists the scopes of this node's workloads, sorted by number, and the
// host's own; the channel closes when the list may have changed.
func (s *Set) Scopes() ([]Scope, <-chan struct{}) {
	all, changed := s.scopes.inUse()
	host := Scope{ID: datapath.HostScope, Host: true}
	s.mu.Lock()
	for name := range s.networks {
		host.Networks = append(host.Networks, name)
	}
	s.mu.Unlock()
	slices.Sort(host.Networks)
	return append([]Scope{host}, all...), changed
}

// Namespaces lists the paths of the attached workloads' network namespaces.
func (s *Set) Namespaces() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for _, p := range s.attached {
		all = append(all, p.endpoint.NetNS)
	}
	slices.Sort(all)
	return slices.Compact(all)
}
