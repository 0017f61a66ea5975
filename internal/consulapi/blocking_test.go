package consulapi_test

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

func serve(ctx context.Context, h http.Handler, url string) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequestWithContext(ctx, http.MethodGet, url, nil))
	return rec
}

func index(t *testing.T, rec *httptest.ResponseRecorder) int {
	t.Helper()
	i, err := strconv.Atoi(rec.Header().Get("X-Consul-Index"))
	if err != nil || i < 1 {
		t.Fatalf("index %q", rec.Header().Get("X-Consul-Index"))
	}
	return i
}

// TestWait: how long a query that nothing wakes takes. Time is fake.
func TestWait(t *testing.T) {
	for _, c := range []struct {
		query    string
		min, max time.Duration
	}{
		{"", 0, 0},
		{"index=0", 0, 0},
		{"index=1", 0, 0}, // older than what there is
		{"index=13", 5 * time.Minute, 5*time.Minute + 5*time.Minute/16},
		{"index=13&wait=16s", 16 * time.Second, 17 * time.Second},
		{"index=13&wait=-1s", 5 * time.Minute, 5*time.Minute + 5*time.Minute/16},
		{"index=13&wait=10h", 10 * time.Minute, 10*time.Minute + 10*time.Minute/16},
		// An index that this cluster has not reached is waited for only as long
		// as a node may lag.
		{"index=99999", time.Second, time.Second},
		{"index=99999&wait=100ms", 100 * time.Millisecond, 100 * time.Millisecond},
	} {
		t.Run(c.query, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				w.put("kv/other", state.Change{KV: &model.KV{Key: "other"}}) // 12
				w.put("kv/k", state.Change{KV: &model.KV{Key: "k"}})         // 13
				start := time.Now()
				rec := serve(t.Context(), w.handler(), "/v1/kv/k?"+c.query)
				took := time.Since(start)
				if took < c.min || took > c.max {
					t.Errorf("took %v, want %v to %v", took, c.min, c.max)
				}
				if rec.Code != http.StatusOK || index(t, rec) != 13 {
					t.Errorf("status %d, index %s", rec.Code, rec.Header().Get("X-Consul-Index"))
				}
			})
		})
	}
}

// TestWake: each read is woken by changes to what it shows, also by deletions,
// and not by others.
func TestWake(t *testing.T) {
	node := func(w *world) {
		w.put("node/n9", state.Change{Node: &model.Node{Name: "n9", Address: "10.0.0.9"}})
	}
	instance := func(w *world) {
		w.put("i", state.Change{Instance: &model.Instance{Node: "n1", ID: "new", Service: "web", Tags: []string{"t"}}})
	}
	check := func(w *world) {
		w.put("check/x", state.Change{Check: &model.Check{Node: "n1", ID: "x", Status: model.Critical, ServiceID: "web", ServiceName: "web"}})
	}
	unregister := func(w *world) {
		w.put("i", state.Change{Delete: true, Instance: &model.Instance{Node: "n1", ID: "web", Service: "web"}})
	}
	kv := func(key string) func(*world) {
		return func(w *world) { w.put("kv/"+key, state.Change{KV: &model.KV{Key: key}}) }
	}
	deleteKV := func(w *world) { w.put("kv/dir/a", state.Change{Delete: true, KV: &model.KV{Key: "dir/a"}}) }

	for _, c := range []struct {
		path  string
		wake  func(*world)
		sleep func(*world)
	}{
		{"/v1/catalog/nodes", node, kv("a")},
		{"/v1/catalog/node/n1", instance, kv("a")},
		{"/v1/catalog/node/n9", node, kv("a")},
		{"/v1/catalog/services", instance, check},
		{"/v1/catalog/services?node-meta=rack:a", instance, kv("a")},
		{"/v1/catalog/service/web", unregister, kv("a")},
		{"/v1/health/service/web", check, kv("a")},
		{"/v1/health/service/web?passing", unregister, node},
		{"/v1/health/checks/web", check, kv("a")},
		{"/v1/health/state/any", check, kv("a")},
		{"/v1/health/node/n1", check, node},
		{"/v1/kv/dir/a", deleteKV, kv("dir/b")},
		{"/v1/kv/dir/none", kv("dir/none"), kv("dir/b")},
		{"/v1/kv/dir/?recurse", deleteKV, kv("other")},
		{"/v1/kv/dir/?keys", kv("dir/b"), kv("other")},
	} {
		t.Run(strings.TrimPrefix(c.path, "/v1/"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				if _, err := w.Register(t.Context(), model.Registration{Instance: model.Instance{Node: "n1", ID: "web", Service: "web"}}); err != nil {
					t.Fatal(err)
				}
				kv("dir/a")(w)
				h := w.handler()
				before := index(t, serve(t.Context(), h, c.path))

				sep := "?"
				if strings.Contains(c.path, "?") {
					sep = "&"
				}
				done := make(chan *httptest.ResponseRecorder, 1)
				go func() { done <- serve(t.Context(), h, c.path+sep+"index="+strconv.Itoa(before)) }()
				synctest.Wait()
				c.sleep(w)
				synctest.Wait()
				if len(done) > 0 {
					t.Error("woken by a change to something else")
				}
				start := time.Now()
				c.wake(w)
				rec := <-done
				if !time.Now().Equal(start) {
					t.Error("not woken by the change, but by the end of the wait")
				}
				if after := index(t, rec); after <= before {
					t.Errorf("index went from %d to %d", before, after)
				}
			})
		})
	}
}

