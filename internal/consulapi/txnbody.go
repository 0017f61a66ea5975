package consulapi

import (
	"encoding/json"
	"errors"
	"strings"

	"github.com/fairlead-net/fairlead/internal/model"
)

// The bodies of a transaction's operations: what clients send is what they have
// read before, so everything that is shown is taken, and what only an answer
// says is ignored.

type txnOpBody struct {
	KV      *txnKVBody
	Node    *txnNodeBody
	Service *txnServiceBody
	Check   *txnCheckBody
}

type txnKVBody struct {
	Verb      string
	Key       string
	Value     []byte
	Flags     uint64
	Index     uint64
	Session   string
	Namespace string
	Partition string
}

type txnNodeBody struct {
	Verb string
	Node struct {
		ID              string
		Node            string
		Address         string
		Datacenter      string
		TaggedAddresses map[string]string
		Meta            map[string]string
		CreateIndex     uint64
		ModifyIndex     uint64
		Partition       string
		PeerName        string
		Locality        localityBody
	}
}

type txnServiceBody struct {
	Verb    string
	Node    string
	Service txnInstanceBody
}

type txnInstanceBody struct {
	Kind              string
	ID                string
	Service           string
	Tags              []string
	Meta              map[string]string
	Port              int
	Address           string
	SocketPath        string
	TaggedAddresses   map[string]addressShape
	Weights           weightsShape
	EnableTagOverride bool
	CreateIndex       uint64
	ModifyIndex       uint64
	ContentHash       string
	Proxy             proxyBody
	Connect           connectBody
	PeerName          string
	Namespace         string
	Partition         string
	Datacenter        string
	Locality          localityBody
}

type txnCheckBody struct {
	Verb  string
	Check txnHealthBody
}

type txnHealthBody struct {
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
	Namespace   string
	Partition   string
	ExposedPort int
	PeerName    string
	Definition  definitionBody
	CreateIndex uint64
	ModifyIndex uint64
}

// UnmarshalJSON implements json.Unmarshaler.
func (b *txnOpBody) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		return errors.New("an operation is null")
	}
	return decodeFields(data, b)
}

// UnmarshalJSON implements json.Unmarshaler.
func (b *txnKVBody) UnmarshalJSON(data []byte) error { return decodeFields(data, b) }

// UnmarshalJSON implements json.Unmarshaler.
func (b *txnNodeBody) UnmarshalJSON(data []byte) error {
	var outer struct {
		Verb string
		Node json.RawMessage
	}
	if err := decodeFields(data, &outer); err != nil {
		return err
	}
	b.Verb = outer.Verb
	if outer.Node == nil {
		return nil
	}
	return decodeFields(outer.Node, &b.Node)
}

// UnmarshalJSON implements json.Unmarshaler.
func (b *txnServiceBody) UnmarshalJSON(data []byte) error { return decodeFields(data, b) }

// UnmarshalJSON implements json.Unmarshaler.
func (b *txnInstanceBody) UnmarshalJSON(data []byte) error { return decodeFields(data, b) }

// UnmarshalJSON implements json.Unmarshaler.
func (b *txnCheckBody) UnmarshalJSON(data []byte) error { return decodeFields(data, b) }

// UnmarshalJSON implements json.Unmarshaler.
func (b *txnHealthBody) UnmarshalJSON(data []byte) error { return decodeFields(data, b) }

// verbGet is the one verb of nodes, services and checks that only reads.
const verbGet = "get"

// op is the operation; false when the body names none.
func (b *txnOpBody) op() (op model.TxnOp, ok bool, err error) {
	switch {
	case b.KV != nil:
		op.KV = b.KV.op()
		return op, true, onlyDefault(b.KV.Namespace, b.KV.Partition)
	case b.Node != nil:
		op.Node = b.Node.op()
		return op, true, onlyDefault("", b.Node.Node.Partition)
	case b.Service != nil:
		op.Instance = b.Service.op()
		return op, true, onlyDefault(b.Service.Service.Namespace, b.Service.Service.Partition)
	case b.Check != nil:
		op.Check = b.Check.op()
		return op, true, onlyDefault(b.Check.Check.Namespace, b.Check.Check.Partition)
	}
	return op, false, nil
}

