package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// A row is one kind of load, run with 1, 16 and 64 connections.
type row struct {
	key   string
	label string
	write bool // changes the registry; such rows come after those that read
	load  func(ctx context.Context, t *target, conns int, w window) (*cell, error)
	clean func(ctx context.Context, t *target) error // after each window; may be nil
}

// connections are the columns of the table.
var connections = []int{1, 16, 64}

// parts are what is measured beside the load rows, in the order of the table. --rows takes both kinds by their key.
var parts = []struct{ key, label string }{
	{"start", "cold start to first write"},
	{"memory", "memory idle, with the instances, after the reads, after a pause"},
	{"scale", "catalog/services with a tenth of the instances"},
	{"watch", "blocking queries on one service"},
	{"growth", "agent register while the agent's services grow to 5,000"},
	{"appear", "registered with a passing check -> in DNS"},
	{"restart", "restart with the instances"},
}

func rows() []row {
	return []row{
		{key: "kv-get", label: "KV GET", load: gets(kvKeys, func(i int) string { return fmt.Sprintf("/v1/kv/bench/get/%d", i) })},
		{key: "health", label: "health/service ?passing", load: health("")},
		{key: "health-stale", label: "... ?stale", load: health("&stale")},
		{key: "health-cached", label: "... ?cached", load: health("&cached")},
		{key: "catalog-services", label: "catalog/services", load: gets(1, func(int) string { return "/v1/catalog/services" })},
		{key: "health-state", label: "health/state/any", load: gets(1, func(int) string { return "/v1/health/state/any" })},
		{key: "dns-a", label: "DNS A, one query in flight each", load: names(dnsTypeA, oneEach)},
		{key: "dns-srv", label: "DNS SRV, one query in flight each", load: names(dnsTypeSRV, oneEach)},
		{key: "dns-a-batch", label: "DNS A, in batches", load: names(dnsTypeA, batches)},
		{key: "dns-srv-batch", label: "DNS SRV, in batches", load: names(dnsTypeSRV, batches)},
		{key: "kv-put", label: "KV PUT", write: true, load: putKeys},
		{key: "catalog-register", label: "catalog register", write: true, load: registerInCatalog, clean: unregisterNodes},
		{key: "agent-register", label: "agent service register", write: true, load: registerWithAgent, clean: forgetAgentServices},
	}
}

// gets is a load of GET requests for n paths in turn.
func gets(n int, path func(i int) string) func(context.Context, *target, int, window) (*cell, error) {
	requests := make([][]byte, n)
	for i := range requests {
		requests[i] = appendRequest(nil, http.MethodGet, path(i), nil)
	}
	return func(ctx context.Context, t *target, conns int, w window) (*cell, error) {
		return loadHTTP(ctx, t.http, t.pid, conns, w, cycle(requests))
	}
}

func health(option string) func(context.Context, *target, int, window) (*cell, error) {
	return gets(services, func(i int) string { return "/v1/health/service/" + serviceName(i) + "?passing" + option })
}

// oneEach and batches say how many queries each of n sockets keeps in flight. 128 in all are less than a server's buffer holds.
func oneEach(int) int { return 1 }

func batches(sockets int) int { return min(maxBatch, max(1, 128/sockets)) }

// names is a load of DNS queries for all services in turn.
func names(kind uint16, inFlight func(sockets int) int) func(context.Context, *target, int, window) (*cell, error) {
	queries := make([][]byte, services)
	for i := range queries {
		queries[i] = dnsQuery(serviceName(i)+".service.consul", kind)
	}
	return func(ctx context.Context, t *target, conns int, w window) (*cell, error) {
		return loadDNS(ctx, t.dns, t.pid, conns, inFlight(conns), w, queries)
	}
}

