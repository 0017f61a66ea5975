package process_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead-net/fairlead/internal/runtime/process"
	"github.com/fairlead-net/fairlead/internal/testlab"
)

func TestStopKills(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, c := range []struct {
		name, script string
		pid          bool
	}{
		{"ignores", `trap "" TERM; echo ready; while :; do sleep 1000; done`, false},
		{"first-process", `echo ready; while :; do sleep 1000; done`, true}, // the first of a namespace ignores what it does not handle
	} {
		spec := w.script(c.name, c.script)
		spec.PIDNamespace = c.pid
		s := w.start(spec)
		w.logged(c.name)
		pid := w.state(c.name).Process
		began := time.Now()
		const grace = 150 * time.Millisecond
		if err := w.table.Stop(t.Context(), c.name, grace); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took < grace {
			t.Errorf("%s: killed after %s, want %s of grace", c.name, took, grace)
		}
		w.gone(pid)
		if code := w.wait(s); code != 137 {
			t.Errorf("%s: exit code %d, want 137", c.name, code)
		}
		if p := w.listed(c.name); p.ExitCode == nil || *p.ExitCode != 137 {
			t.Errorf("listed as %+v, want 137 recorded by its supervisor", p)
		}
		w.clear(c.name)
	}
}

// A supervisor that hangs is killed with its workload.
func TestStopHungSupervisor(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.start(w.script("web", "echo ready; exec sleep 1000"))
	w.logged("web")
	state := w.state("web")
	if err := unix.Kill(state.Supervisor.Number, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := w.table.Stop(t.Context(), "web", 0); err != nil {
		t.Error(err)
	}
	w.gone(state.Process)
	if code := w.wait(s); code != 137 {
		t.Errorf("exit code %d, want 137", code)
	}
	w.clear("web")
}

func TestStopCancelled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.start(w.script("web", `trap 'echo asked' TERM; echo ready; while :; do sleep 1000 & wait $!; done`))
	w.logged("web")
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan error, 1)
	go func() { stopped <- w.table.Stop(ctx, "web", time.Hour) }()
	testlab.Eventually(t, limit, func() error {
		if got := w.logged("web"); got != "asked" {
			return errors.New(got)
		}
		return nil
	})
	cancel()
	if err := <-stopped; !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled stop: %v", err)
	}
	if p := w.listed("web"); p.State != "running" {
		t.Errorf("a cancelled stop has killed it: %+v", p)
	}
	if err := w.table.Stop(t.Context(), "web", 0); err != nil {
		t.Error(err)
	}
	w.wait(s)
	w.clear("web")
}

func TestUnknownNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if all, err := w.table.List(); err != nil || len(all) != 0 {
		t.Errorf("no run directory: %v %v", all, err)
	}
	if err := errors.Join(w.table.Stop(t.Context(), "web", 0), w.table.Clear("web")); err != nil {
		t.Errorf("what is not there: %v", err)
	}
	for _, name := range []string{"", "..", "a/b"} {
		if err := w.table.Stop(t.Context(), name, 0); !errors.Is(err, process.ErrName) {
			t.Errorf("stop %q: %v", name, err)
		}
		if err := w.table.Clear(name); !errors.Is(err, process.ErrName) {
			t.Errorf("clear %q: %v", name, err)
		}
	}
}

// record writes a state as a supervisor of long ago would have left it.
func (w *world) record(s process.State) {
	w.t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		w.t.Fatal(err)
	}
	w.file(filepath.Join("workloads", s.Name, "state.json"), string(b))
}

func (w *world) file(path, text string) {
	w.t.Helper()
	path = filepath.Join(w.runDir, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// A number that another process has by now is not the supervisor.
func TestReusedNumber(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	other := w.host.Start("sleep", "1000")
	w.record(process.State{Name: "web", Supervisor: process.PID{Number: other.Pid(), Start: 1}})
	if p := w.listed("web"); p.State != "exited" {
		t.Errorf("listed as %+v", p)
	}
	if err := w.table.Stop(t.Context(), "web", 0); err != nil {
		t.Error(err)
	}
	w.clear("web")
	if !other.Running() {
		t.Error("another process was ended")
	}
}

// What cannot be read hides nothing else and is not taken for ended.
func TestUnreadableState(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.file("workloads/broken/state.json", "{")
	w.file("workloads/stray", "")
	w.record(process.State{Name: "a"})
	w.record(process.State{Name: "z"})
	all, err := w.table.List()
	if err != nil || len(all) != 3 || all[0].Name != "a" || all[1].Name != "broken" || all[1].State != "unknown" || all[2].Name != "z" {
		t.Errorf("listed: %+v %v", all, err)
	}
	for what, err := range map[string]error{"stop": w.table.Stop(t.Context(), "broken", 0), "clear": w.table.Clear("broken")} {
		if err == nil {
			t.Errorf("%s: want it to say what is wrong", what)
		}
	}
}

func TestChanged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	none := w.table.Changed(ctx)
	a, b := w.start(w.script("a", "exec sleep 1000")), w.start(w.script("b", "exec sleep 1000"))

	changed := w.table.Changed(t.Context())
	select {
	case <-changed:
		t.Error("changed, with both alive")
	case <-time.After(50 * time.Millisecond):
	}
	if err := w.table.Stop(t.Context(), "a", limit); err != nil {
		t.Error(err)
	}
	<-changed
	<-none // which has found what was started after it was asked for
	w.wait(a)
	<-w.table.Changed(t.Context()) // one that has ended and was not cleared away
	w.clear("a")

	rest := w.table.Changed(ctx)
	cancel()
	<-rest
	if err := w.table.Stop(t.Context(), "b", limit); err != nil {
		t.Error(err)
	}
	w.wait(b)
	w.clear("b")
}
