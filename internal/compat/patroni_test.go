package compat

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

func mapOf(t testing.TB, text string) map[string]any {
	t.Helper()
	var m map[string]any
	must(t, json.Unmarshal([]byte(text), &m))
	return m
}

// call makes one request as a client without a library does.
func (a *agent) call(method, path, body string) (status int, text string, h http.Header) {
	a.t.Helper()
	r, err := http.NewRequestWithContext(a.t.Context(), method, "http://"+a.http+path, strings.NewReader(body))
	must(a.t, err)
	resp, err := http.DefaultClient.Do(r)
	must(a.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(a.t, err)
	return resp.StatusCode, strings.TrimSpace(string(b)), resp.Header
}

// TestPatroni makes the calls that Patroni makes through python-consul, for two
// members of a cluster: from nothing to a leader, to the end of that leader.
func TestPatroni(t *testing.T) {
	a := startAgent(t)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	ask := func(method, path, body string, status int, want string) string {
		t.Helper()
		got, text, _ := a.call(method, path, body)
		if got != status || !strings.HasPrefix(text, want) {
			t.Fatalf("%s %s: %d %s, want %d %s", method, path, got, text, status, want)
		}
		return text
	}
	session := func(name string) string {
		t.Helper()
		text := ask("PUT", "/v1/session/create", `{"name": "demo-`+name+`", "checks": [], "lockdelay": "0.001s", "behavior": "delete", "ttl": "15.0s"}`, 200, `{"ID":`)
		return mapOf(t, text)["ID"].(string)
	}

	// Its TTL is refused: it matches on the beginning of the text, and looks up
	// what is allowed.
	ask("PUT", "/v1/session/create", `{"name": "demo-pg1", "checks": [], "lockdelay": "0.001s", "behavior": "delete", "ttl": "1.0s"}`, 500, "Invalid Session TTL")
	self := mapOf(t, ask("GET", "/v1/agent/self", "", 200, "{"))
	if least := self["Config"].(map[string]any)["SessionTTLMin"]; least != 1e10 { // nanoseconds
		t.Errorf("shortest TTL %v", least)
	}

	s1, s2 := session("pg1"), session("pg2")
	ask("PUT", "/v1/session/renew/"+s1, "", 200, "[")
	ask("PUT", "/v1/session/renew/00000000-0000-0000-0000-000000000000", "", 404, "")

	// An empty cluster, then a race for its initialisation.
	ask("GET", "/v1/kv/service/demo/?recurse=1&consistent=1", "", 404, "")
	ask("PUT", "/v1/kv/service/demo/initialize?acquire="+s1, "", 200, "true")
	ask("PUT", "/v1/kv/service/demo/initialize?acquire="+s2, "", 200, "false")
	ask("PUT", "/v1/kv/service/demo/members/pg1?acquire="+s1, `{"role": "primary"}`, 200, "true")
	ask("PUT", "/v1/kv/service/demo/members/pg2?acquire="+s2, `{"role": "replica"}`, 200, "true")
	ask("PUT", "/v1/kv/service/demo/leader?acquire="+s1, "pg1", 200, "true")
	ask("PUT", "/v1/kv/service/demo/leader?acquire="+s2, "pg2", 200, "false")
	// The leader says so again at every turn.
	ask("PUT", "/v1/kv/service/demo/leader?acquire="+s1, "pg1", 200, "true")
	ask("PUT", "/v1/kv/service/demo/initialize", "7301", 200, "true")

	// Configuration is compared by index.
	ask("PUT", "/v1/kv/service/demo/config?cas=0", `{"ttl": 30}`, 200, "true")
	ask("PUT", "/v1/kv/service/demo/config?cas=0", `{"ttl": 20}`, 200, "false")
	config, _, err := a.client().KV().Get("service/demo/config", nil)
	must(t, err)
	ask("PUT", "/v1/kv/service/demo/config?cas="+text(config.ModifyIndex), `{"ttl": 20}`, 200, "true")

	nodes, meta, err := a.client().KV().List("service/demo/", &api.QueryOptions{RequireConsistent: true})
	must(t, err)
	holders := map[string]string{}
	for _, n := range nodes {
		holders[strings.TrimPrefix(n.Key, "service/demo/")] = n.Session
	}
	if len(nodes) != 5 || holders["leader"] != s1 || holders["members/pg2"] != s2 || holders["config"] != "" || meta.LastIndex == 0 {
		t.Fatalf("the cluster: %v", holders)
	}

	// The replica waits for the leader's key; the leader goes, and its keys with it.
	leader, _, err := a.client().KV().Get("service/demo/leader", nil)
	must(t, err)
	_, _, h := a.call("GET", "/v1/kv/service/demo/leader", "")
	type outcome struct {
		status int
		took   time.Duration
	}
	woken := make(chan outcome, 1)
	start := time.Now()
	go func() {
		status, _, _ := a.call("GET", "/v1/kv/service/demo/leader?index="+h.Get("X-Consul-Index")+"&wait=20s", "")
		woken <- outcome{status, time.Since(start)}
	}()
	ask("PUT", "/v1/session/destroy/"+s1, "", 200, "true")
	if o := <-woken; o.status != 404 || o.took >= settleLimit {
		t.Fatalf("the replica heard of the leader's end: %+v", o)
	}
	ask("PUT", "/v1/kv/service/demo/members/pg1?acquire="+s1, "{}", 500, "invalid session")
	ask("PUT", "/v1/session/renew/"+s1, "", 404, "")
	eventually(t, func() error { // the lock delay is a millisecond
		if status, body, _ := a.call("PUT", "/v1/kv/service/demo/leader?acquire="+s2, "pg2"); body != "true" {
			return &unexpected{status, body}
		}
		return nil
	})
	ask("GET", "/v1/kv/service/demo/members/pg1", "", 404, "")

	// It steps down with the index that it knows, not with an older one.
	now, _, err := a.client().KV().Get("service/demo/leader", nil)
	must(t, err)
	ask("DELETE", "/v1/kv/service/demo/leader?cas="+text(leader.ModifyIndex), "", 200, "false")
	ask("DELETE", "/v1/kv/service/demo/leader?cas="+text(now.ModifyIndex), "", 200, "true")
	ask("DELETE", "/v1/kv/service/demo/?recurse=1", "", 200, "true")
	ask("GET", "/v1/kv/service/demo/?recurse=1", "", 404, "")
}

// unexpected is an answer that was not wanted.
type unexpected struct {
	status int
	body   string
}

func (u *unexpected) Error() string { return fmt.Sprintf("%d %s", u.status, u.body) }

func text(n uint64) string { return strconv.FormatUint(n, 10) }
