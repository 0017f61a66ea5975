package consulapi

import (
	"net/http"
	"net/url"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
)

// Protect puts an API that is not Consul's behind the tokens of this one: reading
// takes operator:read, everything else operator:write. The token is where
// requests to this API have it. A nil authority lets everything pass.
func Protect(authority Authority, next http.Handler) http.Handler {
	return protect(authority, acl.Operator, "", next)
}

// ProtectAgent is Protect for what an agent says of itself: it takes agent:read
// or agent:write on its node.
func ProtectAgent(authority Authority, node model.NodeName, next http.Handler) http.Handler {
	return protect(authority, acl.Agent, string(node), next)
}

func protect(authority Authority, on acl.Resource, name string, next http.Handler) http.Handler {
	if authority == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		access := acl.Write
		if r.Method == http.MethodGet || r.Method == http.MethodHead || r.Method == http.MethodOptions {
			access = acl.Read
		}
		params, err := url.ParseQuery(r.URL.RawQuery)
		if err != nil {
			http.Error(w, "Failed to decode query: "+err.Error(), http.StatusBadRequest)
			return
		}
		c := &call{h: w.Header(), r: r, w: w, params: params, authority: authority}
		if err := c.require(on, name, access); err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}
