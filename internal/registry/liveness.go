package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/fairlead-net/fairlead/internal/identity"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/store"
)

const (
	// attachSettings begin the names of the records of where each node's session is:
	// servers alone hold those.
	attachSettings = "attach/"
	// SuspectCheck is the check that is critical while a node has been cut off and
	// may come back: its instances are not picked then, and its sessions go on.
	SuspectCheck model.CheckID = "fairlead:suspect"
)

// Attachment says which server holds a node's session. Each session has an epoch of
// its own, so that a verdict on an earlier one cannot hit a later one.
type Attachment struct {
	Node   model.NodeName `json:"node"`
	ID     string         `json:"id"` // the node's
	Server string         `json:"server"`
	Epoch  uint64         `json:"epoch"`
	// Over says that a verdict was given: the node is dead, and this the epoch that
	// died.
	Over bool `json:"over,omitempty"`
}

// Attachments lists where nodes' sessions are, sorted by node.
func Attachments(snap *state.Snapshot) (list []Attachment) {
	for _, s := range snap.Settings() {
		if !strings.HasPrefix(s.Name, attachSettings) {
			continue
		}
		if a, ok := attachment(s); ok {
			list = append(list, a)
		}
	}
	return list
}

func attachment(s *model.Setting) (a Attachment, ok bool) {
	return a, s != nil && json.Unmarshal([]byte(s.Value), &a) == nil
}

// Attach records that a server holds a node's session from now on, and returns its
// epoch. The error is ErrNodeNameTaken while another node that lives has the name.
func (r *Registry) Attach(ctx context.Context, n identity.Node, server string) (epoch uint64, err error) {
	_, err = r.write(ctx, fmt.Sprintf("attach node %q", n.Name), func(snap *state.Snapshot, p *plan) {
		name := attachSettings + string(n.Name)
		cur, _ := snap.Setting(name)
		last, _ := attachment(cur)
		if p.refuse(r.nameFree(snap, p, n)); p.refusal != nil {
			p.read(store.SettingKey(name), cur)
			return
		}
		epoch = last.Epoch + 1
		p.note(cur, name, Attachment{Node: n.Name, ID: n.ID, Server: server, Epoch: epoch})
	})
	return epoch, err
}

// Alive says that an attached node lives: its check serfHealth passes, and nothing
// suspects it. The error is ErrUnknownNode as long as it has not registered itself;
// a session that is another's by now changes nothing.
func (r *Registry) Alive(ctx context.Context, node model.NodeName, epoch uint64) error {
	_, err := r.write(ctx, fmt.Sprintf("node %q lives", node), func(snap *state.Snapshot, p *plan) {
		if !p.attached(snap, node, epoch) {
			return
		}
		n, _ := snap.Node(node)
		p.read(store.NodeKey(node), n)
		if n == nil {
			p.refuse(fmt.Errorf("%w %q", ErrUnknownNode, node))
			return
		}
		p.health(snap, node, model.Passing, "Agent alive and reachable")
		suspect, _ := snap.Check(node, SuspectCheck)
		p.remove(store.CheckKey(node, SuspectCheck), suspect)
	})
	return err
}

// Suspect says that an attached node was cut off.
func (r *Registry) Suspect(ctx context.Context, node model.NodeName, epoch uint64) error {
	_, err := r.write(ctx, fmt.Sprintf("suspect node %q", node), func(snap *state.Snapshot, p *plan) {
		if !p.attached(snap, node, epoch) || !p.known(snap, node) {
			return
		}
		cur, _ := snap.Check(node, SuspectCheck)
		p.replace(store.CheckKey(node, SuspectCheck), cur, &model.Check{
			Node: node, ID: SuspectCheck, Name: "Connection to the servers", Status: model.Critical,
			Output: "Its agent's connection was cut off", Stamp: model.Stamp{Owner: model.OwnerServers},
		})
	})
	return err
}

// Dead says that an attached node is: its check serfHealth is critical, and its
// sessions end by that.
func (r *Registry) Dead(ctx context.Context, node model.NodeName, epoch uint64, why string) error {
	_, err := r.write(ctx, fmt.Sprintf("node %q is dead", node), func(snap *state.Snapshot, p *plan) {
		if !p.attached(snap, node, epoch) {
			return
		}
		name := attachSettings + string(node)
		cur, _ := snap.Setting(name)
		a, _ := attachment(cur)
		a.Over = true
		p.note(cur, name, a)
		if !p.known(snap, node) {
			return
		}
		p.health(snap, node, model.Critical, why)
		suspect, _ := snap.Check(node, SuspectCheck)
		p.remove(store.CheckKey(node, SuspectCheck), suspect)
	})
	return err
}

// attached makes the plan depend on a node's session; it is false if that is not
// the session any more.
func (p *plan) attached(snap *state.Snapshot, node model.NodeName, epoch uint64) bool {
	name := attachSettings + string(node)
	cur, _ := snap.Setting(name)
	p.read(store.SettingKey(name), cur)
	a, ok := attachment(cur)
	return ok && a.Epoch == epoch && !a.Over
}

// known makes the plan depend on a node; it is false if there is none.
func (p *plan) known(snap *state.Snapshot, node model.NodeName) bool {
	n, _ := snap.Node(node)
	p.read(store.NodeKey(node), n)
	return n != nil
}

// health puts a node's check serfHealth.
func (p *plan) health(snap *state.Snapshot, node model.NodeName, status model.Status, output string) {
	cur, _ := snap.Check(node, model.SerfHealth)
	p.replace(store.CheckKey(node, model.SerfHealth), cur, &model.Check{
		Node: node, ID: model.SerfHealth, Name: "Serf Health Status", Status: status, Output: output,
		Stamp: model.Stamp{Owner: model.OwnerServers},
	})
}

// KeepMark puts the mark of a server, which goes by itself when the server does not
// renew the lease.
func (r *Registry) KeepMark(ctx context.Context, server string, lease int64) (model.Index, error) {
	return r.commit.PutAlive(ctx, serverMark+server, lease)
}

// serverMark begins the names of servers' marks among those of sessions.
const serverMark = "server:"

// ServerAlive reports whether a server has its mark.
func ServerAlive(snap *state.Snapshot, server string) bool {
	mark, _ := snap.Alive(serverMark + server)
	return mark != nil
}

// Leases are those of the store.
func (r *Registry) Leases() Leaser { return r.commit }
