package consulapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/prepared"
	"github.com/fairlead-net/fairlead/internal/state"
)

// Queries keeps prepared queries. What is wrong with one is said in Consul's
// words, by an error that is model.ErrInvalid.
type Queries interface {
	// PutQuery writes a query under its ID; one with a CreateIndex must exist.
	PutQuery(ctx context.Context, q model.PreparedQuery) (model.Index, error)
	DeleteQuery(ctx context.Context, id string) (model.Index, error)
}

var queryRoutes = []route{
	{path: "/v1/query", methods: map[string]endpoint{http.MethodGet: (*handler).queryList, http.MethodPost: (*handler).queryCreate}},
	{path: "/v1/query/", methods: map[string]endpoint{
		http.MethodGet:    (*handler).queryOne,
		http.MethodPut:    (*handler).queryUpdate,
		http.MethodDelete: (*handler).queryDelete,
	}},
}

// queryShape is a prepared query as clients write and read it. Lists and maps
// that were not given are null, as Consul has them.
type queryShape struct {
	ID          string
	Name        string
	Session     string
	Token       string
	Template    queryTemplateShape
	Service     queryServiceShape
	DNS         queryDNSShape
	CreateIndex uint64
	ModifyIndex uint64
}

type queryTemplateShape struct {
	Type            string
	Regexp          string
	RemoveEmptyTags bool
}

type queryServiceShape struct {
	Service        string
	SamenessGroup  string `json:",omitempty"`
	Namespace      string `json:",omitempty"`
	Partition      string `json:",omitempty"`
	Peer           string `json:",omitempty"`
	Failover       queryFailoverShape
	OnlyPassing    bool
	IgnoreCheckIDs []model.CheckID
	Near           string
	Tags           []string
	NodeMeta       map[string]string
	ServiceMeta    map[string]string
	Connect        bool
}

type queryFailoverShape struct {
	NearestN    int
	Datacenters []string
	Targets     []queryTargetShape
}

type queryTargetShape struct {
	Peer       string
	Datacenter string
	Partition  string `json:",omitempty"`
	Namespace  string `json:",omitempty"`
}

type queryDNSShape struct{ TTL string }

// queryResultShape is what a query found, with the part of the headers that
// Consul repeats in the body.
type queryResultShape struct {
	Service               string
	Nodes                 []entryShape
	DNS                   queryDNSShape
	Datacenter            string
	PeerName              string
	Failovers             int
	Index                 uint64
	LastContact           int64
	KnownLeader           bool
	ConsistencyLevel      string
	NotModified           bool
	Backend               int
	ResultsFilteredByACLs bool
}

// UnmarshalJSON implements json.Unmarshaler. Unknown fields are errors, and names
// are in CamelCase only: Consul has no other spelling here.
func (q *queryShape) UnmarshalJSON(b []byte) error {
	type plain queryShape
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	return dec.Decode((*plain)(q))
}

// query is the record that a client's words stand for.
func (q *queryShape) query() (model.PreparedQuery, error) {
	s := &q.Service
	if s.SamenessGroup != "" {
		return model.PreparedQuery{}, badRequest("sameness groups are a Consul Enterprise feature")
	}
	tenancy := []string{s.Namespace, s.Partition}
	targets := make([]model.QueryTarget, len(s.Failover.Targets))
	for i, t := range s.Failover.Targets {
		tenancy = append(tenancy, t.Namespace, t.Partition)
		targets[i] = model.QueryTarget{Datacenter: t.Datacenter, Peer: t.Peer}
	}
	for _, t := range tenancy {
		if t != "" && !strings.EqualFold(t, "default") {
			return model.PreparedQuery{}, badRequest("Request decode failed: namespace or partition %q - Namespaces and Partitions are a Consul Enterprise feature", t)
		}
	}
	if len(targets) == 0 {
		targets = nil
	}
	return model.PreparedQuery{
		ID: q.ID, Name: q.Name, Session: q.Session, Token: q.Token,
		Service: model.QueryService{
			Service: s.Service, OnlyPassing: s.OnlyPassing, IgnoreCheckIDs: s.IgnoreCheckIDs, Near: s.Near,
			Tags: s.Tags, NodeMeta: s.NodeMeta, ServiceMeta: s.ServiceMeta, Connect: s.Connect,
			Failover: model.QueryFailover{NearestN: s.Failover.NearestN, Datacenters: s.Failover.Datacenters, Targets: targets},
		},
		DNS:  model.QueryDNS{TTL: q.DNS.TTL},
		Tmpl: model.QueryTemplate{Type: q.Template.Type, Regexp: q.Template.Regexp, RemoveEmptyTags: q.Template.RemoveEmptyTags},
	}, nil
}

