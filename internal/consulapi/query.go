package consulapi

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

const (
	defaultWait = 5 * time.Minute
	maxWait     = 10 * time.Minute
	// jitterPart: up to wait/jitterPart is added, so that clients that started
	// together do not come back together.
	jitterPart = 16
	// lagGrace is how long a query with an index from the future waits for this
	// node to get there before it is told that the index does not exist.
	lagGrace = time.Second
	// consistentTimeout bounds the search for a leader's read index.
	consistentTimeout = 7 * time.Second
)

// options are the parameters that every read takes.
type options struct {
	index      model.Index
	wait       time.Duration
	stale      bool
	consistent bool
	cached     bool
	// leader asks for what is the default, but not for an answer while there is
	// no leader; maxStale does so once the last contact is longer ago.
	leader   bool
	maxStale time.Duration
	// revalidate asks for an answer that comes from no cache.
	revalidate bool
}

// Contact is what a Cluster may know besides: for how long this node has not
// heard of a leader, 0 while it does.
type Contact interface {
	LastContact() time.Duration
}

// read is one query's look at a snapshot: what it answers, and the marks of
// everything that the answer was made from.
type read func(*state.Snapshot) (any, []state.Mark, error)

func marks(m ...state.Mark) []state.Mark { return m }

// checkTenancy refuses namespaces and partitions other than the default.
func checkTenancy(c *call) error {
	for _, t := range []struct{ param, header, what string }{
		{"ns", "X-Consul-Namespace", "Namespaces"},
		{"partition", "X-Consul-Partition", "Partitions"},
	} {
		if v := c.r.Header.Get(t.header); v != "" && !strings.EqualFold(v, "default") {
			return badRequest("Invalid header: %q - %s are a Consul Enterprise feature", t.header, t.what)
		}
		if v := c.params.Get(t.param); v != "" && !strings.EqualFold(v, "default") {
			return badRequest("Invalid query parameter: %q - %s are a Consul Enterprise feature", t.param, t.what)
		}
	}
	return nil
}

func (h *handler) checkDatacenter(c *call) error {
	dc := cmp.Or(c.params.Get("dc"), c.params.Get("datacenter"))
	if dc == "" || strings.EqualFold(dc, h.cfg.Node.Datacenter) {
		return nil
	}
	return fail(http.StatusInternalServerError, noPath)
}

func parseOptions(c *call) (options, error) {
	o := options{wait: defaultWait}
	if s := c.params.Get("wait"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			return o, badRequest("Invalid wait time")
		}
		if d > 0 {
			o.wait = min(d, maxWait)
		}
	}
	if s := c.params.Get("index"); s != "" {
		i, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			return o, badRequest("Invalid index")
		}
		o.index = model.Index(i)
	}
	if err := o.parseCacheControl(c.r.Header.Get("Cache-Control")); err != nil {
		return o, err
	}
	if err := o.parseConsistency(c); err != nil {
		return o, err
	}
	return o, nil
}

// cacheable are the paths whose answers Consul's agents cache on request.
var cacheable = []string{
	"/v1/catalog/services", "/v1/catalog/service/", "/v1/catalog/connect/", "/v1/health/service/", "/v1/health/connect/",
	"/v1/health/ingress/", "/v1/query/",
}

func (o *options) parseConsistency(c *call) error {
	o.stale, o.consistent, o.leader, o.cached = c.has("stale"), c.has("consistent"), c.has("leader"), c.has("cached")
	if s := c.params.Get("max_stale"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			return badRequest("Invalid max_stale value %q", s)
		}
		if d > 0 {
			o.stale, o.maxStale = true, d
		}
	}
	if o.stale && o.consistent {
		return badRequest("Cannot specify ?stale with ?consistent, conflicting semantics.")
	}
	if o.cached && o.consistent {
		return badRequest("Cannot specify ?cached with ?consistent, conflicting semantics.")
	}
	o.cached = o.cached && slices.ContainsFunc(cacheable, func(p string) bool { return strings.HasPrefix(c.r.URL.Path, p) })
	return nil
}

// parseCacheControl reads what the header says of the age of answers. No answer
// has one here, so that only asking for a fresh one makes a difference: it is
// said to come from no cache.
func (o *options) parseCacheControl(header string) error {
	for d := range strings.SplitSeq(strings.ToLower(header), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(d), "=")
		switch name {
		case "must-revalidate":
			o.revalidate = true
		case "max-age", "stale-if-error":
			seconds, err := strconv.Atoi(value)
			if err != nil {
				return badRequest("Invalid Cache-Control header.")
			}
			o.revalidate = o.revalidate || name == "max-age" && seconds == 0
		}
	}
	return nil
}

// query runs a read with the parameters of the request as of now, and notes what
// it was made from: run has the endpoint look again when that changes, if the
// request asks to wait.
func (h *handler) query(c *call, r read) (any, error) {
	if err := h.begin(c); err != nil {
		return nil, err
	}
	c.lookAgain()
	v, ms, err := r(h.Reader.Snapshot())
	if err != nil {
		return nil, err
	}
	c.marks = ms
	return v, nil
}

// begin reads the parameters that every read takes, once for each request, and
// waits until this node may answer it.
func (h *handler) begin(c *call) error {
	if c.begun {
		return nil
	}
	if err := h.checkDatacenter(c); err != nil {
		return err
	}
	o, err := parseOptions(c)
	if err != nil {
		return err
	}
	if o.consistent {
		if err := h.catchUp(c.r.Context()); err != nil {
			h.log.Warn("consistent read", "path", c.r.URL.Path, "error", err)
			return fail(http.StatusInternalServerError, noLeader)
		}
	}
	if h.Cluster.Leader() == "" && (o.leader || o.maxStale > 0 && h.lastContact() > o.maxStale) {
		return fail(http.StatusInternalServerError, noLeader)
	}
	o.index = h.reachable(c.r.Context(), o)
	c.options, c.begun = o, true
	return nil
}

// lastContact is how long ago this node last heard of a leader.
func (h *handler) lastContact() time.Duration {
	if k, ok := h.Cluster.(Contact); ok {
		return k.LastContact()
	}
	return 0
}

// catchUp waits until this node shows everything acknowledged anywhere before.
func (h *handler) catchUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, consistentTimeout)
	defer cancel()
	index, err := h.Cluster.ReadIndex(ctx)
	if err != nil {
		return err
	}
	_, err = h.Reader.Wait(ctx, index)
	return err
}

// nodeMeta parses ?node-meta=key:value, which may be repeated.
func nodeMeta(c *call) map[string]string {
	m := map[string]string{}
	for _, kv := range c.params["node-meta"] {
		k, v, _ := strings.Cut(kv, ":")
		m[k] = v
	}
	return m
}

// hasMeta reports whether meta has every pair of want.
func hasMeta(meta, want map[string]string) bool {
	for k, v := range want {
		if got, ok := meta[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// flag parses a boolean parameter that may stand without a value.
func flag(c *call, name string) (bool, error) {
	v := c.params.Get(name)
	if v == "" {
		return c.has(name), nil
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		return false, badRequest("Invalid value for ?%s", name)
	}
	return b, nil
}

// token is the secret that a request carries: parameter, header, bearer.
func token(c *call) string {
	if t := c.params.Get("token"); t != "" {
		return t
	}
	if t := c.r.Header.Get("X-Consul-Token"); t != "" {
		return t
	}
	if scheme, t, _ := strings.Cut(c.r.Header.Get("Authorization"), " "); strings.EqualFold(scheme, "bearer") {
		return strings.TrimSpace(t)
	}
	return ""
}
