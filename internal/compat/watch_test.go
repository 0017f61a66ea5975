package compat

import (
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/consul/api/watch"
)

// TestWatchPlans: the plans behind "consul watch" tell what is there, and each
// change once.
func TestWatchPlans(t *testing.T) {
	c := startAgent(t).client()
	web := &api.AgentServiceRegistration{Name: "web", Check: &api.AgentServiceCheck{TTL: "1h", Status: api.HealthPassing}}
	must(t, c.Agent().ServiceRegister(web))
	putKV := func(key, value string) func() error {
		return func() error { _, err := c.KV().Put(kv(key, value), nil); return err }
	}
	must(t, putKV("dir/a", "1")())
	status := func(s string) func() error {
		return func() error { return c.Agent().UpdateTTL("service:web", "", s) }
	}
	for _, w := range []struct {
		params string
		value  func(any) string
		first  string
		change func() error
		second string
	}{
		{
			`{"type":"key","key":"dir/a"}`, func(v any) string { return string(v.(*api.KVPair).Value) },
			"1", putKV("dir/a", "2"), "2",
		},
		{
			`{"type":"keyprefix","prefix":"dir/","stale":true}`, func(v any) string { return fmt.Sprint(keysOf(v.(api.KVPairs))) },
			"[dir/a]", putKV("dir/b", ""), "[dir/a dir/b]",
		},
		{
			`{"type":"services"}`, func(v any) string { return fmt.Sprint(v.(map[string][]string)["new"]) },
			"[]", func() error {
				return c.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: "new", Tags: []string{"x"}})
			}, "[x]",
		},
		{
			`{"type":"service","service":"web","passingonly":true}`, func(v any) string { return fmt.Sprint(len(v.([]*api.ServiceEntry))) },
			"1", status(api.HealthCritical), "0",
		},
		{
			`{"type":"checks","service":"web"}`, func(v any) string { return v.([]*api.HealthCheck)[0].Status },
			api.HealthCritical, status(api.HealthPassing), api.HealthPassing,
		},
		{
			`{"type":"checks","state":"warning"}`, func(v any) string { return fmt.Sprint(len(v.([]*api.HealthCheck))) },
			"0", status(api.HealthWarning), "1",
		},
		{
			`{"type":"event","name":"deploy"}`, func(v any) string { return fmt.Sprint(len(v.([]*api.UserEvent))) },
			"0", func() error { _, _, err := c.Event().Fire(&api.UserEvent{Name: "deploy"}, nil); return err }, "1",
		},
		{
			`{"type":"nodes"}`, func(v any) string { return fmt.Sprint(len(v.([]*api.Node))) },
			"1", func() error {
				_, _, _, err := c.Txn().Txn(api.TxnOps{{Node: &api.NodeTxnOp{Verb: api.NodeSet, Node: api.Node{Node: "ext", Address: "192.0.2.7"}}}}, nil)
				return err
			}, "2",
		},
	} {
		t.Run(w.params, func(t *testing.T) {
			plan, err := watch.Parse(mapOf(t, w.params))
			must(t, err)
			told := make(chan string, 16)
			plan.HybridHandler = func(_ watch.BlockingParamVal, v any) { told <- w.value(v) }
			ended := make(chan error, 1)
			go func() { ended <- plan.RunWithClientAndHclog(c, nil) }()
			expect := func(want string) {
				t.Helper()
				select {
				case got := <-told:
					if got != want {
						t.Fatalf("told %s, want %s", got, want)
					}
				case <-time.After(settleLimit):
					t.Fatalf("not told of %s", want)
				}
			}
			expect(w.first)
			must(t, w.change())
			expect(w.second)
			plan.Stop()
			must(t, <-ended)
		})
	}
}
