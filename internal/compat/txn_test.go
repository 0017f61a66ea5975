package compat

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"
)

func whats(errs api.TxnErrors) []string {
	var out []string
	for _, e := range errs {
		out = append(out, fmt.Sprint(e.OpIndex, " ", e.What))
	}
	return out
}

// kvTxn runs operations on keys; it returns the keys of the results, with values
// and flags, or the errors.
func kvTxn(t *testing.T, c *api.Client, ops ...*api.KVTxnOp) ([]string, []string) {
	t.Helper()
	ok, r, _, err := c.KV().Txn(ops, nil)
	must(t, err)
	if ok == (len(r.Errors) > 0) || !ok && len(r.Results) > 0 {
		t.Fatalf("ok %v with results %v and errors %v", ok, r.Results, r.Errors)
	}
	var out []string
	for _, p := range r.Results {
		out = append(out, fmt.Sprintf("%s=%s/%d", p.Key, p.Value, p.Flags))
	}
	return out, whats(r.Errors)
}

func op(verb api.KVOp, key, value string) *api.KVTxnOp {
	return &api.KVTxnOp{Verb: verb, Key: key, Value: []byte(value)}
}

func opAt(verb api.KVOp, key, value string, index uint64) *api.KVTxnOp {
	o := op(verb, key, value)
	o.Index = index
	return o
}

func opBy(verb api.KVOp, key, session string) *api.KVTxnOp {
	o := op(verb, key, "")
	o.Session = session
	return o
}

func TestKVTransactions(t *testing.T) {
	c := startAgent(t).client()
	id, other := newSession(t, c, nil), newSession(t, c, nil)
	for i, step := range []struct {
		ops    []*api.KVTxnOp
		want   []string
		errors []string
	}{
		{ops: []*api.KVTxnOp{op(api.KVSet, "a", "1"), op(api.KVGet, "a", ""), op(api.KVSet, "d/x", "2"), op(api.KVSet, "d/y", "3")}, want: []string{"a=/0", "a=1/0", "d/x=/0", "d/y=/0"}},
		// Each sees what those before it did.
		{ops: []*api.KVTxnOp{op(api.KVDelete, "a", ""), op(api.KVCheckNotExists, "a", ""), op(api.KVGetOrEmpty, "a", "")}, want: []string{"a=/0"}},
		{ops: []*api.KVTxnOp{op(api.KVGetTree, "d/", "")}, want: []string{"d/x=2/0", "d/y=3/0"}},
		{ops: []*api.KVTxnOp{op(api.KVSet, "d/z", "4"), op(api.KVGetTree, "d/", ""), op(api.KVDeleteTree, "d/", ""), op(api.KVGetTree, "d/", "")}, want: []string{"d/z=/0", "d/x=2/0", "d/y=3/0", "d/z=4/0"}},
		// One that fails undoes the others, and every failure is named.
		{ops: []*api.KVTxnOp{op(api.KVSet, "b", "1"), op(api.KVGet, "none", ""), opAt(api.KVCAS, "b", "2", 77)}, errors: []string{`1 key "none" doesn't exist`, `2 failed to set key "b", index is stale`}},
		{ops: []*api.KVTxnOp{op(api.KVCheckNotExists, "b", "")}},
		{ops: []*api.KVTxnOp{opAt(api.KVCAS, "b", "1", 0)}, want: []string{"b=/0"}},
		{ops: []*api.KVTxnOp{opAt(api.KVCAS, "b", "2", 0)}, errors: []string{`0 failed to set key "b", index is stale`}},
		{ops: []*api.KVTxnOp{opAt(api.KVDeleteCAS, "b", "", 1)}, errors: []string{`0 failed to delete key "b", index is stale`}},
		{ops: []*api.KVTxnOp{op(api.KVCheckNotExists, "b", "")}, errors: []string{`0 key "b" exists`}},
		{ops: []*api.KVTxnOp{opAt(api.KVCheckIndex, "none", "", 1)}, errors: []string{`0 failed to check index, key "none" doesn't exist`}},
		// Locks.
		{ops: []*api.KVTxnOp{opBy(api.KVLock, "l", id), opBy(api.KVCheckSession, "l", id)}, want: []string{"l=/0", "l=/0"}},
		{ops: []*api.KVTxnOp{opBy(api.KVLock, "l", other)}, errors: []string{`0 failed to lock key "l", lock is already held`}},
		{ops: []*api.KVTxnOp{opBy(api.KVCheckSession, "l", other)}, errors: []string{fmt.Sprintf(`0 failed session check for key "l", current session %q != %q`, id, other)}},
		{ops: []*api.KVTxnOp{opBy(api.KVCheckSession, "none", id)}, errors: []string{`0 failed to check session, key "none" doesn't exist`}},
		{ops: []*api.KVTxnOp{opBy(api.KVUnlock, "l", other)}, errors: []string{`0 failed to unlock key "l", lock isn't held, or is held by another session`}},
		{ops: []*api.KVTxnOp{opBy(api.KVUnlock, "l", id), opBy(api.KVLock, "l", other)}, want: []string{"l=/0", "l=/0"}},
		{ops: []*api.KVTxnOp{opBy(api.KVLock, "l2", "none")}, errors: []string{`0 invalid session "none"`}},
		{ops: []*api.KVTxnOp{op("steal", "a", "")}, errors: []string{`0 unknown KV verb "steal"`}},
		{ops: []*api.KVTxnOp{op(api.KVSet, "", "")}, errors: []string{`0 Must provide key`}},
	} {
		got, errs := kvTxn(t, c, step.ops...)
		if !slices.Equal(got, step.want) || !slices.Equal(errs, step.errors) {
			t.Errorf("step %d: %q %q, want %q %q", i, got, errs, step.want, step.errors)
		}
	}
	p, _, err := c.KV().Get("b", nil)
	must(t, err)
	if got, errs := kvTxn(t, c, opAt(api.KVCheckIndex, "b", "", p.ModifyIndex), opAt(api.KVCAS, "b", "2", p.ModifyIndex), opAt(api.KVDeleteCAS, "b", "", p.ModifyIndex)); got != nil ||
		!slices.Equal(errs, []string{`2 failed to delete key "b", index is stale`}) {
		t.Errorf("an index that the transaction itself outdates: %q %q", got, errs)
	}
	if got, errs := kvTxn(t, c, opAt(api.KVCheckIndex, "b", "", p.ModifyIndex), opAt(api.KVDeleteCAS, "b", "", p.ModifyIndex)); len(errs) > 0 || len(got) != 1 {
		t.Errorf("index as read: %q %q", got, errs)
	}
	l, _, err := c.KV().Get("l", nil)
	must(t, err)
	if l.Session != other || l.LockIndex != 2 {
		t.Errorf("the lock that changed hands: %+v", l)
	}
}