// TestCancelledQueryEnds: a query ends with its request, with the answer as it is.
func TestCancelledQueryEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan *httptest.ResponseRecorder, 1)
		go func() { done <- serve(ctx, w.handler(), "/v1/catalog/nodes?index=10") }()
		synctest.Wait()
		cancel()
		if rec := <-done; rec.Code != http.StatusOK {
			t.Errorf("status %d", rec.Code)
		}
	})
}

// TestIndexDoesNotGoBack: a client that comes with an index which this node has
// passed, but which is newer than the object, gets no smaller one.
func TestIndexDoesNotGoBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.put("kv/a", state.Change{KV: &model.KV{Key: "a"}})         // 12
		w.put("kv/other", state.Change{KV: &model.KV{Key: "other"}}) // 13
		if i := index(t, serve(t.Context(), w.handler(), "/v1/kv/a?index=13&wait=1s")); i != 13 {
			t.Errorf("index %d, want 13", i)
		}
	})
}

// TestLaggingNodeCatchesUp: a query with an index that arrives a moment later
// waits for it and then blocks as usual.
func TestLaggingNodeCatchesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.put("kv/a", state.Change{KV: &model.KV{Key: "a"}}) // 12
		done := make(chan *httptest.ResponseRecorder, 1)
		go func() { done <- serve(t.Context(), w.handler(), "/v1/kv/a?index=13&wait=10m") }()
		synctest.Wait()
		w.put("kv/other", state.Change{KV: &model.KV{Key: "other"}}) // 13
		synctest.Wait()
		if len(done) > 0 {
			t.Fatal("answered before the key changed")
		}
		w.put("kv/a", state.Change{KV: &model.KV{Key: "a", Value: []byte("1")}}) // 14
		if i := index(t, <-done); i != 14 {
			t.Errorf("index %d, want 14", i)
		}
	})
}

func TestAgentServiceHashBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		reg := model.Registration{Instance: model.Instance{Node: "n1", ID: "web", Service: "web", Port: 1}}
		if _, err := w.Register(t.Context(), reg); err != nil {
			t.Fatal(err)
		}
		h := w.handler()
		hash := serve(t.Context(), h, "/v1/agent/service/web").Header().Get("X-Consul-ContentHash")
		start := time.Now()
		serve(t.Context(), h, "/v1/agent/service/web?wait=10s&hash="+hash)
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("an unchanged service was answered after %v", took)
		}
		done := make(chan *httptest.ResponseRecorder, 1)
		go func() { done <- serve(t.Context(), h, "/v1/agent/service/web?hash="+hash) }()
		synctest.Wait()
		reg.Instance.Port = 2
		if _, err := w.Register(t.Context(), reg); err != nil {
			t.Fatal(err)
		}
		if got := (<-done).Header().Get("X-Consul-ContentHash"); got == hash {
			t.Error("the change did not change the hash")
		}
	})
}

