package local

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// RegisterCheck adds a check to the service that it names, or to the whole node,
// or replaces the check of that id there. The token is the secret that authorised
// it. Durability and the warning are as for Register; a check that was there
// keeps its state unless the new one says what to begin with. Errors are
// ErrInvalid, ErrScripts, ErrUnknownService and ErrFile.
func (a *Agent) RegisterCheck(ctx context.Context, c model.CheckSpec, token string) (warning string, err error) {
	c.Token = token
	c, err = a.acceptableCheck(c)
	if err != nil {
		return "", err
	}
	what := fmt.Sprintf("check %q", c.ID)
	err = a.commit(&change{id: c.ServiceID, edit: func(old *model.Registration) (*model.Registration, error) {
		return withCheck(old, c)
	}, touch: touch{renewed: true, only: c.ID}})
	if err != nil {
		return "", fmt.Errorf("register %s: %w", what, err)
	}
	if c.Status != "" {
		a.restart(c)
	}
	return a.awaitConfirmed(ctx, c.ServiceID, what), nil
}

// acceptableCheck returns a check in the form that it is kept in, if this node
// and the catalogue take it.
func (a *Agent) acceptableCheck(c model.CheckSpec) (model.CheckSpec, error) {
	c, err := normalizeCheck(c)
	if err != nil {
		return c, err
	}
	if err := a.mayRun(c); err != nil {
		return c, err
	}
	// The catalogue judges checks together with their service only.
	r, err := normalize(model.Registration{
		Instance: model.Instance{ID: "any", Service: "any"}, Checks: []model.CheckSpec{c},
	}, a.me)
	if err == nil {
		err = a.cat.Check(r.Instance, a.drafts(r))
	}
	if err != nil {
		return c, fmt.Errorf("register check %q: %w", c.ID, err)
	}
	return c, nil
}

// withCheck returns a registration with one check more, or another in its place;
// the node's needs not be there yet.
func withCheck(old *model.Registration, c model.CheckSpec) (*model.Registration, error) {
	if old == nil {
		if c.ServiceID != nodeEntry {
			return nil, fmt.Errorf("%w %q", ErrUnknownService, c.ServiceID)
		}
		old = &model.Registration{}
	}
	next := clone(*old)
	if i := slices.IndexFunc(next.Checks, func(o model.CheckSpec) bool { return o.ID == c.ID }); i >= 0 {
		next.Checks[i] = c
	} else {
		next.Checks = append(next.Checks, c)
	}
	return &next, nil
}

// restart puts a check that goes on into the state that its new definition says.
func (a *Agent) restart(c model.CheckSpec) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if now := a.checks[c.ID]; now != nil && now.status != c.Status && sameSpec(now.spec, c) {
		now.become(c.Status, now.output, time.Now())
		a.tell(c.ServiceID)
		a.look(now)
	}
}

// DeregisterCheck removes a check, wherever it came from. Durability is as for
// Deregister. Errors are ErrUnknownCheck and ErrFile.
func (a *Agent) DeregisterCheck(ctx context.Context, id model.CheckID) error {
	a.mu.Lock()
	c := a.checks[id]
	a.mu.Unlock()
	if c == nil {
		return fmt.Errorf("%w %q", ErrUnknownCheck, id)
	}
	err := a.commit(&change{id: c.spec.ServiceID, edit: func(old *model.Registration) (*model.Registration, error) {
		if old == nil {
			return nil, fmt.Errorf("%w %q", ErrUnknownCheck, id)
		}
		next := clone(*old)
		next.Checks = slices.DeleteFunc(next.Checks, func(o model.CheckSpec) bool { return o.ID == id })
		if len(next.Checks) == len(old.Checks) {
			return nil, fmt.Errorf("%w %q", ErrUnknownCheck, id)
		}
		return &next, nil
	}})
	if err != nil {
		return fmt.Errorf("deregister check: %w", err)
	}
	a.awaitCheckGone(ctx, id)
	return nil
}

// awaitCheckGone waits for the catalogue to have lost a check.
func (a *Agent) awaitCheckGone(ctx context.Context, id model.CheckID) {
	a.awaitLost(ctx, func(snap *state.Snapshot) (bool, <-chan struct{}) {
		shown, mark := snap.Check(a.me, id)
		return shown == nil || a.checks[id] != nil, mark.Changed
	})
}

// The checks of maintenance, with Consul's ids and words.
const (
	nodeMaintenance    = "_node_maintenance"
	serviceMaintenance = "_service_maintenance:" // and the service's id

	nodeMaintenanceName    = "Node Maintenance Mode"
	serviceMaintenanceName = "Service Maintenance Mode"
	noReason               = "Maintenance mode is enabled for this %s, but no reason was provided. This is a default message."
)

// EnterMaintenance takes a service, or with an empty id the whole node, out of
// what healthy instances are picked from, until LeaveMaintenance; restarts do not
// end it. One that is in maintenance stays so, with the reason it had. Errors are
// ErrUnknownService and ErrFile.
func (a *Agent) EnterMaintenance(ctx context.Context, id model.ServiceID, reason, token string) error {
	c := model.CheckSpec{
		ID: nodeMaintenance, Name: nodeMaintenanceName, Notes: reason,
		Maintenance: true, Status: model.Critical, Token: token,
	}
	subject := "node"
	if id != nodeEntry {
		c.ID, c.Name, c.ServiceID = model.CheckID(serviceMaintenance+id), serviceMaintenanceName, id
		subject = "service"
	}
	if reason == "" {
		c.Notes = fmt.Sprintf(noReason, subject)
	}
	err := a.commit(&change{id: id, edit: func(old *model.Registration) (*model.Registration, error) {
		if old != nil && slices.ContainsFunc(old.Checks, func(o model.CheckSpec) bool { return o.ID == c.ID }) {
			return old, nil
		}
		return withCheck(old, c)
	}})
	if err != nil {
		return fmt.Errorf("begin maintenance: %w", err)
	}
	a.awaitConfirmed(ctx, id, "")
	return nil
}

// LeaveMaintenance ends what EnterMaintenance began; where there was none it does
// nothing. Its error is ErrFile.
func (a *Agent) LeaveMaintenance(ctx context.Context, id model.ServiceID) error {
	check := model.CheckID(nodeMaintenance)
	if id != nodeEntry {
		check = model.CheckID(serviceMaintenance + id)
	}
	if _, on := a.Check(check); !on {
		return nil
	}
	return a.DeregisterCheck(ctx, check)
}
