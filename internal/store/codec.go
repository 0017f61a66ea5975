package store

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// Formats: the first byte of every value. A reader refuses what it does not
// know, so that a later version can change a record's shape.
const (
	formatJSON byte = 1 // the record as JSON
	formatText byte = 2 // a name, as it is
	formatKV   byte = 3 // flags and length of owner as uvarints, owner, raw value
)

var errFormat = errors.New("unknown format of a value")

// Lock is the value behind KVLockKey.
type Lock struct {
	Session   string `json:"session,omitempty"` // the holder; empty when released
	LockIndex uint64 `json:"lock_index"`        // how often the lock was taken
}

// Encode returns the value under which a record is put. It takes the records of
// package model or pointers to them, a Lock, or a string for a key that only
// refers to something; indexes are not encoded, they are etcd's. Of a model.KV
// it encodes what belongs behind KVKey: value, flags and owner, not the lock.
func Encode(record any) ([]byte, error) {
	switch r := record.(type) {
	case string:
		return append([]byte{formatText}, r...), nil
	case model.KV:
		return encodeKV(&r), nil
	case *model.KV:
		return encodeKV(r), nil
	case model.Node, *model.Node, model.Instance, *model.Instance, model.Check, *model.Check,
		model.VIP, *model.VIP, model.Network, *model.Network, model.Endpoint, *model.Endpoint,
		model.AddressLease, *model.AddressLease, Lock, *Lock:
		b, err := json.Marshal(record)
		if err != nil {
			return nil, fmt.Errorf("encode %T: %w", record, err)
		}
		return append([]byte{formatJSON}, b...), nil
	}
	return nil, fmt.Errorf("encode %T: not a record", record)
}

func encodeKV(kv *model.KV) []byte {
	b := make([]byte, 0, 1+2*binary.MaxVarintLen64+len(kv.Owner)+len(kv.Value))
	b = append(b, formatKV)
	b = binary.AppendUvarint(b, kv.Flags)
	b = binary.AppendUvarint(b, uint64(len(kv.Owner)))
	b = append(b, kv.Owner...)
	return append(b, kv.Value...)
}

func decodeKV(b []byte) (*model.KV, error) {
	if len(b) == 0 || b[0] != formatKV {
		return nil, errFormat
	}
	flags, n := binary.Uvarint(b[1:])
	if n <= 0 {
		return nil, errors.New("truncated flags")
	}
	b = b[1+n:]
	owner, n := binary.Uvarint(b)
	if n <= 0 || owner > uint64(len(b)-n) {
		return nil, errors.New("truncated owner")
	}
	b = b[n:]
	kv := &model.KV{Flags: flags, Value: append([]byte{}, b[owner:]...)}
	kv.Owner = model.Owner(b[:owner])
	return kv, nil
}

func decodeJSON(b []byte, into any) error {
	if len(b) == 0 || b[0] != formatJSON {
		return errFormat
	}
	return json.Unmarshal(b[1:], into)
}

// Decode turns one key, without generation prefix, and its value into the change
// that state applies; create and mod are the key's revisions. It reports false
// for keys that state does not see: references, tables it does not know (a newer
// server may have written them) and KV locks, which the store merges with their
// entry. The change shares nothing with value.
func Decode(key string, value []byte, create, mod model.Index) (state.Change, bool, error) {
	table, name, err := split(key)
	var c state.Change
	var into any
	var stamp *model.Stamp
	switch table {
	case tableNode:
		c.Node = &model.Node{}
		into, stamp = c.Node, &c.Node.Stamp
	case tableInstance:
		c.Instance = &model.Instance{}
		into, stamp = c.Instance, &c.Instance.Stamp
	case tableCheck:
		c.Check = &model.Check{}
		into, stamp = c.Check, &c.Check.Stamp
	case tableVIP:
		c.VIP = &model.VIP{}
		into, stamp = c.VIP, &c.VIP.Stamp
	case tableNetwork:
		c.Network = &model.Network{}
		into, stamp = c.Network, &c.Network.Stamp
	case tableEndpoint:
		c.Endpoint = &model.Endpoint{}
		into, stamp = c.Endpoint, &c.Endpoint.Stamp
	case tableLease:
		c.Lease = &model.AddressLease{}
		into, stamp = c.Lease, &c.Lease.Stamp
	case tableKV:
		if c.KV, err = decodeKV(value); err != nil {
			return state.Change{}, false, fmt.Errorf("decode %q: %w", key, err)
		}
		c.KV.Key = name[0]
		stamp = &c.KV.Stamp
	default:
		return state.Change{}, false, nil
	}
	if err == nil && into != nil {
		err = decodeJSON(value, into)
	}
	if err != nil {
		return state.Change{}, false, fmt.Errorf("decode %q: %w", key, err)
	}
	stamp.CreateIndex, stamp.ModifyIndex = create, mod
	return c, true, nil
}

// DecodeDelete turns the deletion of a key, without generation prefix, into the
// change that state applies: its record has only the fields that make up the
// key. It reports false where Decode does.
func DecodeDelete(key string) (state.Change, bool, error) {
	c := state.Change{Delete: true}
	table, name, err := split(key)
	if err != nil {
		return c, false, fmt.Errorf("decode deletion: %w", err)
	}
	switch table {
	case tableNode:
		c.Node = &model.Node{Name: model.NodeName(name[0])}
	case tableInstance:
		c.Instance = &model.Instance{Node: model.NodeName(name[0]), ID: model.ServiceID(name[1])}
	case tableCheck:
		c.Check = &model.Check{Node: model.NodeName(name[0]), ID: model.CheckID(name[1])}
	case tableVIP:
		c.VIP = &model.VIP{Service: model.ServiceName(name[0])}
	case tableNetwork:
		c.Network = &model.Network{Name: model.NetworkName(name[0])}
	case tableEndpoint:
		c.Endpoint = &model.Endpoint{ID: model.EndpointID(name[0])}
	case tableLease:
		addr, err := netip.ParseAddr(name[1])
		if err != nil {
			return c, false, fmt.Errorf("decode deletion of %q: %w", key, err)
		}
		c.Lease = &model.AddressLease{Network: model.NetworkName(name[0]), Addr: addr}
	case tableKV:
		c.KV = &model.KV{Key: name[0]}
	default:
		return state.Change{}, false, nil
	}
	return c, true, nil
}
