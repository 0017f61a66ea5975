package registry

import (
	"context"
	"errors"
	"fmt"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/store"
)

// ExternalError is the refusal of an external registration, in Consul's words.
type ExternalError struct {
	text string
	err  error
}

func (e *ExternalError) Error() string { return e.text }

// Unwrap returns the sentinel error that the refusal comes under.
func (e *ExternalError) Unwrap() error { return e.err }

func external(err error, format string, args ...any) error {
	return &ExternalError{fmt.Sprintf(format, args...), err}
}

// RegisterExternal writes what somebody other than a node's agent says of the
// node: its record, an instance and checks, all or nothing. What is new is owned
// by nobody's agent (model.OwnerExternal); the agent of a node of that name
// removes it again. What an agent has registered can be changed but keeps its
// owner, who sets it right, or adopts the tags of a service that allows that; the
// record of an agent's own node stays as it is. What the servers own is not
// touched (ErrOwner).
func (r *Registry) RegisterExternal(ctx context.Context, reg model.ExternalRegistration) (model.Index, error) {
	what := fmt.Sprintf("register node %q from outside", reg.Node.Name)
	reg, err := completeExternal(reg)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", what, err)
	}
	if reg.Node.ID != "" && !reg.SkipNodeUpdate {
		// Such a write looks at every node's id.
		leave, err := r.queues.enter(ctx, "node ids")
		if err != nil {
			return 0, fmt.Errorf("%s: %w", what, err)
		}
		defer leave()
	}
	index, err := r.write(ctx, what, func(snap *state.Snapshot, p *plan) {
		node := planExternalNode(snap, p, &reg)
		if p.refusal == nil && reg.Service != nil {
			r.planExternalService(snap, p, *reg.Service)
		}
		if p.refusal == nil && node {
			planExternalChecks(snap, p, &reg)
		}
	})
	var refused *ExternalError
	if errors.As(err, &refused) {
		return index, refused
	}
	return index, err
}

// completeExternal validates a registration and fills in what it leaves open. Of
// checks with one id the last stands.
func completeExternal(reg model.ExternalRegistration) (model.ExternalRegistration, error) {
	name := reg.Node.Name
	if err := validateName("node name", name); err != nil {
		return reg, err
	}
	if !reg.SkipNodeUpdate {
		if err := validateNode(&reg.Node); err != nil {
			return reg, err
		}
	}
	reg.Node.Owner = model.OwnerExternal
	if reg.Service != nil {
		inst := reg.Service.Clone()
		inst.Node, inst.Owner = name, model.OwnerExternal
		if err := validateInstance(&inst); err != nil {
			return reg, err
		}
		reg.Service = &inst
	}
	var checks []model.Check
	at := map[model.CheckID]int{}
	for _, c := range reg.Checks {
		if c.Node == "" {
			c.Node = name
		}
		if c.ID == "" {
			c.ID = model.CheckID(c.Name)
		}
		if c.Type == "" {
			c.Type = c.Definition.Type()
		}
		c.Owner = model.OwnerExternal
		completeCheck(&c, nil)
		if c.Node != name {
			return reg, external(ErrInvalid, "Node '%s' for check '%s' doesn't match register request node '%s'", c.Node, c.ID, name)
		}
		if err := validateCheck(&c); err != nil {
			return reg, err
		}
		if i, again := at[c.ID]; again {
			checks[i] = c
			continue
		}
		at[c.ID] = len(checks)
		checks = append(checks, c)
	}
	reg.Checks = checks
	return reg, nil
}

// planExternalNode plans for the node's record, and reports whether there is or
// will be one.
func planExternalNode(snap *state.Snapshot, p *plan, reg *model.ExternalRegistration) bool {
	cur, _ := snap.Node(reg.Node.Name)
	if cur == nil && reg.SkipNodeUpdate {
		p.read(store.NodeKey(reg.Node.Name), nil)
		p.refuse(fmt.Errorf("%w %q; register it without SkipNodeUpdate first", ErrUnknownNode, reg.Node.Name))
		return false
	}
	if cur != nil && (reg.SkipNodeUpdate || cur.Owner != model.OwnerExternal) {
		p.read(store.NodeKey(cur.Name), cur)
		if !reg.SkipNodeUpdate {
			p.refuseNil(reserved(snap, p, cur, reg.Node.ID))
		}
		return true
	}
	next := reg.Node
	if cur != nil && next.ID == "" {
		next.ID = cur.ID
	}
	if !p.replace(store.NodeKey(next.Name), cur, &next) {
		return true
	}
	if cur != nil {
		p.refuseNil(reserved(snap, p, cur, next.ID))
	}
	if next.ID != "" && (cur == nil || cur.ID != next.ID) {
		planRename(snap, p, &next)
	}
	return true
}

// refuseNil is refuse for an error that may be nil.
func (p *plan) refuseNil(err error) {
	if err != nil {
		p.refuse(err)
	}
}