// shapeQuery shows a query. Its token shows only to whoever manages ACLs.
func shapeQuery(q *model.PreparedQuery, manager bool) queryShape {
	s := &q.Service
	out := queryShape{
		ID: q.ID, Name: q.Name, Session: q.Session, Token: q.Token,
		Template: queryTemplateShape(q.Tmpl),
		Service: queryServiceShape{
			Service: s.Service, OnlyPassing: s.OnlyPassing, IgnoreCheckIDs: s.IgnoreCheckIDs, Near: s.Near,
			Tags: s.Tags, NodeMeta: s.NodeMeta, ServiceMeta: s.ServiceMeta, Connect: s.Connect,
			Failover: queryFailoverShape{NearestN: s.Failover.NearestN, Datacenters: s.Failover.Datacenters},
		},
		DNS:         queryDNSShape(q.DNS),
		CreateIndex: uint64(q.CreateIndex),
		ModifyIndex: uint64(q.ModifyIndex),
	}
	for _, t := range s.Failover.Targets {
		out.Service.Failover.Targets = append(out.Service.Failover.Targets, queryTargetShape{Peer: t.Peer, Datacenter: t.Datacenter})
	}
	if out.Token != "" && !manager {
		out.Token = prepared.HiddenToken
	}
	return out
}

// ruled reports whether rules speak of a query. One that is neither named nor a
// template is whoever's knows its id.
func ruled(q *model.PreparedQuery) bool { return q.Name != "" || q.Tmpl.Type != "" }

// mayManage reports whether the request's token manages ACLs: it sees everything.
func (c *call) mayManage() (bool, error) {
	a, err := c.authorizer()
	if err != nil {
		return false, err
	}
	return a.Allow(acl.ACL, "", acl.Write), nil
}

func (h *handler) queryList(c *call) (answer, error) {
	v, err := h.query(c, func(s *state.Snapshot) (any, []state.Mark, error) {
		manager, err := c.mayManage()
		if err != nil {
			return nil, nil, err
		}
		all, mark := s.Queries()
		out := []queryShape{}
		for _, q := range all {
			switch {
			case manager || ruled(q) && c.auth.Allow(acl.Query, q.Name, acl.Read):
				out = append(out, shapeQuery(q, manager))
			case ruled(q):
				c.filtered()
			}
		}
		return out, marks(mark), nil
	})
	return value(v), err
}

// queryOne answers what is below a query's name: itself, what it finds, and what
// it is for a name if it is a template.
func (h *handler) queryOne(c *call) (answer, error) {
	if id, ok := strings.CutSuffix(c.rest, "/execute"); ok {
		return h.queryExecute(c, id)
	}
	if id, ok := strings.CutSuffix(c.rest, "/explain"); ok {
		return h.queryExplain(c, id)
	}
	v, err := h.query(c, func(s *state.Snapshot) (any, []state.Mark, error) {
		manager, err := c.mayManage()
		if err != nil {
			return nil, nil, err
		}
		q, mark := s.Query(strings.ToLower(c.rest))
		if q == nil {
			return nil, nil, queryNotFound()
		}
		if !manager && ruled(q) && !c.auth.Allow(acl.Query, q.Name, acl.Read) {
			return nil, nil, fail(http.StatusForbidden, "Permission denied")
		}
		return []queryShape{shapeQuery(q, manager)}, marks(mark), nil
	})
	return value(v), err
}

