package registry

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/store"
)

// Names that Consul takes, and their greatest lengths in bytes.
var (
	policyName   = regexp.MustCompile(`^[A-Za-z0-9\-_]+/?[A-Za-z0-9\-_]*$`)
	roleName     = regexp.MustCompile(`^[A-Za-z0-9\-_]{1,256}$`)
	identityName = regexp.MustCompile(`^[a-z0-9]([a-z0-9\-_]*[a-z0-9])?$`)
)

const (
	maxPolicyName   = 128
	maxIdentityName = 256
	// builtinPrefix begins the names of policies that are built in.
	builtinPrefix = "builtin/"
)

// PutPolicy changes a policy, or makes one if p has no ID. It returns the policy
// as written.
func (r *Registry) PutPolicy(ctx context.Context, pol model.ACLPolicy) (*model.ACLPolicy, error) {
	pol.Owner = model.OwnerOperator
	create := pol.ID == ""
	if err := validatePolicy(&pol); err != nil {
		return nil, err
	}
	if create {
		pol.ID = uuid.NewString()
	}
	if b := acl.BuiltinPolicy(pol.ID); b != nil {
		return b, mayChangeBuiltin(b, &pol)
	}
	index, err := r.write(ctx, fmt.Sprintf("put ACL policy %q", pol.Name), func(snap *state.Snapshot, p *plan) {
		cur, _ := snap.Policy(pol.ID)
		p.read(store.PolicyKey(pol.ID), cur)
		old := ""
		switch {
		case cur != nil:
			old = cur.Name
		case !create:
			p.refuse(say(nil, "cannot find policy %s", pol.ID))
			return
		}
		if other := policyNamed(snap, pol.Name); other != nil && other.ID != pol.ID {
			readPolicy(p, other)
			format := "Invalid Policy: A policy with name %q already exists"
			if create {
				format = "Invalid Policy: A Policy with Name %q already exists"
			}
			p.refuse(say(nil, format, pol.Name))
			return
		}
		planName(p, uniquePolicy, old, pol.Name, pol.ID)
		if !p.same(cur, &pol) {
			p.put(store.PolicyKey(pol.ID), &pol)
		}
	})
	if err != nil {
		return nil, bare(err)
	}
	if cur, _ := r.st.Snapshot().Policy(pol.ID); cur != nil {
		return cur, nil
	}
	pol.CreateIndex, pol.ModifyIndex = index, index
	return &pol, nil
}

func validatePolicy(p *model.ACLPolicy) error {
	switch {
	case p.Name == "":
		return say(nil, "Invalid Policy: no Name is set")
	case len(p.Name) > maxPolicyName || !policyName.MatchString(p.Name):
		return say(nil, "Invalid Policy: invalid Name. Only alphanumeric characters, a single '/', '-' and '_' are allowed")
	case strings.HasPrefix(p.Name, builtinPrefix) && acl.BuiltinPolicy(p.ID) == nil:
		return say(nil, "Invalid Policy: names with the prefix %q are reserved", builtinPrefix)
	case p.ID != "" && uuid.Validate(p.ID) != nil:
		return say(nil, "Policy ID invalid UUID")
	}
	if _, err := acl.Parse(p.Rules); err != nil {
		return say(nil, "%v", err)
	}
	return nil
}

// mayChangeBuiltin takes a builtin policy only as it is.
func mayChangeBuiltin(b, p *model.ACLPolicy) error {
	field := ""
	switch {
	case len(p.Datacenters) > 0:
		field = "Datacenters of"
	case p.Rules != b.Rules:
		field = "Rules for"
	case p.Name != b.Name:
		field = "Name of"
	case p.Description != b.Description:
		field = "Description of"
	default:
		return nil
	}
	return say(nil, "Changing the %s the builtin %s policy is not permitted", field, b.Name)
}

// planName moves the claim on a name from the one that a record had.
func planName(p *plan, kind, old, name, id string) {
	if old == name {
		return
	}
	if old != "" {
		p.txn.Deletes = append(p.txn.Deletes, store.UniqueKey(kind, old))
	}
	p.absent(store.UniqueKey(kind, name))
	p.put(store.UniqueKey(kind, name), id)
}

// policyNamed returns the policy of a name, builtin ones included.
func policyNamed(snap *state.Snapshot, name string) *model.ACLPolicy {
	all, _ := snap.Policies()
	i := slices.IndexFunc(all, func(p *model.ACLPolicy) bool { return p.Name == name })
	if i >= 0 {
		return all[i]
	}
	all = acl.Builtin()
	if i = slices.IndexFunc(all, func(p *model.ACLPolicy) bool { return p.Name == name }); i >= 0 {
		return all[i]
	}
	return nil
}

