package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fairlead-net/fairlead/internal/cluster"
	"github.com/fairlead-net/fairlead/internal/identity"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/presence"
	"github.com/fairlead-net/fairlead/internal/registry"
	"github.com/fairlead-net/fairlead/internal/rpc"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/store"
	"github.com/fairlead-net/fairlead/internal/task"
)

// Names in the data directory.
const (
	badgeName     = "identity"
	serversFile   = "servers.json"
	catalogueFile = "catalogue"
)

const (
	// peerPort is where etcd's members speak with each other.
	peerPort = 2380
	// announceEvery is how often a server says where it is; noLeaderEvery as long as
	// there is no leader, which may be for want of just that, or it has no vote yet,
	// which the leader gives it when it hears that it has caught up.
	announceEvery, noLeaderEvery = 30 * time.Second, 500 * time.Millisecond
)

// codes are the errors that a node tells apart although they come from a server.
var codes = rpc.Codes{
	"invalid": model.ErrInvalid, "not-yours": rpc.ErrNotYours,
	"join-refused": registry.ErrJoinRefused, "node-revoked": registry.ErrRevokedNode, "node-name-taken": registry.ErrNodeNameTaken,
	"owner": registry.ErrOwner, "exists": registry.ErrExists, "in-use": registry.ErrInUse, "name-taken": registry.ErrNameTaken,
	"port-taken": registry.ErrPortTaken, "other-block": registry.ErrOtherBlock, "vnis-exhausted": registry.ErrVNIsExhausted, "conflict": registry.ErrConflict, "vips-exhausted": registry.ErrVIPsExhausted,
	"unknown-node": registry.ErrUnknownNode, "unknown-service": registry.ErrUnknownService, "unknown-network": registry.ErrUnknownNetwork,
	"unknown-endpoint": registry.ErrUnknownEndpoint, "no-leader": store.ErrNoLeader, "unknown-outcome": store.ErrUnknownOutcome,
	"no-space": store.ErrNoSpace, "restoring": store.ErrRestoring, "too-large": store.ErrTooLarge, "last-server": store.ErrLastServer,
	"unknown-server": store.ErrUnknownServer, "learner": store.ErrLearner, "quorum": store.ErrQuorum,
}

// peers is an agent's part in a site of several hosts; nil for one that is alone.
type peers struct {
	self   identity.Node
	peer   rpc.Peer // this server; without an ID on an agent
	badge  *identity.Badge
	dir    *rpc.Directory
	client *rpc.Client
	// The following are a server's.
	cluster  *cluster.Cluster
	server   *rpc.Server
	presence *presence.Presence
}

// clustered reports whether the agent is part of a site of several hosts.
func (c Config) clustered() bool { return c.ClusterAddr != "" }

// clusterAddr is where this node is for others.
func (c Config) clusterAddr() (netip.AddrPort, error) {
	list, err := rpc.ParsePeers(c.ClusterAddr)
	if err == nil && len(list) != 1 {
		err = errors.New("want one address")
	}
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("cluster-addr: %w", err)
	}
	return list[0], nil
}

func badgeDir(cfg Config) string { return filepath.Join(cfg.DataDir, badgeName) }

// ErrNotJoined says that this host is no node of a site yet.
var ErrNotJoined = errors.New("this host has joined no site: 'fairlead up' begins one, 'fairlead up --join TOKEN' joins one")

