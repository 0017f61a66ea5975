package process_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/fairlead-net/fairlead/api"
	"github.com/fairlead-net/fairlead/internal/runtime/process"
	"github.com/fairlead-net/fairlead/internal/testlab"
)

// clientRole makes this test program a client as `fairlead run` is one, of the
// Spec in file descriptor 3. Its argument is what to do: "run" it to its end, or
// "hold" it before Go.
const clientRole = "test-client"

// limit bounds each wait; the machine may be busy.
const limit = 20 * time.Second

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case process.SuperviseCommand:
			os.Exit(process.Supervise())
		case process.InitCommand:
			os.Exit(process.Init(os.Args[2:]))
		case clientRole:
			os.Exit(client(os.Args[2]))
		}
	}
	goleak.VerifyTestMain(m)
}

func client(what string) int {
	var spec process.Spec
	var s *process.Started
	err := json.NewDecoder(os.NewFile(3, "spec")).Decode(&spec)
	if err == nil {
		s, err = process.Start(spec)
	}
	if err == nil && what == "hold" {
		fmt.Println("holding", s.NetNS)
		select {}
	}
	if err == nil {
		err = s.Go(attachment)
	}
	code := 0
	if err == nil {
		signal.Ignore(os.Interrupt)
		fmt.Println("running")
		code, err = s.Wait()
	}
	if err != nil {
		fmt.Println("error:", err)
		return 1
	}
	return code
}

// attachment is what an agent would answer.
var attachment = api.Attachment{
	Endpoint:    api.Endpoint{Addrs: []netip.Addr{netip.MustParseAddr("10.9.0.2"), netip.MustParseAddr("fd00:9::2")}},
	Nameservers: []netip.Addr{netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("fd00:9::1")},
	Search:      []string{"my-network.internal"},
}

// world is a host with the directories of an agent that does not run.
type world struct {
	t      *testing.T
	host   *testlab.Host
	runDir string
	cgroup string
	table  *process.Table
}

func newWorld(t *testing.T) *world {
	t.Helper()
	testlab.Require(t, testlab.Root)
	h := testlab.New(t).Host("n1")
	w := &world{t: t, host: h, runDir: filepath.Join(h.Dir(), "run"), cgroup: filepath.Join(h.Cgroup(), "fairlead.slice")}
	w.table = process.NewTable(w.runDir)
	t.Cleanup(func() {
		if err := os.Remove(w.cgroup); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the workloads' cgroup cannot be removed: %v", err)
		}
	})
	return w
}

// spec is a detached workload, whose output can be read from its log.
func (w *world) spec(name string, command ...string) process.Spec {
	return process.Spec{
		Name: name, Command: command, Env: os.Environ(), Dir: "/", Detach: true, RunDir: w.runDir, Cgroup: w.cgroup,
	}
}

func (w *world) script(name, script string) process.Spec { return w.spec(name, "sh", "-c", script) }

// with adds to a workload's environment.
func with(spec process.Spec, env ...string) process.Spec {
	spec.Env = append(spec.Env, env...)
	return spec
}

