package transfer

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"

	"golang.org/x/sync/errgroup"
)

// node is a node as the catalogue shows it, and as catalog/register takes it.
type node struct {
	ID              string            `json:",omitempty"`
	Node            string            `json:",omitempty"`
	Address         string            `json:",omitempty"`
	TaggedAddresses map[string]string `json:",omitempty"`
	Meta            map[string]string `json:"-"`
}

// service is an instance in catalog/node. Proxy and the like are left out: they
// belong to kinds that are not copied.
type service struct {
	Kind              string               `json:",omitempty"`
	ID                string               `json:",omitempty"`
	Service           string               `json:",omitempty"`
	Tags              []string             `json:",omitempty"`
	Address           string               `json:",omitempty"`
	TaggedAddresses   map[string]addressed `json:",omitempty"`
	Meta              map[string]string    `json:",omitempty"`
	Port              int                  `json:",omitempty"`
	Weights           weights
	EnableTagOverride bool `json:",omitempty"`
}

type weights struct{ Passing, Warning int }

type addressed struct {
	Address string
	Port    int
}

// check is a check of health/node. Definition is what a checker of external nodes
// goes by, kept as it is.
type check struct {
	Node       string `json:",omitempty"`
	CheckID    string
	Name       string
	Status     string          `json:",omitempty"`
	Notes      string          `json:",omitempty"`
	Output     string          `json:",omitempty"`
	ServiceID  string          `json:",omitempty"`
	Definition json.RawMessage `json:",omitempty"`
}

// serfHealth is the check that an agent's node has and an external one has not.
const serfHealth = "serfHealth"

// place is one node with what is on it.
type place struct {
	node     node
	services map[string]service // by id
	checks   map[string]check   // by id
}

// catalog copies external nodes with their services and checks: what somebody
// registered with catalog/register. What agents have registered moves with them:
// copied, it would be there twice, and nobody would run its checks.
func (im *importing) catalog(ctx context.Context) error {
	im.begin(Nodes)
	im.begin(Services)
	var all []struct {
		node
		Meta map[string]string
	}
	if _, err := im.from.get(ctx, "/v1/catalog/nodes", nil, &all); err != nil {
		return fmt.Errorf("list the nodes in Consul: %w", err)
	}
	ours, err := im.from.agents(ctx)
	if err != nil {
		return fmt.Errorf("list the agents in Consul: %w", err)
	}
	theirs, err := im.to.agents(ctx)
	if err != nil {
		return fmt.Errorf("list the agents: %w", err)
	}
	g, group := errgroup.WithContext(ctx)
	g.SetLimit(workers)
	moved := 0
	for _, n := range all {
		n.node.Meta = n.Meta
		switch {
		case ours[n.Node]:
			moved++
		case theirs[n.Node]:
			im.done(Nodes, conflict, fmt.Sprintf("node %q: an agent has this name here", n.Node))
		default:
			g.Go(func() error {
				if group.Err() != nil {
					return nil
				}
				return im.place(ctx, n.node)
			})
		}
	}
	if moved > 0 {
		im.remark("the services of %d nodes with agents were not copied: they move with the agent's configuration ('fairlead config from-consul') or register themselves", moved)
	}
	return g.Wait()
}

// agents names the nodes that have an agent.
func (e *end) agents(ctx context.Context) (map[string]bool, error) {
	var all []check
	// Who is too old for the filter answers with more, which does no harm.
	q := url.Values{"filter": {`CheckID == "` + serfHealth + `"`}}
	if _, err := e.get(ctx, "/v1/health/state/any", q, &all); err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for _, c := range all {
		if c.CheckID == serfHealth {
			names[c.Node] = true
		}
	}
	return names, nil
}

// place copies one node.
func (im *importing) place(ctx context.Context, n node) error {
	source, err := im.from.place(ctx, n.Node)
	if err != nil || source == nil {
		return err
	}
	there, err := im.to.place(ctx, n.Node)
	if err != nil {
		return err
	}
	if there == nil {
		there = &place{}
	}
	nodeChecks := source.checksOf("")
	same := there.node.Node != "" && sameNode(source.node, there.node) && sameChecks(nodeChecks, there.checks)
	o, err := im.register(ctx, Nodes, fmt.Sprintf("node %q", n.Node), there.node.Node != "", same, registration{
		node: source.node, NodeMeta: source.node.Meta, Checks: nodeChecks,
	})
	if err != nil || o == conflict {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(source.services)) {
		s := source.services[id]
		what := fmt.Sprintf("service %q of node %q", id, n.Node)
		if s.Kind != "" {
			im.remark("%s: its kind is %s, which has no counterpart", what, s.Kind)
			continue
		}
		checks := source.checksOf(id)
		old, found := there.services[id]
		same := found && sameService(s, old) && sameChecks(checks, there.checks)
		// The node is there by now; only what registers it says more of it.
		body := registration{node: node{Node: n.Node, Address: source.node.Address}, SkipNodeUpdate: true, Service: &s, Checks: checks}
		if _, err := im.register(ctx, Services, what, found, same, body); err != nil {
			return err
		}
	}
	return nil
}

