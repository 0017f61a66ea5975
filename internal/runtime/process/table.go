package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead-net/fairlead/api"
)

// rescan is how often Changed looks for supervisors that it does not know yet.
const rescan = time.Second

// killWait bounds the wait for killed processes to be gone.
const killWait = 5 * time.Second

// Table is the agent's view of the supervised processes below a run directory.
// It is safe for concurrent use.
type Table struct{ runDir string }

// NewTable returns the table of a run directory, which need not exist yet.
func NewTable(runDir string) *Table { return &Table{runDir} }

// List returns every workload with a directory, sorted by name.
func (t *Table) List() ([]api.Workload, error) {
	states, err := t.states()
	if err != nil {
		return nil, err
	}
	var all []api.Workload
	for _, s := range states {
		w := api.Workload{
			Name: s.Name, PID: s.Process, Command: s.Command, Started: s.Started, State: "running",
			ExitCode: s.ExitCode, Cgroup: s.Cgroup, Log: s.Log,
		}
		if !s.Supervisor.Alive() {
			w.State = "exited"
		}
		all = append(all, w)
	}
	return all, nil
}

// states reads the state files. A directory without one belongs to a client
// that is just making it, or died doing so; Start deals with those.
func (t *Table) states() ([]State, error) {
	dirs, err := os.ReadDir(filepath.Join(t.runDir, "workloads"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list workloads: %w", err)
	}
	var all []State
	for _, d := range dirs {
		s, err := load(workloadDir(t.runDir, d.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list workloads: %w", err)
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b State) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// Stop asks a workload's supervisor to end it, kills everything in its cgroup
// after grace, and returns when it is gone. A name that is not there is no error.
func (t *Table) Stop(ctx context.Context, name string, grace time.Duration) error {
	if err := checkName(name); err != nil {
		return err
	}
	s, err := load(workloadDir(t.runDir, name))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	fd, err := openPID(s.Supervisor)
	if err != nil {
		return err
	}
	if fd < 0 { // the supervisor is gone; its children got its death signal
		return killCgroup(s.Cgroup)
	}
	defer unix.Close(fd) //nolint:errcheck // a pidfd
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal the supervisor of %s: %w", name, err)
	}
	gone, err := waitPIDs(ctx, []int{fd}, grace)
	if err != nil || gone {
		return errors.Join(err, killCgroup(s.Cgroup))
	}
	if err := killCgroup(s.Cgroup); err != nil {
		return err
	}
	// The supervisor may be outside of a cgroup that could not be made.
	_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	if gone, err := waitPIDs(ctx, []int{fd}, killWait); err != nil || !gone {
		return errors.Join(err, fmt.Errorf("workload %s: killed, but process %d is still there after %s", name, s.Supervisor.Number, killWait))
	}
	return nil
}

// Clear removes what an ended workload left: directory and cgroup, not its log.
func (t *Table) Clear(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	dir := workloadDir(t.runDir, name)
	s, err := load(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if s.Supervisor.Alive() {
		return nil
	}
	if err := removeCgroup(s.Cgroup); err != nil {
		return fmt.Errorf("clear workload %s: %w", name, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("clear workload %s: %w", name, err)
	}
	return nil
}

// Changed returns a channel that closes when a supervisor that lives now ends, or
// one that had ended at the call has not been cleared away a second later. Its
// goroutine ends with the channel or with ctx.
func (t *Table) Changed(ctx context.Context) <-chan struct{} {
	changed := make(chan struct{})
	go func() {
		defer close(changed)
		for ctx.Err() == nil {
			if t.waitOnce(ctx) {
				return
			}
		}
	}()
	return changed
}

// waitOnce watches the supervisors that live now for as long as rescan.
func (t *Table) waitOnce(ctx context.Context) bool {
	states, err := t.states()
	if err != nil {
		states = nil // unreadable now; the next round may do better
	}
	var fds []int
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	ended := false
	for _, s := range states {
		fd, err := openPID(s.Supervisor)
		switch {
		case err == nil && fd < 0:
			ended = true
		case err == nil:
			fds = append(fds, fd)
		}
	}
	gone, err := waitPIDs(ctx, fds, rescan)
	return gone || (ended && err == nil)
}

// openPID opens a living process; -1 means that it has ended.
func openPID(p PID) (int, error) {
	fd, err := unix.PidfdOpen(p.Number, 0)
	if errors.Is(err, unix.ESRCH) {
		return -1, nil
	}
	if err != nil {
		return -1, fmt.Errorf("open process %d: %w", p.Number, err)
	}
	if !p.Alive() { // asked after opening: now the number cannot change hands
		_ = unix.Close(fd)
		return -1, nil
	}
	return fd, nil
}

// pollStep bounds one poll, so that a cancelled context is noticed.
const pollStep = 100 * time.Millisecond

// waitPIDs waits until one of the processes has ended, or for d.
func waitPIDs(ctx context.Context, fds []int, d time.Duration) (gone bool, err error) {
	polls := make([]unix.PollFd, len(fds))
	for i, fd := range fds {
		polls[i] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	}
	for end := time.Now().Add(d); ; {
		left := min(time.Until(end), pollStep)
		if left < 0 {
			return false, nil
		}
		n, err := unix.Poll(polls, int(left.Milliseconds())+1)
		switch {
		case ctx.Err() != nil:
			return false, ctx.Err()
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return false, fmt.Errorf("wait for processes: %w", err)
		case n > 0:
			return true, nil
		}
	}
}
