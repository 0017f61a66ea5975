package registry_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/registry"
)

const (
	idA     = "11111111-1111-4111-8111-111111111111"
	idB     = "22222222-2222-4222-8222-222222222222"
	unknown = "99999999-9999-4999-8999-999999999999"
)

// refused checks that a write is refused with just these words and writes
// nothing.
func (e *env) refused(want string, do func() error) {
	e.t.Helper()
	e.unwritten(func() {
		e.t.Helper()
		if err := do(); err == nil || err.Error() != want {
			e.t.Errorf("error %v, want %q", err, want)
		}
	})
}

func (e *env) token(tok model.ACLToken) *model.ACLToken {
	e.t.Helper()
	t, err := e.PutToken(e.t.Context(), tok, false)
	if err != nil {
		e.t.Fatal(err)
	}
	return t
}

func (e *env) policy(p model.ACLPolicy) *model.ACLPolicy {
	e.t.Helper()
	out, err := e.PutPolicy(e.t.Context(), p)
	if err != nil {
		e.t.Fatal(err)
	}
	return out
}

func TestBootstrapACL(t *testing.T) {
	e := setup(t)
	first, err := e.BootstrapACL(t.Context(), idA)
	if err != nil {
		t.Fatal(err)
	}
	if first.SecretID != idA || len(first.Policies) != 1 || first.Policies[0].ID != model.GlobalPolicyID || first.CreateIndex == 0 {
		t.Errorf("token %+v", first)
	}
	done, _ := e.snap().Setting(model.SettingACLBootstrap)
	no := fmt.Sprintf("ACL bootstrap no longer allowed (reset index: %d)", done.ModifyIndex)
	e.refused(no, func() error {
		_, err := e.BootstrapACL(t.Context(), "")
		if !errors.Is(err, acl.ErrBootstrapped) {
			t.Errorf("%v is not ErrBootstrapped", err)
		}
		return err
	})

	// With the file that the refusal asks for it works once more.
	file := filepath.Join(t.TempDir(), "acl-bootstrap-reset")
	r := registry.New(e.fake, e.st, registry.Config{Node: "n1", ACLResetFile: file})
	again := func() error { _, err := r.BootstrapACL(t.Context(), ""); return err }
	e.refused(no, again)
	write(t, file, "nonsense")
	e.refused(no, again)
	write(t, file, "1\n")
	e.refused(fmt.Sprintf("Invalid bootstrap reset index (specified 1, reset index: %d)", done.ModifyIndex), again)
	write(t, file, fmt.Sprintf("%d\n", done.ModifyIndex))
	if err := again(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("the file is still there: %v", err)
	}
	if err := again(); !errors.Is(err, acl.ErrBootstrapped) {
		t.Errorf("a third time: %v", err)
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestBootstrapACLRefusals(t *testing.T) {
	e := setup(t)
	e.token(model.ACLToken{SecretID: idB})
	for secret, want := range map[string]string{
		"short":              "Invalid Token: SecretID - not a valid UUID",
		idB:                  "Invalid Token: SecretID is already in use",
		model.GlobalPolicyID: "Invalid Token: SecretID - UUIDs with the prefix \"00000000-0000-0000-0000-0000000000\" are reserved",
	} {
		e.refused(want, func() error { _, err := e.BootstrapACL(t.Context(), secret); return err })
	}
}

func TestTwoBootstrapsAtOnce(t *testing.T) {
	e := setup(t)
	e.before = func() {
		if _, err := e.BootstrapACL(context.Background(), ""); err != nil {
			t.Error(err)
		}
	}
	if _, err := e.BootstrapACL(t.Context(), ""); !errors.Is(err, acl.ErrBootstrapped) {
		t.Errorf("the second: %v", err)
	}
	if all, _ := e.snap().Tokens(); len(all) != 1 {
		t.Errorf("%d tokens", len(all))
	}
}

func TestInitialManagement(t *testing.T) {
	e := setup(t)
	must := func() {
		t.Helper()
		if err := e.InitialManagement(t.Context(), "not a UUID"); err != nil {
			t.Fatal(err)
		}
	}
	must()
	if tok, _ := e.snap().TokenBySecret("not a UUID"); tok == nil || tok.Policies[0].ID != model.GlobalPolicyID {
		t.Fatalf("token %+v", tok)
	}
	e.unwritten(must)
	if _, err := e.BootstrapACL(t.Context(), ""); !errors.Is(err, acl.ErrBootstrapped) {
		t.Errorf("bootstrap after it: %v", err)
	}
	for _, reserved := range []string{"", model.AnonymousSecretID, model.AnonymousTokenID} {
		if err := e.InitialManagement(t.Context(), reserved); err == nil {
			t.Errorf("%q is taken for an initial management token", reserved)
		}
	}
	// A restart with another secret makes another one.
	if err := e.InitialManagement(t.Context(), "another"); err != nil {
		t.Fatal(err)
	}
	if all, _ := e.snap().Tokens(); len(all) != 2 {
		t.Errorf("%d tokens", len(all))
	}
}

func TestPutToken(t *testing.T) {
	e := setup(t)
	keys := e.policy(model.ACLPolicy{Name: "keys", Rules: `key "a" { policy = "read" }`})
	role, err := e.PutRole(t.Context(), model.ACLRole{Name: "ops", Policies: []model.ACLLink{{Name: "keys"}, {ID: keys.ID}}})
	if err != nil {
		t.Fatal(err)
	}
	if len(role.Policies) != 1 || role.Policies[0] != (model.ACLLink{ID: keys.ID}) {
		t.Errorf("the role's policies: %v", role.Policies)
	}
	tok := e.token(model.ACLToken{
		Description: "d",
		Policies:    []model.ACLLink{{Name: "keys"}, {Name: model.ReadOnlyName}, {ID: model.GlobalPolicyID}},
		Roles:       []model.ACLLink{{Name: "ops"}, {ID: role.ID}},
		ServiceIdentities: []model.ServiceIdentity{
			{ServiceName: "web", Datacenters: []string{"dc2"}}, {ServiceName: "web", Datacenters: []string{"dc1"}},
			{ServiceName: "db", Datacenters: []string{"dc1"}}, {ServiceName: "db"},
		},
		NodeIdentities: []model.NodeIdentity{{NodeName: "n1", Datacenter: "dc1"}, {NodeName: "n1", Datacenter: "dc1"}},
	})
	want := fmt.Sprintf("[{%s } {%s } {%s }] [{%s }] [{web [dc1 dc2]} {db []}] [{n1 dc1}]",
		keys.ID, model.ReadOnlyPolicyID, model.GlobalPolicyID, role.ID)
	if got := fmt.Sprint(tok.Policies, tok.Roles, tok.ServiceIdentities, tok.NodeIdentities); got != want {
		t.Errorf("links\n%s, want\n%s", got, want)
	}
	if tok.AccessorID == "" || tok.SecretID == "" || tok.SecretID == tok.AccessorID || tok.CreateTime.IsZero() {
		t.Errorf("token %+v", tok)
	}

	changed := e.token(model.ACLToken{AccessorID: tok.AccessorID, Description: "e"})
	if changed.SecretID != tok.SecretID || changed.Description != "e" || changed.Policies != nil || changed.CreateIndex != tok.CreateIndex ||
		!changed.CreateTime.Equal(tok.CreateTime) {
		t.Errorf("changed token %+v", changed)
	}
	e.unwritten(func() { e.token(model.ACLToken{AccessorID: tok.AccessorID, Description: "e"}) })

	// The anonymous token is there before it is written.
	anonymous := e.token(model.ACLToken{AccessorID: model.AnonymousTokenID, Policies: []model.ACLLink{{Name: "keys"}}})
	if anonymous.SecretID != model.AnonymousSecretID {
		t.Errorf("anonymous token %+v", anonymous)
	}
	e.token(model.ACLToken{AccessorID: model.AnonymousTokenID})
}

func TestPutTokenRefusals(t *testing.T) {
	e := setup(t)
	now := time.Now()
	used := e.token(model.ACLToken{AccessorID: "", SecretID: idB, ExpirationTTL: time.Hour})
	if _, err := e.PutToken(t.Context(), model.ACLToken{AccessorID: idA}, true); err != nil {
		t.Fatal(err)
	}
	at := func(d time.Duration) *time.Time { return new(now.Add(d)) }
	for _, tt := range []struct {
		want   string
		create bool
		token  model.ACLToken
	}{
		{"Invalid Token: AccessorID is already in use", true, model.ACLToken{AccessorID: idA}},
		{"Invalid Token: AccessorID is already in use", true, model.ACLToken{AccessorID: idB}},
		{"Invalid Token: SecretID is already in use", true, model.ACLToken{SecretID: idB}},
		{"Invalid Token: SecretID is already in use", true, model.ACLToken{SecretID: idA}},
		{"Invalid Token: AccessorID - not a valid UUID", true, model.ACLToken{AccessorID: "x"}},
		{"Invalid Token: SecretID - not a valid UUID", true, model.ACLToken{SecretID: "{" + idA + "}"}},
		{"Invalid Token: SecretID - UUIDs with the prefix \"00000000-0000-0000-0000-0000000000\" are reserved", true, model.ACLToken{SecretID: model.GlobalPolicyID}},
		{"Token Expiration TTL '-1s' should be > 0", true, model.ACLToken{ExpirationTTL: -time.Second}},
		{"Token Expiration TTL and Expiration Time cannot both be set", true, model.ACLToken{ExpirationTTL: time.Hour, ExpirationTime: at(time.Hour)}},
		{"ExpirationTime cannot be before CreateTime", true, model.ACLToken{ExpirationTime: at(-time.Hour)}},
		{"ExpirationTime cannot be less than 1m0s in the future (was 30s)", true, model.ACLToken{ExpirationTTL: 30 * time.Second}},
		{"ExpirationTime cannot be more than 24h0m0s in the future (was 25h0m0s)", true, model.ACLToken{ExpirationTTL: 25 * time.Hour}},
		{`No such ACL policy with name "nope"`, true, model.ACLToken{Policies: []model.ACLLink{{Name: "nope"}}}},
		{fmt.Sprintf("No such ACL policy with ID %q", unknown), true, model.ACLToken{Policies: []model.ACLLink{{ID: unknown}}}},
		{`No such ACL role with name "nope"`, true, model.ACLToken{Roles: []model.ACLLink{{Name: "nope"}}}},
		{fmt.Sprintf("No such ACL role with ID %q", unknown), true, model.ACLToken{Roles: []model.ACLLink{{ID: unknown}}}},
		{"Service identity is missing the service name field on this token", true, model.ACLToken{ServiceIdentities: make([]model.ServiceIdentity, 1)}},
		{`Service identity "web" cannot specify a list of datacenters on a local token`, true, model.ACLToken{Local: true, ServiceIdentities: []model.ServiceIdentity{{ServiceName: "web", Datacenters: []string{"dc1"}}}}},
		{`Service identity "Web" has an invalid name. Only lowercase alphanumeric characters, '-' and '_' are allowed`, true, model.ACLToken{ServiceIdentities: []model.ServiceIdentity{{ServiceName: "Web"}}}},
		{"Node identity is missing the node name field on this token", true, model.ACLToken{NodeIdentities: make([]model.NodeIdentity, 1)}},
		{"Node identity is missing the datacenter field on this token", true, model.ACLToken{NodeIdentities: []model.NodeIdentity{{NodeName: "n1"}}}},
		{"Node identity has an invalid name. Only lowercase alphanumeric characters, '-' and '_' are allowed", true, model.ACLToken{NodeIdentities: []model.NodeIdentity{{NodeName: "N1", Datacenter: "dc1"}}}},

		{"AccessorID is not a valid UUID", false, model.ACLToken{AccessorID: "x"}},
		{fmt.Sprintf("Cannot find token %q", unknown), false, model.ACLToken{AccessorID: unknown}},
		{"Changing a token's SecretID is not permitted", false, model.ACLToken{AccessorID: used.AccessorID, SecretID: idA}},
		{"Cannot toggle local mode of " + idA, false, model.ACLToken{AccessorID: idA, Local: true}},
		{"Cannot change expiration time of " + idA, false, model.ACLToken{AccessorID: idA, ExpirationTTL: time.Hour}},
		{"Cannot change expiration time of " + used.AccessorID, false, model.ACLToken{AccessorID: used.AccessorID, ExpirationTime: at(2 * time.Hour)}},
	} {
		e.refused(tt.want, func() error {
			_, err := e.PutToken(t.Context(), tt.token, tt.create)
			return err
		})
	}
}

func TestDeleteToken(t *testing.T) {
	e := setup(t)
	tok := e.token(model.ACLToken{SecretID: idA})
	e.must(e.DeleteToken(t.Context(), tok.AccessorID))
	if again := e.token(model.ACLToken{SecretID: idA}); again.AccessorID == tok.AccessorID {
		t.Error("the same token again")
	}
	for id, want := range map[string]string{
		tok.AccessorID:         "Cannot find token to delete",
		"x":                    "Accessor ID is missing or an invalid UUID",
		model.AnonymousTokenID: "Delete operation not permitted on the anonymous token",
	} {
		e.refused(want, func() error { _, err := e.DeleteToken(t.Context(), id); return err })
	}
}

func TestReapTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := setup(t)
		for range 3 {
			e.token(model.ACLToken{ExpirationTTL: time.Minute})
		}
		short := e.token(model.ACLToken{ExpirationTTL: time.Minute})
		e.token(model.ACLToken{ExpirationTTL: time.Hour})
		e.token(model.ACLToken{})
		reap := func() {
			t.Helper()
			if err := e.ReapTokens(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		e.unwritten(reap)
		time.Sleep(time.Minute) // on the fake clock
		e.refused(fmt.Sprintf("Cannot find token %q", short.AccessorID), func() error {
			_, err := e.PutToken(t.Context(), model.ACLToken{AccessorID: short.AccessorID}, false)
			return err
		})
		reap()
		if all, _ := e.snap().Tokens(); len(all) != 2 {
			t.Errorf("%d tokens are left", len(all))
		}
		e.unwritten(reap)
	})
}

func TestPutPolicy(t *testing.T) {
	e := setup(t)
	const rules = `key "a" { policy = "read" }`
	a := e.policy(model.ACLPolicy{Name: "a", Rules: rules})
	if a.ID == "" || a.Rules != rules || a.CreateIndex == 0 {
		t.Errorf("policy %+v", a)
	}
	b := e.policy(model.ACLPolicy{Name: "b/x"})
	e.unwritten(func() { e.policy(model.ACLPolicy{ID: a.ID, Name: "a", Rules: rules}) })
	e.unwritten(func() { e.policy(*acl.BuiltinPolicy(model.GlobalPolicyID)) })
	a = e.policy(model.ACLPolicy{ID: a.ID, Name: "c", Datacenters: []string{"dc1"}})
	if a.Name != "c" || a.Rules != "" || a.ModifyIndex == a.CreateIndex {
		t.Errorf("policy %+v", a)
	}
	e.policy(model.ACLPolicy{Name: "a"}) // the name is free now

	for _, tt := range []struct {
		want   string
		policy model.ACLPolicy
	}{
		{"Invalid Policy: no Name is set", model.ACLPolicy{}},
		{"Invalid Policy: invalid Name. Only alphanumeric characters, a single '/', '-' and '_' are allowed", model.ACLPolicy{Name: "a b"}},
		{"Invalid Policy: invalid Name. Only alphanumeric characters, a single '/', '-' and '_' are allowed", model.ACLPolicy{Name: strings.Repeat("a", 129)}},
		{`Invalid Policy: names with the prefix "builtin/" are reserved`, model.ACLPolicy{Name: "builtin/mine"}},
		{`Invalid Policy: A Policy with Name "c" already exists`, model.ACLPolicy{Name: "c"}},
		{`Invalid Policy: A Policy with Name "global-management" already exists`, model.ACLPolicy{Name: "global-management"}},
		{`Invalid Policy: A policy with name "c" already exists`, model.ACLPolicy{ID: b.ID, Name: "c"}},
		{"Policy ID invalid UUID", model.ACLPolicy{ID: "x", Name: "x"}},
		{"cannot find policy " + unknown, model.ACLPolicy{ID: unknown, Name: "x"}},
		{`Invalid key policy: line 1: key "a": policy is "x"; it must be deny, read, list or write`, model.ACLPolicy{Name: "x", Rules: `key "a" { policy = "x" }`}},
		{"Changing the Rules for the builtin global-management policy is not permitted", model.ACLPolicy{ID: model.GlobalPolicyID, Name: "global-management"}},
		{"Changing the Datacenters of the builtin builtin/global-read-only policy is not permitted", model.ACLPolicy{ID: model.ReadOnlyPolicyID, Name: "x", Datacenters: []string{"dc1"}}},
		{"Changing the Name of the builtin global-management policy is not permitted", model.ACLPolicy{ID: model.GlobalPolicyID, Name: "x", Rules: acl.Builtin()[0].Rules}},
		{"Changing the Description of the builtin global-management policy is not permitted", model.ACLPolicy{ID: model.GlobalPolicyID, Name: model.GlobalPolicyName, Rules: acl.Builtin()[0].Rules}},
	} {
		e.refused(tt.want, func() error { _, err := e.PutPolicy(t.Context(), tt.policy); return err })
	}

	e.must(e.DeletePolicy(t.Context(), a.ID))
	e.policy(model.ACLPolicy{Name: "c"})
	e.refused("Cannot find policy to delete", func() error { _, err := e.DeletePolicy(t.Context(), a.ID); return err })
	e.refused("Delete operation not permitted on the builtin global-management policy", func() error {
		_, err := e.DeletePolicy(t.Context(), model.GlobalPolicyID)
		return err
	})
}

func TestTwoPoliciesOfOneName(t *testing.T) {
	e := setup(t)
	e.before = func() { e.policy(model.ACLPolicy{Name: "a"}) }
	if _, err := e.PutPolicy(t.Context(), model.ACLPolicy{Name: "a"}); err == nil || !strings.Contains(err.Error(), "already exists") {
		t.Errorf("the second: %v", err)
	}
}

// A link cannot be made to what somebody deletes meanwhile.
func TestLinkToAVanishingPolicy(t *testing.T) {
	e := setup(t)
	p := e.policy(model.ACLPolicy{Name: "a"})
	e.before = func() { e.must(e.DeletePolicy(context.Background(), p.ID)) }
	_, err := e.PutToken(t.Context(), model.ACLToken{Policies: []model.ACLLink{{Name: "a"}}}, true)
	if err == nil || err.Error() != `No such ACL policy with name "a"` {
		t.Errorf("error %v", err)
	}
}

func TestRoles(t *testing.T) {
	e := setup(t)
	put := func(r model.ACLRole) *model.ACLRole {
		t.Helper()
		out, err := e.PutRole(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	a, b := put(model.ACLRole{Name: "a"}), put(model.ACLRole{Name: "b"})
	a = put(model.ACLRole{ID: a.ID, Name: "c", Policies: []model.ACLLink{{Name: model.GlobalPolicyName}}})
	if a.Name != "c" || len(a.Policies) != 1 {
		t.Errorf("role %+v", a)
	}
	for _, tt := range []struct {
		want string
		role model.ACLRole
	}{
		{"Invalid Role: no Name is set", model.ACLRole{}},
		{"Invalid Role: invalid Name. Only alphanumeric characters, '-' and '_' are allowed", model.ACLRole{Name: "a/b"}},
		{`Invalid Role: A Role with Name "c" already exists`, model.ACLRole{Name: "c"}},
		{`Invalid Role: A role with name "c" already exists`, model.ACLRole{ID: b.ID, Name: "c"}},
		{"Role ID invalid UUID", model.ACLRole{ID: "x", Name: "x"}},
		{"cannot find role " + unknown, model.ACLRole{ID: unknown, Name: "x"}},
		{`No such ACL policy with name "x"`, model.ACLRole{Name: "x", Policies: []model.ACLLink{{Name: "x"}}}},
		{"Service identity is missing the service name field on this role", model.ACLRole{Name: "x", ServiceIdentities: make([]model.ServiceIdentity, 1)}},
		{"Node identity is missing the node name field on this role", model.ACLRole{Name: "x", NodeIdentities: make([]model.NodeIdentity, 1)}},
	} {
		e.refused(tt.want, func() error { _, err := e.PutRole(t.Context(), tt.role); return err })
	}
	e.must(e.DeleteRole(t.Context(), a.ID))
	put(model.ACLRole{Name: "c"})
	e.refused("Cannot find role to delete", func() error { _, err := e.DeleteRole(t.Context(), a.ID); return err })
}

// Transactions' keys show in errors and logs.
func TestSecretsAreInNoKey(t *testing.T) {
	e := setup(t)
	tok := e.token(model.ACLToken{SecretID: idA})
	e.must(e.DeleteToken(t.Context(), tok.AccessorID))
	for _, txn := range e.txns {
		var keys []string
		for _, c := range txn.Compares {
			keys = append(keys, c.Key)
		}
		for _, p := range txn.Puts {
			keys = append(keys, p.Key)
		}
		for _, k := range append(keys, txn.Deletes...) {
			if strings.Contains(k, idA) {
				t.Errorf("key %q has the secret in it", k)
			}
		}
	}
}
