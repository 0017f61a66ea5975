package compat

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	miekg "github.com/miekg/dns"
)

// startACL starts an agent with ACLs and returns a client that may do everything.
func startACL(t *testing.T, settings ...string) (*agent, *api.Client) {
	t.Helper()
	a := startAgent(t, append([]string{"acl=true", "acl-default-policy=deny"}, settings...)...)
	root, _, err := a.client().ACL().Bootstrap()
	must(t, err)
	return a, a.client(root.SecretID)
}

// tokenFor makes a token with a policy of these rules, and returns its secret.
func tokenFor(t *testing.T, root *api.Client, name, rules string) string {
	t.Helper()
	_, _, err := root.ACL().PolicyCreate(&api.ACLPolicy{Name: name, Rules: rules}, nil)
	must(t, err)
	tok, _, err := root.ACL().TokenCreate(&api.ACLToken{Policies: []*api.ACLLink{{Name: name}}}, nil)
	must(t, err)
	return tok.SecretID
}

// refused checks for a status and a part of what was said.
func refused(t *testing.T, err error, code int, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("code: %d", code)) || !strings.Contains(err.Error(), text) {
		t.Errorf("error %v, want %d with %q", err, code, text)
	}
}

func TestACLBootstrapMethods(t *testing.T) {
	a := startAgent(t, "acl=true", "acl-default-policy=deny")
	c := a.client()
	_, _, err := c.ACL().TokenList(nil)
	refused(t, err, 403, "Permission denied: anonymous token lacks permission 'acl:read'. The anonymous token is used implicitly when a request does not specify a token.")
	_, _, err = a.client("01234567-89ab-4def-8123-456789abcdef").ACL().TokenList(nil)
	refused(t, err, 403, "ACL system must be bootstrapped before making any requests that require authorization: ACL not found")

	const secret = "2b778dd9-f5f1-6f29-b4b4-9a5fa948757a"
	root, _, err := c.ACL().BootstrapWithToken(secret)
	must(t, err)
	if root.SecretID != secret || len(root.Policies) != 1 || root.Policies[0].Name != "global-management" {
		t.Errorf("the first token: %+v", root)
	}
	_, _, err = c.ACL().Bootstrap()
	refused(t, err, 403, "Permission denied: ACL bootstrap no longer allowed (reset index: ")
	all, _, err := a.client(secret).ACL().TokenList(nil)
	must(t, err)
	if len(all) != 2 { // it, and the anonymous one
		t.Errorf("%d tokens, want 2", len(all))
	}
	_, _, err = a.client("01234567-89ab-4def-8123-456789abcdef").ACL().TokenList(nil)
	refused(t, err, 403, "ACL not found")
}

func TestACLInitialManagementToken(t *testing.T) {
	a := startAgent(t, "acl=true", "acl-default-policy=deny", "acl-initial-management-token=root", "dev=false")
	self, _, err := a.client("root").ACL().TokenReadSelf(nil)
	must(t, err)
	if self.SecretID != "root" || self.Policies[0].Name != "global-management" {
		t.Errorf("token %+v", self)
	}
	_, _, err = a.client().ACL().Bootstrap()
	refused(t, err, 403, "ACL bootstrap no longer allowed")
	b := a.restart()
	again, _, err := b.client("root").ACL().TokenReadSelf(nil)
	must(t, err)
	if again.AccessorID != self.AccessorID {
		t.Error("a restart made another token")
	}
}

