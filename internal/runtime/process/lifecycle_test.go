package process_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead-net/fairlead/internal/runtime/process"
	"github.com/fairlead-net/fairlead/internal/testlab"
)

func TestExitCodes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, c := range []struct {
		name, script string
		pid          bool
		want         int
	}{
		{"well", "exit 0", false, 0},
		{"code", "exit 3", false, 3},
		{"signal", "kill -KILL $$", false, 137},
		{"terminated", "kill -TERM $$", false, 143},
		{"own-numbers", "exit 4", true, 4},
	} {
		spec := w.script(c.name, c.script)
		spec.PIDNamespace = c.pid
		if got := w.wait(w.start(spec)); got != c.want {
			t.Errorf("%s: exit code %d, want %d\n%s", c.name, got, c.want, w.log(c.name))
		}
		p := w.listed(c.name)
		if p.State != "exited" || p.ExitCode == nil || *p.ExitCode != c.want {
			t.Errorf("%s is listed as %+v, want it exited with %d", c.name, p, c.want)
		}
		w.clear(c.name)
	}
}

func TestRunningWorkload(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	began := time.Now()
	s := w.start(w.script("web", "echo $$; exec sleep 1000"))
	p := w.listed("web")
	if fmt.Sprint(p.PID) != w.logged("web") || p.State != "running" || p.ExitCode != nil || len(p.Command) != 3 ||
		p.Started.Before(began.Add(-time.Minute)) || p.Started.After(time.Now()) {
		t.Errorf("listed as %+v", p)
	}
	if p.Cgroup != filepath.Join(w.cgroup, "web.scope") || p.Log != filepath.Join(w.runDir, "logs", "web.log") {
		t.Errorf("listed as %+v", p)
	}
	if err := w.table.Clear("web"); err != nil || w.listed("web").State != "running" {
		t.Errorf("clearing what lives must do nothing (%v): %+v", err, w.listed("web"))
	}
	own, err1 := os.Readlink(s.NetNS)
	of, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", p.PID))
	if err := errors.Join(err1, err2); err != nil || own != of {
		t.Errorf("%s is %s, the workload is in %s (%v)", s.NetNS, own, of, err)
	}
	if _, err := w.hold(w.script("web", "exit 0")); !errors.Is(err, process.ErrExists) || !strings.Contains(err.Error(), "fairlead stop web") {
		t.Errorf("a second one of that name: %v", err)
	}
	if err := w.table.Stop(t.Context(), "web", limit); err != nil {
		t.Error(err)
	}
	if code := w.wait(s); code != 143 {
		t.Errorf("exit code %d, want 143", code)
	}
	w.clear("web")
}

