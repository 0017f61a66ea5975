package compat

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	grpchealth "google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/fairlead-net/fairlead/api"
	fairleadgrpc "github.com/fairlead-net/fairlead/api/grpc"
)

// instanceVariable makes the test's program an instance of two services instead; its value is the instance's name.
const instanceVariable = "FAIRLEAD_TEST_INSTANCE"

func TestMain(m *testing.M) {
	if name := os.Getenv(instanceVariable); name != "" {
		if err := playInstance(name); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// playInstance answers HTTP as the service web and gRPC's health protocol as rpc, until it is killed or its standard input
// ends, which it does with the test.
func playInstance(name string) error {
	client, err := api.FromEnv()
	if err != nil {
		return err
	}
	web, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	rpc, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(server, grpchealth.NewServer())
	failed := make(chan error, 2)
	go func() { failed <- server.Serve(rpc) }()
	go func() {
		failed <- http.Serve(web, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			<-time.After(5 * time.Millisecond) // work, so that several requests are under way
			fmt.Fprintf(w, "%s/%d", name, os.Getpid())
		}))
	}()
	ctx := context.Background()
	for service, l := range map[string]net.Listener{"web": web, "rpc": rpc} {
		if _, err := client.Register(ctx, api.Registration{
			Name: service, ID: service + "-" + name, Address: "127.0.0.1", Port: portOf(l.Addr()),
		}); err != nil {
			return err
		}
	}
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, os.Stdin)
		ended <- err
	}()
	select {
	case err = <-failed:
	case err = <-ended:
	}
	return err
}

// startInstance starts an instance's process; it is registered when kill or the test ends it at the latest.
func startInstance(t *testing.T, a *agent, name string) (pid int, kill func()) {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), self)
	cmd.Env = append(os.Environ(), instanceVariable+"="+name, "FAIRLEAD_ADDR="+a.http)
	cmd.Stderr = testWriter{t}
	stdin, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		_ = stdin.Close()
	})
	t.Cleanup(kill)
	return cmd.Process.Pid, kill
}

// callers call something at a steady rate until they are stopped, and note who answered and what failed.
type callers struct {
	wg    sync.WaitGroup
	stop  context.CancelFunc
	count atomic.Int64

	mu       sync.Mutex // guards following
	answered map[string]int
	errors   []error
}

// call calls every so often, whether or not earlier calls have been answered.
func call(t *testing.T, every time.Duration, do func(context.Context) (string, error)) *callers {
	ctx, stop := context.WithCancel(t.Context())
	c := &callers{stop: stop, answered: map[string]int{}}
	one := func() {
		who, err := do(context.WithoutCancel(ctx))
		c.count.Add(1)
		c.mu.Lock()
		defer c.mu.Unlock()
		if err != nil {
			c.errors = append(c.errors, err)
		}
		c.answered[who]++
	}
	c.wg.Go(func() {
		ticks := time.NewTicker(every)
		defer ticks.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticks.C:
				c.wg.Go(one)
			}
		}
	})
	return c
}

// heard reports whether one who answers so has answered.
func (c *callers) heard(who string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.answered[who] == 0 {
		return fmt.Errorf("no answer of %s; answers: %v", who, c.answered)
	}
	return nil
}

// finish stops the calls and fails the test for every error.
func (c *callers) finish(t *testing.T, what string) {
	t.Helper()
	c.stop()
	c.wg.Wait()
	for i, err := range c.errors {
		if i == 5 {
			break
		}
		t.Errorf("%s: %v", what, err)
	}
	t.Logf("%s: %d calls, %d errors, answers %v", what, c.count.Load(), len(c.errors), c.answered)
	if c.count.Load() == 0 {
		t.Errorf("%s: nobody called", what)
	}
}

// Five instances are killed and started again one by one, and the agent is restarted once, under 500 HTTP requests and 100
// gRPC calls a second: no caller sees an error.
func TestSDKHidesDeadInstancesAndTheAgentsRestart(t *testing.T) {
	const instances = 5
	a := startAgent(t, "dev=false")
	client, err := api.New(a.http)
	must(t, err)
	resolver := api.NewResolver(client)
	t.Cleanup(resolver.Close)

	kills := make([]func(), instances)
	pids := make([]int, instances)
	start := func(i int) {
		pids[i], kills[i] = startInstance(t, a, fmt.Sprint(i))
	}
	for i := range instances {
		start(i)
	}
	eventually(t, func() error {
		for _, service := range []string{"web", "rpc"} {
			if n := len(resolver.Service(service).Snapshot().Instances); n != instances {
				return fmt.Errorf("%d instances of %s", n, service)
			}
		}
		return nil
	})

	transport := &api.Transport{Resolver: resolver}
	t.Cleanup(transport.CloseIdleConnections)
	web := call(t, 2*time.Millisecond, getter(&http.Client{Transport: transport, Timeout: settleLimit}))
	rpc := call(t, 10*time.Millisecond, healthCaller(t, client))

	for i := range instances {
		// Dead, still in the registry, until the new process takes its place.
		kills[i]()
		goOn(t, web, 250)
		start(i)
		if i == instances/2 {
			a = a.restart()
		}
		goOn(t, web, 500)
	}
	for i, pid := range pids {
		eventually(t, func() error {
			if err := web.heard(fmt.Sprintf("%d/%d", i, pid)); err != nil {
				return fmt.Errorf("%w; %s", err, whereabouts(client, resolver, pid))
			}
			return nil
		})
	}
	web.finish(t, "HTTP")
	rpc.finish(t, "gRPC")
}

// whereabouts tells what is known of an instance's process: by the kernel, by the agent and by those who call it.
func whereabouts(c *api.Client, r *api.Resolver, pid int) string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) // empty: it has ended
	here, err := c.Do(ctx, http.MethodGet, "/v1/agent/services", nil)
	found, err2 := c.Do(ctx, http.MethodGet, "/v1/health/service/web", nil)
	return fmt.Sprintf("process: %s; callers know %+v; agent: %s %v; health: %s %v", stat, r.Service("web").Snapshot().Instances, here, err, found, err2)
}

// goOn waits until so many more calls have been made.
func goOn(t *testing.T, c *callers, n int64) {
	t.Helper()
	until := c.count.Load() + n
	eventually(t, func() error {
		if now := c.count.Load(); now < until {
			return fmt.Errorf("%d calls; want %d", now, until)
		}
		return nil
	})
}

func getter(c *http.Client) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://web.service.consul/", nil)
		if err != nil {
			return "", err
		}
		res, err := c.Do(req)
		if err != nil {
			return "", err
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err == nil && res.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s %s", res.Status, b)
		}
		return string(b), err
	}
}

func healthCaller(t *testing.T, client *api.Client) func(context.Context) (string, error) {
	t.Helper()
	conn, err := grpc.NewClient("fairlead:///rpc",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithResolvers(fairleadgrpc.NewBuilder(client, fairleadgrpc.Options{Idempotent: []string{"grpc.health.v1.Health/Check"}})))
	must(t, err)
	t.Cleanup(func() { must(t, conn.Close()) })
	health := grpc_health_v1.NewHealthClient(conn)
	return func(ctx context.Context) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, settleLimit)
		defer cancel()
		res, err := health.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
		return res.GetStatus().String(), err
	}
}
