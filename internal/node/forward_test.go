package node

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
)

func TestWhoAnswersOnAnAgent(t *testing.T) {
	for _, c := range []struct {
		method, path string
		want         place
	}{
		{"PUT", "/v1/agent/service/register", here},
		{"GET", "/v1/agent/self", here},
		{"GET", "/v1/agent/connect/ca/roots", here},
		{"GET", "/v1/agent/connect/ca/leaf/web", atServers},
		{"GET", "/v1/catalog/services", here},
		{"GET", "/v1/catalog/services?stale", here},
		{"GET", "/v1/health/service/web?consistent", atServers},
		{"PUT", "/v1/catalog/register", atServers},
		{"GET", "/v1/kv/a//b", atServers},
		{"PUT", "/v1/session/create", atServers},
		{"PUT", "/v1/txn", atServers},
		{"GET", "/v1/query/q/execute", atServers},
		{"GET", "/v1/status/leader", atServers},
		{"PUT", "/v1/acl/token", atServers},
		{"GET", "/v1/snapshot", atServers},
		{"PUT", "/v1/event/fire/x", here},
		{"GET", "/fairlead/v1/networks", here},
		{"GET", "/fairlead/v1/servers", atServers},
		{"POST", "/fairlead/v1/join-tokens", atServerHosts},
		{"DELETE", "/fairlead/v1/servers/s1", atServerHosts},
		{"POST", "/fairlead/v1/nodes/s1/revoke", atServerHosts},
		{"GET", "/metrics", here},
		{"GET", "/prometheus/sd", here},
	} {
		u, err := url.Parse(c.path)
		if err != nil {
			t.Fatal(err)
		}
		if got := where(c.method, u); got != c.want {
			t.Errorf("%s %s: %v, want %v", c.method, c.path, got, c.want)
		}
	}
}

func TestAnAgentNamesItselfWhenItPassesOn(t *testing.T) {
	r := httptest.NewRequest(http.MethodGet, "/v1/query/q/execute?near=_agent&limit=2", nil)
	if got := nearHere(r, "web").URL.Query(); got.Get("near") != "web" || got.Get("limit") != "2" {
		t.Errorf("%v", got)
	}
	r = httptest.NewRequest(http.MethodGet, "/v1/query/q/execute?near=other", nil)
	if nearHere(r, "web") != r {
		t.Error("another node is replaced")
	}
}
