package consulapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
)

// ACLs writes tokens, policies and roles. What it refuses it refuses in Consul's
// words; what is not there is acl.ErrNotFound.
type ACLs interface {
	BootstrapACL(ctx context.Context, secret string) (*model.ACLToken, error)
	PutToken(ctx context.Context, t model.ACLToken, create bool) (*model.ACLToken, error)
	DeleteToken(ctx context.Context, accessor string) (model.Index, error)
	PutPolicy(ctx context.Context, p model.ACLPolicy) (*model.ACLPolicy, error)
	DeletePolicy(ctx context.Context, id string) (model.Index, error)
	PutRole(ctx context.Context, r model.ACLRole) (*model.ACLRole, error)
	DeleteRole(ctx context.Context, id string) (model.Index, error)
}

var aclRoutes = []route{
	put("/v1/acl/bootstrap", whenOn((*handler).aclBootstrap)),
	get("/v1/acl/replication", whenOn((*handler).aclReplication)),

	put("/v1/acl/token", whenOn((*handler).aclTokenCreate)),
	get("/v1/acl/tokens", whenOn((*handler).aclTokens)),
	get("/v1/acl/token/self", whenOn((*handler).aclTokenSelf)),
	{path: "/v1/acl/token/", methods: map[string]endpoint{
		http.MethodGet:    whenOn((*handler).aclToken),
		http.MethodPut:    whenOn((*handler).aclTokenPut),
		http.MethodDelete: whenOn((*handler).aclTokenDelete),
	}},

	put("/v1/acl/policy", whenOn((*handler).aclPolicyCreate)),
	get("/v1/acl/policies", whenOn((*handler).aclPolicies)),
	get("/v1/acl/policy/name/", whenOn((*handler).aclPolicyByName)),
	{path: "/v1/acl/policy/", methods: map[string]endpoint{
		http.MethodGet:    whenOn((*handler).aclPolicy),
		http.MethodPut:    whenOn((*handler).aclPolicyPut),
		http.MethodDelete: whenOn((*handler).aclPolicyDelete),
	}},

	put("/v1/acl/role", whenOn((*handler).aclRolePut)),
	get("/v1/acl/roles", whenOn((*handler).aclRoles)),
	get("/v1/acl/role/name/", whenOn((*handler).aclRoleByName)),
	{path: "/v1/acl/role/", methods: map[string]endpoint{
		http.MethodGet:    whenOn((*handler).aclRole),
		http.MethodPut:    whenOn((*handler).aclRolePut),
		http.MethodDelete: whenOn((*handler).aclRoleDelete),
	}},

	// What there is none of here: lists are empty, and making one is refused.
	get("/v1/acl/auth-methods", whenOn(none([]struct{}{}))),
	put("/v1/acl/auth-method", whenOn(notOffered(authMethods))),
	{path: "/v1/acl/auth-method/", methods: map[string]endpoint{
		http.MethodGet:    whenOn(noSuch("auth method")),
		http.MethodPut:    whenOn(notOffered(authMethods)),
		http.MethodDelete: whenOn(nothingToDelete("auth method")),
	}},
	get("/v1/acl/binding-rules", whenOn(none([]struct{}{}))),
	put("/v1/acl/binding-rule", whenOn(notOffered(authMethods))),
	{path: "/v1/acl/binding-rule/", methods: map[string]endpoint{
		http.MethodGet:    whenOn(noSuch("binding rule")),
		http.MethodPut:    whenOn(notOffered(authMethods)),
		http.MethodDelete: whenOn(nothingToDelete("binding rule")),
	}},
	{path: "/v1/acl/login", methods: map[string]endpoint{http.MethodPost: whenOn((*handler).aclLogin)}},
	{path: "/v1/acl/logout", methods: map[string]endpoint{http.MethodPost: whenOn((*handler).aclLogout)}},
	get("/v1/acl/templated-policies", whenOn(none(map[string]struct{}{}))),
	get("/v1/acl/templated-policy/name/", whenOn(noSuch("templated policy"))),
	{path: "/v1/acl/templated-policy/preview/", methods: map[string]endpoint{http.MethodPost: whenOn(notOffered(templatedPolicies))}},
}

// What is not offered, and what to do instead.
const (
	authMethods       = "Auth methods are not offered: make tokens with PUT /v1/acl/token"
	templatedPolicies = "Templated policies are not offered: use ServiceIdentities, NodeIdentities or policies"
)

// whenOn refuses a route while ACLs are off.
func whenOn(e endpoint) endpoint {
	return func(h *handler, c *call) (answer, error) {
		if h.aclsOff() {
			return answer{}, fail(http.StatusUnauthorized, "ACL support disabled")
		}
		return e(h, c)
	}
}

