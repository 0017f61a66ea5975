package registry

import (
	"context"
	"fmt"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/store"
	"github.com/fairlead-net/fairlead/internal/task"
)

// serverPort is the port that Consul's servers have in the catalogue. Clients
// show it and do not connect to it.
const serverPort = 8300

// KeepServer puts what the servers say of a server's node into the catalogue: the
// node, its check serfHealth and the service "consul", with metadata. It calls
// ready once they are there, and puts back whatever others remove, until ctx
// ends. Its error is that of the first time.
func (r *Registry) KeepServer(ctx context.Context, n model.Node, meta map[string]string, ready func()) error {
	n.Owner = model.NodeOwner(n.Name)
	if _, err := r.RegisterNode(ctx, n); err != nil {
		return fmt.Errorf("register this node: %w", err)
	}
	if err := r.assertServer(ctx, n, meta); err != nil {
		return err
	}
	ready()
	// The least wait also keeps somebody who removes it again and again from
	// costing more than a write a second.
	retry := task.Backoff{Min: time.Second, Max: 30 * time.Second}
	for ctx.Err() == nil {
		snap := r.st.Snapshot()
		node, nm := snap.Node(n.Name)
		alive, am := snap.Check(n.Name, model.SerfHealth)
		inst, im := snap.Instance(n.Name, model.ServiceID(model.ConsulService))
		registered := node != nil && node.Owner == n.Owner
		healthy := alive != nil && alive.Owner == model.OwnerServers && alive.Status == model.Passing
		if registered && healthy && inst != nil && inst.Owner == model.OwnerServers {
			retry.Reset()
			select {
			case <-ctx.Done():
			case <-nm.Changed:
			case <-am.Changed:
			case <-im.Changed:
			}
			continue
		}
		if err := r.restoreServer(ctx, n, !registered, meta); err != nil && ctx.Err() == nil {
			r.log.Warn("put back what the servers say of this node", "node", n.Name, "error", err)
		}
		if task.Sleep(ctx, retry.Next()) != nil {
			return nil
		}
	}
	return nil
}

func (r *Registry) restoreServer(ctx context.Context, n model.Node, node bool, meta map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if node {
		// A node registered by hand in the place of this one is not alive because
		// somebody says so.
		if err := r.dropHearsay(ctx, n.Name); err != nil {
			return err
		}
		if _, err := r.RegisterNode(ctx, n); err != nil {
			return err
		}
	}
	return r.assertServer(ctx, n, meta)
}

// dropHearsay removes what others than the servers say of a node's health.
func (r *Registry) dropHearsay(ctx context.Context, n model.NodeName) error {
	if alive, _ := r.st.Snapshot().Check(n, model.SerfHealth); alive == nil || alive.Owner == model.OwnerServers {
		return nil
	}
	_, err := r.DeleteCheck(ctx, n, model.SerfHealth)
	return err
}

func (r *Registry) assertServer(ctx context.Context, n model.Node, meta map[string]string) error {
	if err := r.dropHearsay(ctx, n.Name); err != nil {
		return fmt.Errorf("record this node's health: %w", err)
	}
	if _, err := r.PutCheck(ctx, model.Check{
		Node: n.Name, ID: model.SerfHealth, Name: "Serf Health Status", Status: model.Passing,
		Output: "Agent alive and reachable", Stamp: model.Stamp{Owner: model.OwnerServers},
	}); err != nil {
		return fmt.Errorf("record this node's health: %w", err)
	}
	if _, err := r.PutServerService(ctx, n.Name, meta); err != nil {
		return fmt.Errorf("record this server: %w", err)
	}
	return nil
}

// PutServerService puts the service "consul" onto a server's node, or changes it;
// it takes the place of what others registered under its id. The node must be
// registered (ErrUnknownNode). It has no VIP: nobody connects to it.
func (r *Registry) PutServerService(ctx context.Context, n model.NodeName, meta map[string]string) (model.Index, error) {
	inst := model.Instance{
		Node: n, ID: model.ServiceID(model.ConsulService), Service: model.ConsulService, Port: serverPort, Meta: meta,
		Weights: model.DefaultWeights, Stamp: model.Stamp{Owner: model.OwnerServers},
	}
	return r.write(ctx, fmt.Sprintf("put the service %q of server %q", inst.ID, n), func(snap *state.Snapshot, p *plan) {
		node, _ := snap.Node(n)
		p.read(store.NodeKey(n), node)
		if node == nil {
			p.refuse(fmt.Errorf("%w %q; register the node first", ErrUnknownNode, n))
			return
		}
		cur, _ := snap.Instance(n, inst.ID)
		p.replace(store.InstanceKey(n, inst.ID), cur, &inst)
	})
}