func TestCompression(t *testing.T) {
	w := newWorld()
	w.put("kv/big", state.Change{KV: &model.KV{Key: "big", Value: []byte(strings.Repeat("x", 5000))}})
	w.put("kv/small", state.Change{KV: &model.KV{Key: "small", Value: []byte("x")}})
	for _, c := range []struct {
		path, accept string
		want         bool
	}{
		{"/v1/kv/big", "gzip", true},
		{"/v1/kv/big", "deflate, gzip;q=0.5", true},
		{"/v1/kv/big", "*", true},
		{"/v1/kv/big", "gzip;q=0", false},
		{"/v1/kv/big", "br", false},
		{"/v1/kv/big", "", false},
		{"/v1/kv/small", "gzip", false},
	} {
		rec := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, c.path, nil)
		r.Header.Set("Accept-Encoding", c.accept)
		w.handler().ServeHTTP(rec, r)
		if got := rec.Header().Get("Content-Encoding") == "gzip"; got != c.want {
			t.Errorf("%s, %q: compressed %v", c.path, c.accept, got)
		}
		if rec.Header().Get("Vary") != "Accept-Encoding" {
			t.Errorf("%s: no Vary", c.path)
		}
		if !c.want {
			continue
		}
		z, err := gzip.NewReader(rec.Body)
		if err != nil {
			t.Fatal(err)
		}
		var pairs []struct{ Value []byte }
		if err := json.NewDecoder(z).Decode(&pairs); err != nil || len(pairs[0].Value) != 5000 {
			t.Errorf("%s: %v", c.path, err)
		}
	}
}

// TestChunkedBodies: a limit holds for a body that does not say its length.
func TestChunkedBodies(t *testing.T) {
	w := newWorld()
	for path, want := range map[string]string{
		"/v1/kv/a":                   "Request body(524289 bytes) too large, max size: 524288 bytes. See https",
		"/v1/agent/service/register": "Request body(1048577 bytes) too large, max size: 1048576 bytes.",
	} {
		r := httptest.NewRequest(http.MethodPut, path, strings.NewReader(`{"Name":"`+strings.Repeat("x", 2<<20)+`"}`))
		r.ContentLength = -1
		rec := httptest.NewRecorder()
		w.handler().ServeHTTP(rec, r)
		if rec.Code != http.StatusRequestEntityTooLarge || !strings.HasPrefix(rec.Body.String(), want) {
			t.Errorf("%s: %d %s", path, rec.Code, rec.Body)
		}
	}
}

// TestTokens: where a request's token may stand, first match first.
func TestTokens(t *testing.T) {
	for _, c := range []struct{ query, header, auth, body, want string }{
		{"", "", "", "", ""},
		{"", "", "", "b", "b"},
		{"", "", "Bearer a", "b", "a"},
		{"", "", "bearer  a", "b", "a"},
		{"", "", "Basic a", "b", "b"},
		{"", "h", "Bearer a", "b", "h"},
		{"q", "h", "Bearer a", "b", "q"},
	} {
		w := newWorld()
		r := httptest.NewRequest(http.MethodPut, "/v1/agent/service/register?token="+c.query, strings.NewReader(`{"Name":"web","Token":"`+c.body+`"}`))
		r.Header.Set("X-Consul-Token", c.header)
		r.Header.Set("Authorization", c.auth)
		rec := httptest.NewRecorder()
		w.handler().ServeHTTP(rec, r)
		if got := w.Services()[0].Token; got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}
