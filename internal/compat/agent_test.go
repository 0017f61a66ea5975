package compat

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// status is the status code of an error of Consul's client, 0 for another.
func status(err error) int {
	var s api.StatusError
	if errors.As(err, &s) {
		return s.Code
	}
	return 0
}

func expectStatus(t *testing.T, err error, code int, part string) {
	t.Helper()
	if status(err) != code || !strings.Contains(err.Error(), part) {
		t.Errorf("%v, want a %d with %q", err, code, part)
	}
}

func TestAgentServices(t *testing.T) {
	c := startAgent(t).client()
	a := c.Agent()
	reg := &api.AgentServiceRegistration{
		ID: "web-1", Name: "web", Tags: []string{"v1"}, Port: 8080, Address: "127.0.0.2", Meta: map[string]string{"k": "v"},
		TaggedAddresses: map[string]api.ServiceAddress{"lan": {Address: "127.0.0.3", Port: 81}},
		Weights:         &api.AgentWeights{Passing: 3, Warning: 1}, EnableTagOverride: true,
		Connect: &api.AgentServiceConnect{Native: true}, Locality: &api.Locality{Region: "r", Zone: "z"},
		Check:  &api.AgentServiceCheck{TTL: "1h", Status: "passing"},
		Checks: api.AgentServiceChecks{{CheckID: "up", Name: "Up", TCP: "127.0.0.1:1", Interval: "1h", Timeout: "1s", Notes: "n"}},
	}
	must(t, a.ServiceRegister(reg))
	s, meta, err := a.Service("web-1", nil)
	must(t, err)
	if s.Service != "web" || s.Port != 8080 || s.Weights.Passing != 3 || !s.Connect.Native || s.Locality.Zone != "z" || !s.EnableTagOverride ||
		s.TaggedAddresses["lan"].Port != 81 || s.Meta["k"] != "v" || s.Datacenter != "dc1" || s.ContentHash == "" || meta.LastContentHash != s.ContentHash {
		t.Errorf("%+v, %+v", s, meta)
	}
	services, err := a.ServicesWithFilter(`Meta.k == "v" and Port == 8080`)
	if err != nil || len(services) != 1 {
		t.Errorf("%v, %v", services, err)
	}
	if services, err = a.ServicesWithFilter(`Port == 1`); err != nil || len(services) != 0 {
		t.Errorf("%v, %v", services, err)
	}
	checks, err := a.ChecksWithFilter(`ServiceID == "web-1"`)
	if err != nil || len(checks) != 2 || checks["service:web-1:1"].Type != "ttl" || checks["up"].Notes != "n" {
		t.Errorf("%v, %v", checks, err)
	}

	// Whoever waits for something else to be said of a service is told at once.
	told := make(chan *api.AgentService, 1)
	go func() {
		later, _, err := a.Service("web-1", &api.QueryOptions{WaitHash: s.ContentHash, WaitTime: time.Minute})
		if err != nil {
			t.Error(err)
		}
		told <- later
	}()
	reg.Port = 8081
	must(t, a.ServiceRegisterOpts(reg, api.ServiceRegisterOpts{ReplaceExistingChecks: true}))
	select {
	case later := <-told:
		if later == nil || later.Port != 8081 {
			t.Errorf("%+v", later)
		}
	case <-time.After(settleLimit):
		t.Error("the change was not told")
	}
	must(t, a.ServiceDeregister("web-1"))
	expectStatus(t, a.ServiceDeregister("web-1"), 404, "Unknown service ID")
	_, _, err = a.Service("web-1", nil)
	expectStatus(t, err, 404, "unknown service ID: web-1")
	expectStatus(t, a.ServiceRegister(&api.AgentServiceRegistration{Port: 1}), 400, "Missing service name")

	// A proxy is found for the service that it stands for.
	must(t, a.ServiceRegister(&api.AgentServiceRegistration{
		Kind: api.ServiceKindConnectProxy, Name: "web-proxy", Port: 20000,
		Proxy: &api.AgentServiceConnectProxyConfig{DestinationServiceName: "web", LocalServicePort: 8080},
	}))
	if s, _, err = a.Service("web-proxy", nil); err != nil || s.Kind != api.ServiceKindConnectProxy || s.Proxy.DestinationServiceName != "web" {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestAgentChecks(t *testing.T) {
	c := startAgent(t).client()
	a := c.Agent()
	must(t, a.ServiceRegister(&api.AgentServiceRegistration{Name: "web", Port: 80}))
	must(t, a.CheckRegister(&api.AgentCheckRegistration{ID: "disk", Name: "Disk", AgentServiceCheck: api.AgentServiceCheck{TTL: "1h"}}))
	must(t, a.CheckRegister(&api.AgentCheckRegistration{ID: "up", Name: "Up", ServiceID: "web", AgentServiceCheck: api.AgentServiceCheck{TTL: "1h", Status: "passing"}}))
	for _, step := range []struct {
		do     func() error
		status string
		output string
	}{
		{func() error { return a.WarnTTL("disk", "half full") }, "warning", "half full"},
		{func() error { return a.PassTTL("disk", "empty") }, "passing", "empty"},
		{func() error { return a.FailTTL("disk", "full") }, "critical", "full"},
		{func() error { return a.UpdateTTL("disk", "fine", "pass") }, "passing", "fine"},
	} {
		must(t, step.do())
		checks, err := a.Checks()
		if ch := checks["disk"]; err != nil || ch.Status != step.status || ch.Output != step.output || ch.ServiceID != "" {
			t.Errorf("%+v, %v", ch, err)
		}
	}
	node, _, err := c.Health().Node("n1", nil)
	must(t, err)
	if len(node) != 3 { // with serfHealth
		t.Errorf("the catalogue has %d checks: %+v", len(node), node)
	}
	if entries, _, err := c.Health().Service("web", "", true, nil); err != nil || len(entries) != 1 || len(entries[0].Checks) != 3 {
		t.Errorf("%+v, %v", entries, err)
	}
	must(t, a.CheckDeregister("disk"))
	expectStatus(t, a.CheckDeregister("disk"), 404, "Unknown check ID")
	expectStatus(t, a.PassTTL("nope", ""), 404, `Unknown check ID "nope"`)
	expectStatus(t, a.CheckRegister(&api.AgentCheckRegistration{Name: "c", ServiceID: "nope", AgentServiceCheck: api.AgentServiceCheck{TTL: "1h"}}), 404, `ServiceID "nope" does not exist`)
	expectStatus(t, a.CheckRegister(&api.AgentCheckRegistration{Name: "c", AgentServiceCheck: api.AgentServiceCheck{Args: []string{"/bin/true"}, Interval: "1s"}}), 500,
		"Scripts are disabled on this agent from remote calls")
}

// TestAgentChecksOfAllKinds registers a check of each kind that can be asked for real here, and waits for what it says.
func TestAgentChecksOfAllKinds(t *testing.T) {
	c := startAgent(t, "script-checks=on").client()
	a := c.Agent()
	l := listenLoopback(t)
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello") })}
	go web.Serve(l)
	defer web.Close()
	at := l.Addr().String()
	script := filepath.Join(t.TempDir(), "check")
	must(t, os.WriteFile(script, []byte("#!/bin/sh\necho so so\nexit 1\n"), 0o700))
	must(t, a.ServiceRegister(&api.AgentServiceRegistration{Name: "web", Port: 80, Check: &api.AgentServiceCheck{CheckID: "web", TTL: "1h", Status: "passing"}}))
	tests := []struct {
		check          api.AgentServiceCheck
		kind           string
		status, output string
	}{
		{api.AgentServiceCheck{HTTP: "http://" + at, Interval: "1h"}, "http", "passing", "HTTP GET http://" + at + ": 200 OK Output: hello"},
		{api.AgentServiceCheck{TCP: at, Interval: "1h"}, "tcp", "passing", "TCP connect " + at + ": Success"},
		{api.AgentServiceCheck{TCP: at, TCPUseTLS: true, Interval: "1h"}, "tcp", "critical", "tls"},
		{api.AgentServiceCheck{UDP: "127.0.0.1:1", Interval: "1h"}, "udp", "critical", "connection refused"},
		{api.AgentServiceCheck{GRPC: "127.0.0.1:1", Interval: "1h"}, "grpc", "critical", "connection refused"},
		{api.AgentServiceCheck{H2PING: "127.0.0.1:1", Interval: "1h"}, "h2ping", "critical", "Failed to dial"},
		{api.AgentServiceCheck{Args: []string{script}, Interval: "1h"}, "script", "warning", "so so\n"},
		{api.AgentServiceCheck{DockerContainerID: "x", Args: []string{"x"}, Interval: "1h"}, "docker", "critical", `container "x"`},
		{api.AgentServiceCheck{AliasService: "web"}, "alias", "critical", "Aliased check"},
	}
	for _, tt := range tests {
		t.Run(tt.kind, func(t *testing.T) {
			must(t, a.CheckRegister(&api.AgentCheckRegistration{ID: "c", Name: tt.kind, ServiceID: "", AgentServiceCheck: tt.check}))
			defer func() { must(t, a.CheckDeregister("c")) }()
			if tt.kind == "alias" {
				must(t, a.FailTTL("web", "down"))
			}
			eventually(t, func() error {
				checks, err := a.Checks()
				if err != nil {
					return err
				}
				if ch := checks["c"]; ch == nil || ch.Type != tt.kind || ch.Status != tt.status || !strings.Contains(ch.Output, tt.output) {
					return fmt.Errorf("%+v; want %s %q", ch, tt.status, tt.output)
				}
				return nil
			})
		})
	}
}

func TestAgentMaintenance(t *testing.T) {
	first := startAgent(t, "dev=false")
	a := first.client().Agent()
	must(t, a.ServiceRegister(&api.AgentServiceRegistration{Name: "web", Port: 80}))
	healthy := func(c *api.Client, want int) {
		t.Helper()
		if entries, _, err := c.Health().Service("web", "", true, nil); err != nil || len(entries) != want {
			t.Errorf("%d healthy instances, %v; want %d", len(entries), err, want)
		}
	}
	healthy(first.client(), 1)
	must(t, a.EnableServiceMaintenance("web", "new disks"))
	healthy(first.client(), 0)
	if word, info, err := a.AgentHealthServiceByID("web"); err != nil || word != "critical" || info.AggregatedStatus != "maintenance" || info.Checks[0].Notes != "new disks" {
		t.Errorf("%s %+v %v", word, info, err)
	}
	must(t, a.EnableNodeMaintenance(""))

	second := first.restart()
	c := second.client()
	a = c.Agent()
	healthy(c, 0)
	must(t, a.DisableServiceMaintenance("web"))
	healthy(c, 0)
	must(t, a.DisableNodeMaintenance())
	must(t, a.DisableNodeMaintenance())
	healthy(c, 1)
	expectStatus(t, a.EnableServiceMaintenance("nope", ""), 404, "Unknown service ID")
}

func TestAgentHealth(t *testing.T) {
	a := startAgent(t).client().Agent()
	for id, status := range map[string]string{"web-1": "passing", "web-2": "warning"} {
		must(t, a.ServiceRegister(&api.AgentServiceRegistration{ID: id, Name: "web", Port: 80, Check: &api.AgentServiceCheck{TTL: "1h", Status: status}}))
	}
	word, info, err := a.AgentHealthServiceByID("web-1")
	if err != nil || word != "passing" || info.AggregatedStatus != "passing" || info.Service.ID != "web-1" || len(info.Checks) != 1 {
		t.Errorf("%s %+v %v", word, info, err)
	}
	word, all, err := a.AgentHealthServiceByName("web")
	if err != nil || word != "warning" || len(all) != 2 {
		t.Errorf("%s %+v %v", word, all, err)
	}
	must(t, a.FailTTL("service:web-1", ""))
	if word, _, err = a.AgentHealthServiceByName("web"); err != nil || word != "critical" {
		t.Errorf("%s %v", word, err)
	}
	if word, info, err = a.AgentHealthServiceByID("nope"); err != nil || word != "critical" || info != nil {
		t.Errorf("%s %+v %v", word, info, err)
	}
}

func TestAgentInfo(t *testing.T) {
	a := startAgent(t).client().Agent()
	self, err := a.Self()
	must(t, err)
	if self["Config"]["NodeName"] != "n1" || self["Config"]["Server"] != true || self["DebugConfig"]["SessionTTLMin"] == nil || self["Member"]["Name"] != "n1" {
		t.Errorf("%+v", self)
	}
	if name, err := a.NodeName(); err != nil || name != "n1" {
		t.Errorf("%s %v", name, err)
	}
	if v, err := a.Version(); err != nil || v["HumanVersion"] != self["Config"]["Version"] {
		t.Errorf("%v %v", v, err)
	}
	if host, err := a.Host(); err != nil || host["Memory"] == nil || host["CPU"] == nil || host["Host"] == nil || host["Disk"] == nil {
		t.Errorf("%v %v", host, err)
	}
	m, err := a.Metrics()
	if err != nil || m.Timestamp == "" || len(m.Gauges) == 0 {
		t.Errorf("%+v %v", m, err)
	}
	members, err := a.Members(false)
	if err != nil || len(members) != 1 || members[0].Name != "n1" || members[0].Status != 1 || members[0].Tags["role"] != "consul" {
		t.Errorf("%+v %v", members, err)
	}
	if members, err = a.MembersOpts(api.MembersOpts{Filter: `Tags["role"] == "node"`}); err != nil || len(members) != 0 {
		t.Errorf("%+v %v", members, err)
	}
	if members, err = a.Members(true); err != nil || len(members) != 1 || members[0].Name != "n1.dc1" {
		t.Errorf("%+v %v", members, err)
	}
}

func TestAgentProcess(t *testing.T) {
	agent := startAgent(t)
	a := agent.client().Agent()
	must(t, a.Join("127.0.0.1", false))
	must(t, a.Join("127.0.0.1", true))
	expectStatus(t, a.Join("127.9.9.9.9", false), 500, "Failed to join")
	expectStatus(t, a.ForceLeave("nope"), 500, "No node found with name 'nope'")
	must(t, a.ForceLeavePrune("n1"))
	must(t, a.ForceLeaveOpts("n1.dc1", api.ForceLeaveOpts{WAN: true}))
	must(t, a.Reload())
	_, err := a.UpdateDefaultACLToken("x", nil)
	expectStatus(t, err, 401, "ACL support disabled")
	must(t, a.Leave())
	eventually(t, func() error {
		if _, err := a.Self(); err == nil {
			return errors.New("the agent still answers")
		}
		return nil
	})
}

func TestAgentMonitor(t *testing.T) {
	c := startAgent(t).client()
	stop := make(chan struct{})
	defer close(stop)
	plain, err := c.Agent().Monitor("debug", stop, nil)
	must(t, err)
	asJSON, err := c.Agent().MonitorJSON("debug", stop, nil)
	must(t, err)
	must(t, c.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: "web", Port: 80}))
	for lines, part := range map[<-chan string]string{plain: "[DEBUG] agent: http request: ", asJSON: `"@message":"http request"`} {
		deadline := time.After(settleLimit)
		for seen := false; !seen; {
			select {
			case line, ok := <-lines:
				if !ok {
					t.Fatal("the log ended")
				}
				seen = strings.Contains(line, part) && strings.Contains(line, "/v1/agent/service/register")
			case <-deadline:
				t.Fatalf("no line with %s", part)
			}
		}
	}
	if _, err := c.Agent().Monitor("odd", stop, nil); err == nil || !strings.Contains(err.Error(), "Unknown log level: odd") {
		t.Errorf("%v", err)
	}
}

