package story

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/testlab"
)

// agents joins two hosts that are no servers to a site of three servers.
func agents(t *testing.T) (servers []*server, a, b *server) {
	t.Helper()
	servers = together(t)
	token := joinToken.FindString(servers[0].out.String())
	prefix := strings.TrimSuffix(servers[0].addr, "1")
	var both []*server
	for i, name := range []string{"a1", "a2"} {
		s := newServer(t, name, fmt.Sprintf("%s%d", prefix, 11+i))
		s.launch("--join", token)
		both = append(both, s)
	}
	for _, s := range both {
		s.ready()
	}
	return servers, both[0], both[1]
}

// stop ends a server or an agent as a service manager does.
func (s *server) stop() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	<-s.done
}

func (s *server) signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// register puts a service with a check by TTL, which passes.
func (s *server) register(name string) {
	s.t.Helper()
	body := fmt.Sprintf(`{"Name": %q, "Port": 80, "Check": {"TTL": "10m", "Status": "passing"}}`, name)
	if _, err := s.ask(http.MethodPut, "/v1/agent/service/register", body); err != nil {
		s.t.Fatal(err)
	}
}

// passing are the nodes on which a service passes, as one node sees it.
func (s *server) passing(service string) ([]string, error) {
	text, err := s.ask(http.MethodGet, "/v1/health/service/"+service+"?passing", "")
	var list []struct{ Node struct{ Node string } }
	if err == nil {
		err = json.Unmarshal([]byte(text), &list)
	}
	var nodes []string
	for _, e := range list {
		nodes = append(nodes, e.Node.Node)
	}
	return nodes, err
}

// within waits until a node sees a service pass on so many nodes, over HTTP and over DNS, and returns after what time it did.
func (s *server) within(limit time.Duration, service string, n int) time.Duration {
	s.t.Helper()
	begin := time.Now()
	testlab.Eventually(s.t, settleLimit, func() error {
		nodes, err := s.passing(service)
		if err == nil && len(nodes) != n {
			err = fmt.Errorf("%s sees %s pass on %v, want %d", s.name, service, nodes, n)
		}
		if err != nil {
			return err
		}
		if addrs, err := s.lookup(service); len(addrs) != n {
			return fmt.Errorf("%s answers %v (%w), want %d", s.name, addrs, err, n)
		}
		return nil
	})
	took := time.Since(begin)
	if took > limit {
		s.t.Errorf("%s: %s on %d nodes after %v, want within %v", s.name, service, n, took, limit)
	}
	return took
}

// lookup asks a node's DNS.
func (s *server) lookup(service string) ([]string, error) {
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, s.addr+":8600")
	}}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	return resolver.LookupHost(ctx, service+".service.consul.")
}

// TestAgentsComeAndGo: what an agent registers is everywhere; a crash, silence, a restart and a leave look as they should
// from another agent.
func TestAgentsComeAndGo(t *testing.T) {
	t.Parallel()
	_, a, b := agents(t)
	a.register("web")
	b.within(time.Second, "web", 1)

	metrics, err := a.ask(http.MethodGet, "/metrics", "")
	if err != nil || !strings.Contains(metrics, "\nfairlead_mirror_connected 1\n") || !strings.Contains(metrics, "\nfairlead_mirror_last_contact_seconds 0\n") ||
		strings.Contains(metrics, "\nfairlead_store_") {
		t.Errorf("its metrics: %v\n%s", err, metrics)
	}

	begin := time.Now()
	a.signal(syscall.SIGKILL)
	<-a.done
	b.within(1500*time.Millisecond, "web", 0)
	t.Logf("a crash: gone after %v", time.Since(begin).Round(time.Millisecond))
	b.sees("a1", "critical")
	a.start()
	b.within(settleLimit, "web", 1)

	a.signal(syscall.SIGSTOP)
	t.Logf("silence: gone after %v", b.within(4*time.Second, "web", 0).Round(time.Millisecond))
	a.signal(syscall.SIGCONT)
	b.within(settleLimit, "web", 1)

	text, err := a.ask(http.MethodPut, "/v1/session/create", "")
	if err != nil {
		t.Fatal(err)
	}
	var session struct{ ID string }
	if err := json.Unmarshal([]byte(text), &session); err != nil {
		t.Fatal(err)
	}
	if _, err := a.ask(http.MethodPut, "/v1/kv/lock?acquire="+session.ID, "a1"); err != nil {
		t.Fatal(err)
	}
	a.stop()
	for range 20 {
		if nodes, err := b.passing("web"); err != nil || len(nodes) != 1 {
			t.Fatalf("while it restarts: %v, %v", nodes, err)
		}
	}
	a.start()
	if text, err := b.ask(http.MethodGet, "/v1/session/info/"+session.ID, ""); err != nil || !strings.Contains(text, `"a1"`) {
		t.Errorf("its session: %s, %v", text, err)
	}
	b.within(time.Second, "web", 1)

	if _, err := a.ask(http.MethodPut, "/v1/agent/leave", ""); err != nil {
		t.Fatal(err)
	}
	t.Logf("leaving: gone after %v", b.within(2*time.Second, "web", 0).Round(time.Millisecond))
	<-a.done
}

// TestAgentsLiveWithoutServers: with all of them gone reading, names and registering go on, also over a restart of the agent; what
// happened meanwhile is known once they are back, the death of another agent included.
func TestAgentsLiveWithoutServers(t *testing.T) {
	t.Parallel()
	servers, a, b := agents(t)
	a.register("web")
	b.within(time.Second, "web", 1)
	for _, s := range servers {
		s.kill()
	}
	alone := func() {
		t.Helper()
		b.within(time.Second, "web", 1)
		if _, err := b.ask(http.MethodPut, "/v1/kv/k", "v"); err == nil || !strings.Contains(err.Error(), "No cluster leader") {
			t.Errorf("a key without servers: %v", err)
		}
		if _, err := b.ask(http.MethodGet, "/readyz", ""); err == nil || !strings.Contains(err.Error(), "no server can be reached") {
			t.Errorf("it is ready without servers: %v", err)
		}
	}
	alone()
	b.register("late")
	b.stop()
	b.launch()
	testlab.Eventually(t, settleLimit, func() error {
		_, err := b.ask(http.MethodGet, "/v1/agent/service/late", "")
		return err
	})
	alone()
	a.kill()
	for _, s := range servers {
		s.launch()
	}
	for _, s := range servers {
		s.ready()
	}
	servers[2].within(settleLimit, "late", 1)
	servers[1].within(settleLimit, "web", 0)
	a.launch()
	a.ready()
	b.within(settleLimit, "web", 1)
}

// TestANodesNameIsItsOwn: another host cannot take the name of one that lives, and may when that one is gone.
func TestANodesNameIsItsOwn(t *testing.T) {
	t.Parallel()
	servers, a, _ := agents(t)
	token := joinToken.FindString(servers[0].out.String())
	other := newServer(t, a.name, strings.TrimSuffix(a.addr, "11")+"21")
	other.launch("--join", token)
	<-other.done
	var exit interface{ ExitCode() int }
	if !errors.As(other.err, &exit) || !strings.Contains(other.out.String(), "name") {
		t.Fatalf("a second %s: %v\n%s", a.name, other.err, other.out)
	}
	a.kill()
	servers[0].sees(a.name, "critical")
	other.launch("--join", token)
	other.ready()
	servers[1].sees(a.name, "passing")
}
