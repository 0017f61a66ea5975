package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"

	"github.com/fairlead-net/fairlead/api"
)

// agent answers as an agent does, with a small fixed world and a key/value store.
type agent struct {
	http *httptest.Server
	dns  string
	dir  string // $DIR in scripts

	mu       sync.Mutex // guards following
	seen     []string
	index    uint64
	kv       []api.KV // sorted by key
	changed  chan struct{}
	sessions []string
}

// newAgent starts one that every command of the test finds.
func newAgent(t *testing.T) *agent {
	a := &agent{index: 10, changed: make(chan struct{}), dir: t.TempDir()}
	a.http = httptest.NewServer(http.HandlerFunc(a.serve))
	t.Cleanup(a.http.Close)
	a.dns = startDNS(t)
	t.Setenv("FAIRLEAD_ADDR", a.http.URL)
	t.Setenv("FAIRLEAD_DNS_ADDR", a.dns)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	return a
}

var sourcePort = regexp.MustCompile(`127\.0\.0\.1:\d+->`)

// anonymous replaces what differs from run to run.
func (a *agent) anonymous(s string) string {
	s = strings.ReplaceAll(s, a.http.URL, "http://AGENT")
	s = strings.ReplaceAll(s, a.dns, "DNS")
	s = strings.ReplaceAll(s, a.dir, "$DIR")
	return sourcePort.ReplaceAllString(s, "HERE->")
}

// requests returns what was asked since the last call.
func (a *agent) requests() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := a.seen
	a.seen = nil
	return all
}

func (a *agent) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	asked := r.Method + " " + r.URL.RequestURI()
	if tok := r.Header.Get("X-Consul-Token"); tok != "" {
		asked += " as " + tok
	}
	if len(body) > 0 && r.URL.Path != "/v1/snapshot" {
		var short bytes.Buffer
		if json.Compact(&short, body) == nil {
			asked += " " + short.String()
		} else {
			asked += " " + strconv.Quote(string(body))
		}
	}
	a.mu.Lock()
	a.seen = append(a.seen, asked)
	a.mu.Unlock()
	switch path := r.URL.Path; {
	case strings.HasPrefix(path, "/v1/session/") || strings.HasPrefix(path, "/v1/event/"):
		a.serveSessions(w, r, body)
	case strings.HasPrefix(path, "/v1/kv/"):
		a.serveKV(w, r, strings.TrimPrefix(path, "/v1/kv/"), body)
	case strings.HasPrefix(path, "/v1/acl/"):
		serveACL(w, r, strings.TrimPrefix(path, "/v1/acl/"), body)
	case path == "/v1/agent/service/register":
		a.register(w, body)
	case path == "/v1/snapshot":
		serveSnapshot(w, r, body)
	case strings.HasPrefix(path, "/v1/agent/service/deregister/"):
		if id := strings.TrimPrefix(path, "/v1/agent/service/deregister/"); id != "web-1" {
			http.Error(w, fmt.Sprintf("Unknown service ID %q. Ensure that the service ID is passed, not the service name.", id), http.StatusNotFound)
		}
	case path == "/v1/agent/maintenance" || path == "/v1/agent/reload":
	case strings.HasPrefix(path, "/v1/agent/service/maintenance/"):
		if id := strings.TrimPrefix(path, "/v1/agent/service/maintenance/"); id != "web-1" {
			http.Error(w, fmt.Sprintf("Unknown service ID %q. Ensure that the service ID is passed, not the service name.", id), http.StatusNotFound)
		}
	case path == api.Prefix+"/datapath":
		_, _ = io.WriteString(w, "frontend scope=1 240.0.0.7:80/tcp ok\nbackend scope=1 240.0.0.7:80/tcp 10.210.0.2:80 weight=1\n")
	case r.Method == http.MethodPost && path == api.Prefix+"/networks":
		http.Error(w, "create network taken: it exists already; 'fairlead network ls' lists networks", http.StatusConflict)
	default:
		fixed(w, strings.TrimPrefix(path, api.Prefix))
	}
}

func (a *agent) register(w http.ResponseWriter, body []byte) {
	var s struct{ Name string }
	_ = json.Unmarshal(body, &s)
	switch s.Name {
	case "":
		http.Error(w, "Missing service name", http.StatusBadRequest)
	case "late":
		w.Header().Add("X-Fairlead-Warning", "the catalogue does not show it yet")
	}
}