// TestAgentACL: what takes which right.
func TestAgentACL(t *testing.T) {
	const root = "8a5e2f5a-0000-4000-8000-000000000001"
	agent := startAgent(t, "acl=true", "acl-default-policy=deny", "acl-initial-management-token="+root)
	admin := agent.client(root)
	token := func(rules string) *api.Client {
		t.Helper()
		p, _, err := admin.ACL().PolicyCreate(&api.ACLPolicy{Name: fmt.Sprintf("p%d", time.Now().UnixNano()), Rules: rules}, nil)
		must(t, err)
		tk, _, err := admin.ACL().TokenCreate(&api.ACLToken{Policies: []*api.ACLTokenPolicyLink{{ID: p.ID}}}, nil)
		must(t, err)
		return agent.client(tk.SecretID)
	}
	web := &api.AgentServiceRegistration{Name: "web", Port: 80, Check: &api.AgentServiceCheck{CheckID: "up", TTL: "1h"}}
	must(t, admin.Agent().ServiceRegister(web))
	must(t, admin.Agent().CheckRegister(&api.AgentCheckRegistration{Name: "disk", AgentServiceCheck: api.AgentServiceCheck{TTL: "1h"}}))
	acts := map[string]func(a *api.Agent) error{
		"self":        func(a *api.Agent) error { _, err := a.Self(); return err },
		"host":        func(a *api.Agent) error { _, err := a.Host(); return err },
		"metrics":     func(a *api.Agent) error { _, err := a.Metrics(); return err },
		"reload":      (*api.Agent).Reload,
		"join":        func(a *api.Agent) error { return a.Join("127.0.0.1", false) },
		"force-leave": func(a *api.Agent) error { return a.ForceLeave("n1") },
		"token":       func(a *api.Agent) error { _, err := a.UpdateDefaultACLToken("", nil); return err },
		"monitor": func(a *api.Agent) error {
			stop := make(chan struct{})
			defer close(stop)
			_, err := a.Monitor("info", stop, nil)
			return err
		},
		"register":  func(a *api.Agent) error { return a.ServiceRegister(web) },
		"service":   func(a *api.Agent) error { _, _, err := a.Service("web", nil); return err },
		"pass":      func(a *api.Agent) error { return a.PassTTL("up", "") },
		"pass-node": func(a *api.Agent) error { return a.PassTTL("disk", "") },
		"check": func(a *api.Agent) error {
			return a.CheckRegister(&api.AgentCheckRegistration{Name: "more", ServiceID: "web", AgentServiceCheck: api.AgentServiceCheck{TTL: "1h"}})
		},
		"check-node": func(a *api.Agent) error {
			return a.CheckRegister(&api.AgentCheckRegistration{Name: "disk", AgentServiceCheck: api.AgentServiceCheck{TTL: "1h"}})
		},
		"maintain":      func(a *api.Agent) error { return a.DisableServiceMaintenance("web") },
		"maintain-node": (*api.Agent).DisableNodeMaintenance,
	}
	tests := []struct {
		rules   string
		allowed string // names of acts
	}{
		{``, ""},
		{`agent "n1" { policy = "read" }`, "self metrics monitor"},
		{`agent_prefix "" { policy = "write" }`, "self metrics monitor reload join token"},
		{`operator = "read"`, "host"},
		{`operator = "write"`, "host force-leave"},
		{`service "web" { policy = "read" }`, "service"},
		{`service "web" { policy = "write" }`, "register service pass check maintain"},
		{`node "n1" { policy = "write" }`, "pass-node check-node maintain-node"},
	}
	for _, tt := range tests {
		a := token(tt.rules).Agent()
		for name, act := range acts {
			err := act(a)
			if want := slices.Contains(strings.Fields(tt.allowed), name); want != (err == nil) || (err != nil && !strings.Contains(err.Error(), "Permission denied")) {
				t.Errorf("%s: %s: %v", tt.rules, name, err)
			}
		}
	}
	a := token(`service "web" { policy = "read" }`).Agent()
	if checks, err := a.Checks(); err != nil || len(checks) == 0 || checks["disk"] != nil {
		t.Errorf("%v %v", checks, err)
	}
	if services, err := token(`node "n1" { policy = "read" }`).Agent().Services(); err != nil || len(services) != 0 {
		t.Errorf("%v %v", services, err)
	}
}

