package consulapi

import (
	"net/http"
	"strings"
)

// promptPaths begin the paths of what is asked for often and answered at once.
var promptPaths = []string{
	"/v1/kv/", "/v1/health/", "/v1/catalog/", "/v1/agent/service/", "/v1/agent/check/", "/v1/agent/services", "/v1/agent/checks",
	"/v1/agent/health/", "/v1/session/", "/v1/txn", "/v1/status/", "/v1/query/",
}

// Prompt reports whether a request is one of the many that are answered at once:
// it asks neither to wait nor for a stream, and nothing is lost when its client's
// going away is noticed late. When in doubt, it is not.
func Prompt(r *http.Request) bool {
	for _, p := range promptPaths {
		if strings.HasPrefix(r.URL.Path, p) {
			return r.URL.RawQuery == "" || !mayWait(r.URL.RawQuery)
		}
	}
	return false
}

// mayWait reports whether a query has a parameter with which a request waits, or
// one whose name is not plain.
func mayWait(query string) bool {
	for part := range strings.SplitSeq(query, "&") {
		name, _, _ := strings.Cut(part, "=")
		switch name {
		case "index", "hash", "consistent":
			return true
		}
		if strings.ContainsAny(name, "%+;") {
			return true
		}
	}
	return false
}
