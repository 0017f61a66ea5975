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
	states, broken, err := t.states()
	if err != nil {
		return nil, err
	}
	all := broken
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
	slices.SortFunc(all, func(a, b api.Workload) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// states reads the state files. A directory without one belongs to a client
// that is just making it, or died doing so; Start deals with those. One that
// cannot be read is listed apart: it must not hide the others.
func (t *Table) states() (states []State, broken []api.Workload, err error) {
	dirs, err := os.ReadDir(filepath.Join(t.runDir, "workloads"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list workloads: %w", err)
	}
	for _, d := range dirs {
		if !d.IsDir() {
			continue
		}
		s, err := load(workloadDir(t.runDir, d.Name()))
		switch {
		case errors.Is(err, os.ErrNotExist):
		case err != nil:
			broken = append(broken, api.Workload{Name: d.Name(), State: "unknown"})
		default:
			states = append(states, s)
		}
	}
	return states, broken, nil
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
	defer unix.Close(fd) // a pidfd
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal the supervisor of %s: %w", name, err)
	}
	gone, err := waitPIDs(ctx, []int{fd}, grace)
	switch {
	case err != nil:
		return err // a caller that gives up has asked for grace, not for a kill
	case gone:
		return killCgroup(s.Cgroup) // for a supervisor that was killed meanwhile
	}
	// With the command killed, its supervisor ends by itself and records it.
	if _, err := killEach(s.Cgroup, s.Supervisor.Number); err != nil {
		return err
	}
	if gone, err = waitPIDs(ctx, []int{fd}, killWait); err != nil || gone {
		return err
	}
	if err := killCgroup(s.Cgroup); err != nil {
		return err
	}
	_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) // somebody may have moved it out of the cgroup
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
	if err := RemoveCgroup(s.Cgroup); err != nil {
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
	states, _, err := t.states()
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
	if p.Number <= 0 {
		return -1, nil
	}
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

// waitPIDs waits until one of the processes has ended, or for d.
func waitPIDs(ctx context.Context, fds []int, d time.Duration) (gone bool, err error) {
	cancelled, stop, err := doneFile(ctx)
	if err != nil {
		return false, fmt.Errorf("wait for processes: %w", err)
	}
	defer stop()
	polls := []unix.PollFd{{Fd: int32(cancelled), Events: unix.POLLIN}}
	for _, fd := range fds {
		polls = append(polls, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	for end := time.Now().Add(d); ; {
		left := max(time.Until(end), 0)
		n, err := unix.Poll(polls, int((left+time.Millisecond-1)/time.Millisecond))
		switch {
		case ctx.Err() != nil:
			return false, ctx.Err()
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return false, fmt.Errorf("wait for processes: %w", err)
		case n > 0:
			return true, nil
		case left == 0:
			return false, nil
		}
	}
}

// doneFile returns a file that is readable once ctx is done, for poll(2).
func doneFile(ctx context.Context) (fd int, stop func(), err error) {
	fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return -1, nil, err
	}
	told := make(chan struct{})
	forget := context.AfterFunc(ctx, func() {
		defer close(told)
		_, _ = unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // a counter with room for it
	})
	return fd, func() {
		if !forget() {
			<-told // it uses the file
		}
		_ = unix.Close(fd)
	}, nil
}
