package acl_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
)

// source is a Source in maps. Whatever is put gets the next index.
type source struct {
	index    model.Index
	tokens   map[string]*model.ACLToken
	policies map[string]*model.ACLPolicy
	roles    map[string]*model.ACLRole
	looked   int // how often a policy was looked up
	empty    bool
}

func newSource() *source {
	return &source{tokens: map[string]*model.ACLToken{}, policies: map[string]*model.ACLPolicy{}, roles: map[string]*model.ACLRole{}}
}

func (s *source) TokenBySecret(secret string) *model.ACLToken { return s.tokens[secret] }
func (s *source) Role(id string) *model.ACLRole               { return s.roles[id] }
func (s *source) Bootstrapped() bool                          { return !s.empty }
func (s *source) Policy(id string) *model.ACLPolicy           { s.looked++; return s.policies[id] }

func (s *source) policy(id, rules string, dcs ...string) {
	s.index++
	s.policies[id] = &model.ACLPolicy{ID: id, Name: id, Rules: rules, Datacenters: dcs, Stamp: model.Stamp{ModifyIndex: s.index}}
}

func (s *source) role(r model.ACLRole) {
	s.index++
	r.ModifyIndex = s.index
	s.roles[r.ID] = &r
}

func (s *source) token(t model.ACLToken) {
	s.index++
	t.ModifyIndex = s.index
	t.AccessorID = "accessor-of-" + t.SecretID
	s.tokens[t.SecretID] = &t
}

func links(ids ...string) []model.ACLLink {
	var all []model.ACLLink
	for _, id := range ids {
		all = append(all, model.ACLLink{ID: id})
	}
	return all
}

func (s *source) resolver(change ...func(*acl.Config)) *acl.Resolver {
	cfg := acl.Config{Source: func() acl.Source { return s }, Datacenter: "dc1"}
	for _, f := range change {
		f(&cfg)
	}
	return acl.NewResolver(cfg)
}

func TestResolve(t *testing.T) {
	s := newSource()
	s.policy("keys", `key_prefix "a" { policy = "write" }`)
	s.policy("elsewhere", `key_prefix "" { policy = "write" }`, "dc2")
	s.policy("here", `event_prefix "" { policy = "write" }`, "dc2", "dc1")
	s.policy("denies", `key "ab" { policy = "deny" }`)
	s.role(model.ACLRole{ID: "r", Policies: links("denies", "gone"), ServiceIdentities: []model.ServiceIdentity{{ServiceName: "db"}}})
	s.token(model.ACLToken{
		SecretID: "s", Policies: links("keys", "elsewhere", "here", "gone"), Roles: links("r", "gone"),
		ServiceIdentities: []model.ServiceIdentity{{ServiceName: "web"}, {ServiceName: "far", Datacenters: []string{"dc2"}}},
		NodeIdentities:    []model.NodeIdentity{{NodeName: "n1", Datacenter: "dc1"}, {NodeName: "n2", Datacenter: "dc2"}},
	})
	a, err := s.resolver().Resolve("s")
	if err != nil {
		t.Fatal(err)
	}
	if a.Accessor() != "accessor-of-s" {
		t.Errorf("accessor %q", a.Accessor())
	}
	for ask, want := range map[string]bool{
		"key aa": true, "key b": false, "key ab": false, "event e": true, "service web": true, "service db": true,
		"service far": false, "node n1": true, "node n2": false, "operator ": false,
	} {
		r, name, _ := strings.Cut(ask, " ")
		if got := a.Allow(acl.Resource(r), name, acl.Write); got != want {
			t.Errorf("write %s: %v, want %v", ask, got, want)
		}
	}
}

