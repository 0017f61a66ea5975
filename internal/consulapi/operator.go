package consulapi

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// Server is one of the site's servers, as this node sees it.
type Server struct {
	ID      string // of its node
	Node    model.NodeName
	Address string // host:port
	Leader  bool
	Voter   bool
	// LastContact is how long ago the leader last heard of it; 0 for the leader.
	LastContact time.Duration
	Term        uint64
	Index       model.Index
	// StableSince is when it was last not well, or when it was first seen.
	StableSince time.Time
}

// Servers knows the servers one by one.
type Servers interface {
	// Servers are all of them, sorted by ID, learners included.
	Servers() []Server
	// RemoveServer takes a server's vote and its data away. It refuses the last
	// one.
	RemoveServer(ctx context.Context, id string) error
	// TransferLeader makes another server the leader; any other if id is empty.
	TransferLeader(ctx context.Context, id string) error
}

// Settings keeps what the operators of a site have decided. A cas of nil means
// unconditional, of zero that there is none yet; false means that it differed.
type Settings interface {
	PutSetting(ctx context.Context, name, value string, cas *model.Index) (bool, model.Index, error)
}

// ServerMeta is the metadata of the service "consul" on a server's node, as
// clients know it. An empty version means DefaultConsulVersion.
func ServerMeta(version string) map[string]string {
	return map[string]string{
		"version": cmp.Or(version, DefaultConsulVersion), "raft_version": "3", "non_voter": "false", "read_replica": "false",
		"serf_protocol_current": "2", "serf_protocol_min": "1", "serf_protocol_max": "5",
	}
}

var operatorRoutes = []route{
	get("/v1/operator/raft/configuration", (*handler).raftConfiguration),
	{path: "/v1/operator/raft/peer", methods: map[string]endpoint{http.MethodDelete: (*handler).raftRemove}},
	{path: "/v1/operator/raft/transfer-leader", methods: map[string]endpoint{http.MethodPost: (*handler).raftTransfer}},
	{path: "/v1/operator/autopilot/configuration", methods: map[string]endpoint{
		http.MethodGet: (*handler).autopilotGet, http.MethodPut: (*handler).autopilotPut,
	}},
	get("/v1/operator/autopilot/health", (*handler).autopilotHealth),
	get("/v1/operator/autopilot/state", (*handler).autopilotState),
	get("/v1/operator/usage", (*handler).operatorUsage),
	{path: "/v1/operator/keyring", methods: map[string]endpoint{
		http.MethodGet: keyring(acl.Read), http.MethodPost: keyring(acl.Write),
		http.MethodPut: keyring(acl.Write), http.MethodDelete: keyring(acl.Write),
	}},
}

// operator refuses whoever may not do this, and asks that it be for this site.
func (h *handler) operator(c *call, access acl.Access) error {
	if err := h.checkDatacenter(c); err != nil {
		return err
	}
	if err := c.require(acl.Operator, "", access); err != nil {
		return err
	}
	if h.Servers == nil {
		return fail(http.StatusNotImplemented, "Information about the servers is not available on this agent")
	}
	return nil
}

// raftConfiguration is answered also while there is no leader.
func (h *handler) raftConfiguration(c *call) (answer, error) {
	if err := h.operator(c, acl.Read); err != nil {
		return answer{}, err
	}
	type shape struct {
		ID              string
		Node            string
		Address         string
		Leader          bool
		ProtocolVersion string
		Voter           bool
		LastIndex       uint64
	}
	servers, index := []shape{}, model.Index(0)
	for _, s := range h.Servers.Servers() {
		node := string(s.Node)
		if node == "" {
			node = "(unknown)"
		}
		index = max(index, s.Index)
		servers = append(servers, shape{
			ID: s.ID, Node: node, Address: s.Address, Leader: s.Leader, ProtocolVersion: "3", Voter: s.Voter, LastIndex: uint64(s.Index),
		})
	}
	return value(struct {
		Servers []shape
		Index   uint64
	}{servers, uint64(index)}), nil
}