func queryNotFound() error { return fail(http.StatusNotFound, "%v", prepared.ErrNotFound) }

func (h *handler) queryCreate(c *call) (answer, error) {
	q, err := h.queryBody(c)
	if err != nil {
		return answer{}, err
	}
	if q.ID != "" {
		return answer{}, fail(http.StatusInternalServerError, "ID must be empty when creating a new prepared query")
	}
	if err := mayWriteQuery(c, &q); err != nil {
		return answer{}, err
	}
	q.ID = uuid.NewString()
	if err := queryFailure(h.Queries.PutQuery(c.r.Context(), q)); err != nil {
		return answer{}, err
	}
	return value(struct{ ID string }{q.ID}), nil
}

func (h *handler) queryUpdate(c *call) (answer, error) {
	if err := notBelow(c); err != nil {
		return answer{}, err
	}
	q, err := h.queryBody(c)
	if err != nil {
		return answer{}, err
	}
	if err := mayWriteQuery(c, &q); err != nil {
		return answer{}, err
	}
	cur, err := h.queryToChange(c)
	if err != nil {
		return answer{}, err
	}
	q.ID, q.CreateIndex = cur.ID, cur.CreateIndex
	return empty(), queryFailure(h.Queries.PutQuery(c.r.Context(), q))
}

func (h *handler) queryDelete(c *call) (answer, error) {
	if err := notBelow(c); err != nil {
		return answer{}, err
	}
	if err := h.queriesHere(c); err != nil {
		return answer{}, err
	}
	cur, err := h.queryToChange(c)
	if err != nil {
		return answer{}, err
	}
	return empty(), queryFailure(h.Queries.DeleteQuery(c.r.Context(), cur.ID))
}

// notBelow refuses to change what execute and explain answer.
func notBelow(c *call) error {
	if strings.HasSuffix(c.rest, "/execute") || strings.HasSuffix(c.rest, "/explain") {
		c.h.Set("Allow", http.MethodGet)
		return fail(http.StatusMethodNotAllowed, "method %s not allowed", c.r.Method)
	}
	return nil
}

func (h *handler) queriesHere(c *call) error {
	if h.Queries == nil {
		return fail(http.StatusNotImplemented, "Prepared queries are not available on this agent")
	}
	return h.checkDatacenter(c)
}

// queryBody reads a query; without a body it is an empty one.
func (h *handler) queryBody(c *call) (model.PreparedQuery, error) {
	if err := h.queriesHere(c); err != nil {
		return model.PreparedQuery{}, err
	}
	var body queryShape
	if c.r.ContentLength != 0 || c.r.Method == http.MethodPost {
		if err := h.decodeBody(c, &body); err != nil {
			return model.PreparedQuery{}, err
		}
	}
	return body.query()
}

// mayWriteQuery asks for the right to a query's name. That nobody is asked about
// a query without one is Consul's rule; its session has to exist.
func mayWriteQuery(c *call, q *model.PreparedQuery) error {
	if !ruled(q) {
		_, err := c.authorizer()
		return err
	}
	return c.require(acl.Query, q.Name, acl.Write)
}

// queryToChange is the query that the path names and the token may change.
func (h *handler) queryToChange(c *call) (*model.PreparedQuery, error) {
	cur, _ := h.Reader.Snapshot().Query(strings.ToLower(c.rest))
	if cur == nil {
		if _, err := c.authorizer(); err != nil {
			return nil, err
		}
		return nil, fail(http.StatusInternalServerError, "Cannot modify non-existent prepared query: '%s'", c.rest)
	}
	return cur, mayWriteQuery(c, cur)
}

// queryFailure turns what is wrong with a query into Consul's status for it.
func queryFailure(_ model.Index, err error) error {
	if errors.Is(err, model.ErrInvalid) {
		return fail(http.StatusInternalServerError, "%v", err)
	}
	return err
}

