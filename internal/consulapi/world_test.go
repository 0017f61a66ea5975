package consulapi_test

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fairlead-net/fairlead/internal/consulapi"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// world stands for everything behind the API: one real state, and an agent, a
// writer and a cluster that write into it at once.
type world struct {
	st   *state.State
	node model.Node

	mu      sync.Mutex // guards following
	rev     model.Index
	regs    map[model.ServiceID]model.Registration
	checks  map[model.CheckID]model.Check
	created map[string]model.Index
	leader  string
	listed  int    // how often all checks were listed
	fail    error  // of every write
	warning string // of every registration
	events  fakeEvents
	others  []string // ids of further servers
}

func newWorld() *world {
	w := &world{
		st:      state.New(),
		regs:    map[model.ServiceID]model.Registration{},
		checks:  map[model.CheckID]model.Check{},
		created: map[string]model.Index{},
		leader:  "10.0.0.1:8300",
		rev:     9,
		node: model.Node{
			ID: "7d9e0c5c-2f0c-4a8e-9a3e-1d6b1f6e0a01", Name: "n1", Address: "10.0.0.1", Datacenter: "dc1",
			TaggedAddresses: map[string]string{"lan": "10.0.0.1"}, Meta: map[string]string{"rack": "a"},
		},
	}
	node := w.node
	node.Owner = model.NodeOwner("n1")
	w.put("node/n1", state.Change{Node: &node})
	w.put("check/serf", state.Change{Check: &model.Check{
		Node: "n1", ID: model.SerfHealth, Name: "Serf Health Status", Status: model.Passing, Output: "Agent alive and reachable",
	}})
	return w
}

func (w *world) handler(change ...func(*consulapi.Config)) http.Handler {
	cfg := consulapi.Config{Node: w.node, Version: "0.1.0", Log: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&cfg)
	}
	return consulapi.New(cfg, w.deps())
}

// deps has the world behind everything.
func (w *world) deps() consulapi.Deps {
	return consulapi.Deps{
		Reader: w.st, Agent: w, Writer: w, Cluster: w, Sessions: w, Transactor: w, Events: &w.events, Queries: w,
		Catalogue: catalogue{w}, Settings: w, Servers: w, Leaves: w,
	}
}

// put applies one change at the next revision, stamped as etcd would.
func (w *world) put(key string, c state.Change) model.Index {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.putLocked(key, c)
}

func (w *world) putLocked(key string, c state.Change) model.Index {
	w.rev++
	if c.Delete {
		delete(w.created, key)
	} else if w.created[key] == 0 {
		w.created[key] = w.rev
	}
	stamp := func(s *model.Stamp) { s.CreateIndex, s.ModifyIndex = w.created[key], w.rev }
	switch {
	case c.Node != nil:
		stamp(&c.Node.Stamp)
	case c.Instance != nil:
		stamp(&c.Instance.Stamp)
	case c.Check != nil:
		stamp(&c.Check.Stamp)
	case c.KV != nil:
		stamp(&c.KV.Stamp)
	case c.Session != nil:
		stamp(&c.Session.Stamp)
	case c.Query != nil:
		stamp(&c.Query.Stamp)
	case c.Setting != nil:
		stamp(&c.Setting.Stamp)
	case c.CARoot != nil:
		stamp(&c.CARoot.Stamp)
	}
	w.st.Apply(w.rev, []state.Change{c})
	return w.rev
}

func (w *world) putCheckLocked(c model.Check) {
	w.checks[c.ID] = c
	w.putLocked("check/"+string(c.ID), state.Change{Check: &c})
}

func (w *world) Register(_ context.Context, r model.Registration) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		return "", w.fail
	}
	w.regs[r.Instance.ID] = r
	i := r.Instance
	w.putLocked("instance/"+string(i.ID), state.Change{Instance: &i})
	for id, c := range w.checks {
		if c.ServiceID == i.ID && !slices.ContainsFunc(r.Checks, func(s model.CheckSpec) bool { return s.ID == id }) {
			w.dropCheckLocked(id)
		}
	}
	for _, s := range r.Checks {
		w.putCheckLocked(model.Check{
			Node: i.Node, ID: s.ID, Name: s.Name, Notes: s.Notes, Status: cmp.Or(s.Status, model.Critical), Type: s.Type(),
			ServiceID: i.ID, ServiceName: i.Service, ServiceTags: i.Tags, Interval: positive(s.Interval), Timeout: positive(s.Timeout),
		})
	}
	return w.warning, nil
}

