package consulapi

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/definition"
	"github.com/fairlead-net/fairlead/internal/model"
)

var agentRoutes = []route{
	get("/v1/agent/self", (*handler).agentSelf),
	get("/v1/agent/members", (*handler).agentMembers),
	get("/v1/agent/services", (*handler).agentServices),
	get("/v1/agent/service/", (*handler).agentService),
	put("/v1/agent/service/register", (*handler).agentServiceRegister),
	put("/v1/agent/service/deregister/", (*handler).agentServiceDeregister),
	get("/v1/agent/checks", (*handler).agentChecks),
	put("/v1/agent/check/pass/", (*handler).agentCheckPass),
	put("/v1/agent/check/warn/", (*handler).agentCheckWarn),
	put("/v1/agent/check/fail/", (*handler).agentCheckFail),
	put("/v1/agent/check/update/", (*handler).agentCheckUpdate),
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
		r, ok := h.registered(model.ServiceID(c.rest))
		if !ok {
			return answer{}, fail(http.StatusNotFound, "unknown service ID: %s", c.rest)
		}
		c.lookAgain()
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

func (h *handler) registered(id model.ServiceID) (model.Registration, bool) {
	all := h.Agent.Services()
	i := slices.IndexFunc(all, func(r model.Registration) bool { return r.Instance.ID == id })
	if i < 0 {
		return model.Registration{}, false
	}
	return all[i], true
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
	if err := h.checkIDsFree(r); err != nil {
		return answer{}, err
	}
	if v := c.params.Get("replace-existing-checks"); !c.has("replace-existing-checks") || (v != "" && v != "true") {
		r.Checks = h.keepChecks(r)
	}
	warning, err := h.Agent.Register(c.r.Context(), r)
	if err != nil {
		return answer{}, err
	}
	if warning != "" {
		warnings = append(warnings, warning)
	}
	for _, w := range warnings {
		h.log.Warn("service registered with a warning", "service", r.Instance.ID, "warning", w)
		c.h.Add(WarningHeader, strings.ReplaceAll(w, "\n", " "))
	}
	return empty(), nil
}

// mayRegister takes the right to write the service, and the one whose instance
// would be overwritten.
func (h *handler) mayRegister(c *call, i *model.Instance) error {
	if err := c.require(acl.Service, string(i.Service), acl.Write); err != nil {
		return err
	}
	if old, ok := h.registered(i.ID); ok {
		return c.require(acl.Service, string(old.Instance.Service), acl.Write)
	}
	return nil
}

// checkIDsFree refuses a check id that belongs to another service of this node:
// the two would overwrite each other's state.
func (h *handler) checkIDsFree(r model.Registration) error {
	for _, ch := range h.Agent.Checks() {
		if ch.ServiceID == r.Instance.ID {
			continue
		}
		if slices.ContainsFunc(r.Checks, func(s model.CheckSpec) bool { return s.ID == ch.ID }) {
			return badRequest("Invalid check: the id %q belongs to a check of service %q", ch.ID, ch.ServiceID)
		}
	}
	return nil
}

// keepChecks returns the checks of r, and behind them those that an earlier
// registration of the same service had under other ids.
func (h *handler) keepChecks(r model.Registration) []model.CheckSpec {
	old, ok := h.registered(r.Instance.ID)
	if !ok {
		return r.Checks
	}
	out := slices.Clone(r.Checks)
	for _, o := range old.Checks {
		if !slices.ContainsFunc(r.Checks, func(s model.CheckSpec) bool { return s.ID == o.ID }) {
			out = append(out, o)
		}
	}
	return out
}

func (h *handler) agentServiceDeregister(c *call) (answer, error) {
	unknown := fail(http.StatusNotFound,
		"Unknown service ID %q. Ensure that the service ID is passed, not the service name.", c.rest)
	id := model.ServiceID(c.rest)
	r, ok := h.registered(id)
	if !ok {
		return answer{}, unknown
	}
	if err := c.require(acl.Service, string(r.Instance.Service), acl.Write); err != nil {
		return answer{}, err
	}
	if err := h.Agent.Deregister(c.r.Context(), id); err != nil {
		if _, ok := h.registered(id); !ok {
			return answer{}, unknown // somebody else was faster
		}
		return answer{}, err
	}
	return empty(), nil
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
		return empty(), nil
	}
	checks := h.Agent.Checks() // only now: heartbeats are many
	i := slices.IndexFunc(checks, func(ch model.Check) bool { return ch.ID == id })
	if i < 0 {
		return answer{}, fail(http.StatusNotFound,
			"Unknown check ID %q. Ensure that the check ID is passed, not the check name.", c.rest)
	}
	if checks[i].Type != "ttl" {
		return answer{}, fail(http.StatusInternalServerError, "CheckID %q does not have associated TTL", c.rest)
	}
	return answer{}, err
}

