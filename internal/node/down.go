package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead-net/fairlead/internal/datapath"
	"github.com/fairlead-net/fairlead/internal/netdrv"
	"github.com/fairlead-net/fairlead/internal/runtime/process"
)

// How long Down waits for an agent to stop and for a workload before it is
// killed.
const (
	agentGrace    = 20 * time.Second
	workloadGrace = 10 * time.Second
)

// Down ends the agent of this configuration and its workloads, and removes all
// that they made in the kernel: links, addresses, the packet filter's table,
// programs and maps, cgroups; changed sysctls get their old values back. With
// purge the data goes too. It goes on after an error. It returns what it did,
// a line each, and an error that lists what is left. No agent can start in the
// run directory meanwhile.
func Down(ctx context.Context, cfg Config, purge bool, log *slog.Logger) (done []string, err error) {
	if cfg.RegistryOnly {
		return downRegistry(ctx, cfg, purge)
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("%w: taking it down needs root; use sudo", ErrHost)
	}
	pins, err := ownPins(cfg)
	if err != nil {
		return nil, err
	}
	done, err = stopAgent(ctx, cfg)
	if err != nil {
		return done, err // a living agent would put everything back
	}
	lock, err := flockRunDir(cfg.RunDir)
	switch {
	case err == nil:
		defer func() { err = errors.Join(err, lock.Close()) }()
	case !errors.Is(err, fs.ErrNotExist):
		return done, fmt.Errorf("%w; a service manager may have started it again: stop it there", err)
	}
	// Another agent's things are not told apart from this one's in the kernel.
	namespace, err := claimNamespace()
	if err != nil {
		return done, fmt.Errorf("%w; nothing of it was removed: give 'down' the settings of that one", err)
	}
	defer func() { err = errors.Join(err, namespace.Close()) }()
	var errs []error
	note := func(lines []string, err error) {
		done = append(done, lines...)
		errs = append(errs, err)
	}
	note(stopWorkloads(ctx, cfg))
	note(purgeNetwork(ctx, cfg, log))
	note(purgeDatapath(cfg, pins))
	note(purgeCgroup(cfg))
	errs = append(errs, removeTemporary(cfg.RunDir))
	if purge {
		note(purgeData(cfg))
	}
	if err := errors.Join(errs...); err != nil {
		return done, err
	}
	return done, left(ctx, cfg, pins, purge, log)
}

// downRegistry is Down for an agent that has changed nothing in the kernel.
func downRegistry(ctx context.Context, cfg Config, purge bool) ([]string, error) {
	done, err := stopAgent(ctx, cfg)
	if err != nil {
		return done, err
	}
	errs := []error{removeTemporary(cfg.RunDir)}
	if purge {
		more, err := purgeData(cfg)
		done, errs = append(done, more...), append(errs, err)
	}
	return done, errors.Join(errs...)
}

// stopAgent ends the agent that holds the run directory, if one does.
func stopAgent(ctx context.Context, cfg Config) ([]string, error) {
	f, err := os.Open(lockPath(cfg.RunDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find the agent: %w", err)
	}
	defer f.Close() // which gives the lock up, if free got it
	free := func() bool { return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil }
	if free() {
		return nil, nil
	}
	pid := pidIn(f)
	if pid <= 0 {
		return nil, fmt.Errorf("find the agent: %s is locked and names no process: an agent is just starting or ending, or another 'down' is at work", f.Name())
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) && free() {
		return nil, nil // it has just ended
	}
	if err != nil {
		return nil, fmt.Errorf("stop the agent (pid %d): %w", pid, err)
	}
	defer unix.Close(fd) // a pidfd
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("stop the agent (pid %d): %w", pid, err)
	}
	for end := time.Now().Add(agentGrace); ; {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil && !errors.Is(err, unix.EINTR):
			return nil, fmt.Errorf("wait for the agent (pid %d): %w", pid, err)
		case free():
			return []string{fmt.Sprintf("stopped the agent (pid %d)", pid)}, nil
		case time.Now().After(end):
			return nil, fmt.Errorf("the agent (pid %d) is still there after %s; see its log, end it, and run this again", pid, agentGrace)
		}
	}
}

// stopWorkloads stops all of them at once: each may take its grace.
func stopWorkloads(ctx context.Context, cfg Config) ([]string, error) {
	table := process.NewTable(cfg.RunDir)
	all, err := table.List()
	if err != nil {
		return nil, err
	}
	stopped, errs := make([]string, len(all)), make([]error, len(all))
	var wg sync.WaitGroup
	for i, w := range all {
		if w.State == "unknown" {
			continue // its state cannot be read; it ends with the workloads' cgroup
		}
		wg.Go(func() {
			if errs[i] = errors.Join(table.Stop(ctx, w.Name, workloadGrace), table.Clear(w.Name)); errs[i] == nil {
				stopped[i] = "stopped workload " + w.Name
			}
		})
	}
	wg.Wait()
	return slices.DeleteFunc(stopped, func(s string) bool { return s == "" }), errors.Join(errs...)
}

