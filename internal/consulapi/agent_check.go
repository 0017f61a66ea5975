package consulapi

import (
	"cmp"
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/definition"
	"github.com/fairlead-net/fairlead/internal/model"
)

var agentCheckRoutes = []route{
	get("/v1/agent/checks", (*handler).agentChecks),
	put("/v1/agent/check/register", (*handler).agentCheckRegister),
	put("/v1/agent/check/deregister/", (*handler).agentCheckDeregister),
	put("/v1/agent/check/pass/", (*handler).agentCheckPass),
	put("/v1/agent/check/warn/", (*handler).agentCheckWarn),
	put("/v1/agent/check/fail/", (*handler).agentCheckFail),
	put("/v1/agent/check/update/", (*handler).agentCheckUpdate),
	put("/v1/agent/service/maintenance/", (*handler).agentServiceMaintenance),
	put("/v1/agent/maintenance", (*handler).agentMaintenance),
}

// agentChecks lists this node's checks by id with their newest output.
func (h *handler) agentChecks(c *call) (answer, error) {
	f, err := newFilter(c, checkShape{})
	if err != nil {
		return answer{}, err
	}
	all, err := visible(c, h.Agent.Checks(), seeOwnCheck)
	if err != nil {
		return answer{}, err
	}
	out := map[string]checkShape{}
	for _, ch := range all {
		s := shapeCheck(&ch)
		ok, err := f.match(s)
		if err != nil {
			return answer{}, err
		}
		if ok {
			out[s.CheckID] = s
		}
	}
	return value(out), nil
}

// agentCheckRegister adds a check to one of this node's services, or to the node.
func (h *handler) agentCheckRegister(c *call) (answer, error) {
	body, err := h.readBody(c)
	if err != nil {
		return answer{}, err
	}
	spec, warnings, err := definition.Check(body)
	if err != nil {
		return answer{}, definitionError(err)
	}
	if err := h.mayWriteChecksOf(c, spec.ServiceID); err != nil {
		return answer{}, err
	}
	if old, ok := h.Agent.Check(spec.ID); ok {
		if err := h.mayWriteCheck(c, old); err != nil {
			return answer{}, err
		}
		if old.ServiceID != spec.ServiceID {
			return answer{}, checkTaken(old)
		}
	}
	warning, err := h.Agent.RegisterCheck(c.r.Context(), spec, cmp.Or(token(c), spec.Token))
	if err != nil {
		return answer{}, err
	}
	h.warn(c, append(warnings, warning), "check", string(spec.ID))
	return empty(), nil
}

// mayWriteChecksOf takes the right to write a service of this node, or with an
// empty id the node.
func (h *handler) mayWriteChecksOf(c *call, id model.ServiceID) error {
	if id == "" {
		return c.require(acl.Node, string(h.cfg.Node.Name), acl.Write)
	}
	r, ok := h.Agent.Service(id)
	if !ok {
		if _, err := c.authorizer(); err != nil {
			return err
		}
		return fail(http.StatusNotFound, "ServiceID %q does not exist", id)
	}
	return c.require(acl.Service, string(r.Instance.Service), acl.Write)
}

// mayWriteCheck takes the right to write the check's service, or the node for a
// check of the node.
func (h *handler) mayWriteCheck(c *call, ch model.Check) error {
	if ch.ServiceName != "" {
		return c.require(acl.Service, string(ch.ServiceName), acl.Write)
	}
	return c.require(acl.Node, string(h.cfg.Node.Name), acl.Write)
}

// mayUpdate is mayWriteCheck by id.
func (h *handler) mayUpdate(c *call, id model.CheckID) error {
	ch, ok := h.Agent.Check(id)
	if !ok {
		if _, err := c.authorizer(); err != nil {
			return err
		}
		return fail(http.StatusNotFound,
			"Unknown check ID %q. Ensure that the check ID is passed, not the check name.", id)
	}
	return h.mayWriteCheck(c, ch)
}

// checkTaken refuses the id of a check that belongs to another service: the two
// would overwrite each other's state.
func checkTaken(ch model.Check) error {
	if ch.ServiceID == "" {
		return badRequest("Invalid check: the id %q belongs to a check of this node", ch.ID)
	}
	return badRequest("Invalid check: the id %q belongs to a check of service %q", ch.ID, ch.ServiceID)
}

