package acl

import (
	"sync"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
)

// Builtin returns the policies that are always there. They cannot be changed, and
// are not in the store.
func Builtin() []*model.ACLPolicy {
	return []*model.ACLPolicy{BuiltinPolicy(model.GlobalPolicyID), BuiltinPolicy(model.ReadOnlyPolicyID)}
}

// BuiltinPolicy returns the one of an id, nil if no such policy is built in.
func BuiltinPolicy(id string) *model.ACLPolicy {
	switch id {
	case model.GlobalPolicyID:
		return management()
	case model.ReadOnlyPolicyID:
		return readOnly()
	}
	return nil
}

var (
	management = builtin(model.GlobalPolicyID, model.GlobalPolicyName, "Builtin Policy that grants unlimited access", write)
	readOnly   = builtin(model.ReadOnlyPolicyID, model.ReadOnlyName, "Builtin Policy that grants unlimited read-only access to all components", read)
)

// builtin makes a policy when it is first asked for: every request of a token
// that is linked to it asks.
func builtin(id, name, description string, l level) func() *model.ACLPolicy {
	return sync.OnceValue(func() *model.ACLPolicy {
		p := &model.ACLPolicy{ID: id, Name: name, Description: description, Rules: everywhere(l).String()}
		p.CreateIndex, p.ModifyIndex = 1, 1
		return p
	})
}

// everywhere grants one level on everything there is.
func everywhere(l level) Rules {
	var rs Rules
	for _, k := range kinds {
		r := rule{resource: k.resource, prefix: k.named, level: l}
		if takesIntentions(k.resource) {
			r.intentions = l
		}
		rs.list = append(rs.list, r)
	}
	return rs
}

// Anonymous returns the token of requests that carry none, as it is until
// somebody links it to policies.
func Anonymous() *model.ACLToken {
	t := &model.ACLToken{
		AccessorID:  model.AnonymousTokenID,
		SecretID:    model.AnonymousSecretID,
		Description: "Anonymous Token",
		CreateTime:  time.Unix(0, 0).UTC(),
	}
	t.CreateIndex, t.ModifyIndex = 1, 1
	return t
}

// ServiceRules are what a service's own workload needs: it registers itself and
// its sidecar, and finds others.
func ServiceRules(name model.ServiceName) Rules {
	return Rules{[]rule{
		{resource: Service, name: string(name), level: write},
		{resource: Service, name: string(name) + "-sidecar-proxy", level: write},
		{resource: Service, prefix: true, level: read},
		{resource: Node, prefix: true, level: read},
	}}
}

// NodeRules are what a node's agent needs.
func NodeRules(name model.NodeName) Rules {
	return Rules{[]rule{
		{resource: Node, name: string(name), level: write},
		{resource: Service, prefix: true, level: read},
	}}
}

// Expired reports whether a token's time is over.
func Expired(t *model.ACLToken, now time.Time) bool {
	return t.ExpirationTime != nil && !now.Before(*t.ExpirationTime)
}