// registration is a body of catalog/register.
type registration struct {
	node
	NodeMeta       map[string]string `json:",omitempty"`
	SkipNodeUpdate bool              `json:",omitempty"`
	Service        *service          `json:",omitempty"`
	Checks         []check           `json:",omitempty"`
}

// register writes one registration if that is needed and allowed.
func (im *importing) register(ctx context.Context, kind, what string, found, same bool, r registration) (outcome, error) {
	o := created
	switch {
	case same:
		o = unchanged
	case found && !im.cfg.Overwrite:
		o = conflict
	case found:
		o = replaced
	}
	if (o == created || o == replaced) && !im.cfg.DryRun {
		if err := im.write(ctx, what, http.MethodPut, "/v1/catalog/register", r); err != nil {
			return o, err
		}
	}
	im.done(kind, o, what)
	return o, nil
}

// write makes a change at the target that may be repeated without harm.
func (im *importing) write(ctx context.Context, what, method, path string, body any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("write %s: %w", what, err)
	}
	if _, err := im.to.do(ctx, method, path, nil, b); err != nil {
		if again(err) {
			im.uncertain(what)
		}
		return fmt.Errorf("write %s: %w", what, err)
	}
	return nil
}

// place reads one node, nil if there is none of that name.
func (e *end) place(ctx context.Context, name string) (*place, error) {
	var answer *struct {
		Node struct {
			node
			Meta map[string]string
		}
		Services map[string]service
	}
	escaped := url.PathEscape(name)
	if _, err := e.get(ctx, "/v1/catalog/node/"+escaped, nil, &answer); err != nil {
		return nil, fmt.Errorf("read node %q: %w", name, err)
	}
	if answer == nil || answer.Node.Node == "" {
		return nil, nil
	}
	var checks []check
	if _, err := e.get(ctx, "/v1/health/node/"+escaped, nil, &checks); err != nil {
		return nil, fmt.Errorf("read the checks of node %q: %w", name, err)
	}
	p := &place{node: answer.Node.node, services: answer.Services, checks: map[string]check{}}
	p.node.Meta = answer.Node.Meta
	for id, s := range p.services {
		if s.Weights == (weights{}) { // registered before there were weights
			s.Weights = weights{1, 1}
			p.services[id] = s
		}
	}
	for _, c := range checks {
		c.Node = ""
		p.checks[c.CheckID] = c
	}
	return p, nil
}

// checksOf are the checks of a service, or with an empty id the node's, sorted.
func (p *place) checksOf(service string) []check {
	var all []check
	for _, id := range slices.Sorted(maps.Keys(p.checks)) {
		if c := p.checks[id]; c.ServiceID == service {
			all = append(all, c)
		}
	}
	return all
}

func sameNode(a, b node) bool {
	return a.Address == b.Address && within(a.TaggedAddresses, b.TaggedAddresses) && maps.Equal(a.Meta, b.Meta)
}

func sameService(a, b service) bool {
	return a.Service == b.Service && slices.Equal(a.Tags, b.Tags) && a.Address == b.Address && a.Port == b.Port &&
		maps.Equal(a.Meta, b.Meta) && a.Weights == b.Weights && a.EnableTagOverride == b.EnableTagOverride &&
		within(a.TaggedAddresses, b.TaggedAddresses)
}

// sameChecks reports whether every check of a is in b. In which state it is does
// not matter: that of the target is newer.
func sameChecks(a []check, b map[string]check) bool {
	return !slices.ContainsFunc(a, func(c check) bool {
		d, found := b[c.CheckID]
		return !found || c.Name != d.Name || c.Notes != d.Notes || c.ServiceID != d.ServiceID
	})
}

// within reports whether b has all of a; a catalogue adds addresses of its own.
func within[V comparable](a, b map[string]V) bool {
	for k, v := range a {
		if w, found := b[k]; !found || v != w {
			return false
		}
	}
	return true
}