func putKeys(ctx context.Context, t *target, conns int, w window) (*cell, error) {
	value := bytes.Repeat([]byte("v"), valueSize)
	var path []byte
	return loadHTTP(ctx, t.http, t.pid, conns, w, func(b []byte, n uint64) []byte {
		path = strconv.AppendUint(append(path[:0], "/v1/kv/bench/put/"...), n%(10*kvKeys), 10)
		t.sequence++
		strconv.AppendUint(value[:0], t.sequence, 10) // each write is a change
		b = append(b, "PUT "...)
		b = append(b, path...)
		b = append(b, " HTTP/1.1\r\nHost: bench\r\nContent-Length: 256\r\n\r\n"...)
		return append(b, value...)
	})
}

// registerInCatalog registers instances that are new, ten of a service, over a hundred nodes.
func registerInCatalog(ctx context.Context, t *target, conns int, w window) (*cell, error) {
	var body []byte
	w.limit = 20_000
	return loadHTTP(ctx, t.http, t.pid, conns, w, func(b []byte, _ uint64) []byte {
		t.sequence++
		node := int(t.sequence % nodes)
		service := "bench-reg-" + strconv.FormatUint(t.sequence/instances, 10)
		id := service + "-" + strconv.FormatUint(t.sequence%instances, 10)
		body = appendCatalogEntry(body[:0], fmt.Sprintf("bench-reg-%02d", node), node+101, service, id, 8080)
		return appendRequest(b, http.MethodPut, "/v1/catalog/register", body)
	})
}

func unregisterNodes(ctx context.Context, t *target) error {
	var known []struct{ Node string }
	if err := t.call(ctx, http.MethodGet, "/v1/catalog/nodes", nil, &known); err != nil {
		return err
	}
	for _, node := range known {
		if !strings.HasPrefix(node.Node, "bench-reg-") {
			continue
		}
		if err := t.call(ctx, http.MethodPut, "/v1/catalog/deregister", map[string]string{"Node": node.Node}, nil); err != nil {
			return err
		}
	}
	return nil
}

// registerWithAgent registers services that are new, ten instances of a name, with the agent.
func registerWithAgent(ctx context.Context, t *target, conns int, w window) (*cell, error) {
	w.limit = 8_000
	return loadHTTP(ctx, t.http, t.pid, conns, w, agentServices(t))
}

// agentServices is a source of registrations with the agent, each new.
func agentServices(t *target) source {
	var body []byte
	return func(b []byte, _ uint64) []byte {
		t.sequence++
		body = append(body[:0], `{"Name":"bench-agent-`...)
		body = strconv.AppendUint(body, t.sequence/instances, 10)
		body = append(body, `","ID":"bench-agent-`...)
		body = strconv.AppendUint(body, t.sequence, 10)
		body = append(body, `","Tags":["v1","primary"],"Meta":{"version":"1.4.2"},"Address":"127.1.0.1","Port":`...)
		body = strconv.AppendUint(body, 1024+t.sequence%60_000, 10)
		body = append(body, '}')
		return appendRequest(b, http.MethodPut, "/v1/agent/service/register", body)
	}
}

// record runs one window of a row against a target and adds its figures.
func record(ctx context.Context, t *target, r row, conns int, w window) error {
	c, err := r.load(ctx, t, conns, w)
	if err == nil && c.ops > 0 {
		key := fmt.Sprintf("%s/%d/", r.key, conns)
		t.add(key+"rate", c.rate())
		t.add(key+"p50", millis(c.latency.percentile(0.50)))
		t.add(key+"p99", millis(c.latency.percentile(0.99)))
		t.add(key+"cpu", c.micros(c.cpu))
		t.add(key+"client-cpu", c.micros(c.clientCPU))
		t.add(key+"failed", float64(c.failed))
		t.add("others", c.others())
		if c.failed > 0 {
			t.note("%s with %d connections: %d of %d failed: %s", r.label, conns, c.failed, c.answered, c.failure)
		}
	}
	if err != nil && ctx.Err() == nil {
		t.note("%s with %d connections: %v", r.label, conns, err)
		err = nil
	}
	if err == nil && r.clean != nil {
		if err := r.clean(ctx, t); err != nil {
			t.note("clean up after %s: %v", r.label, err)
		}
	}
	if err == nil {
		err = ctx.Err()
	}
	return err
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
