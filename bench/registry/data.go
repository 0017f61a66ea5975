package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// What is loaded before the reads: as many instances of each service, spread over nodes.
const (
	services  = 1000
	instances = 10
	nodes     = 100
	kvKeys    = 1000
	// valueSize is the size of a key's value in bytes.
	valueSize = 256
)

func serviceName(i int) string { return fmt.Sprintf("bench-%04d", i) }

func nodeName(i int) string { return fmt.Sprintf("bench-node-%02d", i) }

// appendCatalogEntry appends the JSON of a registration of one instance with a passing check. What it says varies with port, so that
// a second registration of the instance is a change.
func appendCatalogEntry(b []byte, node string, nodeIP int, service, id string, port uint64) []byte {
	b = append(b, `{"Node":"`...)
	b = append(b, node...)
	b = append(b, `","Address":"127.1.0.`...)
	b = strconv.AppendInt(b, int64(nodeIP), 10)
	b = append(b, `","Service":{"Service":"`...)
	b = append(b, service...)
	b = append(b, `","ID":"`...)
	b = append(b, id...)
	b = append(b, `","Tags":["v1","primary"],"Meta":{"version":"1.4.2"},"Address":"127.1.0.`...)
	b = strconv.AppendInt(b, int64(nodeIP), 10)
	b = append(b, `","Port":`...)
	b = strconv.AppendUint(b, port, 10)
	b = append(b, `},"Check":{"CheckID":"service:`...)
	b = append(b, id...)
	b = append(b, `","Name":"Service '`...)
	b = append(b, service...)
	b = append(b, `' check","Status":"passing","Output":"TCP connect 127.1.0.1:8080: Success","ServiceID":"`...)
	b = append(b, id...)
	return append(b, `"}}`...)
}

// appendInstance appends the request that registers instance j of service i.
func appendInstance(b []byte, i, j int, port uint64) []byte {
	node := (i*instances + j) % nodes
	name := serviceName(i)
	body := appendCatalogEntry(nil, nodeName(node), node+1, name, fmt.Sprintf("%s-%d", name, j), port)
	return appendRequest(b, http.MethodPut, "/v1/catalog/register", body)
}

// loadInstances registers the instances from to end of all services over 16 connections and returns what that took.
func loadInstances(ctx context.Context, t *target, from, end int) (*cell, error) {
	per := uint64(end - from)
	c, err := loadHTTP(ctx, t.http, t.pid, 16, window{length: 5 * time.Minute, limit: services * per}, func(b []byte, n uint64) []byte {
		return appendInstance(b, int(n/per), from+int(n%per), 8080)
	})
	return c, refused(c, err)
}

func loadKeys(ctx context.Context, t *target) error {
	value := bytes.Repeat([]byte("v"), valueSize)
	c, err := loadHTTP(ctx, t.http, t.pid, 16, window{length: time.Minute, limit: kvKeys}, func(b []byte, n uint64) []byte {
		return appendRequest(b, http.MethodPut, "/v1/kv/bench/get/"+strconv.FormatUint(n, 10), value)
	})
	return refused(c, err)
}

// refused turns answers that are no success into an error.
func refused(c *cell, err error) error {
	if err != nil {
		return err
	}
	if c.failed > 0 {
		return fmt.Errorf("%d of %d requests refused: %s", c.failed, c.answered, c.failure)
	}
	return nil
}

// call sends one request outside of any measurement and decodes the answer into result, which may be nil.
func (t *target) call(ctx context.Context, method, path string, body, result any) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var payload io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		payload = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://"+t.http.String()+path, payload)
	if err != nil {
		return err
	}
	response, err := t.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if response.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s: %s", method, path, response.Status, bytes.TrimSpace(text))
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(text, result); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

// unload removes what the suite has put into a server: its nodes with all they have, its keys.
func unload(ctx context.Context, t *target) error {
	var known []struct{ Node string }
	if err := t.call(ctx, http.MethodGet, "/v1/catalog/nodes", nil, &known); err != nil {
		return err
	}
	for _, node := range known {
		if len(node.Node) < 6 || node.Node[:6] != "bench-" {
			continue
		}
		if err := t.call(ctx, http.MethodPut, "/v1/catalog/deregister", map[string]string{"Node": node.Node}, nil); err != nil {
			return err
		}
	}
	return t.call(ctx, http.MethodDelete, "/v1/kv/bench/?recurse", nil, nil)
}

// forgetAgentServices deregisters the services that the suite has registered with the agent itself.
func forgetAgentServices(ctx context.Context, t *target) error {
	var known map[string]struct{ ID string }
	if err := t.call(ctx, http.MethodGet, "/v1/agent/services", nil, &known); err != nil {
		return err
	}
	var requests [][]byte
	for id := range known {
		if len(id) > 6 && id[:6] == "bench-" {
			requests = append(requests, appendRequest(nil, http.MethodPut, "/v1/agent/service/deregister/"+id, nil))
		}
	}
	if len(requests) == 0 {
		return nil
	}
	c, err := loadHTTP(ctx, t.http, t.pid, 16, window{length: 5 * time.Minute, limit: uint64(len(requests))}, cycle(requests))
	return refused(c, err)
}
