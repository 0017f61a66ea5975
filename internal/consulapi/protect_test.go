package consulapi_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/fairlead-net/fairlead/internal/consulapi"
)

func TestProtect(t *testing.T) {
	passed := 0
	next := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { passed++ })
	behind := consulapi.Protect(rulesAuthority{}, next)
	for _, tt := range []struct {
		method, url, token string
		code               int
	}{
		{"GET", "/x", ``, 403},
		{"GET", "/x", `operator = "read"`, 200},
		{"HEAD", "/x", `operator = "read"`, 200},
		{"POST", "/x", `operator = "read"`, 403},
		{"DELETE", "/x", `operator = "write"`, 200},
		{"GET", "/x", `node_prefix "" { policy = "write" }`, 403},
		{"GET", "/x", "unknown", 403},
		{"GET", "/x?token=operator%3D%22read%22", ``, 200},
		{"GET", "/x?token=%zz", `operator = "read"`, 400},
	} {
		r := httptest.NewRequest(tt.method, tt.url, nil)
		r.Header.Set("X-Consul-Token", tt.token)
		rec := httptest.NewRecorder()
		before := passed
		behind.ServeHTTP(rec, r)
		if rec.Code != tt.code || (passed > before) != (tt.code == 200) {
			t.Errorf("%s %s as %s: %d, passed on %v; want %d", tt.method, tt.url, tt.token, rec.Code, passed > before, tt.code)
		}
	}
	agents := consulapi.ProtectAgent(rulesAuthority{}, "n1", next)
	for rules, code := range map[string]int{``: 403, `operator = "read"`: 403, `agent "n2" { policy = "read" }`: 403, `agent "n1" { policy = "read" }`: 200} {
		r := httptest.NewRequest("GET", "/metrics", nil)
		r.Header.Set("X-Consul-Token", rules)
		rec := httptest.NewRecorder()
		if agents.ServeHTTP(rec, r); rec.Code != code {
			t.Errorf("an agent's own as %s: %d, want %d", rules, rec.Code, code)
		}
	}
	rec := httptest.NewRecorder()
	before := passed
	consulapi.Protect(nil, next).ServeHTTP(rec, httptest.NewRequest("POST", "/x", nil))
	if passed != before+1 {
		t.Error("without ACLs a request is not passed on")
	}
}
