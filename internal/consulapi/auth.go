package consulapi

import (
	"net/http"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
)

// Authority says what a token's secret stands for.
type Authority interface {
	// Resolve returns what the token of a secret may do; the empty secret is the
	// anonymous token, or the agent's default one. Its error is the answer's
	// body, with status 403.
	Resolve(secret string) (acl.Authorizer, error)
}

// openAuthority stands in where ACLs are off.
type openAuthority struct{}

func (openAuthority) Resolve(string) (acl.Authorizer, error) { return acl.AllowAll(), nil }

// aclsOff reports whether anybody may do anything.
func (h *handler) aclsOff() bool { return h.Authority == openAuthority{} }

// authorizer resolves the request's token, once for each look at the state: a
// query that waits must notice when its token is taken away.
func (c *call) authorizer() (acl.Authorizer, error) {
	if c.auth == nil {
		a, err := c.authority.Resolve(token(c))
		if err != nil {
			return nil, fail(http.StatusForbidden, "%s", err.Error())
		}
		c.auth = a
	}
	return c.auth, nil
}

// lookAgain forgets what was decided for an earlier state.
func (c *call) lookAgain() {
	c.auth = nil
	c.h.Del(filteredHeader)
}

// require refuses the request unless its token allows access to the thing.
func (c *call) require(r acl.Resource, name string, access acl.Access) error {
	a, err := c.authorizer()
	if err != nil {
		return err
	}
	if !a.Allow(r, name, access) {
		return denied(a, r, name, access)
	}
	return nil
}

// requirePrefix refuses the request unless its token allows access to everything
// whose name begins with prefix.
func (c *call) requirePrefix(r acl.Resource, prefix string, access acl.Access) error {
	a, err := c.authorizer()
	if err != nil {
		return err
	}
	if !a.AllowPrefix(r, prefix, access) {
		return denied(a, r, prefix, access)
	}
	return nil
}

// denied is Consul's refusal.
func denied(a acl.Authorizer, r acl.Resource, name string, access acl.Access) error {
	who, hint := "anonymous token", ". The anonymous token is used implicitly when a request does not specify a token."
	if id := a.Accessor(); id != "" && id != model.AnonymousTokenID {
		who, hint = "token with AccessorID '"+id+"'", ""
	}
	what := ""
	if name != "" {
		what = ` on "` + name + `"`
	}
	return fail(http.StatusForbidden, "Permission denied: %s lacks permission '%s:%s'%s%s", who, r, access, what, hint)
}

const filteredHeader = "X-Consul-Results-Filtered-By-ACLs"

// filtered notes that the answer leaves out what the token may not see.
func (c *call) filtered() { c.h.Set(filteredHeader, "true") }
