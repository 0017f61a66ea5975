package story

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	miekg "github.com/miekg/dns"

	"github.com/fairlead-net/fairlead/internal/testlab"
)

// An instance that fails is out of DNS and the balancer as soon as its check says so, and nobody is sent there any more.
func TestInstanceKilledUnderLoad(t *testing.T) {
	t.Parallel()
	t.Run("its server stops", func(t *testing.T) {
		t.Parallel()
		untilQuiet(t, func(a *agent, name string) error {
			return syscall.Kill(a.workload(name).PID, syscall.SIGUSR1)
		})
	})
	t.Run("its workload is killed", func(t *testing.T) {
		t.Parallel()
		untilQuiet(t, func(a *agent, name string) error {
			return os.WriteFile(filepath.Join(a.workload(name).Cgroup, "cgroup.kill"), []byte("1"), 0)
		})
	})
}

// balancerLimit is how far the balancer may be behind the catalogue, on a machine that runs other tests as well.
const balancerLimit = 100 * time.Millisecond

// untilQuiet repeats what a machine too busy for the checks of the other instances has spoilt: with all of them critical the VIP
// refuses, which is no connection to the killed one.
func untilQuiet(t *testing.T, kill func(a *agent, name string) error) {
	for range 4 {
		others := killedUnderLoad(t, kill)
		if others == "" {
			return
		}
		t.Logf("once more, since the machine is too busy: %s", others)
	}
	t.Fatal("the machine is too busy for this test")
}

// killedUnderLoad returns what was wrong with the other instances meanwhile.
func killedUnderLoad(t *testing.T, kill func(a *agent, name string) error) (others string) {
	const rate = 500
	const victim = "web-2"
	a := newAgent(t, testlab.New(t).Host("n1"))
	defer a.down()
	a.webs(3)
	a.run("my-network", "cl")
	address := a.workload(victim).Endpoints[0].Addrs[0].String()
	vip := net.JoinHostPort(a.service("web").VIP4.String(), "80")

	ctx, cancel := context.WithTimeout(t.Context(), callerLimit)
	defer cancel()
	type noticed struct {
		what string
		at   time.Duration
		err  error
	}
	seen := make(chan noticed)
	watch := func(what string, without func(context.Context) error) {
		go func() { err := without(ctx); seen <- noticed{what, monotonic(), err} }()
	}
	load := a.startCaller("cl", "load", vip, fmt.Sprint(rate))
	flowing(t, rate/2, load)
	watch("health", func(ctx context.Context) error { return a.untilUnhealthy(ctx, "web", victim) })
	watch("DNS", func(ctx context.Context) error { return a.untilNotAnswered(ctx, "web.service.consul.", address) })
	watch("balancer", func(ctx context.Context) error { return a.untilNotBalanced(ctx, vip, net.JoinHostPort(address, "80")) })
	flowing(t, 20, load)

	killed := monotonic()
	if err := kill(a, victim); err != nil {
		t.Fatal(err)
	}
	at := map[string]time.Duration{}
	for range 3 {
		n := <-seen
		if n.err != nil {
			t.Fatalf("%s: %v", n.what, n.err)
		}
		at[n.what] = n.at
	}
	flowing(t, 2*rate, load)
	all := finish(t, load)

	for line := range strings.Lines(a.log()) {
		if strings.Contains(line, "to=critical") && !strings.Contains(line, "service="+victim+" ") {
			return line
		}
	}
	bad := failed(all)
	// The balancer hears of it when everybody does, and then has to write its maps.
	told := max(at["health"], at["balancer"])
	if behind := at["balancer"] - at["health"]; behind > balancerLimit {
		t.Errorf("the balancer was %v behind the catalogue", behind)
	}
	var late []try
	for _, c := range all {
		if c.Start > told && (c.Err != "" || c.Name == victim) {
			late = append(late, c)
		}
	}
	seconds := (all[len(all)-1].Start - all[0].Start).Seconds()
	t.Logf("%d new connections in %.1f s (%.0f/s): %d failed, the last %v after the kill", len(all), seconds, float64(len(all))/seconds, len(bad), lastStart(bad, killed))
	t.Logf("without it after the kill: health %v, DNS %v, balancer %v", (at["health"] - killed).Round(100*time.Microsecond),
		(at["DNS"] - killed).Round(100*time.Microsecond), (at["balancer"] - killed).Round(100*time.Microsecond))
	if len(late) > 0 {
		t.Errorf("%d connections that began after the catalogue said critical and the balancer had heard went there, the last %v after: %+v", len(late), lastStart(late, told), late[0])
	}
	for _, c := range bad {
		if c.Start < killed-c.Took {
			t.Errorf("a connection failed before the kill: %+v", c)
		}
	}
	after := counted(slices.DeleteFunc(all, func(c try) bool { return c.Start <= told }))
	if len(after) != 2 || after["web-1"] == 0 || after["web-3"] == 0 {
		t.Errorf("connections went to %v afterwards", after)
	}
	return ""
}

