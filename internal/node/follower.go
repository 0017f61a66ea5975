package node

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairlead-net/fairlead/internal/cluster"
	"github.com/fairlead-net/fairlead/internal/consulapi"
	"github.com/fairlead-net/fairlead/internal/endpoint"
	"github.com/fairlead-net/fairlead/internal/local"
	"github.com/fairlead-net/fairlead/internal/mirror"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/registry"
	"github.com/fairlead-net/fairlead/internal/rpc"
	"github.com/fairlead-net/fairlead/internal/store"
	"github.com/fairlead-net/fairlead/internal/task"
)

// follower is what an agent that is no server knows the registry by.
type follower struct {
	mirror *mirror.Mirror
	peers  *peers
}

// catalogue is where a node writes what it owns.
type catalogue interface {
	local.Catalog
	endpoint.Registry
}

// remoteCatalogue is the servers'. What nobody would take is found out here.
type remoteCatalogue struct {
	*rpc.Remote
	rules *registry.Registry
}

// Check says what is wrong with an instance and its checks.
func (c remoteCatalogue) Check(i model.Instance, checks []model.Check) error {
	return c.rules.Check(i, checks)
}

// noStore takes no writes: those of an agent go to the servers.
type noStore struct{}

func (noStore) Commit(context.Context, store.Txn) (store.Result, error) {
	return store.Result{}, store.ErrNoLeader
}

func (noStore) GrantLease(context.Context, time.Duration) (int64, error) {
	return 0, store.ErrNoLeader
}

func (noStore) PutAlive(context.Context, string, int64) (model.Index, error) {
	return 0, store.ErrNoLeader
}
func (noStore) RenewLease(context.Context, int64) error  { return store.ErrNoLeader }
func (noStore) RevokeLease(context.Context, int64) error { return store.ErrNoLeader }

// serves reports whether this agent is a server, or alone.
func (a *Agent) serves() bool { return a.peers == nil || a.peers.self.Server }

var errAgentACL = errors.New("acl: an agent that is no server cannot ask for tokens yet, and its API would be open: make this host a server with --server")

// openFollower makes what an agent that is no server has instead of a store.
func (a *Agent) openFollower(cfg registry.Config) error {
	p := a.peers
	if a.cfg.ACL {
		return errAgentACL
	}
	a.follower = &follower{peers: p, mirror: mirror.New(mirror.Config{
		Feed: p.client.Feed, State: a.state, File: filepath.Join(a.cfg.DataDir, catalogueFile), Log: a.log,
	})}
	a.registry = registry.New(noStore{}, a.state, cfg)
	shown := func(ctx context.Context, at model.Index) error {
		_, err := a.state.Wait(ctx, at)
		return err
	}
	a.own = remoteCatalogue{rpc.NewRemote(p.client, shown), a.registry}
	return nil
}

// followerUnits are those of an agent that is no server.
func (a *Agent) followerUnits() []task.Unit {
	p := a.peers
	renewer := cluster.Renewer{Badge: p.badge, Client: p.client, State: a.state, Log: a.log}
	return []task.Unit{
		{Name: "servers", Run: a.learn},
		{Name: "mirror", Run: a.follower.mirror.Run},
		{Name: "local", Run: a.local.Run},
		{Name: "certificate", Run: renewer.Keep},
		{Name: "session", Run: func(ctx context.Context, ready func()) error {
			ready()
			p.client.Session(ctx, a.goodbye, func(bool) {})
			return nil
		}},
	}
}

// goodbye is what the servers hear when this agent ends.
func (a *Agent) goodbye() string {
	if a.left.Load() {
		return rpc.GoodbyeLeave
	}
	return rpc.GoodbyeRestart
}

// learn keeps the list of servers.
func (a *Agent) learn(ctx context.Context, ready func()) error {
	ready()
	for {
		wait := announceEvery
		if err := a.peers.client.Announce(ctx, rpc.Peer{}, a.state.Snapshot().Index()); err != nil {
			wait = announceEvery / 10
		}
		if task.Sleep(ctx, task.Jitter(wait)) != nil {
			return nil
		}
	}
}

// server is the address of the one whose feed is read; empty while none is.
func (f *follower) server() string {
	at, ok := f.peers.client.Server()
	if !ok || !f.mirror.Connected() {
		return ""
	}
	return at.String()
}

// servers are those that this agent knows.
func (f *follower) servers() []rpc.Peer {
	list, _ := f.peers.dir.Peers()
	return list
}

// list is the servers as the Consul API shows them.
func (f *follower) list() []consulapi.Server {
	var all []consulapi.Server
	for _, p := range f.servers() {
		all = append(all, consulapi.Server{ID: p.ID, Node: p.Name, Address: p.Addr.String(), Voter: true})
	}
	return all
}

// storeStatus is that of the store; of an agent without one the server that it
// hears counts as the leader.
func (a *Agent) storeStatus() store.Status {
	if a.follower != nil {
		return store.Status{Leader: a.follower.server()}
	}
	return a.store.Status()
}

// leaderless is why the registry cannot be written while there is no leader.
func (a *Agent) leaderless() string {
	if a.follower != nil {
		return "no server can be reached"
	}
	return "the registry has no leader"
}

// metrics are those of an agent that is no server.
func (f *follower) metrics() []prometheus.Collector {
	return []prometheus.Collector{
		gauge("mirror_connected", "1 while a server's change feed is read.", func() float64 {
			if f.mirror.Connected() {
				return 1
			}
			return 0
		}),
		gauge("mirror_last_contact_seconds", "How long ago a server was heard of, while none is.", func() float64 {
			return f.mirror.LastContact().Seconds()
		}),
	}
}
