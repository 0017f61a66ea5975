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
	// shared says that equal GETs get equal answers while the state is the same:
	// one is made for all of them. The path, the parameters and the token say all
	// that such an endpoint goes by.
	shared bool
}

func get(path string, e endpoint) route {
	return route{path: path, methods: map[string]endpoint{http.MethodGet: e}}
}

// share is get for answers that are shared.
func share(path string, e endpoint) route {
	rt := get(path, e)
	rt.shared = true
	return rt
}

func put(path string, e endpoint) route {
	return route{path: path, methods: map[string]endpoint{http.MethodPut: e}}
}

// routes is everything that is served; each area lists its own beside its
// endpoints.
var routes = slices.Concat(agentRoutes, catalogRoutes, healthRoutes, kvRoutes, statusRoutes, sessionRoutes, txnRoutes, eventRoutes, queryRoutes, aclRoutes, snapshotRoutes, operatorRoutes, connectRoutes)

// byPath are the routes by their paths, the longest of which is longestPath.
var (
	byPath      = map[string]route{}
	longestPath int
)

func init() {
	for _, r := range routes {
		byPath[r.path] = r
		longestPath = max(longestPath, len(r.path))
	}
}

// match finds the route with the longest prefix of path, and what follows it.
func match(path string) (rt route, rest string, ok bool) {
	if rt, ok = byPath[path]; ok {
		return rt, "", true
	}
	for i := min(len(path), longestPath); i > 0; i-- {
		if path[i-1] != '/' {
			continue
		}
		if rt, ok = byPath[path[:i]]; ok {
			return rt, path[i:], true
		}
	}
	return rt, "", false
}

// allow is the value of the Allow header.
func (r route) allow() string {
	order := []string{http.MethodGet, http.MethodPut, http.MethodDelete}
	if r.methods[http.MethodPut] == nil { // beside PUT, POST is our own leniency
		order = slices.Insert(order, 1, http.MethodPost)
	}
	order = slices.DeleteFunc(order, func(m string) bool { return r.methods[m] == nil })
	return strings.Join(append([]string{http.MethodOptions}, order...), ",")
}
