package consulapi_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/consulapi"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// TestSessionReadsWake: reads of sessions are woken when sessions begin and end,
// and not by others.
func TestSessionReadsWake(t *testing.T) {
	begin := func(w *world, id string) {
		w.put("session/"+id, state.Change{Session: &model.Session{ID: id, Node: "n1"}})
	}
	end := func(w *world, id string) {
		w.put("session/"+id, state.Change{Delete: true, Session: &model.Session{ID: id, Node: "n1"}})
	}
	for _, c := range []struct {
		path string
		wake func(*world)
	}{
		{"/v1/session/list", func(w *world) { begin(w, "s2") }},
		{"/v1/session/list", func(w *world) { end(w, "s1") }},
		{"/v1/session/node/n1", func(w *world) { end(w, "s1") }},
		{"/v1/session/info/s1", func(w *world) { end(w, "s1") }},
		{"/v1/session/info/s2", func(w *world) { begin(w, "s2") }},
	} {
		t.Run(c.path, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				begin(w, "s1")
				w.put("kv/x", state.Change{KV: &model.KV{Key: "x"}})
				h := w.handler()
				before := index(t, serve(t.Context(), h, c.path))
				done := make(chan *httptest.ResponseRecorder, 1)
				go func() { done <- serve(t.Context(), h, c.path+"?index="+strconv.Itoa(before)) }()
				synctest.Wait()
				w.put("kv/y", state.Change{KV: &model.KV{Key: "y"}})
				synctest.Wait()
				if len(done) > 0 {
					t.Error("woken by a key")
				}
				start := time.Now()
				c.wake(w)
				if after := index(t, <-done); after <= before || !time.Now().Equal(start) {
					t.Errorf("index went from %d to %d after %v", before, after, time.Since(start))
				}
			})
		})
	}
}

// TestEventListWaits: a query waits as long as the newest event of its name is
// the one that it came with.
func TestEventListWaits(t *testing.T) {
	fire := func(t *testing.T, h http.Handler, name string) {
		t.Helper()
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodPut, "/v1/event/fire/"+name, nil))
		if rec.Code != http.StatusOK {
			t.Fatalf("fire %s: %d %s", name, rec.Code, rec.Body)
		}
	}
	for _, first := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			h := newWorld().handler()
			if first {
				fire(t, h, "deploy")
			}
			at := strconv.Itoa(index(t, serve(t.Context(), h, "/v1/event/list?name=deploy")))
			start := time.Now()
			if i := index(t, serve(t.Context(), h, "/v1/event/list?name=deploy&wait=20s&index="+at)); strconv.Itoa(i) != at || time.Since(start) != 20*time.Second {
				t.Errorf("answered %d after %v", i, time.Since(start))
			}
			done := make(chan *httptest.ResponseRecorder, 1)
			go func() { done <- serve(t.Context(), h, "/v1/event/list?name=deploy&index="+at) }()
			synctest.Wait()
			fire(t, h, "other")
			synctest.Wait()
			if len(done) > 0 {
				t.Error("woken by an event of another name")
			}
			fire(t, h, "deploy")
			if i := index(t, <-done); strconv.Itoa(i) == at {
				t.Error("the index stayed as it was")
			}
			// An index that is not of the newest event is old news, whatever its size.
			start = time.Now()
			if serve(t.Context(), h, "/v1/event/list?index=9999999"); time.Since(start) != 0 {
				t.Errorf("waited %v for an index of the past", time.Since(start))
			}
		})
	}
}

// rulesAuthority knows tokens by their rules: the secret is the rules.
type rulesAuthority struct{}

func (rulesAuthority) Resolve(secret string) (acl.Authorizer, error) {
	if secret == "unknown" {
		return nil, errors.New("ACL not found")
	}
	rules, err := acl.Parse(secret)
	if err != nil {
		return nil, err
	}
	return acl.New("7d9e0c5c", false, rules), nil
}

