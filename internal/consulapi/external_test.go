package consulapi_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/fairlead-net/fairlead/internal/consulapi"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// Whoever indexes one answer by the other, as Traefik does, finds the same
// instance at the same place.
func TestCatalogAndHealthHaveOneOrder(t *testing.T) {
	w := newWorld()
	for i := range 20 {
		node := fmt.Sprintf("m%02d", (i*7)%20)
		w.put("node/"+node, state.Change{Node: &model.Node{Name: model.NodeName(node), Address: "10.1.0.1", Meta: map[string]string{"odd": fmt.Sprint(i % 2)}}})
		for _, id := range []string{"z", "a"} {
			inst := &model.Instance{Node: model.NodeName(node), ID: model.ServiceID(id), Service: "web", Port: 1000 + i, Tags: []string{fmt.Sprint("t", i%3)}}
			w.put("i/"+node+id, state.Change{Instance: inst})
			w.put("c/"+node+id, state.Change{Check: &model.Check{
				Node: inst.Node, ID: model.CheckID("c" + id), Status: []model.Status{model.Passing, model.Warning, model.Critical}[i%3], ServiceID: inst.ID, ServiceName: "web",
			}})
		}
	}
	h := w.handler()
	for _, query := range []string{
		"", "tag=t1", "tag=t1&stale", "near=m05", "near=_agent&cached", "near=nowhere", "node-meta=odd:1", "node-meta=odd:1&tag=t2&near=m13&consistent", "tag=none",
	} {
		var cat []struct{ Node, ServiceID string }
		var health []struct {
			Node    struct{ Node string }
			Service struct{ ID string }
		}
		decode(t, h, "/v1/catalog/service/web?"+query, &cat)
		decode(t, h, "/v1/health/service/web?"+query, &health)
		if len(cat) != len(health) || (len(cat) == 0) != (query == "tag=none") {
			t.Errorf("?%s: %d and %d", query, len(cat), len(health))
			continue
		}
		for i := range cat {
			if cat[i].Node != health[i].Node.Node || cat[i].ServiceID != health[i].Service.ID {
				t.Errorf("?%s: at %d %+v and %+v", query, i, cat[i], health[i])
			}
		}
		if near := strings.TrimPrefix(query, "near="); near == "m05" && cat[0].Node != near {
			t.Errorf("?%s: first is %+v", query, cat[0])
		}
	}
}

func decode(t *testing.T, h http.Handler, url string, out any) {
	t.Helper()
	code, body := ask(t, h, http.MethodGet, url, "")
	if code != http.StatusOK {
		t.Fatalf("%s: %d %s", url, code, body)
	}
	if err := json.Unmarshal([]byte(body), out); err != nil {
		t.Fatalf("%s: %v", url, err)
	}
}

