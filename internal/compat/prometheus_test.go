package compat

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"
)

const prometheusConfig = `
global:
  scrape_interval: 500ms
  scrape_timeout: 500ms
scrape_configs:
  - job_name: web
    http_sd_configs:
      - url: http://%s/prometheus/sd?service=web&tag=blue
        refresh_interval: 1s
    relabel_configs:
      - {source_labels: [__meta_fairlead_service_id], target_label: id}
      - {source_labels: [__meta_fairlead_tags], target_label: tags}
      - {source_labels: [__meta_fairlead_site], target_label: dc}
`

// TestPrometheusFindsTargets runs Debian's Prometheus with HTTP service discovery, and Prometheus' own consul_sd, which Debian
// leaves out of it: each has the instances of the service with the tag.
func TestPrometheusFindsTargets(t *testing.T) {
	a := startAgent(t)
	agent := a.client().Agent()
	ports := map[string]int{}
	register := func(id string, tags ...string) {
		t.Helper()
		ports[id] = webServer(t, "up 1")
		must(t, agent.ServiceRegister(&api.AgentServiceRegistration{
			ID: id, Name: "web", Address: "127.0.0.1", Port: ports[id], Tags: tags,
			Check: &api.AgentServiceCheck{TTL: "1h", Status: api.HealthPassing},
		}))
	}
	register("web-1", "blue", "v1")
	register("web-2", "green")
	dir, addr := t.TempDir(), freePort(t)
	config := filepath.Join(dir, "prometheus.yml")
	must(t, os.WriteFile(config, fmt.Appendf(nil, prometheusConfig, a.http), 0o600))
	start(t, dir, clientProgram(t, "prometheus"), "--config.file="+config, "--storage.tsdb.path="+dir, "--web.listen-address="+addr,
		"--web.console.templates="+dir, "--web.console.libraries="+dir)
	sd := start(t, dir, clientProgram(t, "consulsd"), a.http, "web", "blue")
	expect := func(want ...string) {
		t.Helper()
		expectTargets(t, addr, want...)
		expectDiscovered(t, sd, ports, want...)
	}

	expect("web-1 ,blue,v1, dc1")
	register("web-3", "blue")
	expect("web-1 ,blue,v1, dc1", "web-3 ,blue, dc1")
	must(t, agent.UpdateTTL("service:web-3", "busy", api.HealthWarning))
	must(t, agent.ServiceDeregister("web-1"))
	expect("web-3 ,blue, dc1")
}

// expectDiscovered waits until consul_sd's last set of targets is this.
func expectDiscovered(t *testing.T, sd *program, ports map[string]int, want ...string) {
	t.Helper()
	eventually(t, func() error {
		lines := strings.Split(strings.TrimSpace(sd.text()), "\n")
		var got []string
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &got); err != nil {
			return fmt.Errorf("%w: %s", err, lines[len(lines)-1])
		}
		for i := range got { // "id tags dc health address"
			f := strings.Fields(got[i])
			if len(f) != 5 {
				return fmt.Errorf("want five words: %q", got[i])
			}
			if address := fmt.Sprintf("127.0.0.1:%d", ports[f[0]]); f[4] != address {
				return fmt.Errorf("%s is at %s, want %s", f[0], f[4], address)
			}
			got[i] = strings.Join(f[:3], " ")
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("consul_sd has %q, want %q", got, want)
		}
		return nil
	})
}

// expectTargets waits until Prometheus scrapes just these targets.
func expectTargets(t *testing.T, addr string, want ...string) {
	t.Helper()
	eventually(t, func() error {
		resp, err := http.Get("http://" + addr + "/api/v1/targets?state=active")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var answer struct {
			Data struct {
				ActiveTargets []struct {
					Labels map[string]string `json:"labels"`
					Health string            `json:"health"`
				} `json:"activeTargets"`
			} `json:"data"`
		}
		if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
			return err
		}
		var got []string
		for _, target := range answer.Data.ActiveTargets {
			l := target.Labels
			got = append(got, strings.Join([]string{l["id"], l["tags"], l["dc"]}, " "))
			if target.Health != "up" {
				return fmt.Errorf("%v is %s", l, target.Health)
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("Prometheus scrapes %q, want %q", got, want)
		}
		return nil
	})
}