func TestACLTokenMethods(t *testing.T) {
	a, root := startACL(t)
	acl := root.ACL()
	_, _, err := acl.PolicyCreate(&api.ACLPolicy{Name: "kv", Rules: `key_prefix "" { policy = "read" }`}, nil)
	must(t, err)
	_, _, err = acl.RoleCreate(&api.ACLRole{Name: "ops", Policies: []*api.ACLLink{{Name: "kv"}}}, nil)
	must(t, err)

	made, _, err := acl.TokenCreate(&api.ACLToken{
		Description: "one", Policies: []*api.ACLLink{{Name: "kv"}}, Roles: []*api.ACLLink{{Name: "ops"}},
		ServiceIdentities: []*api.ACLServiceIdentity{{ServiceName: "web", Datacenters: []string{"dc1"}}},
		NodeIdentities:    []*api.ACLNodeIdentity{{NodeName: "n1", Datacenter: "dc1"}}, ExpirationTTL: time.Hour,
	}, nil)
	must(t, err)
	if made.AccessorID == "" || made.SecretID == "" || made.ExpirationTime == nil || len(made.Hash) != 32 || made.CreateIndex == 0 {
		t.Errorf("token %+v", made)
	}
	read, meta, err := acl.TokenRead(made.AccessorID, nil)
	must(t, err)
	if read.SecretID != made.SecretID || read.Policies[0].Name != "kv" || read.Roles[0].Name != "ops" || !slices.Equal(read.Hash, made.Hash) || meta.LastIndex == 0 {
		t.Errorf("token read %+v", read)
	}
	expanded, _, err := acl.TokenReadExpanded(made.AccessorID, nil)
	must(t, err)
	if len(expanded.ExpandedPolicies) != 1 || len(expanded.ExpandedRoles) != 1 || expanded.AgentACLDefaultPolicy != "deny" {
		t.Errorf("expanded %+v", expanded)
	}
	self, _, err := a.client(made.SecretID).ACL().TokenReadSelf(nil)
	must(t, err)
	if self.AccessorID != made.AccessorID {
		t.Errorf("self %+v", self)
	}

	read.Description, read.Roles = "two", nil
	changed, _, err := acl.TokenUpdate(read, nil)
	must(t, err)
	if changed.Description != "two" || changed.Roles != nil || changed.ModifyIndex <= made.ModifyIndex || slices.Equal(changed.Hash, made.Hash) {
		t.Errorf("changed %+v", changed)
	}
	clone, _, err := acl.TokenClone(made.AccessorID, "three", nil)
	must(t, err)
	if clone.AccessorID == made.AccessorID || clone.Description != "three" || clone.Policies[0].Name != "kv" {
		t.Errorf("clone %+v", clone)
	}
	count := func(f api.ACLTokenFilterOptions) int {
		t.Helper()
		list, _, err := acl.TokenListFiltered(f, nil)
		must(t, err)
		return len(list)
	}
	if got := count(api.ACLTokenFilterOptions{Policy: made.Policies[0].ID}); got != 2 {
		t.Errorf("%d tokens with the policy, want 2", got)
	}
	if got := count(api.ACLTokenFilterOptions{ServiceName: "web"}); got != 2 {
		t.Errorf("%d tokens of the service, want 2", got)
	}
	if got := count(api.ACLTokenFilterOptions{Role: made.Roles[0].ID}); got != 0 {
		t.Errorf("%d tokens with the role, want 0", got)
	}

	_, err = acl.TokenDelete(clone.AccessorID, nil)
	must(t, err)
	_, err = acl.TokenDelete(clone.AccessorID, nil)
	refused(t, err, 404, "Cannot find token to delete")
	_, _, err = acl.TokenRead(clone.AccessorID, nil)
	refused(t, err, 404, "Requested token does not exist: ACL not found")
	_, _, err = a.client(clone.SecretID).KV().Get("x", nil)
	refused(t, err, 403, "ACL not found")
	_, _, err = a.client(clone.SecretID).ACL().TokenReadSelf(nil)
	refused(t, err, 404, "Supplied token does not exist")
}

