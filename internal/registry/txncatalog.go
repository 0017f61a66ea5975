package registry

import (
	"fmt"
	"strings"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/store"
)

// What Consul says when something is registered with what is not there.
var (
	errMissingNode    = say(ErrUnknownNode, "Missing node registration")
	errMissingService = say(ErrUnknownService, "Missing service registration")
)

func (t *overlay) runNode(op *model.TxnNode) error {
	n := op.Node
	switch op.Verb {
	case "get":
		cur := t.node(n.Name)
		if n.ID != "" {
			cur = t.nodeByID(n.ID)
		}
		if cur == nil {
			return say(nil, "node %q doesn't exist", n.Name)
		}
		t.results = append(t.results, model.TxnResult{Node: cur})
	case "set", "cas":
		if op.Verb == "cas" && !matches(t.node(n.Name), n.ModifyIndex) {
			return say(nil, "failed to set node %q, index is stale", n.Name)
		}
		return t.setNode(&n)
	case "delete":
		t.deleteNode(n.Name)
	case "delete-cas":
		if cur := t.node(n.Name); cur == nil || cur.ModifyIndex != n.ModifyIndex {
			return say(nil, "failed to delete node %q, index is stale", n.Name)
		}
		t.deleteNode(n.Name)
	default:
		return say(ErrInvalid, "unknown Node verb %q", op.Verb)
	}
	return nil
}

func (t *overlay) runInstance(op *model.TxnInstance) error {
	i := op.Instance.Clone()
	if i.ID == "" {
		i.ID = model.ServiceID(i.Service)
	}
	switch op.Verb {
	case "get":
		cur := t.instance(i.Node, i.ID)
		if cur == nil {
			return say(nil, "service %q on node %q doesn't exist", i.ID, i.Node)
		}
		t.results = append(t.results, model.TxnResult{Instance: cur})
	case "set", "cas":
		if op.Verb == "cas" && !matches(t.instance(i.Node, i.ID), i.ModifyIndex) {
			return say(nil, "failed to set service %q on node %q, index is stale", i.ID, i.Node)
		}
		return t.setInstance(&i)
	case "delete":
		t.deleteInstance(i.Node, i.ID)
	case "delete-cas":
		if cur := t.instance(i.Node, i.ID); cur == nil || cur.ModifyIndex != i.ModifyIndex {
			return say(nil, "failed to delete service %q on node %q, index is stale", i.ID, i.Node)
		}
		t.deleteInstance(i.Node, i.ID)
	default:
		return say(ErrInvalid, "unknown Service verb %q", op.Verb)
	}
	return nil
}

func (t *overlay) runCheck(op *model.TxnCheck) error {
	c := op.Check
	if c.ID == "" {
		c.ID = model.CheckID(c.Name)
	}
	switch op.Verb {
	case "get":
		cur := t.checkOf(c.Node, c.ID)
		if cur == nil {
			return say(nil, "check %q on node %q doesn't exist", c.ID, c.Node)
		}
		t.results = append(t.results, model.TxnResult{Check: cur})
	case "set", "cas":
		if op.Verb == "cas" && !matches(t.checkOf(c.Node, c.ID), c.ModifyIndex) {
			return say(nil, "failed to set check %q on node %q, index is stale", c.ID, c.Node)
		}
		return t.setCheck(&c)
	case "delete":
		t.deleteCheck(c.Node, c.ID)
	case "delete-cas":
		if cur := t.checkOf(c.Node, c.ID); cur == nil || cur.ModifyIndex != c.ModifyIndex {
			return say(nil, "failed to delete check %q on node %q, index is stale", c.ID, c.Node)
		}
		t.deleteCheck(c.Node, c.ID)
	default:
		return say(ErrInvalid, "unknown Check verb %q", op.Verb)
	}
	return nil
}

func (t *overlay) node(n model.NodeName) *model.Node {
	snap, _ := t.snap.Node(n)
	return look(t, t.nodes, store.NodeKey(n), snap)
}

// nodeByID finds a node by its id. That there is none depends on every node.
func (t *overlay) nodeByID(id string) *model.Node {
	for _, n := range t.nodes {
		if n != nil && strings.EqualFold(n.ID, id) {
			return n
		}
	}
	list, _ := t.snap.Nodes()
	for _, n := range list {
		if strings.EqualFold(n.ID, id) {
			if cur := t.node(n.Name); cur != nil && strings.EqualFold(cur.ID, id) {
				return cur
			}
		}
	}
	t.since(store.NodePrefix())
	return nil
}

func (t *overlay) instance(n model.NodeName, id model.ServiceID) *model.Instance {
	snap, _ := t.snap.Instance(n, id)
	return look(t, t.instances, store.InstanceKey(n, id), snap)
}

func (t *overlay) checkOf(n model.NodeName, id model.CheckID) *model.Check {
	snap, _ := t.snap.Check(n, id)
	return look(t, t.checks, store.CheckKey(n, id), snap)
}

// instanceChecks are the checks of an instance. It makes the plan depend on no
// check having been added to the node.
func (t *overlay) instanceChecks(n model.NodeName, id model.ServiceID) []*model.Check {
	t.since(store.CheckPrefix(n))
	var list []*model.Check
	for _, c := range t.snap.InstanceChecks(n, id) {
		if cur := t.checkOf(n, c.ID); cur == c {
			list = append(list, c)
		}
	}
	for _, c := range t.checks {
		if c != nil && c.Node == n && c.ServiceID == id {
			list = append(list, c)
		}
	}
	return list
}

