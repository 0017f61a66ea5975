package node

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/fairlead-net/fairlead/internal/nativeapi"
)

// forwarding passes on what servers alone can answer, on an agent that is none;
// everything else is answered here, with or without servers.
func (a *Agent) forwarding(here http.Handler) http.Handler {
	if a.follower == nil {
		return here
	}
	servers := a.peers.client.Forward(a.self.Name)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch where(r.Method, r.URL) {
		case atServers:
			servers.ServeHTTP(w, nearHere(r, string(a.self.Name)))
		case atServerHosts:
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusForbidden)
			_, _ = w.Write([]byte(`{"error":"the site's servers, join tokens and nodes are changed on a server's host: this agent is no server"}` + "\n"))
		default:
			here.ServeHTTP(w, r)
		}
	})
}

// place is who answers a request that an agent gets.
type place int

const (
	here place = iota
	atServers
	// atServerHosts is what only users of a server's host may do: whoever may use
	// some agent's API does not by that rule the site.
	atServerHosts
)

// where says who answers. What an agent owns and the catalogue, as it has it, are
// answered by itself; keys, sessions, tokens and whatever is consistent are not.
func where(method string, u *url.URL) place {
	read := method == http.MethodGet || method == http.MethodHead
	path := u.Path
	if nativeapi.SitePath(path) {
		if read {
			return atServers
		}
		return atServerHosts
	}
	rest, consul := strings.CutPrefix(path, "/v1/")
	if !consul {
		return here
	}
	area, rest, _ := strings.Cut(rest, "/")
	switch area {
	case "agent":
		if strings.HasPrefix(rest, "connect/ca/leaf/") {
			return atServers
		}
		return here
	case "event":
		return here
	case "catalog", "health":
		if read && !u.Query().Has("consistent") {
			return here
		}
	}
	return atServers
}

// nearHere is a request in which this agent is named where it says "_agent".
func nearHere(r *http.Request, self string) *http.Request {
	q := r.URL.Query()
	if q.Get("near") != "_agent" {
		return r
	}
	q.Set("near", self)
	r = r.Clone(r.Context())
	r.URL.RawQuery = q.Encode()
	return r
}
