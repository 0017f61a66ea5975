// Package node assembles an agent: it reads the configuration, makes the boxes,
// wires them and runs them in order. It holds no logic of its own beyond what is
// needed to fit one box to the next; nothing imports it but commands and tests.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairlead-net/fairlead/api"
	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/consulapi"
	"github.com/fairlead-net/fairlead/internal/dns"
	"github.com/fairlead-net/fairlead/internal/event"
	"github.com/fairlead-net/fairlead/internal/feed"
	"github.com/fairlead-net/fairlead/internal/identity"
	"github.com/fairlead-net/fairlead/internal/local"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/parking"
	"github.com/fairlead-net/fairlead/internal/registry"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/store"
	"github.com/fairlead-net/fairlead/internal/task"
)

// Agent is one agent, assembled.
type Agent struct {
	cfg     Config
	version string
	log     *slog.Logger
	logs    *consulapi.Logs
	leave   context.CancelFunc // ends Run
	self    model.Node

	state *state.State
	// store, and feed in a site of several hosts, are a server's; follower is that
	// of an agent which is none.
	store    *store.Store
	feed     *feed.Feed
	follower *follower
	registry *registry.Registry
	own      catalogue // where this node's own records are written
	local    *local.Agent
	tokens   *acl.Resolver // nil without ACLs
	events   *event.Log
	leaves   *identity.Leaves
	dns      *dns.Server
	plane    *plane // nil with RegistryOnly
	peers    *peers // nil for a host that is alone
	metrics  *prometheus.Registry
	certs    *certificates // nil without https-addr
	// reloading is held while files are read again.
	reloading sync.Mutex
	ready     atomic.Bool
	left      atomic.Bool // it was told to leave, not only to stop
	led       sighting    // of a leader of the servers
	closers   []func() error
	founded   func(token string) // may be nil
	// requests answers HTTP, that of other nodes included.
	requests http.Handler
	guard    *consulapi.Guard
	lot      *parking.Lot
}

// Run runs an agent until ctx ends. The data path and the workloads outlive it.
//
// What Check finds wrong ends it before anything of the machine was changed.
func Run(ctx context.Context, cfg Config, version string, log *slog.Logger) error {
	return run(ctx, cfg, version, log, nil)
}

// run is Run; founded is called with a join token once the agent, which is the
// first of a site, is ready.
func run(ctx context.Context, cfg Config, version string, log *slog.Logger, founded func(token string)) (err error) {
	if err := Check(cfg); err != nil {
		return err
	}
	if cfg, err = cfg.ofSite(); err != nil {
		return err
	}
	// Below this line the machine is changed.
	lock, err := lockRunDir(cfg.RunDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.release()) }()
	if err := cfg.addrsFree(); err != nil {
		return err
	}
	if !cfg.Dev {
		if err := store.Free(cfg.DataDir); err != nil {
			return err
		}
	}
	logs := consulapi.NewLogs(log.Handler())
	log = slog.New(logs)
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	a := &Agent{cfg: cfg, version: version, log: log, logs: logs, leave: leave, state: state.New(), led: sighting{since: time.Now()}, founded: founded}
	defer func() { err = errors.Join(err, a.close()) }()
	if err := a.assemble(); err != nil {
		return err
	}
	log.Info("agent starts", "node", a.self.Name, "site", cfg.Site, "version", version, "http", cfg.HTTPAddr, "dns", cfg.DNSAddr)
	return task.Run(ctx, a.units()...)
}

// assemble makes every box; none of them starts.
func (a *Agent) assemble() error {
	id, err := nodeID(identityDir(a.cfg))
	if err != nil {
		return err
	}
	a.self = model.Node{
		ID: id, Name: model.NodeName(a.cfg.NodeName), Address: a.cfg.Advertise, Datacenter: a.cfg.Site,
		TaggedAddresses: map[string]string{"lan": a.cfg.Advertise, "wan": a.cfg.Advertise},
		Meta:            map[string]string{"consul-network-segment": "", "fairlead-version": a.version},
	}
	meta, err := a.cfg.nodeMeta()
	if err != nil {
		return err // Load has checked it
	}
	maps.Copy(a.self.Meta, meta)
	if err := a.openPeers(); err != nil {
		return err
	}
	pools, err := a.cfg.vipPools()
	if err != nil {
		return err
	}
	temporary := ""
	if a.cfg.Dev {
		if temporary, err = makeTemporary(a.cfg.RunDir); err != nil {
			return err
		}
		a.closers = append(a.closers, func() error { return removeTemporary(a.cfg.RunDir) })
	}
	if err := a.openRegistry(pools, temporary); err != nil {
		return err
	}
	if a.local, err = local.Open(local.Config{Dir: a.dataDir(), Node: a.self, Scripts: a.cfg.ScriptChecks, Log: a.log}, a.own, a.state); err != nil {
		return err
	}
	if err := a.declare(context.Background()); err != nil {
		return err
	}
	a.events = event.New(a.self.Name, a.local.Services)
	if a.cfg.ACL {
		a.tokens = acl.NewResolver(acl.Config{
			Source: func() acl.Source { return a.state.Snapshot().ACLs() }, Datacenter: a.cfg.Site, DefaultAllow: a.cfg.ACLDefaultPolicy == "allow",
			DefaultToken: a.cfg.ACLDefaultToken, AgentToken: a.cfg.ACLAgentToken, DNSToken: a.cfg.ACLDNSToken,
		})
	}
	if err := a.openDNS(); err != nil {
		return err
	}
	a.leaves = identity.NewLeaves(a.registry.CA(), a.cfg.Site)
	if !a.cfg.RegistryOnly {
		if err := a.openPlane(pools); err != nil {
			return err
		}
	}
	if a.certs, err = openCertificates(a.cfg); err != nil {
		return err
	}
	a.openHTTP()
	if err := a.openMetrics(); err != nil {
		return err
	}
	a.requests = a.handler()
	return nil
}

