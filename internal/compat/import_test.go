package compat

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/fairlead-net/fairlead/internal/migrate/transfer"
)

// TestImportFromAnAgent copies between two agents of ours, which answer as a Consul does.
func TestImportFromAnAgent(t *testing.T) {
	from, to := startAgent(t, "node-name=old"), startAgent(t, "node-name=new")
	source := from.client()
	want := map[string]string{
		"a": "1", "a/": "", "a/b": "2", "a//c": "3", "ü ?#%2F": "5", "deep/er/and/deeper": "6", "bytes": "\x00\xff",
		"big": strings.Repeat("x", 512<<10),
	}
	for i := range 200 {
		want[fmt.Sprintf("flat/%03d", i)] = "v"
	}
	for key, value := range want {
		_, err := source.KV().Put(&api.KVPair{Key: key, Value: []byte(value), Flags: uint64(len(key))}, nil)
		must(t, err)
	}
	_, err := source.Catalog().Register(&api.CatalogRegistration{
		Node: "legacy", Address: "192.0.2.7", NodeMeta: map[string]string{"external-node": "true"},
		Service: &api.AgentService{ID: "mail-1", Service: "mail", Port: 25, Tags: []string{"mx"}, Weights: api.AgentWeights{Passing: 3, Warning: 1}},
		Checks:  api.HealthChecks{{CheckID: "smtp", Name: "smtp", Status: "critical", ServiceID: "mail-1"}, {CheckID: "ping", Name: "ping", Status: "passing"}},
	}, nil)
	must(t, err)
	_, _, err = source.PreparedQuery().Create(&api.PreparedQueryDefinition{Name: "near-mail", Service: api.ServiceQuery{Service: "mail", Tags: []string{"mx"}}}, nil)
	must(t, err)

	cfg := transfer.Config{From: transfer.Peer{Addr: from.http}, To: transfer.Peer{Addr: to.http}, KV: true, Services: true, Queries: true}
	expectCounts(t, cfg, fmt.Sprintf("keys %d 0 0 0, external nodes 1 0 0 0, external services 1 0 0 0, prepared queries 1 0 0 0", len(want)))
	target := to.client()
	all, _, err := target.KV().List("", nil)
	must(t, err)
	for _, kv := range all {
		if value, known := want[kv.Key]; !known || string(kv.Value) != value || kv.Flags != uint64(len(kv.Key)) {
			t.Errorf("key %q: %d bytes, flags %d", kv.Key, len(kv.Value), kv.Flags)
		}
	}
	if len(all) != len(want) {
		t.Errorf("%d keys, want %d", len(all), len(want))
	}
	mail, _, err := target.Health().Service("mail", "mx", false, nil)
	must(t, err)
	if len(mail) != 1 || mail[0].Node.Address != "192.0.2.7" || mail[0].Service.Weights.Passing != 3 || len(mail[0].Checks) != 2 || mail[0].Checks.AggregatedStatus() != "critical" {
		t.Errorf("mail: %+v", mail)
	}
	queries, _, err := target.PreparedQuery().List(nil)
	must(t, err)
	if len(queries) != 1 || queries[0].Name != "near-mail" || !slices.Equal(queries[0].Service.Tags, []string{"mx"}) {
		t.Errorf("queries: %+v", queries)
	}
	before := lastIndex(t, target)
	expectCounts(t, cfg, fmt.Sprintf("keys 0 0 %d 0, external nodes 0 0 1 0, external services 0 0 1 0, prepared queries 0 0 1 0", len(want)))
	if after := lastIndex(t, target); after != before {
		t.Errorf("the second run changed something: index %d, then %d", before, after)
	}
}

