package compat

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"testing"

	"github.com/hashicorp/consul/api"
)

// elsewhere are the methods of Consul's client that are not for a registry as this one: Enterprise's, those of a service mesh,
// those of auth methods and templated policies, which docs/consul-compatibility.md says are not offered, and those that the client
// itself refuses by now.
var elsewhere = regexp.MustCompile(`^(ACL\.(AuthMethod|BindingRule|OIDC|TemplatedPolicy|RulesTranslate|Login|Logout)|Connect\.Intention|` +
	`Operator\.(Area|Audit|License|Segment|Keyring)|Agent\.MetricsStream|` +
	`Agent\.UpdateACL)`)

// TestEveryMethodOfTheClient makes sure that the tests of this package name every method of Consul's client.
func TestEveryMethodOfTheClient(t *testing.T) {
	files, err := filepath.Glob("*_test.go")
	must(t, err)
	var source []byte
	for _, f := range files {
		b, err := os.ReadFile(f)
		must(t, err)
		source = append(source, b...)
	}
	for _, v := range []any{
		&api.Agent{}, &api.Catalog{}, &api.Health{}, &api.KV{}, &api.Lock{}, &api.Semaphore{}, &api.Session{}, &api.Txn{}, &api.Event{},
		&api.PreparedQuery{}, &api.ACL{}, &api.Connect{}, &api.Status{}, &api.Operator{}, &api.Snapshot{},
	} {
		typ := reflect.TypeOf(v)
		for i := range typ.NumMethod() {
			name := typ.Method(i).Name
			if full := typ.Elem().Name() + "." + name; !elsewhere.MatchString(full) && !regexp.MustCompile(`\.`+name+`\b`).Match(source) {
				t.Errorf("nothing calls %s", full)
			}
		}
	}
}

// TestAgentMethodsWithOptions calls the siblings that take options: they do what the plain methods do.
func TestAgentMethodsWithOptions(t *testing.T) {
	agent := startAgent(t).client().Agent()
	q := (&api.QueryOptions{}).WithContext(t.Context())
	must(t, agent.ServiceRegister(&api.AgentServiceRegistration{Name: "web", Port: 80}))
	must(t, agent.CheckRegisterOpts(&api.AgentCheckRegistration{Name: "beat", ServiceID: "web", AgentServiceCheck: api.AgentServiceCheck{TTL: "1h"}}, q))
	must(t, agent.UpdateTTLOpts("beat", "fine", api.HealthPassing, q))
	if checks, err := agent.ChecksWithFilterOpts(`Status == "passing"`, q); err != nil || len(checks) != 1 || checks["beat"].Output != "fine" {
		t.Errorf("checks %v, %v", checks, err)
	}
	if services, err := agent.ServicesWithFilterOpts(`Port == 80`, q); err != nil || len(services) != 1 {
		t.Errorf("services %v, %v", services, err)
	}
	if services, err := agent.ServicesWithFilterOpts(`Port == 81`, q); err != nil || len(services) != 0 {
		t.Errorf("services %v, %v", services, err)
	}
	must(t, agent.EnableServiceMaintenanceOpts("web", "test", q))
	if _, info, err := agent.AgentHealthServiceByIDOpts("web", q); err != nil || info.AggregatedStatus != api.HealthMaint {
		t.Errorf("in maintenance: %v, %v", info, err)
	}
	must(t, agent.DisableServiceMaintenanceOpts("web", q))
	if status, _, err := agent.AgentHealthServiceByNameOpts("web", q); err != nil || status != api.HealthPassing {
		t.Errorf("after maintenance: %s, %v", status, err)
	}
	must(t, agent.CheckDeregisterOpts("beat", q))
	must(t, agent.ServiceDeregisterOpts("web", q))
	if services, err := agent.Services(); err != nil || len(services) != 0 {
		t.Errorf("left over: %v, %v", services, err)
	}
	if err := agent.ForceLeaveOptions("nobody", api.ForceLeaveOpts{Prune: true}, q); err == nil {
		t.Error("a node that is not there was made to leave")
	}
}

// TestAgentsOwnTokens sets the agent's tokens by every method that Consul's client has for it.
func TestAgentsOwnTokens(t *testing.T) {
	const management = "1a6cd9a4-5e5b-4c0f-9f7b-6f3c1f0f6c11"
	a := startAgent(t, "acl=true", "acl-default-policy=deny", "acl-initial-management-token="+management)
	agent := a.client(management).Agent()
	for name, set := range map[string]func(string, *api.WriteOptions) (*api.WriteMeta, error){
		"UpdateAgentACLToken":         agent.UpdateAgentACLToken,
		"UpdateAgentRecoveryACLToken": agent.UpdateAgentRecoveryACLToken, "UpdateAgentMasterACLToken": agent.UpdateAgentMasterACLToken,
		"UpdateReplicationACLToken": agent.UpdateReplicationACLToken, "UpdateConfigFileRegistrationToken": agent.UpdateConfigFileRegistrationToken,
		"UpdateDNSToken": agent.UpdateDNSToken,
	} {
		if _, err := set("", nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := a.client().Agent().Self(); err == nil {
		t.Error("the anonymous token may see the agent")
	}
	if _, err := agent.UpdateDefaultACLToken(management, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := a.client().Agent().Self(); err != nil {
		t.Errorf("without a token, the default one may do everything: %v", err)
	}
}
