package registry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/registry"
	"github.com/fairlead-net/fairlead/internal/store"
)

// op is an operation on an entry: a verb, its key and what else it needs.
func op(verb, key string, change ...func(*model.KV)) model.TxnOp {
	kv := model.KV{Key: key}
	for _, c := range change {
		c(&kv)
	}
	return model.TxnOp{KV: &model.TxnKV{Verb: verb, KV: kv}}
}

func value(s string) func(*model.KV)       { return func(kv *model.KV) { kv.Value = []byte(s) } }
func by(session string) func(*model.KV)    { return func(kv *model.KV) { kv.Session = session } }
func at(index model.Index) func(*model.KV) { return func(kv *model.KV) { kv.ModifyIndex = index } }

func nodeOp(verb string, n model.Node) model.TxnOp {
	return model.TxnOp{Node: &model.TxnNode{Verb: verb, Node: n}}
}

func instanceOp(verb string, i model.Instance) model.TxnOp {
	return model.TxnOp{Instance: &model.TxnInstance{Verb: verb, Instance: i}}
}

func checkOp(verb string, c model.Check) model.TxnOp {
	return model.TxnOp{Check: &model.TxnCheck{Verb: verb, Check: c}}
}

// transact runs operations that have to succeed.
func (e *env) transact(ops ...model.TxnOp) ([]model.TxnResult, model.Index) {
	e.t.Helper()
	results, failed, index, err := e.Transact(e.t.Context(), ops)
	if e.must(index, err); len(failed) > 0 {
		e.t.Fatalf("failed: %v", failed)
	}
	return results, index
}