func TestACLPolicyAndRoleMethods(t *testing.T) {
	_, root := startACL(t)
	acl := root.ACL()
	p, _, err := acl.PolicyCreate(&api.ACLPolicy{Name: "kv", Rules: `key "a" { policy = "read" }`, Datacenters: []string{"dc1"}}, nil)
	must(t, err)
	_, _, err = acl.PolicyCreate(&api.ACLPolicy{Name: "kv"}, nil)
	refused(t, err, 500, `Invalid Policy: A Policy with Name "kv" already exists`)
	_, _, err = acl.PolicyCreate(&api.ACLPolicy{Name: "bad", Rules: `key "a" {`}, nil)
	refused(t, err, 500, "Failed to parse ACL rules")
	p.Name, p.Description = "keys", "d"
	p, _, err = acl.PolicyUpdate(p, nil)
	must(t, err)
	read, _, err := acl.PolicyRead(p.ID, nil)
	must(t, err)
	named, _, err := acl.PolicyReadByName("keys", nil)
	must(t, err)
	if read.Name != "keys" || named.ID != p.ID || named.Rules != `key "a" { policy = "read" }` || named.Description != "d" {
		t.Errorf("read %+v, by name %+v", read, named)
	}
	builtin, _, err := acl.PolicyReadByName("builtin/global-read-only", nil)
	must(t, err)
	none, _, err := acl.PolicyReadByName("kv", nil)
	if builtin == nil || none != nil || err != nil {
		t.Errorf("builtin %v; the old name: %v, %v", builtin, none, err)
	}
	list, _, err := acl.PolicyList(nil)
	if err != nil || len(list) != 3 {
		t.Errorf("%d policies, %v; want 3", len(list), err)
	}

	r, _, err := acl.RoleCreate(&api.ACLRole{
		Name: "ops", Policies: []*api.ACLLink{{Name: "keys"}}, ServiceIdentities: []*api.ACLServiceIdentity{{ServiceName: "web"}},
		NodeIdentities: []*api.ACLNodeIdentity{{NodeName: "n1", Datacenter: "dc1"}},
	}, nil)
	must(t, err)
	r.Description = "d"
	r, _, err = acl.RoleUpdate(r, nil)
	must(t, err)
	byID, _, err := acl.RoleRead(r.ID, nil)
	must(t, err)
	byName, _, err := acl.RoleReadByName("ops", nil)
	must(t, err)
	if byID.Description != "d" || byName.ID != r.ID || byName.Policies[0].ID != p.ID || byName.NodeIdentities[0].NodeName != "n1" {
		t.Errorf("by id %+v, by name %+v", byID, byName)
	}
	_, err = acl.PolicyDelete(p.ID, nil)
	must(t, err)
	roles, _, err := acl.RoleList(nil)
	if err != nil || len(roles) != 1 || len(roles[0].Policies) != 0 {
		t.Errorf("roles %+v, %v; want one without policies", roles, err)
	}
	_, err = acl.RoleDelete(r.ID, nil)
	must(t, err)
	gone, _, err := acl.RoleRead(r.ID, nil)
	if gone != nil || err != nil {
		t.Errorf("the role removed: %v, %v", gone, err)
	}
	_, err = acl.RoleDelete(r.ID, nil)
	refused(t, err, 404, "Cannot find role to delete")
	_, err = acl.PolicyDelete("00000000-0000-0000-0000-000000000001", nil)
	refused(t, err, 500, "") // the client drops what is said

	status, _, err := acl.Replication(nil)
	if err != nil || status.Enabled {
		t.Errorf("replication %+v, %v", status, err)
	}
	methods, _, err := acl.AuthMethodList(nil)
	if err != nil || len(methods) != 0 {
		t.Errorf("auth methods %v, %v", methods, err)
	}
	bindings, _, err := acl.BindingRuleList("", nil)
	if err != nil || len(bindings) != 0 {
		t.Errorf("binding rules %v, %v", bindings, err)
	}
	_, _, err = acl.AuthMethodCreate(&api.ACLAuthMethod{Name: "k8s", Type: "kubernetes"}, nil)
	refused(t, err, 501, "Auth methods are not offered")
}

func TestACLSupportDisabled(t *testing.T) {
	a := startAgent(t)
	_, _, err := a.client().ACL().TokenList(nil)
	refused(t, err, 401, "ACL support disabled")
	_, _, err = a.client().ACL().Bootstrap()
	refused(t, err, 401, "ACL support disabled")
	// A token counts for nothing, but does not hurt.
	if _, err := a.client("whatever").KV().Put(kv("a", "b"), nil); err != nil {
		t.Error(err)
	}
}