func (h *handler) agentCheckDeregister(c *call) (answer, error) {
	id := model.CheckID(c.rest)
	if err := h.mayUpdate(c, id); err != nil {
		return answer{}, err
	}
	if err := h.Agent.DeregisterCheck(c.r.Context(), id); err != nil {
		if gone := h.mayUpdate(c, id); gone != nil {
			return answer{}, gone // somebody else was faster
		}
		return answer{}, err
	}
	return empty(), nil
}

func (h *handler) agentCheckPass(c *call) (answer, error) {
	return h.updateTTL(c, model.Passing, c.params.Get("note"))
}

func (h *handler) agentCheckWarn(c *call) (answer, error) {
	return h.updateTTL(c, model.Warning, c.params.Get("note"))
}

func (h *handler) agentCheckFail(c *call) (answer, error) {
	return h.updateTTL(c, model.Critical, c.params.Get("note"))
}

type updateBody struct{ Status, Output string }

// UnmarshalJSON implements json.Unmarshaler.
func (u *updateBody) UnmarshalJSON(b []byte) error { return decodeFields(b, u) }

func (h *handler) agentCheckUpdate(c *call) (answer, error) {
	var body updateBody
	if err := h.decodeBody(c, &body); err != nil {
		return answer{}, err
	}
	status := model.Status(body.Status)
	if !status.Valid() {
		return answer{}, badRequest("Invalid check status: '%s'", body.Status)
	}
	return h.updateTTL(c, status, body.Output)
}

func (h *handler) updateTTL(c *call, status model.Status, output string) (answer, error) {
	id := model.CheckID(c.rest)
	if err := h.mayUpdate(c, id); err != nil {
		return answer{}, err
	}
	err := h.Agent.UpdateTTL(id, status, output)
	if err == nil {
		h.awaitState(c, id)
		return empty(), nil
	}
	if ch, ok := h.Agent.Check(id); ok && ch.Type != "ttl" {
		return answer{}, fail(http.StatusInternalServerError, "CheckID %q does not have associated TTL", c.rest)
	}
	return answer{}, err
}

// awaitState waits for the catalogue to show a check in the state that it has
// here, so that whoever updates a check sees that at once, as with Consul. Most
// heartbeats change no state and wait for nothing, and nor do those of a check
// that the catalogue does not have.
func (h *handler) awaitState(c *call, id model.CheckID) {
	const patience = 2 * time.Second
	ctx, cancel := context.WithTimeout(c.r.Context(), patience)
	defer cancel()
	for ctx.Err() == nil {
		shown, mark := h.Reader.Snapshot().Check(h.cfg.Node.Name, id)
		has, ok := h.Agent.Check(id)
		if !ok || shown == nil || shown.Status == has.Status {
			return
		}
		select {
		case <-mark.Changed:
		case <-ctx.Done():
		}
	}
}

// switched reads ?enable.
func switched(c *call) (bool, error) {
	if !c.has("enable") {
		return false, badRequest("Missing value for enable")
	}
	raw := c.params.Get("enable")
	on, err := strconv.ParseBool(raw)
	if err != nil {
		return false, badRequest("Invalid value for enable: %q", raw)
	}
	return on, nil
}

// agentServiceMaintenance begins and ends the maintenance of one service.
func (h *handler) agentServiceMaintenance(c *call) (answer, error) {
	if c.rest == "" {
		return answer{}, badRequest("Missing service ID")
	}
	on, err := switched(c)
	if err != nil {
		return answer{}, err
	}
	id := model.ServiceID(c.rest)
	if _, err := h.ownService(c, id); err != nil {
		return answer{}, err
	}
	return h.maintain(c, id, on)
}

// agentMaintenance begins and ends the maintenance of the node.
func (h *handler) agentMaintenance(c *call) (answer, error) {
	on, err := switched(c)
	if err != nil {
		return answer{}, err
	}
	if err := c.require(acl.Node, string(h.cfg.Node.Name), acl.Write); err != nil {
		return answer{}, err
	}
	return h.maintain(c, "", on)
}

func (h *handler) maintain(c *call, id model.ServiceID, on bool) (answer, error) {
	if !on {
		return empty(), h.Agent.LeaveMaintenance(c.r.Context(), id)
	}
	err := h.Agent.EnterMaintenance(c.r.Context(), id, c.params.Get("reason"), token(c))
	if err != nil && id != "" {
		if _, gone := h.ownService(c, id); gone != nil {
			return answer{}, gone
		}
	}
	return empty(), err
}
