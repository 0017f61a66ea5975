package promsd

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// world has two nodes with web on both, db on one and a service in maintenance.
func world() *state.State {
	s := state.New()
	s.Apply(10, []state.Change{
		{Node: &model.Node{Name: "n1", Address: "10.0.0.1", Datacenter: "fra", Meta: map[string]string{"rack-no": "7"}, TaggedAddresses: map[string]string{"wan": "192.0.2.1"}}},
		{Node: &model.Node{Name: "n2", Address: "fd00::2"}},
		{Instance: &model.Instance{Node: "n1", ID: "web-1", Service: "web", Port: 80, Tags: []string{"v1", "edge"}, Meta: map[string]string{"team.name": "a", "x": "1"}}},
		{Instance: &model.Instance{Node: "n2", ID: "web-2", Service: "web", Address: "fd00::20", Port: 81, Tags: []string{"v1"}}},
		{Instance: &model.Instance{Node: "n1", ID: "db", Service: "db", Port: 5432}},
		{Instance: &model.Instance{Node: "n2", ID: "old", Service: "old", Port: 1}},
		{Check: &model.Check{Node: "n1", ID: "c1", ServiceID: "web-1", Status: model.Passing}},
		{Check: &model.Check{Node: "n2", ID: "c2", ServiceID: "web-2", Status: model.Warning}},
		{Check: &model.Check{Node: "n2", ID: "_service_maintenance:old", ServiceID: "old", Status: model.Critical}},
	})
	return s
}

func ask(t *testing.T, h http.Handler, method, query string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, Path+query, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func targets(t *testing.T, w *httptest.ResponseRecorder) []string {
	t.Helper()
	var groups []group
	if err := json.Unmarshal(w.Body.Bytes(), &groups); err != nil || groups == nil {
		t.Fatalf("%d %s: %v", w.Code, w.Body, err)
	}
	out := []string{}
	for _, g := range groups {
		out = append(out, g.Targets...)
	}
	return out
}

func TestTargets(t *testing.T) {
	h := New(Config{Site: "dc1"}, world())
	for _, c := range []struct {
		query string
		want  []string
	}{
		{"", []string{"10.0.0.1:5432", "[fd00::2]:1", "10.0.0.1:80", "[fd00::20]:81"}},
		{"?service=web", []string{"10.0.0.1:80", "[fd00::20]:81"}},
		{"?service=web&service=db&service=web", []string{"10.0.0.1:5432", "10.0.0.1:80", "[fd00::20]:81"}},
		{"?service=none", []string{}},
		{"?service=", []string{}},
		{"?tag=v1", []string{"10.0.0.1:80", "[fd00::20]:81"}},
		{"?tag=v1&tag=edge", []string{"10.0.0.1:80"}},
		{"?passing", []string{"10.0.0.1:5432", "10.0.0.1:80"}},
		{"?passing=false&service=web", []string{"10.0.0.1:80", "[fd00::20]:81"}},
		{"?node-meta=rack-no:7&service=web", []string{"10.0.0.1:80"}},
		{"?node-meta=rack-no:8", []string{}},
		{"?node-meta=none:", []string{}},
	} {
		if got := targets(t, ask(t, h, "GET", c.query)); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.query, got, c.want)
		}
	}
}

