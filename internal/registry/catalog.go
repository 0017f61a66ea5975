package registry

import (
	"context"
	"fmt"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/store"
)

// RegisterNode puts a node into the catalogue or changes it. A name may pass to
// a node with another id only when the node's check serfHealth does not pass
// (ErrNodeNameTaken); an agent may take over a node that was registered by hand,
// but not the other way round (ErrOwner).
func (r *Registry) RegisterNode(ctx context.Context, n model.Node) (model.Index, error) {
	what := fmt.Sprintf("register node %q", n.Name)
	if err := validateNode(&n); err != nil {
		return 0, fmt.Errorf("%s: %w", what, err)
	}
	if n.Owner == "" {
		n.Owner = model.NodeOwner(n.Name)
	}
	return r.write(ctx, what, func(snap *state.Snapshot, p *plan) {
		cur, _ := snap.Node(n.Name)
		if p.replace(store.NodeKey(n.Name), cur, &n) && cur != nil {
			p.refuse(mayReplaceNode(snap, p, cur, &n))
		}
	})
}

func mayReplaceNode(snap *state.Snapshot, p *plan, cur, n *model.Node) error {
	if cur.Owner != n.Owner && cur.Owner != model.OwnerExternal {
		return notOwned(fmt.Sprintf("node %q", n.Name), cur.Owner, n.Owner)
	}
	if cur.ID == "" || n.ID == "" || cur.ID == n.ID {
		return nil
	}
	alive, _ := snap.Check(n.Name, model.SerfHealth)
	p.read(store.CheckKey(n.Name, model.SerfHealth), alive)
	if alive == nil || alive.Status != model.Passing {
		return nil
	}
	return fmt.Errorf("%w: %q is the living node %s, not %s; choose another --node-name", ErrNodeNameTaken, n.Name, cur.ID, n.ID)
}

// DeregisterNode removes a node with its instances and checks. Removing what is
// not there changes nothing.
func (r *Registry) DeregisterNode(ctx context.Context, name model.NodeName) (model.Index, error) {
	return r.write(ctx, fmt.Sprintf("deregister node %q", name), func(snap *state.Snapshot, p *plan) {
		node, _ := snap.Node(name)
		p.remove(store.NodeKey(name), node)
		// Whoever registers something on the node depends on the node's record,
		// so nothing can be left behind.
		if list, _ := snap.NodeInstances(name); node != nil || len(list) > 0 {
			p.txn.DeletePrefixes = append(p.txn.DeletePrefixes, store.InstancePrefix(name))
		}
		if list, _ := snap.NodeChecks(name); node != nil || len(list) > 0 {
			p.txn.DeletePrefixes = append(p.txn.DeletePrefixes, store.CheckPrefix(name))
		}
	})
}

// Check says what is wrong with an instance and its checks, as far as that does
// not depend on what the catalogue holds. Its errors are ErrInvalid.
func (r *Registry) Check(inst model.Instance, checks []model.Check) error {
	inst = inst.Clone()
	if err := validateInstance(&inst); err != nil {
		return err
	}
	_, err := instanceChecks(&inst, checks)
	return err
}

// Register puts an instance and its checks into the catalogue, in one step. The
// instance's earlier checks that are not named again are removed. A service's
// first instance gets it its VIP. The owner of instance and checks is the node's
// agent unless the instance names another; what has another owner already is not
// overwritten (ErrOwner), but that the agent takes over what is external. The node
// must be registered (ErrUnknownNode).
func (r *Registry) Register(ctx context.Context, inst model.Instance, checks []model.Check) (model.Index, error) {
	s := r.registering(inst, checks)
	if s.err != nil {
		return 0, s.err
	}
	return r.write(ctx, s.what, s.plan)
}

// registering is the write that Register does.
func (r *Registry) registering(inst model.Instance, checks []model.Check) *single {
	s := &single{what: fmt.Sprintf("register service %q as %q on node %q", inst.Service, inst.ID, inst.Node)}
	inst = inst.Clone()
	if err := validateInstance(&inst); err != nil {
		s.fail(err)
		return s
	}
	if inst.Owner == "" {
		inst.Owner = model.NodeOwner(inst.Node)
	}
	checks, err := instanceChecks(&inst, checks)
	if err != nil {
		s.fail(err)
		return s
	}
	s.plan = func(snap *state.Snapshot, p *plan) {
		node, _ := snap.Node(inst.Node)
		p.read(store.NodeKey(inst.Node), node)
		if node == nil {
			p.refuse(fmt.Errorf("%w %q; register the node first", ErrUnknownNode, inst.Node))
			return
		}
		cur, _ := snap.Instance(inst.Node, inst.ID)
		if cur != nil && !mayTake(cur.Owner, inst.Owner, inst.Node) {
			p.read(store.InstanceKey(inst.Node, inst.ID), cur)
			p.refuse(notOwned(fmt.Sprintf("instance %q", inst.ID), cur.Owner, inst.Owner))
			return
		}
		p.replace(store.InstanceKey(inst.Node, inst.ID), cur, &inst)
		planChecks(snap, p, &inst, checks)
		r.planVIP(snap, p, inst.Service)
	}
	return s
}

// mayTake reports whether an owner may overwrite what another has on a node: its
// agent what is external, since what a node runs is known to its agent only.
func mayTake(has, wants model.Owner, n model.NodeName) bool {
	return has == wants || has == model.OwnerExternal && wants == model.NodeOwner(n)
}

