package consulapi_test

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/fairlead-net/fairlead/internal/model"
)

func (w *world) Amend(ctx context.Context, r model.Registration) (string, error) {
	old, _ := w.Service(r.Instance.ID)
	for _, c := range old.Checks {
		if !slices.ContainsFunc(r.Checks, func(n model.CheckSpec) bool { return n.ID == c.ID }) {
			r.Checks = append(r.Checks, c)
		}
	}
	return w.Register(ctx, r)
}

func (w *world) Service(id model.ServiceID) (model.Registration, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r, ok := w.regs[id]
	return r, ok
}

func (w *world) Check(id model.CheckID) (model.Check, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c, ok := w.checks[id]
	return c, ok
}

func (w *world) RegisterCheck(_ context.Context, s model.CheckSpec, token string) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		return "", w.fail
	}
	s.Token = token
	r := w.regs[s.ServiceID]
	if s.ServiceID != "" {
		r.Checks = slices.DeleteFunc(slices.Clone(r.Checks), func(o model.CheckSpec) bool { return o.ID == s.ID })
		r.Checks = append(r.Checks, s)
		w.regs[s.ServiceID] = r
	}
	w.putCheckLocked(model.Check{
		Node: "n1", ID: s.ID, Name: s.Name, Notes: s.Notes, Status: cmp.Or(s.Status, model.Critical), Type: s.Type(),
		ServiceID: s.ServiceID, ServiceName: r.Instance.Service, ServiceTags: r.Instance.Tags,
		Interval: positive(s.Interval), Timeout: positive(s.Timeout),
	})
	return w.warning, nil
}

func (w *world) DeregisterCheck(_ context.Context, id model.CheckID) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		return w.fail
	}
	if _, ok := w.checks[id]; !ok {
		return errors.New("no such check")
	}
	w.dropCheckLocked(id)
	return nil
}

func maintenanceID(id model.ServiceID) model.CheckID {
	if id == "" {
		return "_node_maintenance"
	}
	return model.CheckID("_service_maintenance:" + id)
}

func (w *world) EnterMaintenance(ctx context.Context, id model.ServiceID, reason, token string) error {
	_, err := w.RegisterCheck(ctx, model.CheckSpec{ID: maintenanceID(id), ServiceID: id, Name: "Maintenance", Notes: reason, Maintenance: true}, token)
	return err
}

func (w *world) LeaveMaintenance(ctx context.Context, id model.ServiceID) error {
	if _, on := w.Check(maintenanceID(id)); !on {
		return nil
	}
	return w.DeregisterCheck(ctx, maintenanceID(id))
}
