package consulapi

import (
	"cmp"
	"context"
	"math/rand/v2"
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

// query runs a read with the parameters of the request, blocking if asked to,
// and sets the headers that go with its answer.
func (h *handler) query(c *call, r read) (any, error) {
	if err := h.checkDatacenter(c); err != nil {
		return nil, err
	}
	o, err := parseOptions(c)
	if err != nil {
		return nil, err
	}
	if o.consistent {
		if err := h.catchUp(c.r.Context()); err != nil {
			h.log.Warn("consistent read", "path", c.r.URL.Path, "error", err)
			return nil, fail(http.StatusInternalServerError, noLeader)
		}
	}
	if h.Cluster.Leader() == "" && (o.leader || o.maxStale > 0 && h.lastContact() > o.maxStale) {
		return nil, fail(http.StatusInternalServerError, noLeader)
	}
	v, index, err := h.block(c.r.Context(), o, func(s *state.Snapshot) (any, []state.Mark, error) {
		c.lookAgain()
		return r(s)
	})
	if err != nil {
		return nil, err
	}
	h.setMeta(c.h, o, index)
	return v, nil
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

// block reads until the answer is newer than o.index, the wait is over or the
// request ends, and returns the last answer with its index.
//
// The index is that of the last change to what was read, but not less than what
// the client asked with, as long as this node has been there: a client that
// moves between servers must not see it go backwards, since it would start over.
// An index that this node has not reached within lagGrace is from another life
// of the cluster, and is answered at once with the present one.
func (h *handler) block(ctx context.Context, o options, r read) (any, model.Index, error) {
	if o.index > 0 && o.index > h.Reader.Snapshot().Index() {
		lag, cancel := context.WithTimeout(ctx, min(lagGrace, o.wait))
		_, err := h.Reader.Wait(lag, o.index)
		cancel()
		if err != nil {
			o.index = 0
		}
	}
	var timeout <-chan time.Time
	if o.index > 0 {
		t := time.NewTimer(o.wait + rand.N(o.wait/jitterPart+1))
		defer t.Stop()
		timeout = t.C
	}
	for {
		v, ms, err := r(h.Reader.Snapshot())
		if err != nil {
			return nil, 0, err
		}
		var index model.Index = 1 // 0 would make clients ask without blocking
		for _, m := range ms {
			index = max(index, m.Index)
		}
		if o.index == 0 || index > o.index {
			return v, index, nil
		}
		select {
		case <-ms[0].Changed:
		case <-second(ms):
		case <-timeout:
			return v, o.index, nil
		case <-ctx.Done():
			return v, o.index, nil
		}
	}
}

// second is the second mark's channel; no read has more than two.
func second(ms []state.Mark) <-chan struct{} {
	if len(ms) < 2 {
		return nil
	}
	return ms[1].Changed
}

func (h *handler) setMeta(hd http.Header, o options, index model.Index) {
	hd.Set("X-Consul-Index", strconv.FormatUint(uint64(index), 10))
	hd.Set("X-Consul-KnownLeader", strconv.FormatBool(h.Cluster.Leader() != ""))
	hd.Set("X-Consul-LastContact", strconv.FormatInt(h.lastContact().Milliseconds(), 10))
	hd.Set("X-Consul-Query-Backend", "blocking-query")
	consistency := "leader"
	switch {
	case o.consistent:
		consistency = "consistent"
	case o.stale:
		consistency = "stale"
	}
	hd.Set("X-Consul-Effective-Consistency", consistency)
	switch {
	case !o.cached:
	case o.revalidate:
		hd.Set("X-Cache", "MISS")
	default:
		// Every answer comes from this node's memory, which is kept current.
		hd.Set("X-Cache", "HIT")
		hd.Set("Age", "0")
	}
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
