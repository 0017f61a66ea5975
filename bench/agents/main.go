package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/prometheus/procfs"
)

type options struct {
	agents  int
	rounds  int
	every   time.Duration
	binary  string
	dir     string
	verbose bool
}

func main() {
	var o options
	flag.IntVar(&o.agents, "agents", 1000, "how many agents")
	flag.IntVar(&o.rounds, "rounds", 100, "how many registrations are followed")
	flag.DurationVar(&o.every, "every", 200*time.Millisecond, "pause between them")
	flag.StringVar(&o.binary, "binary", "", "Fairlead's binary (default: it is built)")
	flag.StringVar(&o.dir, "dir", "/var/tmp", "directory on a disk for the servers' data")
	flag.BoolVar(&o.verbose, "v", false, "show the servers' and agents' logs")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "agents:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp(o.dir, "fairlead-agents-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if o.binary == "" {
		o.binary = filepath.Join(dir, "fairlead")
		if out, err := exec.CommandContext(ctx, "go", "build", "-o", o.binary, "./cmd/fairlead").CombinedOutput(); err != nil {
			return fmt.Errorf("build: %w\n%s", err, out)
		}
	}
	site, err := startSite(ctx, o, dir)
	if err != nil {
		return err
	}
	defer site.stop()
	idle, err := site.cost()
	if err != nil {
		return err
	}
	level := slog.LevelError + 1
	if o.verbose {
		level = slog.LevelInfo
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	begin := time.Now()
	all, err := startAgents(ctx, o.agents, site, filepath.Join(dir, "agents"), log)
	if err != nil {
		return err
	}
	defer all.stop()
	fmt.Printf("%d agents joined, each with a copy of %d nodes, after %v\n", o.agents, o.agents+len(site.servers), time.Since(begin).Round(100*time.Millisecond))
	if err := measure(ctx, o, site, all, idle); err != nil {
		return errors.Join(err, errors.New(site.last()))
	}
	return nil
}

func measure(ctx context.Context, o options, site *site, all *fleet, idle cost) error {
	if err := pause(ctx, 5*time.Second); err != nil {
		return err
	}
	quiet, err := site.over(ctx, 10*time.Second)
	if err != nil {
		return err
	}
	full, err := site.cost()
	if err != nil {
		return err
	}
	n := float64(o.agents)
	fmt.Printf("servers, three together: %.2f KiB of memory and %.3f %% of a CPU for each agent that is idle (%.0f MiB without agents, %.0f with)\n",
		float64(full.memory-idle.memory)/1024/n, quiet/n*100, float64(idle.memory)/(1<<20), float64(full.memory)/(1<<20))
	own, err := costOf(os.Getpid())
	if err != nil {
		return err
	}
	fmt.Printf("agents: %.2f MiB of memory each\n", float64(own.memory)/(1<<20)/n)

	var times []time.Duration
	for i := range o.rounds {
		took, err := all.register(ctx, i)
		if err != nil {
			return err
		}
		times = append(times, took...)
		if err := pause(ctx, o.every); err != nil {
			return err
		}
	}
	slices.Sort(times)
	at := func(p float64) time.Duration {
		return times[int(p*float64(len(times)-1))].Round(100 * time.Microsecond)
	}
	fmt.Printf("registered on one agent -> visible on an agent: p50 %v, p99 %v, max %v (%d registrations x %d agents; goal: p99 <= 250ms)\n",
		at(0.5), at(0.99), at(1), o.rounds, o.agents)
	return storm(ctx, site, all)
}

// storm kills the server that most agents are with.
func storm(ctx context.Context, site *site, all *fleet) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	held := map[netip.AddrPort]int{}
	for _, a := range all.agents {
		at, _ := a.client.Server()
		held[at]++
	}
	victim := site.servers[0]
	for _, s := range site.servers {
		if held[s.addr] > held[victim.addr] {
			victim = s
		}
	}
	lost := all.watchHealth(ctx)
	begin := time.Now()
	victim.kill()
	for next := begin; ; {
		away := 0
		for _, a := range all.agents {
			at, ok := a.client.Server()
			if !ok || at == victim.addr || !a.mirror.Connected() || !a.attached.Load() {
				away++
			}
		}
		if away == 0 {
			break
		}
		if now := time.Now(); now.After(next) {
			fmt.Printf("  %4.1f s: %d agents are away\n", now.Sub(begin).Seconds(), away)
			next = now.Add(time.Second)
		}
		if time.Since(begin) > time.Minute {
			return fmt.Errorf("%d agents are away a minute after their server was killed", away)
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
	took := time.Since(begin)
	if err := pause(ctx, 15*time.Second); err != nil { // verdicts would have been given by then
		return err
	}
	fmt.Printf("a server with %d agents killed: all are with another after %v (goal: 5s); agents that were taken for dead or suspect: %d (goal: 0)\n",
		held[victim.addr], took.Round(10*time.Millisecond), lost(victim.name))
	return nil
}

// cost is what processes take.
type cost struct {
	memory int     // bytes
	cpu    float64 // seconds
}

func costOf(pid int) (cost, error) {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return cost{}, err
	}
	stat, err := p.Stat()
	return cost{stat.ResidentMemory(), stat.CPUTime()}, err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return errors.Join(ctx.Err(), errors.New("stopped"))
	case <-time.After(d):
		return nil
	}
}
