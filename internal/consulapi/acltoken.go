package consulapi

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// tokenBody is what writing a token takes. What only answers have is taken, too,
// and ignored: clients write back what they read.
type tokenBody struct {
	AccessorID        string
	SecretID          string
	Description       string
	Policies          []linkShape
	Roles             []linkShape
	ServiceIdentities []serviceIdentityShape
	NodeIdentities    []nodeIdentityShape
	TemplatedPolicies []json.RawMessage
	Local             bool
	AuthMethod        string
	ExpirationTTL     duration
	ExpirationTime    *time.Time

	CreateTime, Hash, CreateIndex, ModifyIndex json.RawMessage
}

func (b *tokenBody) token() (model.ACLToken, error) {
	t := model.ACLToken{
		AccessorID: b.AccessorID, SecretID: b.SecretID, Description: b.Description,
		Policies: modelLinks(b.Policies), Roles: modelLinks(b.Roles),
		ServiceIdentities: modelServiceIdentities(b.ServiceIdentities), NodeIdentities: modelNodeIdentities(b.NodeIdentities),
		Local: b.Local, ExpirationTTL: time.Duration(b.ExpirationTTL), ExpirationTime: b.ExpirationTime,
	}
	switch {
	case b.AuthMethod != "":
		return t, fail(http.StatusInternalServerError, "AuthMethod field is disallowed outside of login")
	case len(b.TemplatedPolicies) > 0:
		return t, fail(http.StatusNotImplemented, "%s", templatedPolicies)
	case t.ExpirationTime != nil && t.ExpirationTime.IsZero():
		t.ExpirationTime = nil
	}
	return t, nil
}

func modelLinks(in []linkShape) []model.ACLLink {
	var out []model.ACLLink
	for _, l := range in {
		out = append(out, model.ACLLink(l))
	}
	return out
}

func modelServiceIdentities(in []serviceIdentityShape) []model.ServiceIdentity {
	var out []model.ServiceIdentity
	for _, s := range in {
		out = append(out, model.ServiceIdentity{ServiceName: model.ServiceName(s.ServiceName), Datacenters: s.Datacenters})
	}
	return out
}

func modelNodeIdentities(in []nodeIdentityShape) []model.NodeIdentity {
	var out []model.NodeIdentity
	for _, n := range in {
		out = append(out, model.NodeIdentity{NodeName: model.NodeName(n.NodeName), Datacenter: n.Datacenter})
	}
	return out
}

// mayRead is a look at the state that takes the right to read ACLs.
func mayRead(c *call, r read) read {
	return func(s *state.Snapshot) (any, []state.Mark, error) {
		if err := c.require(acl.ACL, "", acl.Read); err != nil {
			return nil, nil, err
		}
		return r(s)
	}
}

// shownSecret hides a secret from those who may only read.
func shownSecret(c *call, secret string) string {
	if c.require(acl.ACL, "", acl.Write) != nil {
		return hidden
	}
	return secret
}

func (h *handler) aclTokens(c *call) (answer, error) {
	policyID, roleID, service := c.params.Get("policy"), c.params.Get("role"), c.params.Get("servicename")
	v, err := h.query(c, mayRead(c, func(s *state.Snapshot) (any, []state.Mark, error) {
		all, tm := tokens(s)
		_, pm := s.Policies()
		out := []tokenShape{}
		for _, t := range all {
			shape := shapeToken(s, t)
			shape.SecretID = shownSecret(c, t.SecretID)
			switch {
			case policyID != "" && !hasLink(shape.Policies, policyID), roleID != "" && !hasLink(shape.Roles, roleID):
			case service != "" && !slices.ContainsFunc(t.ServiceIdentities, func(i model.ServiceIdentity) bool { return string(i.ServiceName) == service }):
			case c.params.Get("authmethod") != "": // no token has one
			default:
				out = append(out, shape)
			}
		}
		return out, marks(tm, pm), nil
	}))
	return value(v), err
}

func hasLink(links []linkShape, id string) bool {
	return slices.ContainsFunc(links, func(l linkShape) bool { return l.ID == id })
}

func (h *handler) aclToken(c *call) (answer, error) {
	if c.rest == "" {
		return answer{}, badRequest("Missing token AccessorID")
	}
	return found("token", h, c, mayRead(c, func(s *state.Snapshot) (any, []state.Mark, error) {
		t, tm := livingToken(s, c.rest)
		_, pm := s.Policies()
		if t == nil {
			return nil, marks(tm, pm), nil
		}
		shown := *t
		shown.SecretID = shownSecret(c, t.SecretID)
		if c.has("expanded") {
			e := h.expand(s, t)
			e.SecretID = shown.SecretID
			return e, marks(tm, pm), nil
		}
		shape := shapeToken(s, t)
		shape.SecretID = shown.SecretID
		return shape, marks(tm, pm), nil
	}))
}