func (h *handler) raftRemove(c *call) (answer, error) {
	if err := h.operator(c, acl.Write); err != nil {
		return answer{}, err
	}
	id, addr := c.params.Get("id"), c.params.Get("address")
	switch {
	case !c.has("id") && !c.has("address"):
		return answer{}, badRequest("Must specify either ?id with the server's ID or ?address with IP:port of peer to remove")
	case c.has("id") && c.has("address"):
		return answer{}, badRequest("Must specify only one of ?id or ?address")
	}
	for _, s := range h.Servers.Servers() {
		if (c.has("id") && s.ID == id) || (c.has("address") && s.Address == addr) {
			return empty(), h.Servers.RemoveServer(c.r.Context(), s.ID)
		}
	}
	if c.has("id") {
		return answer{}, unfit("id %q was not found in the Raft configuration", id)
	}
	return answer{}, unfit("address %q was not found in the Raft configuration", addr)
}

func (h *handler) raftTransfer(c *call) (answer, error) {
	if err := h.operator(c, acl.Write); err != nil {
		return answer{}, err
	}
	id := c.params.Get("id")
	known := func(s Server) bool { return s.ID == id }
	if id != "" && !slices.ContainsFunc(h.Servers.Servers(), known) {
		return answer{}, unfit("id %q was not found in the Raft configuration", id)
	}
	if err := h.Servers.TransferLeader(c.r.Context(), id); err != nil {
		return answer{}, err
	}
	return value(struct{ Success bool }{true}), nil
}

// autopilotSetting is the name of the setting that holds the configuration.
const autopilotSetting = "autopilot"

// autopilotShape is the configuration: as it is shown, taken and kept.
type autopilotShape struct {
	CleanupDeadServers      bool
	LastContactThreshold    spelled
	MaxTrailingLogs         uint64
	MinQuorum               uint
	ServerStabilizationTime spelled
	RedundancyZoneTag       string
	DisableUpgradeMigration bool
	UpgradeVersionTag       string
	CreateIndex             uint64
	ModifyIndex             uint64
}

// UnmarshalJSON implements json.Unmarshaler.
func (s *autopilotShape) UnmarshalJSON(data []byte) error { return decodeFields(data, s) }

// spelled is a duration that is shown as "10s" and read from that or from a
// number of nanoseconds.
type spelled time.Duration

// MarshalJSON implements json.Marshaler.
func (d spelled) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// UnmarshalJSON implements json.Unmarshaler.
func (d *spelled) UnmarshalJSON(b []byte) error { return (*duration)(d).UnmarshalJSON(b) }

// autopilot is the configuration in force.
func (h *handler) autopilot(s *state.Snapshot) (autopilotShape, error) {
	conf := autopilotShape{
		CleanupDeadServers: true, LastContactThreshold: spelled(200 * time.Millisecond), MaxTrailingLogs: 250,
		ServerStabilizationTime: spelled(10 * time.Second),
	}
	set, _ := s.Setting(autopilotSetting)
	if set == nil {
		return conf, nil
	}
	if err := json.Unmarshal([]byte(set.Value), &conf); err != nil {
		return conf, fmt.Errorf("read the autopilot configuration: %w", err)
	}
	conf.CreateIndex, conf.ModifyIndex = uint64(set.CreateIndex), uint64(set.ModifyIndex)
	return conf, nil
}

func (h *handler) autopilotGet(c *call) (answer, error) {
	if err := h.operator(c, acl.Read); err != nil {
		return answer{}, err
	}
	conf, err := h.autopilot(h.Reader.Snapshot())
	return value(conf), err
}

