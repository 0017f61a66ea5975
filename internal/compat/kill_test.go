package compat

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/fairlead-net/fairlead/internal/node"
)

const (
	// killAgentVariable makes this test binary an agent; it holds the data directory, HTTP and DNS address.
	killAgentVariable = "FAIRLEAD_KILL_AGENT"
	// killRoundsVariable says how often the agent is killed; `make kill-rounds` gives 50.
	killRoundsVariable = "FAIRLEAD_KILL_ROUNDS"
)

// An agent that is killed at any moment of a mixed load has every write that it acknowledged when it is back, its indexes have
// not gone back, and no lock was ever held by two.
func TestKilledAgentKeepsItsWord(t *testing.T) {
	if at := os.Getenv(killAgentVariable); at != "" {
		killedAgent(t, strings.Split(at, ","))
		return
	}
	rounds := 5
	if v := os.Getenv(killRoundsVariable); v != "" {
		var err error
		rounds, err = strconv.Atoi(v)
		must(t, err)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // not a secret
	v := &victim{t: t, dir: t.TempDir(), http: freePort(t), dns: freePort(t)}
	load := newKillLoad(t, v.http)
	for round := range rounds {
		v.start()
		load.verify(round)
		if t.Failed() {
			return
		}
		quiet := load.start(seed + uint64(round))
		<-time.After(time.Duration(20+r.IntN(500)) * time.Millisecond) // the moment to be killed at
		v.kill()
		quiet()
	}
	v.start()
	load.verify(rounds)
	load.report(rounds)
}

// killedAgent is the process that is killed.
func killedAgent(t *testing.T, at []string) {
	cfg, err := node.Load("", func(string) (string, bool) { return "", false }, map[string]string{
		"registry-only": "true", "node-name": "n1", "advertise": "127.0.0.1", "resolv-conf": "/dev/null",
		"run-dir": at[0] + "/run", "data-dir": at[0] + "/data", "http-addr": at[1], "dns-addr": at[2],
	})
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // should nobody kill it
	defer cancel()
	must(t, node.Run(ctx, cfg, "0.0.0-test", slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))))
}

// victim is the agent that is killed, on the same addresses and data each time.
type victim struct {
	t              *testing.T
	dir, http, dns string
	kill           func()
}

// start starts the agent and returns when it is ready.
func (v *victim) start() {
	v.t.Helper()
	self, err := os.Executable()
	must(v.t, err)
	must(v.t, os.MkdirAll(v.dir+"/run", 0o700))
	cmd := exec.Command(self, "-test.run=^TestKilledAgentKeepsItsWord$", "-test.timeout=6m")
	cmd.Env = append(os.Environ(), killAgentVariable+"="+strings.Join([]string{v.dir, v.http, v.dns}, ","))
	p := &program{cmd: cmd}
	cmd.Stdout, cmd.Stderr = p, p
	must(v.t, cmd.Start())
	v.kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	v.t.Cleanup(v.kill)
	deadline := time.Now().Add(settleLimit)
	for ready(v.http) != nil {
		if time.Now().After(deadline) {
			v.kill()
			v.t.Fatalf("not ready again:\n%s", p.text())
		}
		<-time.After(5 * time.Millisecond)
	}
}

// killLoad is what many clients wrote, and what they were told of it.
type killLoad struct {
	t       *testing.T
	client  *api.Client
	writers []*killWriter
	lockers []*locker
	watched []*watchedIndex

	mu     sync.Mutex // guards following
	holder *locker    // who was told that it holds the lock and has not begun to let go
}

func newKillLoad(t *testing.T, addr string) *killLoad {
	cfg := api.DefaultConfig()
	cfg.Address = addr
	c, err := api.NewClient(cfg)
	must(t, err)
	l := &killLoad{t: t, client: c}
	for i := range 4 {
		l.add(&kvRecords{c.KV(), fmt.Sprintf("killed/kv/%d/", i)})
	}
	for i := range 2 {
		l.add(&pairRecords{c.KV(), fmt.Sprintf("killed/pair/%d/", i)})
		l.add(&serviceRecords{c.Agent(), fmt.Sprintf("killed-%d-", i)})
	}
	for range 3 {
		l.lockers = append(l.lockers, &locker{load: l})
	}
	for _, path := range []string{"kv/killed?recurse", "catalog/services", "health/service/killed", "session/list", "catalog/nodes"} {
		l.watched = append(l.watched, &watchedIndex{t: t, url: "http://" + addr + "/v1/" + path})
	}
	return l
}

func (l *killLoad) add(r records) {
	l.writers = append(l.writers, &killWriter{records: r, t: l.t, sure: map[string]string{}})
}

// start lets every client work until its first error, and returns what waits for that.
func (l *killLoad) start(seed uint64) (quiet func()) {
	var wg sync.WaitGroup
	for i, w := range l.writers {
		wg.Go(func() { w.work(rand.New(rand.NewPCG(seed, uint64(i)))) }) //nolint:gosec // not a secret
	}
	for _, k := range l.lockers {
		wg.Go(k.work)
	}
	for _, w := range l.watched {
		wg.Go(func() {
			for w.look() == nil {
			}
		})
	}
	return wg.Wait
}

// verify compares what the agent says with what it acknowledged.
func (l *killLoad) verify(round int) {
	l.t.Helper()
	for _, w := range l.watched {
		must(l.t, w.look())
	}
	for _, w := range l.writers {
		w.verify(round)
	}
	for _, k := range l.lockers {
		k.verify(round)
	}
}

func (l *killLoad) report(rounds int) {
	acknowledged, cut, applied, taken := 0, 0, 0, 0
	for _, w := range l.writers {
		acknowledged, cut, applied = acknowledged+w.acknowledged, cut+w.cut, applied+w.applied
	}
	for _, k := range l.lockers {
		taken += k.taken
	}
	l.t.Logf("%d kills: %d acknowledged writes, all there; %d cut off, of which %d were written; a lock taken %d times, by one at a time",
		rounds, acknowledged, cut, applied, taken)
	if acknowledged == 0 || cut == 0 || taken == 0 {
		l.t.Error("the load did nothing; the test shows nothing")
	}
}