func TestResolveSpecialTokens(t *testing.T) {
	s := newSource()
	s.policy("p", `key "default" { policy = "read" }`)
	s.token(model.ACLToken{SecretID: "default", Policies: links("p")})
	s.token(model.ACLToken{SecretID: "root", Policies: links(model.GlobalPolicyID)})
	s.token(model.ACLToken{SecretID: "auditor", Policies: links(model.ReadOnlyPolicyID)})

	plain, withDefault := s.resolver(), s.resolver(func(c *acl.Config) {
		c.DefaultToken, c.AgentToken, c.DNSToken = "default", "root", "gone"
	})
	must := func(r *acl.Resolver, secret string) acl.Authorizer {
		t.Helper()
		a, err := r.Resolve(secret)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	if a := must(plain, ""); a.Accessor() != model.AnonymousTokenID || a.Allow(acl.Key, "default", acl.Read) {
		t.Errorf("no token: %q", a.Accessor())
	}
	if a := must(withDefault, ""); !a.Allow(acl.Key, "default", acl.Read) {
		t.Error("no token, with a default token: not allowed what that may")
	}
	if a := must(plain, "root"); !a.Allow(acl.ACL, "", acl.Write) || !a.AllowPrefix(acl.Key, "", acl.Write) {
		t.Error("global-management may not write everything")
	}
	if a := must(plain, "auditor"); !a.Allow(acl.ACL, "", acl.Read) || a.Allow(acl.Key, "x", acl.Write) {
		t.Error("global-read-only may not read, or may write")
	}
	if a := withDefault.Agent(); !a.Allow(acl.Node, "n1", acl.Write) {
		t.Error("the agent does not go by its token")
	}
	if a := withDefault.DNS(); a.Accessor() != model.AnonymousTokenID {
		t.Errorf("DNS with a token that is gone goes by %q", a.Accessor())
	}
	if a := plain.DNS(); a.Accessor() != model.AnonymousTokenID {
		t.Errorf("DNS without a token goes by %q", a.Accessor())
	}
	if got := withDefault.Secret(""); got != "default" {
		t.Errorf("secret of none: %q", got)
	}

	// Somebody gives the anonymous token rights.
	s.token(model.ACLToken{SecretID: model.AnonymousSecretID, Policies: links("p")})
	if a := must(plain, ""); !a.Allow(acl.Key, "default", acl.Read) {
		t.Error("the anonymous token's policy does not count")
	}
	open := s.resolver(func(c *acl.Config) { c.DefaultAllow = true })
	if a := must(open, ""); !a.Allow(acl.Key, "x", acl.Write) || a.Allow(acl.ACL, "", acl.Read) {
		t.Error("default allow: want everything but acl")
	}
}

func TestResolveErrors(t *testing.T) {
	s := newSource()
	r := s.resolver()
	if _, err := r.Resolve("unknown"); !errors.Is(err, acl.ErrNotFound) {
		t.Errorf("unknown secret: %v", err)
	}
	s.empty = true
	if _, err := r.Resolve("unknown"); !errors.Is(err, acl.ErrNotBootstrapped) {
		t.Errorf("unknown secret before the bootstrap: %v", err)
	}
	if _, err := r.Resolve(""); err != nil {
		t.Errorf("no secret before the bootstrap: %v", err)
	}
	s.policy("broken", `key "a" {`)
	s.token(model.ACLToken{SecretID: "s", Policies: links("broken", model.GlobalPolicyID)})
	if _, err := r.Resolve("s"); err == nil || !strings.Contains(err.Error(), `policy "broken" cannot be read`) {
		t.Errorf("policy that cannot be read: %v", err)
	}
}

func TestTokensExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		end := time.Now().Add(time.Minute)
		s.token(model.ACLToken{SecretID: "s", Policies: links(model.GlobalPolicyID), ExpirationTime: &end})
		r := s.resolver()
		if _, err := r.Resolve("s"); err != nil {
			t.Errorf("before the end: %v", err)
		}
		time.Sleep(time.Minute) // on the fake clock
		if _, err := r.Resolve("s"); !errors.Is(err, acl.ErrNotFound) {
			t.Errorf("at the end: %v", err)
		}
	})
}

// What a token may do changes with the token, its roles and their policies; as
// long as none of them changes the authorizer stays the same.
func TestResolveFollowsChanges(t *testing.T) {
	s := newSource()
	s.policy("p", `key "a" { policy = "read" }`)
	s.role(model.ACLRole{ID: "r", Policies: links("p")})
	token := model.ACLToken{SecretID: "s", Roles: links("r")}
	s.token(token)
	r := s.resolver()
	ask := func() (acl.Authorizer, string) {
		a, err := r.Resolve("s")
		if err != nil {
			t.Fatal(err)
		}
		return a, rights(a, acl.Key, "a") + " " + rights(a, acl.Service, "web")
	}
	first, before := ask()
	if again, _ := ask(); again != first {
		t.Error("made anew though nothing changed")
	}
	for _, step := range []struct {
		name   string
		change func()
		want   string
	}{
		{"policy changes", func() { s.policy("p", `key "a" { policy = "write" }`) }, "rlw/ /"},
		{"role changes", func() {
			s.role(model.ACLRole{ID: "r", Policies: links("p"), ServiceIdentities: []model.ServiceIdentity{{ServiceName: "web"}}})
		}, "rlw/ rlw/r"},
		{"policy goes", func() { delete(s.policies, "p") }, "/ rlw/r"},
		{"role goes", func() { delete(s.roles, "r") }, "/ /"},
		{"token changes", func() {
			s.policy("p", `key "a" { policy = "list" }`)
			token.Policies = links("p")
			s.token(token)
		}, "rl/ /"},
	} {
		step.change()
		if _, got := ask(); got != step.want {
			t.Errorf("%s: %s, want %s (at first it was %s)", step.name, got, step.want, before)
		}
	}
}
