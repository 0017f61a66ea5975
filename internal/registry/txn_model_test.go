package registry_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead-net/fairlead/internal/model"
)

// simple is what transactions should do, said as simply as can be: everything
// in maps, one operation after the other, and everything thrown away if one
// fails. It knows nothing of snapshots, compares or net effects.
type simple struct {
	kv        map[string]entry
	nodes     map[string]row
	instances map[string]row // node/id
	checks    map[string]row // node/id
	sessions  []string
}

type entry struct {
	value, session  string
	lock            uint64
	created, change model.Index
}

// row is a record of the catalogue: what it says, and of which service it is.
type row struct {
	text, service string
	change        model.Index
}

func (s simple) clone() simple {
	s.kv, s.nodes, s.instances, s.checks = maps.Clone(s.kv), maps.Clone(s.nodes), maps.Clone(s.instances), maps.Clone(s.checks)
	return s
}

// soon stands for the index of a transaction that is not written yet.
const soon = model.Index(1 << 62)

// run carries out operations that will be written at index. It returns the
// results as text and the numbers of the operations that failed.
func (s *simple) run(ops []model.TxnOp, index model.Index) (results []string, failed []int) {
	next := s.clone()
	for i, o := range ops {
		res, ok := next.one(s, o, soon)
		if !ok {
			failed = append(failed, i)
		}
		results = append(results, res...)
	}
	if failed != nil {
		return nil, failed
	}
	for k, e := range next.kv {
		next.kv[k] = entry{e.value, e.session, e.lock, dated(e.created, index), dated(e.change, index)}
	}
	for _, t := range []map[string]row{next.nodes, next.instances, next.checks} {
		for k, r := range t {
			t[k] = row{r.text, r.service, dated(r.change, index)}
		}
	}
	for i := range results {
		results[i] = strings.ReplaceAll(results[i], fmt.Sprint(soon), fmt.Sprint(index))
	}
	*s = next
	return results, nil
}

func dated(at, index model.Index) model.Index {
	if at == soon {
		return index
	}
	return at
}

func (s *simple) one(before *simple, o model.TxnOp, index model.Index) ([]string, bool) {
	switch {
	case o.KV != nil:
		return s.oneKV(before, o.KV.Verb, &o.KV.KV, index)
	case o.Node != nil:
		n := o.Node.Node
		res, ok := table(s.nodes, o.Node.Verb, string(n.Name), row{text: n.Address}, n.ModifyIndex, index)
		if ok && strings.HasPrefix(o.Node.Verb, "delete") {
			under := func(k string, _ row) bool { return strings.HasPrefix(k, string(n.Name)+"/") }
			maps.DeleteFunc(s.instances, under)
			maps.DeleteFunc(s.checks, under)
		}
		return res, ok
	case o.Instance != nil:
		i, verb := o.Instance.Instance, o.Instance.Verb
		name := string(i.Node) + "/" + string(i.ID)
		if _, there := s.nodes[string(i.Node)]; !there && (verb == "set" || verb == "cas") {
			return nil, false
		}
		res, ok := table(s.instances, verb, name, row{text: fmt.Sprint(i.Port)}, i.ModifyIndex, index)
		if _, there := s.instances[name]; ok && !there {
			maps.DeleteFunc(s.checks, func(k string, r row) bool {
				return r.service == string(i.ID) && strings.HasPrefix(k, string(i.Node)+"/")
			})
		}
		return res, ok
	default:
		c, verb := o.Check.Check, o.Check.Verb
		if verb == "set" || verb == "cas" {
			_, node := s.nodes[string(c.Node)]
			_, service := s.instances[string(c.Node)+"/"+string(c.ServiceID)]
			if !node || c.ServiceID != "" && !service {
				return nil, false
			}
		}
		return table(s.checks, verb, string(c.Node)+"/"+string(c.ID), row{text: string(c.Status), service: string(c.ServiceID)}, c.ModifyIndex, index)
	}
}

// table is an operation on a table of the catalogue.
func table(t map[string]row, verb, key string, next row, cas, index model.Index) ([]string, bool) {
	cur, there := t[key]
	switch verb {
	case "get":
		if !there {
			return nil, false
		}
	case "cas", "set":
		if verb == "cas" && (there != (cas != 0) || there && cas != cur.change) {
			return nil, false
		}
		next.change = index
		if there && cur.text == next.text && cur.service == next.service {
			next.change = cur.change
		}
		t[key] = next
	case "delete-cas":
		if !there || cas != cur.change {
			return nil, false
		}
		delete(t, key)
		return nil, true
	case "delete":
		delete(t, key)
		return nil, true
	}
	return []string{fmt.Sprintf("%s %s at %d", key[strings.LastIndex(key, "/")+1:], t[key].text, t[key].change)}, true
}