func (h *handler) queryExecute(c *call, id string) (answer, error) {
	o, err := h.queryOptions(c)
	if err != nil {
		return answer{}, err
	}
	ask := prepared.Ask{Name: id, Near: c.params.Get("near"), IP: askerAddr(c.r)}
	if s := c.params.Get("limit"); s != "" {
		if ask.Limit, err = strconv.Atoi(s); err != nil {
			return answer{}, fail(http.StatusInternalServerError, "Bad limit: %v", err)
		}
	}
	if s := c.params.Get("connect"); s != "" {
		if ask.Connect, err = strconv.ParseBool(s); err != nil {
			return answer{}, fail(http.StatusInternalServerError, "Error parsing 'connect' value: %v", err)
		}
	}
	if ask.Authorizer, err = c.authorizer(); err != nil {
		return answer{}, err
	}
	snap := h.Reader.Snapshot()
	res, err := h.prepared.Run(snap, ask)
	if err != nil {
		return answer{}, resolveFailure(err)
	}
	if res.Filtered {
		c.filtered()
	}
	h.setMeta(c.h, o, snap.Index())
	out := queryResultShape{
		Service: res.Query.Service.Service, Nodes: make([]entryShape, len(res.Members)), DNS: queryDNSShape(res.Query.DNS),
		Datacenter: res.Datacenter, Failovers: res.Failovers, KnownLeader: h.Cluster.Leader() != "",
		ConsistencyLevel: c.h.Get("X-Consul-Effective-Consistency"), ResultsFilteredByACLs: res.Filtered,
	}
	for i, m := range res.Members {
		out.Nodes[i] = shapeEntry(m, h.cfg.Node.Datacenter)
	}
	return value(out), nil
}

// queryExplain shows the query that a name resolves to, filled in.
func (h *handler) queryExplain(c *call, id string) (answer, error) {
	o, err := h.queryOptions(c)
	if err != nil {
		return answer{}, err
	}
	manager, err := c.mayManage()
	if err != nil {
		return answer{}, err
	}
	snap := h.Reader.Snapshot()
	q, err := h.prepared.Resolve(snap, id)
	if err != nil {
		return answer{}, resolveFailure(err)
	}
	if !manager && !(ruled(q) && c.auth.Allow(acl.Query, q.Name, acl.Read)) {
		return answer{}, fail(http.StatusForbidden, "Permission denied")
	}
	h.setMeta(c.h, o, snap.Index())
	return value(struct{ Query queryShape }{shapeQuery(q, manager)}), nil
}

// queryOptions are those of a read that does not wait: an index is accepted and,
// as in Consul, of no consequence.
func (h *handler) queryOptions(c *call) (options, error) {
	if err := h.checkDatacenter(c); err != nil {
		return options{}, err
	}
	o, err := parseOptions(c)
	if err != nil || !o.consistent {
		return o, err
	}
	if err := h.catchUp(c.r.Context()); err != nil {
		return o, fail(http.StatusInternalServerError, noLeader)
	}
	return o, nil
}

func resolveFailure(err error) error {
	switch {
	case errors.Is(err, prepared.ErrNotFound):
		return queryNotFound()
	case errors.Is(err, prepared.ErrToken):
		return fail(http.StatusForbidden, "%s", strings.TrimPrefix(err.Error(), prepared.ErrToken.Error()+": "))
	}
	return fail(http.StatusInternalServerError, "%v", err)
}

// askerAddr is where a request comes from: what a proxy in front says, or the
// connection's other end. It only orders answers, so a lie does no harm.
func askerAddr(r *http.Request) netip.Addr {
	first, _, _ := strings.Cut(r.Header.Get("X-Forwarded-For"), ",")
	if a, err := netip.ParseAddr(strings.TrimSpace(first)); err == nil {
		return a.Unmap()
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Addr{}
	}
	return a.Unmap()
}
