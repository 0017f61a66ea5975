package store

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/fairlead-net/fairlead/internal/model"
)

// Tables: the first segment of every key that Commit takes. The text behind it
// is one escaped segment per name, so that no name can leave its table; only in
// the KV tables is it the user's key as it is, which keeps the byte order and
// the prefixes of KV keys.
const (
	tableNode     = "node"
	tableInstance = "instance"
	tableCheck    = "check"
	tableVIP      = "vip"
	tableVIPAddr  = "vipaddr"
	tableNetwork  = "network"
	tableEndpoint = "endpoint"
	tableName     = "name"
	tableLease    = "lease"
	tableBlock    = "block"
	tableKV       = "kv"
	tableKVLock   = "kvlock"
	tableSession  = "session"
	tableAlive    = "alive"
	tableHold     = "hold"
	tableDelay    = "lockdelay"
	tableQuery    = "query"
	tableToken    = "acltoken"
	tablePolicy   = "aclpolicy"
	tableRole     = "aclrole"
	tableCARoot   = "caroot"
	tableCAKey    = "cakey"
	tableSetting  = "setting"
	tableUnique   = "unique"
)

// What lies around the tables. Everything has one root, so that one watch sees
// every revision.
const (
	rootPrefix  = "fairlead/"
	pointerKey  = rootPrefix + "generation"
	restoreKey  = rootPrefix + "restore"
	batchPrefix = rootPrefix + "batch/"
	genPrefix   = rootPrefix + "g/"
)

// generationPrefix goes before each key of a generation.
func generationPrefix(gen string) string { return genPrefix + escape(gen) + "/" }

// batchKey holds the number of the last batch that a server committed.
func batchKey(server string) string { return batchPrefix + escape(server) }

func key(table string, segments ...string) string {
	var b strings.Builder
	b.WriteString(table)
	for _, s := range segments {
		b.WriteByte('/')
		b.WriteString(escape(s))
	}
	return b.String()
}

func prefix(table string, segments ...string) string { return key(table, segments...) + "/" }

// NodeKey is the key of a model.Node.
func NodeKey(n model.NodeName) string { return key(tableNode, string(n)) }

// NodePrefix begins the keys of all nodes.
func NodePrefix() string { return prefix(tableNode) }

// InstanceKey is the key of a model.Instance.
func InstanceKey(n model.NodeName, id model.ServiceID) string {
	return key(tableInstance, string(n), string(id))
}

// InstancePrefix begins the keys of a node's instances.
func InstancePrefix(n model.NodeName) string { return prefix(tableInstance, string(n)) }

// CheckKey is the key of a model.Check.
func CheckKey(n model.NodeName, id model.CheckID) string {
	return key(tableCheck, string(n), string(id))
}

// CheckPrefix begins the keys of a node's checks, its instances' included.
func CheckPrefix(n model.NodeName) string { return prefix(tableCheck, string(n)) }

// VIPKey is the key of a model.VIP.
func VIPKey(s model.ServiceName) string { return key(tableVIP, string(s)) }

// VIPPrefix begins the keys of all VIPs.
func VIPPrefix() string { return prefix(tableVIP) }

// VIPAddrKey is the key that makes a VIP's address its service's alone. Its
// value is the service's name (a string given to Encode); state does not see it.
func VIPAddrKey(a netip.Addr) string { return key(tableVIPAddr, a.String()) }

// NetworkKey is the key of a model.Network.
func NetworkKey(n model.NetworkName) string { return key(tableNetwork, string(n)) }

// NetworkPrefix begins the keys of all networks.
func NetworkPrefix() string { return prefix(tableNetwork) }

// EndpointKey is the key of a model.Endpoint.
func EndpointKey(id model.EndpointID) string { return key(tableEndpoint, string(id)) }

// EndpointPrefix begins the keys of all endpoints.
func EndpointPrefix() string { return prefix(tableEndpoint) }

// NameKey is the key that makes a workload's name or alias its endpoint's alone
// within a network. Its value is the endpoint's id (a string given to Encode);
// state does not see it. Names are equal without regard to case.
func NameKey(n model.NetworkName, name string) string {
	return key(tableName, string(n), strings.ToLower(name))
}

// NamePrefix begins the keys of all names within a network.
func NamePrefix(n model.NetworkName) string { return prefix(tableName, string(n)) }

// LeaseKey is the key of a model.AddressLease.
func LeaseKey(n model.NetworkName, a netip.Addr) string {
	return key(tableLease, string(n), a.String())
}

