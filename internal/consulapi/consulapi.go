// Package consulapi answers the part of Consul's HTTP API that existing clients
// use, with the shapes, wording, headers and status codes those clients match
// on: routes.go has the table of what is served.
//
// New returns an http.Handler that holds no state of its own: reads are answered
// from a snapshot, writes go through the Agent (what this node owns) and the
// Writer (what the cluster owns). It may be called concurrently, like any
// http.Handler.
//
// Blocking queries whose connections the Lot takes cost no goroutines of their
// own: equal ones share one, which ends with the last of them, and all end with
// the lot. Any other occupies its request's goroutine and ends with the request's
// context. So whoever serves the handler ends the lot and cancels the server's
// base context to end a process quickly.
//
// Reads see everything that was acknowledged by this node without further ado:
// Agent and Writer return only once the local state shows their write, so the
// newest snapshot is enough.
package consulapi

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/prepared"
	"github.com/fairlead-net/fairlead/internal/state"
)

// Defaults of Config.
const (
	DefaultConsulVersion  = "1.21.4"
	DefaultKVMaxValueSize = 512 << 10
	DefaultTxnMaxReqSize  = 512 << 10
	DefaultMaxBodySize    = 1 << 20
)

// Config is what the API says of the agent that it runs in, and its limits.
type Config struct {
	// Node is this node; its Datacenter is the only one that ?dc accepts.
	Node model.Node
	// Version is Fairlead's own; it shows in agent/self under Meta.
	Version string
	// ConsulVersion is the level of Consul's API that is answered, which
	// clients compare with; empty means DefaultConsulVersion.
	ConsulVersion string
	// ClientOnly says that this agent carries no server role.
	ClientOnly bool
	// KVMaxValueSize bounds a value, in bytes; 0 means DefaultKVMaxValueSize.
	KVMaxValueSize int64
	// TxnMaxReqSize bounds the body of a transaction, in bytes, unless
	// KVMaxValueSize is larger; 0 means DefaultTxnMaxReqSize.
	TxnMaxReqSize int64
	// SessionTTLMin is the shortest TTL of a session; 0 means
	// model.MinSessionTTL.
	SessionTTLMin time.Duration
	// DefaultACLPolicy is what tokens may do that no rule speaks of, as clients are
	// told: "allow" (which empty means) or "deny".
	DefaultACLPolicy string
	// ScriptChecks says which checks may run programs, for those who ask: "off"
	// (which empty means), "local" or "on".
	ScriptChecks string
	// KeyListPolicy makes listing keys take key:list on the prefix asked for;
	// without it keys that may not be read are left out, as with Consul's default.
	KeyListPolicy bool
	// MaxBodySize bounds every other request body, in bytes; 0 means
	// DefaultMaxBodySize.
	MaxBodySize int64
	// Log receives one line per request at debug level, failures as warnings;
	// nil means slog.Default.
	Log *slog.Logger
}

// Reader is the node's copy of the replicated state.
type Reader interface {
	// Snapshot returns the newest snapshot.
	Snapshot() *state.Snapshot
	// Wait returns the first snapshot whose index is at least index.
	Wait(ctx context.Context, index model.Index) (*state.Snapshot, error)
}

// Writer writes the key/value store. A cas of nil means unconditional, of zero
// that the key must not exist; false means that the comparison failed.
type Writer interface {
	PutKV(ctx context.Context, kv model.KV, cas *model.Index) (bool, model.Index, error)
	DeleteKV(ctx context.Context, key string, cas *model.Index) (bool, model.Index, error)
	DeleteKVTree(ctx context.Context, prefix string) (model.Index, error)
}

// Cluster knows the servers.
type Cluster interface {
	// Leader is the leader's host:port, empty while there is none.
	Leader() string
	// Peers are all servers' host:port.
	Peers() []string
	// ReadIndex returns an index that covers every write acknowledged before
	// the call, anywhere.
	ReadIndex(ctx context.Context) (model.Index, error)
}

// Deps is what stands behind the API. Reader, Agent, Writer and Cluster must be
// there; a route whose own part is missing answers 501.
type Deps struct {
	Reader  Reader
	Agent   Agent
	Writer  Writer
	Cluster Cluster
	// Authority says what tokens may do; nil means that ACLs are off.
	Authority Authority
	// ACLs is the registry, where tokens, policies and roles are written.
	ACLs ACLs
	// Sessions and Transactor are the registry's, too.
	Sessions   Sessions
	Transactor Transactor
	// Events are the user events of this node.
	Events Events
	// Queries are the prepared queries of the registry.
	Queries Queries
	// Catalogue and Settings are the registry's; Servers are those of the site, and
	// Leaves its certificate authority's.
	Catalogue Catalogue
	Settings  Settings
	Servers   Servers
	Leaves    Leaves
	// Process and Tokens change the agent itself.
	Process Process
	Tokens  Tokens
	// Metrics are the agent's.
	Metrics prometheus.Gatherer
	// Logs is the handler in front of the agent's log.
	Logs *Logs
	// Snapshots are the store's.
	Snapshots Snapshots
	// Lot takes the connections of queries that wait; nil if they keep them.
	Lot Lot
}

type handler struct {
	cfg      Config
	log      *slog.Logger
	prepared *prepared.Runner
	shelf    *shelf
	waits    *waits
	policy   []string // the default one, as a header's value
	Deps
}