// readPolicy makes the plan depend on a policy, which a builtin one cannot fail.
func readPolicy(p *plan, pol *model.ACLPolicy) {
	if acl.BuiltinPolicy(pol.ID) == nil {
		p.read(store.PolicyKey(pol.ID), pol)
	}
}

// DeletePolicy removes a policy. Links to it lose their meaning with it: nothing
// will ever have its id again.
func (r *Registry) DeletePolicy(ctx context.Context, id string) (model.Index, error) {
	if b := acl.BuiltinPolicy(id); b != nil {
		return 0, say(nil, "Delete operation not permitted on the builtin %s policy", b.Name)
	}
	index, err := r.write(ctx, fmt.Sprintf("delete ACL policy %q", id), func(snap *state.Snapshot, p *plan) {
		cur, _ := snap.Policy(id)
		p.remove(store.PolicyKey(id), cur)
		if cur == nil {
			p.refuse(say(acl.ErrNotFound, "Cannot find policy to delete"))
			return
		}
		p.txn.Deletes = append(p.txn.Deletes, store.UniqueKey(uniquePolicy, cur.Name))
	})
	return index, bare(err)
}

// PutRole changes a role, or makes one if it has no ID. It returns the role as
// written.
func (r *Registry) PutRole(ctx context.Context, role model.ACLRole) (*model.ACLRole, error) {
	role.Owner = model.OwnerOperator
	create := role.ID == ""
	if err := validateRole(&role); err != nil {
		return nil, err
	}
	if create {
		role.ID = uuid.NewString()
	}
	var written model.ACLRole
	index, err := r.write(ctx, fmt.Sprintf("put ACL role %q", role.Name), func(snap *state.Snapshot, p *plan) {
		written = role
		p.refuse(planRole(snap, p, &written, create))
	})
	if err != nil {
		return nil, bare(err)
	}
	if cur, _ := r.st.Snapshot().Role(role.ID); cur != nil {
		return cur, nil
	}
	written.CreateIndex, written.ModifyIndex = index, index
	return &written, nil
}

func validateRole(role *model.ACLRole) (err error) {
	switch {
	case role.Name == "":
		return say(nil, "Invalid Role: no Name is set")
	case !roleName.MatchString(role.Name):
		return say(nil, "Invalid Role: invalid Name. Only alphanumeric characters, '-' and '_' are allowed")
	case role.ID != "" && uuid.Validate(role.ID) != nil:
		return say(nil, "Role ID invalid UUID")
	}
	if role.ServiceIdentities, err = serviceIdentities("role", role.ServiceIdentities, false); err != nil {
		return err
	}
	role.NodeIdentities, err = nodeIdentities("role", role.NodeIdentities)
	return err
}

func planRole(snap *state.Snapshot, p *plan, role *model.ACLRole, create bool) (err error) {
	cur, _ := snap.Role(role.ID)
	p.read(store.RoleKey(role.ID), cur)
	old := ""
	switch {
	case cur != nil:
		old = cur.Name
	case !create:
		return say(nil, "cannot find role %s", role.ID)
	}
	if other := roleNamed(snap, role.Name); other != nil && other.ID != role.ID {
		p.read(store.RoleKey(other.ID), other)
		if create {
			return say(nil, "Invalid Role: A Role with Name %q already exists", role.Name)
		}
		return say(nil, "Invalid Role: A role with name %q already exists", role.Name)
	}
	if role.Policies, err = policyLinks(snap, p, role.Policies); err != nil {
		return err
	}
	planName(p, uniqueRole, old, role.Name, role.ID)
	if !p.same(cur, role) {
		p.put(store.RoleKey(role.ID), role)
	}
	return nil
}

func roleNamed(snap *state.Snapshot, name string) *model.ACLRole {
	all, _ := snap.Roles()
	i := slices.IndexFunc(all, func(r *model.ACLRole) bool { return r.Name == name })
	if i < 0 {
		return nil
	}
	return all[i]
}

// DeleteRole removes a role, and with it the meaning of links to it.
func (r *Registry) DeleteRole(ctx context.Context, id string) (model.Index, error) {
	index, err := r.write(ctx, fmt.Sprintf("delete ACL role %q", id), func(snap *state.Snapshot, p *plan) {
		cur, _ := snap.Role(id)
		p.remove(store.RoleKey(id), cur)
		if cur == nil {
			p.refuse(say(acl.ErrNotFound, "Cannot find role to delete"))
			return
		}
		p.txn.Deletes = append(p.txn.Deletes, store.UniqueKey(uniqueRole, cur.Name))
	})
	return index, bare(err)
}