// setNode follows RegisterExternal: the record of an agent's own node stays as
// the agent keeps it.
func (t *overlay) setNode(n *model.Node) error {
	if err := validateNode(n); err != nil {
		return err
	}
	n.Owner = model.OwnerExternal
	cur := t.node(n.Name)
	if cur != nil {
		if n.ID == "" {
			n.ID = cur.ID
		}
		if err := reserved(t.snap, t.p, cur, n.ID); err != nil {
			return err
		}
		if cur.Owner != model.OwnerExternal || t.p.same(cur, n) {
			t.results = append(t.results, model.TxnResult{Node: cur})
			return nil
		}
	}
	if n.ID != "" && (cur == nil || cur.ID != n.ID) {
		if err := t.rename(n); err != nil {
			return err
		}
	}
	snap, _ := t.snap.Node(n.Name)
	n.Stamp = restamp(n.Owner, snap)
	t.nodes[store.NodeKey(n.Name)] = n
	t.results = append(t.results, model.TxnResult{Node: n})
	return nil
}

// rename removes the node that has had the id of n under another name.
func (t *overlay) rename(n *model.Node) error {
	old := t.nodeByID(n.ID)
	t.since(store.NodePrefix())
	switch {
	case old == nil || old.Name == n.Name:
	case old.Owner != model.OwnerExternal:
		return external(ErrOwner, "failed inserting node: Error while renaming Node ID: %q (%s): it is the id of the agent at %s", n.ID, n.Address, old.Name)
	default:
		t.deleteNode(old.Name)
	}
	return nil
}

func (t *overlay) deleteNode(n model.NodeName) {
	if t.node(n) != nil {
		t.nodes[store.NodeKey(n)] = nil
	}
	var instances, checks []string
	list, _ := t.snap.NodeInstances(n)
	for _, i := range list {
		instances = append(instances, store.InstanceKey(n, i.ID))
	}
	all, _ := t.snap.NodeChecks(n)
	for _, c := range all {
		checks = append(checks, store.CheckKey(n, c.ID))
	}
	t.drop(store.InstancePrefix(n), instances)
	t.drop(store.CheckPrefix(n), checks)
}

// setInstance registers an instance; one of an agent's stays the agent's, who may
// set it right. Unlike Register it leaves the instance's
// checks alone: they have operations of their own.
func (t *overlay) setInstance(i *model.Instance) error {
	if err := validateInstance(i); err != nil {
		return err
	}
	if t.node(i.Node) == nil {
		return errMissingNode
	}
	i.Owner = model.OwnerExternal
	cur := t.instance(i.Node, i.ID)
	if cur != nil {
		if cur.Owner == model.OwnerServers {
			return notOwned(fmt.Sprintf("service %q", i.ID), cur.Owner, i.Owner)
		}
		i.Owner = cur.Owner
		if cur.Address == i.Address && cur.Port == i.Port {
			// Where the workload behind it is does not change with its tags.
			i.Endpoint, i.Places = cur.Endpoint, cur.Places
		}
	}
	if cur != nil && t.p.same(cur, i) {
		t.results = append(t.results, model.TxnResult{Instance: cur})
		return nil
	}
	snap, _ := t.snap.Instance(i.Node, i.ID)
	i.Stamp = restamp(i.Owner, snap)
	t.instances[store.InstanceKey(i.Node, i.ID)] = i
	t.results = append(t.results, model.TxnResult{Instance: i})
	for _, c := range t.instanceChecks(i.Node, i.ID) {
		// They show the instance's name and tags.
		next := *c
		completeCheck(&next, i)
		t.writeCheck(c, &next)
	}
	return nil
}

func (t *overlay) deleteInstance(n model.NodeName, id model.ServiceID) {
	if t.instance(n, id) == nil {
		return
	}
	for _, c := range t.instanceChecks(n, id) {
		t.checks[store.CheckKey(n, c.ID)] = nil
	}
	t.instances[store.InstanceKey(n, id)] = nil
}

func (t *overlay) setCheck(c *model.Check) error {
	if c.Type == "" {
		c.Type = c.Definition.Type()
	}
	completeCheck(c, nil)
	if err := validateCheck(c); err != nil {
		return err
	}
	if t.node(c.Node) == nil {
		return errMissingNode
	}
	c.Owner = model.OwnerExternal
	if c.ServiceID != "" {
		i := t.instance(c.Node, c.ServiceID)
		if i == nil {
			return errMissingService
		}
		completeCheck(c, i)
	}
	cur := t.checkOf(c.Node, c.ID)
	if cur != nil {
		if cur.Owner == model.OwnerServers {
			return notOwned(fmt.Sprintf("check %q", c.ID), cur.Owner, c.Owner)
		}
		c.Owner = cur.Owner
	}
	t.results = append(t.results, model.TxnResult{Check: t.writeCheck(cur, c)})
	return nil
}

// writeCheck puts next in the place of cur, nil for none, unless they say the
// same, and returns what is there then.
func (t *overlay) writeCheck(cur, next *model.Check) *model.Check {
	if cur != nil && t.p.same(cur, next) {
		return cur
	}
	snap, _ := t.snap.Check(next.Node, next.ID)
	next.Stamp = restamp(next.Owner, snap)
	t.checks[store.CheckKey(next.Node, next.ID)] = next
	return next
}

func (t *overlay) deleteCheck(n model.NodeName, id model.CheckID) {
	if t.checkOf(n, id) != nil {
		t.checks[store.CheckKey(n, id)] = nil
	}
}
