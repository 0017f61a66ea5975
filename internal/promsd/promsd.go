// Package promsd tells a Prometheus what to scrape, in the form of its HTTP
// service discovery: every instance of every service is one target with labels
// that say all the catalogue knows of it.
//
// The handler answers from the newest snapshot, holds nothing and may be called
// by many goroutines.
package promsd

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// Path is where the handler is to be served.
const Path = "/prometheus/sd"

// Reader is the node's copy of the catalogue.
type Reader interface {
	// Snapshot returns the newest snapshot.
	Snapshot() *state.Snapshot
}

// Authority says what a token's secret stands for.
type Authority interface {
	// Resolve returns what the token of a secret may do; the empty secret is that
	// of who brings none. Its error is the answer's body, with status 403.
	Resolve(secret string) (acl.Authorizer, error)
}

// Config is what the answers say beside the catalogue.
type Config struct {
	Site string // label dc of nodes that do not say their own
	// Authority says what tokens may see; nil means that ACLs are off.
	Authority Authority
}

// New returns the handler. It takes GET and HEAD with the parameters
//
//	service=NAME        only this service; may be repeated
//	tag=TAG             only instances with this tag; repeated: with all of them
//	passing             only instances whose checks all pass
//	node-meta=KEY:VALUE only instances on such nodes; repeated: with all of them
//	token=SECRET        the token, which may also be in X-Consul-Token or be a bearer's
//
// and refuses others, since a filter with a typing mistake would filter nothing.
func New(cfg Config, r Reader) http.Handler {
	return &handler{cfg: cfg, reader: r, boot: strconv.FormatInt(time.Now().UnixMilli(), 36)}
}

type handler struct {
	cfg    Config
	reader Reader
	// boot is part of every answer's tag: what is answered depends on the program
	// and its settings too.
	boot string
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "method "+r.Method+" not allowed", http.StatusMethodNotAllowed)
		return
	}
	q, err := parse(r.URL.RawQuery)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	may := acl.AllowAll()
	if h.cfg.Authority != nil {
		if may, err = h.cfg.Authority.Resolve(secret(r, q.token)); err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
	}
	services, index := q.services(h.reader.Snapshot())
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-cache") // keep it, but ask whether it is still so
	if h.cfg.Authority == nil {
		// Nothing but the catalogue decides what the answer is.
		if h.unchanged(w, r, strconv.FormatUint(uint64(index), 36)) {
			return
		}
	}
	groups, hidden := h.groups(q, services, may)
	if hidden {
		w.Header().Set("X-Consul-Results-Filtered-By-ACLs", "true")
	}
	body, err := json.Marshal(groups)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if h.cfg.Authority != nil {
		sum := sha256.Sum256(body)
		if h.unchanged(w, r, fmt.Sprintf("%x", sum[:12])) {
			return
		}
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body) // a client that went away needs no answer
}

// unchanged sets the answer's tag, and answers if the client has what it names.
func (h *handler) unchanged(w http.ResponseWriter, r *http.Request, tag string) bool {
	tag = `"` + h.boot + "-" + tag + `"`
	w.Header().Set("ETag", tag)
	for has := range strings.SplitSeq(r.Header.Get("If-None-Match"), ",") {
		if has = strings.TrimPrefix(strings.TrimSpace(has), "W/"); has == tag || has == "*" {
			w.WriteHeader(http.StatusNotModified)
			return true
		}
	}
	return false
}

// secret finds a request's token where Consul's API takes it.
func secret(r *http.Request, param string) string {
	if param != "" {
		return param
	}
	if t := r.Header.Get("X-Consul-Token"); t != "" {
		return t
	}
	if scheme, t, _ := strings.Cut(r.Header.Get("Authorization"), " "); strings.EqualFold(scheme, "bearer") {
		return strings.TrimSpace(t)
	}
	return ""
}

// question is what a request asks for.
type question struct {
	names    []model.ServiceName
	tags     []string
	passing  bool
	nodeMeta map[string]string
	token    string
}

func parse(raw string) (question, error) {
	var q question
	params, err := url.ParseQuery(raw)
	if err != nil {
		return q, fmt.Errorf("query: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(params)) {
		values := params[name]
		last := values[len(values)-1]
		switch name {
		case "service":
			for _, v := range values {
				q.names = append(q.names, model.ServiceName(v))
			}
		case "tag":
			q.tags = values
		case "passing":
			if q.passing, err = strconv.ParseBool(last); last == "" {
				q.passing, err = true, nil
			}
			if err != nil {
				return q, fmt.Errorf("passing=%q: want true or false", last)
			}
		case "node-meta":
			q.nodeMeta = map[string]string{}
			for _, v := range values {
				k, x, ok := strings.Cut(v, ":")
				if !ok {
					return q, fmt.Errorf("node-meta=%q: want KEY:VALUE", v)
				}
				q.nodeMeta[k] = x
			}
		case "token":
			q.token = last
		default:
			return q, fmt.Errorf("unknown parameter %q; there are service, tag, passing, node-meta and token", name)
		}
	}
	slices.Sort(q.names)
	q.names = slices.Compact(q.names)
	return q, nil
}

// services finds what a question is about, and the index at which it last changed.
func (q question) services(s *state.Snapshot) (found []*state.Service, index model.Index) {
	if q.names == nil {
		all, mark := s.Services()
		return all, mark.Index
	}
	for _, name := range q.names {
		svc, mark := s.Service(name)
		found = append(found, svc)
		index = max(index, mark.Index)
	}
	return found, index
}

// group is one target with its labels. Each instance is a group of its own, since
// the labels of a group hold for all its targets.
type group struct {
	Targets []string          `json:"targets"`
	Labels  map[string]string `json:"labels"`
}

// groups are the instances asked for, never nil; hidden reports whether some were
// left out that the token may not see.
func (h *handler) groups(q question, services []*state.Service, may acl.Authorizer) (all []group, hidden bool) {
	all = []group{}
	for _, svc := range services {
		for _, m := range svc.Members {
			if !q.wants(m) {
				continue
			}
			if !may.Allow(acl.Service, string(svc.Name), acl.Read) || !may.Allow(acl.Node, string(m.Node.Name), acl.Read) {
				hidden = true
				continue
			}
			all = append(all, group{
				Targets: []string{net.JoinHostPort(strings.Trim(m.Addr(), "[]"), strconv.Itoa(m.Instance.Port))},
				Labels:  h.labels(m),
			})
		}
	}
	return all, hidden
}

func (q question) wants(m *state.Member) bool {
	if q.passing && health(m) != string(model.Passing) {
		return false
	}
	for _, t := range q.tags {
		if !slices.Contains(m.Instance.Tags, t) {
			return false
		}
	}
	for k, v := range q.nodeMeta {
		if have, ok := m.Node.Meta[k]; !ok || have != v {
			return false
		}
	}
	return true
}