func TestTransactionLimits(t *testing.T) {
	c := startAgent(t, "kv-max-value-size=1000", "txn-max-req-size=20000").client()
	var ops api.KVTxnOps
	for i := range 128 {
		ops = append(ops, op(api.KVSet, fmt.Sprint("k", i), "x"))
	}
	if ok, r, _, err := c.KV().Txn(ops, nil); err != nil || !ok || len(r.Results) != 128 {
		t.Errorf("128 operations: %v, %v", ok, err)
	}
	for name, x := range map[string]struct {
		ops  api.KVTxnOps
		want string
	}{
		"129 operations":    {append(ops, op(api.KVGet, "k1", "")), "Transaction contains too many operations (129 > 128)"},
		"a large value":     {api.KVTxnOps{op(api.KVSet, "k", strings.Repeat("x", 1001))}, `Value for key "k" is too large (1001 > 1000 bytes)`},
		"a large operation": {api.KVTxnOps{op(api.KVSet, strings.Repeat("k", 21000), "")}, "too large, max size: 20000 bytes"},
	} {
		if ok, _, _, err := c.KV().Txn(x.ops, nil); ok || err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
	}
}

// TestReadOnlyTransactions: they take the consistency that any read does.
func TestReadOnlyTransactions(t *testing.T) {
	c := startAgent(t).client()
	_, err := c.KV().Put(kv("a", "1"), nil)
	must(t, err)
	for name, q := range map[string]*api.QueryOptions{"default": nil, "stale": {AllowStale: true}, "consistent": {RequireConsistent: true}} {
		ok, r, meta, err := c.KV().Txn(api.KVTxnOps{op(api.KVGet, "a", "")}, q)
		if err != nil || !ok || string(r.Results[0].Value) != "1" || !meta.KnownLeader {
			t.Errorf("%s: %v, %+v, %+v, %v", name, ok, r, meta, err)
		}
	}
}

