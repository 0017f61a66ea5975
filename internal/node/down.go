package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
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
// a line each, and an error that lists what is left.
func Down(ctx context.Context, cfg Config, purge bool, log *slog.Logger) ([]string, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("%w: taking it down needs root; use sudo", ErrHost)
	}
	pins, err := recalledPins(cfg.RunDir)
	if err != nil {
		return nil, err
	}
	var done []string
	var errs []error
	note := func(lines []string, err error) {
		done = append(done, lines...)
		errs = append(errs, err)
	}
	note(stopAgent(ctx, cfg))
	if err := errors.Join(errs...); err != nil {
		return done, err // a living agent would put everything back
	}
	note(stopWorkloads(ctx, cfg))
	note(purgeNetwork(ctx, cfg, log))
	note(purgeDatapath(cfg, pins))
	note(purgeCgroup(cfg))
	if purge {
		note(purgeData(cfg))
	}
	if err := errors.Join(errs...); err != nil {
		return done, err
	}
	return done, left(ctx, cfg, pins, purge, log)
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
	defer f.Close() // read only
	free := func() bool { return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil }
	if free() {
		return nil, nil
	}
	pid := pidIn(f)
	if pid <= 0 {
		return nil, fmt.Errorf("find the agent: %s is locked and names no process", f.Name())
	}
	fd, err := unix.PidfdOpen(pid, 0)
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

func stopWorkloads(ctx context.Context, cfg Config) ([]string, error) {
	table := process.NewTable(cfg.RunDir)
	all, err := table.List()
	if err != nil {
		return nil, err
	}
	var done []string
	var errs []error
	for _, w := range all {
		if err := errors.Join(table.Stop(ctx, w.Name, workloadGrace), table.Clear(w.Name)); err != nil {
			errs = append(errs, err)
			continue
		}
		done = append(done, "stopped workload "+w.Name)
	}
	return done, errors.Join(errs...)
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

func purgeDatapath(cfg Config, dir string) ([]string, error) {
	if _, err := os.Stat(dir); dir == "" || errors.Is(err, fs.ErrNotExist) {
		return nil, unmountBPF(cfg)
	}
	cgroup, err := cfg.cgroup()
	if err != nil {
		return nil, err
	}
	if err := datapath.Purge(datapath.Config{Cgroup: cgroup, PinDir: dir}); err != nil {
		return nil, err
	}
	// Another agent's pins may be beside ours; then the parent stays.
	_ = os.Remove(filepath.Dir(dir))
	return []string{"removed eBPF programs and maps"}, unmountBPF(cfg)
}

// unmountBPF unmounts the bpf file system if an agent mounted it.
func unmountBPF(cfg Config) error {
	mark := filepath.Join(cfg.RunDir, bpfMountMark)
	b, err := os.ReadFile(mark)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	at := strings.TrimSpace(string(b))
	if err := unix.Unmount(at, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", at, err)
	}
	return os.Remove(mark)
}

func purgeCgroup(cfg Config) ([]string, error) {
	cgroup, err := cfg.cgroup()
	if err != nil {
		return nil, err
	}
	err = os.Remove(filepath.Join(cgroup, workloadCgroup))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
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

func purgeData(cfg Config) ([]string, error) {
	var done []string
	for _, dir := range dataDirs(cfg) {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			return done, fmt.Errorf("remove data: %w", err)
		}
		done = append(done, "removed "+dir)
	}
	return done, nil
}

// left looks again for everything that Down should have removed.
func left(ctx context.Context, cfg Config, pins string, purge bool, log *slog.Logger) error {
	host, err := openNetwork(cfg, log)
	if err != nil {
		return err
	}
	again, err := host.Purge(ctx)
	err = errors.Join(err, host.Close())
	if err != nil {
		return err
	}
	if len(again) > 0 {
		return fmt.Errorf("still there after removal: %s", strings.Join(again, "; "))
	}
	var paths []string
	if pins != "" {
		paths = append(paths, pins)
	}
	if cgroup, err := cfg.cgroup(); err == nil {
		paths = append(paths, filepath.Join(cgroup, workloadCgroup))
	}
	if purge {
		paths = append(paths, dataDirs(cfg)...)
	}
	for _, p := range paths {
		if _, err := os.Stat(p); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("still there after removal: %s", p)
		}
	}
	return nil
}
