package node

import (
	"context"
	"net/http"
	"time"

	"github.com/fairlead-net/fairlead/api"
	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/consulapi"
	"github.com/fairlead-net/fairlead/internal/datapath"
	"github.com/fairlead-net/fairlead/internal/nativeapi"
	"github.com/fairlead-net/fairlead/internal/promsd"
)

// handler is everything the agent answers over HTTP.
func (a *Agent) handler() http.Handler {
	mux := http.NewServeMux()
	consul := a.consul()
	own := nativeapi.Config{State: a.state, Status: a.status, Classify: httpStatus, Log: a.log}
	if p := a.peers; p != nil && p.self.Server {
		own.Site = site{a}
	}
	if p := a.plane; p != nil {
		own.Networks, own.Workloads, own.Host = p.endpoints, p.workloads, p.host
		own.Datapath = func() (string, error) { return datapath.Dump(p.maps) }
	}
	var authority consulapi.Authority // nil, and not a nil pointer, without ACLs
	if a.tokens != nil {
		authority = a.tokens
	}
	native := consulapi.Protect(authority, nativeapi.New(own))
	mux.Handle("GET /healthz", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("ok\n")) // a caller that went away is not our error
	}))
	mux.Handle("GET /readyz", http.HandlerFunc(a.readyz))
	mux.Handle("GET /metrics", consulapi.ProtectAgent(authority, a.self.Name, a.metricsHandler()))
	discovery := promsd.Config{Site: a.cfg.Site}
	if a.tokens != nil {
		discovery.Authority = a.tokens
	}
	targets := promsd.New(discovery, a.state)
	// The Consul API takes its paths raw: a KV key may hold "//".
	return a.forwarding(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case underPrefix(r.URL.Path, api.Prefix):
			native.ServeHTTP(w, r)
		case r.URL.Path == "/prometheus/sd":
			targets.ServeHTTP(w, r)
		case r.URL.Path == "/healthz" || r.URL.Path == "/readyz" || r.URL.Path == "/metrics":
			mux.ServeHTTP(w, r)
		default:
			consul.ServeHTTP(w, r)
		}
	}))
}

// consul is the Consul-compatible API.
func (a *Agent) consul() http.Handler {
	servers := serverList{a: a, addr: a.cfg.Advertise + ":" + leaderPort, began: time.Now()}
	deps := consulapi.Deps{
		Reader: a.state, Agent: a.local, Writer: a.registry, Cluster: servers,
		Sessions: a.registry, Transactor: a.registry, Queries: a.registry, Events: a.events, ACLs: a.registry,
		Catalogue: a.registry, Settings: a.registry, Servers: servers, Leaves: a.leaves,
		Process: agentProcess{a}, Tokens: agentProcess{a}, Metrics: a.metrics, Logs: a.logs, Lot: a.lot,
	}
	if a.store != nil {
		deps.Snapshots = a.store
	}
	if a.tokens != nil {
		deps.Authority = a.tokens
	}
	return consulapi.New(consulapi.Config{
		Node: a.self, Version: a.version, ClientOnly: a.follower != nil, KVMaxValueSize: int64(a.cfg.KVMaxValueSize), TxnMaxReqSize: int64(a.cfg.TxnMaxReqSize),
		SessionTTLMin: a.cfg.SessionTTLMin, DefaultACLPolicy: a.cfg.ACLDefaultPolicy, ScriptChecks: a.cfg.ScriptChecks, Log: a.log,
	}, deps)
}

// agentProcess is the agent as its own API may change it.
type agentProcess struct{ a *Agent }

func (p agentProcess) Reload(ctx context.Context) error { return p.a.reload(ctx) }

// Leave ends the agent once the requests under way are answered.
func (p agentProcess) Leave(context.Context) error {
	p.a.log.Info("the agent was asked to leave")
	p.a.left.Store(true)
	p.a.leave()
	return nil
}

// SetToken replaces one of the agent's own tokens until it ends. The kinds that
// only Consul has a use for are taken, because tools set all of them.
func (p agentProcess) SetToken(_ context.Context, kind, secret string) error {
	switch k := acl.TokenKind(kind); k {
	case acl.DefaultToken, acl.AgentToken, acl.DNSToken:
		p.a.tokens.SetToken(k, secret)
		return nil
	}
	return nil
}