// positive prints a duration that is set.
func positive(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return d.String()
}

func (w *world) dropCheckLocked(id model.CheckID) {
	delete(w.checks, id)
	w.putLocked("check/"+string(id), state.Change{Delete: true, Check: &model.Check{Node: "n1", ID: id}})
}

func (w *world) Deregister(_ context.Context, id model.ServiceID) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		return w.fail
	}
	for cid, c := range w.checks {
		if c.ServiceID == id {
			w.dropCheckLocked(cid)
		}
	}
	delete(w.regs, id)
	w.putLocked("instance/"+string(id), state.Change{Delete: true, Instance: &model.Instance{Node: "n1", ID: id}})
	return nil
}

func (w *world) Services() []model.Registration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.SortedFunc(maps.Values(w.regs), func(a, b model.Registration) int { return cmp.Compare(a.Instance.ID, b.Instance.ID) })
}

func (w *world) Checks() []model.Check {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.listed++
	return slices.SortedFunc(maps.Values(w.checks), func(a, b model.Check) int { return cmp.Compare(a.ID, b.ID) })
}

func (w *world) UpdateTTL(id model.CheckID, s model.Status, output string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		return w.fail
	}
	c, ok := w.checks[id]
	if !ok || c.Type != "ttl" {
		return errors.New("no such TTL check")
	}
	c.Status, c.Output = s, output
	w.putCheckLocked(c)
	return nil
}

// matches reports whether key is at *cas; a nil cas always matches.
func (w *world) matches(key string, cas *model.Index) bool {
	kv, _ := w.st.Snapshot().KV(key)
	return cas == nil || (kv == nil && *cas == 0) || (kv != nil && kv.ModifyIndex == *cas)
}

func (w *world) PutKV(_ context.Context, kv model.KV, cas *model.Index) (bool, model.Index, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		return false, 0, w.fail
	}
	if !w.matches(kv.Key, cas) {
		return false, w.rev, nil
	}
	return true, w.putLocked("kv/"+kv.Key, state.Change{KV: &kv}), nil
}

func (w *world) DeleteKV(_ context.Context, key string, cas *model.Index) (bool, model.Index, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		return false, 0, w.fail
	}
	if !w.matches(key, cas) {
		return false, w.rev, nil
	}
	return true, w.putLocked("kv/"+key, state.Change{Delete: true, KV: &model.KV{Key: key}}), nil
}

func (w *world) DeleteKVTree(ctx context.Context, prefix string) (model.Index, error) {
	tree, _ := w.st.Snapshot().KVTree(prefix)
	var index model.Index
	for _, kv := range tree {
		_, i, err := w.DeleteKV(ctx, kv.Key, nil)
		if err != nil {
			return 0, err
		}
		index = i
	}
	return index, nil
}

func (w *world) Leader() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.leader
}

func (w *world) Peers() []string {
	if l := w.Leader(); l != "" {
		return []string{l}
	}
	return nil
}

func (w *world) ReadIndex(context.Context) (model.Index, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.leader == "" {
		return 0, errors.New("etcdserver: no leader")
	}
	return w.rev, nil
}

// setUp is what a script's "world" line asks for.
func (w *world) setUp(words string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch cmd, rest, _ := strings.Cut(words, " "); cmd {
	case "no-leader":
		w.leader = ""
	case "queries":
		w.seedQueriesLocked()
	case "roots":
		w.seedRootsLocked()
	case "servers":
		w.others = strings.Fields(rest)
	case "leader":
		w.leader = "10.0.0.1:8300"
	case "fail":
		w.fail = nil
		if rest != "" {
			w.fail = errors.New(rest)
		}
	case "warn":
		w.warning = rest
	case "node":
		// A node without an agent, with one instance of web that is in the
		// state named.
		status := model.Status(rest)
		w.putLocked("node/n2", state.Change{Node: &model.Node{Name: "n2", Address: "10.0.0.2", Stamp: model.Stamp{Owner: model.OwnerExternal}}})
		w.putLocked("i/n2", state.Change{Instance: &model.Instance{Node: "n2", ID: "web", Service: "web", Tags: []string{"v2"}, Port: 80, Weights: model.DefaultWeights}})
		w.putLocked("c/n2", state.Change{Check: &model.Check{Node: "n2", ID: "up", Name: "up", Status: status, ServiceID: "web", ServiceName: "web"}})
	default:
		panic("no such thing to set up: " + words)
	}
}
