package nativeapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/api"
)

// fakeSite notes what it is asked.
type fakeSite struct{ asked []string }

func (f *fakeSite) note(format string, a ...any) error {
	f.asked = append(f.asked, fmt.Sprintf(format, a...))
	return nil
}

func (f *fakeSite) Servers() []api.Server {
	return []api.Server{{Name: "a", ID: "1", Addr: "10.0.0.1:8300", Leader: true, Voter: true}}
}

func (f *fakeSite) RemoveServer(_ context.Context, name string, replace bool) error {
	return f.note("remove %s %v", name, replace)
}

func (f *fakeSite) JoinTokens() []api.JoinToken { return []api.JoinToken{{ID: "t", Uses: 2}} }

func (f *fakeSite) CreateJoinToken(_ context.Context, spec api.JoinTokenSpec) (api.JoinToken, error) {
	return api.JoinToken{ID: "t", Token: "secret"}, f.note("create %v %d %v", spec.Server, spec.Uses, spec.TTL)
}

func (f *fakeSite) DeleteJoinToken(_ context.Context, id string) error {
	return f.note("delete %s", id)
}
func (f *fakeSite) RevokeNode(_ context.Context, name string) error { return f.note("revoke %s", name) }

func TestTheSitesServersAndTokens(t *testing.T) {
	w, site := newWorld(), &fakeSite{}
	w.cfg.Site = site
	s := w.serve(t)
	ok := func(method, path, body string, status int) string {
		t.Helper()
		res, text := call(t, s, method, path, body)
		if res.StatusCode != status {
			t.Errorf("%s %s: %s: %s", method, path, res.Status, text)
		}
		return text
	}
	var servers []api.Server
	if err := json.Unmarshal([]byte(ok(http.MethodGet, "/servers", "", 200)), &servers); err != nil || !slices.Equal(servers, site.Servers()) {
		t.Errorf("%+v, %v", servers, err)
	}
	if text := ok(http.MethodGet, "/join-tokens", "", 200); !strings.Contains(text, `"uses": 2`) || strings.Contains(text, "token") {
		t.Error(text)
	}
	if text := ok(http.MethodPost, "/join-tokens", `{"server": true, "uses": 3, "ttl": 60000000000}`, 200); !strings.Contains(text, `"token": "secret"`) {
		t.Error(text)
	}
	ok(http.MethodPost, "/join-tokens", `{"servers": true}`, 400)
	ok(http.MethodDelete, "/join-tokens/t", "", 204)
	ok(http.MethodDelete, "/servers/a%20b", "", 204)
	ok(http.MethodDelete, "/servers/b?replace=true", "", 204)
	ok(http.MethodPost, "/nodes/c/revoke", "", 204)
	want := []string{fmt.Sprintf("create true 3 %v", time.Minute), "delete t", "remove a b false", "remove b true", "revoke c"}
	if !slices.Equal(site.asked, want) {
		t.Errorf("asked %q", site.asked)
	}
}

func TestAnAgentThatIsAloneHasNoServers(t *testing.T) {
	s := newWorld().serve(t)
	res, text := call(t, s, http.MethodGet, "/servers", "")
	if res.StatusCode != http.StatusNotImplemented || !strings.Contains(text, "fairlead up") {
		t.Errorf("%s: %s", res.Status, text)
	}
	for path, want := range map[string]bool{
		"/servers": true, "/servers/a": true, "/serversx": false, "/join-tokens": true, "/nodes/a/revoke": true, "/networks": false,
	} {
		if SitePath(api.Prefix+path) != want {
			t.Errorf("%s: %v", path, !want)
		}
	}
}