// fifo makes a file that a workload can wait at until release.
func (w *world) fifo(name string) string {
	w.t.Helper()
	path := filepath.Join(w.host.Dir(), name)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

func (w *world) release(name string) {
	w.t.Helper()
	testlab.Eventually(w.t, limit, func() error {
		f, err := os.OpenFile(filepath.Join(w.host.Dir(), name), os.O_WRONLY|unix.O_NONBLOCK, 0) // fails without a reader
		if err != nil {
			return err
		}
		_, err = f.WriteString("go\n")
		return errors.Join(err, f.Close())
	})
}

// hold starts a supervisor from inside the host.
func (w *world) hold(spec process.Spec) (s *process.Started, err error) {
	err = w.host.Do(func() error {
		s, err = process.Start(spec)
		return err
	})
	return s, err
}

// start starts a workload that must start.
func (w *world) start(spec process.Spec) *process.Started {
	w.t.Helper()
	s, err := w.hold(spec)
	if err == nil {
		err = s.Go(attachment)
	}
	if err != nil {
		w.t.Fatalf("start %s: %v", spec.Name, err)
	}
	return s
}

// wait waits for the end of a workload and returns its exit code.
func (w *world) wait(s *process.Started) int {
	w.t.Helper()
	code, err := s.Wait()
	if err != nil {
		w.t.Fatalf("wait: %v", err)
	}
	return code
}

// output runs a script to its end, clears it away and returns what it printed.
func (w *world) output(spec process.Spec) string {
	w.t.Helper()
	code := w.wait(w.start(spec))
	text := w.log(spec.Name)
	if code != 0 {
		w.t.Fatalf("%v: exit code %d\n%s", spec.Command, code, text)
	}
	w.clear(spec.Name)
	return text
}

func (w *world) log(name string) string {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.runDir, "logs", name+".log"))
	if err != nil {
		w.t.Fatal(err)
	}
	return string(b)
}

// logged waits until a workload's log has a line, and returns the last one.
func (w *world) logged(name string) string {
	w.t.Helper()
	line := ""
	testlab.Eventually(w.t, limit, func() error {
		lines := strings.Split(strings.TrimSpace(w.log(name)), "\n")
		if line = lines[len(lines)-1]; line == "" {
			return fmt.Errorf("%s has printed nothing", name)
		}
		return nil
	})
	return line
}

// clear removes what an ended workload left, and looks that nothing is left.
func (w *world) clear(name string) {
	w.t.Helper()
	if err := w.table.Clear(name); err != nil {
		w.t.Errorf("clear: %v", err)
	}
	w.nothing(name)
}

// nothing asserts that a workload has left neither directory nor cgroup.
func (w *world) nothing(name string) {
	w.t.Helper()
	for _, path := range []string{filepath.Join(w.runDir, "workloads", name), filepath.Join(w.cgroup, name+".scope")} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			w.t.Errorf("%s: %v, want it gone", path, err)
		}
	}
}

// listed is a workload as the agent sees it.
func (w *world) listed(name string) api.Workload {
	w.t.Helper()
	all, err := w.table.List()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, p := range all {
		if p.Name == name {
			return p
		}
	}
	w.t.Fatalf("%s is not among %+v", name, all)
	return api.Workload{}
}

// state is what a supervisor has recorded.
func (w *world) state(name string) process.State {
	w.t.Helper()
	var s process.State
	b, err := os.ReadFile(filepath.Join(w.runDir, "workloads", name, "state.json"))
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// gone waits until a process is no more.
func (w *world) gone(pid int) {
	w.t.Helper()
	testlab.Eventually(w.t, limit, func() error {
		if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
			return errors.Join(fmt.Errorf("process %d is still there", pid), err)
		}
		return nil
	})
}

// client starts this program as a client of its own; see clientRole. wrap goes
// in front of it.
func (w *world) client(what string, spec process.Spec, wrap ...string) *testlab.Proc {
	w.t.Helper()
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	b, err := json.Marshal(spec)
	if err != nil {
		w.t.Fatal(err)
	}
	file := filepath.Join(w.host.Dir(), spec.Name+".spec")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		w.t.Fatal(err)
	}
	args := append([]string{"sh", "-c", `exec "$@" 3<` + file, "sh"}, wrap...)
	return w.host.StartCmd(testlab.Cmd{Args: append(args, self, clientRole, what)})
}

// says waits until a client has printed something.
func (w *world) says(p *testlab.Proc, text string) {
	w.t.Helper()
	testlab.Eventually(w.t, limit, func() error {
		if !strings.Contains(p.Output(), text) {
			return fmt.Errorf("output %q has no %q", p.Output(), text)
		}
		return nil
	})
}

func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}
