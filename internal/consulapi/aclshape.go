package consulapi

import (
	"crypto/sha256"
	"encoding/json"
	"time"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// hidden stands for the secret of a token where the asker may only read ACLs.
const hidden = "<hidden>"

type linkShape struct{ ID, Name string }

type serviceIdentityShape struct {
	ServiceName string
	Datacenters []string `json:",omitempty"`
}

type nodeIdentityShape struct{ NodeName, Datacenter string }

type tokenShape struct {
	AccessorID        string
	SecretID          string
	Description       string
	Policies          []linkShape            `json:",omitempty"`
	Roles             []linkShape            `json:",omitempty"`
	ServiceIdentities []serviceIdentityShape `json:",omitempty"`
	NodeIdentities    []nodeIdentityShape    `json:",omitempty"`
	Local             bool
	ExpirationTime    *time.Time `json:",omitempty"`
	CreateTime        time.Time
	Hash              []byte
	CreateIndex       uint64
	ModifyIndex       uint64
}

// expandedShape is a token with all that its rights are made of.
type expandedShape struct {
	ExpandedPolicies          []policyShape
	ExpandedRoles             []roleShape
	NamespaceDefaultPolicyIDs []string
	NamespaceDefaultRoleIDs   []string
	AgentACLDefaultPolicy     string
	AgentACLDownPolicy        string
	ResolvedByAgent           string
	tokenShape
}

// policyStub is a policy in a list.
type policyStub struct {
	ID          string
	Name        string
	Description string
	Datacenters []string
	Hash        []byte
	CreateIndex uint64
	ModifyIndex uint64
}

type policyShape struct {
	ID          string
	Name        string
	Description string
	Rules       string
	Datacenters []string `json:",omitempty"`
	Hash        []byte
	CreateIndex uint64
	ModifyIndex uint64
}

type roleShape struct {
	ID                string
	Name              string
	Description       string
	Policies          []linkShape            `json:",omitempty"`
	ServiceIdentities []serviceIdentityShape `json:",omitempty"`
	NodeIdentities    []nodeIdentityShape    `json:",omitempty"`
	Hash              []byte
	CreateIndex       uint64
	ModifyIndex       uint64
}

// policies, roles and tokens are a snapshot's with what is built in.

func policies(s *state.Snapshot) ([]*model.ACLPolicy, state.Mark) {
	all, mark := s.Policies()
	return append(acl.Builtin(), all...), mark
}

func policy(s *state.Snapshot, id string) *model.ACLPolicy {
	if p := acl.BuiltinPolicy(id); p != nil {
		return p
	}
	p, _ := s.Policy(id)
	return p
}

// tokens leaves out those that have expired.
func tokens(s *state.Snapshot) ([]*model.ACLToken, state.Mark) {
	stored, mark := s.Tokens()
	all := make([]*model.ACLToken, 0, len(stored)+1)
	if t, _ := s.Token(model.AnonymousTokenID); t == nil {
		all = append(all, acl.Anonymous())
	}
	for _, t := range stored {
		if !acl.Expired(t, time.Now()) {
			all = append(all, t)
		}
	}
	return all, mark
}

// livingToken returns a token that has not expired, nil if there is none. The
// mark covers all tokens.
func livingToken(s *state.Snapshot, accessor string) (*model.ACLToken, state.Mark) {
	_, mark := s.TokenBySecret("")
	t, _ := s.Token(accessor)
	switch {
	case t == nil && accessor == model.AnonymousTokenID:
		return acl.Anonymous(), mark
	case t == nil || acl.Expired(t, time.Now()):
		return nil, mark
	}
	return t, mark
}

// fingerprint tells whether two records say the same. What it is made of must
// hold no secret: some are guessable.
func fingerprint(record any) []byte {
	b, err := json.Marshal(record)
	if err != nil {
		return nil // records encode: they were decoded
	}
	sum := sha256.Sum256(b)
	return sum[:]
}

func (h *handler) shapeToken(t *model.ACLToken) tokenShape { return shapeToken(h.Reader.Snapshot(), t) }

// shapeToken leaves out links to what is no longer there.
func shapeToken(s *state.Snapshot, t *model.ACLToken) tokenShape {
	public := *t
	public.SecretID = ""
	return tokenShape{
		AccessorID:        t.AccessorID,
		SecretID:          t.SecretID,
		Description:       t.Description,
		Policies:          shapePolicyLinks(s, t.Policies),
		Roles:             shapeRoleLinks(s, t.Roles),
		ServiceIdentities: shapeServiceIdentities(t.ServiceIdentities),
		NodeIdentities:    shapeNodeIdentities(t.NodeIdentities),
		Local:             t.Local,
		ExpirationTime:    t.ExpirationTime,
		CreateTime:        t.CreateTime,
		Hash:              fingerprint(public),
		CreateIndex:       uint64(t.CreateIndex),
		ModifyIndex:       uint64(t.ModifyIndex),
	}
}

func shapePolicyLinks(s *state.Snapshot, links []model.ACLLink) []linkShape {
	var out []linkShape
	for _, l := range links {
		if p := policy(s, l.ID); p != nil {
			out = append(out, linkShape{l.ID, p.Name})
		}
	}
	return out
}

func shapeRoleLinks(s *state.Snapshot, links []model.ACLLink) []linkShape {
	var out []linkShape
	for _, l := range links {
		if r, _ := s.Role(l.ID); r != nil {
			out = append(out, linkShape{l.ID, r.Name})
		}
	}
	return out
}

func shapeServiceIdentities(in []model.ServiceIdentity) []serviceIdentityShape {
	var out []serviceIdentityShape
	for _, s := range in {
		out = append(out, serviceIdentityShape{string(s.ServiceName), s.Datacenters})
	}
	return out
}

func shapeNodeIdentities(in []model.NodeIdentity) []nodeIdentityShape {
	var out []nodeIdentityShape
	for _, n := range in {
		out = append(out, nodeIdentityShape{string(n.NodeName), n.Datacenter})
	}
	return out
}

func shapePolicy(p *model.ACLPolicy) policyShape {
	return policyShape{
		ID:          p.ID,
		Name:        p.Name,
		Description: p.Description,
		Rules:       p.Rules,
		Datacenters: p.Datacenters,
		Hash:        fingerprint(p),
		CreateIndex: uint64(p.CreateIndex),
		ModifyIndex: uint64(p.ModifyIndex),
	}
}

func shapePolicyStub(p *model.ACLPolicy) policyStub {
	return policyStub{
		ID:          p.ID,
		Name:        p.Name,
		Description: p.Description,
		Datacenters: list(p.Datacenters),
		Hash:        fingerprint(p),
		CreateIndex: uint64(p.CreateIndex),
		ModifyIndex: uint64(p.ModifyIndex),
	}
}

func shapeRole(s *state.Snapshot, r *model.ACLRole) roleShape {
	return roleShape{
		ID:                r.ID,
		Name:              r.Name,
		Description:       r.Description,
		Policies:          shapePolicyLinks(s, r.Policies),
		ServiceIdentities: shapeServiceIdentities(r.ServiceIdentities),
		NodeIdentities:    shapeNodeIdentities(r.NodeIdentities),
		Hash:              fingerprint(r),
		CreateIndex:       uint64(r.CreateIndex),
		ModifyIndex:       uint64(r.ModifyIndex),
	}
}

// expand lists the policies that a token's rights are made of, once each, and its
// roles.
func (h *handler) expand(s *state.Snapshot, t *model.ACLToken) expandedShape {
	e := expandedShape{
		ExpandedPolicies: []policyShape{}, ExpandedRoles: []roleShape{},
		NamespaceDefaultPolicyIDs: []string{}, NamespaceDefaultRoleIDs: []string{},
		AgentACLDefaultPolicy: h.cfg.DefaultACLPolicy, AgentACLDownPolicy: "extend-cache",
		ResolvedByAgent: string(h.cfg.Node.Name),
		tokenShape:      shapeToken(s, t),
	}
	seen := map[string]bool{}
	add := func(links []model.ACLLink) {
		for _, l := range links {
			if p := policy(s, l.ID); p != nil && !seen[l.ID] {
				seen[l.ID] = true
				e.ExpandedPolicies = append(e.ExpandedPolicies, shapePolicy(p))
			}
		}
	}
	add(t.Policies)
	for _, l := range t.Roles {
		if r, _ := s.Role(l.ID); r != nil {
			e.ExpandedRoles = append(e.ExpandedRoles, shapeRole(s, r))
			add(r.Policies)
		}
	}
	return e
}