// onlyDefault refuses namespaces and partitions other than the default.
func onlyDefault(namespace, partition string) error {
	if namespace != "" && !strings.EqualFold(namespace, "default") {
		return errors.New("Invalid field: \"Namespace\" - Namespaces are a Consul Enterprise feature") //nolint:staticcheck // the wording is Consul's
	}
	if partition != "" && !strings.EqualFold(partition, "default") {
		return errors.New("Invalid field: \"Partition\" - Partitions are a Consul Enterprise feature") //nolint:staticcheck // as above
	}
	return nil
}

func (b *txnKVBody) op() *model.TxnKV {
	return &model.TxnKV{Verb: b.Verb, KV: model.KV{
		Key: b.Key, Value: b.Value, Flags: b.Flags, Session: b.Session, Stamp: model.Stamp{ModifyIndex: model.Index(b.Index)},
	}}
}

func (b *txnNodeBody) op() *model.TxnNode {
	n := &b.Node
	return &model.TxnNode{Verb: b.Verb, Node: model.Node{
		ID: n.ID, Name: model.NodeName(n.Node), Address: n.Address, Datacenter: n.Datacenter,
		TaggedAddresses: n.TaggedAddresses, Meta: n.Meta, Locality: model.Locality(n.Locality),
		Stamp: model.Stamp{ModifyIndex: model.Index(n.ModifyIndex)},
	}}
}

func (b *txnServiceBody) op() *model.TxnInstance {
	i := b.Service.instance()
	i.Node = model.NodeName(b.Node)
	return &model.TxnInstance{Verb: b.Verb, Instance: i}
}

func (b *txnInstanceBody) instance() model.Instance {
	i := model.Instance{
		ID: model.ServiceID(b.ID), Service: model.ServiceName(b.Service), Kind: b.Kind, Native: b.Connect.Native, Proxy: b.Proxy.proxy(),
		Tags: b.Tags, Address: b.Address, Port: b.Port, SocketPath: b.SocketPath, Meta: b.Meta, Weights: model.Weights(b.Weights),
		EnableTagOverride: b.EnableTagOverride, Locality: model.Locality(b.Locality), Stamp: model.Stamp{ModifyIndex: model.Index(b.ModifyIndex)},
	}
	if i.ID == "" {
		i.ID = model.ServiceID(b.Service)
	}
	if i.Weights == (model.Weights{}) {
		i.Weights = model.DefaultWeights
	}
	for name, a := range b.TaggedAddresses {
		if i.TaggedAddresses == nil {
			i.TaggedAddresses = map[string]model.ServiceAddress{}
		}
		i.TaggedAddresses[name] = model.ServiceAddress(a)
	}
	return i
}

func (b *txnCheckBody) op() *model.TxnCheck {
	return &model.TxnCheck{Verb: b.Verb, Check: b.Check.check()}
}

func (b *txnHealthBody) check() model.Check {
	id := b.CheckID
	if id == "" {
		id = b.Name
	}
	return model.Check{
		Node: model.NodeName(b.Node), ID: model.CheckID(id), Name: b.Name, Status: model.Status(b.Status),
		Notes: b.Notes, Output: b.Output, ServiceID: model.ServiceID(b.ServiceID), ServiceName: model.ServiceName(b.ServiceName),
		ServiceTags: b.ServiceTags, Type: b.Type, Interval: b.Interval, Timeout: b.Timeout, Definition: b.Definition.definition(),
		Stamp: model.Stamp{ModifyIndex: model.Index(b.ModifyIndex)},
	}
}
