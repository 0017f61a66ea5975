package consulapi_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/fairlead-net/fairlead/internal/consulapi"
	"github.com/fairlead-net/fairlead/internal/model"
)

// faults collects what the handler takes for its own fault.
type faults struct {
	slog.Handler
	seen []string
}

func (f *faults) Enabled(context.Context, slog.Level) bool { return true }

func (f *faults) Handle(_ context.Context, r slog.Record) error {
	if r.Level >= slog.LevelError || r.Message == "http request failed" {
		r.Attrs(func(a slog.Attr) bool {
			f.seen = append(f.seen, a.String())
			return true
		})
	}
	return nil
}

// aWorld is one with a little in it.
func aWorld(t testing.TB) *world {
	t.Helper()
	w := newWorld()
	if _, err := w.Register(context.Background(), model.Registration{
		Instance: model.Instance{Node: "n1", ID: "web", Service: "web", Tags: []string{"a"}, Port: 80, Meta: map[string]string{"k": "v"}},
		Checks:   []model.CheckSpec{{ID: "ttl", Name: "ttl", TTL: time.Minute}},
	}); err != nil {
		t.Fatal(err)
	}
	w.setUp("node warning")
	return w
}

// briefly runs one request, which may wait for a moment only.
func briefly(h http.Handler, method, target string, body []byte) *httptest.ResponseRecorder {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	hangs := time.AfterFunc(10*time.Second, func() { panic("no answer to " + method + " " + target + " " + string(body)) })
	defer hangs.Stop()
	rec := httptest.NewRecorder()
	u, err := url.ParseRequestURI(target)
	if err != nil {
		return nil
	}
	r := httptest.NewRequestWithContext(ctx, method, "/", strings.NewReader(string(body)))
	r.URL, r.RequestURI = u, target
	h.ServeHTTP(rec, r)
	return rec
}

// FuzzRequests: no request breaks a handler, and what fails is the request's
// fault: an answer of 500 is one that Consul gives too.
func FuzzRequests(f *testing.F) {
	methods := []string{http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete, http.MethodOptions}
	for _, s := range []struct {
		method uint8
		target string
		body   string
	}{
		{0, "/v1/health/service/web?passing&tag=a&near=_agent&node-meta=k:v&filter=Service.Port==80", ""},
		{0, "/v1/catalog/services?index=3&wait=1ms&cached&max_stale=1s", ""},
		{0, "/v1/kv/a?recurse&separator=/&keys", ""},
		{1, "/v1/kv/a?cas=0&flags=7", "value"},
		{1, "/v1/kv/a?acquire=x", "value"},
		{3, "/v1/kv/a?recurse", ""},
		{1, "/v1/agent/service/register", `{"Name":"x","Port":1,"Checks":[{"TTL":"10s"},{"HTTP":"http://h","Interval":"1s"}],"Weights":{"Passing":2}}`},
		{1, "/v1/agent/service/register", `{"name":"x","check":{"deregister_critical_service_after":"1m","ttl":1000000000}}`},
		{1, "/v1/agent/check/register", `{"Name":"c","TCP":"h:1","Interval":"1s","Timeout":1}`},
		{1, "/v1/agent/check/update/ttl", `{"Status":"passing","Output":"o"}`},
		{1, "/v1/session/create", `{"Name":"s","TTL":"30s","LockDelay":"1s","Behavior":"delete","Checks":["serfHealth"]}`},
		{1, "/v1/txn", `[{"KV":{"Verb":"set","Key":"a","Value":"dg=="}},{"Node":{"Verb":"get","Node":{"Node":"n1"}}}]`},
		{1, "/v1/catalog/register", `{"Node":"e","Address":"10.0.0.9","Service":{"Service":"db","Port":1},"Check":{"Name":"c","Status":"passing"}}`},
		{1, "/v1/catalog/deregister", `{"Node":"e","ServiceID":"db"}`},
		{2, "/v1/query", `{"Name":"q","Service":{"Service":"web","Failover":{"NearestN":1}},"Template":{"Type":"name_prefix_match"}}`},
		{1, "/v1/event/fire/e?node=n&service=s&tag=t", "payload"},
		{1, "/v1/acl/policy", `{"Name":"p","Rules":"key_prefix \"\" { policy = \"read\" }"}`},
		{1, "/v1/acl/token", `{"Description":"d","Policies":[{"Name":"p"}],"ExpirationTTL":"1h"}`},
		{2, "/v1/agent/connect/authorize", `{"Target":"web","ClientCertURI":"spiffe://x/ns/default/dc/dc1/svc/web"}`},
		{1, "/v1/operator/autopilot/configuration?cas=1", `{"CleanupDeadServers":true,"LastContactThreshold":"200ms"}`},
		{1, "/v1/snapshot", "not one"},
	} {
		f.Add(s.method, s.target, []byte(s.body))
	}
	f.Fuzz(func(t *testing.T, method uint8, target string, body []byte) {
		ours := &faults{Handler: slog.DiscardHandler}
		h := aWorld(t).handler(func(c *consulapi.Config) { c.Log = slog.New(ours) })
		rec := briefly(h, methods[int(method)%len(methods)], target, body)
		if rec != nil && len(ours.seen) > 0 {
			t.Errorf("%d %s\n%s", rec.Code, rec.Body, strings.Join(ours.seen, "\n"))
		}
	})
}

