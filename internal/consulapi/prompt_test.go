package consulapi_test

import (
	"net/http/httptest"
	"testing"

	"github.com/fairlead-net/fairlead/internal/consulapi"
)

func TestPrompt(t *testing.T) {
	for target, want := range map[string]bool{
		"/v1/kv/a":                                   true,
		"/v1/kv/index?raw":                           true,
		"/v1/kv/a?stale&flags=1&dc=dc1":              true,
		"/v1/health/service/web?passing&wait=5m":     true,
		"/v1/health/service/web?filter=a%3D%3Dindex": true,
		"/v1/agent/service/register?replace":         true,
		"/v1/kv/a?index=1":                           false,
		"/v1/kv/a?index":                             false,
		"/v1/kv/a?raw&index=1&wait=1s":               false,
		"/v1/kv/a?%69ndex=1":                         false,
		"/v1/kv/a?consistent":                        false,
		"/v1/kv/a?a;index=1":                         false,
		"/v1/agent/service/web?hash=1":               false,
		"/v1/agent/monitor":                          false,
		"/v1/agent/leave":                            false,
		"/v1/snapshot":                               false,
		"/v1/event/list":                             false,
		"/v1/connect/ca/roots":                       false,
		"/v1/agent/metrics?format=prometheus":        false,
		"/metrics":                                   false,
		"/fairlead/v1/status":                        false,
		"/":                                          false,
	} {
		if got := consulapi.Prompt(httptest.NewRequest("GET", target, nil)); got != want {
			t.Errorf("%s: %v", target, got)
		}
	}
}