// planChecks makes checks the checks of an instance.
func planChecks(snap *state.Snapshot, p *plan, inst *model.Instance, checks []model.Check) {
	named := map[model.CheckID]bool{}
	for i := range checks {
		c := &checks[i]
		named[c.ID] = true
		// Ids are unique on a node, so a check may pass from one of an owner's
		// instances to another.
		cur, _ := snap.Check(c.Node, c.ID)
		p.replace(store.CheckKey(c.Node, c.ID), cur, c)
		if cur != nil && !mayTake(cur.Owner, c.Owner, c.Node) {
			p.refuse(notOwned(fmt.Sprintf("check %q", c.ID), cur.Owner, c.Owner))
			return
		}
	}
	for _, c := range snap.InstanceChecks(inst.Node, inst.ID) {
		if !named[c.ID] && mayTake(c.Owner, inst.Owner, inst.Node) {
			p.remove(store.CheckKey(c.Node, c.ID), c)
		}
	}
}

// instanceChecks returns the checks of an instance, completed from it.
func instanceChecks(inst *model.Instance, checks []model.Check) ([]model.Check, error) {
	out := make([]model.Check, len(checks))
	seen := map[model.CheckID]bool{}
	for i, c := range checks {
		if c.Node == "" {
			c.Node = inst.Node
		}
		if c.ServiceID == "" {
			c.ServiceID = inst.ID
		}
		c.Owner = inst.Owner
		completeCheck(&c, inst)
		if err := validateCheck(&c); err != nil {
			return nil, err
		}
		switch {
		case c.Node != inst.Node:
			return nil, invalid("check node", "is %q; a check has to be on its instance's node, %q", c.Node, inst.Node)
		case c.ServiceID != inst.ID:
			return nil, invalid("check service id", "is %q, but the check comes with instance %q", c.ServiceID, inst.ID)
		case seen[c.ID]:
			return nil, invalid("check id", "%q is there twice; each check needs its own", c.ID)
		}
		seen[c.ID] = true
		out[i] = c
	}
	return out, nil
}

// completeCheck fills in what a check shows of its instance; inst is nil for a
// check of a node.
func completeCheck(c *model.Check, inst *model.Instance) {
	if inst != nil {
		c.ServiceName, c.ServiceTags = inst.Service, inst.Tags
	}
	if c.Status == "" {
		c.Status = model.Critical
	}
	if c.Name == "" {
		c.Name = string(c.ID)
	}
}

// Deregister removes an instance and its checks, whoever owns it: the caller has
// decided. Removing what is not there changes nothing. The service's VIP stays.
func (r *Registry) Deregister(ctx context.Context, n model.NodeName, id model.ServiceID) (model.Index, error) {
	return r.write(ctx, fmt.Sprintf("deregister %q on node %q", id, n), func(snap *state.Snapshot, p *plan) {
		inst, _ := snap.Instance(n, id)
		p.remove(store.InstanceKey(n, id), inst)
		if inst == nil {
			return
		}
		// A check added after this snapshot would be left without its instance.
		p.unchanged(store.CheckPrefix(n), snap.Index())
		for _, c := range snap.InstanceChecks(n, id) {
			p.remove(store.CheckKey(n, c.ID), c)
		}
	})
}

// PutCheck puts a check into the catalogue or changes it. Its node must be
// registered (ErrUnknownNode), and its instance if it names one
// (ErrUnknownService), from which it takes service name, tags and owner. Whose it
// is already is as for Register.
func (r *Registry) PutCheck(ctx context.Context, c model.Check) (model.Index, error) {
	s := r.puttingCheck(c)
	if s.err != nil {
		return 0, s.err
	}
	return r.write(ctx, s.what, s.plan)
}

// puttingCheck is the write that PutCheck does.
func (r *Registry) puttingCheck(c model.Check) *single {
	s := &single{what: fmt.Sprintf("put check %q of node %q", c.ID, c.Node)}
	completeCheck(&c, nil)
	if err := validateCheck(&c); err != nil {
		s.fail(err)
		return s
	}
	s.plan = func(snap *state.Snapshot, p *plan) {
		c := c // each round completes it from its own snapshot
		node, _ := snap.Node(c.Node)
		p.read(store.NodeKey(c.Node), node)
		if node == nil {
			p.refuse(fmt.Errorf("%w %q; register the node first", ErrUnknownNode, c.Node))
			return
		}
		owner := model.NodeOwner(c.Node)
		if c.ServiceID != "" {
			inst, _ := snap.Instance(c.Node, c.ServiceID)
			p.read(store.InstanceKey(c.Node, c.ServiceID), inst)
			if inst == nil {
				p.refuse(fmt.Errorf("%w %q on node %q; register the service first", ErrUnknownService, c.ServiceID, c.Node))
				return
			}
			completeCheck(&c, inst)
			owner = inst.Owner
		}
		if c.Owner == "" {
			c.Owner = owner
		}
		cur, _ := snap.Check(c.Node, c.ID)
		p.replace(store.CheckKey(c.Node, c.ID), cur, &c)
		if cur != nil && !mayTake(cur.Owner, c.Owner, c.Node) {
			p.refuse(notOwned(fmt.Sprintf("check %q", c.ID), cur.Owner, c.Owner))
		}
	}
	return s
}

// DeleteCheck removes a check. Removing what is not there changes nothing.
func (r *Registry) DeleteCheck(ctx context.Context, n model.NodeName, id model.CheckID) (model.Index, error) {
	return r.write(ctx, fmt.Sprintf("delete check %q of node %q", id, n), func(snap *state.Snapshot, p *plan) {
		cur, _ := snap.Check(n, id)
		p.remove(store.CheckKey(n, id), cur)
	})
}

func notOwned(what string, has, wants model.Owner) error {
	return fmt.Errorf("%s %w: it is owned by %q, not by %q; deregister it first", what, ErrOwner, has, wants)
}
