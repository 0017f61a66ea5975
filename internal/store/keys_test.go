package store

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

func TestNamesStayInTheirTable(t *testing.T) {
	nasty := []string{"a", "a/b", "a%2Fb", "a%b", "%25", "a/", "/", "//", "", "%", "../node/x", "ü/☃"}
	seen := map[string]string{}
	for _, n := range nasty {
		k := InstanceKey(model.NodeName(n), model.ServiceID(n))
		if got := strings.Count(k, "/"); got != 2 {
			t.Errorf("InstanceKey(%q) = %q has %d slashes", n, k, got)
		}
		if !strings.HasPrefix(k, InstancePrefix(model.NodeName(n))) {
			t.Errorf("%q does not begin with its node's prefix", k)
		}
		if other, dup := seen[k]; dup {
			t.Errorf("%q and %q share the key %q", n, other, k)
		}
		seen[k] = n
		c, ok, err := DecodeDelete(k)
		if err != nil || !ok || string(c.Instance.Node) != n || string(c.Instance.ID) != n {
			t.Errorf("DecodeDelete(%q) = %+v, %v, %v", k, c.Instance, ok, err)
		}
	}
	if strings.HasPrefix(InstanceKey("a/b", "c"), InstancePrefix("a")) {
		t.Error("the node a/b has instances under the node a")
	}
}

func TestKVKeysKeepOrderAndPrefixes(t *testing.T) {
	keys := []string{"", "a", "a/", "a/b", "a%2Fb", "a//b", "b\x00", "b\xff", "/lead", "é", "a.b", "a-b"}
	byKey, byStore := slices.Clone(keys), make([]string, len(keys))
	slices.Sort(byKey)
	for i, k := range keys {
		byStore[i] = KVKey(k)
	}
	slices.Sort(byStore)
	for i := range byKey {
		if byStore[i] != KVKey(byKey[i]) {
			t.Errorf("position %d is %q, want %q", i, byStore[i], KVKey(byKey[i]))
		}
		for _, p := range keys {
			if strings.HasPrefix(byKey[i], p) != strings.HasPrefix(byStore[i], KVPrefix(p)) {
				t.Errorf("prefix %q of %q is not kept", p, byKey[i])
			}
		}
		c, ok, err := DecodeDelete(byStore[i])
		if err != nil || !ok || c.KV.Key != byKey[i] {
			t.Errorf("DecodeDelete(%q) = %+v, %v, %v", byStore[i], c.KV, ok, err)
		}
		if strings.HasPrefix(KVLockKey(byKey[i]), KVPrefix("")) {
			t.Errorf("the lock of %q lies among the entries", byKey[i])
		}
	}
}

