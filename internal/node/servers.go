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

// serverList tells the Consul API of the servers.
type serverList struct {
	a     *Agent
	addr  string // this server's
	began time.Time
}

// LastContact is how long the servers have had no leader.
func (l serverList) LastContact() time.Duration { return l.a.staleFor() }

func (l serverList) Leader() string {
	if f := l.a.follower; f != nil {
		return f.server()
	}
	if !l.a.store.HasLeader() {
		return ""
	}
	if l.a.peers == nil {
		return l.addr
	}
	for _, s := range l.Servers() {
		if s.Leader {
			return s.Address
		}
	}
	return ""
}

func (l serverList) Peers() []string {
	var all []string
	for _, s := range l.Servers() {
		all = append(all, s.Address)
	}
	return all
}

func (l serverList) ReadIndex(ctx context.Context) (model.Index, error) {
	if l.a.follower != nil {
		return 0, store.ErrNoLeader // servers alone can tell, and are asked instead
	}
	return l.a.store.ReadIndex(ctx)
}

// Servers are all of them, sorted by ID, those that do not vote included.
func (l serverList) Servers() []consulapi.Server {
	if f := l.a.follower; f != nil {
		return f.list()
	}
	st := l.a.store.Status()
	if l.a.peers == nil {
		return []consulapi.Server{{
			ID: l.a.self.ID, Node: l.a.self.Name, Address: l.addr, Leader: st.Leader != "", Voter: true,
			Term: st.Term, Index: st.Index, StableSince: l.began,
		}}
	}
	var all []consulapi.Server
	for _, m := range l.a.peers.members(l.a.store) {
		s := consulapi.Server{
			ID: m.ID, Node: model.NodeName(m.Name), Address: m.Addr, Leader: m.Leader, Voter: m.Voter, Term: st.Term, StableSince: l.began,
		}
		if m.ID == l.a.self.ID {
			s.Index = st.Index
		}
		all = append(all, s)
	}
	return all
}

var errOneServer = errors.New("this site has one server")

// RemoveServer takes a server's vote away.
func (l serverList) RemoveServer(ctx context.Context, id string) error {
	if l.a.peers == nil {
		return fmt.Errorf("%w: it cannot be removed", errOneServer)
	}
	return l.a.peers.remove(ctx, l.a.store, id)
}

// TransferLeader makes another server the leader; any other that votes if id is
// empty.
func (l serverList) TransferLeader(ctx context.Context, id string) error {
	if l.a.peers == nil {
		return fmt.Errorf("%w: no other can lead", errOneServer)
	}
	for _, m := range l.a.store.Members() {
		if id == "" && !m.Learner && !m.Leader {
			id = m.ID
		}
	}
	if id == "" {
		return fmt.Errorf("%w: no other can lead", store.ErrQuorum)
	}
	return l.a.store.TransferLeader(ctx, id)
}