// TestImportOfRights copies tokens, which then open the same doors.
func TestImportOfRights(t *testing.T) {
	const root = "6a0e1fd4-2f77-4f1d-8a61-9b5a7b7c2e55"
	acls := []string{"acl=true", "acl-default-policy=deny", "acl-initial-management-token=" + root}
	from, to := startAgent(t, acls...), startAgent(t, acls...)
	source := from.client(root)
	_, err := source.KV().Put(kv("app/a", "1"), nil)
	must(t, err)
	_, _, err = source.ACL().PolicyCreate(&api.ACLPolicy{Name: "app", Rules: `key_prefix "app/" { policy = "read" }`}, nil)
	must(t, err)
	_, _, err = source.ACL().RoleCreate(&api.ACLRole{Name: "apps", Policies: []*api.ACLLink{{Name: "app"}}}, nil)
	must(t, err)
	token, _, err := source.ACL().TokenCreate(&api.ACLToken{Description: "app", Roles: []*api.ACLLink{{Name: "apps"}}}, nil)
	must(t, err)

	cfg := transfer.Config{
		From: transfer.Peer{Addr: from.http, Token: root}, To: transfer.Peer{Addr: to.http, Token: root}, KV: true, ACL: true,
	}
	sum, err := transfer.Import(t.Context(), cfg)
	must(t, err)
	if len(sum.Conflicts) > 0 {
		t.Errorf("conflicts: %q", sum.Conflicts)
	}
	got, _, err := to.client(token.SecretID).KV().Get("app/a", nil)
	if err != nil || got == nil || string(got.Value) != "1" {
		t.Errorf("with the copied token: %v, %v", got, err)
	}
	if _, err := to.client(token.SecretID).KV().Put(kv("app/a", "2"), nil); err == nil {
		t.Error("the copied token may write")
	}
	sum, err = transfer.Import(t.Context(), cfg)
	must(t, err)
	for _, c := range sum.Counts {
		if c.Created+c.Replaced+c.Conflicts > 0 {
			t.Errorf("the second run: %+v", c)
		}
	}
}

// TestDefinitionFilesAreServed from the start, and again at each reload.
func TestDefinitionFilesAreServed(t *testing.T) {
	dir := t.TempDir()
	web := filepath.Join(dir, "web.hcl")
	must(t, os.WriteFile(web, []byte("service {\n  name = \"web\"\n  port = 80\n}\nservice {\n  name = \"api\"\n  port = 81\n  check {\n    ttl = \"1h\"\n  }\n}\n"), 0o600))
	a := startAgent(t, "services-dir="+dir)
	c := a.client()
	expectServices(t, c, "api 81", "web 80")
	must(t, os.WriteFile(web, []byte("service {\n  name = \"web\"\n  port = 8080\n}\n"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "db.json"), []byte(`{"service": {"name": "db", "port": 5432}}`), 0o600))
	must(t, c.Agent().Reload())
	expectServices(t, c, "db 5432", "web 8080")

	// What cannot be read changes nothing.
	must(t, os.WriteFile(web, []byte("service {"), 0o600))
	if err := c.Agent().Reload(); err == nil || !strings.Contains(err.Error(), "web.hcl:1") {
		t.Errorf("reload of a broken file: %v", err)
	}
	expectServices(t, c, "db 5432", "web 8080")
}

func expectServices(t *testing.T, c *api.Client, want ...string) {
	t.Helper()
	eventually(t, func() error {
		services, err := c.Agent().Services()
		if err != nil {
			return err
		}
		got := []string{}
		for _, s := range services {
			got = append(got, fmt.Sprintf("%s %d", s.Service, s.Port))
		}
		slices.Sort(got)
		got = slices.DeleteFunc(got, func(s string) bool { return strings.HasPrefix(s, "consul ") })
		if !slices.Equal(got, want) {
			return fmt.Errorf("services %q, want %q", got, want)
		}
		return nil
	})
}

func expectCounts(t *testing.T, cfg transfer.Config, want string) {
	t.Helper()
	sum, err := transfer.Import(t.Context(), cfg)
	must(t, err)
	var got []string
	for _, c := range sum.Counts {
		got = append(got, fmt.Sprintf("%s %d %d %d %d", c.Kind, c.Created, c.Replaced, c.Unchanged, c.Conflicts))
	}
	if strings.Join(got, ", ") != want {
		t.Errorf("counts %q, want %s\n%+v", got, want, sum)
	}
}

// lastIndex is that of the youngest key.
func lastIndex(t *testing.T, c *api.Client) uint64 {
	t.Helper()
	all, _, err := c.KV().List("", nil)
	must(t, err)
	var most uint64
	for _, kv := range all {
		most = max(most, kv.ModifyIndex)
	}
	return most
}