func lastStart(all []try, since time.Duration) time.Duration {
	var last time.Duration
	for _, c := range all {
		last = max(last, c.Start-since)
	}
	return last.Round(100 * time.Microsecond)
}

// untilUnhealthy returns once the catalogue shows an instance as critical, or not at all, by blocking queries.
func (a *agent) untilUnhealthy(ctx context.Context, service, id string) error {
	client, index := a.client(), "0"
	defer client.CloseIdleConnections()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+httpAddr+"/v1/health/service/"+service+"?wait=60s&index="+index, http.NoBody)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil {
			return err
		}
		var entries []struct {
			Service struct{ ID string }
			Checks  []struct{ Status string }
		}
		if err := json.Unmarshal(body, &entries); err != nil {
			return fmt.Errorf("%s: %w", body, err)
		}
		healthy := false
		for _, e := range entries {
			if e.Service.ID == id {
				healthy = !slices.ContainsFunc(e.Checks, func(c struct{ Status string }) bool { return c.Status == "critical" })
			}
		}
		if !healthy {
			return nil
		}
		index = resp.Header.Get("X-Consul-Index")
	}
}

// untilNotAnswered returns once DNS does not give the address any more.
func (a *agent) untilNotAnswered(ctx context.Context, name, address string) error {
	c, err := a.dial(ctx, "udp", dnsAddr)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	client, conn := &miekg.Client{}, &miekg.Conn{Conn: c}
	return everyMillisecond(ctx, func() (bool, error) {
		m := new(miekg.Msg)
		m.SetQuestion(name, miekg.TypeA)
		r, _, err := client.ExchangeWithConnContext(ctx, m, conn)
		if err != nil || r.Rcode != miekg.RcodeSuccess || len(r.Answer) == 0 {
			return false, fmt.Errorf("%s: %v %v", name, r, err) //nolint:errorlint // it may be nil
		}
		return !slices.ContainsFunc(r.Answer, func(rr miekg.RR) bool {
			x, ok := rr.(*miekg.A)
			return ok && x.A.String() == address
		}), nil
	})
}

// untilNotBalanced returns once the balancer's maps give no new connections to the instance.
func (a *agent) untilNotBalanced(ctx context.Context, frontend, instance string) error {
	return everyMillisecond(ctx, func() (bool, error) {
		status, dump, err := a.try(http.MethodGet, "/fairlead/v1/datapath", "")
		if err != nil || status != http.StatusOK {
			return false, fmt.Errorf("datapath: %d %w", status, err)
		}
		for line := range strings.Lines(dump) {
			if strings.Contains(line, " "+frontend+" ") && strings.Contains(line, " tcp ") && strings.Contains(line, instance+"*") && !strings.Contains(line, instance+"*0") {
				return false, nil
			}
		}
		return true, nil
	})
}

func everyMillisecond(ctx context.Context, done func() (bool, error)) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
