package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/fairlead-net/fairlead/internal/consulapi"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/store"
)

// leaderPort is the port that Consul's servers name in their addresses. Clients
// show it and do not connect to it.
const leaderPort = "8300"

// cluster tells the Consul API of the servers.
type cluster struct {
	store *store.Store
	node  model.Node
	addr  string
	began time.Time
	stale func() time.Duration
}

// LastContact is how long the servers have had no leader.
func (c cluster) LastContact() time.Duration { return c.stale() }

func (c cluster) Leader() string {
	if !c.store.HasLeader() {
		return ""
	}
	return c.addr
}

func (c cluster) Peers() []string { return []string{c.addr} }

func (c cluster) ReadIndex(ctx context.Context) (model.Index, error) { return c.store.ReadIndex(ctx) }

// Servers implements consulapi.Servers: this one, as long as there is no other.
func (c cluster) Servers() []consulapi.Server {
	st := c.store.Status()
	return []consulapi.Server{{
		ID: c.node.ID, Node: c.node.Name, Address: c.addr, Leader: st.Leader != "", Voter: true,
		Term: st.Term, Index: st.Index, StableSince: c.began,
	}}
}

var errOneServer = errors.New("this site has one server")

// RemoveServer refuses: the last server cannot go.
func (c cluster) RemoveServer(context.Context, string) error {
	return fmt.Errorf("%w: it cannot be removed", errOneServer)
}

// TransferLeader refuses: there is nobody to lead instead.
func (c cluster) TransferLeader(context.Context, string) error {
	return fmt.Errorf("%w: no other can lead", errOneServer)
}