// fixed answers from the fixed world.
func fixed(w http.ResponseWriter, path string) {
	at := netip.MustParseAddr("10.210.0.2")
	endpoint := api.Endpoint{
		ID: "e1", Workload: "web-1", Network: "my-network", Node: "host-1", Addrs: []netip.Addr{at}, MAC: "02:00:00:00:00:01",
		HostIf: "flv0000e1", Ports: []api.Port{{Proto: "tcp", HostPort: 8080, Port: 80, Expose: "host"}},
	}
	network := api.Network{
		Name: "my-network", Driver: "bridge", Node: "host-1",
		Subnets: []api.Subnet{{Prefix: netip.MustParsePrefix("10.210.0.0/24"), Gateway: netip.MustParseAddr("10.210.0.1")}},
	}
	service := api.ServiceInfo{
		Name: "web", VIP4: netip.MustParseAddr("240.0.0.7"), VIP6: netip.MustParseAddr("fd00::7"), Tags: []string{"v1"},
		Instances: []api.InstanceInfo{
			{
				ID: "web-1", Node: "host-1", Address: "10.210.0.2", Port: 80, Status: "passing", Tags: []string{"v1"}, Meta: map[string]string{"b": "2", "a": "1"},
				Checks: []api.CheckInfo{{ID: "serfHealth", Status: "passing", Output: "Agent alive and reachable"}, {ID: "service:web-1", Name: "web", Status: "passing", Output: "HTTP GET http://10.210.0.2:80/: 200 OK Output: \x1b[31mhello\n\nworld\n"}},
			},
			{ID: "web-2", Node: "host-2", Address: "fd00::2", Port: 80, Status: "critical", Tags: []string{}, Checks: []api.CheckInfo{{ID: "service:web-2", Status: "critical", Output: strings.Repeat("long ", 60)}}},
		},
	}
	answers := map[string]any{
		"/host":     api.Host{Node: "host-1", RunDir: "/run/fairlead", Cgroup: "/sys/fs/cgroup/fairlead.slice"},
		"/networks": []api.Network{network},
		"/networks/my-network": func() api.Network {
			n := network
			n.Endpoints = []api.Endpoint{endpoint}
			return n
		}(),
		"/networks/db": api.Network{
			Name: "db", Driver: "bridge", Node: "host-1", MTU: 9000, Internal: true, Labels: map[string]string{"team": "a", "env": "b\x1b"},
			Subnets: []api.Subnet{{
				Prefix: netip.MustParsePrefix("10.20.0.0/24"), Gateway: netip.MustParseAddr("10.20.0.254"),
				Reserved: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/28"), netip.MustParsePrefix("10.20.0.99/32")},
			}},
		},
		"/workloads":    []api.Workload{{Name: "web-1", PID: 77, Command: []string{"httpd", "-f"}, State: "running", Service: "web", Endpoints: []api.Endpoint{endpoint}}},
		"/services":     []api.ServiceInfo{service, {Name: "idle", Tags: []string{}, Instances: []api.InstanceInfo{}}},
		"/services/web": service,
		"/status": api.Status{
			Node: "host-1", Site: "dc1", Version: "test", PID: 7, Leader: "host-1", Servers: []string{"host-1"}, Index: 12,
			Services: 2, Nodes: 1, Networks: 1, Endpoints: 1, Problems: []string{"this host's own firewall drops forwarded packets: table inet filter chain forward (policy drop)"},
		},
	}
	v, ok := answers[path]
	if !ok {
		http.Error(w, fmt.Sprintf("%s: no such thing; 'fairlead %s ls' lists them", path, strings.TrimSuffix(strings.Split(path, "/")[1], "s")), http.StatusNotFound)
		return
	}
	_ = json.NewEncoder(w).Encode(v)
}

func (a *agent) serveKV(w http.ResponseWriter, r *http.Request, key string, body []byte) {
	q := r.URL.Query()
	a.mu.Lock()
	defer a.mu.Unlock()
	if r.Method == http.MethodGet {
		if after, err := strconv.ParseUint(q.Get("index"), 10, 64); err == nil && after >= a.index {
			changed := a.changed
			a.mu.Unlock()
			select {
			case <-changed:
			case <-r.Context().Done():
			}
			a.mu.Lock()
		}
		a.getKV(w, key, q)
		return
	}
	i, there := slices.BinarySearchFunc(a.kv, key, func(kv api.KV, key string) int { return strings.Compare(kv.Key, key) })
	if q.Has("cas") {
		var now uint64
		if there {
			now = a.kv[i].ModifyIndex
		}
		if q.Get("cas") != strconv.FormatUint(now, 10) {
			_, _ = io.WriteString(w, "false")
			return
		}
	}
	if !a.lockKVLocked(w, q, i, there) {
		return
	}
	a.index++
	switch flags, _ := strconv.ParseUint(q.Get("flags"), 10, 64); {
	case r.Method == http.MethodDelete:
		a.kv = slices.DeleteFunc(a.kv, func(kv api.KV) bool {
			return kv.Key == key || q.Has("recurse") && strings.HasPrefix(kv.Key, key)
		})
	case there:
		a.kv[i].Value, a.kv[i].ModifyIndex, a.kv[i].Flags = body, a.index, flags
	default:
		a.kv = slices.Insert(a.kv, i, api.KV{Key: key, Value: body, Flags: flags, CreateIndex: a.index, ModifyIndex: a.index})
	}
	a.setLockLocked(key, q)
	close(a.changed)
	a.changed = make(chan struct{})
	_, _ = io.WriteString(w, "true")
}

