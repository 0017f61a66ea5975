package compat

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// TestManyWatchers has more clients of one host wait at once than Consul lets connect, and wakes them all.
func TestManyWatchers(t *testing.T) {
	const watchers = 300
	a := startAgent(t)
	var connections atomic.Int32
	cfg := api.DefaultNonPooledConfig()
	cfg.Address = a.http
	cfg.Transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		connections.Add(1)
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
	c, err := api.NewClient(cfg)
	must(t, err)
	_, err = c.KV().Put(kv("watched", "0"), nil)
	must(t, err)
	_, meta, err := c.KV().Get("watched", nil)
	must(t, err)
	answers := make(chan string, watchers)
	before := connections.Load()
	for range watchers {
		go func() {
			pair, _, err := c.KV().Get("watched", &api.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: 2 * time.Minute})
			if err != nil {
				answers <- err.Error()
				return
			}
			answers <- string(pair.Value)
		}()
	}
	eventually(t, func() error {
		if n := connections.Load() - before; n < watchers {
			return fmt.Errorf("%d connections", n)
		}
		return nil
	})
	_, err = c.Status().Leader() // who asks beside them is answered
	must(t, err)
	select {
	case got := <-answers:
		t.Fatalf("one did not wait: %s", got)
	default:
	}
	_, err = c.KV().Put(kv("watched", "1"), nil)
	must(t, err)
	for range watchers {
		if got := <-answers; got != "1" {
			t.Fatal(got)
		}
	}
}

// TestConnectionLimit sets the limit that Consul has by default.
func TestConnectionLimit(t *testing.T) {
	a := startAgent(t, "http-max-conns-per-client=5")
	const limit = 5
	for n := 1; n <= limit+1; n++ {
		// Each client keeps its connection.
		client := &http.Client{Transport: &http.Transport{}}
		t.Cleanup(client.CloseIdleConnections)
		resp, err := client.Get("http://" + a.http + "/v1/status/leader")
		must(t, err)
		b, err := io.ReadAll(resp.Body)
		must(t, err)
		must(t, resp.Body.Close())
		refused := resp.StatusCode == http.StatusTooManyRequests && strings.HasPrefix(string(b), "Your IP is issuing too many concurrent connections")
		// Those that waited for the agent to be ready may count for a moment yet.
		if n > limit && !refused || n < limit-1 && resp.StatusCode != http.StatusOK {
			t.Fatalf("connection %d: %d %s", n, resp.StatusCode, b)
		}
	}
}
