package api

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// ACLLink names a policy or a role by its id, its name or both.
type ACLLink struct {
	ID   string `json:",omitempty"`
	Name string `json:",omitempty"`
}

// ACLServiceIdentity stands for the rights that a service's own workload needs,
// in the datacenters named or everywhere.
type ACLServiceIdentity struct {
	ServiceName string
	Datacenters []string `json:",omitempty"`
}

// ACLNodeIdentity stands for the rights that a node's agent needs.
type ACLNodeIdentity struct{ NodeName, Datacenter string }

// ACLToken is a token, with the field names of Consul's API. What the agent
// fills in may be empty when one is written.
type ACLToken struct {
	AccessorID        string               `json:",omitempty"`
	SecretID          string               `json:",omitempty"` // "<hidden>" to those who may only read
	Description       string               `json:",omitempty"`
	Policies          []ACLLink            `json:",omitempty"`
	Roles             []ACLLink            `json:",omitempty"`
	ServiceIdentities []ACLServiceIdentity `json:",omitempty"`
	NodeIdentities    []ACLNodeIdentity    `json:",omitempty"`
	Local             bool                 `json:",omitempty"`
	ExpirationTTL     string               `json:",omitempty"` // a duration, when a token is made
	ExpirationTime    *time.Time           `json:",omitempty"`
	CreateTime        *time.Time           `json:",omitempty"`
}

// ACLPolicy is a named set of rules.
type ACLPolicy struct {
	ID          string   `json:",omitempty"`
	Name        string   `json:",omitempty"`
	Description string   `json:",omitempty"`
	Rules       string   `json:",omitempty"` // empty in lists
	Datacenters []string `json:",omitempty"`
}

// ACLRole is a named set of policies and identities.
type ACLRole struct {
	ID                string               `json:",omitempty"`
	Name              string               `json:",omitempty"`
	Description       string               `json:",omitempty"`
	Policies          []ACLLink            `json:",omitempty"`
	ServiceIdentities []ACLServiceIdentity `json:",omitempty"`
	NodeIdentities    []ACLNodeIdentity    `json:",omitempty"`
}

// BootstrapACL makes the site's first token, which may do everything. It works
// once.
func (c *Client) BootstrapACL(ctx context.Context) (ACLToken, error) {
	return send[ACLToken](ctx, c, http.MethodPut, "/v1/acl/bootstrap", struct{}{})
}

// ACLTokens returns all tokens.
func (c *Client) ACLTokens(ctx context.Context) ([]ACLToken, error) {
	return get[[]ACLToken](ctx, c, "/v1/acl/tokens")
}

// ACLToken returns a token by its accessor id; "self" is the client's own.
func (c *Client) ACLToken(ctx context.Context, accessor string) (ACLToken, error) {
	return get[ACLToken](ctx, c, "/v1/acl/token/"+url.PathEscape(accessor))
}

// CreateACLToken makes a token and returns it with its secret.
func (c *Client) CreateACLToken(ctx context.Context, t ACLToken) (ACLToken, error) {
	return send[ACLToken](ctx, c, http.MethodPut, "/v1/acl/token", t)
}

// UpdateACLToken puts t in the place of the token of its accessor id.
func (c *Client) UpdateACLToken(ctx context.Context, t ACLToken) (ACLToken, error) {
	return send[ACLToken](ctx, c, http.MethodPut, "/v1/acl/token/"+url.PathEscape(t.AccessorID), t)
}

// DeleteACLToken removes a token by its accessor id.
func (c *Client) DeleteACLToken(ctx context.Context, accessor string) error {
	_, err := c.Do(ctx, http.MethodDelete, "/v1/acl/token/"+url.PathEscape(accessor), nil)
	return err
}

// ACLPolicies returns all policies, without their rules.
func (c *Client) ACLPolicies(ctx context.Context) ([]ACLPolicy, error) {
	return get[[]ACLPolicy](ctx, c, "/v1/acl/policies")
}

// ACLPolicy returns a policy by its name.
func (c *Client) ACLPolicy(ctx context.Context, name string) (ACLPolicy, error) {
	return get[ACLPolicy](ctx, c, "/v1/acl/policy/name/"+url.PathEscape(name))
}

// PutACLPolicy changes the policy of p's id, or makes one if it has none.
func (c *Client) PutACLPolicy(ctx context.Context, p ACLPolicy) (ACLPolicy, error) {
	return send[ACLPolicy](ctx, c, http.MethodPut, withID("/v1/acl/policy", p.ID), p)
}

// DeleteACLPolicy removes a policy by its id.
func (c *Client) DeleteACLPolicy(ctx context.Context, id string) error {
	_, err := c.Do(ctx, http.MethodDelete, "/v1/acl/policy/"+url.PathEscape(id), nil)
	return err
}

// ACLRoles returns all roles.
func (c *Client) ACLRoles(ctx context.Context) ([]ACLRole, error) {
	return get[[]ACLRole](ctx, c, "/v1/acl/roles")
}

// ACLRole returns a role by its name.
func (c *Client) ACLRole(ctx context.Context, name string) (ACLRole, error) {
	return get[ACLRole](ctx, c, "/v1/acl/role/name/"+url.PathEscape(name))
}

// PutACLRole changes the role of r's id, or makes one if it has none.
func (c *Client) PutACLRole(ctx context.Context, r ACLRole) (ACLRole, error) {
	return send[ACLRole](ctx, c, http.MethodPut, withID("/v1/acl/role", r.ID), r)
}

// DeleteACLRole removes a role by its id.
func (c *Client) DeleteACLRole(ctx context.Context, id string) error {
	_, err := c.Do(ctx, http.MethodDelete, "/v1/acl/role/"+url.PathEscape(id), nil)
	return err
}

func withID(path, id string) string {
	if id == "" {
		return path
	}
	return path + "/" + url.PathEscape(id)
}
