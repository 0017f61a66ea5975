// Package prepared finds and runs prepared queries: stored questions for a
// service, asked by name or id over HTTP and DNS.
//
// A Runner holds only a memo of the snapshot that it was asked with last, and
// may be used by many goroutines. What it answers is a pure function of
// (snapshot, question), but for the order of the answer.
package prepared

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync/atomic"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// Errors of this package; the texts are Consul's.
var (
	// ErrNotFound: no query has the id or name, and no template matches it.
	ErrNotFound = errors.New("Query not found") //nolint:staticcheck // clients match on the text
	// ErrMissing: neither id nor name was given.
	ErrMissing = errors.New("Missing Query ID") //nolint:staticcheck // as above
	// ErrTemplateByID: a template was asked for by its id.
	ErrTemplateByID = errors.New("prepared query templates can only be resolved up by name, not by ID")
)

// The names that stand for a node in Near.
const (
	NearAgent = "_agent" // the agent that was asked
	NearIP    = "_ip"    // the node that has the asker's address
)

// Config is what a Runner has to know.
type Config struct {
	// Node is the agent that is asked.
	Node model.NodeName
	// Datacenter is this site.
	Datacenter string
	// Resolve says what the token stored with a query may do. Nil means that ACLs
	// are off.
	Resolve func(secret string) (acl.Authorizer, error)
	// Shuffle permutes n things; nil means rand.Shuffle.
	Shuffle func(n int, swap func(i, j int))
}

// Runner runs queries.
type Runner struct {
	cfg  Config
	memo atomic.Pointer[index]
}

// New returns a runner.
func New(cfg Config) *Runner {
	if cfg.Shuffle == nil {
		cfg.Shuffle = rand.Shuffle
	}
	return &Runner{cfg: cfg}
}

// Ask is one question.
type Ask struct {
	// Name is a query's id or name, or what a template is to be filled in with.
	Name string
	// Near puts a node's instances first; empty means what the query says.
	Near string
	// IP is the asker's address, for NearIP; it may be the zero Addr.
	IP netip.Addr
	// Limit is the most instances wanted; 0 means all.
	Limit int
	// Connect asks for the service's proxies, whatever the query says.
	Connect bool
	// Authorizer is the asker's; nil allows everything. A token stored with the
	// query counts in its place.
	Authorizer acl.Authorizer
}

// Result is what a question found.
type Result struct {
	// Query is the one that was run, filled in if it is a template.
	Query *model.PreparedQuery
	// Members are the instances in the order in which they are to be tried.
	Members    []*state.Member
	Datacenter string // where they are
	// Failovers counts the other places that were tried.
	Failovers int
	// Filtered: ACLs hid some.
	Filtered bool
}

// Resolve returns the query that an id or a name means, filled in if it is a
// template. The errors are those of this package, and what is wrong with a
// template for this name.
func (r *Runner) Resolve(snap *state.Snapshot, name string) (*model.PreparedQuery, error) {
	if name == "" {
		return nil, ErrMissing
	}
	if q, _ := snap.Query(strings.ToLower(name)); q != nil {
		if q.Tmpl.Type != "" {
			return nil, ErrTemplateByID
		}
		return q, nil
	}
	e := r.index(snap).find(name)
	switch {
	case e == nil:
		return nil, ErrNotFound
	case e.err != nil:
		return nil, e.err
	case e.tmpl != nil:
		return e.tmpl.render(name), nil
	}
	return e.query, nil
}

// Run resolves a name and finds the instances that its query asks for. It fails
// as Resolve does, and with ErrToken if the query's own token means nothing.
func (r *Runner) Run(snap *state.Snapshot, ask Ask) (*Result, error) {
	q, err := r.Resolve(snap, ask.Name)
	if err != nil {
		return nil, err
	}
	may := ask.Authorizer
	if q.Token != "" && r.cfg.Resolve != nil {
		if may, err = r.cfg.Resolve(q.Token); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrToken, err)
		}
	}
	if may == nil {
		may = acl.AllowAll()
	}
	res := &Result{Query: q, Datacenter: r.cfg.Datacenter, Members: []*state.Member{}}
	for _, m := range candidates(snap, model.ServiceName(q.Service.Service), q.Service.Connect || ask.Connect) {
		if !wanted(&q.Service, m) {
			continue
		}
		if !Visible(may, m) {
			res.Filtered = true
			continue
		}
		res.Members = append(res.Members, m)
	}
	list := res.Members
	r.cfg.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	if node := r.near(snap, q, ask); node != "" {
		moveUp(list, node)
	}
	if ask.Limit > 0 && len(list) > ask.Limit {
		res.Members = list[:ask.Limit]
	}
	if len(list) == 0 {
		res.Failovers = tries(&q.Service.Failover)
	}
	return res, nil
}

// ErrToken marks the failure to resolve a query's own token.
var ErrToken = errors.New("the query's token")

// tries is how many other places a query would be handed to. Other sites are not
// known here yet, and Consul passes over a datacenter that it does not know
// without counting it. A peer is a name that anybody may choose, so it is tried,
// and gives nothing.
func tries(f *model.QueryFailover) int {
	n := 0
	for _, t := range f.Targets {
		if t.Peer != "" {
			n++
		}
	}
	return n
}

// near is the node whose instances come first, "" for none.
func (r *Runner) near(snap *state.Snapshot, q *model.PreparedQuery, ask Ask) model.NodeName {
	name := ask.Near
	if name == "" {
		name = q.Service.Near
	}
	switch name {
	case NearAgent:
		return r.cfg.Node
	case NearIP:
		if !ask.IP.IsValid() {
			return ""
		}
		nodes, _ := snap.Nodes()
		for _, n := range nodes {
			if a, err := netip.ParseAddr(n.Address); err == nil && a.Unmap() == ask.IP.Unmap() {
				return n.Name
			}
		}
		return ""
	}
	return model.NodeName(name)
}

// moveUp puts the instances of a node first and keeps the order otherwise: there
// are no coordinates to sort the others by.
func moveUp(list []*state.Member, node model.NodeName) {
	at := 0
	for i, m := range list {
		if strings.EqualFold(string(m.Instance.Node), string(node)) {
			copy(list[at+1:i+1], list[at:i])
			list[at] = m
			at++
		}
	}
}

// Visible reports whether somebody may see an instance: its service and its node.
func Visible(may acl.Authorizer, m *state.Member) bool {
	return may.Allow(acl.Service, string(m.Instance.Service), acl.Read) && may.Allow(acl.Node, string(m.Instance.Node), acl.Read)
}