// What cannot be run is refused before anything is made.
func TestRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tools := filepath.Join(w.host.Dir(), "tools")
	if err := os.Mkdir(tools, 0o755); err != nil {
		t.Fatal(err)
	}
	for file, mode := range map[string]os.FileMode{"tool": 0o755, "text": 0o644} {
		if err := os.WriteFile(filepath.Join(tools, file), []byte("#!/bin/sh\necho here\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name string
		edit func(*process.Spec)
		is   error
		want string
	}{
		{"no name", func(s *process.Spec) { s.Name = "" }, process.ErrName, `workload ""`},
		{"a path as name", func(s *process.Spec) { s.Name = "../web" }, process.ErrName, "letters, digits"},
		{"a long name", func(s *process.Spec) { s.Name = strings.Repeat("a", 64) }, process.ErrName, "1 to 63"},
		{"no command", func(s *process.Spec) { s.Command = nil }, nil, "say what to run"},
		{"unknown command", func(s *process.Spec) { s.Command = []string{"no-such-command"} }, exec.ErrNotFound, `"no-such-command"`},
		{"unknown path", func(s *process.Spec) { s.Command = []string{"/no/such"} }, os.ErrNotExist, "/no/such"},
		{"not executable", func(s *process.Spec) { s.Command = []string{"./text"}; s.Dir = tools }, os.ErrPermission, "text"},
		{"not in its own PATH", func(s *process.Spec) { s.Env = []string{"PATH=" + tools} }, exec.ErrNotFound, `"sh"`},
		{"unknown directory", func(s *process.Spec) { s.Dir = "/no/such" }, os.ErrNotExist, "working directory"},
		{"a file as directory", func(s *process.Spec) { s.Dir = "/etc/passwd" }, unix.ENOTDIR, "working directory"},
	} {
		spec := w.script("web", "exit 0")
		c.edit(&spec)
		s, err := w.hold(spec)
		if s != nil || err == nil || !strings.Contains(err.Error(), c.want) || (c.is != nil && !errors.Is(err, c.is)) {
			t.Errorf("%s: %v, want %v with %q", c.name, err, c.is, c.want)
		}
	}
	if all, err := os.ReadDir(w.runDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("in the run directory: %v %v, want nothing made", all, err)
	}

	for name, command := range map[string]string{"by-path": "./tool", "by-name": "tool"} {
		spec := w.spec(name, command)
		spec.Dir = tools
		spec.Env = append(spec.Env, "PATH="+tools+":/usr/bin:/bin")
		if got := w.output(spec); got != "here\n" {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// A command that cannot be run after all is reported, and the workload has ended.
func TestExecFailure(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	bad := filepath.Join(w.host.Dir(), "bad")
	if err := os.WriteFile(bad, []byte("#!/no/such/interpreter\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := w.hold(w.spec("web", bad))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Go(attachment); err == nil || !strings.Contains(err.Error(), bad) || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("go: %v", err)
	}
	if p := w.listed("web"); p.State != "exited" || p.ExitCode == nil || *p.ExitCode != 125 {
		t.Errorf("listed as %+v, want it exited with 125", p)
	}
	w.clear("web")
}

func TestAbandon(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s, err := w.hold(w.script("web", "exit 0"))
	if err != nil {
		t.Fatal(err)
	}
	supervisor := w.state("web").Supervisor.Number
	if p := w.listed("web"); p.State != "running" || p.PID != 0 {
		t.Errorf("held, and listed as %+v", p)
	}
	if err := s.Abandon(); err != nil {
		t.Error(err)
	}
	w.gone(supervisor)
	w.nothing("web")
	if logs, _ := filepath.Glob(filepath.Join(w.runDir, "logs", "*")); len(logs) > 0 {
		t.Errorf("logs of what never ran: %v", logs)
	}
	if got := w.output(w.script("web", "echo again")); got != "again\n" {
		t.Errorf("the name is free, but: %q", got)
	}
}

// A client that dies before Go leaves an ended workload, which the agent clears
// away with its endpoint.
func TestClientDies(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.client("hold", w.script("web", "echo ran"))
	w.says(p, "holding")
	changed := w.table.Changed(t.Context())
	p.Kill()
	<-changed
	if p := w.listed("web"); p.State != "exited" || p.ExitCode == nil || *p.ExitCode != 125 {
		t.Errorf("listed as %+v, want it exited with 125", p)
	}
	if got := w.log("web"); got != "" {
		t.Errorf("it ran: %q", got)
	}
	w.clear("web")
}

// A supervisor that waits for the go-ahead ends by a signal at once.
func TestStopBeforeGo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s, err := w.hold(w.script("web", "exit 0"))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.table.Stop(t.Context(), "web", limit); err != nil {
		t.Error(err)
	}
	if err := s.Go(attachment); err == nil || !strings.Contains(err.Error(), "supervisor") {
		t.Errorf("go after stop: %v", err)
	}
	w.clear("web")
}

// The directory of a client that died before its supervisor said a word is free
// for the next one after a while.
func TestDeadClaim(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	claim := filepath.Join(w.runDir, "workloads", "web")
	if err := os.MkdirAll(claim, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := w.hold(w.script("web", "exit 0")); !errors.Is(err, process.ErrExists) {
		t.Errorf("a fresh claim is another's: %v", err)
	}
	if all, err := w.table.List(); err != nil || len(all) != 0 {
		t.Errorf("a claim is no workload yet: %v %v", all, err)
	}
	old := time.Now().Add(-2 * time.Minute)
	if err := os.Chtimes(claim, old, old); err != nil {
		t.Fatal(err)
	}
	// Only one of those who find it old may have it.
	type result struct {
		s   *process.Started
		err error
	}
	const racers = 4
	results := make(chan result)
	for range racers {
		go func() {
			s, err := w.hold(w.script("web", "exit 0"))
			results <- result{s, err}
		}()
	}
	won := 0
	for range racers {
		r := <-results
		switch {
		case r.err == nil:
			won++
			defer func() {
				if err := r.s.Abandon(); err != nil {
					t.Error(err)
				}
				w.nothing("web")
			}()
		case !errors.Is(r.err, process.ErrExists):
			t.Error(r.err)
		}
	}
	if won != 1 {
		t.Errorf("%d clients have the name, want 1", won)
	}
}

// What the command leaves behind ends with it, however deep and in whatever
// cgroup below its own.
func TestLeftovers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.start(with(w.script("web", `
		mkdir "$CG/below"
		sleep 1000 & echo $! > "$CG/below/cgroup.procs"
		setsid sh -c 'sleep 1000 & echo $!; exec sleep 1000' &
		read line < "$FIFO"`), "CG="+filepath.Join(w.cgroup, "web.scope"), "FIFO="+w.fifo("go")))
	orphan, err := strconv.Atoi(w.logged("web"))
	if err != nil {
		t.Fatal(err)
	}
	w.release("go")
	if code := w.wait(s); code != 0 {
		t.Errorf("exit code %d\n%s", code, w.log("web"))
	}
	w.gone(orphan)
	w.clear("web")
}

// Orphans of the command are the supervisor's to reap.
func TestReapsOrphans(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.start(with(w.script("web", `sh -c 'sleep 0 & echo $!'; read line < "$FIFO"`), "FIFO="+w.fifo("go")))
	orphan, err := strconv.Atoi(w.logged("web"))
	if err != nil {
		t.Fatal(err)
	}
	w.gone(orphan) // a zombie would still be there
	w.release("go")
	if code := w.wait(s); code != 0 {
		t.Errorf("exit code %d", code)
	}
	w.clear("web")
}

func TestSupervisorKilled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, pidNamespace := range []bool{false, true} {
		name := fmt.Sprintf("web-%t", pidNamespace)
		spec := w.script(name, `sleep 1000 & trap "" TERM HUP; echo ready; wait`)
		spec.PIDNamespace = pidNamespace
		s := w.start(spec)
		w.logged(name)
		state := w.state(name)
		changed := w.table.Changed(t.Context())
		if err := unix.Kill(state.Supervisor.Number, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if code := w.wait(s); code != 137 {
			t.Errorf("%s: exit code %d, want 137", name, code)
		}
		w.gone(state.Process)
		<-changed
		if p := w.listed(name); p.State != "exited" || p.ExitCode != nil {
			t.Errorf("listed as %+v, want it exited with nobody knows what", p)
		}
		if err := w.table.Stop(t.Context(), name, limit); err != nil {
			t.Error(err)
		}
		w.clear(name)
	}
}

// The roles are nothing for a person to try: they would change the mounts of
// whoever does.
func TestRolesByHand(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	before := w.host.Inventory()
	for _, args := range [][]string{{process.SuperviseCommand}, {process.InitCommand, "/tmp", "-", "true"}} {
		_, err := w.host.Try(append([]string{self}, args...)...)
		if exitCode(err) != 125 || !strings.Contains(err.Error(), "fairlead run") {
			t.Errorf("%v: %v", args, err)
		}
	}
	if diff := testlab.Diff(before, w.host.Inventory()); len(diff) > 0 {
		t.Errorf("changed: %v", diff)
	}
}
