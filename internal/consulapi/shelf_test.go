package consulapi_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/consulapi"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// counted counts how often the state is read for an answer.
type counted struct {
	consulapi.Reader
	mu    sync.Mutex
	asked int
}

func (c *counted) Resolve(string) (acl.Authorizer, error) {
	return spy{acl.AllowAll(), c}, nil
}

// spy is an authorizer that notes what it is asked: once for each key that goes
// into an answer.
type spy struct {
	acl.Authorizer
	c *counted
}

func (s spy) Allow(r acl.Resource, name string, a acl.Access) bool {
	s.c.mu.Lock()
	s.c.asked++
	s.c.mu.Unlock()
	return s.Authorizer.Allow(r, name, a)
}

func get(h http.Handler, url string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, url, nil)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec
}

// TestEqualReadersShareOneAnswer: one is made for all who ask for the same, also
// for those that a change wakes, and none outlives what it was made from.
func TestEqualReadersShareOneAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		put := func(value string) model.Index {
			return w.put("kv/k", state.Change{KV: &model.KV{Key: "k", Value: []byte(value)}})
		}
		at := put("one")
		seen := &counted{}
		deps := w.deps()
		deps.Authority = seen
		h := consulapi.New(consulapi.Config{}, deps)

		for _, url := range []string{"/v1/kv/k?raw", "/v1/kv/k?raw&stale", "/v1/kv/k?raw&token=x", "/v1/kv/k?wait=1s&raw"} {
			if got := get(h, url).Body.String(); got != "one" {
				t.Errorf("%s: %q", url, got)
			}
		}
		if seen.asked != 1 {
			t.Errorf("%d looks at the state for equal reads, want 1", seen.asked)
		}

		var group sync.WaitGroup
		for range 50 {
			group.Go(func() {
				if got := get(h, fmt.Sprintf("/v1/kv/k?raw&index=%d", at)).Body.String(); got != "two" {
					t.Errorf("a watcher got %q", got)
				}
			})
		}
		synctest.Wait()
		put("two")
		group.Wait()
		if seen.asked != 2 {
			t.Errorf("%d looks for 50 watchers and a change, want one more", seen.asked)
		}
	})
}

// TestSharedAnswersAreToldApart by everything that they depend on.
func TestSharedAnswersAreToldApart(t *testing.T) {
	w := newWorld()
	for i := range 200 {
		w.put("kv", state.Change{KV: &model.KV{Key: fmt.Sprintf("dir/%d", i), Value: []byte("0123456789")}})
	}
	h := w.handler()
	plain := get(h, "/v1/kv/dir/?recurse")
	for _, url := range []string{"/v1/kv/dir/?keys", "/v1/kv/dir/1?recurse", "/v1/kv/dir/?recurse&pretty", "/v1/kv/dir/", "/v1/kv/dir/1?raw", "/v1/kv/dir/1"} {
		first, again := get(h, url), get(h, url)
		if first.Body.String() == plain.Body.String() || first.Body.String() != again.Body.String() || first.Code != again.Code {
			t.Errorf("%s: %d %.60q, then %d %.60q", url, first.Code, first.Body, again.Code, again.Body)
		}
		for k := range first.Header() {
			if first.Header().Get(k) != again.Header().Get(k) {
				t.Errorf("%s: header %s: %q, then %q", url, k, first.Header().Get(k), again.Header().Get(k))
			}
		}
	}
	zipped := get(h, "/v1/kv/dir/?recurse", "Accept-Encoding", "gzip")
	if zipped.Header().Get("Content-Encoding") != "gzip" || zipped.Body.Len() >= plain.Body.Len() {
		t.Errorf("compressed: %v, %d bytes", zipped.Header(), zipped.Body.Len())
	}
	if again := get(h, "/v1/kv/dir/?recurse"); again.Body.String() != plain.Body.String() {
		t.Error("the plain answer changed after it was compressed")
	}
}

// TestSharedAnswersGo when nobody asks for them any more, and make room for each
// other.
func TestSharedAnswersGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		big := []byte(strings.Repeat("x", 1<<20))
		for i := range 60 {
			w.put("kv", state.Change{KV: &model.KV{Key: fmt.Sprint(i), Value: big}})
		}
		h := w.handler()
		for i := range 60 {
			if got := get(h, fmt.Sprintf("/v1/kv/%d?raw", i)).Body.Len(); got != len(big) {
				t.Fatalf("%d bytes", got)
			}
			if _, bytes := consulapi.Shelved(h); bytes > consulapi.ShelfBytes {
				t.Fatalf("%d bytes are kept", bytes)
			}
		}
		if n, _ := consulapi.Shelved(h); n < 10 {
			t.Errorf("%d answers are kept", n)
		}
		time.Sleep(25 * time.Second)
		synctest.Wait()
		if n, bytes := consulapi.Shelved(h); n != 0 || bytes != 0 {
			t.Errorf("%d answers, %d bytes are kept after a while", n, bytes)
		}
	})
}
