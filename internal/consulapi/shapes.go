package consulapi

import (
	"cmp"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// The types below are the answers' shapes. Names and order of their fields are
// the API's; filters select by the same names. They have no pointers in
// fields that filters select by, so that a zero value can check a filter.

type nodeShape struct {
	ID              string
	Node            string
	Address         string
	Datacenter      string
	TaggedAddresses map[string]string
	Meta            map[string]string
	Locality        *localityShape `json:",omitempty" bexpr:"-"`
	CreateIndex     uint64         `bexpr:"-"`
	ModifyIndex     uint64         `bexpr:"-"`
}

type localityShape struct {
	Region string
	Zone   string
}

type weightsShape struct {
	Passing int
	Warning int
}

type addressShape struct {
	Address string
	Port    int
}

// proxyShape says for whom a proxy stands; its last three fields are there
// always.
type proxyShape struct {
	DestinationServiceName string `json:",omitempty"`
	DestinationServiceID   string `json:",omitempty"`
	LocalServiceAddress    string `json:",omitempty"`
	LocalServicePort       int    `json:",omitempty"`
	LocalServiceSocketPath string `json:",omitempty"`
	Mode                   string
	MeshGateway            struct{}
	Expose                 struct{}
}

type connectShape struct {
	Native bool `json:",omitempty"`
}

// serviceShape is an instance in health/service and catalog/node.
type serviceShape struct {
	Kind              string `json:",omitempty"`
	ID                string
	Service           string
	Tags              []string
	Address           string
	TaggedAddresses   map[string]addressShape `json:",omitempty"`
	Meta              map[string]string
	Port              int
	SocketPath        string `json:",omitempty"`
	Weights           weightsShape
	EnableTagOverride bool
	Proxy             proxyShape
	Connect           connectShape
	Locality          *localityShape `json:",omitempty" bexpr:"-"`
	PeerName          string
	CreateIndex       uint64 `bexpr:"-"`
	ModifyIndex       uint64 `bexpr:"-"`
}

// agentServiceShape is an instance as its agent shows it.
type agentServiceShape struct {
	Kind              string `json:",omitempty"`
	ID                string
	Service           string
	Tags              []string
	Meta              map[string]string
	Port              int
	Address           string
	SocketPath        string                  `json:",omitempty"`
	TaggedAddresses   map[string]addressShape `json:",omitempty"`
	Weights           weightsShape
	EnableTagOverride bool
	ContentHash       string         `json:",omitempty" bexpr:"-"`
	Proxy             *proxyShape    `json:",omitempty" bexpr:"-"`
	Connect           *connectShape  `json:",omitempty" bexpr:"-"`
	Datacenter        string         `json:",omitempty" bexpr:"-"`
	Locality          *localityShape `json:",omitempty" bexpr:"-"`
}

type checkShape struct {
	Node        string
	CheckID     string
	Name        string
	Status      string
	Notes       string
	Output      string
	ServiceID   string
	ServiceName string
	ServiceTags []string
	Type        string
	Interval    string
	Timeout     string
	ExposedPort int
	Definition  definitionShape `bexpr:"-"`
	CreateIndex uint64          `bexpr:"-"`
	ModifyIndex uint64          `bexpr:"-"`
}

type entryShape struct {
	Node    nodeShape
	Service serviceShape
	Checks  []checkShape
}

// catalogShape is an instance in catalog/service.
type catalogShape struct {
	ID                       string
	Node                     string
	Address                  string
	Datacenter               string
	TaggedAddresses          map[string]string
	NodeMeta                 map[string]string
	ServiceKind              string
	ServiceID                string
	ServiceName              string
	ServiceTags              []string
	ServiceAddress           string
	ServiceTaggedAddresses   map[string]addressShape `json:",omitempty"`
	ServiceWeights           weightsShape
	ServiceMeta              map[string]string
	ServicePort              int
	ServiceSocketPath        string
	ServiceEnableTagOverride bool
	ServiceProxy             proxyShape
	ServiceConnect           connectShape
	ServiceLocality          *localityShape `bexpr:"-"`
	CreateIndex              uint64         `bexpr:"-"`
	ModifyIndex              uint64         `bexpr:"-"`
}

type kvShape struct {
	LockIndex   uint64
	Key         string
	Flags       uint64
	Value       []byte // base64; null when empty
	Session     string `json:",omitempty"`
	CreateIndex uint64
	ModifyIndex uint64
}

func shapeNode(n *model.Node, dc string) nodeShape {
	if n == nil {
		return nodeShape{}
	}
	return nodeShape{
		ID:              n.ID,
		Node:            string(n.Name),
		Address:         n.Address,
		Datacenter:      cmp.Or(n.Datacenter, dc),
		TaggedAddresses: orEmpty(n.TaggedAddresses),
		Meta:            orEmpty(n.Meta),
		Locality:        shapeLocality(n.Locality),
		CreateIndex:     uint64(n.CreateIndex),
		ModifyIndex:     uint64(n.ModifyIndex),
	}
}

func shapeService(i *model.Instance) serviceShape {
	return serviceShape{
		Kind:              i.Kind,
		ID:                string(i.ID),
		Service:           string(i.Service),
		Tags:              list(i.Tags),
		Address:           i.Address,
		TaggedAddresses:   shapeAddresses(i.TaggedAddresses),
		Meta:              orEmpty(i.Meta),
		Port:              i.Port,
		SocketPath:        i.SocketPath,
		Weights:           shapeWeights(i.Weights),
		EnableTagOverride: i.EnableTagOverride,
		Proxy:             shapeProxy(i.Proxy),
		Connect:           connectShape{Native: i.Native},
		Locality:          shapeLocality(i.Locality),
		CreateIndex:       uint64(i.CreateIndex),
		ModifyIndex:       uint64(i.ModifyIndex),
	}
}

func shapeAgentService(i *model.Instance, dc string) agentServiceShape {
	s := agentServiceShape{
		Kind:              i.Kind,
		ID:                string(i.ID),
		Service:           string(i.Service),
		Tags:              list(i.Tags),
		Meta:              orEmpty(i.Meta),
		Port:              i.Port,
		Address:           i.Address,
		SocketPath:        i.SocketPath,
		TaggedAddresses:   shapeAddresses(i.TaggedAddresses),
		Weights:           shapeWeights(i.Weights),
		EnableTagOverride: i.EnableTagOverride,
		Datacenter:        dc,
		Locality:          shapeLocality(i.Locality),
	}
	if i.Kind == model.KindConnectProxy {
		s.Proxy = new(shapeProxy(i.Proxy))
	}
	if i.Native {
		s.Connect = &connectShape{Native: true}
	}
	return s
}

func shapeCatalog(m *state.Member, dc string) catalogShape {
	n, i := shapeNode(m.Node, dc), m.Instance
	return catalogShape{
		ID:                       n.ID,
		Node:                     string(i.Node),
		Address:                  n.Address,
		Datacenter:               cmp.Or(n.Datacenter, dc),
		TaggedAddresses:          orEmpty(n.TaggedAddresses),
		NodeMeta:                 orEmpty(n.Meta),
		ServiceKind:              i.Kind,
		ServiceID:                string(i.ID),
		ServiceName:              string(i.Service),
		ServiceTags:              list(i.Tags),
		ServiceAddress:           i.Address,
		ServiceTaggedAddresses:   shapeAddresses(i.TaggedAddresses),
		ServiceWeights:           shapeWeights(i.Weights),
		ServiceMeta:              orEmpty(i.Meta),
		ServicePort:              i.Port,
		ServiceSocketPath:        i.SocketPath,
		ServiceEnableTagOverride: i.EnableTagOverride,
		ServiceProxy:             shapeProxy(i.Proxy),
		ServiceConnect:           connectShape{Native: i.Native},
		ServiceLocality:          shapeLocality(i.Locality),
		CreateIndex:              uint64(i.CreateIndex),
		ModifyIndex:              uint64(i.ModifyIndex),
	}
}

func shapeCheck(c *model.Check) checkShape {
	// Consul prints the durations of a check that an agent runs, set or not.
	unset := ""
	if c.Type != "" && c.Type != "maintenance" && c.Definition == nil {
		unset = "0s"
	}
	return checkShape{
		Node:        string(c.Node),
		CheckID:     string(c.ID),
		Name:        c.Name,
		Status:      string(c.Status),
		Notes:       c.Notes,
		Output:      c.Output,
		ServiceID:   string(c.ServiceID),
		ServiceName: string(c.ServiceName),
		ServiceTags: list(c.ServiceTags),
		Type:        c.Type,
		Interval:    cmp.Or(c.Interval, unset),
		Timeout:     cmp.Or(c.Timeout, unset),
		Definition:  shapeDefinition(c.Definition),
		CreateIndex: uint64(c.CreateIndex),
		ModifyIndex: uint64(c.ModifyIndex),
	}
}

func shapeChecks(cs []*model.Check) []checkShape {
	out := make([]checkShape, len(cs))
	for i, c := range cs {
		out[i] = shapeCheck(c)
	}
	return out
}

func shapeEntry(m *state.Member, dc string) entryShape {
	return entryShape{Node: shapeNode(m.Node, dc), Service: shapeService(m.Instance), Checks: shapeChecks(m.Checks)}
}

func shapeKV(kv *model.KV) kvShape {
	s := kvShape{
		LockIndex:   kv.LockIndex,
		Key:         kv.Key,
		Flags:       kv.Flags,
		Session:     kv.Session,
		CreateIndex: uint64(kv.CreateIndex),
		ModifyIndex: uint64(kv.ModifyIndex),
	}
	if len(kv.Value) > 0 {
		s.Value = kv.Value
	}
	return s
}

func shapeProxy(p model.Proxy) proxyShape {
	return proxyShape{
		DestinationServiceName: string(p.Service), DestinationServiceID: string(p.ID),
		LocalServiceAddress: p.LocalAddress, LocalServicePort: p.LocalPort, LocalServiceSocketPath: p.LocalSocket,
	}
}

func shapeLocality(l model.Locality) *localityShape {
	if l == (model.Locality{}) {
		return nil
	}
	return new(localityShape(l))
}

func shapeWeights(w model.Weights) weightsShape {
	if w == (model.Weights{}) {
		w = model.DefaultWeights
	}
	return weightsShape(w)
}

func shapeAddresses(in map[string]model.ServiceAddress) map[string]addressShape {
	out := make(map[string]addressShape, len(in))
	for k, v := range in {
		out[k] = addressShape(v)
	}
	return out
}

// list returns s for encoding: [] where s is nil.
func list(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

func orEmpty(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}