func TestTransactionSeesItsOwnWrites(t *testing.T) {
	e := setup(t)
	id := e.session(model.Session{})
	_, index, err := e.PutKV(t.Context(), model.KV{Key: "tree/old", Value: []byte("old"), Flags: 4}, nil)
	e.must(index, err)
	before := e.revision()
	results, index := e.transact(
		op("set", "a", value("1")),
		op("get", "a"),
		op("lock", "a", value("2"), by(id)),
		op("check-session", "a", by(id)),
		op("set", "a", value("3")),
		op("set", "tree/new", value("new")),
		op("get-tree", "tree/"),
		op("delete-tree", "tree/"),
		op("check-not-exists", "tree/old"),
		op("set", "tree/last", value("last")),
		op("delete", "gone"),
		op("get-or-empty", "gone"),
		op("unlock", "a", value("4"), by(id)),
		op("get", "a"),
	)
	if index != before+1 {
		t.Errorf("written at %d, want one revision after %d", index, before)
	}
	var got []string
	for _, r := range results {
		got = append(got, fmt.Sprintf("%s=%s %d %v", r.KV.Key, r.KV.Value, r.KV.LockIndex, r.KV.ModifyIndex == index))
	}
	want := []string{
		"a= 0 true", "a=1 0 true", "a= 1 true", "a= 1 true", "a= 1 true", "tree/new= 0 true",
		"tree/new=new 0 true", "tree/old=old 0 false", "tree/last= 0 true", "gone= 0 false", "a= 1 true", "a=4 1 true",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("results:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	tree, _ := e.snap().KVTree("")
	var left []string
	for _, kv := range tree {
		left = append(left, fmt.Sprintf("%s=%s %q %d", kv.Key, kv.Value, kv.Session, kv.LockIndex))
	}
	if got, want := strings.Join(left, ", "), `a=4 "" 1, tree/last=last "" 0`; got != want {
		t.Errorf("left: %s; want %s", got, want)
	}
}

func TestFailuresInConsulsWords(t *testing.T) {
	e := setup(t)
	id, other := e.session(model.Session{}), e.session(model.Session{})
	e.lock("held", id)
	kv, _ := e.snap().KV("held")
	e.must(e.Register(t.Context(), web("n1", "web"), []model.Check{{ID: "c"}}))
	e.check(model.Check{Node: "n1", ID: model.SerfHealth, Status: model.Passing, Stamp: model.Stamp{Owner: model.OwnerServers}})
	tests := []struct {
		op   model.TxnOp
		want string
	}{
		{op("get", "x"), `key "x" doesn't exist`},
		{op("cas", "held"), `failed to set key "held", index is stale`},
		{op("cas", "x", at(5)), `failed to set key "x", index is stale`},
		{op("lock", "held", by(other)), `failed to lock key "held", lock is already held`},
		{op("lock", "x"), `missing session`},
		{op("lock", "x", by("nobody")), `invalid session "nobody"`},
		{op("unlock", "held", by(other)), `failed to unlock key "held", lock isn't held, or is held by another session`},
		{op("unlock", "x"), `missing session`},
		{op("check-index", "x", at(1)), `failed to check index, key "x" doesn't exist`},
		{op("check-index", "held", at(1)), fmt.Sprintf(`failed index check for key "held", current modify index %d != 1`, kv.ModifyIndex)},
		{op("check-session", "x", by(id)), `failed to check session, key "x" doesn't exist`},
		{op("check-session", "held", by(other)), fmt.Sprintf(`failed session check for key "held", current session %q != %q`, id, other)},
		{op("check-not-exists", "held"), `key "held" exists`},
		{op("delete-cas", "held", at(1)), `failed to delete key "held", index is stale`},
		{op("explode", "x"), `unknown KV verb "explode"`},
		{nodeOp("get", model.Node{Name: "x"}), `node "x" doesn't exist`},
		{nodeOp("cas", model.Node{Name: "n1", Address: "10.0.0.1"}), `failed to set node "n1", index is stale`},
		{nodeOp("delete-cas", model.Node{Name: "x"}), `failed to delete node "x", index is stale`},
		{nodeOp("explode", model.Node{Name: "x"}), `unknown Node verb "explode"`},
		{instanceOp("get", web("n1", "x")), `service "x" on node "n1" doesn't exist`},
		{instanceOp("set", web("x", "x")), `Missing node registration`},
		{instanceOp("cas", web("n1", "web")), `failed to set service "web" on node "n1", index is stale`},
		{instanceOp("delete-cas", web("n1", "x")), `failed to delete service "x" on node "n1", index is stale`},
		{instanceOp("explode", web("n1", "x")), `unknown Service verb "explode"`},
		{checkOp("get", model.Check{Node: "n1", ID: "x"}), `check "x" on node "n1" doesn't exist`},
		{checkOp("set", model.Check{Node: "x", ID: "x"}), `Missing node registration`},
		{checkOp("set", model.Check{Node: "n1", ID: "x", ServiceID: "x"}), `Missing service registration`},
		{checkOp("cas", model.Check{Node: "n1", ID: "c"}), `failed to set check "c" on node "n1", index is stale`},
		{checkOp("delete-cas", model.Check{Node: "n1", ID: "x"}), `failed to delete check "x" on node "n1", index is stale`},
		{checkOp("explode", model.Check{Node: "n1", ID: "x"}), `unknown Check verb "explode"`},
		{checkOp("set", model.Check{Node: "n1", ID: model.SerfHealth}), `check "serfHealth" belongs to another owner: it is owned by "servers", not by "external"; deregister it first`},
		{model.TxnOp{}, `no operation specified`},
	}
	var all []model.TxnOp
	for i, tt := range tests {
		before := e.revision()
		results, failed, _, err := e.Transact(t.Context(), []model.TxnOp{op("set", "written"), tt.op})
		if err != nil || len(results) > 0 || len(failed) != 1 || failed[0] != (model.TxnError{OpIndex: 1, What: tt.want}) {
			t.Errorf("%d: %v, %v, %v; want %s", i, results, failed, err, tt.want)
		}
		if e.revision() != before {
			t.Errorf("%d: written though it failed", i)
		}
		all = append(all, tt.op)
	}
	// All failures are told at once.
	_, failed, _, err := e.Transact(t.Context(), all)
	if err != nil || len(failed) != len(tests) {
		t.Errorf("together: %d failures, %v; want %d", len(failed), err, len(tests))
	}
	for i, f := range failed {
		if f.OpIndex != i {
			t.Errorf("failure %d is that of operation %d", i, f.OpIndex)
		}
	}
}

// What is refused before it begins hides what would come of the rest.
func TestRefusedBeforeItBegins(t *testing.T) {
	e := setup(t)
	old, id := e.session(model.Session{LockDelay: 60e9}), e.session(model.Session{})
	e.lock("k", old)
	e.must(e.DestroySession(t.Context(), old))
	for _, tt := range []struct {
		op   model.TxnOp
		want string
	}{
		{op("set", ""), "Must provide key"},
		{op("get-tree", ""), "Must provide key"},
		{op("lock", "k", by(id)), `failed to lock key "k" due to lock delay`},
		{nodeOp("set", model.Node{}), "Must provide node"},
		{instanceOp("set", model.Instance{Node: "n1", ID: "x"}), "Must provide service name with ID"},
	} {
		_, failed, _, err := e.Transact(t.Context(), []model.TxnOp{op("get", "missing"), tt.op})
		if err != nil || len(failed) != 1 || failed[0] != (model.TxnError{OpIndex: 1, What: tt.want}) {
			t.Errorf("%v, %v; want %s", failed, err, tt.want)
		}
	}
}

func TestReadOnlyTransactionCommitsNothing(t *testing.T) {
	e := setup(t)
	_, index, err := e.PutKV(t.Context(), model.KV{Key: "a", Value: []byte("1")}, nil)
	e.must(index, err)
	before := e.commits()
	results, at := e.transact(op("get", "a"), op("get-tree", "a"), op("check-index", "a", at(index)), nodeOp("get", model.Node{Name: "n1"}))
	if len(results) != 4 || at != e.snap().Index() || e.commits() != before {
		t.Errorf("%d results at %d after %d commits", len(results), at, e.commits()-before)
	}
	_, failed, _, err := e.Transact(t.Context(), []model.TxnOp{op("get", "b")})
	if err != nil || len(failed) != 1 || e.commits() != before {
		t.Errorf("%v, %v", failed, err)
	}
	if results, failed, _, err := e.Transact(t.Context(), nil); err != nil || len(results)+len(failed) != 0 {
		t.Errorf("nothing to do: %v, %v, %v", results, failed, err)
	}
}

func TestUnchangedTransactionWritesNothing(t *testing.T) {
	e := setup(t)
	inst, check := web("n1", "web"), model.Check{Node: "n1", ID: "c", ServiceID: "web", Status: model.Passing}
	ops := []model.TxnOp{
		op("set", "a", value("1")), nodeOp("set", model.Node{Name: "n3", Address: "10.0.0.3"}),
		instanceOp("set", inst), checkOp("set", check), op("delete", "missing"), op("delete-tree", "missing/"),
	}
	first, index := e.transact(ops...)
	e.unwritten(func() {
		second, _ := e.transact(ops...)
		a, _ := json.Marshal(first)
		b, _ := json.Marshal(second)
		if !bytes.Equal(a, b) || second[0].KV.ModifyIndex != index || second[1].Node.ModifyIndex != index {
			t.Errorf("results %s, want those from before, %s", b, a)
		}
	})
}

// Between plan and commit somebody else changes what the transaction read: it is
// run again on what is there then.
func TestTransactionAgainstAConcurrentWrite(t *testing.T) {
	put := func(e *env, key string) {
		if _, _, err := e.PutKV(context.Background(), model.KV{Key: key, Value: []byte("meanwhile")}, nil); err != nil {
			e.t.Error(err)
		}
	}
	for name, tt := range map[string]struct {
		meanwhile func(e *env, id string)
		want      string
	}{
		"an entry read is changed":   {func(e *env, _ string) { put(e, "tree/a") }, "tree/a=meanwhile tree/b="},
		"an entry comes into a tree": {func(e *env, _ string) { put(e, "tree/c") }, "tree/a= tree/b= tree/c=meanwhile"},
		"an entry goes from a tree":  {func(e *env, _ string) { e.DeleteKV(context.Background(), "tree/b", nil) }, "tree/a="},
		"a lock in a tree is lost": {func(e *env, id string) {
			// That changes nothing but the lock.
			if _, err := e.DestroySession(context.Background(), id); err != nil {
				e.t.Error(err)
			}
		}, "tree/a= tree/b= tree/held=locked"},
		"a lock in a tree is taken":     {func(e *env, id string) { e.lock("tree/b", id) }, "tree/a= tree/b=locked@"},
		"an entry elsewhere is changed": {func(e *env, _ string) { put(e, "other") }, "tree/a= tree/b="},
		"a tree goes and comes differently": {func(e *env, _ string) {
			if _, err := e.DeleteKVTree(context.Background(), "tree/"); err != nil {
				e.t.Error(err)
			}
			put(e, "tree/b")
		}, "tree/b=meanwhile"},
	} {
		t.Run(name, func(t *testing.T) {
			e := setup(t)
			id := e.session(model.Session{})
			for _, key := range []string{"tree/a", "tree/b"} {
				_, index, err := e.PutKV(t.Context(), model.KV{Key: key}, nil)
				e.must(index, err)
			}
			if strings.Contains(tt.want, "tree/held") {
				e.lock("tree/held", id)
			}
			e.before = func() { tt.meanwhile(e, id) }
			results, _ := e.transact(op("get-tree", "tree/"), op("set", "done"))
			var got []string
			for _, r := range results[:len(results)-1] {
				s := r.KV.Key + "=" + string(r.KV.Value)
				if r.KV.Session != "" {
					s += "@"
				}
				got = append(got, s)
			}
			if strings.Join(got, " ") != tt.want {
				t.Errorf("tree %v, want %s", got, tt.want)
			}
		})
	}
}

// A session that ends while a transaction takes a lock with it gets none.
func TestSessionEndsDuringATransaction(t *testing.T) {
	e := setup(t)
	id := e.session(model.Session{})
	e.before = func() { e.must(e.DestroySession(context.Background(), id)) }
	_, failed, _, err := e.Transact(t.Context(), []model.TxnOp{op("lock", "k", by(id))})
	if err != nil || len(failed) != 1 || failed[0].What != fmt.Sprintf("invalid session %q", id) {
		t.Errorf("%v, %v", failed, err)
	}
	// And the other way round: the end waits for the lock.
	id = e.session(model.Session{})
	e.before = func() { e.transact(op("lock", "k", by(id))) }
	e.must(e.DestroySession(t.Context(), id))
	if e.holder("k") != "" {
		t.Error("a dead session holds the lock")
	}
}

// The catalogue's invariants hold for what a transaction registers.
func TestTransactionOnTheCatalogue(t *testing.T) {
	e := setup(t)
	one, two := web("n3", "one"), web("n3", "two")
	one.Service, two.Service, one.Tags = "one", "two", []string{"a"}
	results, index := e.transact(
		nodeOp("set", model.Node{Name: "n3", Address: "10.0.0.3", ID: "9a0e2b6c-0000-4000-8000-000000000003"}),
		instanceOp("set", one), instanceOp("set", two), instanceOp("set", web("n3", "one2")),
		checkOp("set", model.Check{Node: "n3", ID: "c1", ServiceID: "one"}),
		checkOp("set", model.Check{Node: "n3", Name: "of the node", Status: model.Passing}),
		nodeOp("get", model.Node{ID: "9A0E2B6C-0000-4000-8000-000000000003"}),
	)
	if len(results) != 7 || results[6].Node.Name != "n3" || results[6].Node.ModifyIndex != index {
		t.Fatalf("%d results, the last %+v", len(results), results[len(results)-1].Node)
	}
	a, _ := e.snap().VIP("one")
	b, _ := e.snap().VIP("two")
	if a == nil || b == nil || a.V4 == b.V4 || a.V6 == b.V6 {
		t.Errorf("addresses %+v and %+v", a, b)
	}
	i, _ := e.snap().Instance("n3", "one")
	c, _ := e.snap().Check("n3", "c1")
	if i.Owner != model.OwnerExternal || c.Owner != model.OwnerExternal || c.ServiceName != "one" || fmt.Sprint(c.ServiceTags) != "[a]" || c.Status != model.Critical {
		t.Errorf("instance %+v, check %+v", i, c)
	}
	one.Tags = []string{"b"}
	e.transact(instanceOp("set", one))
	if c, _ := e.snap().Check("n3", "c1"); fmt.Sprint(c.ServiceTags) != "[b]" {
		t.Errorf("the check shows the old tags: %+v", c)
	}
	e.transact(instanceOp("delete", one))
	if c, _ := e.snap().Check("n3", "c1"); c != nil {
		t.Errorf("the check outlived its instance: %+v", c)
	}
	results, _ = e.transact(
		nodeOp("delete", model.Node{Name: "n3"}),
		nodeOp("set", model.Node{Name: "n3", Address: "10.0.0.4"}),
		instanceOp("set", web("n3", "again")),
	)
	list, _ := e.snap().NodeInstances("n3")
	checks, _ := e.snap().NodeChecks("n3")
	if len(results) != 2 || len(list) != 1 || list[0].ID != "again" || len(checks) != 0 {
		t.Errorf("after the node went and came: %d instances, %d checks", len(list), len(checks))
	}
	e.transact(nodeOp("delete", model.Node{Name: "n3"}))
	if n, _ := e.snap().Node("n3"); n != nil || e.count(store.InstancePrefix("n3")) != 0 {
		t.Errorf("left of the node: %+v", n)
	}
}

// What agents own is changed but stays theirs, like what comes by RegisterExternal.
func TestTransactionOnWhatAnAgentOwns(t *testing.T) {
	e := setup(t)
	e.must(e.Register(t.Context(), web("n1", "web"), []model.Check{{ID: "c"}}))
	changed := web("n1", "web")
	changed.Port = 81
	results, _ := e.transact(
		nodeOp("set", model.Node{Name: "n1", Address: "10.9.9.9"}), instanceOp("set", changed),
		checkOp("set", model.Check{Node: "n1", ID: "c", ServiceID: "web", Status: model.Warning}),
	)
	own := model.NodeOwner("n1")
	n, _ := e.snap().Node("n1")
	i, _ := e.snap().Instance("n1", "web")
	c, _ := e.snap().Check("n1", "c")
	if n.Address != "10.0.0.1" || results[0].Node != n || i.Port != 81 || i.Owner != own || c.Status != model.Warning || c.Owner != own {
		t.Errorf("node %+v, instance %+v, check %+v", n, i, c)
	}
}

func TestTransactionTooLarge(t *testing.T) {
	f, st := startStore(t)
	r := newRegistry(f, st)
	big := strings.Repeat("x", registry.MaxValue)
	_, _, _, err := r.Transact(t.Context(), []model.TxnOp{op("set", "a", value(big)), op("set", "b", value(big)), op("set", "c", value(big))})
	if err == nil {
		t.Error("a transaction of 1.5 MiB was taken")
	}
	_, failed, _, err := r.Transact(t.Context(), []model.TxnOp{op("set", "a", value(big+"x"))})
	if err != nil || len(failed) != 1 || !strings.Contains(failed[0].What, "too large") {
		t.Errorf("value over the limit: %v, %v", failed, err)
	}
}