// mayUpdate takes the right to write the check's service, or the node for a check
// of the node. A check that is not there is for the caller to find.
func (h *handler) mayUpdate(c *call, id model.CheckID) error {
	if h.aclsOff() {
		return nil // heartbeats are many, and listing checks is not free
	}
	checks := h.Agent.Checks()
	i := slices.IndexFunc(checks, func(ch model.Check) bool { return ch.ID == id })
	switch {
	case i < 0:
		_, err := c.authorizer()
		return err
	case checks[i].ServiceName != "":
		return c.require(acl.Service, string(checks[i].ServiceName), acl.Write)
	}
	return c.require(acl.Node, string(h.cfg.Node.Name), acl.Write)
}

type memberShape struct {
	Name        string
	Addr        string
	Port        uint16
	Tags        map[string]string
	Status      int
	ProtocolMin uint8
	ProtocolMax uint8
	ProtocolCur uint8
	DelegateMin uint8
	DelegateMax uint8
	DelegateCur uint8
}

const (
	memberAlive  = 1
	memberFailed = 4
	// serfPort is where Consul's members gossip. Nothing listens there; clients
	// only print it.
	serfPort = 8301
)

// agentMembers lists the nodes that run an agent.
func (h *handler) agentMembers(c *call) (answer, error) {
	f, err := newFilter(c, memberShape{})
	if err != nil {
		return answer{}, err
	}
	s := h.Reader.Snapshot()
	nodes, _ := s.Nodes()
	nodes, err = visible(c, nodes, seeNode)
	if err != nil {
		return answer{}, err
	}
	var all []memberShape
	for _, n := range nodes {
		if n.Owner == model.OwnerExternal {
			continue
		}
		m := h.member(n)
		checks, _ := s.NodeChecks(n.Name)
		for _, ch := range checks {
			if ch.ID == model.SerfHealth && ch.Status == model.Critical {
				m.Status = memberFailed
			}
		}
		all = append(all, m)
	}
	out, err := f.slice(all)
	return value(out), err
}

func (h *handler) member(n *model.Node) memberShape {
	role := "consul"
	if h.cfg.ClientOnly && n.Name == h.cfg.Node.Name {
		role = "node"
	}
	return memberShape{
		Name: string(n.Name),
		Addr: n.Address,
		Port: serfPort,
		Tags: map[string]string{
			"role": role, "dc": cmp.Or(n.Datacenter, h.cfg.Node.Datacenter), "id": n.ID, "acls": strconv.Itoa(b2i(!h.aclsOff())),
			"build": h.cfg.ConsulVersion + ":", "port": "8300", "segment": "", "vsn": "2",
		},
		Status:      memberAlive,
		ProtocolMin: 1, ProtocolMax: 5, ProtocolCur: 2,
		DelegateMin: 2, DelegateMax: 5, DelegateCur: 4,
	}
}

type selfConfig struct {
	Datacenter        string
	PrimaryDatacenter string
	NodeName          string
	NodeID            string
	Revision          string
	Server            bool
	Version           string
	BuildDate         string
}

type selfShape struct {
	Config      selfConfig
	DebugConfig map[string]any
	Coord       *struct{}
	Member      memberShape
	Stats       map[string]map[string]string
	Meta        map[string]string
	XDS         *struct{} `json:"xDS"`
}

func (h *handler) agentSelf(c *call) (answer, error) {
	if err := c.require(acl.Agent, string(h.cfg.Node.Name), acl.Read); err != nil {
		return answer{}, err
	}
	n := h.cfg.Node
	meta := map[string]string{"consul-network-segment": "", "consul-version": h.cfg.ConsulVersion}
	for k, v := range n.Meta {
		meta[k] = v
	}
	meta["fairlead-version"] = h.cfg.Version
	return value(selfShape{
		Config: selfConfig{
			Datacenter:        n.Datacenter,
			PrimaryDatacenter: n.Datacenter,
			NodeName:          string(n.Name),
			NodeID:            n.ID,
			Server:            !h.cfg.ClientOnly,
			Version:           h.cfg.ConsulVersion,
			BuildDate:         time.Unix(1, 0).UTC().Format(time.RFC3339),
		},
		DebugConfig: map[string]any{},
		Member:      h.member(&n),
		Stats: map[string]map[string]string{
			"agent": {
				"services": strconv.Itoa(len(h.Agent.Services())),
				"checks":   strconv.Itoa(len(h.Agent.Checks())),
			},
			"consul": {
				"server":      strconv.FormatBool(!h.cfg.ClientOnly),
				"leader_addr": h.Cluster.Leader(),
			},
		},
		Meta: meta,
	}), nil
}