// TestPermissionsOfSessionsAndLocks: what each request takes, and what is left
// out of answers. A 200 may end with a part of its body to look for; "-" before
// it means that it must not be there, "!" that something was left out.
func TestPermissionsOfSessionsAndLocks(t *testing.T) {
	const (
		nothing = ``
		s1      = "11111111-0000-0000-0000-000000000000" // of n1
		s2      = "22222222-0000-0000-0000-000000000000" // of n2
		a, b    = `{"KV":{"Verb":"set","Key":"a/x"}}`, `{"KV":{"Verb":"set","Key":"b/x"}}`
		readA   = `key_prefix "a/" { policy = "read" }`
		writeA  = `key_prefix "a/" { policy = "write" }`
		n1Read  = `session "n1" { policy = "read" }`
		n1Write = `session "n1" { policy = "write" }`
	)
	denied := func(what string) string {
		return "Permission denied: token with AccessorID '7d9e0c5c' lacks permission " + what
	}
	for _, c := range []struct {
		request, body, rules string
		status               int
		want                 string
	}{
		{"PUT /v1/session/create", "", nothing, 403, denied(`'session:write' on "n1"`)},
		{"PUT /v1/session/create", "", n1Read, 403, denied(`'session:write' on "n1"`)},
		{"PUT /v1/session/create", "", n1Write, 200, "ID"},
		{"PUT /v1/session/create", `{"Node":"n2"}`, n1Write, 403, denied(`'session:write' on "n2"`)},
		{"PUT /v1/session/create", "", "unknown", 403, "ACL not found"},
		{"PUT /v1/session/renew/" + s1, "", n1Read, 403, denied(`'session:write' on "n1"`)},
		{"PUT /v1/session/renew/" + s1, "", n1Write, 200, s1},
		{"PUT /v1/session/renew/none", "", nothing, 404, "Session id 'none' not found"},
		{"PUT /v1/session/renew/none", "", "unknown", 403, "ACL not found"},
		{"PUT /v1/session/destroy/" + s2, "", n1Write, 403, denied(`'session:write' on "n2"`)},
		{"PUT /v1/session/destroy/" + s1, "", n1Write, 200, "true"},
		{"PUT /v1/session/destroy/none", "", nothing, 200, "true"},
		{"PUT /v1/session/destroy/none", "", "unknown", 403, "ACL not found"},
		{"GET /v1/session/list", "", n1Read, 200, s1},
		{"GET /v1/session/list", "", n1Read, 200, "-" + s2},
		{"GET /v1/session/list", "", n1Read, 200, "!"},
		{"GET /v1/session/list", "", `session_prefix "" { policy = "read" }`, 200, s2},
		{"GET /v1/session/node/n2", "", n1Read, 200, "-" + s2},
		{"GET /v1/session/info/" + s2, "", n1Read, 200, "![]"},
		{"GET /v1/session/info/" + s1, "", n1Read, 200, s1},
		{"GET /v1/session/list", "", "unknown", 403, "ACL not found"},

		{"PUT /v1/kv/a/x?acquire=" + s1, "", readA, 403, denied(`'key:write' on "a/x"`)},
		{"PUT /v1/kv/a/x?acquire=" + s1, "", writeA, 200, "true"},
		{"PUT /v1/kv/a/x?release=" + s1, "", readA, 403, denied(`'key:write' on "a/x"`)},

		{"PUT /v1/txn", "[" + a + "]", writeA, 200, "a/x"},
		{"PUT /v1/txn", "[" + a + "," + b + "]", writeA, 409, denied(`'key:write' on \"b/x\"`)},
		{"PUT /v1/txn", "[" + b + "]", writeA, 409, `"OpIndex":0`},
		{"PUT /v1/txn", "[" + b + "]", "unknown", 403, "ACL not found"},
		{"PUT /v1/txn", `[{"KV":{"Verb":"get","Key":"a/k"}},{"KV":{"Verb":"get","Key":"b/k"}}]`, readA, 200, "!a/k"},
		{"PUT /v1/txn", `[{"KV":{"Verb":"get","Key":"a/k"}},{"KV":{"Verb":"get","Key":"b/k"}}]`, readA, 200, "-b/k"},
		{"PUT /v1/txn", `[{"KV":{"Verb":"check-index","Key":"b/k"}}]`, readA, 409, denied(`'key:read' on \"b/k\"`)},
		{"PUT /v1/txn", `[{"KV":{"Verb":"check-session","Key":"b/k"}}]`, readA, 409, denied(`'key:read'`)},
		{"PUT /v1/txn", `[{"KV":{"Verb":"check-not-exists","Key":"a/n"}}]`, readA, 409, denied(`'key:write'`)},
		{"PUT /v1/txn", `[{"KV":{"Verb":"delete-tree","Key":"a/"}}]`, writeA, 200, "Results"},
		{"PUT /v1/txn", `[{"KV":{"Verb":"delete-tree","Key":""}}]`, writeA, 409, denied(`'key:write'`)},
		{"PUT /v1/txn", `[{"KV":{"Verb":"lock","Key":"b/k","Session":"` + s1 + `"}}]`, writeA, 409, denied(`'key:write'`)},
		{"PUT /v1/txn", `[{"Node":{"Verb":"get","Node":{"Node":"n1"}}}]`, nothing, 200, "!-n1"},
		{"PUT /v1/txn", `[{"Node":{"Verb":"set","Node":{"Node":"n3"}}}]`, `node "n3" { policy = "read" }`, 409, denied(`'node:write' on \"n3\"`)},
		{"PUT /v1/txn", `[{"Node":{"Verb":"set","Node":{"Node":"n3"}}}]`, `node "n3" { policy = "write" }`, 200, "n3"},
		// Whose id it is decides: a node cannot be taken over under another name.
		{"PUT /v1/txn", `[{"Node":{"Verb":"set","Node":{"Node":"n3","ID":"7d9e0c5c-2f0c-4a8e-9a3e-1d6b1f6e0a01"}}}]`, `node "n3" { policy = "write" }`, 409, denied(`'node:write' on \"n1\"`)},
		{"PUT /v1/txn", `[{"Service":{"Verb":"set","Node":"n1","Service":{"Service":"db"}}}]`, `service "web" { policy = "write" }`, 409, denied(`'service:write' on \"db\"`)},
		{"PUT /v1/txn", `[{"Service":{"Verb":"set","Node":"n2","Service":{"ID":"web","Service":"db"}}}]`, `service "db" { policy = "write" }`, 409, denied(`'service:write' on \"web\"`)},
		{"PUT /v1/txn", `[{"Service":{"Verb":"set","Node":"n1","Service":{"Service":"db"}}}]`, `service "db" { policy = "write" }`, 200, "db"},
		{"PUT /v1/txn", `[{"Check":{"Verb":"set","Check":{"Node":"n1","CheckID":"c"}}}]`, `service "web" { policy = "write" }`, 409, denied(`'node:write' on \"n1\"`)},
		{"PUT /v1/txn", `[{"Check":{"Verb":"delete","Check":{"Node":"n2","CheckID":"up"}}}]`, `node_prefix "" { policy = "write" }`, 409, denied(`'service:write' on \"web\"`)},
		{"PUT /v1/txn", `[{"Check":{"Verb":"set","Check":{"Node":"n2","CheckID":"c","ServiceID":"web","ServiceName":"db"}}}]`, `service "db" { policy = "write" }`, 409, denied(`'service:write' on \"web\"`)},
		{"PUT /v1/txn", `[{"Check":{"Verb":"set","Check":{"Node":"n2","CheckID":"c","ServiceID":"new","ServiceName":"db"}}}]`, `service "db" { policy = "write" }`, 200, "db"},

		{"PUT /v1/event/fire/deploy", "", `event "deploy" { policy = "read" }`, 403, denied(`'event:write' on "deploy"`)},
		{"PUT /v1/event/fire/deploy", "", `event "deploy" { policy = "write" }`, 200, "deploy"},
		{"GET /v1/event/list", "", `event "one" { policy = "read" }`, 200, "!one"},
		{"GET /v1/event/list", "", `event "one" { policy = "read" }`, 200, "-two"},
		{"GET /v1/event/list?name=two", "", `event "one" { policy = "read" }`, 200, "![]"},
		{"GET /v1/event/list?name=one", "", `event "one" { policy = "read" }`, 200, "one"},
		{"GET /v1/event/list", "", "unknown", 403, "ACL not found"},
	} {
		t.Run(c.request+" "+c.body, func(t *testing.T) {
			w := newWorld()
			w.setUp("node passing")
			w.put("s1", state.Change{Session: &model.Session{ID: s1, Node: "n1"}})
			w.put("s2", state.Change{Session: &model.Session{ID: s2, Node: "n2"}})
			for _, key := range []string{"a/k", "b/k"} {
				w.put("kv/"+key, state.Change{KV: &model.KV{Key: key}})
			}
			for _, name := range []string{"one", "two"} {
				if _, err := w.events.Fire(model.UserEvent{Name: name}); err != nil {
					t.Fatal(err)
				}
			}
			h := consulapi.New(consulapi.Config{Node: w.node}, consulapi.Deps{
				Reader: w.st, Agent: w, Writer: w, Cluster: w, Sessions: w, Transactor: w, Events: &w.events, Authority: rulesAuthority{},
			})
			method, url, _ := strings.Cut(c.request, " ")
			r := httptest.NewRequestWithContext(t.Context(), method, url, strings.NewReader(c.body))
			r.Header.Set("X-Consul-Token", c.rules)
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, r)
			want, filtered := strings.CutPrefix(c.want, "!")
			want, absent := strings.CutPrefix(want, "-")
			if rec.Code != c.status || strings.Contains(rec.Body.String(), want) == (absent && want != "") {
				t.Errorf("%s\n%d %s\nwant %d %s", c.rules, rec.Code, rec.Body, c.status, c.want)
			}
			if filtered && rec.Header().Get("X-Consul-Results-Filtered-By-ACLs") != "true" {
				t.Error("the answer does not say that something was left out")
			}
		})
	}
}

