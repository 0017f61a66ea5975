package state

import "github.com/fairlead-net/fairlead/internal/model"

// ACLs are a snapshot's tokens, policies and roles, without marks, for whoever
// only wants to know what a token may do now.
type ACLs struct{ s *Snapshot }

// ACLs returns them; what its methods return is nil for what is not there.
func (s *Snapshot) ACLs() ACLs { return ACLs{s} }

// TokenBySecret returns the token of a secret.
func (a ACLs) TokenBySecret(secret string) *model.ACLToken {
	t, _ := a.s.tokenBySecret.get(key(secret))
	return t
}

// Policy returns the policy of an id.
func (a ACLs) Policy(id string) *model.ACLPolicy {
	p, _ := a.s.Policy(id)
	return p
}

// Role returns the role of an id.
func (a ACLs) Role(id string) *model.ACLRole {
	r, _ := a.s.Role(id)
	return r
}

// Bootstrapped reports whether the site's first token was ever made.
func (a ACLs) Bootstrapped() bool {
	done, _ := a.s.Setting(model.SettingACLBootstrap)
	return done != nil
}
