package consulapi_test

import (
	"context"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// TestRights: what a token with a policy of certain rules gets to see and may do,
// with a default of deny and of allow. A result is the status, which of the
// world's things are in the answer, and "!" if it says that some were left out.
func TestRights(t *testing.T) {
	const (
		none     = ``
		nodes    = `node_prefix "" { policy = "read" }`
		services = `service_prefix "" { policy = "read" }`
		webRead  = `service "web" { policy = "read" }`
		webWrite = `service "web" { policy = "write" }`
		web      = webRead + nodes
		n1       = `node "n1" { policy = "read" }` + services
		aRead    = `key_prefix "a/" { policy = "read" }`
		aWrite   = `key_prefix "a/" { policy = "write" }`
		noDB     = `service "db" { policy = "deny" }`
		noWeb    = `service "web" { policy = "deny" }`
		noN2     = `node "n2" { policy = "deny" }`
		noB      = `key_prefix "b/" { policy = "deny" }`
		unknown  = `unknown`
	)
	tests := []struct{ rules, request, deny, allow string }{
		// The agent.
		{none, "GET /v1/agent/self", "403", "200 n1"},
		{`agent "n1" { policy = "read" }`, "GET /v1/agent/self", "200 n1", "200 n1"},
		{`agent "n2" { policy = "read" }`, "GET /v1/agent/self", "403", "200 n1"},
		{`agent_prefix "" { policy = "deny" }`, "GET /v1/agent/self", "403", "403"},
		{nodes, "GET /v1/agent/self", "403", "200 n1"},
		{unknown, "GET /v1/agent/self", "403", "403"},
		{none, "GET /v1/agent/members", "200 !", "200 n1"},
		{nodes, "GET /v1/agent/members", "200 n1", "200 n1"},
		{none, "GET /v1/agent/services", "200 !", "200 web db"},
		{webRead, "GET /v1/agent/services", "200 web !", "200 web db"},
		{noWeb, "GET /v1/agent/services", "200 !", "200 db !"},
		{services, "GET /v1/agent/services", "200 web db", "200 web db"},
		{unknown, "GET /v1/agent/services", "403", "403"},
		{none, "GET /v1/agent/service/web-1", "403", "200 web"},
		{webRead, "GET /v1/agent/service/web-1", "200 web", "200 web"},
		{noWeb, "GET /v1/agent/service/web-1", "403", "403"},
		{none, "GET /v1/agent/service/nope", "404", "404"},
		{none, "GET /v1/agent/checks", "200 !", "200 n1 web db"},
		{webRead, "GET /v1/agent/checks", "200 n1 web !", "200 n1 web db"},
		{webRead, `PUT /v1/agent/service/register {"Name": "web"}`, "403", "403"},
		{webWrite, `PUT /v1/agent/service/register {"Name": "web"}`, "200", "200"},
		{webWrite, `PUT /v1/agent/service/register {"Name": "new"}`, "403", "200"},
		{webWrite, `PUT /v1/agent/service/register {"Name": "web", "ID": "db-1"}`, "403", "200"},
		{webWrite + `service "db" { policy = "write" }`, `PUT /v1/agent/service/register {"Name": "web", "ID": "db-1"}`, "200", "200"},
		{`service_prefix "we" { policy = "write" }`, `PUT /v1/agent/service/register {"Name": "web"}`, "200", "200"},
		{noWeb, `PUT /v1/agent/service/register {"Name": "web"}`, "403", "403"},
		{unknown, `PUT /v1/agent/service/register {"Name": "web"}`, "403", "403"},
		{none, "PUT /v1/agent/service/deregister/web-1", "403", "200"},
		{webRead, "PUT /v1/agent/service/deregister/web-1", "403", "403"},
		{webWrite, "PUT /v1/agent/service/deregister/web-1", "200", "200"},
		{webWrite, "PUT /v1/agent/service/deregister/db-1", "403", "200"},
		{none, "PUT /v1/agent/check/pass/service:web-1", "403", "200"},
		{webRead, "PUT /v1/agent/check/warn/service:web-1", "403", "403"},
		{webWrite, "PUT /v1/agent/check/fail/service:web-1", "200", "200"},
		{webWrite, `PUT /v1/agent/check/update/service:db-1 {"Status": "passing"}`, "403", "200"},
		{`node "n1" { policy = "write" }`, "PUT /v1/agent/check/pass/service:web-1", "403", "200"},
		{unknown, "PUT /v1/agent/check/pass/nope", "403", "403"},

		{unknown, "GET /v1/agent/service/nope", "403", "403"},

		// The catalogue.
		{none, "GET /v1/catalog/datacenters", "200", "200"},
		{none, "GET /v1/catalog/nodes", "200 !", "200 n1 n2"},
		{`node "n2" { policy = "read" }`, "GET /v1/catalog/nodes", "200 n2 !", "200 n1 n2"},
		{noN2, "GET /v1/catalog/nodes", "200 !", "200 n1 !"},
		{unknown, "GET /v1/catalog/nodes", "403", "403"},
		{none, "GET /v1/catalog/node/n1", "200 !", "200 n1 web db"},
		{nodes, "GET /v1/catalog/node/n1", "200 n1 !", "200 n1 web db"},
		{web, "GET /v1/catalog/node/n1", "200 n1 web !", "200 n1 web db"},
		{unknown, "GET /v1/catalog/node/nope", "403", "403"},
		{none, "GET /v1/catalog/services", "200 !", "200 web db"},
		{webRead, "GET /v1/catalog/services", "200 web !", "200 web db"},
		{webRead, "GET /v1/catalog/services?node-meta=rack:a", "200 web !", "200 web db"},
		{noWeb, "GET /v1/catalog/services", "200 !", "200 db !"},
		{webRead, "GET /v1/catalog/service/web", "200 !", "200 n1 n2 web"},
		{nodes, "GET /v1/catalog/service/web", "200 !", "200 n1 n2 web"},
		{web, "GET /v1/catalog/service/web", "200 n1 n2 web", "200 n1 n2 web"},
		{n1, "GET /v1/catalog/service/web", "200 n1 web !", "200 n1 n2 web"},
		{noN2, "GET /v1/catalog/service/web", "200 !", "200 n1 web !"},
		{unknown, "GET /v1/catalog/service/web", "403", "403"},

		// Health.
		{none, "GET /v1/health/service/web", "200 !", "200 n1 n2 web"},
		{n1, "GET /v1/health/service/web", "200 n1 web !", "200 n1 n2 web"},
		{web, "GET /v1/health/service/web?passing", "200 n1 n2 web", "200 n1 n2 web"},
		{noWeb + nodes, "GET /v1/health/service/web", "200 !", "200 !"},
		{n1, "GET /v1/health/checks/web", "200 n1 web !", "200 n1 n2 web"},
		{nodes, "GET /v1/health/checks/web", "200 !", "200 n1 n2 web"},
		{web, "GET /v1/health/node/n1", "200 n1 web !", "200 n1 web db"},
		{none, "GET /v1/health/node/n1", "200 !", "200 n1 web db"},
		{nodes, "GET /v1/health/state/any", "200 n1 !", "200 n1 n2 web db"},
		{noN2, "GET /v1/health/state/passing", "200 !", "200 n1 web db !"},
		{unknown, "GET /v1/health/state/any", "403", "403"},

		// Keys.
		{none, "GET /v1/kv/a/k", "403", "200 a/k"},
		{aRead, "GET /v1/kv/a/k", "200 a/k", "200 a/k"},
		{aRead, "GET /v1/kv/a/nope", "404", "404"},
		{aRead, "GET /v1/kv/b/k", "403", "200 b/k"},
		{noB, "GET /v1/kv/b/k", "403", "403"},
		{noB, "GET /v1/kv/b/nope", "403", "403"},
		{`key "a/k" { policy = "list" }`, "GET /v1/kv/a/k", "200 a/k", "200 a/k"},
		{unknown, "GET /v1/kv/a/k", "403", "403"},
		{none, "GET /v1/kv/?recurse", "404 !", "200 a/k b/k"},
		{aRead, "GET /v1/kv/?recurse", "200 a/k !", "200 a/k b/k"},
		{noB, "GET /v1/kv/?recurse", "404 !", "200 a/k !"},
		{aRead, "GET /v1/kv/a/?recurse", "200 a/k", "200 a/k"},
		{aRead, "GET /v1/kv/?keys", "200 a/k !", "200 a/k b/k"},
		{noB, "GET /v1/kv/b/?keys", "404 !", "404 !"},
		{aRead, "PUT /v1/kv/a/k x", "403", "403"},
		{aWrite, "PUT /v1/kv/a/k x", "200", "200"},
		{aWrite, "PUT /v1/kv/b/k x", "403", "200"},
		{noB, "PUT /v1/kv/b/k x", "403", "403"},
		{aWrite + `key "a/k" { policy = "deny" }`, "PUT /v1/kv/a/k x", "403", "403"},
		{unknown, "PUT /v1/kv/a/k x", "403", "403"},
		{aRead, "DELETE /v1/kv/a/k", "403", "403"},
		{aWrite, "DELETE /v1/kv/a/k", "200", "200"},
		{aWrite, "DELETE /v1/kv/a/?recurse", "200", "200"},
		{aWrite, "DELETE /v1/kv/?recurse", "403", "200"},
		{aWrite + `key "a/x/y" { policy = "read" }`, "DELETE /v1/kv/a/?recurse", "403", "403"},
		{noB, "DELETE /v1/kv/?recurse", "403", "403"},

		// A proxy draws the connections that are meant for the service that it
		// stands for, whichever way it is registered.
		{webWrite, "PUT /v1/agent/service/register " + proxy("web", "Name"), "200", "200"},
		{webWrite + noDB, "PUT /v1/agent/service/register " + proxy("db", "Name"), "403", "403"},
		{webWrite, `PUT /v1/catalog/register {"Node": "n1", "SkipNodeUpdate": true, "Service": ` + proxy("db", "Service") + `}`, "403", "200"},
		{webWrite, `PUT /v1/txn [{"Service": {"Verb": "set", "Node": "n1", "Service": ` + proxy("web", "Service") + `}}]`, "200 web", "200 web"},
		{webWrite, `PUT /v1/txn [{"Service": {"Verb": "set", "Node": "n1", "Service": ` + proxy("db", "Service") + `}}]`, "409", "200 web db"},
		{webWrite + noDB, `PUT /v1/txn [{"Service": {"Verb": "cas", "Node": "n1", "Service": ` + proxy("db", "Service") + `}}]`, "409", "409"},

		// ACLs: not even reading them is allowed by default.
		{none, "GET /v1/acl/tokens", "403", "403"},
		{`acl = "read"`, "GET /v1/acl/tokens", "200", "200"},
		{`acl = "deny"`, "GET /v1/acl/policies", "403", "403"},
		{`acl = "read"`, `PUT /v1/acl/policy {"Name": "x"}`, "403", "403"},
		{`acl = "write"`, `PUT /v1/acl/policy {"Name": "x"}`, "200", "200"},
		{`operator = "write"`, "GET /v1/acl/roles", "403", "403"},

		// What is nobody's secret.
		{none, "GET /v1/status/leader", "200", "200"},
		{none, "GET /v1/status/peers", "200", "200"},
	}
	if len(tests) < 60 {
		t.Errorf("only %d cases", len(tests))
	}
	for _, tt := range tests {
		for _, allow := range []bool{false, true} {
			want := tt.deny
			if allow {
				want = tt.allow
			}
			t.Run(fmt.Sprintf("%s %s default allow %v", tt.request, tt.rules, allow), func(t *testing.T) {
				s := secure(furnished(), allow)
				secret := "01234567-89ab-4def-8123-456789abcdef"
				if tt.rules != unknown {
					secret = s.token(tt.rules)
				} else {
					s.token(none)
				}
				if got := s.ask(tt.request, secret); got != want {
					t.Errorf("%s, want %s", got, want)
				}
			})
		}
	}
}

// proxy is an instance of web that stands for a service, with its name in a field.
func proxy(of, field string) string {
	return fmt.Sprintf(`{"Kind": "connect-proxy", "ID": "p", %q: "web", "Port": 1, "Proxy": {"DestinationServiceName": %q}}`, field, of)
}

// furnished has services on two nodes, and keys.
func furnished() *world {
	w := newWorld()
	w.setUp("node passing")
	for _, name := range []string{"web", "db"} {
		_, err := w.Register(context.Background(), model.Registration{
			Instance: model.Instance{Node: "n1", ID: model.ServiceID(name + "-1"), Service: model.ServiceName(name), Weights: model.DefaultWeights},
			Checks:   []model.CheckSpec{{ID: model.CheckID("service:" + name + "-1"), ServiceID: model.ServiceID(name + "-1"), TTL: 1e10, Status: model.Passing}},
		})
		if err != nil {
			panic(err)
		}
	}
	for _, key := range []string{"a/k", "b/k"} {
		w.put("kv/"+key, state.Change{KV: &model.KV{Key: key}})
	}
	return w
}

// ask makes a request and sums its answer up.
func (s *secured) ask(request, secret string) string {
	method, rest, _ := strings.Cut(request, " ")
	url, body, _ := strings.Cut(rest, " ")
	r := httptest.NewRequest(method, url, strings.NewReader(body))
	r.Header.Set("X-Consul-Token", secret)
	rec := httptest.NewRecorder()
	s.http.ServeHTTP(rec, r)
	got := fmt.Sprint(rec.Code)
	if rec.Code == 200 {
		for _, thing := range []string{"n1", "n2", "web", "db", "a/k", "b/k"} {
			if strings.Contains(rec.Body.String(), `"`+thing+`"`) {
				got += " " + thing
			}
		}
	}
	if rec.Header().Get("X-Consul-Results-Filtered-By-ACLs") == "true" {
		got += " !"
	}
	return got
}