// reserved refuses a node's name to another id, unless the node is known to be
// dead.
func reserved(snap *state.Snapshot, p *plan, cur *model.Node, id string) error {
	if id == "" || cur.ID == "" || cur.ID == id {
		return nil
	}
	alive, _ := snap.Check(cur.Name, model.SerfHealth)
	p.read(store.CheckKey(cur.Name, model.SerfHealth), alive)
	if alive != nil && alive.Status == model.Critical {
		return nil
	}
	return external(ErrNodeNameTaken, "failed inserting node: Error while renaming Node ID: %q: Node name %s is reserved by node %s with name %s (%s)",
		id, cur.Name, cur.ID, cur.Name, cur.Address)
}

// planRename removes the node that has had the id of n under another name, with
// everything on it. An agent's node cannot be taken away from it like that.
func planRename(snap *state.Snapshot, p *plan, n *model.Node) {
	nodes, _ := snap.Nodes()
	p.unchanged(store.NodePrefix(), snap.Index())
	for _, o := range nodes {
		if o.ID != n.ID || o.Name == n.Name {
			continue
		}
		if o.Owner != model.OwnerExternal {
			p.refuse(external(ErrOwner, "failed inserting node: Error while renaming Node ID: %q (%s): it is the id of the agent at %s", n.ID, n.Address, o.Name))
			return
		}
		p.remove(store.NodeKey(o.Name), o)
		p.txn.DeletePrefixes = append(p.txn.DeletePrefixes, store.InstancePrefix(o.Name), store.CheckPrefix(o.Name))
	}
}

func (r *Registry) planExternalService(snap *state.Snapshot, p *plan, inst model.Instance) {
	cur, _ := snap.Instance(inst.Node, inst.ID)
	if cur != nil {
		if cur.Owner == model.OwnerServers {
			p.read(store.InstanceKey(inst.Node, inst.ID), cur)
			p.refuse(fmt.Errorf("failed inserting service: %w", notOwned(fmt.Sprintf("service %q", inst.ID), cur.Owner, inst.Owner)))
			return
		}
		inst.Owner = cur.Owner
		if cur.Address == inst.Address && cur.Port == inst.Port {
			// Where the workload behind it is does not change with its tags.
			inst.Endpoint, inst.Places = cur.Endpoint, cur.Places
		}
	}
	p.replace(store.InstanceKey(inst.Node, inst.ID), cur, &inst)
	r.planVIP(snap, p, inst.Service)
}

func planExternalChecks(snap *state.Snapshot, p *plan, reg *model.ExternalRegistration) {
	named := map[model.CheckID]bool{}
	for _, c := range reg.Checks {
		named[c.ID] = true
		if c.ServiceID != "" {
			inst := reg.Service
			if inst == nil || inst.ID != c.ServiceID {
				inst, _ = snap.Instance(c.Node, c.ServiceID)
				p.read(store.InstanceKey(c.Node, c.ServiceID), inst)
			}
			if inst == nil {
				p.refuse(external(ErrUnknownService, "Unknown service ID '%s' for check ID '%s'", c.ServiceID, c.ID))
				return
			}
			completeCheck(&c, inst)
		}
		cur, _ := snap.Check(c.Node, c.ID)
		if cur != nil {
			if cur.Owner == model.OwnerServers {
				p.read(store.CheckKey(c.Node, c.ID), cur)
				p.refuse(fmt.Errorf("failed inserting check: %w", notOwned(fmt.Sprintf("check %q", c.ID), cur.Owner, c.Owner)))
				return
			}
			c.Owner = cur.Owner
		}
		p.replace(store.CheckKey(c.Node, c.ID), cur, &c)
	}
	if reg.Service == nil {
		return
	}
	// The other checks of the instance show its name and tags.
	for _, cur := range snap.InstanceChecks(reg.Service.Node, reg.Service.ID) {
		next := *cur
		completeCheck(&next, reg.Service)
		if !named[cur.ID] && !next.Same(*cur) {
			p.replace(store.CheckKey(cur.Node, cur.ID), cur, &next)
		}
	}
}

// PutSetting writes a cluster-wide setting. With cas it does so only if the
// setting was last modified at *cas (0: there is none); if not, it returns false
// and no error.
func (r *Registry) PutSetting(ctx context.Context, name, value string, cas *model.Index) (bool, model.Index, error) {
	what := fmt.Sprintf("put setting %q", name)
	if err := validateName("setting name", name); err != nil {
		return false, 0, fmt.Errorf("%s: %w", what, err)
	}
	next := &model.Setting{Name: name, Value: value, Stamp: model.Stamp{Owner: model.OwnerOperator}}
	return casResult(r.write(ctx, what, func(snap *state.Snapshot, p *plan) {
		cur, _ := snap.Setting(name)
		p.replace(store.SettingKey(name), cur, next)
		if mod, _ := modified(cur); cas != nil && mod != *cas {
			p.refuse(errMismatch)
		}
	}))
}