// policyLinks turns names into ids, once each, and makes the plan depend on there
// being such policies.
func policyLinks(snap *state.Snapshot, p *plan, links []model.ACLLink) ([]model.ACLLink, error) {
	return resolveLinks(links, "policy", func(l model.ACLLink) string {
		pol := acl.BuiltinPolicy(l.ID)
		if l.ID == "" {
			pol = policyNamed(snap, l.Name)
		} else if pol == nil {
			pol, _ = snap.Policy(l.ID)
		}
		if pol == nil {
			p.absent(linkKey(l, uniquePolicy, store.PolicyKey))
			return ""
		}
		readPolicy(p, pol)
		return pol.ID
	})
}

// roleLinks is policyLinks for roles.
func roleLinks(snap *state.Snapshot, p *plan, links []model.ACLLink) ([]model.ACLLink, error) {
	return resolveLinks(links, "role", func(l model.ACLLink) string {
		role := roleNamed(snap, l.Name)
		if l.ID != "" {
			role, _ = snap.Role(l.ID)
		}
		if role == nil {
			p.absent(linkKey(l, uniqueRole, store.RoleKey))
			return ""
		}
		p.read(store.RoleKey(role.ID), role)
		return role.ID
	})
}

// linkKey is the key that would be there if what is linked were.
func linkKey(l model.ACLLink, kind string, key func(string) string) string {
	if l.ID == "" {
		return store.UniqueKey(kind, l.Name)
	}
	return key(l.ID)
}

func resolveLinks(links []model.ACLLink, kind string, find func(model.ACLLink) string) ([]model.ACLLink, error) {
	var out []model.ACLLink
	for _, l := range links {
		id := find(l)
		switch {
		case id == "" && l.ID == "":
			return nil, say(nil, "No such ACL %s with name %q", kind, l.Name)
		case id == "":
			return nil, say(nil, "No such ACL %s with ID %q", kind, l.ID)
		case !slices.Contains(out, model.ACLLink{ID: id}):
			out = append(out, model.ACLLink{ID: id})
		}
	}
	return out, nil
}

// serviceIdentities makes one of those that name the same service; on is "token"
// or "role".
func serviceIdentities(on string, in []model.ServiceIdentity, local bool) ([]model.ServiceIdentity, error) {
	var out []model.ServiceIdentity
	for _, s := range in {
		switch {
		case s.ServiceName == "":
			return nil, say(nil, "Service identity is missing the service name field on this %s", on)
		case local && len(s.Datacenters) > 0:
			return nil, say(nil, "Service identity %q cannot specify a list of datacenters on a local token", s.ServiceName)
		case !validIdentity(string(s.ServiceName)):
			return nil, say(nil, "Service identity %q has an invalid name. Only lowercase alphanumeric characters, '-' and '_' are allowed", s.ServiceName)
		}
		i := slices.IndexFunc(out, func(o model.ServiceIdentity) bool { return o.ServiceName == s.ServiceName })
		switch {
		case i < 0:
			s.Datacenters = slices.Clone(s.Datacenters)
			out = append(out, s)
		case len(out[i].Datacenters) == 0 || len(s.Datacenters) == 0:
			out[i].Datacenters = nil // everywhere
		default:
			all := slices.Concat(out[i].Datacenters, s.Datacenters)
			slices.Sort(all)
			out[i].Datacenters = slices.Compact(all)
		}
	}
	return out, nil
}

// nodeIdentities drops those given twice.
func nodeIdentities(on string, in []model.NodeIdentity) ([]model.NodeIdentity, error) {
	var out []model.NodeIdentity
	for _, n := range in {
		switch {
		case n.NodeName == "":
			return nil, say(nil, "Node identity is missing the node name field on this %s", on)
		case n.Datacenter == "":
			return nil, say(nil, "Node identity is missing the datacenter field on this %s", on)
		case !validIdentity(string(n.NodeName)):
			return nil, say(nil, "Node identity has an invalid name. Only lowercase alphanumeric characters, '-' and '_' are allowed")
		case !slices.Contains(out, n):
			out = append(out, n)
		}
	}
	return out, nil
}

func validIdentity(name string) bool {
	return len(name) <= maxIdentityName && identityName.MatchString(name)
}
