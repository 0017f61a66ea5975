// Package process runs plain processes as workloads: each in network and mount
// namespaces of its own, under one small supervisor that outlives the agent.
//
// The supervisor (Supervise, a process of its own) holds the namespaces, starts
// and reaps the command and records its end; the agent owns the endpoint. The two
// know each other only through a directory per workload, so that either can be
// restarted without the other: Table is the agent's view of those directories,
// Start the client's way to a new one.
//
//	RUNDIR/workloads/NAME/state.json   who supervises, what runs, how it ended
//	RUNDIR/workloads/NAME/resolv.conf  bound over the workload's /etc/resolv.conf
//	RUNDIR/workloads/NAME/hosts        bound over its /etc/hosts
//	RUNDIR/logs/NAME.log               output of a detached workload
package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// The refusals of this package.
var (
	// ErrExists says that a workload of that name is there already.
	ErrExists = errors.New("the workload exists")
	// ErrName refuses a name that cannot be a DNS label.
	ErrName = errors.New("not a valid workload name")
)

// State is what a supervisor records of its workload.
type State struct {
	Name       string `json:"name"`
	Supervisor PID    `json:"supervisor"`
	// Process is the first process of the workload; 0 before it has started.
	Process  int       `json:"process,omitempty"`
	Command  []string  `json:"command"`
	Started  time.Time `json:"started"`
	NetNS    string    `json:"netns"`
	Cgroup   string    `json:"cgroup"`
	Log      string    `json:"log,omitempty"`
	ExitCode *int      `json:"exit_code,omitempty"`
}

// PID names a process for good: a number is used again, a number with its start
// time is not (proc_pid_stat(5), field 22, in clock ticks since boot).
type PID struct {
	Number int    `json:"number"`
	Start  uint64 `json:"start"`
}

// Alive reports whether the process still runs.
func (p PID) Alive() bool {
	start, err := startTime(p.Number)
	return err == nil && start == p.Start
}

func self() (PID, error) {
	start, err := startTime(os.Getpid())
	return PID{os.Getpid(), start}, err
}

func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	// The second field is the command in parentheses and may hold anything.
	_, rest, ok := strings.Cut(string(b[strings.LastIndexByte(string(b), ')'):]), " ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat: %q", pid, b)
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return 0, fmt.Errorf("process %d has ended", pid)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

var label = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)

func checkName(name string) error {
	if !label.MatchString(name) {
		return fmt.Errorf("workload %q: %w: want 1 to 63 letters, digits and inner hyphens", name, ErrName)
	}
	return nil
}

func workloadDir(runDir, name string) string { return filepath.Join(runDir, "workloads", name) }

func statePath(dir string) string { return filepath.Join(dir, "state.json") }

// save replaces the state file at once; a reader sees the old or the new one.
func (s State) save(dir string) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("record workload %s: %w", s.Name, err)
	}
	next := statePath(dir) + ".next"
	if err := os.WriteFile(next, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("record workload %s: %w", s.Name, err)
	}
	if err := os.Rename(next, statePath(dir)); err != nil {
		return fmt.Errorf("record workload %s: %w", s.Name, err)
	}
	return nil
}

func load(dir string) (State, error) {
	var s State
	b, err := os.ReadFile(statePath(dir))
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("%s: %w", statePath(dir), err)
	}
	return s, nil
}