func TestLabels(t *testing.T) {
	h := New(Config{Site: "dc1"}, world())
	w := ask(t, h, "GET", "?service=web")
	const want = `[{"targets":["10.0.0.1:80"],"labels":{"__meta_fairlead_address":"10.0.0.1","__meta_fairlead_dc":"fra","__meta_fairlead_health":"passing","__meta_fairlead_metadata_rack_no":"7","__meta_fairlead_node":"n1","__meta_fairlead_service":"web","__meta_fairlead_service_address":"","__meta_fairlead_service_id":"web-1","__meta_fairlead_service_metadata_team_name":"a","__meta_fairlead_service_metadata_x":"1","__meta_fairlead_service_port":"80","__meta_fairlead_site":"fra","__meta_fairlead_tagged_address_wan":"192.0.2.1","__meta_fairlead_tags":",v1,edge,"}},` +
		`{"targets":["[fd00::20]:81"],"labels":{"__meta_fairlead_address":"fd00::2","__meta_fairlead_dc":"dc1","__meta_fairlead_health":"warning","__meta_fairlead_node":"n2","__meta_fairlead_service":"web","__meta_fairlead_service_address":"fd00::20","__meta_fairlead_service_id":"web-2","__meta_fairlead_service_port":"81","__meta_fairlead_site":"dc1","__meta_fairlead_tags":",v1,"}}]`
	if got := w.Body.String(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if ct := w.Header().Get("Content-Type"); ct != "application/json" { // Prometheus takes nothing else
		t.Errorf("content type %q", ct)
	}
	if got := ask(t, h, "GET", "?service=old").Body.String(); !strings.Contains(got, `"__meta_fairlead_health":"maintenance"`) {
		t.Errorf("in maintenance: %s", got)
	}
}

func TestRefusals(t *testing.T) {
	h := New(Config{}, world())
	for _, c := range []struct {
		method, query string
		status        int
		want          string
	}{
		{"GET", "?pasing", 400, `unknown parameter "pasing"`},
		{"GET", "?passing=maybe", 400, "want true or false"},
		{"GET", "?node-meta=rack", 400, "want KEY:VALUE"},
		{"GET", "?tag=%zz", 400, "query:"},
		{"POST", "", 405, "not allowed"},
	} {
		w := ask(t, h, c.method, c.query)
		if w.Code != c.status || !strings.Contains(w.Body.String(), c.want) {
			t.Errorf("%s %s: %d %s", c.method, c.query, w.Code, w.Body)
		}
	}
}

// TestWhatIsKnownIsNotSentAgain, and everything is once something changed.
func TestWhatIsKnownIsNotSentAgain(t *testing.T) {
	for name, authority := range map[string]Authority{"acl off": nil, "acl on": rights{}} {
		t.Run(name, func(t *testing.T) {
			s := world()
			h := New(Config{Authority: authority}, s)
			first := ask(t, h, "GET", "?service=web", "X-Consul-Token", "all")
			tag := first.Header().Get("ETag")
			if tag == "" || first.Code != 200 {
				t.Fatalf("%d, tag %q", first.Code, tag)
			}
			for _, match := range []string{tag, "W/" + tag, `"x", ` + tag, "*"} {
				w := ask(t, h, "GET", "?service=web", "If-None-Match", match, "X-Consul-Token", "all")
				if w.Code != http.StatusNotModified || w.Body.Len() > 0 || w.Header().Get("ETag") != tag {
					t.Errorf("%s: %d %s", match, w.Code, w.Body)
				}
			}
			s.Apply(11, []state.Change{{Instance: &model.Instance{Node: "n1", ID: "db", Service: "db", Port: 5433}}})
			if w := ask(t, h, "GET", "?service=web", "If-None-Match", tag, "X-Consul-Token", "all"); w.Code != http.StatusNotModified {
				t.Errorf("after a change elsewhere: %d", w.Code)
			}
			s.Apply(12, []state.Change{{Check: &model.Check{Node: "n1", ID: "c1", ServiceID: "web-1", Status: model.Critical}}})
			w := ask(t, h, "GET", "?service=web", "If-None-Match", tag, "X-Consul-Token", "all")
			if w.Code != http.StatusOK || w.Header().Get("ETag") == tag || !strings.Contains(w.Body.String(), "critical") {
				t.Errorf("after a change: %d %s", w.Code, w.Body)
			}
		})
	}
}

// rights lets "all" see everything, "web" the service web on n1 and nobody else
// anything; "bad" is unknown.
type rights struct{}

func (rights) Resolve(secret string) (acl.Authorizer, error) {
	switch secret {
	case "all":
		return acl.AllowAll(), nil
	case "bad":
		return nil, errors.New("ACL not found")
	case "web":
		return only{}, nil
	}
	return acl.DenyAll(), nil
}

type only struct{ acl.Authorizer }

func (only) Allow(r acl.Resource, name string, a acl.Access) bool {
	return a == acl.Read && (r == acl.Service && name == "web" || r == acl.Node && name == "n1")
}

func TestTokens(t *testing.T) {
	h := New(Config{Authority: rights{}}, world())
	for _, c := range []struct {
		query  string
		header []string
		want   []string
		hidden string
	}{
		{"", nil, []string{}, "true"},
		{"?token=web", nil, []string{"10.0.0.1:80"}, "true"},
		{"", []string{"X-Consul-Token", "web"}, []string{"10.0.0.1:80"}, "true"},
		{"", []string{"Authorization", "Bearer web"}, []string{"10.0.0.1:80"}, "true"},
		{"?service=db&token=all", []string{"X-Consul-Token", "web"}, []string{"10.0.0.1:5432"}, ""},
		{"?service=web&tag=edge&token=web", nil, []string{"10.0.0.1:80"}, ""},
	} {
		w := ask(t, h, "GET", c.query, c.header...)
		if got := targets(t, w); !slices.Equal(got, c.want) || w.Header().Get("X-Consul-Results-Filtered-By-ACLs") != c.hidden {
			t.Errorf("%s %v: %q, want %q (filtered: %q)", c.query, c.header, got, c.want, w.Header().Get("X-Consul-Results-Filtered-By-ACLs"))
		}
	}
	if w := ask(t, h, "GET", "?token=bad"); w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), "ACL not found") {
		t.Errorf("an unknown token: %d %s", w.Code, w.Body)
	}
}

func FuzzQuestion(f *testing.F) {
	f.Add("service=web&tag=a&passing&node-meta=a:b")
	f.Add("passing=1&token=%00")
	h := New(Config{}, world())
	f.Fuzz(func(t *testing.T, raw string) {
		r := httptest.NewRequestWithContext(t.Context(), "GET", Path, nil)
		r.URL.RawQuery = raw
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code == http.StatusOK && !json.Valid(w.Body.Bytes()) {
			t.Errorf("no JSON: %s", w.Body)
		}
	})
}
