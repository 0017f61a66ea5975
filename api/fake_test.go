package api_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/api"
)

// fakeAgent answers in memory, so that tests of time need no network. Its methods may be
// called from anywhere.
type fakeAgent struct {
	mu      sync.Mutex // guards following
	away    bool
	index   uint64
	web     []instance    // of the service web
	changed chan struct{} // closed when index or away changes
	calls   []string      // "METHOD PATH?QUERY BODY"
	answer  func(r *http.Request, body string) (status int, text string)
}

type instance struct {
	ID, Addr string
	Port     int
	Status   string
}

func newFakeAgent(t *testing.T) (*fakeAgent, *api.Client) {
	t.Helper()
	a := &fakeAgent{index: 10, changed: make(chan struct{})}
	c, err := api.New("")
	if err != nil {
		t.Fatal(err)
	}
	return a, c.WithHTTPClient(&http.Client{Transport: a})
}

// set changes the agent and wakes those who wait.
func (a *fakeAgent) set(change func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change()
	close(a.changed)
	a.changed = make(chan struct{})
}

// seen returns the calls so far, and forgets them.
func (a *fakeAgent) seen() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	defer func() { a.calls = nil }()
	return a.calls
}

func (a *fakeAgent) RoundTrip(r *http.Request) (*http.Response, error) {
	body := ""
	if r.Body != nil {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		body = string(b)
	}
	a.mu.Lock()
	a.calls = append(a.calls, strings.TrimSpace(r.Method+" "+r.URL.RequestURI()+" "+body))
	a.mu.Unlock()
	index, _ := strconv.ParseUint(r.URL.Query().Get("index"), 10, 64)
	wait, _ := time.ParseDuration(r.URL.Query().Get("wait"))
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		a.mu.Lock()
		away, now, changed, web, answer := a.away, a.index, a.changed, a.web, a.answer
		a.mu.Unlock()
		status, text := http.StatusOK, health(web)
		switch {
		case away:
			return nil, errors.New("connection refused")
		case answer != nil:
			status, text = answer(r, body)
		case index == now:
			select {
			case <-changed:
				continue
			case <-timer.C:
			case <-r.Context().Done():
				return nil, r.Context().Err()
			}
		}
		res := &http.Response{StatusCode: status, Status: http.StatusText(status), Header: http.Header{}, Request: r}
		res.Header.Set("X-Consul-Index", fmt.Sprint(now))
		res.Body = io.NopCloser(strings.NewReader(text))
		return res, nil
	}
}

// health is the answer of /v1/health/service.
func health(web []instance) string {
	all := []any{}
	for _, i := range web {
		all = append(all, map[string]any{
			"Node":    map[string]any{"Node": "n1", "Address": "192.0.2.1"},
			"Service": map[string]any{"ID": i.ID, "Address": i.Addr, "Port": i.Port, "Weights": map[string]any{"Passing": 4, "Warning": 2}},
			"Checks":  []any{map[string]any{"Status": "passing"}, map[string]any{"Status": i.Status}},
		})
	}
	b, err := json.Marshal(all)
	if err != nil {
		panic(err)
	}
	return string(b)
}