// TestTagOverride: whoever may write the catalogue has the last word on the tags of a service that allows it, and of no other.
func TestTagOverride(t *testing.T) {
	c := startAgent(t).client()
	for name, override := range map[string]bool{"open": true, "closed": false} {
		must(t, c.Agent().ServiceRegister(&api.AgentServiceRegistration{
			Name: name, Port: 80, Tags: []string{"agent"}, EnableTagOverride: override, Check: &api.AgentServiceCheck{TTL: "1h", Status: "passing"},
		}))
		_, err := c.Catalog().Register(&api.CatalogRegistration{
			Node: "n1", Address: "127.0.0.1", SkipNodeUpdate: true,
			Service: &api.AgentService{ID: name, Service: name, Port: 80, Tags: []string{"catalogue"}, EnableTagOverride: override},
		}, nil)
		must(t, err)
	}
	eventually(t, func() error {
		services, err := c.Agent().Services()
		if err != nil {
			return err
		}
		var shown []string
		for _, name := range []string{"open", "closed"} {
			entries, _, err := c.Health().Service(name, "", true, nil)
			if err != nil || len(entries) != 1 {
				return fmt.Errorf("%s: %d entries, %w", name, len(entries), err)
			}
			shown = append(shown, services[name].Tags[0], entries[0].Service.Tags[0])
		}
		if got := strings.Join(shown, " "); got != "catalogue catalogue agent agent" {
			return errors.New(got)
		}
		return nil
	})
}