// openRegistry makes what reads and writes the registry: a store of its own on a
// server, a copy of the servers' on any other agent.
func (a *Agent) openRegistry(pools []netip.Prefix, temporary string) error {
	cfg := registry.Config{Node: a.self.Name, VIPPool4: pools[0], VIPPool6: pools[1], SessionTTLMin: a.cfg.SessionTTLMin, Log: a.log}
	if !a.serves() {
		return a.openFollower(cfg)
	}
	if !a.cfg.Dev {
		cfg.ACLResetFile = filepath.Join(a.cfg.DataDir, "acl-bootstrap-reset")
	}
	var writes store.Applier = a.state
	if a.peers != nil {
		a.feed = feed.New(a.state, a.cfg.Site, a.log)
		writes = a.feed
	}
	a.store = store.New(store.Config{
		Dir: a.dataDir(), Temp: temporary, Name: a.storeName(), Site: a.cfg.Site, Version: a.version, VIPPools: pools,
		Cluster: a.peers.member(a.log), Log: a.log,
	}, writes)
	a.registry = registry.New(a.store, a.state, cfg)
	a.own = a.registry
	return a.openServer(pools)
}

// openHTTP makes what is in front of the API: the limits of its clients, and the
// place for connections that wait.
func (a *Agent) openHTTP() {
	a.guard = consulapi.NewGuard(consulapi.Limits{ConnsPerClient: a.cfg.HTTPMaxConns, RatePerClient: float64(a.cfg.HTTPRateLimit), Log: a.log})
	a.lot = parking.New(parking.Config{
		Idle: consulapi.KeepAlive, Stall: consulapi.DefaultStall, Grace: shutdownGrace, Left: a.guard.Left, Log: a.log,
	})
}

// staleFor is how long the servers have had no leader; 0 while they have one.
func (a *Agent) staleFor() time.Duration {
	if a.follower != nil {
		return a.follower.mirror.LastContact()
	}
	if a.store.HasLeader() {
		a.led.seen()
		return 0
	}
	return a.led.ago()
}

// openDNS makes the DNS server.
func (a *Agent) openDNS() error {
	recursors, err := a.cfg.recursors()
	if err != nil {
		return err // Load has checked it
	}
	ttls, err := a.cfg.serviceTTLs()
	if err != nil {
		return err
	}
	cfg := dns.Config{
		Addr: a.cfg.DNSAddr, Domain: a.cfg.Domain, AltDomain: a.cfg.AltDomain, Node: a.self.Name, Site: a.cfg.Site,
		Recursors: recursors, ResolvConf: a.cfg.ResolvConf, NodeTTL: a.cfg.DNSNodeTTL, NegativeTTL: a.cfg.DNSNegativeTTL,
		ServiceTTL: ttls, OnlyPassing: a.cfg.DNSOnlyPassing, UDPAnswerLimit: a.cfg.DNSUDPAnswerLimit,
		ARecordLimit: a.cfg.DNSARecordLimit, MaxStale: a.cfg.DNSMaxStale, StaleFor: a.staleFor, Log: a.log,
	}
	if a.tokens != nil {
		cfg.Authorizer, cfg.Resolve = a.tokens.DNS, a.tokens.Resolve
	}
	a.dns = dns.New(cfg, a.state)
	return nil
}