func TestCatalogTransactions(t *testing.T) {
	c := startAgent(t).client()
	node := api.Node{Node: "ext", Address: "192.0.2.7", Meta: map[string]string{"kind": "printer"}}
	service := api.AgentService{ID: "print-1", Service: "print", Port: 631, Tags: []string{"a3"}, Address: "192.0.2.8", Meta: map[string]string{"x": "y"}}
	check := api.HealthCheck{Node: "ext", CheckID: "print-1:up", Name: "up", Status: api.HealthPassing, ServiceID: "print-1", ServiceName: "print"}
	run := func(ops ...*api.TxnOp) (*api.TxnResponse, []string) {
		t.Helper()
		ok, r, _, err := c.Txn().Txn(ops, nil)
		must(t, err)
		if ok == (len(r.Errors) > 0) {
			t.Fatalf("ok %v with %v", ok, whats(r.Errors))
		}
		return r, whats(r.Errors)
	}
	onNode := func(verb api.NodeOp, n api.Node) *api.TxnOp {
		return &api.TxnOp{Node: &api.NodeTxnOp{Verb: verb, Node: n}}
	}
	onService := func(verb api.ServiceOp, s api.AgentService) *api.TxnOp {
		return &api.TxnOp{Service: &api.ServiceTxnOp{Verb: verb, Node: "ext", Service: s}}
	}
	onCheck := func(verb api.CheckOp, k api.HealthCheck) *api.TxnOp {
		return &api.TxnOp{Check: &api.CheckTxnOp{Verb: verb, Check: k}}
	}

	// A node, its service, its check and a key, in one step.
	r, errs := run(onNode(api.NodeSet, node), onService(api.ServiceSet, service), onCheck(api.CheckSet, check), &api.TxnOp{KV: op(api.KVSet, "printers", "1")})
	if len(errs) > 0 || len(r.Results) != 4 || r.Results[0].Node.Node != "ext" || r.Results[2].Check.CheckID != "print-1:up" || r.Results[3].KV.Key != "printers" {
		t.Fatalf("set: %+v, %q", r, errs)
	}
	entries, _, err := c.Health().Service("print", "a3", true, nil)
	must(t, err)
	if len(entries) != 1 || entries[0].Node.Address != "192.0.2.7" || entries[0].Service.Port != 631 || entries[0].Service.Meta["x"] != "y" {
		t.Fatalf("health: %+v", entries)
	}
	r, errs = run(onNode(api.NodeGet, node), onService(api.ServiceGet, service), onCheck(api.CheckGet, check))
	if len(errs) > 0 || len(r.Results) != 3 || r.Results[0].Node.Meta["kind"] != "printer" || r.Results[2].Check.Status != api.HealthPassing {
		t.Fatalf("get: %+v, %q", r, errs)
	}
	node.ModifyIndex, check.ModifyIndex = r.Results[0].Node.ModifyIndex, r.Results[2].Check.ModifyIndex
	service.ModifyIndex = entries[0].Service.ModifyIndex

	node.Address, service.Port, check.Status = "192.0.2.9", 9100, api.HealthCritical
	if _, errs = run(onNode(api.NodeCAS, node), onService(api.ServiceCAS, service), onCheck(api.CheckCAS, check)); len(errs) > 0 {
		t.Fatalf("cas: %q", errs)
	}
	stale := []string{
		`0 failed to set node "ext", index is stale`, `1 failed to set service "print-1" on node "ext", index is stale`, `2 failed to set check "print-1:up" on node "ext", index is stale`,
	}
	node.Address = "192.0.2.10"
	service.Port, check.Output = 1, "x"
	if _, errs = run(onNode(api.NodeCAS, node), onService(api.ServiceCAS, service), onCheck(api.CheckCAS, check)); !slices.Equal(errs, stale) {
		t.Errorf("stale cas: %q", errs)
	}
	if n, _, err := c.Catalog().Node("ext", nil); err != nil || n.Node.Address != "192.0.2.9" || n.Services["print-1"].Port != 9100 {
		t.Errorf("after a stale cas: %+v, %v", n, err)
	}
	gone := []string{
		`0 failed to delete node "ext", index is stale`, `1 failed to delete service "print-1" on node "ext", index is stale`, `2 failed to delete check "print-1:up" on node "ext", index is stale`,
	}
	if _, errs = run(onNode(api.NodeDeleteCAS, node), onService(api.ServiceDeleteCAS, service), onCheck(api.CheckDeleteCAS, check)); !slices.Equal(errs, gone) {
		t.Errorf("stale delete-cas: %q", errs)
	}
	if _, errs = run(onCheck(api.CheckDelete, check), onService(api.ServiceDelete, service), onNode(api.NodeDelete, node)); len(errs) > 0 {
		t.Errorf("delete: %q", errs)
	}
	missing := []string{`0 node "ext" doesn't exist`, `1 service "print-1" on node "ext" doesn't exist`, `2 check "print-1:up" on node "ext" doesn't exist`}
	if _, errs = run(onNode(api.NodeGet, node), onService(api.ServiceGet, service), onCheck(api.CheckGet, check)); !slices.Equal(errs, missing) {
		t.Errorf("get of what has gone: %q", errs)
	}
	unknown := []string{`0 unknown node operation: x`, `1 unknown service operation: x`, `2 unknown check operation: x`}
	if _, errs = run(onNode("x", node), onService("x", service), onCheck("x", check)); !slices.Equal(errs, unknown) {
		t.Errorf("unknown verbs: %q", errs)
	}
}
