package nativeapi

import (
	"context"
	"net/http"

	"github.com/fairlead-net/fairlead/api"
)

// Site is what makes several hosts one site.
type Site interface {
	Servers() []api.Server
	// RemoveServer takes a server out; with replace only if another one waits to
	// take its place.
	RemoveServer(ctx context.Context, name string, replace bool) error
	JoinTokens() []api.JoinToken
	CreateJoinToken(ctx context.Context, spec api.JoinTokenSpec) (api.JoinToken, error)
	DeleteJoinToken(ctx context.Context, id string) error
	RevokeNode(ctx context.Context, name string) error
}

// SitePath reports whether servers alone answer a path.
func SitePath(path string) bool {
	for _, p := range []string{"/servers", "/join-tokens", "/nodes"} {
		if p = api.Prefix + p; path == p || len(path) > len(p) && path[:len(p)+1] == p+"/" {
			return true
		}
	}
	return false
}

// siteRoutes are those of Site.
func (h *handler) siteRoutes(read func(string, func(*http.Request) (any, error)), change func(string, string, func(*http.Request) (any, error))) {
	there := func(f func(r *http.Request) (any, error)) func(r *http.Request) (any, error) {
		return func(r *http.Request) (any, error) {
			if h.Site == nil {
				return nil, refuse(http.StatusNotImplemented, "this agent is alone: it has no cluster-addr; 'fairlead up' makes a site of several hosts")
			}
			return f(r)
		}
	}
	read("/servers", there(func(*http.Request) (any, error) { return h.Site.Servers(), nil }))
	read("/join-tokens", there(func(*http.Request) (any, error) { return h.Site.JoinTokens(), nil }))
	change("DELETE", "/servers/{name}", there(func(r *http.Request) (any, error) {
		return nil, h.Site.RemoveServer(r.Context(), r.PathValue("name"), r.URL.Query().Get("replace") == "true")
	}))
	change("POST", "/join-tokens", there(func(r *http.Request) (any, error) {
		spec, err := body[api.JoinTokenSpec](r)
		if err != nil {
			return nil, err
		}
		return h.Site.CreateJoinToken(r.Context(), spec)
	}))
	change("DELETE", "/join-tokens/{id}", there(func(r *http.Request) (any, error) {
		return nil, h.Site.DeleteJoinToken(r.Context(), r.PathValue("id"))
	}))
	change("POST", "/nodes/{name}/revoke", there(func(r *http.Request) (any, error) {
		return nil, h.Site.RevokeNode(r.Context(), r.PathValue("name"))
	}))
}
