package transfer

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake answers as a Consul does, as far as an import asks.
type fake struct {
	*httptest.Server
	t *testing.T
	// before sees each request first, and answers it if it returns true.
	before func(w http.ResponseWriter, r *http.Request) bool
	// after sees each request once it has been carried out, and answers it if it
	// returns true.
	after func(w http.ResponseWriter, r *http.Request) bool

	mu     sync.Mutex // guards following
	index  uint64
	kv     map[string]entry
	nodes  map[string]*place
	named  map[string]map[string]record // by the path of their list, by id
	writes []string
	most   int // entries in one answer
	tokens map[string]bool
}

func newFake(t *testing.T) *fake {
	f := &fake{
		t: t, index: 10, kv: map[string]entry{}, nodes: map[string]*place{}, tokens: map[string]bool{},
		named: map[string]map[string]record{
			"/v1/acl/policies": {}, "/v1/acl/roles": {}, "/v1/acl/tokens": {}, "/v1/query": {},
		},
	}
	f.Server = httptest.NewServer(http.HandlerFunc(f.serve))
	t.Cleanup(f.Close)
	return f
}

func (f *fake) put(pairs ...string) {
	for i := 0; i < len(pairs); i += 2 {
		f.index++
		f.kv[pairs[i]] = entry{Key: pairs[i], Value: []byte(pairs[i+1]), ModifyIndex: f.index}
	}
}

// wrote returns the writes since the last call.
func (f *fake) wrote() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.writes
	f.writes = nil
	slices.Sort(w)
	return w
}

func (f *fake) serve(w http.ResponseWriter, r *http.Request) {
	if f.before != nil && f.before(w, r) {
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		f.t.Error(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tokens[r.Header.Get("X-Consul-Token")] = true
	status, answer := f.answer(r, body)
	if r.Method != http.MethodGet && answer != false {
		f.writes = append(f.writes, r.Method+" "+r.URL.RequestURI())
	}
	if f.after != nil && f.after(w, r) {
		return
	}
	w.WriteHeader(status)
	if text, ok := answer.(string); ok {
		_, _ = io.WriteString(w, text)
	} else if answer != nil {
		_ = json.NewEncoder(w).Encode(answer)
	}
}

func (f *fake) answer(r *http.Request, body []byte) (status int, answer any) {
	path := r.URL.Path
	switch {
	case strings.HasPrefix(path, "/v1/kv/"):
		return f.serveKV(r, strings.TrimPrefix(path, "/v1/kv/"), body)
	case path == "/v1/status/leader":
		return 200, `"127.0.0.1:8300"`
	case path == "/v1/catalog/nodes":
		var all []any
		for _, name := range slices.Sorted(maps.Keys(f.nodes)) {
			all = append(all, f.nodes[name].shown())
		}
		return 200, all
	case path == "/v1/health/state/any":
		all := []check{}
		for name, p := range f.nodes {
			for _, c := range p.checks {
				c.Node = name
				all = append(all, c)
			}
		}
		return 200, all
	case strings.HasPrefix(path, "/v1/catalog/node/"):
		p := f.nodes[strings.TrimPrefix(path, "/v1/catalog/node/")]
		if p == nil {
			return 200, "null"
		}
		return 200, map[string]any{"Node": p.shown(), "Services": p.services}
	case strings.HasPrefix(path, "/v1/health/node/"):
		all := []check{}
		if p := f.nodes[strings.TrimPrefix(path, "/v1/health/node/")]; p != nil {
			all = slices.Collect(maps.Values(p.checks))
		}
		return 200, all
	case path == "/v1/catalog/register":
		return f.register(body)
	}
	return f.serveNamed(r, body)
}

func (p *place) shown() any {
	return map[string]any{
		"Node": p.node.Node, "Address": p.node.Address, "Meta": p.node.Meta, "TaggedAddresses": p.node.TaggedAddresses,
		"CreateIndex": 7,
	}
}

func (f *fake) serveKV(r *http.Request, key string, body []byte) (int, any) {
	q := r.URL.Query()
	e, found := f.kv[key]
	switch {
	case r.Method == http.MethodPut:
		cas, err := strconv.ParseUint(q.Get("cas"), 10, 64)
		if err != nil {
			return 400, "a write without cas: " + r.URL.String()
		}
		if cas != e.ModifyIndex {
			return 200, false
		}
		flags, _ := strconv.ParseUint(q.Get("flags"), 10, 64)
		f.index++
		f.kv[key] = entry{Key: key, Value: body, Flags: flags, ModifyIndex: f.index}
		return 200, true
	case q.Has("keys"):
		var names []string
		for _, k := range slices.Sorted(maps.Keys(f.kv)) {
			if rest, ok := strings.CutPrefix(k, key); ok {
				if i := strings.Index(rest, q.Get("separator")); q.Get("separator") != "" && i >= 0 {
					k = key + rest[:i+1]
				}
				names = append(names, k)
			}
		}
		names = slices.Compact(names)
		f.most = max(f.most, len(names))
		if names == nil {
			return 404, nil
		}
		return 200, names
	case !found:
		return 404, nil
	}
	return 200, []entry{e}
}

func (f *fake) register(body []byte) (int, any) {
	var r registration
	if err := json.Unmarshal(body, &r); err != nil {
		return 400, err.Error()
	}
	p := f.nodes[r.Node]
	if p == nil || !r.SkipNodeUpdate {
		if p == nil {
			p = &place{services: map[string]service{}, checks: map[string]check{}}
		}
		p.node = r.node
		p.node.Meta = r.NodeMeta
		f.nodes[r.Node] = p
	}
	if r.Service != nil {
		p.services[r.Service.ID] = *r.Service
	}
	for _, c := range r.Checks {
		p.checks[c.CheckID] = c
	}
	return 200, true
}

// serveNamed is the part for what has a name: policies, roles, tokens, queries.
func (f *fake) serveNamed(r *http.Request, body []byte) (int, any) {
	for _, n := range []named{policies, roles, tokens, queries} {
		all := f.named[n.list]
		_, create := n.create(nil)
		id, one := strings.CutPrefix(r.URL.Path, n.update(""))
		switch {
		case r.Method == http.MethodGet && r.URL.Path == n.list:
			var list []record
			for _, id := range slices.Sorted(maps.Keys(all)) {
				list = append(list, all[id])
			}
			return 200, list
		case r.Method == http.MethodGet && one && all[id] != nil:
			return 200, all[id]
		case r.Method != http.MethodGet && (one || r.URL.Path == create):
			var rec record
			if err := json.Unmarshal(body, &rec); err != nil {
				return 400, err.Error()
			}
			if !one {
				id = rec.text(n.id)
			}
			if id == "" {
				id = fmt.Sprintf("id-%d", len(all)+1)
			}
			rec[n.id], rec["ModifyIndex"] = id, 12.0
			all[id] = rec
			return 200, rec
		}
	}
	return 500, "no such path: " + r.URL.Path
}