func (s *simple) oneKV(before *simple, verb string, kv *model.KV, index model.Index) ([]string, bool) {
	cur, there := s.kv[kv.Key]
	next := entry{value: string(kv.Value), session: cur.session, lock: cur.lock}
	switch verb {
	case "get", "get-or-empty":
		return []string{cur.String(kv.Key, true)}, there || verb == "get-or-empty"
	case "get-tree":
		var list []string
		for _, k := range slices.Sorted(maps.Keys(s.kv)) {
			if strings.HasPrefix(k, kv.Key) {
				list = append(list, s.kv[k].String(k, true))
			}
		}
		return list, true
	case "check-index":
		return []string{cur.String(kv.Key, false)}, there && cur.change == kv.ModifyIndex
	case "check-session":
		return []string{cur.String(kv.Key, false)}, there && cur.session == kv.Session
	case "check-not-exists":
		return nil, !there
	case "delete":
		delete(s.kv, kv.Key)
		return nil, true
	case "delete-cas":
		if there && cur.change != kv.ModifyIndex {
			return nil, false
		}
		delete(s.kv, kv.Key)
		return nil, true
	case "delete-tree":
		maps.DeleteFunc(s.kv, func(k string, _ entry) bool { return strings.HasPrefix(k, kv.Key) })
		return nil, true
	case "cas":
		if there != (kv.ModifyIndex != 0) || there && cur.change != kv.ModifyIndex {
			return nil, false
		}
	case "lock":
		if !slices.Contains(s.sessions, kv.Session) || cur.session != "" && cur.session != kv.Session {
			return nil, false
		}
		if cur.session == "" {
			next.lock++
		}
		next.session = kv.Session
	case "unlock":
		if kv.Session == "" || !there || cur.session != kv.Session {
			return nil, false
		}
		next.session = ""
	}
	next.created, next.change = index, index
	if first, ok := before.kv[kv.Key]; ok {
		next.created = first.created
	}
	if there && cur.value == next.value && cur.session == next.session && cur.lock == next.lock {
		next = cur
	}
	s.kv[kv.Key] = next
	return []string{next.String(kv.Key, false)}, true
}

func (e entry) String(key string, withValue bool) string {
	if !withValue {
		e.value = ""
	}
	return fmt.Sprintf("%s=%q %s#%d, %d..%d", key, e.value, e.session, e.lock, e.created, e.change)
}

// show is a result of the registry's as simple says it.
func show(r model.TxnResult) string {
	switch {
	case r.KV != nil:
		e := entry{string(r.KV.Value), r.KV.Session, r.KV.LockIndex, r.KV.CreateIndex, r.KV.ModifyIndex}
		return e.String(r.KV.Key, true)
	case r.Node != nil:
		return fmt.Sprintf("%s %s at %d", r.Node.Name, r.Node.Address, r.Node.ModifyIndex)
	case r.Instance != nil:
		return fmt.Sprintf("%s %d at %d", r.Instance.ID, r.Instance.Port, r.Instance.ModifyIndex)
	}
	return fmt.Sprintf("%s %s at %d", r.Check.ID, r.Check.Status, r.Check.ModifyIndex)
}

// dump is everything that the registry shows, as simple has it.
func (e *env) dump() simple {
	s := simple{kv: map[string]entry{}, nodes: map[string]row{}, instances: map[string]row{}, checks: map[string]row{}}
	tree, _ := e.snap().KVTree("")
	for _, kv := range tree {
		s.kv[kv.Key] = entry{string(kv.Value), kv.Session, kv.LockIndex, kv.CreateIndex, kv.ModifyIndex}
	}
	nodes, _ := e.snap().Nodes()
	for _, n := range nodes {
		s.nodes[string(n.Name)] = row{text: n.Address, change: n.ModifyIndex}
		list, _ := e.snap().NodeInstances(n.Name)
		for _, i := range list {
			s.instances[string(n.Name)+"/"+string(i.ID)] = row{text: fmt.Sprint(i.Port), change: i.ModifyIndex}
		}
	}
	checks, _ := e.snap().Checks("")
	for _, c := range checks {
		s.checks[string(c.Node)+"/"+string(c.ID)] = row{string(c.Status), string(c.ServiceID), c.ModifyIndex}
	}
	return s
}

// gen makes operations that often meet: few names, few values, indexes that are
// most often right.
type gen struct {
	*rand.Rand
	now simple
}

func pick[T any](g *gen, of ...T) T { return of[g.IntN(len(of))] }

func (g *gen) index(cur model.Index) model.Index {
	if g.IntN(4) == 0 {
		return pick(g, 0, cur+1)
	}
	return cur
}