func purgeNetwork(ctx context.Context, cfg Config, log *slog.Logger) ([]string, error) {
	host, err := openNetwork(cfg, log)
	if err != nil {
		return nil, err
	}
	done, err := host.Purge(ctx)
	return done, errors.Join(err, host.Close())
}

func openNetwork(cfg Config, log *slog.Logger) (*netdrv.Host, error) {
	pools, err := cfg.vipPools()
	if err != nil {
		return nil, err
	}
	return netdrv.New(netdrv.Config{StateDir: cfg.RunDir, VIPPools: pools, Log: log})
}

// ownPins lists where the agent's programs and maps may be pinned: where it
// recorded, and where it would pin them by its id.
func ownPins(cfg Config) ([]string, error) {
	recorded, err := recalledPins(cfg.RunDir)
	if err != nil {
		return nil, err
	}
	var all []string
	if recorded != "" {
		all = append(all, recorded)
	}
	for _, dir := range []string{cfg.RunDir, cfg.DataDir} {
		id, err := os.ReadFile(filepath.Join(dir, nodeIDFile))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			continue // an agent in development leaves the data directory alone, whatever it is
		}
		if err != nil {
			return nil, fmt.Errorf("node id: %w", err)
		}
		if pins := pinDir(cfg, strings.TrimSpace(string(id))); !slices.Contains(all, pins) {
			all = append(all, pins)
		}
	}
	return all, nil
}

func purgeDatapath(cfg Config, pins []string) ([]string, error) {
	var done []string
	for _, dir := range pins {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		cgroup, err := cfg.cgroup()
		if err != nil {
			return done, err
		}
		if err := datapath.Purge(datapath.Config{Cgroup: cgroup, PinDir: dir}); err != nil {
			return done, err
		}
		_ = os.Remove(filepath.Dir(dir)) // unless another agent's pins are beside ours
		done = append(done, "removed eBPF programs and maps")
	}
	unmounted, err := unmountBPF(cfg.RunDir)
	return append(done, unmounted...), err
}

// purgeCgroup removes the workloads' cgroup with whatever still is in it.
func purgeCgroup(cfg Config) ([]string, error) {
	cgroup, err := cfg.cgroup()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(cgroup, workloadCgroup)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err := process.RemoveCgroup(dir); err != nil {
		return nil, fmt.Errorf("remove the workloads' cgroup: %w", err)
	}
	return []string{"removed the workloads' cgroup"}, nil
}

// dataDirs are the directories that belong to this agent.
func dataDirs(cfg Config) []string {
	if cfg.Dev {
		return []string{cfg.RunDir}
	}
	return []string{cfg.DataDir, cfg.RunDir}
}

// dataFiles are what an agent keeps in its directories. A setting can name any
// directory, so that nothing else is removed with them.
var dataFiles = []string{
	nodeIDFile, "agent.pid", "registrations.json", "etcd", // also those of the store and of local
	badgeName, serversFile, catalogueFile,
	"workloads", "logs", "sysctl.json", pinMark, bpfMountMark, temporaryMark,
}

func ownFile(name string) bool {
	if strings.HasPrefix(name, ".sysctl-") {
		return true // of netdrv, while it writes
	}
	return slices.ContainsFunc(dataFiles, func(own string) bool { return name == own || name == own+".tmp" })
}

// purgeData removes what the agent keeps, and its directories unless something
// else is in them.
func purgeData(cfg Config) ([]string, error) {
	var done []string
	for _, dir := range dataDirs(cfg) {
		all, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return done, fmt.Errorf("remove data: %w", err)
		}
		var kept []string
		for _, d := range all {
			if !ownFile(d.Name()) {
				kept = append(kept, d.Name())
				continue
			}
			if err := os.RemoveAll(filepath.Join(dir, d.Name())); err != nil {
				return done, fmt.Errorf("remove data: %w", err)
			}
		}
		switch {
		case len(kept) > 0:
			done = append(done, fmt.Sprintf("removed what is ours in %s, and kept what is not: %s", dir, strings.Join(kept, ", ")))
		default:
			if err := os.Remove(dir); err != nil {
				return done, fmt.Errorf("remove data: %w", err)
			}
			done = append(done, "removed "+dir)
		}
	}
	return done, nil
}

// left looks again for everything that Down should have removed.
func left(ctx context.Context, cfg Config, pins []string, purge bool, log *slog.Logger) error {
	host, err := openNetwork(cfg, log)
	if err != nil {
		return err
	}
	again, err := host.Purge(ctx)
	err = errors.Join(err, host.Close())
	if err != nil {
		return err
	}
	paths := slices.Clone(pins)
	if cgroup, err := cfg.cgroup(); err == nil {
		paths = append(paths, filepath.Join(cgroup, workloadCgroup))
	}
	if purge {
		for _, dir := range dataDirs(cfg) {
			for _, f := range dataFiles {
				paths = append(paths, filepath.Join(dir, f))
			}
		}
	}
	for _, p := range paths {
		if _, err := os.Stat(p); !errors.Is(err, fs.ErrNotExist) {
			again = append(again, p)
		}
	}
	if len(again) > 0 {
		return fmt.Errorf("still there after removal: %s", strings.Join(again, "; "))
	}
	return nil
}
