package compat

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/fairlead-net/fairlead/internal/node"
)

// settleLimit bounds everything that is expected to happen soon. It is generous since many tests share the machine.
const settleLimit = 20 * time.Second

// agent is an agent in this process that is a registry only.
type agent struct {
	t    testing.TB
	cfg  node.Config
	http string // host:port
	dns  string // host:port
	end  func()
}

// startAgent starts an agent with the settings given as name=value ("acl=true") over those of a test, on free ports of the
// loopback interface, and returns when it is ready. It ends with the test.
func startAgent(t testing.TB, settings ...string) *agent {
	t.Helper()
	given := map[string]string{
		"registry-only": "true", "dev": "true", "node-name": "n1", "advertise": "127.0.0.1",
		"run-dir": t.TempDir(), "data-dir": t.TempDir(), "resolv-conf": "/dev/null",
	}
	for _, s := range settings {
		name, value, _ := strings.Cut(s, "=")
		given[name] = value
	}
	for try := 1; ; try++ {
		a, err := launch(t, given)
		if err == nil {
			t.Cleanup(func() { a.end() })
			return a
		}
		if try == 3 || !strings.Contains(err.Error(), "in use") { // else somebody took the port in between
			t.Fatal(err)
		}
	}
}

func launch(t testing.TB, given map[string]string) (*agent, error) {
	a := &agent{t: t}
	flags := map[string]string{"http-addr": freePort(t), "dns-addr": freePort(t)}
	for k, v := range given {
		flags[k] = v
	}
	cfg, err := node.Load("", func(string) (string, bool) { return "", false }, flags)
	if err != nil {
		return nil, err
	}
	a.cfg, a.http, a.dns = cfg, cfg.HTTPAddr, cfg.DNSAddr
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	var runErr error
	go func() {
		defer close(ended)
		runErr = node.Run(ctx, cfg, "0.0.0-test", slog.New(slog.NewTextHandler(testWriter{t}, nil)))
	}()
	a.end = sync.OnceFunc(func() {
		cancel()
		<-ended
		if runErr != nil {
			t.Errorf("the agent ended: %v", runErr)
		}
	})
	deadline := time.Now().Add(settleLimit)
	for {
		select {
		case <-ended:
			return nil, fmt.Errorf("the agent did not start: %w", runErr)
		default:
		}
		err := ready(a.http)
		if err == nil {
			return a, nil
		}
		if time.Now().After(deadline) {
			a.end()
			return nil, err
		}
		<-time.After(5 * time.Millisecond)
	}
}

func ready(addr string) error {
	resp, err := http.Get("http://" + addr + "/readyz")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		return fmt.Errorf("/readyz: %d %s", resp.StatusCode, b)
	}
	return nil
}

// freePort is a port of the loopback interface that nobody listens at, with either protocol.
func freePort(t testing.TB) string {
	t.Helper()
	for range 20 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		p, err := net.ListenPacket("udp", l.Addr().String())
		if err == nil {
			err = p.Close()
		}
		if err = errors.Join(err, l.Close()); err == nil {
			return l.Addr().String()
		}
	}
	t.Fatal("no free port")
	return ""
}

func listenLoopback(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func portOf(a net.Addr) int { return a.(*net.TCPAddr).Port }

// restart ends the agent and starts it again on the same data; not for one with dev=true.
func (a *agent) restart() *agent {
	a.t.Helper()
	a.end()
	given := map[string]string{}
	for _, s := range node.Settings() {
		given[s.Name] = s.Value(a.cfg)
	}
	b, err := launch(a.t, given)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { b.end() })
	return b
}

// client is Consul's own Go client, with a token if one is given.
func (a *agent) client(token ...string) *api.Client {
	a.t.Helper()
	cfg := api.DefaultNonPooledConfig()
	cfg.Address = a.http
	for _, t := range token {
		cfg.Token = t
	}
	c, err := api.NewClient(cfg)
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

// eventually fails the test unless cond becomes nil soon.
func eventually(t testing.TB, cond func() error) {
	t.Helper()
	deadline := time.Now().Add(settleLimit)
	for {
		err := cond()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// testWriter logs for a test. What comes after its end is dropped.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Log(strings.TrimSuffix(string(p), "\n"))
	}
	return len(p), nil
}

func kv(key, value string) *api.KVPair { return &api.KVPair{Key: key, Value: []byte(value)} }
