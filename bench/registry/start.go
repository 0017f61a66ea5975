package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// startLimit is how long a start or a stop may take.
const startLimit = 60 * time.Second

// An agent is Fairlead as a process of its own, registry-only, with fsync, on a directory of the suite.
type agent struct {
	binary string
	dir    string
	target *target
	cmd    *exec.Cmd
	ended  chan struct{} // closed when it is gone; err is valid then
	err    error
}

// onDisk refuses directories whose writes cost nothing: an fsync there would measure nothing.
func onDisk(dir string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("file system of %s: %w", dir, err)
	}
	if fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC {
		return fmt.Errorf("%s is in memory: give a directory on a disk with --dir", dir)
	}
	return nil
}

// build makes the agent's binary from the module that this command belongs to.
func build(ctx context.Context, dir string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("find the module (run from the repository, or give --binary): %w", err)
	}
	binary := filepath.Join(dir, "fairlead")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", binary, "./cmd/fairlead")
	cmd.Dir = strings.TrimSpace(string(root))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the agent: %w: %s", err, out)
	}
	return binary, nil
}

// newAgent chooses ports and a directory below dir for an agent; it starts nothing.
func newAgent(binary, dir string) (*agent, error) {
	data, err := os.MkdirTemp(dir, "data-")
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	var ports [2]string
	for i := range ports {
		free, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		ports[i] = free.Addr().String()
		if err := free.Close(); err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
	}
	t, err := newTarget("fairlead", "http://"+ports[0], ports[1], 0)
	if err != nil {
		return nil, err
	}
	a := &agent{binary: binary, dir: data, target: t}
	t.own = a
	return a, nil
}

// start runs the agent and returns when it has answered a first write, with the time that took from the fork. The agent ends with
// this process at the latest.
func (a *agent) start(ctx context.Context) (time.Duration, error) {
	log, err := os.OpenFile(filepath.Join(a.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, fmt.Errorf("log of the agent: %w", err)
	}
	defer log.Close()
	empty := filepath.Join(a.dir, "resolv.conf")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		return 0, fmt.Errorf("resolv.conf of the agent: %w", err)
	}
	a.cmd = exec.Command(a.binary, "agent", "--registry-only", "--node-name", "local", "--advertise", "127.0.0.1",
		"--data-dir", filepath.Join(a.dir, "registry"), "--run-dir", filepath.Join(a.dir, "run"), "--resolv-conf", empty,
		"--http-addr", a.target.http.String(), "--dns-addr", a.target.dns.String())
	a.cmd.Stdout, a.cmd.Stderr = log, log
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	began := time.Now()
	if err := a.cmd.Start(); err != nil {
		return 0, fmt.Errorf("start the agent: %w", err)
	}
	cmd, ended := a.cmd, make(chan struct{})
	a.ended = ended
	go func() {
		defer close(ended)
		a.err = cmd.Wait()
	}()
	a.target.pid = a.cmd.Process.Pid
	err = a.until(ctx, func(ctx context.Context) error {
		return a.target.call(ctx, http.MethodPut, "/v1/kv/bench/started", 1, nil)
	})
	return time.Since(began), err
}

// until repeats a probe every 2 ms until it succeeds, the agent ends or startLimit has passed.
func (a *agent) until(ctx context.Context, probe func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		err := probe(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-a.ended:
			return fmt.Errorf("the agent ended: %w\n%s", errors.Join(a.err, err), a.lastLog())
		case <-ctx.Done():
			return fmt.Errorf("wait for the agent: %w\n%s", errors.Join(ctx.Err(), err), a.lastLog())
		case <-tick.C:
		}
	}
}

func (a *agent) lastLog() []byte {
	text, err := os.ReadFile(filepath.Join(a.dir, "log"))
	if err != nil {
		return nil
	}
	return text[max(0, len(text)-2000):]
}

// stop ends the agent, with SIGKILL when it does not go in time, and returns when it is gone. An agent that never started is fine.
func (a *agent) stop() (time.Duration, error) {
	if a.cmd == nil || a.cmd.Process == nil {
		return 0, nil
	}
	began := time.Now()
	defer func() { a.cmd = nil }()
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return 0, fmt.Errorf("stop the agent: %w", err)
	}
	select {
	case <-a.ended:
		return time.Since(began), nil
	case <-time.After(startLimit / 4):
	}
	if err := a.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return 0, fmt.Errorf("kill the agent: %w", err)
	}
	<-a.ended
	return time.Since(began), fmt.Errorf("the agent did not end within %s of SIGTERM", startLimit/4)
}

// coldStarts measures the first start of fresh agents, beside the one under load.
func coldStarts(ctx context.Context, t *target, dir string, n int) error {
	for range n {
		a, err := newAgent(t.own.binary, dir)
		if err != nil {
			return err
		}
		took, err := a.start(ctx)
		if err == nil {
			t.add("start/first-write", millis(took))
		}
		if _, stopErr := a.stop(); err != nil || stopErr != nil {
			return errors.Join(err, stopErr)
		}
	}
	return nil
}

// restart ends the agent and starts it with what it holds: to the first write, and to the first full answer about a service.
func restart(ctx context.Context, t *target, n int) error {
	for range n {
		stopped, err := t.own.stop()
		if err != nil {
			return err
		}
		t.add("restart/stop", millis(stopped))
		began := time.Now()
		took, err := t.own.start(ctx)
		if err != nil {
			return err
		}
		t.add("restart/first-write", millis(took))
		path := "/v1/health/service/" + serviceName(services-1) + "?passing"
		err = t.own.until(ctx, func(ctx context.Context) error {
			var found []struct{}
			if err := t.call(ctx, http.MethodGet, path, nil, &found); err != nil {
				return err
			}
			if len(found) != instances {
				return errors.New("only " + strconv.Itoa(len(found)) + " instances after the restart")
			}
			return nil
		})
		if err != nil {
			return err
		}
		t.add("restart/first-answer", millis(time.Since(began)))
	}
	return nil
}
