package consulapi

import (
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"net/netip"
	"strings"

	"github.com/google/uuid"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// Catalogue is written by those who are no node's agent.
type Catalogue interface {
	// RegisterExternal writes a node, an instance and checks, all or nothing.
	RegisterExternal(ctx context.Context, reg model.ExternalRegistration) (model.Index, error)
	// DeregisterNode, Deregister and DeleteCheck remove a node with all it has, an
	// instance with its checks, and a check. What is not there counts as removed.
	DeregisterNode(ctx context.Context, name model.NodeName) (model.Index, error)
	Deregister(ctx context.Context, n model.NodeName, id model.ServiceID) (model.Index, error)
	DeleteCheck(ctx context.Context, n model.NodeName, id model.CheckID) (model.Index, error)
}

type externalBody struct {
	ID              string
	Node            string
	Address         string
	TaggedAddresses map[string]string
	NodeMeta        map[string]string
	Datacenter      string
	Service         *txnInstanceBody
	Check           *txnHealthBody
	Checks          []*txnHealthBody
	SkipNodeUpdate  bool
	Namespace       string
	Partition       string
	PeerName        string
	Locality        localityBody
	// The request's own token counts, not one in its body.
	Token        string
	WriteRequest json.RawMessage
}

type goneBody struct {
	Node         string
	Address      string // obsolete
	Datacenter   string
	ServiceID    string
	CheckID      string
	Namespace    string
	Partition    string
	PeerName     string
	Token        string
	WriteRequest json.RawMessage
}

// UnmarshalJSON implements json.Unmarshaler.
func (b *externalBody) UnmarshalJSON(data []byte) error { return decodeFields(data, b) }

// UnmarshalJSON implements json.Unmarshaler.
func (b *goneBody) UnmarshalJSON(data []byte) error { return decodeFields(data, b) }

// unfit refuses what a body says the way Consul's servers do.
func unfit(format string, args ...any) error {
	return fail(http.StatusInternalServerError, format, args...)
}

func noCatalogue() error {
	return fail(http.StatusNotImplemented, "Writing to the catalog is not available on this agent")
}

// here refuses a body that is for another site.
func (h *handler) here(c *call, dc, namespace, partition string) error {
	if err := onlyDefault(namespace, partition); err != nil {
		return badRequest("%v", err)
	}
	if dc != "" && !strings.EqualFold(dc, h.cfg.Node.Datacenter) {
		return fail(http.StatusInternalServerError, noPath)
	}
	return h.checkDatacenter(c)
}

func (h *handler) catalogRegister(c *call) (answer, error) {
	if h.Catalogue == nil {
		return answer{}, noCatalogue()
	}
	var b externalBody
	if err := h.decodeBody(c, &b); err != nil {
		return answer{}, err
	}
	if err := h.here(c, b.Datacenter, b.Namespace, b.Partition); err != nil {
		return answer{}, err
	}
	reg, err := b.registration()
	if err != nil {
		return answer{}, err
	}
	reg.Node.Datacenter = cmp.Or(reg.Node.Datacenter, h.cfg.Node.Datacenter)
	if err := h.vetExternal(c, &reg); err != nil {
		return answer{}, err
	}
	if _, err := h.Catalogue.RegisterExternal(c.r.Context(), reg); err != nil {
		return answer{}, err
	}
	return value(true), nil
}

// registration follows Consul's order and texts.
func (b *externalBody) registration() (model.ExternalRegistration, error) {
	reg := model.ExternalRegistration{
		Node: model.Node{
			ID: strings.ToLower(b.ID), Name: model.NodeName(b.Node), Address: b.Address, Datacenter: b.Datacenter,
			TaggedAddresses: b.TaggedAddresses, Meta: b.NodeMeta, Locality: model.Locality(b.Locality),
		},
		SkipNodeUpdate: b.SkipNodeUpdate,
	}
	switch {
	case b.Node == "":
		return reg, unfit("Must provide node")
	case b.Address == "" && !b.SkipNodeUpdate:
		return reg, unfit("Must provide address if SkipNodeUpdate is not set")
	}
	if b.ID != "" {
		if _, err := uuid.Parse(b.ID); err != nil {
			return reg, unfit("Bad node ID: %v", err)
		}
	}
	if b.Service != nil {
		i := b.Service.instance()
		if err := fitService(&i); err != nil {
			return reg, err
		}
		reg.Service = &i
	}
	for _, ch := range append(b.Checks, b.Check) {
		if ch == nil {
			continue
		}
		k := ch.check()
		if k.Node == "" {
			k.Node = reg.Node.Name
		}
		reg.Checks = append(reg.Checks, k)
	}
	return reg, nil
}

func fitService(i *model.Instance) error {
	addr, err := netip.ParseAddr(strings.Trim(i.Address, "[]"))
	switch {
	case i.Kind != model.KindTypical && i.Kind != model.KindConnectProxy:
		return unfit("services of kind %q are not supported; leave Kind out, or register a %q", i.Kind, model.KindConnectProxy)
	case i.Kind == model.KindConnectProxy && i.Proxy.Service == "":
		return unfit("Proxy.DestinationServiceName must be non-empty for Connect proxy services")
	case i.Kind == model.KindConnectProxy && i.Port == 0 && i.SocketPath == "":
		return unfit("Port or SocketPath must be set for a %s", i.Kind)
	case i.Kind == model.KindConnectProxy && i.Native:
		return unfit("A Proxy cannot also be Connect Native, only typical services")
	case i.ID != "" && i.Service == "":
		return unfit("Must provide service name (Service.Service) when service ID is provided")
	case err == nil && addr.Unmap().IsUnspecified():
		return unfit("Invalid service address")
	}
	return nil
}

// vetExternal takes the right to write the node, if its record changes; the
// service, and the one that it takes the place of; and what each check is of.
func (h *handler) vetExternal(c *call, reg *model.ExternalRegistration) error {
	snap := h.Reader.Snapshot()
	name := reg.Node.Name
	node, _ := snap.Node(name)
	if node == nil || (!reg.SkipNodeUpdate && h.changesNode(node, &reg.Node)) {
		if err := c.require(acl.Node, string(name), acl.Write); err != nil {
			return err
		}
		if err := vetID(c, snap, &reg.Node); err != nil {
			return err
		}
	}
	if i := reg.Service; i != nil {
		services := []model.ServiceName{i.Service}
		if i.Kind == model.KindConnectProxy {
			services = append(services, i.Proxy.Service)
		}
		if old, _ := snap.Instance(name, i.ID); old != nil {
			services = append(services, old.Service)
		}
		for _, s := range services {
			if err := c.require(acl.Service, string(s), acl.Write); err != nil {
				return err
			}
		}
	}
	for i := range reg.Checks {
		if err := vetExternalCheck(c, snap, reg, &reg.Checks[i]); err != nil {
			return err
		}
	}
	return nil
}

// vetID takes the right to write the node that has the id under another name: it
// will be gone.
func vetID(c *call, snap *state.Snapshot, n *model.Node) error {
	if n.ID == "" {
		return nil
	}
	nodes, _ := snap.Nodes()
	for _, o := range nodes {
		if o.ID == n.ID && o.Name != n.Name {
			if err := c.require(acl.Node, string(o.Name), acl.Write); err != nil {
				return err
			}
		}
	}
	return nil
}

func (h *handler) changesNode(cur, n *model.Node) bool {
	return (n.ID != "" && n.ID != cur.ID) || n.Address != cur.Address || n.Locality != cur.Locality ||
		!strings.EqualFold(n.Datacenter, cmp.Or(cur.Datacenter, h.cfg.Node.Datacenter)) ||
		!maps.Equal(n.TaggedAddresses, cur.TaggedAddresses) || !maps.Equal(n.Meta, cur.Meta)
}

func vetExternalCheck(c *call, snap *state.Snapshot, reg *model.ExternalRegistration, ch *model.Check) error {
	name := reg.Node.Name
	if ch.Node != name {
		return unfit("Node '%s' for check '%s' doesn't match register request node '%s'", ch.Node, ch.ID, name)
	}
	// The check that it takes the place of may be of something else.
	if old, _ := snap.Check(name, ch.ID); old != nil && old.ServiceID != ch.ServiceID {
		if err := vetCheckOwner(c, snap, old); err != nil {
			return err
		}
	}
	if ch.ServiceID == "" {
		return c.require(acl.Node, string(name), acl.Write)
	}
	if reg.Service != nil && reg.Service.ID == ch.ServiceID {
		return nil
	}
	i, _ := snap.Instance(name, ch.ServiceID)
	if i == nil {
		if _, err := c.authorizer(); err != nil {
			return err
		}
		return unfit("Unknown service ID '%s' for check ID '%s'", ch.ServiceID, ch.ID)
	}
	return c.require(acl.Service, string(i.Service), acl.Write)
}

func (h *handler) catalogDeregister(c *call) (answer, error) {
	if h.Catalogue == nil {
		return answer{}, noCatalogue()
	}
	var b goneBody
	if err := h.decodeBody(c, &b); err != nil {
		return answer{}, err
	}
	if err := h.here(c, b.Datacenter, b.Namespace, b.Partition); err != nil {
		return answer{}, err
	}
	if b.Node == "" {
		return answer{}, unfit("Must provide node")
	}
	if err := h.vetGone(c, &b); err != nil {
		return answer{}, err
	}
	var err error
	ctx, node := c.r.Context(), model.NodeName(b.Node)
	switch {
	case b.ServiceID != "":
		_, err = h.Catalogue.Deregister(ctx, node, model.ServiceID(b.ServiceID))
	case b.CheckID != "":
		_, err = h.Catalogue.DeleteCheck(ctx, node, model.CheckID(b.CheckID))
	default:
		_, err = h.Catalogue.DeregisterNode(ctx, node)
	}
	if err != nil {
		return answer{}, err
	}
	return value(true), nil
}

// vetGone takes the right to write the node, which is enough for everything on
// it, or else the service.
func (h *handler) vetGone(c *call, b *goneBody) error {
	node := c.require(acl.Node, b.Node, acl.Write)
	if node == nil {
		return nil
	}
	a, err := c.authorizer()
	if err != nil {
		return err
	}
	snap := h.Reader.Snapshot()
	service := model.ServiceName("")
	switch {
	case b.ServiceID != "":
		i, _ := snap.Instance(model.NodeName(b.Node), model.ServiceID(b.ServiceID))
		if i == nil {
			return unfit("Unknown service ID '%s'", b.ServiceID)
		}
		service = i.Service
	case b.CheckID != "":
		ch, _ := snap.Check(model.NodeName(b.Node), model.CheckID(b.CheckID))
		if ch == nil {
			return unfit("Unknown check ID '%s'", b.CheckID)
		}
		service = ch.ServiceName
	}
	if service == "" {
		return node
	}
	if !a.Allow(acl.Service, string(service), acl.Write) {
		return denied(a, acl.Service, string(service), acl.Write)
	}
	return nil
}
