package store

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

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
		model.AddressLease, *model.AddressLease, model.Block, *model.Block, Lock, *Lock,
		model.Session, *model.Session, model.Alive, *model.Alive, model.LockDelay, *model.LockDelay,
		model.PreparedQuery, *model.PreparedQuery, model.ACLToken, *model.ACLToken, model.ACLPolicy, *model.ACLPolicy,
		model.ACLRole, *model.ACLRole, model.CARoot, *model.CARoot, model.CAKey, *model.CAKey, model.Setting, *model.Setting:
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

func decodeKV(b []byte, kv *model.KV) error {
	if len(b) == 0 || b[0] != formatKV {
		return errFormat
	}
	flags, n := binary.Uvarint(b[1:])
	if n <= 0 {
		return errors.New("truncated flags")
	}
	b = b[1+n:]
	owner, n := binary.Uvarint(b)
	if n <= 0 || owner > uint64(len(b)-n) {
		return errors.New("truncated owner")
	}
	b = b[n:]
	kv.Flags, kv.Value = flags, append([]byte{}, b[owner:]...)
	kv.Owner = model.Owner(b[:owner])
	return nil
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
	c, into, stamp := blank(table)
	if stamp == nil {
		return state.Change{}, false, nil
	}
	switch {
	case err != nil:
	case c.KV != nil:
		if err = decodeKV(value, c.KV); err == nil {
			c.KV.Key, c.KV.ValueModified = name[0], mod
		}
	default:
		err = decodeJSON(value, into)
	}
	if err != nil {
		return state.Change{}, false, fmt.Errorf("decode %q: %w", key, err)
	}
	if c.LockDelay != nil {
		// JSON would not bring back a key that is no text.
		c.LockDelay.Key, c.LockDelay.Seen = name[0], time.Now()
	}
	stamp.CreateIndex, stamp.ModifyIndex = create, mod
	return c, true, nil
}

// blank returns a change with an empty record of a table, the record itself and
// its stamp; a nil stamp for a table that state does not see.
func blank(table string) (c state.Change, record any, stamp *model.Stamp) {
	switch table {
	case tableNode:
		c.Node = &model.Node{}
		return c, c.Node, &c.Node.Stamp
	case tableInstance:
		c.Instance = &model.Instance{}
		return c, c.Instance, &c.Instance.Stamp
	case tableCheck:
		c.Check = &model.Check{}
		return c, c.Check, &c.Check.Stamp
	case tableVIP:
		c.VIP = &model.VIP{}
		return c, c.VIP, &c.VIP.Stamp
	case tableNetwork:
		c.Network = &model.Network{}
		return c, c.Network, &c.Network.Stamp
	case tableEndpoint:
		c.Endpoint = &model.Endpoint{}
		return c, c.Endpoint, &c.Endpoint.Stamp
	case tableLease:
		c.Lease = &model.AddressLease{}
		return c, c.Lease, &c.Lease.Stamp
	case tableBlock:
		c.Block = &model.Block{}
		return c, c.Block, &c.Block.Stamp
	case tableKV:
		c.KV = &model.KV{}
		return c, c.KV, &c.KV.Stamp
	}
	return blankServers(table)
}

// blankServers is blank for the tables that only servers hold.
func blankServers(table string) (c state.Change, record any, stamp *model.Stamp) {
	switch table {
	case tableSession:
		c.Session = &model.Session{}
		return c, c.Session, &c.Session.Stamp
	case tableAlive:
		c.Alive = &model.Alive{}
		return c, c.Alive, &c.Alive.Stamp
	case tableDelay:
		c.LockDelay = &model.LockDelay{}
		return c, c.LockDelay, &c.LockDelay.Stamp
	case tableQuery:
		c.Query = &model.PreparedQuery{}
		return c, c.Query, &c.Query.Stamp
	case tableToken:
		c.Token = &model.ACLToken{}
		return c, c.Token, &c.Token.Stamp
	case tablePolicy:
		c.Policy = &model.ACLPolicy{}
		return c, c.Policy, &c.Policy.Stamp
	case tableRole:
		c.Role = &model.ACLRole{}
		return c, c.Role, &c.Role.Stamp
	case tableCARoot:
		c.CARoot = &model.CARoot{}
		return c, c.CARoot, &c.CARoot.Stamp
	case tableCAKey:
		c.CAKey = &model.CAKey{}
		return c, c.CAKey, &c.CAKey.Stamp
	case tableSetting:
		c.Setting = &model.Setting{}
		return c, c.Setting, &c.Setting.Stamp
	}
	return c, nil, nil
}

// DecodeDelete turns the deletion of a key, without generation prefix, into the
// change that state applies: its record has only the fields that make up the
// key. It reports false where Decode does.
func DecodeDelete(key string) (state.Change, bool, error) {
	table, name, err := split(key)
	if err != nil {
		return state.Change{}, false, fmt.Errorf("decode deletion: %w", err)
	}
	c, _, stamp := blank(table)
	if stamp == nil {
		return state.Change{}, false, nil
	}
	c.Delete = true
	switch {
	case c.Node != nil:
		c.Node.Name = model.NodeName(name[0])
	case c.Instance != nil:
		c.Instance.Node, c.Instance.ID = model.NodeName(name[0]), model.ServiceID(name[1])
	case c.Check != nil:
		c.Check.Node, c.Check.ID = model.NodeName(name[0]), model.CheckID(name[1])
	case c.VIP != nil:
		c.VIP.Service = model.ServiceName(name[0])
	case c.Network != nil:
		c.Network.Name = model.NetworkName(name[0])
	case c.Endpoint != nil:
		c.Endpoint.ID = model.EndpointID(name[0])
	case c.Lease != nil:
		addr, err := netip.ParseAddr(name[1])
		if err != nil {
			return c, false, fmt.Errorf("decode deletion of %q: %w", key, err)
		}
		c.Lease.Network, c.Lease.Addr = model.NetworkName(name[0]), addr
	case c.Block != nil:
		p, err := netip.ParsePrefix(name[1])
		if err != nil {
			return c, false, fmt.Errorf("decode deletion of %q: %w", key, err)
		}
		c.Block.Network, c.Block.Prefix = model.NetworkName(name[0]), p
	case c.KV != nil:
		c.KV.Key = name[0]
	case c.Session != nil:
		c.Session.ID = name[0]
	case c.Alive != nil:
		c.Alive.Session = name[0]
	case c.LockDelay != nil:
		c.LockDelay.Key = name[0]
	case c.Query != nil:
		c.Query.ID = name[0]
	case c.Token != nil:
		c.Token.AccessorID = name[0]
	case c.Policy != nil:
		c.Policy.ID = name[0]
	case c.Role != nil:
		c.Role.ID = name[0]
	case c.CARoot != nil:
		c.CARoot.ID = name[0]
	case c.CAKey != nil:
		c.CAKey.Root = name[0]
	case c.Setting != nil:
		c.Setting.Name = name[0]
	}
	return c, true, nil
}
