package compat

import (
	"encoding/json"
	"fmt"
	"maps"
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
  - job_name: consul_sd
    consul_sd_configs:
      - server: %[1]s
        services: [web]
        tags: [blue]
        refresh_interval: 1s
    relabel_configs:
      - {source_labels: [__meta_consul_service_id], target_label: id}
      - {source_labels: [__meta_consul_tags], target_label: tags}
      - {source_labels: [__meta_consul_dc], target_label: dc}
  - job_name: http_sd
    http_sd_configs:
      - url: http://%[1]s/prometheus/sd?service=web&tag=blue
        refresh_interval: 1s
    relabel_configs:
      - {source_labels: [__meta_fairlead_service_id], target_label: id}
      - {source_labels: [__meta_fairlead_tags], target_label: tags}
      - {source_labels: [__meta_fairlead_site], target_label: dc}
`

// TestPrometheusFindsTargets runs Prometheus with both kinds of discovery: each has the instances of the service with the tag.
func TestPrometheusFindsTargets(t *testing.T) {
	a := startAgent(t)
	agent := a.client().Agent()
	register := func(id string, tags ...string) {
		t.Helper()
		must(t, agent.ServiceRegister(&api.AgentServiceRegistration{
			ID: id, Name: "web", Address: "127.0.0.1", Port: webServer(t, "up 1"), Tags: tags,
		}))
	}
	register("web-1", "blue", "v1")
	register("web-2", "green")
	dir, addr := t.TempDir(), freePort(t)
	config := filepath.Join(dir, "prometheus.yml")
	must(t, os.WriteFile(config, fmt.Appendf(nil, prometheusConfig, a.http), 0o600))
	start(t, dir, clientProgram(t, "prometheus"), "--config.file="+config, "--storage.tsdb.path="+dir, "--web.listen-address="+addr,
		"--web.console.templates="+dir, "--web.console.libraries="+dir)

	expectTargets(t, addr, "web-1 ,blue,v1, dc1 up")
	register("web-3", "blue")
	expectTargets(t, addr, "web-1 ,blue,v1, dc1 up", "web-3 ,blue, dc1 up")
	must(t, agent.ServiceDeregister("web-1"))
	expectTargets(t, addr, "web-3 ,blue, dc1 up")
}

// expectTargets waits until Prometheus has just these targets in each of its jobs.
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
					ScrapePool string            `json:"scrapePool"`
					Labels     map[string]string `json:"labels"`
					Health     string            `json:"health"`
				} `json:"activeTargets"`
			} `json:"data"`
		}
		if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
			return err
		}
		got := map[string][]string{}
		for _, target := range answer.Data.ActiveTargets {
			l := target.Labels
			got[target.ScrapePool] = append(got[target.ScrapePool], strings.Join([]string{l["id"], l["tags"], l["dc"], target.Health}, " "))
		}
		for _, job := range []string{"consul_sd", "http_sd"} {
			slices.Sort(got[job])
			if !slices.Equal(got[job], want) {
				return fmt.Errorf("targets of %s: %q, want %q; jobs: %v", job, got[job], want, slices.Collect(maps.Keys(got)))
			}
		}
		return nil
	})
}
