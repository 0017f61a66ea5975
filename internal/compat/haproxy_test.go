package compat

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/consul/api"
)

const haproxyConfig = `
global
  log stdout format raw local0
defaults
  mode http
  timeout connect 2s
  timeout client 5s
  timeout server 5s
resolvers fairlead
  nameserver n1 %s
  accepted_payload_size 8192
  resolve_retries 3
  timeout resolve 200ms
  timeout retry 200ms
  hold valid 200ms
  hold obsolete 0s
backend web
  balance roundrobin
  server-template web 4 _web._tcp.service.consul resolvers fairlead resolve-opts allow-dup-ip resolve-prefer ipv4 init-addr none
frontend in
  bind %s
  default_backend web
`

// TestHAProxyFollowsServiceRecords runs HAProxy with servers from SRV records: it reaches the instances that pass, and only them.
func TestHAProxyFollowsServiceRecords(t *testing.T) {
	a := startAgent(t)
	agent := a.client().Agent()
	for _, name := range []string{"one", "two", "three"} {
		must(t, agent.ServiceRegister(&api.AgentServiceRegistration{
			ID: name, Name: "web", Address: "127.0.0.1", Port: webServer(t, name),
			Check: &api.AgentServiceCheck{TTL: "1h", Status: api.HealthPassing},
		}))
	}
	dir, front := t.TempDir(), freePort(t)
	config := filepath.Join(dir, "haproxy.cfg")
	must(t, os.WriteFile(config, fmt.Appendf(nil, haproxyConfig, a.dns, front), 0o600))
	start(t, dir, clientProgram(t, "haproxy"), "-db", "-f", config)

	expectServers(t, front, "one", "three", "two")
	must(t, agent.UpdateTTL("service:two", "down", api.HealthCritical))
	expectServers(t, front, "one", "three")
	must(t, agent.ServiceDeregister("one"))
	expectServers(t, front, "three")
	must(t, agent.UpdateTTL("service:two", "up", api.HealthPassing))
	expectServers(t, front, "three", "two")
}

// expectServers waits until requests are answered by just these servers.
func expectServers(t *testing.T, front string, want ...string) {
	t.Helper()
	eventually(t, func() error {
		seen := map[string]int{}
		for range 4 * len(want) {
			resp, err := http.Get("http://" + front + "/")
			if err != nil {
				return err
			}
			body, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil {
				return err
			}
			seen[string(body)]++
		}
		for _, name := range want {
			if seen[name+"\n"] == 0 {
				return fmt.Errorf("nothing from %s: %v", name, seen)
			}
		}
		if len(seen) != len(want) {
			return fmt.Errorf("want answers of %v, got %v", want, seen)
		}
		return nil
	})
}