// TestPermissionsOfTheCatalogue: what each request takes. A refusal names what is
// missing; of the answers that may be seen, what is left out is said.
func TestPermissionsOfTheCatalogue(t *testing.T) {
	const (
		nothing  = ``
		node     = `node "ext" { policy = "write" }`
		web      = `service "web" { policy = "write" }`
		db       = `service "db" { policy = "write" }`
		readAll  = `node_prefix "" { policy = "read" } service_prefix "" { policy = "read" }`
		opRead   = `operator = "read"`
		opWrite  = `operator = "write"`
		newNode  = `{"Node": "ext", "Address": "10.9.0.1"}`
		same     = `{"Node": "n2", "Address": "10.0.0.2", "Service": {"Service": "web", "ID": "web", "Port": 81}}`
		moved    = `{"Node": "n2", "Address": "10.0.0.3", "Service": {"Service": "web", "ID": "web", "Port": 81}}`
		taken    = `{"Node": "n2", "SkipNodeUpdate": true, "Service": {"Service": "db", "ID": "web"}}`
		proxy    = `{"Node": "n2", "SkipNodeUpdate": true, "Service": {"Kind": "connect-proxy", "Service": "db", "Port": 1, "Proxy": {"DestinationServiceName": "web"}}}`
		check    = `{"Node": "n2", "SkipNodeUpdate": true, "Check": {"Name": "c", "ServiceID": "web"}}`
		nodeChk  = `{"Node": "n2", "SkipNodeUpdate": true, "Check": {"Name": "c"}}`
		stolen   = `{"Node": "n2", "SkipNodeUpdate": true, "Service": {"Service": "db"}, "Check": {"CheckID": "up", "ServiceID": "db"}}`
		renamed  = `{"Node": "ext", "ID": "7d9e0c5c-2f0c-4a8e-9a3e-1d6b1f6e0a01", "Address": "10.9.0.1"}`
		register = "PUT /v1/catalog/register"
		remove   = "PUT /v1/catalog/deregister"
		leaf     = "GET /v1/agent/connect/ca/leaf/web"
		may      = "POST /v1/agent/connect/authorize"
		target   = `{"Target": "web", "ClientCertURI": "spiffe://x.consul/ns/default/dc/dc1/svc/db"}`
	)
	lacks := func(what string) string { return "lacks permission '" + what }
	for _, c := range []struct {
		request, body, rules string
		status               int
		want                 string
	}{
		{register, newNode, nothing, 403, lacks(`node:write' on "ext"`)},
		{register, newNode, node, 200, "true"},
		{register, newNode, "unknown", 403, "ACL not found"},
		{register, same, nothing, 403, lacks(`service:write' on "web"`)},
		{register, same, web, 200, "true"},
		{register, moved, web, 403, lacks(`node:write' on "n2"`)},
		{register, taken, db, 403, lacks(`service:write' on "web"`)},
		{register, taken, db + web, 200, "true"},
		{register, proxy, db, 403, lacks(`service:write' on "web"`)},
		{register, check, db, 403, lacks(`service:write' on "web"`)},
		{register, check, web, 200, "true"},
		{register, nodeChk, web, 403, lacks(`node:write' on "n2"`)},
		{register, stolen, db, 403, lacks(`service:write' on "web"`)},
		{register, renamed, node, 403, lacks(`node:write' on "n1"`)},
		{remove, `{"Node": "n2"}`, web, 403, lacks(`node:write' on "n2"`)},
		{remove, `{"Node": "n2"}`, `node "n2" { policy = "write" }`, 200, "true"},
		{remove, `{"Node": "n2", "ServiceID": "web"}`, web, 200, "true"},
		{remove, `{"Node": "n2", "ServiceID": "web"}`, db, 403, lacks(`service:write' on "web"`)},
		{remove, `{"Node": "n2", "ServiceID": "nope"}`, web, 500, "Unknown service ID 'nope'"},
		{remove, `{"Node": "n2", "CheckID": "up"}`, web, 200, "true"},
		{remove, `{"Node": "n1", "CheckID": "serfHealth"}`, web, 403, lacks(`node:write' on "n1"`)},
		{remove, `{"Node": "n2", "CheckID": "nope"}`, web, 500, "Unknown check ID 'nope'"},
		{remove, `{"Node": "n2"}`, "unknown", 403, "ACL not found"},
		{"GET /v1/catalog/node-services/n2", "", nothing, 200, `{"Node":null,"Services":[]}` + notWhole},
		{"GET /v1/catalog/node-services/n2", "", `node "n2" { policy = "read" }`, 200, `"Services":[]}` + notWhole},
		{"GET /v1/catalog/node-services/n2", "", readAll, 200, `"Services":[{`},
		{"GET /v1/catalog/connect/web", "", nothing, 200, "[]" + notWhole},
		{"GET /v1/health/connect/web", "", nothing, 200, "[]" + notWhole},
		{"GET /v1/health/connect/web", "", readAll, 200, "[]"},
		{"GET /v1/health/ingress/web", "", nothing, 200, "[]" + notWhole},
		{"GET /v1/catalog/gateway-services/gate", "", nothing, 403, lacks(`service:read' on "gate"`)},
		{"GET /v1/catalog/gateway-services/gate", "", readAll, 200, "[]"},
		{"GET /v1/operator/raft/configuration", "", nothing, 403, lacks("operator:read'")},
		{"GET /v1/operator/raft/configuration", "", opRead, 200, "Servers"},
		{"DELETE /v1/operator/raft/peer?id=x", "", opRead, 403, lacks("operator:write'")},
		{"POST /v1/operator/raft/transfer-leader", "", opRead, 403, lacks("operator:write'")},
		{"GET /v1/operator/autopilot/configuration", "", nothing, 403, lacks("operator:read'")},
		{"PUT /v1/operator/autopilot/configuration", "{}", opRead, 403, lacks("operator:write'")},
		{"PUT /v1/operator/autopilot/configuration", "{}", opWrite, 200, "true"},
		{"GET /v1/operator/autopilot/health", "", nothing, 403, lacks("operator:read'")},
		{"GET /v1/operator/autopilot/state", "", nothing, 403, lacks("operator:read'")},
		{"GET /v1/operator/autopilot/state", "", opRead, 200, "Voters"},
		{"GET /v1/operator/usage", "", nothing, 403, lacks("operator:read'")},
		{"GET /v1/operator/usage", "", opRead, 200, "Usage"},
		{"GET /v1/operator/keyring", "", opWrite, 403, lacks("keyring:read'")},
		{"PUT /v1/operator/keyring", "{}", `keyring = "read"`, 403, lacks("keyring:write'")},
		{"GET /v1/connect/ca/configuration", "", nothing, 403, lacks("operator:read'")},
		{"PUT /v1/connect/ca/configuration", "{}", opRead, 403, lacks("operator:write'")},
		{"PUT /v1/connect/ca/configuration", `{"Config": {}}`, opWrite, 200, ""},
		{leaf, "", readAll, 403, lacks(`service:write' on "web"`)},
		{leaf, "", web, 200, "PrivateKeyPEM"},
		{may, target, readAll, 403, lacks(`service:write' on "web"`)},
		{may, target, web, 200, `{"Authorized":false,"Reason":"Default behavior configured by ACLs"}`},
	} {
		t.Run(c.request+" "+c.rules, func(t *testing.T) {
			w := newWorld()
			w.setUp("node passing")
			w.setUp("roots")
			deps := w.deps()
			deps.Authority = rulesAuthority{}
			h := consulapi.New(consulapi.Config{Node: w.node, DefaultACLPolicy: "deny"}, deps)
			method, url, _ := strings.Cut(c.request, " ")
			r := httptest.NewRequestWithContext(t.Context(), method, url, strings.NewReader(c.body))
			r.Header.Set("X-Consul-Token", c.rules)
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, r)
			want, filtered := strings.CutSuffix(c.want, notWhole)
			if rec.Code != c.status || !strings.Contains(rec.Body.String(), want) {
				t.Errorf("%d %s, want %d %s", rec.Code, rec.Body, c.status, want)
			}
			if said := rec.Header().Get("X-Consul-Results-Filtered-By-ACLs") == "true"; said != filtered {
				t.Errorf("that something was left out: %v, want %v", said, filtered)
			}
		})
	}
}

// notWhole ends what is wanted of an answer that has to say that it is not whole.
const notWhole = " !"

func TestWhatAnAgentMayNotHave(t *testing.T) {
	w := newWorld()
	h := consulapi.New(consulapi.Config{Node: w.node}, consulapi.Deps{Reader: w.st, Agent: w, Writer: w, Cluster: w})
	for _, c := range []struct{ request, body string }{
		{"PUT /v1/catalog/register", `{"Node": "x", "Address": "y"}`},
		{"PUT /v1/catalog/deregister", `{"Node": "x"}`},
		{"GET /v1/operator/raft/configuration", ""},
		{"GET /v1/operator/autopilot/health", ""},
		{"GET /v1/agent/connect/ca/leaf/web", ""},
		{"PUT /v1/connect/ca/configuration", "{}"},
	} {
		method, url, _ := strings.Cut(c.request, " ")
		if code, body := ask(t, h, method, url, c.body); code != http.StatusNotImplemented || !strings.Contains(body, "not available on this agent") {
			t.Errorf("%s: %d %s", c.request, code, body)
		}
	}
}
