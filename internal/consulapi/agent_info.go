package consulapi

import (
	"cmp"
	"fmt"
	"runtime"
	"strconv"
	"time"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
)

var agentInfoRoutes = []route{
	get("/v1/agent/self", (*handler).agentSelf),
	get("/v1/agent/version", (*handler).agentVersion),
	get("/v1/agent/members", (*handler).agentMembers),
	get("/v1/agent/host", (*handler).agentHost),
	get("/v1/agent/metrics", (*handler).agentMetrics),
	get("/v1/agent/monitor", (*handler).agentMonitor),
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
	// lanPort and wanPort are where Consul's members gossip. Nothing listens
	// there; clients only print them.
	lanPort = 8301
	wanPort = 8302
)

// agentMembers lists the nodes that run an agent; with ?wan only servers, under
// the names that they have among sites.
func (h *handler) agentMembers(c *call) (answer, error) {
	f, err := newFilter(c, memberShape{})
	if err != nil {
		return answer{}, err
	}
	wan := c.params.Get("wan") != ""
	if s := c.params.Get("segment"); wan && s != "" && s != "_all" {
		return answer{}, badRequest("Cannot provide a segment with wan=true")
	}
	nodes, _ := h.Reader.Snapshot().Nodes()
	nodes, err = visible(c, nodes, seeNode)
	if err != nil {
		return answer{}, err
	}
	var all []memberShape
	for _, n := range nodes {
		if n.Owner == model.OwnerExternal || (wan && !h.isServer(n.Name)) {
			continue
		}
		m := h.member(n)
		m.Status = h.memberStatus(n.Name)
		if wan {
			m.Name += "." + m.Tags["dc"]
			m.Port = wanPort
		}
		all = append(all, m)
	}
	out, err := f.slice(all)
	return value(out), err
}

// isServer reports whether a node carries the server role.
func (h *handler) isServer(n model.NodeName) bool {
	if n == h.cfg.Node.Name {
		return !h.cfg.ClientOnly
	}
	i, _ := h.Reader.Snapshot().Instance(n, "consul")
	return i != nil
}

func (h *handler) memberStatus(n model.NodeName) int {
	if serf, _ := h.Reader.Snapshot().Check(n, model.SerfHealth); serf != nil && serf.Status == model.Critical {
		return memberFailed
	}
	return memberAlive
}

func (h *handler) member(n *model.Node) memberShape {
	tags := map[string]string{
		"role": "node", "dc": cmp.Or(n.Datacenter, h.cfg.Node.Datacenter), "id": n.ID, "acls": strconv.Itoa(b2i(!h.aclsOff())),
		"build": h.cfg.ConsulVersion + ":", "segment": "", "vsn": "2",
	}
	if h.isServer(n.Name) {
		tags["role"], tags["port"] = "consul", "8300"
	}
	return memberShape{
		Name:        string(n.Name),
		Addr:        n.Address,
		Port:        lanPort,
		Tags:        tags,
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
	// SessionTTLMin, in nanoseconds, is not among Consul's newer fields, but
	// Patroni reads it here when it has asked for too short a TTL.
	SessionTTLMin time.Duration
}

type selfShape struct {
	Config      selfConfig
	DebugConfig map[string]any
	Coord       *struct{}
	Member      memberShape
	Stats       map[string]map[string]string
	Meta        map[string]string
}

// agentSelf is what an agent says of itself.
func (h *handler) agentSelf(c *call) (answer, error) {
	if err := h.requireAgent(c, acl.Read); err != nil {
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
			BuildDate:         buildDate,
			SessionTTLMin:     h.cfg.SessionTTLMin,
		},
		DebugConfig: h.debugConfig(),
		Member:      h.member(&n),
		Stats:       h.stats(),
		Meta:        meta,
	}), nil
}

// buildDate is what Consul shows where none was built in.
const buildDate = "1970-01-01T00:00:01Z"

// debugConfig are the settings that clients are known to read.
func (h *handler) debugConfig() map[string]any {
	n := h.cfg.Node
	return map[string]any{
		"ACLsEnabled":              !h.aclsOff(),
		"ACLResolverSettings":      map[string]any{"ACLsEnabled": !h.aclsOff(), "ACLDefaultPolicy": h.cfg.DefaultACLPolicy, "NodeName": n.Name, "Datacenter": n.Datacenter},
		"AdvertiseAddrLAN":         n.Address,
		"Datacenter":               n.Datacenter,
		"EnableLocalScriptChecks":  h.cfg.ScriptChecks == "local" || h.cfg.ScriptChecks == "on",
		"EnableRemoteScriptChecks": h.cfg.ScriptChecks == "on",
		"KVMaxValueSize":           h.cfg.KVMaxValueSize,
		"NodeID":                   n.ID,
		"NodeMeta":                 orEmpty(n.Meta),
		"NodeName":                 n.Name,
		"PrimaryDatacenter":        n.Datacenter,
		"ServerMode":               !h.cfg.ClientOnly,
		"SessionTTLMin":            h.cfg.SessionTTLMin.String(),
		"TaggedAddresses":          orEmpty(n.TaggedAddresses),
		"TxnMaxReqLen":             h.cfg.TxnMaxReqSize,
		"Version":                  h.cfg.ConsulVersion,
	}
}

func (h *handler) stats() map[string]map[string]string {
	checks := h.Agent.Checks()
	ttls := 0
	for _, ch := range checks {
		ttls += b2i(ch.Type == "ttl")
	}
	leader := h.Cluster.Leader()
	return map[string]map[string]string{
		"agent": {
			"services":       strconv.Itoa(len(h.Agent.Services())),
			"checks":         strconv.Itoa(len(checks)),
			"check_ttls":     strconv.Itoa(ttls),
			"check_monitors": strconv.Itoa(len(checks) - ttls),
		},
		"build": {"prerelease": "", "revision": "", "version": h.cfg.ConsulVersion, "version_metadata": ""},
		"consul": {
			"acl":               map[bool]string{true: "disabled", false: "enabled"}[h.aclsOff()],
			"server":            strconv.FormatBool(!h.cfg.ClientOnly),
			"leader":            strconv.FormatBool(leader != "" && !h.cfg.ClientOnly),
			"leader_addr":       leader,
			"known_datacenters": "1",
		},
		"runtime": {
			"arch": runtime.GOARCH, "os": runtime.GOOS, "version": runtime.Version(),
			"cpu_count": strconv.Itoa(runtime.NumCPU()), "max_procs": strconv.Itoa(runtime.GOMAXPROCS(0)),
			"goroutines": strconv.Itoa(runtime.NumGoroutine()),
		},
	}
}

type versionShape struct {
	SHA          string
	BuildDate    string
	HumanVersion string
	FIPS         string
}

// agentVersion says which level of Consul's API is answered, to anybody.
func (h *handler) agentVersion(*call) (answer, error) {
	return value(versionShape{BuildDate: buildDate, HumanVersion: h.cfg.ConsulVersion}), nil
}

// agentHost shows the host's memory, processors, system and disk.
func (h *handler) agentHost(c *call) (answer, error) {
	if err := c.require(acl.Operator, "", acl.Read); err != nil {
		return answer{}, err
	}
	host, err := readHost("/")
	if err != nil {
		return answer{}, fmt.Errorf("read what the host says of itself: %w", err)
	}
	return value(host), nil
}
