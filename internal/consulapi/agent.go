package consulapi

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/definition"
	"github.com/fairlead-net/fairlead/internal/model"
)

var agentRoutes = slices.Concat(agentServiceRoutes, agentCheckRoutes, agentHealthRoutes, agentInfoRoutes, agentProcessRoutes)

var agentServiceRoutes = []route{
	get("/v1/agent/services", (*handler).agentServices),
	get("/v1/agent/service/", (*handler).agentService),
	put("/v1/agent/service/register", (*handler).agentServiceRegister),
	put("/v1/agent/service/deregister/", (*handler).agentServiceDeregister),
}

// Agent keeps what this node owns. Its writes return when the catalogue shows
// them, or after a while with a warning when it does not yet.
type Agent interface {
	// Register replaces a service and all its checks, Amend those it names.
	Register(ctx context.Context, r model.Registration) (warning string, err error)
	Amend(ctx context.Context, r model.Registration) (warning string, err error)
	Deregister(ctx context.Context, id model.ServiceID) error
	// RegisterCheck adds a check to a service of this node, or to the node.
	RegisterCheck(ctx context.Context, c model.CheckSpec, token string) (warning string, err error)
	DeregisterCheck(ctx context.Context, id model.CheckID) error
	// EnterMaintenance and LeaveMaintenance are about a service, or with an empty
	// id about the node.
	EnterMaintenance(ctx context.Context, id model.ServiceID, reason, token string) error
	LeaveMaintenance(ctx context.Context, id model.ServiceID) error
	UpdateTTL(id model.CheckID, status model.Status, output string) error

	Service(id model.ServiceID) (model.Registration, bool)
	Services() []model.Registration
	Check(id model.CheckID) (model.Check, bool)
	Checks() []model.Check
}

// WarningHeader carries, once per warning, what a client should know of a write
// that was accepted: that the catalogue does not show it yet, or what was changed.
const WarningHeader = "X-Fairlead-Warning"

// agentServices lists this node's services by id, as they were registered.
func (h *handler) agentServices(c *call) (answer, error) {
	f, err := newFilter(c, agentServiceShape{})
	if err != nil {
		return answer{}, err
	}
	all, err := visible(c, h.Agent.Services(), seeRegistration)
	if err != nil {
		return answer{}, err
	}
	out := map[string]agentServiceShape{}
	for _, r := range all {
		s := shapeAgentService(&r.Instance, h.cfg.Node.Datacenter)
		ok, err := f.match(s)
		if err != nil {
			return answer{}, err
		}
		if ok {
			out[s.ID] = s
		}
	}
	return value(out), nil
}

// agentService answers with one service and a hash of what it says; with ?hash it
// waits for something else to say.
func (h *handler) agentService(c *call) (answer, error) {
	o, err := parseOptions(c)
	if err != nil {
		return answer{}, err
	}
	known := c.params.Get("hash")
	timer := time.NewTimer(o.wait)
	defer timer.Stop()
	for {
		// The mark is taken before the services are read: a change in between
		// has closed its channel.
		_, mark := h.Reader.Snapshot().NodeInstances(h.cfg.Node.Name)
		r, ok := h.Agent.Service(model.ServiceID(c.rest))
		c.lookAgain()
		if !ok {
			if _, err := c.authorizer(); err != nil {
				return answer{}, err
			}
			return answer{}, fail(http.StatusNotFound, "unknown service ID: %s", c.rest)
		}
		if err := c.require(acl.Service, string(r.Instance.Service), acl.Read); err != nil {
			return answer{}, err
		}
		s := shapeAgentService(&r.Instance, h.cfg.Node.Datacenter)
		b, err := json.Marshal(s)
		if err != nil {
			return answer{}, fmt.Errorf("encode service %q: %w", s.ID, err)
		}
		sum := sha256.Sum256(b)
		s.ContentHash = hex.EncodeToString(sum[:8])
		c.h.Set("X-Consul-ContentHash", s.ContentHash)
		if known != s.ContentHash {
			return value(s), nil
		}
		select {
		case <-mark.Changed:
		case <-timer.C:
			return value(s), nil
		case <-c.r.Context().Done():
			return value(s), nil
		}
	}
}

func (h *handler) agentServiceRegister(c *call) (answer, error) {
	body, err := h.readBody(c)
	if err != nil {
		return answer{}, err
	}
	r, warnings, err := definition.Service(body)
	if err != nil {
		return answer{}, definitionError(err)
	}
	r.Instance.Node, r.Instance.Owner = h.cfg.Node.Name, model.NodeOwner(h.cfg.Node.Name)
	if err := h.mayRegister(c, &r.Instance); err != nil {
		return answer{}, err
	}
	r.Token = cmp.Or(token(c), r.Token)
	for _, spec := range r.Checks {
		if ch, ok := h.Agent.Check(spec.ID); ok && ch.ServiceID != r.Instance.ID {
			return answer{}, checkTaken(ch)
		}
	}
	register := h.Agent.Amend
	if v := c.params.Get("replace-existing-checks"); c.has("replace-existing-checks") && (v == "" || v == "true") {
		register = h.Agent.Register
	}
	warning, err := register(c.r.Context(), r)
	if err != nil {
		return answer{}, err
	}
	h.warn(c, append(warnings, warning), "service", string(r.Instance.ID))
	return empty(), nil
}

// warn tells the client and the log what there is to know of a write that was
// accepted; empty warnings are none.
func (h *handler) warn(c *call, warnings []string, kind, id string) {
	for _, w := range warnings {
		if w == "" {
			continue
		}
		h.log.Warn("registered with a warning", kind, id, "warning", w)
		c.h.Add(WarningHeader, strings.ReplaceAll(w, "\n", " "))
	}
}

// mayRegister takes the right to write the service, the one whose instance would
// be overwritten, and for a proxy the one that it stands for.
func (h *handler) mayRegister(c *call, i *model.Instance) error {
	if err := c.require(acl.Service, string(i.Service), acl.Write); err != nil {
		return err
	}
	if old, ok := h.Agent.Service(i.ID); ok {
		if err := c.require(acl.Service, string(old.Instance.Service), acl.Write); err != nil {
			return err
		}
	}
	if i.Kind == model.KindConnectProxy {
		return c.require(acl.Service, string(i.Proxy.Service), acl.Write)
	}
	return nil
}

// ownService finds a service of this node and takes the right to write it.
func (h *handler) ownService(c *call, id model.ServiceID) (model.Registration, error) {
	r, ok := h.Agent.Service(id)
	if !ok {
		if _, err := c.authorizer(); err != nil {
			return r, err
		}
		return r, fail(http.StatusNotFound,
			"Unknown service ID %q. Ensure that the service ID is passed, not the service name.", id)
	}
	return r, c.require(acl.Service, string(r.Instance.Service), acl.Write)
}

func (h *handler) agentServiceDeregister(c *call) (answer, error) {
	id := model.ServiceID(c.rest)
	if _, err := h.ownService(c, id); err != nil {
		return answer{}, err
	}
	if err := h.Agent.Deregister(c.r.Context(), id); err != nil {
		if _, gone := h.ownService(c, id); gone != nil {
			return answer{}, gone // somebody else was faster
		}
		return answer{}, err
	}
	return empty(), nil
}
