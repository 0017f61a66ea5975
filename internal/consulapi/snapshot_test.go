package consulapi_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/fairlead-net/fairlead/internal/consulapi"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// archives is a store whose snapshots are texts.
type archives struct {
	w        *world
	restored string
	breakOff bool
	err      error
}

func (a *archives) Save(_ context.Context, w io.Writer, stale bool, begun func(model.Index)) (m model.SnapshotMeta, err error) {
	if a.err != nil {
		return m, a.err
	}
	begun(42)
	_, err = fmt.Fprintf(w, "everything, stale is %v", stale)
	if a.breakOff {
		err = errors.New("disk on fire")
	}
	return m, err
}

func (a *archives) Restore(_ context.Context, r io.Reader) (m model.SnapshotMeta, index model.Index, err error) {
	b, err := io.ReadAll(r)
	if err == nil {
		err = a.err
	}
	if err != nil {
		return m, 0, err
	}
	a.restored = string(b)
	return m, a.w.put("kv/restored", state.Change{KV: &model.KV{Key: "restored"}}), nil
}

func TestSnapshots(t *testing.T) {
	w := newWorld()
	a := &archives{w: w}
	h := func(s consulapi.Snapshots) http.Handler {
		return consulapi.New(consulapi.Config{Node: w.node, Log: quiet()}, consulapi.Deps{Reader: w.st, Agent: w, Writer: w, Cluster: w, Snapshots: s})
	}
	ask := func(s consulapi.Snapshots, method, query, body string) *httptest.ResponseRecorder {
		rec := httptest.NewRecorder()
		h(s).ServeHTTP(rec, httptest.NewRequest(method, "/v1/snapshot?"+query, strings.NewReader(body)))
		return rec
	}
	expect := func(what string, rec *httptest.ResponseRecorder, code int, body string) {
		t.Helper()
		if rec.Code != code || !strings.Contains(rec.Body.String(), body) {
			t.Errorf("%s: %d %s, want %d %s", what, rec.Code, rec.Body, code, body)
		}
	}
	rec := ask(a, http.MethodGet, "", "")
	expect("save", rec, 200, "everything, stale is false")
	if rec.Header().Get("X-Consul-Index") != "42" || rec.Header().Get("X-Consul-KnownLeader") != "true" || rec.Header().Get("Content-Type") != "application/x-gzip" {
		t.Errorf("headers %v", rec.Header())
	}
	expect("save stale", ask(a, http.MethodGet, "stale", ""), 200, "stale is true")
	// Larger than any other body may be.
	big := strings.Repeat("x", 3<<20)
	expect("restore", ask(a, http.MethodPut, "", big), 200, "")
	if a.restored != big {
		t.Errorf("%d bytes were restored", len(a.restored))
	}
	expect("elsewhere", ask(a, http.MethodGet, "dc=dc2", ""), 500, "No path to datacenter")
	expect("without a store", ask(nil, http.MethodPut, "", ""), 501, "not available on this agent")
	expect("another method", ask(a, http.MethodPost, "", ""), 405, "method POST not allowed")
	a.err = errors.New("the snapshot is damaged")
	expect("a bad archive", ask(a, http.MethodPut, "", "x"), 500, "restore snapshot: the snapshot is damaged")
	expect("a failed save", ask(a, http.MethodGet, "", ""), 500, "save snapshot: the snapshot is damaged")
	w.setUp("no-leader")
	expect("without a leader", ask(a, http.MethodGet, "", ""), 500, "No cluster leader")
	w.setUp("leader")

	a.err, a.breakOff = nil, true
	addr := listen(t, consulapi.Limits{}, h(a))
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + addr + "/v1/snapshot")
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		must(t, resp.Body.Close())
	}
	if err == nil {
		t.Error("a save that broke off looks whole")
	}
}