func (g *gen) op() model.TxnOp {
	switch g.IntN(10) {
	case 0:
		n := model.Node{Name: pick[model.NodeName](g, "x", "y"), Address: pick(g, "10.0.0.1", "10.0.0.2")}
		n.ModifyIndex = g.index(g.now.nodes[string(n.Name)].change)
		return nodeOp(pick(g, "get", "set", "set", "cas", "cas", "delete", "delete-cas"), n)
	case 1, 2:
		i := model.Instance{Node: pick[model.NodeName](g, "x", "y"), ID: pick[model.ServiceID](g, "i", "j"), Service: "s", Port: pick(g, 1, 2)}
		i.ModifyIndex = g.index(g.now.instances[string(i.Node)+"/"+string(i.ID)].change)
		return instanceOp(pick(g, "get", "set", "set", "cas", "cas", "delete", "delete-cas"), i)
	case 3:
		c := model.Check{Node: pick[model.NodeName](g, "x", "y"), ID: pick[model.CheckID](g, "c", "d"), ServiceID: pick[model.ServiceID](g, "", "i"), Status: pick(g, model.Passing, model.Warning)}
		c.ModifyIndex = g.index(g.now.checks[string(c.Node)+"/"+string(c.ID)].change)
		return checkOp(pick(g, "get", "set", "set", "cas", "cas", "delete", "delete-cas"), c)
	}
	verb := pick(g, "set", "set", "set", "cas", "cas", "lock", "lock", "unlock", "get", "get-or-empty", "get-tree",
		"check-index", "check-session", "check-not-exists", "delete", "delete-tree", "delete-cas")
	kv := model.KV{Key: pick(g, "a", "a/b", "a/c", "d"), Value: []byte(pick(g, "1", "2"))}
	cur := g.now.kv[kv.Key]
	kv.ModifyIndex = g.index(cur.change)
	if kv.Session = cur.session; kv.Session == "" || g.IntN(3) == 0 {
		kv.Session = pick(g, append(g.now.sessions, "nobody")...)
	}
	return model.TxnOp{KV: &model.TxnKV{Verb: verb, KV: kv}}
}

// Thousands of random transactions do exactly what the simple model does: the
// same results, the same failures, and the same state afterwards.
func TestTransactionsAreSequential(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { sequential(t, seed) })
	}
}

func sequential(t *testing.T, seed uint64) {
	const transactions = 2000
	e := setup(t)
	ids := []string{e.session(model.Session{}), e.session(model.Session{})}
	g := &gen{Rand: rand.New(rand.NewPCG(seed, 1)), now: e.dump()}
	g.now.sessions = ids
	done, refused := 0, 0
	for n := range transactions {
		ops := make([]model.TxnOp, 1+g.IntN(6))
		for i := range ops {
			ops[i] = g.op()
		}
		results, failed, index, err := e.Transact(t.Context(), ops)
		if err != nil {
			t.Fatalf("transaction %d: %v: %s", n, err, list(ops))
		}
		want, wrong := g.now.run(ops, index)
		var got []string
		for _, r := range results {
			got = append(got, show(r))
		}
		var bad []int
		for _, f := range failed {
			bad = append(bad, f.OpIndex)
		}
		if !slices.Equal(got, want) || !slices.Equal(bad, wrong) {
			t.Fatalf("transaction %d: %s\nresults %q, failed %v\nwant    %q, failed %v", n, list(ops), got, bad, want, wrong)
		}
		now := e.dump()
		if !maps.Equal(now.kv, g.now.kv) || !maps.Equal(now.nodes, g.now.nodes) || !maps.Equal(now.instances, g.now.instances) || !maps.Equal(now.checks, g.now.checks) {
			t.Fatalf("after transaction %d: %s\n%+v\nwant\n%+v", n, list(ops), now, g.now)
		}
		if wrong == nil {
			done++
		} else {
			refused++
		}
	}
	if done < transactions/10 || refused < transactions/10 {
		t.Errorf("%d done, %d refused; the test shows little", done, refused)
	}
}

// list is operations as text.
func list(ops []model.TxnOp) string {
	var b strings.Builder
	for _, o := range ops {
		switch {
		case o.KV != nil:
			fmt.Fprintf(&b, "%s %s=%s by %q at %d; ", o.KV.Verb, o.KV.KV.Key, o.KV.KV.Value, o.KV.KV.Session, o.KV.KV.ModifyIndex)
		case o.Node != nil:
			fmt.Fprintf(&b, "%s node %s %s at %d; ", o.Node.Verb, o.Node.Node.Name, o.Node.Node.Address, o.Node.Node.ModifyIndex)
		case o.Instance != nil:
			fmt.Fprintf(&b, "%s instance %s/%s %d at %d; ", o.Instance.Verb, o.Instance.Instance.Node, o.Instance.Instance.ID, o.Instance.Instance.Port, o.Instance.Instance.ModifyIndex)
		case o.Check != nil:
			fmt.Fprintf(&b, "%s check %s/%s %s of %q at %d; ", o.Check.Verb, o.Check.Check.Node, o.Check.Check.ID, o.Check.Check.Status, o.Check.Check.ServiceID, o.Check.Check.ModifyIndex)
		}
	}
	return b.String()
}
