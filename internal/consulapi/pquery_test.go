package consulapi_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/consulapi"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/prepared"
	"github.com/fairlead-net/fairlead/internal/state"
)

// badQuery is how the registry says what is wrong with a query.
type badQuery string

func (b badQuery) Error() string        { return string(b) }
func (b badQuery) Is(target error) bool { return target == model.ErrInvalid }

func (w *world) PutQuery(_ context.Context, q model.PreparedQuery) (model.Index, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		return 0, w.fail
	}
	if err := prepared.Validate(&q); err != nil {
		return 0, badQuery(err.Error())
	}
	return w.putLocked("query/"+q.ID, state.Change{Query: &q}), nil
}

func (w *world) DeleteQuery(_ context.Context, id string) (model.Index, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		return 0, w.fail
	}
	return w.putLocked("query/"+id, state.Change{Delete: true, Query: &model.PreparedQuery{ID: id}}), nil
}

// seedQueries puts a plain query, one bound to a session, one with a token and a
// template, and two nodes that run what they find.
func (w *world) seedQueriesLocked() {
	for i, q := range []model.PreparedQuery{
		{Name: "plain", Service: model.QueryService{Service: "web", Near: "n2"}, DNS: model.QueryDNS{TTL: "5s"}},
		{Session: "3f0c", Service: model.QueryService{Service: "web"}},
		{Name: "secret", Token: "root", Service: model.QueryService{Service: "web"}},
		{Name: "geo-", Service: model.QueryService{Service: "${name.suffix}", Tags: []string{"${match(1)}"}}, Tmpl: model.QueryTemplate{Type: prepared.NamePrefixMatch}},
	} {
		q.ID = queryID(i)
		w.putLocked("query/"+q.ID, state.Change{Query: &q})
	}
	for _, n := range []string{"n1", "n2"} {
		w.putLocked("node/"+n, state.Change{Node: &model.Node{Name: model.NodeName(n), Address: "10.0.0." + n[1:]}})
		w.putLocked("i/"+n, state.Change{Instance: &model.Instance{Node: model.NodeName(n), ID: "web", Service: "web", Port: 80}})
	}
}

func queryID(i int) string { return fmt.Sprintf("aaaaaaaa-0000-0000-0000-00000000000%d", i+1) }

// ask makes one request and returns its status and body.
func ask(t *testing.T, h http.Handler, method, url, body string) (int, string) {
	t.Helper()
	rec := httptest.NewRecorder()
	r := httptest.NewRequest(method, url, strings.NewReader(body))
	r.RemoteAddr = "10.0.0.1:4000"
	h.ServeHTTP(rec, r)
	return rec.Code, strings.TrimSpace(rec.Body.String())
}

func TestQueryCreateChooseItsID(t *testing.T) {
	w := newWorld()
	h := w.handler()
	code, body := ask(t, h, "POST", "/v1/query", `{"Name": "x", "Service": {"Service": "web", "Failover": {"Targets": [{"Peer": "p"}]}}}`)
	all, _ := w.st.Snapshot().Queries()
	if code != 200 || len(all) != 1 || len(all[0].ID) != 36 || body != `{"ID":"`+all[0].ID+`"}` || all[0].Service.Failover.Targets[0].Peer != "p" {
		t.Errorf("%d %s: %+v", code, body, all)
	}
}

func TestQueryExecuteOrder(t *testing.T) {
	w := newWorld()
	w.setUp("queries")
	h := w.handler()
	for url, want := range map[string]string{
		"/v1/query/plain/execute":              "n2 n1", // what the query says
		"/v1/query/plain/execute?near=n1":      "n1 n2",
		"/v1/query/plain/execute?near=_agent":  "n1 n2",
		"/v1/query/plain/execute?near=_ip":     "n1 n2",
		"/v1/query/geo-web/execute?near=n1":    "", // a tag that is empty, which nothing has
		"/v1/query/plain/execute?limit=1":      "n2",
		"/v1/query/plain/execute?connect=1":    "",
		"/v1/query/" + queryID(0) + "/execute": "n2 n1",
	} {
		code, body := ask(t, h, "GET", url, "")
		var got []string
		for part := range strings.SplitSeq(body, `"Node":{"ID":"","Node":"`) {
			got = append(got, part[:strings.IndexByte(part+`"`, '"')])
		}
		if code != 200 || strings.Join(got[1:], " ") != want {
			t.Errorf("%s: %d %v, want %s", url, code, got[1:], want)
		}
	}
}

// secrets are tokens with what they may do.
type secrets map[string][]string

func (s secrets) Resolve(secret string) (acl.Authorizer, error) {
	may, ok := s[secret]
	if !ok {
		return nil, errors.New("ACL not found")
	}
	return rights(may), nil
}

type rights []string

