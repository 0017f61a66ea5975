package local

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/fairlead-net/fairlead/internal/model"
)

// Declare makes services and checks the whole set that comes from definition
// files: what is new or has changed since the last call takes the place of
// whatever has its id, what is gone is removed, and what is the same is left
// alone. What came by the API stays, but for what the files say otherwise.
//
// The set is not kept over a restart: whoever uses files calls Declare before
// Run, or Run removes from the catalogue what they had declared. The call does
// not wait for the catalogue, which is told in the background.
//
// An error that is ErrInvalid, ErrScripts or ErrUnknownService is about the files
// and names what is wrong; then, and with ErrFile, nothing has changed. Only when
// a check's id is also that of a check which came by the API does the rest of the
// set come about all the same.
func (a *Agent) Declare(ctx context.Context, services []model.Registration, checks []model.CheckSpec) error {
	set, err := a.declaration(services, checks)
	if err != nil {
		return fmt.Errorf("declare: %w", err)
	}
	a.mu.Lock()
	for id := range a.entries {
		if _, ok := set[id]; !ok {
			set[id] = &declared{id: id}
		}
	}
	orphans := a.orphans
	for _, c := range orphans {
		if _, ok := set[c.ServiceID]; !ok {
			set[c.ServiceID] = &declared{id: c.ServiceID} // the file can forget it
		}
	}
	for id, d := range set {
		if d.service == nil && id != nodeEntry && len(d.checks) > 0 && (a.entries[id] == nil || a.entries[id].reg.Declared) {
			err = fmt.Errorf("declare: check %q: %w %q", d.checks[0].ID, ErrUnknownService, id)
		}
	}
	a.mu.Unlock()
	if err != nil {
		return err
	}
	changes := make([]*change, 0, len(set))
	for _, id := range slices.Sorted(maps.Keys(set)) {
		d := set[id]
		d.orphans = slices.DeleteFunc(slices.Clone(orphans), func(c model.CheckSpec) bool { return c.ServiceID != id })
		changes = append(changes, &change{id: id, edit: d.edit, touch: touch{file: true}})
	}
	if err := a.commit(changes...); err != nil {
		return fmt.Errorf("declare: %w", err)
	}
	a.mu.Lock()
	a.orphans = nil
	a.mu.Unlock()
	return ctx.Err()
}

// declared is what the files say about one service, or about the node.
type declared struct {
	id      model.ServiceID
	service *model.Registration
	checks  []model.CheckSpec // that come by themselves
	orphans []model.CheckSpec // that the file of registrations holds for this service
}

// declaration sorts what the files say by the service that it is about.
func (a *Agent) declaration(services []model.Registration, checks []model.CheckSpec) (map[model.ServiceID]*declared, error) {
	set := map[model.ServiceID]*declared{}
	for _, r := range services {
		r.Declared = true
		r = clone(r)
		for i := range r.Checks {
			r.Checks[i].Declared = true
		}
		r, err := a.acceptable(r)
		if err != nil {
			return nil, err
		}
		if set[r.Instance.ID] != nil {
			return nil, invalid("service %q is declared twice", r.Instance.ID)
		}
		set[r.Instance.ID] = &declared{id: r.Instance.ID, service: &r}
	}
	seen := map[model.CheckID]bool{}
	for _, c := range checks {
		c.Declared = true
		c, err := a.acceptableCheck(c)
		if err != nil {
			return nil, err
		}
		if seen[c.ID] {
			return nil, invalid("check %q is declared twice", c.ID)
		}
		seen[c.ID] = true
		d := set[c.ServiceID]
		if d == nil {
			d = &declared{id: c.ServiceID}
			set[c.ServiceID] = d
		}
		d.checks = append(d.checks, c)
	}
	return set, nil
}

// edit brings one registration in line with the files.
func (d *declared) edit(old *model.Registration) (*model.Registration, error) {
	next := model.Registration{}
	switch {
	case d.service != nil:
		next = clone(*d.service)
	case old == nil && len(d.checks) == 0:
		return nil, nil // removed meanwhile
	case old == nil && d.id != nodeEntry:
		return nil, fmt.Errorf("check %q: %w %q", d.checks[0].ID, ErrUnknownService, d.id)
	case old != nil && old.Declared:
		return nil, nil // the files had it, and do not any more
	case old != nil:
		next = clone(*old)
		next.Checks = slices.DeleteFunc(next.Checks, func(c model.CheckSpec) bool { return c.Declared })
	}
	next.Checks = append(others(next.Checks, d.checks), d.checks...)
	kept := d.orphans
	if old != nil {
		kept = append(slices.Clone(kept), old.Checks...)
	}
	kept = slices.DeleteFunc(slices.Clone(kept), func(c model.CheckSpec) bool { return c.Declared })
	next.Checks = append(next.Checks, others(kept, next.Checks)...)
	if old != nil && same(*old, next) {
		return old, nil
	}
	return &next, nil
}