// LeasePrefix begins the keys of a network's address leases.
func LeasePrefix(n model.NetworkName) string { return prefix(tableLease, string(n)) }

// BlockKey is the key of a model.Block.
func BlockKey(n model.NetworkName, p netip.Prefix) string {
	return key(tableBlock, string(n), p.String())
}

// BlockPrefix begins the keys of a network's blocks.
func BlockPrefix(n model.NetworkName) string { return prefix(tableBlock, string(n)) }

// KVKey is the key of a KV entry's value and flags.
func KVKey(k string) string { return tableKV + "/" + k }

// KVPrefix begins the keys of all KV entries whose own keys begin with p.
func KVPrefix(p string) string { return KVKey(p) }

// KVLockKey is the key of a KV entry's lock: who holds it, and how often it was
// taken. It exists only beside KVKey and is deleted only together with it.
func KVLockKey(k string) string { return tableKVLock + "/" + k }

// KVLockPrefix begins the keys of the locks of all KV entries whose own keys
// begin with p. A tree is deleted with KVPrefix and KVLockPrefix.
func KVLockPrefix(p string) string { return KVLockKey(p) }

// SessionKey is the key of a model.Session.
func SessionKey(id string) string { return key(tableSession, id) }

// AliveKey is the key of a session's model.Alive; only PutAlive puts it.
func AliveKey(session string) string { return key(tableAlive, session) }

// HoldKey is the key that every taking of a lock by a session writes (a string
// given to Encode), so that the session's end, which compares it, cannot miss a
// lock taken meanwhile; state does not see it.
func HoldKey(session string) string { return key(tableHold, session) }

// LockDelayKey is the key of a KV entry's model.LockDelay.
func LockDelayKey(k string) string { return tableDelay + "/" + k }

// QueryKey is the key of a model.PreparedQuery.
func QueryKey(id string) string { return key(tableQuery, id) }

// TokenKey is the key of a model.ACLToken.
func TokenKey(accessor string) string { return key(tableToken, accessor) }

// PolicyKey is the key of a model.ACLPolicy.
func PolicyKey(id string) string { return key(tablePolicy, id) }

// RoleKey is the key of a model.ACLRole.
func RoleKey(id string) string { return key(tableRole, id) }

// CARootKey is the key of a model.CARoot.
func CARootKey(id string) string { return key(tableCARoot, id) }

// CARootPrefix begins the keys of all roots.
func CARootPrefix() string { return prefix(tableCARoot) }

// CAKeyKey is the key of a root's model.CAKey.
func CAKeyKey(root string) string { return key(tableCAKey, root) }

// SettingKey is the key of a model.Setting.
func SettingKey(name string) string { return key(tableSetting, name) }

// UniqueKey is the key that makes a value its holder's alone within a kind, such
// as the name of a policy. Its value is the holder's id (a string given to
// Encode); state does not see it.
func UniqueKey(kind, value string) string { return key(tableUnique, kind, value) }

// escape makes s safe as one segment of a key: it holds no slash afterwards, and
// different strings stay different.
func escape(s string) string {
	if !strings.ContainsAny(s, "/%") {
		return s
	}
	return strings.NewReplacer("%", "%25", "/", "%2F").Replace(s)
}

func unescape(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	return strings.NewReplacer("%25", "%", "%2F", "/").Replace(s)
}

// split takes a key apart. For the KV tables rest is the user's key, for the
// others the unescaped segments behind the table.
func split(k string) (table string, rest []string, err error) {
	table, tail, ok := strings.Cut(k, "/")
	if !ok {
		return "", nil, fmt.Errorf("key %q has no table", k)
	}
	want := 0
	switch table {
	case tableKV, tableKVLock, tableDelay:
		return table, []string{tail}, nil
	case tableNode, tableVIP, tableVIPAddr, tableNetwork, tableEndpoint, tableSession, tableAlive, tableHold, tableQuery,
		tableToken, tablePolicy, tableRole, tableCARoot, tableCAKey, tableSetting:
		want = 1
	case tableInstance, tableCheck, tableLease, tableBlock, tableName, tableUnique:
		want = 2
	}
	rest = strings.Split(tail, "/")
	if want != 0 && len(rest) != want {
		return table, nil, fmt.Errorf("key %q has %d segments, not %d", k, len(rest), want)
	}
	for i := range rest {
		rest[i] = unescape(rest[i])
	}
	return table, rest, nil
}
