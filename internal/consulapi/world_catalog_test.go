package consulapi_test

import (
	"context"
	"errors"
	"time"

	"github.com/fairlead-net/fairlead/internal/consulapi"
	"github.com/fairlead-net/fairlead/internal/identity"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

func (w *world) RegisterExternal(_ context.Context, reg model.ExternalRegistration) (model.Index, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		return 0, w.fail
	}
	name := reg.Node.Name
	if cur, _ := w.st.Snapshot().Node(name); cur == nil || !reg.SkipNodeUpdate {
		n := reg.Node
		w.putLocked("node/"+string(name), state.Change{Node: &n})
	}
	if reg.Service != nil {
		i := *reg.Service
		i.Node = name
		w.putLocked("i/"+string(name)+string(i.ID), state.Change{Instance: &i})
	}
	for _, c := range reg.Checks {
		if reg.Service != nil && c.ServiceID == reg.Service.ID {
			c.ServiceName, c.ServiceTags = reg.Service.Service, reg.Service.Tags
		}
		w.putLocked("c/"+string(name)+string(c.ID), state.Change{Check: &c})
	}
	return w.rev, nil
}

func (w *world) DeregisterNode(_ context.Context, n model.NodeName) (model.Index, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		return 0, w.fail
	}
	snap := w.st.Snapshot()
	instances, _ := snap.NodeInstances(n)
	for _, i := range instances {
		w.putLocked("i/"+string(n)+string(i.ID), state.Change{Delete: true, Instance: i})
	}
	checks, _ := snap.NodeChecks(n)
	for _, c := range checks {
		w.putLocked("c/"+string(n)+string(c.ID), state.Change{Delete: true, Check: c})
	}
	return w.putLocked("node/"+string(n), state.Change{Delete: true, Node: &model.Node{Name: n}}), nil
}

// deregisterInstance is the catalogue's Deregister; the world's own is the agent's.
func (w *world) deregisterInstance(n model.NodeName, id model.ServiceID) (model.Index, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		return 0, w.fail
	}
	for _, c := range w.st.Snapshot().InstanceChecks(n, id) {
		w.putLocked("c/"+string(n)+string(c.ID), state.Change{Delete: true, Check: c})
	}
	return w.putLocked("i/"+string(n)+string(id), state.Change{Delete: true, Instance: &model.Instance{Node: n, ID: id}}), nil
}

func (w *world) DeleteCheck(_ context.Context, n model.NodeName, id model.CheckID) (model.Index, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.putLocked("c/"+string(n)+string(id), state.Change{Delete: true, Check: &model.Check{Node: n, ID: id}}), w.fail
}

// catalogue is the world to those who are no agent.
type catalogue struct{ *world }

func (c catalogue) Deregister(_ context.Context, n model.NodeName, id model.ServiceID) (model.Index, error) {
	return c.deregisterInstance(n, id)
}

func (w *world) PutSetting(_ context.Context, name, value string, cas *model.Index) (bool, model.Index, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		return false, 0, w.fail
	}
	cur, _ := w.st.Snapshot().Setting(name)
	if cas != nil && (cur == nil && *cas != 0 || cur != nil && cur.ModifyIndex != *cas) {
		return false, w.rev, nil
	}
	return true, w.putLocked("setting/"+name, state.Change{Setting: &model.Setting{Name: name, Value: value}}), nil
}

func (w *world) Servers() []consulapi.Server {
	w.mu.Lock()
	defer w.mu.Unlock()
	servers := []consulapi.Server{{
		ID: w.node.ID, Node: "n1", Address: "10.0.0.1:8300", Leader: w.leader != "", Voter: true, Term: 2, Index: 100,
		StableSince: time.Date(2030, 1, 2, 3, 4, 5, 6, time.UTC),
	}}
	for _, id := range w.others {
		servers = append(servers, consulapi.Server{ID: id, Address: "10.0.0.9:8300", Voter: true, LastContact: time.Minute, Term: 2, Index: 90})
	}
	return servers
}

func (w *world) RemoveServer(_ context.Context, id string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.others) == 0 {
		return errors.New("the last server cannot be removed")
	}
	w.others = nil
	return nil
}

func (w *world) TransferLeader(context.Context, string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.others) == 0 {
		return errors.New("cannot find peer")
	}
	return nil
}

// Leaf is one that does not change; it comes with the root.
func (w *world) Leaf(_ context.Context, service string, _ model.Index, _ time.Duration) (*identity.Leaf, error) {
	if roots, _ := w.st.Snapshot().CARoots(); len(roots) == 0 {
		return nil, identity.ErrNoRoot
	}
	return &identity.Leaf{
		Serial: "0a:0b", Cert: "CERT\n", Key: "KEY\n", URI: identity.ServiceURI("x.consul", "dc1", service).String(),
		ValidAfter: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), ValidBefore: time.Date(2030, 1, 4, 0, 0, 0, 0, time.UTC), Index: 7,
	}, nil
}

// seedRootsLocked puts two roots, one of them rotated out.
func (w *world) seedRootsLocked() {
	for _, r := range []model.CARoot{
		{ID: "aa:bb", Name: "Fairlead CA Root Cert", Serial: 1, TrustDomain: "x.consul", RootCert: "OLD\n", RotatedOut: time.Unix(1, 0)},
		{ID: "cc:dd", Name: "Fairlead CA Root Cert", Serial: 2, TrustDomain: "x.consul", RootCert: "NEW\n", Active: true, Intermediates: []string{"CROSS\n"}},
	} {
		w.putLocked("root/"+r.ID, state.Change{CARoot: &r})
	}
}