// found answers with what r finds, 404 for nil.
func found(kind string, h *handler, c *call, r read) (answer, error) {
	v, err := h.query(c, r)
	switch {
	case err != nil:
		return answer{}, err
	case v == nil:
		return answer{}, notThere(kind)
	}
	return value(v), nil
}

// aclTokenSelf answers with the request's own token: whoever has the secret may
// see what it stands for.
func (h *handler) aclTokenSelf(c *call) (answer, error) {
	v, err := h.query(c, func(s *state.Snapshot) (any, []state.Mark, error) {
		_, mark := s.TokenBySecret("")
		a, err := c.authorizer()
		if err != nil || (token(c) == "" && a.Accessor() == model.AnonymousTokenID) {
			return nil, marks(mark), nil
		}
		t, mark := livingToken(s, a.Accessor())
		if t == nil {
			return nil, marks(mark), nil
		}
		return shapeToken(s, t), marks(mark), nil
	})
	switch {
	case err != nil:
		return answer{}, err
	case v == nil:
		return answer{}, fail(http.StatusNotFound, "Supplied token does not exist")
	}
	return value(v), nil
}

func (h *handler) aclTokenCreate(c *call) (answer, error) {
	var body tokenBody
	if err := h.decodeACL(c, "Token", false, &body); err != nil {
		return answer{}, err
	}
	return h.putToken(c, &body, true)
}

func (h *handler) aclTokenPut(c *call) (answer, error) {
	if id, ok := strings.CutSuffix(c.rest, "/clone"); ok {
		return h.aclTokenClone(c, id)
	}
	var body tokenBody
	if err := h.decodeACL(c, "Token", false, &body); err != nil {
		return answer{}, err
	}
	if body.AccessorID == "" {
		body.AccessorID = c.rest
	}
	if body.AccessorID != c.rest {
		return answer{}, badRequest("Token Accessor ID in URL and payload do not match")
	}
	return h.putToken(c, &body, false)
}

func (h *handler) putToken(c *call, body *tokenBody, create bool) (answer, error) {
	if err := h.mayWriteACL(c); err != nil {
		return answer{}, err
	}
	t, err := body.token()
	if err != nil {
		return answer{}, err
	}
	written, err := h.ACLs.PutToken(c.r.Context(), t, create)
	if err != nil {
		return answer{}, aclFailure(err)
	}
	return value(h.shapeToken(written)), nil
}

// aclTokenClone makes another token that may do what a token may.
func (h *handler) aclTokenClone(c *call, id string) (answer, error) {
	var body tokenBody
	if err := h.decodeACL(c, "Token", true, &body); err != nil {
		return answer{}, err
	}
	if err := h.mayWriteACL(c); err != nil {
		return answer{}, err
	}
	s := h.Reader.Snapshot()
	t, _ := livingToken(s, id)
	if t == nil {
		return answer{}, fail(http.StatusForbidden, "token does not exist: %s", acl.ErrNotFound)
	}
	shape := shapeToken(s, t) // without links to what is no longer there
	clone := model.ACLToken{
		Description: t.Description, Policies: modelLinks(shape.Policies), Roles: modelLinks(shape.Roles),
		ServiceIdentities: t.ServiceIdentities, NodeIdentities: t.NodeIdentities, Local: t.Local, ExpirationTime: t.ExpirationTime,
	}
	if body.Description != "" {
		clone.Description = body.Description
	}
	written, err := h.ACLs.PutToken(c.r.Context(), clone, true)
	if err != nil {
		return answer{}, aclFailure(err)
	}
	return value(h.shapeToken(written)), nil
}

func (h *handler) aclTokenDelete(c *call) (answer, error) {
	if c.rest == "" {
		return answer{}, badRequest("Missing token AccessorID")
	}
	if err := h.mayWriteACL(c); err != nil {
		return answer{}, err
	}
	if a, err := c.authorizer(); err == nil && a.Accessor() == c.rest && token(c) != "" {
		return answer{}, fail(http.StatusInternalServerError, "Deletion of the request's authorization token is not permitted")
	}
	if _, err := h.ACLs.DeleteToken(c.r.Context(), c.rest); err != nil {
		return answer{}, aclFailure(err)
	}
	return value(true), nil
}