// TestACLOnRealRequests: what Consul's client sees of refusals and of what is left out, in each place that a token may stand.
func TestACLOnRealRequests(t *testing.T) {
	a, root := startACL(t)
	for _, name := range []string{"web", "db"} {
		must(t, root.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: name, Address: "127.0.0.1", Port: 80}))
	}
	web := tokenFor(t, root, "web", `service "web" { policy = "write" } node_prefix "" { policy = "read" } key_prefix "web/" { policy = "write" }`)
	c := a.client(web)
	_, err := c.KV().Put(kv("web/a", "1"), nil)
	must(t, err)
	_, err = c.KV().Put(kv("db/a", "1"), nil)
	refused(t, err, 403, `lacks permission 'key:write' on "db/a"`)
	services, meta, err := c.Catalog().Services(nil)
	must(t, err)
	if _, ok := services["web"]; !ok || len(services) != 1 || !meta.ResultsFilteredByACLs {
		t.Errorf("services %v, filtered %v; want web alone", services, meta.ResultsFilteredByACLs)
	}
	must(t, c.Agent().ServiceDeregister("web"))
	refused(t, c.Agent().ServiceDeregister("db"), 403, `lacks permission 'service:write' on "db"`)

	for path, want := range map[string]int{
		"/metrics": 403, "/metrics?token=" + web: 403, "/metrics?token=" + tokenFor(t, root, "scraper", `agent_prefix "" { policy = "read" }`): 200,
		"/healthz": 200, "/readyz": 200,
	} {
		resp, err := http.Get("http://" + a.http + path)
		must(t, err)
		must(t, resp.Body.Close())
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, resp.StatusCode, want)
		}
	}

	for _, place := range []func(*http.Request){
		func(r *http.Request) { r.URL.RawQuery = "token=" + web },
		func(r *http.Request) { r.Header.Set("X-Consul-Token", web) },
		func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+web) },
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+a.http+"/v1/kv/web/a", nil)
		must(t, err)
		place(r)
		resp, err := http.DefaultClient.Do(r)
		must(t, err)
		must(t, resp.Body.Close())
		if resp.StatusCode != 200 || resp.Header.Get("X-Consul-Default-ACL-Policy") != "deny" {
			t.Errorf("%s: %d, default policy %q", r.URL, resp.StatusCode, resp.Header.Get("X-Consul-Default-ACL-Policy"))
		}
	}
}

// A blocking query notices when its token loses its rights.
func TestACLQueryThatWaits(t *testing.T) {
	a, root := startACL(t)
	_, err := root.KV().Put(kv("a", "1"), nil)
	must(t, err)
	secret := tokenFor(t, root, "reader", `key "a" { policy = "read" }`)
	_, meta, err := a.client(secret).KV().Get("a", nil)
	must(t, err)
	got := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), settleLimit)
	defer cancel()
	go func() {
		_, _, err := a.client(secret).KV().Get("a", (&api.QueryOptions{WaitIndex: meta.LastIndex}).WithContext(ctx))
		got <- err
	}()
	p, _, err := root.ACL().PolicyReadByName("reader", nil)
	must(t, err)
	p.Rules = ""
	_, _, err = root.ACL().PolicyUpdate(p, nil)
	must(t, err)
	_, err = root.KV().Put(kv("a", "2"), nil)
	must(t, err)
	refused(t, <-got, 403, "lacks permission 'key:read'")
}

// TestACLOnDNS: names resolve as far as the DNS token may read them.
func TestACLOnDNS(t *testing.T) {
	const dnsToken = "5a9b1a5c-6d6e-4a58-93cb-6d2c3d0f1a11"
	for _, tt := range []struct {
		policy, rules string
		web, db, node bool
	}{
		{"deny", ``, false, false, false},
		{"deny", `service "web" { policy = "read" }`, false, false, false},
		{"deny", `node_prefix "" { policy = "read" }`, false, false, true},
		{"deny", `service "web" { policy = "read" } node_prefix "" { policy = "read" }`, true, false, true},
		{"deny", `service_prefix "" { policy = "read" } node "n1" { policy = "read" }`, true, true, true},
		{"allow", ``, true, true, true},
		{"allow", `service "db" { policy = "deny" }`, true, false, true},
		{"allow", `node "n1" { policy = "deny" }`, false, false, false},
	} {
		t.Run(tt.policy+" "+tt.rules, func(t *testing.T) {
			a, root := startACL(t, "acl-default-policy="+tt.policy, "acl-dns-token="+dnsToken)
			for _, name := range []string{"web", "db"} {
				must(t, root.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: name, Address: "127.0.0.1", Port: 80}))
			}
			_, _, err := root.ACL().PolicyCreate(&api.ACLPolicy{Name: "dns", Rules: tt.rules}, nil)
			must(t, err)
			_, _, err = root.ACL().TokenCreate(&api.ACLToken{SecretID: dnsToken, Policies: []*api.ACLLink{{Name: "dns"}}}, nil)
			must(t, err)
			for name, want := range map[string]bool{"web.service.consul.": tt.web, "db.service.consul.": tt.db, "n1.node.consul.": tt.node} {
				answer, err := miekg.Exchange(new(miekg.Msg).SetQuestion(name, miekg.TypeA), a.dns)
				must(t, err)
				if got := len(answer.Answer) > 0; got != want || want == (answer.Rcode == miekg.RcodeNameError) {
					t.Errorf("%s: %d records, %s; want any: %v", name, len(answer.Answer), miekg.RcodeToString[answer.Rcode], want)
				}
			}
		})
	}
}