// units is the order of the start: first what knows, then what acts on it, last
// what lets others in. They stop in reverse.
func (a *Agent) units() []task.Unit {
	var units []task.Unit
	if a.follower != nil {
		units = a.followerUnits()
	} else {
		units = a.serverUnits()
	}
	units = append(units, task.Unit{Name: "hangups", Run: a.hangups}, task.Unit{Name: "memory", Run: a.giveBack})
	dns, http := task.Unit{Name: "dns", Run: a.dns.Run}, task.Unit{Name: "http", Run: a.serve}
	if a.plane == nil {
		return append(units, dns, http)
	}
	return append(units,
		task.Unit{Name: "network", Run: a.plane.net.Run},
		dns,
		// Endpoints listen on the resolver; the balancer picks by their scopes.
		task.Unit{Name: "endpoints", Run: a.plane.endpoints.Run},
		task.Unit{Name: "workloads", Run: a.plane.workloads.Run},
		task.Unit{Name: "balancer", Run: a.plane.balancer.Run},
		task.Unit{Name: "activate", Run: a.plane.activate},
		http,
	)
}

// serverUnits are those of an agent with a store of its own.
func (a *Agent) serverUnits() []task.Unit {
	return append(a.peerUnits(), []task.Unit{
		{Name: "store", Run: a.store.Run},
		// The server's own records come before the node's, since instances need
		// their node and callers its health.
		{Name: "presence", Run: a.presence},
		{Name: "local", Run: a.local.Run},
		// Sessions may end once their nodes' and checks' health is known.
		{Name: "reaper", Run: a.registry.Reap},
		{Name: "authority", Run: a.registry.CA().Keep},
		{Name: "cluster", Run: a.keepCluster},
		{Name: "sessions", Run: a.keepPresence},
	}...)
}

// presence keeps this node, its health and its server in the catalogue.
func (a *Agent) presence(ctx context.Context, ready func()) error {
	if a.cfg.ACL && a.cfg.ACLInitialManagementToken != "" {
		if err := a.registry.InitialManagement(ctx, a.cfg.ACLInitialManagementToken); err != nil {
			return fmt.Errorf("acl-initial-management-token: %w", err)
		}
	}
	return a.registry.KeepServer(ctx, a.self, consulapi.ServerMeta(""), ready)
}

func (a *Agent) close() error {
	var errs []error
	for i := len(a.closers) - 1; i >= 0; i-- {
		errs = append(errs, a.closers[i]())
	}
	return errors.Join(errs...)
}

// dataDir is where the registry and the node's registrations are kept; nowhere
// in development.
func (a *Agent) dataDir() string {
	if a.cfg.Dev {
		return ""
	}
	return a.cfg.DataDir
}

// status is how this agent is doing.
func (a *Agent) status(ctx context.Context) api.Status {
	snap := a.state.Snapshot()
	st := a.storeStatus()
	nodes, _ := snap.Nodes()
	networks, _ := snap.Networks()
	endpoints, _ := snap.Endpoints()
	out := api.Status{
		Node: a.cfg.NodeName, Site: a.cfg.Site, Version: a.version, PID: os.Getpid(),
		Index: uint64(snap.Index()), Services: servicesIn(snap), Nodes: len(nodes), Networks: len(networks), Problems: a.problems(ctx),
	}
	out.Leader, out.Servers = a.leaderAndServers(st)
	for _, e := range endpoints {
		if e.Node == a.self.Name {
			out.Endpoints++
		}
	}
	return out
}

// servicesIn counts the services, but for that of the servers themselves.
func servicesIn(snap *state.Snapshot) int {
	n := 0
	services, _ := snap.Services()
	for _, s := range services {
		if s.Name != model.ConsulService {
			n++
		}
	}
	return n
}

// problems lists what needs a person.
func (a *Agent) problems(ctx context.Context) []string {
	all := []string{} // a list also if it is empty
	if a.plane != nil {
		all = append(all, a.plane.problems(ctx)...)
	}
	st := a.storeStatus()
	if st.Leader == "" {
		all = append(all, a.leaderless()+": nothing can be changed")
	}
	if st.Full != "" {
		all = append(all, "the registry takes no writes: "+st.Full)
	} else if st.NearQuota() {
		all = append(all, fmt.Sprintf("the registry's database has %d of %d MiB in use, behind which writes are refused", st.DBInUse>>20, st.Quota>>20))
	}
	for _, alarm := range st.Alarms {
		all = append(all, "the registry raised the alarm "+alarm)
	}
	for id, why := range a.local.Status().Rejected {
		all = append(all, fmt.Sprintf("service %s is refused by the catalogue: %s", id, why))
	}
	return all
}

// readyz says whether this agent can be relied on: everything has started and
// the registry can be written.
func (a *Agent) readyz(w http.ResponseWriter, _ *http.Request) {
	switch {
	case !a.ready.Load():
		http.Error(w, "starting", http.StatusServiceUnavailable)
	case a.storeStatus().Leader == "":
		http.Error(w, a.leaderless(), http.StatusServiceUnavailable)
	default:
		_, _ = w.Write([]byte("ready\n")) // a caller that went away is not our error
	}
}

// shutdownGrace bounds the wait for requests under way when the agent stops.
const shutdownGrace = 2 * time.Second