func TestEveryRecordComesBack(t *testing.T) {
	stamp := model.Stamp{Owner: model.NodeOwner("n1"), CreateIndex: 3, ModifyIndex: 9}
	v4, v6 := netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")
	pool := model.Pool{Prefix: netip.MustParsePrefix("10.0.0.0/24"), Gateway: netip.MustParseAddr("10.0.0.1")}
	tests := map[string]struct {
		key    string
		record any
		want   state.Change
	}{
		"node": {NodeKey("n1"), model.Node{Name: "n1", Address: "10.1.1.1", Stamp: stamp},
			state.Change{Node: &model.Node{Name: "n1", Address: "10.1.1.1", Stamp: stamp}}},
		"instance": {InstanceKey("n1", "web/1"), &model.Instance{Node: "n1", ID: "web/1", Service: "web", Tags: []string{"a"}, Stamp: stamp},
			state.Change{Instance: &model.Instance{Node: "n1", ID: "web/1", Service: "web", Tags: []string{"a"}, Stamp: stamp}}},
		"check": {CheckKey("n1", "c"), model.Check{Node: "n1", ID: "c", Status: model.Passing, Stamp: stamp},
			state.Change{Check: &model.Check{Node: "n1", ID: "c", Status: model.Passing, Stamp: stamp}}},
		"vip": {VIPKey("web"), model.VIP{Service: "web", V4: v4, V6: v6, Stamp: stamp},
			state.Change{VIP: &model.VIP{Service: "web", V4: v4, V6: v6, Stamp: stamp}}},
		"network": {NetworkKey("net"), model.Network{Name: "net", Pools: []model.Pool{pool}, Stamp: stamp},
			state.Change{Network: &model.Network{Name: "net", Pools: []model.Pool{pool}, Stamp: stamp}}},
		"endpoint": {EndpointKey("e"), model.Endpoint{ID: "e", Addrs: []netip.Addr{v4, v6}, Stamp: stamp},
			state.Change{Endpoint: &model.Endpoint{ID: "e", Addrs: []netip.Addr{v4, v6}, Stamp: stamp}}},
		"block": {BlockKey("net", netip.PrefixFrom(v6, 112)), model.Block{Network: "net", Prefix: netip.PrefixFrom(v6, 112), Node: "n", Idle: 7, Stamp: stamp},
			state.Change{Block: &model.Block{Network: "net", Prefix: netip.PrefixFrom(v6, 112), Node: "n", Idle: 7, Stamp: stamp}}},
		"lease": {LeaseKey("net", v6), model.AddressLease{Network: "net", Addr: v6, Endpoint: "e", Stamp: stamp},
			state.Change{Lease: &model.AddressLease{Network: "net", Addr: v6, Endpoint: "e", Stamp: stamp}}},
		"kv": {KVKey("a/b"), model.KV{Key: "a/b", Value: []byte{0, 1, 255}, Flags: 1 << 63, Stamp: stamp},
			state.Change{KV: &model.KV{Key: "a/b", Value: []byte{0, 1, 255}, Flags: 1 << 63, ValueModified: 9, Stamp: stamp}}},
		"session": {SessionKey("s"), model.Session{ID: "s", Node: "n1", Behavior: model.SessionDelete, TTL: time.Minute, TTLText: "60s", NodeChecks: []model.CheckID{"a"}, ServiceChecks: []model.SessionService{{ID: "b"}}, Stamp: stamp},
			state.Change{Session: &model.Session{ID: "s", Node: "n1", Behavior: model.SessionDelete, TTL: time.Minute, TTLText: "60s", NodeChecks: []model.CheckID{"a"}, ServiceChecks: []model.SessionService{{ID: "b"}}, Stamp: stamp}}},
		"alive": {AliveKey("s"), model.Alive{Session: "s", Lease: 1 << 62, Stamp: stamp},
			state.Change{Alive: &model.Alive{Session: "s", Lease: 1 << 62, Stamp: stamp}}},
		"lock delay": {LockDelayKey("a/b"), model.LockDelay{Key: "a/b", Delay: time.Second, Stamp: stamp},
			state.Change{LockDelay: &model.LockDelay{Key: "a/b", Delay: time.Second, Stamp: stamp}}},
		"query": {QueryKey("q"), model.PreparedQuery{ID: "q", Service: model.QueryService{Service: "web"}, Stamp: stamp},
			state.Change{Query: &model.PreparedQuery{ID: "q", Service: model.QueryService{Service: "web"}, Stamp: stamp}}},
		"token": {TokenKey("t"), model.ACLToken{AccessorID: "t", SecretID: "x", Policies: []model.ACLLink{{ID: "p"}}, Stamp: stamp},
			state.Change{Token: &model.ACLToken{AccessorID: "t", SecretID: "x", Policies: []model.ACLLink{{ID: "p"}}, Stamp: stamp}}},
		"policy": {PolicyKey("p"), model.ACLPolicy{ID: "p", Rules: "{}", Stamp: stamp},
			state.Change{Policy: &model.ACLPolicy{ID: "p", Rules: "{}", Stamp: stamp}}},
		"role": {RoleKey("r"), model.ACLRole{ID: "r", Name: "role", Stamp: stamp},
			state.Change{Role: &model.ACLRole{ID: "r", Name: "role", Stamp: stamp}}},
		"root": {CARootKey("c"), model.CARoot{ID: "c", Stamp: stamp},
			state.Change{CARoot: &model.CARoot{ID: "c", Stamp: stamp}}},
		"key of a root": {CAKeyKey("c"), model.CAKey{Root: "c", Stamp: stamp},
			state.Change{CAKey: &model.CAKey{Root: "c", Stamp: stamp}}},
		"setting": {SettingKey("s"), model.Setting{Name: "s", Value: "1", Stamp: stamp},
			state.Change{Setting: &model.Setting{Name: "s", Value: "1", Stamp: stamp}}},
		"empty kv": {KVKey(""), model.KV{Stamp: stamp},
			state.Change{KV: &model.KV{Value: []byte{}, ValueModified: 9, Stamp: stamp}}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b, err := Encode(tt.record)
			if err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			got, ok, err := Decode(tt.key, b, 3, 9)
			if d := got.LockDelay; d != nil {
				if d.Seen.Before(begin) {
					t.Errorf("a delay that counts from %v, before it was read", d.Seen)
				}
				d.Seen = time.Time{}
			}
			if err != nil || !ok || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, %v, %v", got, ok, err)
			}
			if _, ok, err := DecodeDelete(tt.key); err != nil || !ok {
				t.Errorf("deletion: %v, %v", ok, err)
			}
			for cut := range min(len(b), 3) {
				if _, ok, err := Decode(tt.key, b[:cut], 1, 1); err == nil || ok {
					t.Errorf("the first %d bytes decoded", cut)
				}
			}
		})
	}
}

func TestWhatStateDoesNotSee(t *testing.T) {
	text, err := Encode("web")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{VIPAddrKey(netip.MustParseAddr("240.0.0.1")), NameKey("net", "A"), KVLockKey("x"), HoldKey("s"), UniqueKey("kind", "A/b"), "later/a/b/c"} {
		if _, ok, err := Decode(k, text, 1, 1); ok || err != nil {
			t.Errorf("Decode(%q) = %v, %v", k, ok, err)
		}
		if _, ok, err := DecodeDelete(k); ok || err != nil {
			t.Errorf("DecodeDelete(%q) = %v, %v", k, ok, err)
		}
	}
	if NameKey("net", "A") != NameKey("net", "a") {
		t.Error("names differ by case")
	}
	for _, k := range []string{"", "node", "node/a/b", "instance/a", "lease/net/nonsense", "block/net/nonsense"} {
		if _, ok, err := DecodeDelete(k); ok || err == nil {
			t.Errorf("DecodeDelete(%q) = %v, %v", k, ok, err)
		}
	}
	if _, err := Encode(42); err == nil {
		t.Error("Encode took a number")
	}
}