// mayWriteACL refuses a request unless its token allows access to ACLs and this
// agent can write them.
func (h *handler) mayWriteACL(c *call) error {
	if err := h.checkDatacenter(c); err != nil {
		return err
	}
	if err := c.require(acl.ACL, "", acl.Write); err != nil {
		return err
	}
	if h.ACLs == nil {
		return fail(http.StatusNotImplemented, "ACLs cannot be written: they are not available on this agent")
	}
	return nil
}

func none(list any) endpoint {
	return func(_ *handler, c *call) (answer, error) {
		return value(list), c.require(acl.ACL, "", acl.Read)
	}
}

func noSuch(kind string) endpoint {
	return func(_ *handler, c *call) (answer, error) {
		if err := c.require(acl.ACL, "", acl.Read); err != nil {
			return answer{}, err
		}
		return answer{}, notThere(kind)
	}
}

func nothingToDelete(kind string) endpoint {
	return func(_ *handler, c *call) (answer, error) {
		if err := c.require(acl.ACL, "", acl.Write); err != nil {
			return answer{}, err
		}
		return answer{}, fail(http.StatusNotFound, "Cannot find %s to delete", kind)
	}
}

func notOffered(why string) endpoint {
	return func(_ *handler, c *call) (answer, error) {
		if err := c.require(acl.ACL, "", acl.Write); err != nil {
			return answer{}, err
		}
		return answer{}, fail(http.StatusNotImplemented, "%s", why)
	}
}

func notThere(kind string) error {
	return fail(http.StatusNotFound, "Requested %s does not exist: %s", kind, acl.ErrNotFound)
}

func (h *handler) aclLogin(*call) (answer, error) {
	return answer{}, fail(http.StatusNotImplemented, "%s", authMethods)
}

// aclLogout ends only tokens that a login made, of which there are none.
func (h *handler) aclLogout(c *call) (answer, error) {
	if token(c) == "" {
		return answer{}, fail(http.StatusUnauthorized, "Supplied token does not exist")
	}
	if _, err := c.authorizer(); err != nil {
		return answer{}, err
	}
	return answer{}, fail(http.StatusForbidden, "Permission denied: token wasn't created via login")
}

// aclBootstrap makes the first token of the site. Nobody can have the right to
// that yet, so it takes none.
func (h *handler) aclBootstrap(c *call) (answer, error) {
	if h.ACLs == nil {
		return answer{}, fail(http.StatusNotImplemented, "ACLs cannot be bootstrapped: they are not available on this agent")
	}
	var body struct{ BootstrapSecret string }
	if err := h.decodeACL(c, "Request", true, &body); err != nil {
		return answer{}, err
	}
	t, err := h.ACLs.BootstrapACL(c.r.Context(), body.BootstrapSecret)
	if errors.Is(err, acl.ErrBootstrapped) {
		return answer{}, fail(http.StatusForbidden, "Permission denied: %v", err)
	}
	if err != nil {
		return answer{}, aclFailure(err)
	}
	return value(struct {
		ID string
		tokenShape
	}{t.SecretID, h.shapeToken(t)}), nil
}

// aclReplication says that there is none: there is one site.
func (h *handler) aclReplication(c *call) (answer, error) {
	if err := h.checkDatacenter(c); err != nil {
		return answer{}, err
	}
	return value(struct {
		Enabled              bool
		Running              bool
		SourceDatacenter     string
		ReplicationType      string
		ReplicatedIndex      uint64
		ReplicatedRoleIndex  uint64
		ReplicatedTokenIndex uint64
		LastSuccess          time.Time
		LastError            time.Time
		LastErrorMessage     string
	}{}), nil
}

// aclFailure is how a write was refused: 404 for what is not there, else 500 as
// Consul has it, with its words and nothing around them.
func aclFailure(err error) error {
	if errors.Is(err, acl.ErrNotFound) {
		return fail(http.StatusNotFound, "%s", err.Error())
	}
	return asConsul(err)
}

// decodeACL reads a body that may have no fields but those of out. Where empty is
// true the body may be missing.
func (h *handler) decodeACL(c *call, what string, empty bool, out any) error {
	b, err := h.readBody(c)
	if err != nil {
		return err
	}
	if empty && len(bytes.TrimSpace(b)) == 0 {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	err = dec.Decode(out)
	if _, more := dec.Token(); err == nil && !errors.Is(more, io.EOF) {
		err = errors.New("more than one JSON value")
	}
	if err == nil {
		return nil
	}
	hint := ""
	for field, feature := range map[string]string{`"Namespace"`: "Namespaces", `"Partition"`: "Partitions"} {
		if strings.HasSuffix(err.Error(), "unknown field "+field) {
			hint = fmt.Sprintf(" - %s are a Consul Enterprise feature", feature)
		}
	}
	return badRequest("%s decoding failed: %v%s", what, err, hint)
}
