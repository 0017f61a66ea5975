package acl_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/fairlead-net/fairlead/internal/acl"
)

func rules(t *testing.T, texts ...string) []acl.Rules {
	t.Helper()
	var all []acl.Rules
	for _, text := range texts {
		rs, err := acl.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, rs)
	}
	return all
}

// rights prints what of read, list and write is allowed, and of the same for a
// whole prefix after a slash.
func rights(a acl.Authorizer, r acl.Resource, name string) string {
	var one, all string
	for _, access := range []acl.Access{acl.Read, acl.List, acl.Write} {
		if a.Allow(r, name, access) {
			one += string(access[0])
		}
		if a.AllowPrefix(r, name, access) {
			all += string(access[0])
		}
	}
	return one + "/" + all
}

func TestAuthorizer(t *testing.T) {
	tests := []struct {
		rules string // of several policies, with "---" between them
		// What is asked, and the answers with a default of deny and of allow.
		ask, deny, allow string
	}{
		// Nothing is said.
		{``, `key a`, "/", "rlw/rlw"},
		{``, `acl`, "/", "/"},
		{``, `operator`, "/", "rlw/rlw"},
		{``, `mesh`, "/", "rlw/rlw"},
		{``, `intention a`, "/", "rlw/rlw"},
		{`key "b" { policy = "read" }`, `key a`, "/", "rlw/rlw"},

		// One rule.
		{`key "a" { policy = "read" }`, `key a`, "r/", "r/r"},
		{`key "a" { policy = "list" }`, `key a`, "rl/", "rl/rl"},
		{`key "a" { policy = "write" }`, `key a`, "rlw/", "rlw/rlw"},
		{`key "a" { policy = "deny" }`, `key a`, "/", "/"},
		{`key "a" { policy = "read" }`, `key ab`, "/", "rlw/rlw"},
		{`key_prefix "a" { policy = "read" }`, `key ab`, "r/r", "r/r"},
		{`key_prefix "a" { policy = "list" }`, `key ab`, "rl/rl", "rl/rl"},
		{`key_prefix "" { policy = "write" }`, `key ab`, "rlw/rlw", "rlw/rlw"},
		{`key_prefix "ab" { policy = "write" }`, `key a`, "/", "rlw/rlw"},
		{`acl = "read"`, `acl`, "r/r", "r/r"},
		{`acl = "write"`, `acl`, "rlw/rlw", "rlw/rlw"},

		// Exact beats prefix, longer beats shorter, in any order.
		{`key_prefix "" { policy = "deny" } key "a" { policy = "write" }`, `key a`, "rlw/", "rlw/"},
		{`key "a" { policy = "deny" } key_prefix "a" { policy = "write" }`, `key a`, "/", "/"},
		{`key_prefix "a/" { policy = "deny" } key_prefix "a/b/" { policy = "write" }`, `key a/b/c`, "rlw/rlw", "rlw/rlw"},
		{`key_prefix "a/b/" { policy = "deny" } key_prefix "a/" { policy = "write" }`, `key a/b/c`, "/", "/"},

		// A prefix may be written only if nothing below is refused.
		{`key_prefix "a/" { policy = "write" } key "a/x" { policy = "read" }`, `key a/`, "rlw/r", "rlw/r"},
		{`key_prefix "a/" { policy = "write" } key_prefix "a/x/" { policy = "deny" }`, `key a/`, "rlw/", "rlw/"},
		{`key_prefix "a/" { policy = "write" } key_prefix "b/" { policy = "deny" }`, `key a/`, "rlw/rlw", "rlw/rlw"},
		{`key_prefix "a/" { policy = "write" } key_prefix "a/x/" { policy = "deny" }`, `key a/y/`, "rlw/rlw", "rlw/rlw"},
		{`key_prefix "a/x" { policy = "write" }`, `key a/`, "/", "rlw/rlw"},

		// Several policies: at one name deny > write > list > read.
		{`key "a" { policy = "write" } --- key "a" { policy = "deny" }`, `key a`, "/", "/"},
		{`key "a" { policy = "read" } --- key "a" { policy = "write" }`, `key a`, "rlw/", "rlw/rlw"},
		{`key "a" { policy = "list" } --- key "a" { policy = "read" }`, `key a`, "rl/", "rl/rl"},
		{`key "a" { policy = "read" } --- key_prefix "a" { policy = "deny" }`, `key a`, "r/", "r/"},
		{`key "a" { policy = "write" } key "a" { policy = "deny" }`, `key a`, "/", "/"},
		{`operator = "write" --- operator = "read"`, `operator`, "rlw/rlw", "rlw/rlw"},
		{`operator = "write" --- operator = "deny"`, `operator`, "/", "/"},

		// Intentions come with a service, if only to be read.
		{`service "a" { policy = "write" }`, `intention a`, "r/", "r/r"},
		{`service "a" { policy = "read" }`, `intention a`, "r/", "r/r"},
		{`service "a" { policy = "deny" }`, `intention a`, "/", "/"},
		{`service "a" { policy = "read" intentions = "write" }`, `intention a`, "rlw/", "rlw/rlw"},
		{`service_prefix "" { policy = "write" intentions = "deny" }`, `intention a`, "/", "/"},
		{`service "a" { policy = "write" } --- service "a" { policy = "read" intentions = "write" }`, `intention a`, "rlw/", "rlw/rlw"},

		// Mesh and peering are operators' where nothing is said of them.
		{`operator = "read"`, `mesh`, "r/r", "r/r"},
		{`operator = "write"`, `peering`, "rlw/rlw", "rlw/rlw"},
		{`operator = "write" mesh = "deny"`, `mesh`, "/", "/"},
		{`operator = "deny"`, `peering`, "/", "/"},
		{`operator = "write"`, `keyring`, "/", "rlw/rlw"},

		// Resources do not speak for each other.
		{`node_prefix "" { policy = "write" }`, `agent n1`, "/", "rlw/rlw"},
		{`agent "n1" { policy = "read" }`, `agent n1`, "r/", "r/r"},
		{`session_prefix "n" { policy = "write" }`, `session n1`, "rlw/rlw", "rlw/rlw"},
		{`event "deploy" { policy = "write" }`, `event deploy`, "rlw/", "rlw/rlw"},
		{`query_prefix "web" { policy = "read" }`, `query web-1`, "r/r", "r/r"},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%s asks %s", tt.rules, tt.ask), func(t *testing.T) {
			r, name, _ := strings.Cut(tt.ask, " ")
			all := rules(t, strings.Split(tt.rules, "---")...)
			for _, allow := range []bool{false, true} {
				want := tt.deny
				if allow {
					want = tt.allow
				}
				if got := rights(acl.New("id", allow, all...), acl.Resource(r), name); got != want {
					t.Errorf("default allow %v: %s, want %s", allow, got, want)
				}
			}
		})
	}
}