// openPeers reads this node's identity. It comes before what it is needed for.
func (a *Agent) openPeers() error {
	if !a.cfg.clustered() {
		return nil
	}
	badge, err := identity.OpenBadge(badgeDir(a.cfg), func(id string, _ time.Time) bool { return registry.Revoked(a.state.Snapshot(), id) })
	if errors.Is(err, identity.ErrNoBadge) {
		return ErrNotJoined
	}
	if err != nil {
		return err
	}
	p := &peers{badge: badge}
	a.peers = p
	p.self, _ = badge.Node()
	if p.self.ID != a.self.ID || p.self.Name != a.self.Name {
		return fmt.Errorf("this host joined as node %q: set --node-name to that, or remove %s to join anew", p.self.Name, badgeDir(a.cfg))
	}
	at, err := a.cfg.clusterAddr()
	if err != nil {
		return err
	}
	own := netip.AddrPort{}
	if p.self.Server {
		own = at
		p.peer = rpc.Peer{ID: p.self.ID, Name: p.self.Name, Addr: at}
		store.SetPeer(p.self.ID, at.Addr())
	}
	if p.dir, err = openDirectory(a.cfg, p.self.ID); err != nil {
		return err
	}
	p.client = rpc.NewClient(rpc.ClientConfig{Badge: badge, Directory: p.dir, Codes: codes, Self: own, Log: a.log})
	a.closers = append(a.closers, func() error { p.client.Close(); return nil })
	return nil
}

// openDirectory opens the list of servers; etcd hears of each.
func openDirectory(cfg Config, self string) (*rpc.Directory, error) {
	hints, err := rpc.ParsePeers(cfg.Servers)
	if err != nil {
		return nil, fmt.Errorf("servers: %w", err)
	}
	return rpc.OpenDirectory(filepath.Join(cfg.DataDir, serversFile), hints, func(p rpc.Peer) {
		if p.ID != self {
			store.SetPeer(p.ID, p.Addr.Addr())
		}
	})
}

// member is how the store is one of several; nil for a lone one.
func (p *peers) member(log *slog.Logger) *store.Cluster {
	if p == nil {
		return nil
	}
	return &store.Cluster{
		ID: p.self.ID, Listen: netip.AddrPortFrom(p.peer.Addr.Addr(), peerPort),
		CertFile: p.badge.File(identity.BadgeCert), KeyFile: p.badge.File(identity.BadgeKey), CAFile: p.badge.File(identity.BadgeRoots),
		Join: func(ctx context.Context) (map[string]string, error) {
			retry := task.Backoff{Min: 100 * time.Millisecond, Max: 5 * time.Second}
			for {
				members, err := p.client.AddServer(ctx, p.peer)
				if err != nil && ctx.Err() == nil {
					log.Warn("the servers do not take this one yet; a dead one has to be removed first", "error", err)
				}
				if err == nil || task.Sleep(ctx, retry.Next()) != nil {
					return members, err
				}
			}
		},
	}
}

// openServer makes what a server answers nodes with.
func (a *Agent) openServer(pools []netip.Prefix) error {
	p := a.peers
	if p == nil {
		return nil
	}
	if err := p.dir.Learn(p.peer); err != nil {
		return err
	}
	p.cluster = cluster.New(cluster.Config{
		Self: p.peer, Site: a.cfg.Site, Badge: p.badge, Directory: p.dir, Members: a.store, Registry: a.registry, State: a.state,
		VIPPools: [2]netip.Prefix{pools[0], pools[1]}, Log: a.log,
	})
	p.presence = presence.New(p.self.ID, a.registry, a.state, a.leads, a.log)
	p.server = rpc.NewServer(rpc.Config{
		Badge: p.badge, Listen: p.peer.Addr, Gate: p.cluster, Catalog: catalog{a.registry, a.state}, Feed: a.feed, Presence: p.presence, Codes: codes, Log: a.log,
		API: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { a.requests.ServeHTTP(w, r) }),
	})
	return nil
}

// catalog is the registry as other nodes write their own records to it.
type catalog struct {
	*registry.Registry
	st *state.State
}

// EndpointNode is whose an endpoint is.
func (c catalog) EndpointNode(id model.EndpointID) model.NodeName {
	if e, _ := c.st.Snapshot().Endpoint(id); e != nil {
		return e.Node
	}
	return ""
}

// Index is one that everything which was answered before has.
func (c catalog) Index() model.Index { return c.st.Snapshot().Index() }