func (h *handler) autopilotPut(c *call) (answer, error) {
	if err := h.operator(c, acl.Write); err != nil {
		return answer{}, err
	}
	if h.Settings == nil {
		return answer{}, fail(http.StatusNotImplemented, "Settings are not available on this agent")
	}
	b, err := h.readBody(c)
	if err != nil {
		return answer{}, err
	}
	var conf autopilotShape
	if err := json.Unmarshal(b, &conf); err != nil {
		return answer{}, badRequest("Error parsing autopilot config: %v", err)
	}
	var cas *model.Index
	if c.has("cas") {
		index, err := strconv.ParseUint(c.params.Get("cas"), 10, 64)
		if err != nil {
			return answer{}, badRequest("Error parsing cas value: %v", err)
		}
		cas = new(model.Index(index))
	}
	conf.CreateIndex, conf.ModifyIndex = 0, 0
	text, err := json.Marshal(conf)
	if err != nil {
		return answer{}, err
	}
	ok, _, err := h.Settings.PutSetting(c.r.Context(), autopilotSetting, string(text), cas)
	if err != nil {
		return answer{}, err
	}
	return value(ok), nil
}

// serverView is a server with what the others think of it.
type serverView struct {
	Server
	member  string // "alive" or "failed", as its node's serfHealth says
	version string
	meta    map[string]string
	healthy bool
}

// judge says of each server whether it is well, by the autopilot configuration.
func (h *handler) judge() ([]serverView, error) {
	if h.Cluster.Leader() == "" {
		return nil, unfit(noLeader)
	}
	snap := h.Reader.Snapshot()
	conf, err := h.autopilot(snap)
	if err != nil {
		return nil, err
	}
	servers := h.Servers.Servers()
	newest := model.Index(0)
	for _, s := range servers {
		newest = max(newest, s.Index)
	}
	var out []serverView
	for _, s := range servers {
		v := serverView{Server: s, member: "failed", version: h.cfg.ConsulVersion, meta: map[string]string{}}
		if alive, _ := snap.Check(s.Node, model.SerfHealth); alive != nil && alive.Status == model.Passing {
			v.member = "alive"
		}
		if i, _ := snap.Instance(s.Node, model.ServiceID(model.ConsulService)); i != nil {
			v.meta = orEmpty(i.Meta)
			v.version = cmp.Or(i.Meta["version"], v.version)
		}
		v.healthy = v.member == "alive" && s.LastContact <= time.Duration(conf.LastContactThreshold) &&
			uint64(newest-s.Index) <= conf.MaxTrailingLogs
		out = append(out, v)
	}
	return out, nil
}

// tolerance is how many healthy voters can be lost, and whether all servers are
// well.
func tolerance(servers []serverView) (spare int, healthy bool) {
	voters, well := 0, 0
	healthy = len(servers) > 0
	for _, s := range servers {
		healthy = healthy && s.healthy
		if s.Voter {
			voters++
			if s.healthy {
				well++
			}
		}
	}
	return max(well-(voters/2+1), 0), healthy
}

func (h *handler) autopilotHealth(c *call) (answer, error) {
	if err := h.operator(c, acl.Read); err != nil {
		return answer{}, err
	}
	servers, err := h.judge()
	if err != nil {
		return answer{}, err
	}
	type shape struct {
		ID          string
		Name        string
		Address     string
		SerfStatus  string
		Version     string
		Leader      bool
		LastContact spelled
		LastTerm    uint64
		LastIndex   uint64
		Healthy     bool
		Voter       bool
		StableSince time.Time
	}
	out := struct {
		Healthy          bool
		FailureTolerance int
		Servers          []shape
	}{Servers: []shape{}}
	out.FailureTolerance, out.Healthy = tolerance(servers)
	for _, s := range servers {
		out.Servers = append(out.Servers, shape{
			ID: s.ID, Name: string(s.Node), Address: s.Address, SerfStatus: s.member, Version: s.version, Leader: s.Leader,
			LastContact: spelled(s.LastContact), LastTerm: s.Term, LastIndex: uint64(s.Index), Healthy: s.healthy, Voter: s.Voter,
			StableSince: s.StableSince.Round(time.Second).UTC(),
		})
	}
	a := value(out)
	if !out.Healthy {
		a.status = http.StatusTooManyRequests // which is how clients see it without reading on
	}
	return a, nil
}