func TestBuiltinPolicies(t *testing.T) {
	for _, tt := range []struct {
		policy, want string
	}{{acl.Builtin()[0].Rules, "rlw/rlw"}, {acl.Builtin()[1].Rules, "r/r"}} {
		a := acl.New("id", false, rules(t, tt.policy)...)
		for _, r := range []acl.Resource{
			acl.ACL, acl.Agent, acl.Event, acl.Intention, acl.Key, acl.Keyring, acl.Mesh, acl.Node, acl.Operator, acl.Peering,
			acl.Query, acl.Service, acl.Session,
		} {
			if got := rights(a, r, "x"); got != tt.want {
				t.Errorf("%s: %s, want %s", r, got, tt.want)
			}
		}
	}
}

func TestIdentityRules(t *testing.T) {
	a := acl.New("id", false, acl.ServiceRules("web"), acl.NodeRules("n1"))
	for ask, want := range map[string]string{
		"service web": "rlw/", "service web-sidecar-proxy": "rlw/rlw", "service db": "r/r",
		"node n1": "rlw/rlw", "node n2": "r/r", "key a": "/", "session n1": "/",
	} {
		r, name, _ := strings.Cut(ask, " ")
		got := rights(a, acl.Resource(r), name)
		// What is below an identity's name is only the sidecar and what may be read.
		if strings.Split(got, "/")[0] != strings.Split(want, "/")[0] {
			t.Errorf("%s: %s, want %s", ask, got, want)
		}
	}
}