// New returns the API's handler. It serves the paths under /v1/ that routes.go
// names, a line of text at / and 404 for everything else.
func New(cfg Config, d Deps) http.Handler {
	if cfg.ConsulVersion == "" {
		cfg.ConsulVersion = DefaultConsulVersion
	}
	if cfg.KVMaxValueSize == 0 {
		cfg.KVMaxValueSize = DefaultKVMaxValueSize
	}
	if cfg.TxnMaxReqSize == 0 {
		cfg.TxnMaxReqSize = DefaultTxnMaxReqSize
	}
	if cfg.SessionTTLMin == 0 {
		cfg.SessionTTLMin = model.MinSessionTTL
	}
	if cfg.MaxBodySize == 0 {
		cfg.MaxBodySize = DefaultMaxBodySize
	}
	if cfg.DefaultACLPolicy == "" {
		cfg.DefaultACLPolicy = "allow"
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if d.Authority == nil {
		d.Authority = openAuthority{}
	}
	runner := prepared.New(prepared.Config{Node: cfg.Node.Name, Datacenter: cfg.Node.Datacenter, Resolve: d.Authority.Resolve})
	return &handler{cfg: cfg, log: cfg.Log, prepared: runner, shelf: newShelf(shelfBytes), waits: &waits{flocks: map[flockKey]*flock{}}, policy: []string{cfg.DefaultACLPolicy}, Deps: d}
}

// call is one request on its way through an endpoint.
type call struct {
	h      http.Header // the answer's
	r      *http.Request
	w      http.ResponseWriter
	params url.Values
	// rest is the path behind the route's prefix, unescaped once.
	rest  string
	start time.Time

	authority Authority
	auth      acl.Authorizer // of the request's token, once it has been asked for

	begun   bool         // the following is set
	options              // what every read takes
	marks   []state.Mark // of the last look at the state
}

func (c *call) has(param string) bool {
	_, ok := c.params[param]
	return ok
}

// ServeHTTP routes, runs and answers one request. Paths are taken as they are:
// http.ServeMux would redirect keys that contain "//" or "..".
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	h.setCommon(w.Header())
	a, err := h.serve(w, r, start)
	if err != nil {
		a = h.failure(w, r, err)
	}
	h.write(w, r, a)
	if !a.parked {
		h.logRequest(r, a.status, start)
	}
}

// logRequest notes a request. Neither the query (it may carry a token) nor the
// body is logged.
func (h *handler) logRequest(r *http.Request, status int, start time.Time) {
	if h.log.Enabled(r.Context(), slog.LevelDebug) {
		h.log.Debug("http request", "method", r.Method, "path", r.URL.Path, "status", status, "took", time.Since(start))
	}
}

// setCommon sets the headers of every answer.
func (h *handler) setCommon(hd http.Header) {
	hd["Vary"], hd["X-Consul-Default-Acl-Policy"] = varies, h.policy
}

// varies and its like are values of headers that all answers share.
var varies = []string{"Accept-Encoding"}

func (h *handler) serve(w http.ResponseWriter, r *http.Request, start time.Time) (answer, error) {
	if r.URL.Path == "/" {
		return text(http.StatusOK, "Fairlead agent; the Consul-compatible API is under /v1/\n"), nil
	}
	rt, rest, ok := match(r.URL.Path)
	if !ok {
		return answer{}, fail(http.StatusNotFound, "Invalid URL path: not found")
	}
	if r.Method == http.MethodOptions {
		w.Header().Set("Allow", rt.allow())
		return answer{status: http.StatusOK}, nil
	}
	serve, ok := rt.methods[r.Method]
	if !ok {
		w.Header().Set("Allow", rt.allow())
		return answer{}, fail(http.StatusMethodNotAllowed, "method %s not allowed", r.Method)
	}
	params, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return answer{}, fail(http.StatusBadRequest, "Failed to decode query: %v", err)
	}
	c := &call{h: w.Header(), r: r, w: w, params: params, rest: rest, start: start, authority: h.Authority}
	if err := checkTenancy(c); err != nil {
		return answer{}, err
	}
	h.capBody(w, r)
	if r.Method == http.MethodGet && r.Body != nil && r.Body != http.NoBody {
		// Nothing in it was asked for, but only behind it does the server notice
		// that a client goes away while its query waits.
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return answer{}, unread(err)
		}
	}
	return h.run(c, rt, serve)
}

// failure turns an error into its answer; this is the one place that decides on
// a status.
func (h *handler) failure(w http.ResponseWriter, r *http.Request, err error) answer {
	var f *failed
	if errors.As(err, &f) {
		return text(f.status, f.reason)
	}
	var big *http.MaxBytesError
	if errors.As(err, &big) {
		return text(http.StatusRequestEntityTooLarge, tooLarge(max(r.ContentLength, big.Limit+1), big.Limit, ""))
	}
	if errors.Is(err, model.ErrInvalid) {
		return text(http.StatusBadRequest, err.Error())
	}
	h.log.Warn("http request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	if h.Cluster.Leader() == "" {
		// Whatever failed did so for want of a leader; clients know this text.
		return text(http.StatusInternalServerError, noLeader)
	}
	return text(http.StatusInternalServerError, err.Error())
}
