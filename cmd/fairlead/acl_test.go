package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/api"
)

// serveACL answers with a fixed set of tokens, policies and roles, and takes what
// is written to as it comes, with an id.
func serveACL(w http.ResponseWriter, r *http.Request, path string, body []byte) {
	end := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	tokens := []api.ACLToken{
		{AccessorID: "00000000-0000-0000-0000-000000000002", SecretID: "<hidden>", Description: "Anonymous Token"},
		{
			AccessorID: "acc-1", SecretID: "sec-1", Description: "web's\x1b[31m own", Policies: []api.ACLLink{{ID: "pol-1", Name: "kv"}, {ID: "pol-2", Name: "dns"}},
			Roles:             []api.ACLLink{{ID: "role-1", Name: "ops"}},
			ServiceIdentities: []api.ACLServiceIdentity{{ServiceName: "web"}, {ServiceName: "db", Datacenters: []string{"dc1", "dc2"}}},
			NodeIdentities:    []api.ACLNodeIdentity{{NodeName: "host-1", Datacenter: "dc1"}}, ExpirationTime: &end,
		},
	}
	policy := api.ACLPolicy{ID: "pol-1", Name: "kv", Description: "keys", Datacenters: []string{"dc1"}, Rules: "key_prefix \"app/\" {\n  policy = \"read\"\n}\n"}
	role := api.ACLRole{ID: "role-1", Name: "ops", Description: "all of it", Policies: tokens[1].Policies, ServiceIdentities: tokens[1].ServiceIdentities}
	written := func(v any, id *string, made string) {
		if err := json.Unmarshal(body, v); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if *id == "" {
			*id = made
		}
		_ = json.NewEncoder(w).Encode(v)
	}
	var v any
	switch what := r.Method + " " + path; {
	case what == "PUT bootstrap" && r.Header.Get("X-Consul-Token") != "":
		http.Error(w, "Permission denied: ACL bootstrap no longer allowed (reset index: 17)", http.StatusForbidden)
		return
	case what == "PUT bootstrap":
		v = api.ACLToken{AccessorID: "acc-0", SecretID: "sec-0", Description: "Bootstrap Token (Global Management)", Policies: []api.ACLLink{{Name: "global-management"}}}
	case what == "GET tokens":
		v = tokens
	case what == "GET token/acc-1", what == "GET token/self":
		v = tokens[1]
	case what == "GET policies":
		v = []api.ACLPolicy{{ID: "pol-1", Name: "kv", Description: "keys", Datacenters: []string{"dc1"}}, {ID: "pol-2", Name: "dns"}}
	case what == "GET policy/name/kv":
		v = policy
	case what == "GET roles":
		v = []api.ACLRole{role}
	case what == "GET role/name/ops":
		v = role
	case r.Method == http.MethodDelete && strings.HasSuffix(path, "-1"):
		v = true
	case r.Method == http.MethodPut && strings.HasPrefix(path, "token"):
		t := api.ACLToken{SecretID: "sec-2"}
		written(&t, &t.AccessorID, "acc-2")
		return
	case r.Method == http.MethodPut && strings.HasPrefix(path, "policy"):
		var p api.ACLPolicy
		written(&p, &p.ID, "pol-3")
		return
	case r.Method == http.MethodPut && strings.HasPrefix(path, "role"):
		var p api.ACLRole
		written(&p, &p.ID, "role-2")
		return
	default:
		http.Error(w, fmt.Sprintf("Requested %s does not exist: ACL not found", strings.Split(path, "/")[0]), http.StatusNotFound)
		return
	}
	_ = json.NewEncoder(w).Encode(v)
}

// TestTokenSources: a flag beats our variable, which beats Consul's.
func TestTokenSources(t *testing.T) {
	a := newAgent(t)
	for _, tt := range []struct{ flag, ours, consuls, want string }{
		{"", "", "", ""},
		{"", "", "c", " as c"},
		{"", "o", "c", " as o"},
		{"f", "o", "c", " as f"},
	} {
		t.Setenv("FAIRLEAD_TOKEN", tt.ours)
		t.Setenv("CONSUL_HTTP_TOKEN", tt.consuls)
		args := []string{"kv", "ls"}
		if tt.flag != "" {
			args = append(args, "--token", tt.flag)
		}
		var out strings.Builder
		execute(t.Context(), args, strings.NewReader(""), &out, &out)
		if got := a.requests(); len(got) != 1 || got[0] != "GET /v1/kv/?keys="+tt.want {
			t.Errorf("%+v: asked %q", tt, got)
		}
	}
}