func (r rights) Allow(res acl.Resource, name string, a acl.Access) bool {
	for _, may := range r {
		if may == "all" || may == fmt.Sprint(res, ":", name, ":", a) {
			return true
		}
	}
	return false
}
func (r rights) AllowPrefix(res acl.Resource, name string, a acl.Access) bool {
	return r.Allow(res, name, a)
}
func (r rights) Accessor() string { return "acc" }

func TestQueriesAskTheAuthorizer(t *testing.T) {
	auth := secrets{
		"":     nil,
		"root": {"all"},
		"mine": {"query:plain:read", "query:plain:write", "query:secret:read", "service:web:read", "node:n1:read"},
	}
	const denied = "Permission denied"
	for _, tt := range []struct {
		method, url, token, body string
		status                   int
		want, not                string
	}{
		{"GET", "/v1/query", "", "", 200, "[]", ""},
		{"GET", "/v1/query", "root", "", 200, `"Token":"root"`, "hidden"},
		{"GET", "/v1/query", "mine", "", 200, `"Token":"\u003chidden\u003e"`, "geo-"},
		{"GET", "/v1/query", "mine", "", 200, `"Name":"plain"`, `"Session":"3f0c"`},
		{"GET", "/v1/query", "no", "", 403, "ACL not found", ""},
		{"GET", "/v1/query/" + queryID(0), "", "", 403, denied, ""},
		{"GET", "/v1/query/" + queryID(1), "", "", 200, `"Session":"3f0c"`, ""},
		{"GET", "/v1/query/" + queryID(2), "mine", "", 200, `"Token":"\u003chidden\u003e"`, "root"},
		{"GET", "/v1/query/" + queryID(3), "mine", "", 403, denied, ""},
		{"GET", "/v1/query/plain/explain", "", "", 403, denied, ""},
		{"GET", "/v1/query/plain/explain", "mine", "", 200, `{"Query":{"ID"`, ""},
		{"GET", "/v1/query/" + queryID(1) + "/explain", "mine", "", 403, denied, ""},
		{"GET", "/v1/query/geo-web/explain", "root", "", 200, `"Service":"web"`, ""},
		{"GET", "/v1/query/plain/execute", "", "", 200, `"Nodes":[]`, ""},
		{"GET", "/v1/query/plain/execute", "mine", "", 200, `"Node":"n1"`, `"Node":"n2"`},
		{"GET", "/v1/query/secret/execute", "", "", 200, `"Node":"n2"`, ""},
		{"POST", "/v1/query", "mine", `{"Name":"other","Service":{"Service":"web"}}`, 403, "lacks permission 'query:write' on \"other\"", ""},
		{"POST", "/v1/query", "mine", `{"Name":"plain","Service":{"Service":"web"}}`, 200, `{"ID":`, ""},
		{"POST", "/v1/query", "", `{"Session":"3f0c","Service":{"Service":"web"}}`, 200, `{"ID":`, ""},
		{"PUT", "/v1/query/" + queryID(2), "mine", `{"Name":"plain","Service":{"Service":"web"}}`, 403, "lacks permission 'query:write' on \"secret\"", ""},
		{"PUT", "/v1/query/" + queryID(0), "mine", `{"Name":"secret","Service":{"Service":"web"}}`, 403, "lacks permission 'query:write' on \"secret\"", ""},
		{"PUT", "/v1/query/" + queryID(0), "mine", `{"Name":"plain","Service":{"Service":"api"}}`, 200, "", ""},
		{"DELETE", "/v1/query/" + queryID(2), "mine", "", 403, "lacks permission 'query:write' on \"secret\"", ""},
		{"DELETE", "/v1/query/" + queryID(0), "mine", "", 200, "", ""},
		{"DELETE", "/v1/query/" + queryID(1), "", "", 200, "", ""},
	} {
		w := newWorld()
		w.setUp("queries")
		h := consulapi.New(consulapi.Config{Node: w.node}, consulapi.Deps{Reader: w.st, Agent: w, Writer: w, Cluster: w, Queries: w, Authority: auth})
		code, body := ask(t, h, tt.method, tt.url+"?token="+tt.token, tt.body)
		if code != tt.status || !strings.Contains(body, tt.want) || tt.not != "" && strings.Contains(body, tt.not) {
			t.Errorf("%s %s as %q: %d %s, want %d with %q and without %q", tt.method, tt.url, tt.token, code, body, tt.status, tt.want, tt.not)
		}
	}
}

func TestQueriesOfAnAgentWithoutThem(t *testing.T) {
	w := newWorld()
	h := consulapi.New(consulapi.Config{Node: w.node}, consulapi.Deps{Reader: w.st, Agent: w, Writer: w, Cluster: w})
	if code, body := ask(t, h, "POST", "/v1/query", "{}"); code != http.StatusNotImplemented || !strings.Contains(body, "not available on this agent") {
		t.Errorf("%d %s", code, body)
	}
}