// TestMissingParts: an agent without sessions, transactions or events says so.
func TestMissingParts(t *testing.T) {
	w := newWorld()
	h := consulapi.New(consulapi.Config{Node: w.node}, consulapi.Deps{Reader: w.st, Agent: w, Writer: w, Cluster: w})
	for _, c := range []struct{ request, want string }{
		{"PUT /v1/session/create", "Sessions"},
		{"PUT /v1/session/renew/a", "Sessions"},
		{"GET /v1/session/list", "Sessions"},
		{"PUT /v1/kv/a?acquire=s", "Sessions"},
		{"PUT /v1/txn", "Transactions"},
		{"PUT /v1/event/fire/a", "Events"},
		{"GET /v1/event/list", "Events"},
	} {
		method, url, _ := strings.Cut(c.request, " ")
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), method, url, nil))
		if want := c.want + " are not available on this agent"; rec.Code != http.StatusNotImplemented || rec.Body.String() != want {
			t.Errorf("%s: %d %s, want %s", c.request, rec.Code, rec.Body, want)
		}
	}
}

// TestSessionTTLMin: the shortest TTL is a setting.
func TestSessionTTLMin(t *testing.T) {
	h := newWorld().handler(func(c *consulapi.Config) { c.SessionTTLMin = time.Second })
	for ttl, want := range map[string]int{"1s": 200, "999ms": 500, "0s": 200, "24h": 200} {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodPut, "/v1/session/create", strings.NewReader(`{"TTL":"`+ttl+`"}`)))
		if rec.Code != want {
			t.Errorf("TTL %s: %d %s, want %d", ttl, rec.Code, rec.Body, want)
		}
	}
}

// TestTransactionBodyLimit: the limit of a transaction's body holds whether or not
// its length is said, and is never smaller than that of a value.
func TestTransactionBodyLimit(t *testing.T) {
	body := `[{"KV":{"Verb":"set","Key":"a","Value":"` + strings.Repeat("AAAA", 100) + `"}}]`
	for _, c := range []struct {
		txn, value int64
		length     int64
		status     int
		want       string
	}{
		{100, 50, int64(len(body)), 413, "Request body(444 bytes) too large, max size: 100 bytes. See https://"},
		{100, 50, -1, 413, "Request body too large, max size: 100 bytes. See https://"},
		{100, 1000, int64(len(body)), 200, ""},
		{1000, 100, -1, 413, `Value for key "a" is too large (300 > 100 bytes)`},
	} {
		h := newWorld().handler(func(cfg *consulapi.Config) { cfg.TxnMaxReqSize, cfg.KVMaxValueSize = c.txn, c.value })
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPut, "/v1/txn", strings.NewReader(body))
		r.ContentLength = c.length
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		if rec.Code != c.status || !strings.HasPrefix(rec.Body.String(), c.want) {
			t.Errorf("%+v: %d %s", c, rec.Code, rec.Body)
		}
	}
}
