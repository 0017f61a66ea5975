package node

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead-net/fairlead/api"
	"github.com/fairlead-net/fairlead/internal/runtime/process"
	"github.com/fairlead-net/fairlead/internal/testlab"
)

// limit bounds each wait; the machine may be busy.
const limit = 20 * time.Second

// world is a host on which agents come and go.
type world struct {
	t      *testing.T
	host   *testlab.Host
	env    []string
	before []string
}

func newWorld(t *testing.T, env ...string) *world {
	t.Helper()
	testlab.Require(t, testlab.Root)
	h := testlab.New(t).Host("n1")
	w := &world{t: t, host: h}
	w.env = append([]string{
		"FAIRLEAD_DATA_DIR=" + w.path("data"), "FAIRLEAD_RUN_DIR=" + w.path("run"), "FAIRLEAD_BPFFS=" + h.BPFFS(),
		"FAIRLEAD_CGROUP=" + h.Cgroup(), "FAIRLEAD_NODE_NAME=n1", "TMPDIR=" + w.path("tmp"),
	}, env...)
	if err := os.Mkdir(w.path("tmp"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.before = w.inventory()
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.host.Dir(), name) }

// inventory is the host but for its processes, which the lab looks for.
func (w *world) inventory() []string {
	return slices.DeleteFunc(w.host.Inventory(), func(fact string) bool { return strings.HasPrefix(fact, "process ") })
}

// agent starts an agent and waits until it is ready, or has ended.
func (w *world) agent(env ...string) *testlab.Proc {
	w.t.Helper()
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	p := w.host.StartCmd(testlab.Cmd{Args: []string{self, agentRole}, Env: append(slices.Clone(w.env), env...), Cgroup: w.host.AgentCgroup()})
	testlab.Eventually(w.t, limit, func() error {
		if p.Running() && !strings.Contains(p.Output(), "agent is ready") {
			return errors.New("the agent is not ready")
		}
		return nil
	})
	return p
}

func (w *world) role(role string, args ...string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	stdout, stderr, err := w.host.Run(testlab.Cmd{Args: append([]string{self, role}, args...), Env: w.env})
	if err != nil {
		err = fmt.Errorf("%w: %s", err, stderr)
	}
	return stdout, err
}

// down takes the host down and returns what was done.
func (w *world) down(args ...string) string {
	w.t.Helper()
	out, err := w.role(downRole, args...)
	if err != nil {
		w.t.Errorf("down %v: %v\n%s", args, err, out)
	}
	return out
}

// clean asserts that the host is as it was, and that nothing is in the directories.
func (w *world) clean(dirs ...string) {
	w.t.Helper()
	if diff := testlab.Diff(w.before, w.inventory()); len(diff) > 0 {
		w.t.Errorf("the host is not as before:\n%s", strings.Join(diff, "\n"))
	}
	for _, dir := range dirs {
		if _, err := os.Stat(w.path(dir)); !errors.Is(err, os.ErrNotExist) {
			w.t.Errorf("%s: %v, want it gone", dir, err)
		}
	}
	if all, err := os.ReadDir(w.path("tmp")); err != nil || len(all) > 0 {
		w.t.Errorf("temporary: %v %v", all, err)
	}
}

// workload runs a command as `fairlead run` would, but for its endpoint.
func (w *world) workload(name, script string) *process.Started {
	w.t.Helper()
	var s *process.Started
	err := w.host.Do(func() (err error) {
		s, err = process.Start(process.Spec{
			Name: name, Command: []string{"sh", "-c", script}, Env: os.Environ(), Dir: "/", Detach: true,
			RunDir: w.path("run"), Cgroup: filepath.Join(w.host.Cgroup(), workloadCgroup),
		})
		return err
	})
	if err == nil {
		err = s.Go(api.Attachment{})
	}
	if err != nil {
		w.t.Fatalf("run %s: %v", name, err)
	}
	return s
}

func TestDownWithNothingThere(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, args := range [][]string{nil, {"purge"}} {
		if got := w.down(args...); got != "" {
			t.Errorf("done with nothing there: %s", got)
		}
		w.clean("run", "data")
	}
}

// All that a killed agent and its workloads left is removed, once.
func TestDownAfterKill(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.agent()
	if out, err := w.role(networkRole, "my-network"); err != nil {
		t.Fatalf("%s %v", out, err)
	}
	web := w.workload("web", "exec sleep 1000")
	p.Kill()
	lost := w.workload("lost", "exec sleep 1000")
	if err := os.WriteFile(w.path("run/workloads/lost/state.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}

	got := w.down()
	for _, want := range []string{"stopped workload web\n", "removed eBPF programs and maps\n", "removed the workloads' cgroup\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("done:\n%swant %s", got, want)
		}
	}
	if strings.Contains(got, "stopped the agent") {
		t.Errorf("no agent ran, but: %s", got)
	}
	w.clean()
	for want, s := range map[int]*process.Started{143: web, 137: lost} {
		if code, err := s.Wait(); err != nil || code != want {
			t.Errorf("a workload ended with %d (%v), want %d", code, err, want)
		}
	}
	if _, err := os.Stat(w.path("data/etcd")); err != nil {
		t.Errorf("without a purge the data stays: %v", err)
	}
	if got := w.down("purge"); strings.Count(got, "\n") != 2 || !strings.Contains(got, "removed "+w.path("data")) {
		t.Errorf("then a purge: %s", got)
	}
	w.clean("run", "data")
	if got := w.down("purge"); got != "" {
		t.Errorf("again: %s", got)
	}
}

// The run directory may be lost, with all that it remembers.
func TestDownWithoutRunDir(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.agent()
	if out, err := w.role(networkRole, "my-network"); err != nil {
		t.Fatalf("%s %v\n%s", out, err, p.Output())
	}
	p.Kill()
	s := w.workload("web", "exec sleep 1000")
	sysctls, err := os.ReadFile(w.path("run/sysctl.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(w.path("run")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(w.path("run"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(w.path("run/sysctl.json"), sysctls, 0o600); err != nil { // nobody else knows the old values
		t.Fatal(err)
	}
	w.down("purge")
	if code, err := s.Wait(); err != nil || code != 137 {
		t.Errorf("the workload ended with %d (%v), want 137", code, err)
	}
	w.clean("run", "data")
}

func TestDownStopsTheAgent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.agent()
	if got := w.down("purge"); !strings.Contains(got, fmt.Sprintf("stopped the agent (pid %d)", p.Pid())) {
		t.Errorf("done: %s", got)
	}
	if err := p.Wait(limit); err != nil {
		t.Errorf("it ended with %v\n%s", err, p.Output())
	}
	w.clean("run", "data")
}

// While somebody has the run directory, such as another 'down', nothing is done.
func TestDownWaitsItsTurn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.agent()
	p.Kill()
	before := w.inventory()
	lock, err := flockRunDir(w.path("run"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(lockPath(w.path("run")), 0); err != nil {
		t.Fatal(err)
	}
	if out, err := w.role(downRole, "purge"); err == nil || !strings.Contains(err.Error(), "another 'down' is at work") {
		t.Errorf("%v\n%s", err, out)
	}
	if diff := testlab.Diff(before, w.inventory()); len(diff) > 0 {
		t.Errorf("something was done:\n%s", strings.Join(diff, "\n"))
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	w.down("purge")
	w.clean("run", "data")
}

// An agent in development keeps nothing, and leaves nothing that down, told of
// it or not, does not find.
func TestDownInDevelopment(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "FAIRLEAD_DEV=true")
	if err := os.WriteFile(w.path("data"), nil, 0o600); err != nil { // a directory that it cannot use
		t.Fatal(err)
	}
	p := w.agent()
	if out, err := w.role(networkRole, "my-network"); err != nil {
		t.Fatalf("%s %v\n%s", out, err, p.Output())
	}
	p.Kill()
	if all, err := os.ReadDir(w.path("tmp")); err != nil || len(all) != 1 {
		t.Errorf("while it runs: %v %v", all, err)
	}
	p = w.agent()
	if all, err := os.ReadDir(w.path("tmp")); err != nil || len(all) != 1 {
		t.Errorf("after it was killed and started again: %v %v", all, err)
	}
	if err := p.Stop(); err != nil {
		t.Errorf("%v\n%s", err, p.Output())
	}
	if all, err := os.ReadDir(w.path("tmp")); err != nil || len(all) != 0 {
		t.Errorf("after it has ended: %v %v", all, err)
	}
	w.agent().Kill()
	w.down("purge")
	w.clean("run")
	if st, err := os.Stat(w.path("data")); err != nil || st.IsDir() {
		t.Errorf("the data directory was touched: %v %v", st, err)
	}

	if err := os.Remove(w.path("data")); err != nil {
		t.Fatal(err)
	}
	w.agent().Kill()
	w.env = append(w.env, "FAIRLEAD_DEV=false")
	w.down("purge")
	w.clean("run", "data")
}

// A start that fails leaves a host that works as before, and that down brings
// back to what it was.
func TestFailedStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var l net.Listener
	err := w.host.Do(func() (err error) {
		l, err = net.Listen("tcp", "127.0.0.1:8600")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	p := w.agent()
	if err := p.Wait(limit); err == nil || !strings.Contains(p.Output(), "dns-addr 127.0.0.1:8600 is in use") {
		t.Errorf("its address is taken: %v\n%s", err, p.Output())
	}
	w.clean("data") // before anything of the machine was changed
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}

	db := w.path("data/etcd/member/snap/db")
	if err := os.MkdirAll(filepath.Dir(db), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(db, []byte("not a database"), 0o600); err != nil {
		t.Fatal(err)
	}
	p = w.agent()
	if err := p.Wait(limit); err == nil {
		t.Errorf("it has taken a spoilt database:\n%s", p.Output())
	}
	err = w.host.Do(func() error {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer l.Close()
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		addr, ok := l.Addr().(*net.TCPAddr)
		if !ok {
			return fmt.Errorf("listens at %v", l.Addr())
		}
		return unix.Connect(fd, &unix.SockaddrInet4{Port: addr.Port, Addr: [4]byte{127, 0, 0, 1}})
	})
	if err != nil {
		t.Errorf("after a failed start nothing connects: %v", err)
	}
	w.down("purge")
	w.clean("run", "data")
}
