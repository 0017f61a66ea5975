package consulapi

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
)

var agentHealthRoutes = []route{
	get("/v1/agent/health/service/id/", (*handler).agentHealthByID),
	get("/v1/agent/health/service/name/", (*handler).agentHealthByName),
}

// localHealthShape is a service of this node with its state; the two pointers and
// the list are null for a service that is not there.
type localHealthShape struct {
	AggregatedStatus string
	Service          *agentServiceShape
	Checks           []checkShape
}

// statusMaintenance is what a service's state is called while it, or its node, is
// in maintenance.
const statusMaintenance = "maintenance"

// localHealth gathers one service's checks and those of the node, and says what
// status a request for it is answered with.
func (h *handler) localHealth(r *model.Registration, checks []model.Check) (int, localHealthShape) {
	worst, maintained := model.Passing, false
	s := shapeAgentService(&r.Instance, h.cfg.Node.Datacenter)
	out := localHealthShape{Service: &s, Checks: []checkShape{}}
	for _, ch := range checks {
		if ch.ServiceID != "" && ch.ServiceID != r.Instance.ID {
			continue
		}
		worst = worst.Worse(ch.Status)
		maintained = maintained || ch.Type == statusMaintenance
		out.Checks = append(out.Checks, shapeCheck(&ch))
	}
	out.AggregatedStatus = string(worst)
	if maintained {
		out.AggregatedStatus = statusMaintenance
	}
	switch out.AggregatedStatus {
	case string(model.Passing):
		return http.StatusOK, out
	case string(model.Warning):
		return http.StatusTooManyRequests, out
	}
	return http.StatusServiceUnavailable, out
}

// plain reports whether the client wants the state as a word.
func plain(c *call) bool {
	return strings.HasPrefix(c.r.Header.Get("Accept"), "text/plain") || c.params.Get("format") == "text"
}

// stated answers with a status code that says the same as the body, and with the
// word for it in a header too.
func stated(c *call, code int, word string, v any) answer {
	c.h.Set("X-Consul-Reason", word)
	if plain(c) {
		a := text(code, word)
		a.ctype = "text/plain"
		return a
	}
	a := value(v)
	a.status = code
	return a
}

// agentHealthByID answers for one service of this node.
func (h *handler) agentHealthByID(c *call) (answer, error) {
	if c.rest == "" {
		return answer{}, badRequest("Missing serviceID")
	}
	r, ok := h.Agent.Service(model.ServiceID(c.rest))
	if !ok {
		if _, err := c.authorizer(); err != nil {
			return answer{}, err
		}
		return stated(c, http.StatusNotFound, fmt.Sprintf("ServiceId %s not found", c.rest),
			localHealthShape{AggregatedStatus: string(model.Critical)}), nil
	}
	if err := c.require(acl.Service, string(r.Instance.Service), acl.Read); err != nil {
		return answer{}, err
	}
	code, out := h.localHealth(&r, h.Agent.Checks())
	return stated(c, code, out.AggregatedStatus, out), nil
}

// agentHealthByName answers for all instances of a service on this node, with the
// worst of their states.
func (h *handler) agentHealthByName(c *call) (answer, error) {
	if c.rest == "" {
		return answer{}, badRequest("Missing service Name")
	}
	if err := c.require(acl.Service, c.rest, acl.Read); err != nil {
		return answer{}, err
	}
	code, word := http.StatusNotFound, fmt.Sprintf("ServiceName %s Not Found", c.rest)
	checks := h.Agent.Checks()
	out := []localHealthShape{}
	for _, r := range h.Agent.Services() {
		if r.Instance.Service != model.ServiceName(c.rest) {
			continue
		}
		status, one := h.localHealth(&r, checks)
		out = append(out, one)
		// 200 < 429 < 503
		if code == http.StatusNotFound || status > code {
			code, word = status, one.AggregatedStatus
		}
	}
	return stated(c, code, word, out), nil
}
