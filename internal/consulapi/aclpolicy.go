package consulapi

import (
	"encoding/json"
	"net/http"
	"net/url"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

type policyBody struct {
	ID          string
	Name        string
	Description string
	Rules       string
	Datacenters []string

	Hash, CreateIndex, ModifyIndex json.RawMessage // ignored: clients write back what they read
}

func (h *handler) aclPolicies(c *call) (answer, error) {
	v, err := h.query(c, mayRead(c, func(s *state.Snapshot) (any, []state.Mark, error) {
		all, mark := policies(s)
		out := []policyStub{}
		for _, p := range all {
			out = append(out, shapePolicyStub(p))
		}
		return out, marks(mark), nil
	}))
	return value(v), err
}

func (h *handler) aclPolicy(c *call) (answer, error) {
	if c.rest == "" {
		return answer{}, badRequest("Missing policy ID")
	}
	return h.findPolicy(c, func(p *model.ACLPolicy) bool { return p.ID == c.rest })
}

func (h *handler) aclPolicyByName(c *call) (answer, error) {
	if c.rest == "" {
		return answer{}, badRequest("Missing policy Name")
	}
	// Clients escape the name's slash twice, as Consul wants it.
	name, err := url.QueryUnescape(c.rest)
	if err != nil {
		return answer{}, badRequest("Invalid policy Name: %v", err)
	}
	return h.findPolicy(c, func(p *model.ACLPolicy) bool { return p.Name == name })
}

func (h *handler) findPolicy(c *call, is func(*model.ACLPolicy) bool) (answer, error) {
	return found("policy", h, c, mayRead(c, func(s *state.Snapshot) (any, []state.Mark, error) {
		all, mark := policies(s)
		for _, p := range all {
			if is(p) {
				return shapePolicy(p), marks(mark), nil
			}
		}
		return nil, marks(mark), nil
	}))
}

func (h *handler) aclPolicyCreate(c *call) (answer, error) {
	var body policyBody
	if err := h.decodeACL(c, "Policy", false, &body); err != nil {
		return answer{}, err
	}
	if body.ID != "" {
		return answer{}, badRequest("Cannot specify the ID when creating a new policy")
	}
	return h.putPolicy(c, &body)
}

func (h *handler) aclPolicyPut(c *call) (answer, error) {
	var body policyBody
	if err := h.decodeACL(c, "Policy", false, &body); err != nil {
		return answer{}, err
	}
	if body.ID != "" && body.ID != c.rest {
		return answer{}, badRequest("Policy ID in URL and payload do not match")
	}
	body.ID = c.rest
	return h.putPolicy(c, &body)
}

func (h *handler) putPolicy(c *call, body *policyBody) (answer, error) {
	if err := h.mayWriteACL(c); err != nil {
		return answer{}, err
	}
	p, err := h.ACLs.PutPolicy(c.r.Context(), model.ACLPolicy{
		ID: body.ID, Name: body.Name, Description: body.Description, Rules: body.Rules, Datacenters: body.Datacenters,
	})
	if err != nil {
		return answer{}, aclFailure(err)
	}
	return value(shapePolicy(p)), nil
}

func (h *handler) aclPolicyDelete(c *call) (answer, error) {
	if c.rest == "" {
		return answer{}, badRequest("Missing policy ID")
	}
	if err := h.mayWriteACL(c); err != nil {
		return answer{}, err
	}
	if _, err := h.ACLs.DeletePolicy(c.r.Context(), c.rest); err != nil {
		return answer{}, aclFailure(err)
	}
	return value(true), nil
}

type roleBody struct {
	ID                string
	Name              string
	Description       string
	Policies          []linkShape
	ServiceIdentities []serviceIdentityShape
	NodeIdentities    []nodeIdentityShape
	TemplatedPolicies []json.RawMessage

	Hash, CreateIndex, ModifyIndex json.RawMessage // ignored, as in policyBody
}

func (h *handler) aclRoles(c *call) (answer, error) {
	policyID := c.params.Get("policy")
	v, err := h.query(c, mayRead(c, func(s *state.Snapshot) (any, []state.Mark, error) {
		all, rm := s.Roles()
		_, pm := s.Policies()
		out := []roleShape{}
		for _, r := range all {
			if shape := shapeRole(s, r); policyID == "" || hasLink(shape.Policies, policyID) {
				out = append(out, shape)
			}
		}
		return out, marks(rm, pm), nil
	}))
	return value(v), err
}

func (h *handler) aclRole(c *call) (answer, error) {
	if c.rest == "" {
		return answer{}, badRequest("Missing role ID")
	}
	return h.findRole(c, func(r *model.ACLRole) bool { return r.ID == c.rest })
}

func (h *handler) aclRoleByName(c *call) (answer, error) {
	if c.rest == "" {
		return answer{}, badRequest("Missing role Name")
	}
	return h.findRole(c, func(r *model.ACLRole) bool { return r.Name == c.rest })
}

func (h *handler) findRole(c *call, is func(*model.ACLRole) bool) (answer, error) {
	return found("role", h, c, mayRead(c, func(s *state.Snapshot) (any, []state.Mark, error) {
		all, rm := s.Roles()
		_, pm := s.Policies()
		for _, r := range all {
			if is(r) {
				return shapeRole(s, r), marks(rm, pm), nil
			}
		}
		return nil, marks(rm, pm), nil
	}))
}

// aclRolePut changes the role of the path, or makes one.
func (h *handler) aclRolePut(c *call) (answer, error) {
	var body roleBody
	if err := h.decodeACL(c, "Role", false, &body); err != nil {
		return answer{}, err
	}
	if body.ID != "" && body.ID != c.rest {
		return answer{}, badRequest("Role ID in URL and payload do not match")
	}
	if err := h.mayWriteACL(c); err != nil {
		return answer{}, err
	}
	if len(body.TemplatedPolicies) > 0 {
		return answer{}, fail(http.StatusNotImplemented, "%s", templatedPolicies)
	}
	r, err := h.ACLs.PutRole(c.r.Context(), model.ACLRole{
		ID: c.rest, Name: body.Name, Description: body.Description, Policies: modelLinks(body.Policies),
		ServiceIdentities: modelServiceIdentities(body.ServiceIdentities), NodeIdentities: modelNodeIdentities(body.NodeIdentities),
	})
	if err != nil {
		return answer{}, aclFailure(err)
	}
	return value(shapeRole(h.Reader.Snapshot(), r)), nil
}

func (h *handler) aclRoleDelete(c *call) (answer, error) {
	if c.rest == "" {
		return answer{}, badRequest("Missing role ID")
	}
	if err := h.mayWriteACL(c); err != nil {
		return answer{}, err
	}
	if _, err := h.ACLs.DeleteRole(c.r.Context(), c.rest); err != nil {
		return answer{}, aclFailure(err)
	}
	return value(true), nil
}