func (h *handler) autopilotState(c *call) (answer, error) {
	if err := h.operator(c, acl.Read); err != nil {
		return answer{}, err
	}
	servers, err := h.judge()
	if err != nil {
		return answer{}, err
	}
	type shape struct {
		ID          string
		Name        string
		Address     string
		NodeStatus  string
		Version     string
		LastContact spelled
		LastTerm    uint64
		LastIndex   uint64
		Healthy     bool
		StableSince time.Time
		ReadReplica bool
		Status      string
		Meta        map[string]string
		NodeType    string
	}
	out := struct {
		Healthy                    bool
		FailureTolerance           int
		OptimisticFailureTolerance int
		Servers                    map[string]shape
		Leader                     string
		Voters                     []string
	}{Servers: map[string]shape{}, Voters: []string{}}
	out.FailureTolerance, out.Healthy = tolerance(servers)
	out.OptimisticFailureTolerance = out.FailureTolerance
	for _, s := range servers {
		status := "non-voter"
		if s.Voter {
			status = "voter"
			out.Voters = append(out.Voters, s.ID)
		}
		if s.Leader {
			status, out.Leader = "leader", s.ID
		}
		out.Servers[s.ID] = shape{
			ID: s.ID, Name: string(s.Node), Address: s.Address, NodeStatus: s.member, Version: s.version,
			LastContact: spelled(s.LastContact), LastTerm: s.Term, LastIndex: uint64(s.Index), Healthy: s.healthy,
			StableSince: s.StableSince.Round(time.Second).UTC(), Status: status, Meta: s.meta, NodeType: "voter",
		}
	}
	return value(out), nil
}

// operatorUsage counts what is in the catalogue.
func (h *handler) operatorUsage(c *call) (answer, error) {
	if err := h.checkDatacenter(c); err != nil {
		return answer{}, err
	}
	type shape struct {
		Nodes                    int
		Services                 int
		ServiceInstances         int
		ConnectServiceInstances  map[string]int
		BillableServiceInstances int
	}
	v, err := h.query(c, func(s *state.Snapshot) (any, []state.Mark, error) {
		if err := c.require(acl.Operator, "", acl.Read); err != nil {
			return nil, nil, err
		}
		services, sm := s.Services()
		nodes, nm := s.Nodes()
		u := shape{Nodes: len(nodes), Services: len(services), ConnectServiceInstances: map[string]int{
			"connect-native": 0, "connect-proxy": 0, "ingress-gateway": 0, "mesh-gateway": 0, "terminating-gateway": 0, "api-gateway": 0,
		}}
		for _, svc := range services {
			u.ServiceInstances += len(svc.Members)
			for _, m := range svc.Members {
				switch {
				case m.Instance.Kind == model.KindConnectProxy:
					u.ConnectServiceInstances["connect-proxy"]++
					continue
				case m.Instance.Native:
					u.ConnectServiceInstances["connect-native"]++
				}
				if svc.Name != model.ConsulService {
					u.BillableServiceInstances++
				}
			}
		}
		return struct{ Usage map[string]shape }{map[string]shape{h.cfg.Node.Datacenter: u}}, marks(sm, nm), nil
	})
	return value(v), err
}

// keyring answers that there is none: a keyring holds the keys of gossip, and
// there is no gossip.
func keyring(access acl.Access) endpoint {
	return func(h *handler, c *call) (answer, error) {
		if err := c.require(acl.Keyring, "", access); err != nil {
			return answer{}, err
		}
		return answer{}, fail(http.StatusNotImplemented, "There is no keyring: agents and servers do not gossip, they talk over TLS")
	}
}
