package consulapi_test

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/consulapi"
)

// leaderless is a cluster that has not been heard of for a while.
type leaderless struct {
	*world
	since time.Duration
}

func (l leaderless) LastContact() time.Duration { return l.since }

// TestLastContact: answers say how old they may be, and ?max_stale does not take
// older ones.
func TestLastContact(t *testing.T) {
	w := newWorld()
	w.setUp("no-leader")
	h := consulapi.New(consulapi.Config{Node: w.node, Log: slog.New(slog.DiscardHandler)},
		consulapi.Deps{Reader: w.st, Agent: w, Writer: w, Cluster: leaderless{w, 90 * time.Second}})
	for query, want := range map[string]int{
		"": http.StatusOK, "stale": http.StatusOK, "max_stale=2m": http.StatusOK,
		"max_stale=1m": http.StatusInternalServerError, "leader": http.StatusInternalServerError,
	} {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/v1/catalog/nodes?"+query, nil))
		if rec.Code != want {
			t.Errorf("?%s: %d %s, want %d", query, rec.Code, rec.Body, want)
		}
		if want != http.StatusOK {
			if rec.Body.String() != "No cluster leader" {
				t.Errorf("?%s: %s", query, rec.Body)
			}
			continue
		}
		if c, k := rec.Header().Get("X-Consul-LastContact"), rec.Header().Get("X-Consul-KnownLeader"); c != "90000" || k != "false" {
			t.Errorf("?%s: last contact %s, known leader %s", query, c, k)
		}
	}
}
