package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/api"
)

// agent answers with handle and notes each request as "METHOD URI body".
func agent(t *testing.T, handle http.HandlerFunc) (*api.Client, *[]string) {
	t.Helper()
	var seen []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		seen = append(seen, strings.TrimSpace(fmt.Sprintf("%s %s %s", r.Method, r.RequestURI, b)))
		handle(w, r)
	}))
	t.Cleanup(s.Close)
	c, err := api.New(strings.TrimPrefix(s.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	return c, &seen
}

func TestNewRefusesWhatIsNoAddress(t *testing.T) {
	for addr, ok := range map[string]bool{
		"": true, "127.0.0.1:8500": true, "http://[::1]:8500/": true, "https://agent.example": true,
		"unix:///run/x": false, "http://": false, "a b": false,
	} {
		if _, err := api.New(addr); (err == nil) != ok {
			t.Errorf("New(%q) = %v", addr, err)
		}
	}
}

// What an agent refuses is an Error with its words, what does not answer says
// what to do, and a caller that gives up gets its own reason.
func TestFailuresSayWhatHappened(t *testing.T) {
	c, _ := agent(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case api.Prefix + "/networks/none":
			http.Error(w, "network \"none\": no such network", http.StatusNotFound)
		case api.Prefix + "/services":
			w.WriteHeader(http.StatusServiceUnavailable)
		case api.Prefix + "/host":
			fmt.Fprint(w, "not JSON")
		default:
			<-r.Context().Done()
		}
	})
	_, err := c.Network(t.Context(), "none")
	if !api.IsNotFound(err) || err.Error() != `network "none": no such network` {
		t.Errorf("missing network: %v", err)
	}
	if _, err := c.Services(t.Context()); api.IsNotFound(err) || !strings.Contains(err.Error(), "503") {
		t.Errorf("a refusal without words: %v", err)
	}
	if _, err := c.Host(t.Context()); err == nil || !strings.Contains(err.Error(), api.Prefix+"/host") {
		t.Errorf("an answer that is not JSON: %v", err)
	}
	late, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := c.Status(late); err == nil || !strings.Contains(err.Error(), "took too long") {
		t.Errorf("an agent that does not answer: %v", err)
	}
	nobody, err := api.New("127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nobody.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "fairlead agent") {
		t.Errorf("no agent: %v", err)
	}
}

func TestCallsAreWhatTheAgentServes(t *testing.T) {
	c, seen := agent(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/v1/kv/"):
			fmt.Fprint(w, "true")
		case r.Method == http.MethodDelete:
			w.WriteHeader(http.StatusNoContent)
		default:
			fmt.Fprint(w, "{}")
		}
	})
	ctx, zero := t.Context(), uint64(0)
	for _, call := range []func() error{
		func() error { _, err := c.CreateNetwork(ctx, api.Network{Name: "a"}); return err },
		func() error { return c.RemoveNetwork(ctx, "a/b") },
		func() error { return c.Stop(ctx, "w", 3*time.Second) },
		func() error { return c.Deregister(ctx, "web 1") },
		func() error {
			_, err := c.PutKV(ctx, api.KV{Key: "a//b%", Value: []byte("v"), Flags: 7}, &zero)
			return err
		},
		func() error { return c.DeleteKVTree(ctx, "a/") },
	} {
		if err := call(); err != nil {
			t.Error(err)
		}
	}
	want := []string{
		`POST /fairlead/v1/networks {"name":"a","driver":"","subnets":null}`,
		"DELETE /fairlead/v1/networks/a%2Fb", "DELETE /fairlead/v1/workloads/w?grace=3s",
		"PUT /v1/agent/service/deregister/web%201", "PUT /v1/kv/a//b%25?cas=0&flags=7 v", "DELETE /v1/kv/a/?recurse=",
	}
	if got := strings.Join(*seen, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("calls:\n%s\nwant:\n%s", got, strings.Join(want, "\n"))
	}
}

// A watcher of a key that is not there gets an empty list and an index, and one
// whose agent began a new history begins anew.
func TestWatchKV(t *testing.T) {
	c, seen := agent(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Consul-Index", "5")
		w.WriteHeader(http.StatusNotFound)
	})
	all, next, err := c.WatchKV(t.Context(), "dir/", 3, time.Second)
	if err != nil || len(all) != 0 || next != 5 || (*seen)[0] != "GET /v1/kv/dir/?index=3&recurse=&wait=1s" {
		t.Errorf("WatchKV = %v, %d, %v after %v", all, next, err, *seen)
	}
	if _, next, err := c.WatchKV(t.Context(), "key", 9, time.Second); err != nil || next != 0 {
		t.Errorf("an index that went back: next %d, %v; want 0", next, err)
	}
}

// AwaitPassing goes on with the index it was given until the instance's checks
// pass, whatever others do.
func TestAwaitPassing(t *testing.T) {
	type check struct{ ServiceID, Status, Output string }
	rounds := [][]check{
		{{"web-1", "critical", "refused"}, {"web-2", "passing", ""}},
		{{"web-1", "passing", ""}, {"web-2", "critical", ""}},
	}
	round := 0
	c, seen := agent(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Consul-Index", fmt.Sprint(10+round))
		if err := json.NewEncoder(w).Encode(rounds[round]); err != nil {
			t.Error(err)
		}
		round++
	})
	if err := c.AwaitPassing(t.Context(), "web", "web-1"); err != nil || len(*seen) != 2 || !strings.Contains((*seen)[1], "index=10") {
		t.Errorf("AwaitPassing = %v after %v", err, *seen)
	}
}

// When time is up the error is the check's state, not the time.
func TestAwaitPassingSaysWhatItSaw(t *testing.T) {
	asked := false
	c, _ := agent(t, func(w http.ResponseWriter, r *http.Request) {
		if asked {
			<-r.Context().Done()
			return
		}
		asked = true
		w.Header().Set("X-Consul-Index", "10")
		fmt.Fprint(w, `[{"ServiceID":"web-1","Status":"critical","Output":"refused"}]`)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if err := c.AwaitPassing(ctx, "web", "web-1"); err == nil || err.Error() != "it is critical: refused" {
		t.Errorf("AwaitPassing = %v", err)
	}
}
