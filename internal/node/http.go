package node

import (
	"net/http"

	"github.com/fairlead-net/fairlead/api"
	"github.com/fairlead-net/fairlead/internal/consulapi"
	"github.com/fairlead-net/fairlead/internal/datapath"
	"github.com/fairlead-net/fairlead/internal/nativeapi"
)

// handler is everything the agent answers over HTTP.
func (a *Agent) handler() http.Handler {
	mux := http.NewServeMux()
	consul := a.consul()
	own := nativeapi.Config{State: a.state, Status: a.status, Classify: httpStatus, Log: a.log}
	if p := a.plane; p != nil {
		own.Networks, own.Workloads, own.Host = p.endpoints, p.workloads, p.host
		own.Datapath = func() (string, error) { return datapath.Dump(p.maps) }
	}
	native := nativeapi.New(own)
	mux.Handle("GET /healthz", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("ok\n")) // a caller that went away is not our error
	}))
	mux.Handle("GET /readyz", http.HandlerFunc(a.readyz))
	mux.Handle("GET /metrics", a.metricsHandler())
	// The Consul API takes its paths raw: a KV key may hold "//".
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case underPrefix(r.URL.Path, api.Prefix):
			native.ServeHTTP(w, r)
		case r.URL.Path == "/healthz" || r.URL.Path == "/readyz" || r.URL.Path == "/metrics":
			mux.ServeHTTP(w, r)
		default:
			consul.ServeHTTP(w, r)
		}
	})
}

// consul is the Consul-compatible API.
func (a *Agent) consul() http.Handler {
	deps := consulapi.Deps{
		Reader: a.state, Agent: a.local, Writer: a.registry, Cluster: cluster{a.store, a.cfg.Advertise + ":" + leaderPort},
		Sessions: a.registry, Transactor: a.registry, Queries: a.registry, Events: a.events,
	}
	if a.tokens != nil {
		deps.Authority = a.tokens
	}
	return consulapi.New(consulapi.Config{
		Node: a.self, Version: a.version, KVMaxValueSize: int64(a.cfg.KVMaxValueSize), TxnMaxReqSize: int64(a.cfg.TxnMaxReqSize),
		SessionTTLMin: a.cfg.SessionTTLMin, DefaultACLPolicy: a.cfg.ACLDefaultPolicy, Log: a.log,
	}, deps)
}
