package consulapi

import (
	"net/http"
	"slices"
	"strings"
)

type endpoint func(*handler, *call) (answer, error)

// route is one path, or with a trailing slash every path that begins with it,
// and the methods it takes.
type route struct {
	path    string
	methods map[string]endpoint
}

func get(path string, e endpoint) route {
	return route{path, map[string]endpoint{http.MethodGet: e}}
}

func put(path string, e endpoint) route {
	return route{path, map[string]endpoint{http.MethodPut: e}}
}

// routes is everything that is served.
var routes = []route{
	get("/v1/agent/self", (*handler).agentSelf),
	get("/v1/agent/members", (*handler).agentMembers),
	get("/v1/agent/services", (*handler).agentServices),
	get("/v1/agent/service/", (*handler).agentService),
	put("/v1/agent/service/register", (*handler).agentServiceRegister),
	put("/v1/agent/service/deregister/", (*handler).agentServiceDeregister),
	get("/v1/agent/checks", (*handler).agentChecks),
	put("/v1/agent/check/pass/", (*handler).agentCheckPass),
	put("/v1/agent/check/warn/", (*handler).agentCheckWarn),
	put("/v1/agent/check/fail/", (*handler).agentCheckFail),
	put("/v1/agent/check/update/", (*handler).agentCheckUpdate),

	get("/v1/catalog/datacenters", (*handler).catalogDatacenters),
	get("/v1/catalog/nodes", (*handler).catalogNodes),
	get("/v1/catalog/node/", (*handler).catalogNode),
	get("/v1/catalog/services", (*handler).catalogServices),
	get("/v1/catalog/service/", (*handler).catalogService),

	get("/v1/health/service/", (*handler).healthService),
	get("/v1/health/checks/", (*handler).healthChecks),
	get("/v1/health/state/", (*handler).healthState),
	get("/v1/health/node/", (*handler).healthNode),

	{"/v1/kv/", map[string]endpoint{
		http.MethodGet:    (*handler).kvGet,
		http.MethodPut:    (*handler).kvPut,
		http.MethodDelete: (*handler).kvDelete,
	}},

	get("/v1/status/leader", (*handler).statusLeader),
	get("/v1/status/peers", (*handler).statusPeers),
}

// match finds the route with the longest prefix of path, and what follows it.
func match(path string) (rt route, rest string, ok bool) {
	for _, r := range routes {
		switch {
		case path == r.path:
			return r, "", true
		case strings.HasSuffix(r.path, "/") && strings.HasPrefix(path, r.path) && len(r.path) > len(rt.path):
			rt, rest, ok = r, path[len(r.path):], true
		}
	}
	return rt, rest, ok
}

// allow is the value of the Allow header.
func (r route) allow() string {
	order := []string{http.MethodGet, http.MethodPut, http.MethodDelete}
	order = slices.DeleteFunc(order, func(m string) bool { return r.methods[m] == nil })
	return strings.Join(append([]string{http.MethodOptions}, order...), ",")
}