// announce tells the other servers where this one is, for as long as it runs.
func (a *Agent) announce(ctx context.Context, ready func()) error {
	p := a.peers
	for {
		if err := p.client.Announce(ctx, p.peer, a.state.Snapshot().Index()); err != nil && ctx.Err() == nil {
			a.log.Debug("no other server hears where this one is", "error", err)
		}
		ready()
		wait := announceEvery
		if !a.store.HasLeader() || !a.votes() {
			wait = noLeaderEvery
		}
		if task.Sleep(ctx, wait) != nil {
			return nil
		}
	}
}

// storeName is what the store's batches are told apart by.
func (a *Agent) storeName() string {
	if a.peers == nil {
		return a.cfg.NodeName
	}
	return a.self.ID
}

// leaderAndServers are their names, as far as this node knows them.
func (a *Agent) leaderAndServers(st store.Status) (leader string, servers []string) {
	if a.peers == nil {
		return st.Leader, st.Peers
	}
	if a.follower != nil {
		at := a.follower.server()
		for _, p := range a.follower.servers() {
			servers = append(servers, string(p.Name))
			if p.Addr.String() == at {
				leader = string(p.Name)
			}
		}
		return leader, servers
	}
	for _, m := range a.peers.members(a.store) {
		servers = append(servers, m.Name)
		if m.Leader {
			leader = m.Name
		}
	}
	slices.Sort(servers)
	return leader, servers
}

// peerUnits are what a server starts before its store, which may wait for the
// others: they have to hear where this one is.
func (a *Agent) peerUnits() []task.Unit {
	if a.peers == nil {
		return nil
	}
	return []task.Unit{{Name: "nodes", Run: a.peers.server.Run}, {Name: "announce", Run: a.announce}}
}

// keepCluster keeps members and certificates; the first server of a site tells
// once how others join.
func (a *Agent) keepCluster(ctx context.Context, ready func()) error {
	if a.peers == nil || a.peers.cluster == nil {
		ready()
		return nil
	}
	if a.founded != nil {
		t, err := a.peers.cluster.Token(ctx, cluster.JoinTTL, 0, true)
		if err != nil {
			return fmt.Errorf("make a join token: %w", err)
		}
		a.founded(t.String())
	}
	return a.peers.cluster.Keep(ctx, ready)
}

// leads reports whether this server leads the others.
func (a *Agent) leads() bool {
	return slices.ContainsFunc(a.store.Members(), func(m store.Member) bool { return m.Self && m.Leader })
}

// votes reports whether this server is a voting member.
func (a *Agent) votes() bool {
	return slices.ContainsFunc(a.store.Members(), func(m store.Member) bool { return m.Self && !m.Learner })
}

// keepPresence judges nodes, and has this server's own node judged by the others:
// it holds a session with one of them as long as there is another.
func (a *Agent) keepPresence(ctx context.Context, ready func()) error {
	if a.peers == nil || a.peers.presence == nil {
		ready()
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	judges := make(chan struct{})
	g.Go(func() error {
		return a.peers.presence.Run(ctx, func() {
			close(judges)
			ready()
		})
	})
	g.Go(func() error {
		select {
		case <-judges:
			a.peers.presence.Own(ctx, a.peers.self)
		case <-ctx.Done():
		}
		for ctx.Err() == nil {
			a.session(ctx)
		}
		return nil
	})
	return g.Wait()
}

// session holds one until the servers are others or ctx ends.
func (a *Agent) session(ctx context.Context) {
	list, changed := a.peers.dir.Peers()
	others := slices.ContainsFunc(list, func(p rpc.Peer) bool { return p.ID != a.self.ID })
	held, end := context.WithCancel(ctx)
	var wg sync.WaitGroup
	if others {
		wg.Go(func() {
			a.peers.client.Session(held, func() string { return rpc.GoodbyeRestart }, func(bool) {})
		})
	}
	select {
	case <-ctx.Done():
	case <-changed:
	}
	end()
	wg.Wait()
}