// FuzzFilter: an expression selects, or is refused; and what is selected was
// there without it.
func FuzzFilter(f *testing.F) {
	for _, s := range []string{
		"", `Service.Service == "web"`, `Checks.Status == "critical" or "a" in Service.Tags`, `Node.Meta.rack matches "^a"`,
		`not (Service.Port != 80) and Service.Meta is not empty`, `any Checks as c { c.Status == "passing" }`, "(((", `Service.Tags contains "a"`,
		strings.Repeat("any Checks as c { ", 40) + "c.Status == a" + strings.Repeat(" }", 40), strings.Repeat("(", 8000),
		"Checks.Status == `a\"b`", `Service["Service"] == web`, `all Service.Tags as i, v { v != "" }`, "Node.Datacenter in dc1",
	} {
		f.Add(s)
	}
	h := aWorld(f).handler()
	f.Fuzz(func(t *testing.T, expr string) {
		for _, path := range []string{"/v1/health/service/web", "/v1/catalog/nodes", "/v1/agent/checks"} {
			rec := briefly(h, http.MethodGet, path+"?filter="+url.QueryEscape(expr), nil)
			switch text := rec.Body.String(); rec.Code {
			case http.StatusOK, http.StatusBadRequest:
			default:
				if !strings.HasPrefix(text, "Failed to create boolean expression evaluator: ") && !strings.HasPrefix(text, "Failed to evaluate filter: ") {
					t.Errorf("%s: %d %s", path, rec.Code, text)
				}
			}
		}
	})
}

// FuzzKVKeys: any bytes make a key. What is put under it is read, listed and
// deleted under it, and nothing else is.
func FuzzKVKeys(f *testing.F) {
	for _, key := range []string{"a", "a/b", "/", "//a//", "../b", "a%2Fb", "\x00\xff", "ü", "a?b#c", " ", "a\r\nb", "%", "+", "."} {
		f.Add([]byte(key), []byte("value\x00\xff"))
	}
	f.Fuzz(func(t *testing.T, key, val []byte) {
		const other = "other key"
		if len(key) == 0 || string(key) == other || len(val) > consulapi.DefaultKVMaxValueSize {
			return
		}
		h := newWorld().handler()
		call := func(method, key, query string, body []byte, want int) string {
			t.Helper()
			rec := httptest.NewRecorder()
			r := httptest.NewRequest(method, "/", strings.NewReader(string(body)))
			// The way that a client writes it: parsed from its escaped form.
			u, err := url.ParseRequestURI("/v1/kv/" + url.PathEscape(key) + query)
			if err != nil {
				t.Fatal(err)
			}
			r.URL = u
			h.ServeHTTP(rec, r)
			if rec.Code != want {
				t.Fatalf("%s %q%s: %d %s, want %d", method, key, query, rec.Code, rec.Body, want)
			}
			return rec.Body.String()
		}
		k := string(key)
		call(http.MethodPut, other, "", nil, http.StatusOK)
		if got := call(http.MethodPut, k, "?cas=0", val, http.StatusOK); got != "true" {
			t.Errorf("put: %s", got)
		}
		if got := call(http.MethodGet, k, "?raw", nil, http.StatusOK); got != string(val) {
			t.Errorf("get: %q, want %q", got, val)
		}
		var pairs []struct {
			Key   string
			Value []byte
		}
		if err := json.Unmarshal([]byte(call(http.MethodGet, k, "?recurse", nil, http.StatusOK)), &pairs); err != nil {
			t.Fatal(err)
		}
		found := func(p struct {
			Key   string
			Value []byte
		}) bool {
			return string(p.Value) == string(val) && (p.Key == k || !utf8.ValidString(k))
		}
		if !slices.ContainsFunc(pairs, found) {
			t.Errorf("tree: %+v", pairs)
		}
		if got := call(http.MethodDelete, k, "", nil, http.StatusOK); got != "true" {
			t.Errorf("delete: %s", got)
		}
		call(http.MethodGet, k, "", nil, http.StatusNotFound)
		call(http.MethodGet, other, "", nil, http.StatusOK)
	})
}
