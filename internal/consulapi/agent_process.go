package consulapi

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
)

var agentProcessRoutes = []route{
	put("/v1/agent/join/", (*handler).agentJoin),
	put("/v1/agent/leave", (*handler).agentLeave),
	put("/v1/agent/force-leave/", (*handler).agentForceLeave),
	put("/v1/agent/reload", (*handler).agentReload),
	put("/v1/agent/token/", (*handler).agentToken),
}

// Process is the agent as a whole.
type Process interface {
	// Reload reads the configuration and the definition files again.
	Reload(ctx context.Context) error
	// Leave begins the agent's end; it does not wait for it, because requests
	// that are under way are answered first.
	Leave(ctx context.Context) error
}

// Tokens are the secrets that the agent itself uses.
type Tokens interface {
	// SetToken replaces one; kind is a value of tokenKinds.
	SetToken(ctx context.Context, kind, secret string) error
}

// tokenKinds are the names under which the API knows the agent's tokens, and what
// each is called behind it.
var tokenKinds = map[string]string{
	"default": "default", "acl_token": "default",
	"agent": "agent", "acl_agent_token": "agent",
	"agent_recovery": "agent_recovery", "agent_master": "agent_recovery", "acl_agent_master_token": "agent_recovery",
	"replication": "replication", "acl_replication_token": "replication",
	"config_file_service_registration": "config_file_service_registration",
	"dns":                              "dns",
}

func (h *handler) requireAgent(c *call, access acl.Access) error {
	return c.require(acl.Agent, string(h.cfg.Node.Name), access)
}

func unavailable(what string) error {
	return fail(http.StatusNotImplemented, "%s not available on this agent", what)
}

func (h *handler) agentReload(c *call) (answer, error) {
	if err := h.requireAgent(c, acl.Write); err != nil {
		return answer{}, err
	}
	if h.Process == nil {
		return answer{}, unavailable("Reloading is")
	}
	return empty(), h.Process.Reload(c.r.Context())
}

func (h *handler) agentLeave(c *call) (answer, error) {
	if err := h.requireAgent(c, acl.Write); err != nil {
		return answer{}, err
	}
	if h.Process == nil {
		return answer{}, unavailable("Leaving is")
	}
	return empty(), h.Process.Leave(c.r.Context())
}

// agentToken replaces one of the agent's own tokens.
func (h *handler) agentToken(c *call) (answer, error) {
	if h.aclsOff() {
		return answer{}, fail(http.StatusUnauthorized, "ACL support disabled")
	}
	if err := h.requireAgent(c, acl.Write); err != nil {
		return answer{}, err
	}
	var body struct{ Token string }
	if err := h.decodeBody(c, &body); err != nil {
		return answer{}, err
	}
	kind, ok := tokenKinds[c.rest]
	if !ok {
		return answer{}, fail(http.StatusNotFound, "Token %q is unknown", c.rest)
	}
	if h.Tokens == nil {
		return answer{}, unavailable("Changing tokens is")
	}
	return empty(), h.Tokens.SetToken(c.r.Context(), kind, body.Token)
}

// agentJoin joins nobody: the members of a site are those that its servers know.
// Joining oneself, as scripts for Consul do, is fine.
func (h *handler) agentJoin(c *call) (answer, error) {
	if err := h.requireAgent(c, acl.Write); err != nil {
		return answer{}, err
	}
	if h.isMember(c.rest) {
		return empty(), nil
	}
	return answer{}, fail(http.StatusInternalServerError,
		"Failed to join %s: it is no member of this site, whose agents know each other from their servers and not from joining", c.rest)
}

// isMember reports whether an address, with or without a port, or a name is that
// of a member of the site.
func (h *handler) isMember(address string) bool {
	host := address
	if h, _, err := net.SplitHostPort(address); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	if a, err := netip.ParseAddr(host); host == "localhost" || (err == nil && a.Unmap().IsLoopback()) {
		return true
	}
	nodes, _ := h.Reader.Snapshot().Nodes()
	for _, n := range nodes {
		if n.Owner != model.OwnerExternal && (n.Address == host || strings.EqualFold(string(n.Name), host)) {
			return true
		}
	}
	return false
}

// agentForceLeave removes no member: the servers find out themselves who is dead.
// As with Consul, a member that lives stays one.
func (h *handler) agentForceLeave(c *call) (answer, error) {
	if err := c.require(acl.Operator, "", acl.Write); err != nil {
		return answer{}, err
	}
	name := c.rest
	if c.has("wan") {
		name = strings.TrimSuffix(name, "."+h.cfg.Node.Datacenter)
	}
	n, _ := h.Reader.Snapshot().Node(model.NodeName(name))
	if n == nil || n.Owner == model.OwnerExternal {
		return answer{}, fail(http.StatusInternalServerError, "agent: No node found with name '%s'", c.rest)
	}
	if n.Name != h.cfg.Node.Name && h.memberStatus(n.Name) == memberFailed {
		return answer{}, fail(http.StatusInternalServerError,
			"agent: node '%s' has failed; its servers remove it in due time, or /v1/catalog/deregister does now", c.rest)
	}
	return empty(), nil
}