func (a *agent) getKV(w http.ResponseWriter, key string, q url.Values) {
	keys := q.Has("keys")
	tree := keys || q.Has("recurse")
	w.Header().Set("X-Consul-Index", strconv.FormatUint(a.index, 10))
	found, names := []api.KV{}, []string{}
	for _, kv := range a.kv {
		if kv.Key == key || tree && strings.HasPrefix(kv.Key, key) {
			found = append(found, kv)
			name := kv.Key
			if i := strings.Index(name[len(key):], q.Get("separator")); q.Has("separator") && i >= 0 {
				name = name[:len(key)+i+1]
			}
			names = append(names, name)
		}
	}
	switch {
	case len(found) == 0:
		w.WriteHeader(http.StatusNotFound)
	case keys:
		_ = json.NewEncoder(w).Encode(slices.Compact(names))
	default:
		_ = json.NewEncoder(w).Encode(found)
	}
}

// startDNS serves a few names over UDP and TCP at one port of the loopback.
func startDNS(t *testing.T) string {
	t.Helper()
	var lc net.ListenConfig
	for range 20 { // the port may be free for one protocol only
		l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		pc, err := lc.ListenPacket(t.Context(), "udp", l.Addr().String())
		if err != nil {
			l.Close()
			continue
		}
		for _, s := range []*dns.Server{{Listener: l, Handler: dns.HandlerFunc(answerDNS)}, {PacketConn: pc, Handler: dns.HandlerFunc(answerDNS)}} {
			started := make(chan struct{})
			s.NotifyStartedFunc = func() { close(started) }
			done := make(chan error, 1)
			go func() { done <- s.ActivateAndServe() }()
			<-started
			t.Cleanup(func() {
				_ = s.Shutdown()
				<-done
			})
		}
		return l.Addr().String()
	}
	t.Fatal("no port is free for both UDP and TCP")
	return ""
}

func answerDNS(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg).SetReply(q)
	m.Authoritative = true
	rr := func(texts ...string) (all []dns.RR) {
		for _, text := range texts {
			r, err := dns.NewRR(text)
			if err != nil {
				panic(err)
			}
			all = append(all, r)
		}
		return all
	}
	explain := func(why string) {
		m.SetEdns0(dnsPayload, false).IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeOther, ExtraText: why}}
	}
	_, udp := w.LocalAddr().(*net.UDPAddr)
	switch key := q.Question[0].Name + " " + dns.TypeToString[q.Question[0].Qtype]; {
	case key == "web.service.consul. A":
		m.Answer = rr("web.service.consul. 0 IN A 10.210.0.2", "web.service.consul. 0 IN A 10.210.0.3")
	case key == "web.service.consul. AAAA":
	case key == "web.service.consul. SRV":
		m.Answer = rr("web.service.consul. 0 IN SRV 1 1 80 0ad20002.addr.dc1.consul.")
		m.Extra = rr("0ad20002.addr.dc1.consul. 0 IN A 10.210.0.2")
	case key == "big.service.consul. A" && udp:
		m.Truncated = true
	case key == "big.service.consul. A":
		m.Answer = rr("big.service.consul. 0 IN A 10.210.0.9")
	case strings.HasPrefix(key, "example.com."):
		m.Rcode = dns.RcodeServerFailure
	case strings.HasPrefix(key, "example.net."):
		m.Rcode = dns.RcodeServerFailure
		explain("ask 192.0.2.53:53: no\x1bwhere")
	case key == "web.service.dc2.consul. A":
		m.Rcode = dns.RcodeNameError
		explain("no site (datacenter) dc2 is known here")
	case strings.HasPrefix(key, "elsewhere."):
		m.Rcode = dns.RcodeRefused
	default:
		m.Rcode = dns.RcodeNameError
	}
	_ = w.WriteMsg(m)
}
