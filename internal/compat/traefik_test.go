package compat

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"testing"

	"github.com/hashicorp/consul/api"
)

// TestTraefiksPoll replays what Traefik's consulcatalog provider asks at each refresh. It takes the two lists of a service for
// one: they must have the same instances at the same places.
func TestTraefiksPoll(t *testing.T) {
	a := startAgent(t)
	c := a.client()
	for i := range 20 {
		reg := &api.AgentServiceRegistration{
			ID: fmt.Sprintf("web-%d", (i*7)%20), Name: "web", Address: fmt.Sprintf("127.0.0.%d", i+1), Port: 80 + i, Tags: []string{"traefik.enable=true"},
			Check: &api.AgentServiceCheck{TTL: "1h", Status: api.HealthPassing},
		}
		if i%5 == 0 {
			reg.Check.Status = api.HealthCritical
		}
		must(t, c.Agent().ServiceRegister(reg))
		_, err := c.Catalog().Register(&api.CatalogRegistration{Node: fmt.Sprintf("ext-%d", (i*3)%20), Address: "192.0.2.1", Service: &api.AgentService{
			Service: "web", Port: 8000 + i, Tags: []string{"traefik.enable=true"},
		}}, nil)
		must(t, err)
	}
	for _, consistency := range []string{"", "&stale", "&consistent", "&cached"} {
		var services map[string][]string
		getJSON(t, a, "/v1/catalog/services?x"+consistency, &services)
		if want := []string{"consul", "web"}; !slices.Equal(slices.Sorted(maps.Keys(services)), want) {
			t.Errorf("services %v, want %v", services, want)
		}
		var catalog []api.CatalogService
		var health []api.ServiceEntry
		getJSON(t, a, "/v1/catalog/service/web?tag=traefik.enable%3Dtrue"+consistency, &catalog)
		getJSON(t, a, "/v1/health/service/web?tag=traefik.enable%3Dtrue"+consistency, &health)
		if len(catalog) != 40 || len(health) != 40 {
			t.Fatalf("%d and %d instances, want 40 of each", len(catalog), len(health))
		}
		for i := range catalog {
			if x, y := catalog[i], health[i]; x.Node != y.Node.Node || x.ServiceID != y.Service.ID || x.ServicePort != y.Service.Port {
				t.Errorf("place %d: %s/%s in the catalogue, %s/%s in health", i, x.Node, x.ServiceID, y.Node.Node, y.Service.ID)
			}
		}
	}
	// With watch=true it waits on these two.
	for _, path := range []string{"/v1/catalog/services", "/v1/health/state/any"} {
		index := getJSON(t, a, path, new(any))
		woken := make(chan string, 1)
		go func() {
			resp, err := http.Get("http://" + a.http + path + "?wait=30s&index=" + index)
			if err != nil {
				woken <- err.Error()
				return
			}
			_ = resp.Body.Close()
			woken <- resp.Header.Get("X-Consul-Index")
		}()
		must(t, c.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: "new" + index, Check: &api.AgentServiceCheck{TTL: "1h"}}))
		if now := <-woken; now == index || now == "" {
			t.Errorf("%s: woken at index %q, asked with %s", path, now, index)
		}
	}
}

// getJSON gets a path and returns the answer's index.
func getJSON(t *testing.T, a *agent, path string, into any) (index string) {
	t.Helper()
	resp, err := http.Get("http://" + a.http + path)
	must(t, err)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", path, resp.Status)
	}
	must(t, json.NewDecoder(resp.Body).Decode(into))
	return resp.Header.Get("X-Consul-Index")
}
