package consulapi_test

import (
	"log/slog"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/consulapi"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// askedNothing are the routes that answer without asking what the token may do,
// as Consul does, and why that is right.
var askedNothing = map[string]string{
	"GET /v1/status/leader":          "says only where the servers are; load balancers probe it without a token",
	"GET /v1/status/peers":           "as status/leader",
	"GET /v1/catalog/datacenters":    "names this site only",
	"PUT /v1/acl/bootstrap":          "makes the first token: nobody can have one before; it works once",
	"GET /v1/acl/replication":        "says only that there is none",
	"GET /v1/connect/ca/roots":       "roots are what everybody is to trust; they are public",
	"GET /v1/agent/connect/ca/roots": "as connect/ca/roots",
	"GET /v1/agent/version":          "says only which version of the API is spoken",
	"POST /v1/acl/login":             "is how somebody without a token gets one; refused, there are no auth methods",
}

// resolvedOnly are the routes that take a valid token and no right.
var resolvedOnly = map[string]string{
	"GET /v1/acl/token/self": "whoever has a secret may see what it stands for",
	"POST /v1/acl/logout":    "would end the token itself",
}

// sample is how a route is asked so that it gets as far as its question: what is
// behind a path that ends with a slash, and the body.
type sample struct{ rest, body string }

var samples = map[string]sample{
	"GET /v1/agent/service/":             {"web-1", ""},
	"PUT /v1/agent/service/register":     {"", `{"Name": "web"}`},
	"PUT /v1/agent/service/deregister/":  {"web-1", ""},
	"PUT /v1/agent/check/pass/":          {"service:web-1", ""},
	"PUT /v1/agent/check/warn/":          {"service:web-1", ""},
	"PUT /v1/agent/check/fail/":          {"service:web-1", ""},
	"PUT /v1/agent/check/update/":        {"service:web-1", `{"Status": "passing"}`},
	"GET /v1/catalog/node/":              {"n1", ""},
	"GET /v1/catalog/service/":           {"web", ""},
	"GET /v1/health/service/":            {"web", ""},
	"GET /v1/health/checks/":             {"web", ""},
	"GET /v1/health/node/":               {"n1", ""},
	"GET /v1/health/state/":              {"any", ""},
	"PUT /v1/session/destroy/":           {"s1", ""},
	"PUT /v1/session/renew/":             {"s1", ""},
	"GET /v1/session/info/":              {"s1", ""},
	"GET /v1/session/node/":              {"n1", ""},
	"PUT /v1/agent/check/register":       {"", `{"Name": "disk", "TTL": "10s"}`},
	"PUT /v1/agent/check/deregister/":    {"service:web-1", ""},
	"PUT /v1/agent/service/maintenance/": {"web-1?enable=true", ""},
	"PUT /v1/agent/maintenance":          {"?enable=true", ""},
	"GET /v1/agent/health/service/id/":   {"web-1", ""},
	"GET /v1/catalog/node-services/":     {"n1", ""},
	"PUT /v1/catalog/register":           {"", `{"Node": "n3", "Address": "10.0.0.3"}`},
	"PUT /v1/catalog/deregister":         {"", `{"Node": "n2"}`},
	"POST /v1/agent/connect/authorize":   {"", `{"Target": "web", "ClientCertURI": "spiffe://x/ns/default/dc/dc1/svc/db"}`},
	"PUT /v1/txn":                        {"", `[{"KV": {"Verb": "set", "Key": "a/k"}}]`},
	"POST /v1/query":                     {"", `{"Name": "new", "Service": {"Service": "web"}}`},
	"GET /v1/query/":                     {queryID(0), ""},
	"PUT /v1/query/":                     {queryID(0), `{"Name": "plain", "Service": {"Service": "web"}}`},
	"DELETE /v1/query/":                  {queryID(0), ""},
}

// recorder is an authority that allows nothing and counts what it is asked.
type recorder struct{ resolved, asked atomic.Int32 }

func (r *recorder) Resolve(secret string) (acl.Authorizer, error) {
	r.resolved.Add(1)
	if secret == "unknown" {
		return nil, acl.ErrNotFound
	}
	return asked{&r.asked}, nil
}

type asked struct{ n *atomic.Int32 }

func (a asked) Allow(acl.Resource, string, acl.Access) bool       { a.n.Add(1); return false }
func (a asked) AllowPrefix(acl.Resource, string, acl.Access) bool { a.n.Add(1); return false }
func (a asked) Accessor() string                                  { return "accessor" }

// TestEveryRouteAsks walks all routes with an authority that refuses everything:
// each of them asks it, and none gives anything away or changes anything.
func TestEveryRouteAsks(t *testing.T) {
	all := consulapi.RouteMethods()
	for _, exceptions := range []map[string]string{askedNothing, resolvedOnly} {
		for name := range exceptions {
			if !slices.Contains(all, name) {
				t.Errorf("%s is an exception, but no route", name)
			}
		}
	}
	for name := range samples {
		if !slices.Contains(all, name) {
			t.Errorf("%s has a sample, but is no route", name)
		}
	}
	for _, name := range all {
		t.Run(name, func(t *testing.T) { walk(t, name) })
	}
}

func walk(t *testing.T, name string) {
	ask := func(secret string) (*recorder, *httptest.ResponseRecorder) {
		w := furnished()
		furnishForWalk(t, w)
		var auth recorder
		d := w.deps()
		d.Authority = &auth
		method, path, _ := strings.Cut(name, " ")
		s := samples[name]
		if s.rest == "" && strings.HasSuffix(path, "/") {
			s.rest = "x"
		}
		if s.body == "" && method != "GET" {
			s.body = "{}"
		}
		before := w.st.Snapshot().Index()
		h := consulapi.New(consulapi.Config{Node: w.node, Log: slog.New(slog.DiscardHandler)}, d)
		r := httptest.NewRequest(method, path+s.rest, strings.NewReader(s.body))
		r.Header.Set("X-Consul-Token", secret)
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		if after := w.st.Snapshot().Index(); after != before && askedNothing[name] == "" {
			t.Errorf("it wrote something: index %d after %d", after, before)
		}
		return &auth, rec
	}
	auth, rec := ask("known")
	switch {
	case askedNothing[name] != "":
		if auth.resolved.Load() > 0 {
			t.Errorf("it asks: take it off the list of exceptions")
		}
		return
	case resolvedOnly[name] != "":
		if auth.resolved.Load() == 0 || auth.asked.Load() > 0 {
			t.Errorf("resolved %d times, asked %d times; want a valid token and nothing else", auth.resolved.Load(), auth.asked.Load())
		}
	case auth.asked.Load() == 0:
		t.Errorf("it does not ask (%d %s); does it need a sample?", rec.Code, rec.Body)
	case rec.Code != 403 && rec.Header().Get("X-Consul-Results-Filtered-By-ACLs") != "true" && !refusals[rec.Code] && rec.Body.String() != "[]":
		t.Errorf("it answers %d %s", rec.Code, rec.Body)
	}
	if auth, rec = ask("unknown"); auth.resolved.Load() == 0 || rec.Code != 403 && name != "GET /v1/acl/token/self" {
		t.Errorf("with a token that does not exist: %d %s", rec.Code, rec.Body)
	}
}

// refusals are other statuses that say no: a transaction lists its refusals.
var refusals = map[int]bool{409: true}

// furnishForWalk adds what samples are about.
func furnishForWalk(t *testing.T, w *world) {
	t.Helper()
	w.setUp("queries")
	if _, err := w.events.Fire(model.UserEvent{Name: "deploy"}); err != nil {
		t.Fatal(err)
	}
	w.put("session", state.Change{Session: &model.Session{ID: "s1", Node: "n1"}})
}
