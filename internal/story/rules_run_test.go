package story

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/testlab"
)

// A workload in the foreground behaves like the command itself.
func TestRunForeground(t *testing.T) {
	t.Parallel()
	a := newAgent(t, testlab.New(t).Host("n1"))
	a.cli("network", "create", "my-network")
	run := func(name string, flags []string, command ...string) []string {
		return append(append([]string{"run", "--network", "my-network", "--name", name}, flags...), append([]string{"--"}, command...)...)
	}
	for _, c := range []struct {
		what    string
		flags   []string
		command string
		code    int
		stdout  string
	}{
		{what: "success", command: "echo hello; exit 0", stdout: "hello\n"},
		{what: "failure", command: "exit 7", code: 7},
		{what: "signal", command: "kill -KILL $$", code: 128 + 9},
		{what: "environment", flags: []string{"-e", "GREETING=hi"}, command: "echo $GREETING", stdout: "hi\n"},
		{what: "directory", flags: []string{"-w", "/usr"}, command: "pwd", stdout: "/usr\n"},
		{what: "own process numbers", flags: []string{"--pid"}, command: "echo $$; cat /proc/1/comm", stdout: "1\nsh\n"},
		{what: "own interfaces", command: "ls /sys/class/net", stdout: "eth0\nlo\n"},
		{what: "its name", command: "grep -c task /etc/hosts", stdout: "2\n"},
	} {
		out, stderr, err := a.host.Run(testlab.Cmd{Args: append([]string{binary}, run("task", c.flags, "sh", "-c", c.command)...), Env: a.env()})
		if code := exitCode(err); code != c.code || out != c.stdout {
			t.Errorf("%s: exit code %d, output %q, want %d, %q; %s", c.what, code, out, c.code, c.stdout, stderr)
		}
		a.collected("task")
	}
	if out, err := a.tryCLI(run("task", nil, "/no/such/program")...); exitCode(err) != 1 || !strings.Contains(fmt.Sprint(err), "/no/such/program") {
		t.Errorf("a command that is not there: %q, %v", out, err)
	}
	a.collected("task")

	// SIGTERM to the client is the command's.
	p := a.host.StartCmd(testlab.Cmd{Env: a.env(), Args: append([]string{binary}, run("task", nil, "sh", "-c", "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done")...)})
	said(t, p, "ready")
	if out, err := a.tryCLI(run("task", nil, "true")...); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("a second workload of the name: %q, %v", out, err)
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(settleLimit); exitCode(err) != 3 || !strings.Contains(p.Output(), "bye") {
		t.Errorf("after SIGTERM: %v, %q", err, p.Output())
	}
	a.collected("task")
}

// However a workload ends, nothing of it stays, and its name is free.
func TestWorkloadEnds(t *testing.T) {
	t.Parallel()
	a := newAgent(t, testlab.New(t).Host("n1"))
	a.cli("network", "create", "my-network")
	// A service that was registered by its own client stays.
	a.put("/v1/agent/service/register", `{"Name":"legacy","Port":9000}`)
	start := func() { a.run("my-network", "web-1", "--service", "web", "--port", "80", "-p", "8080:80") }
	for _, c := range []struct {
		what string
		end  func()
	}{
		{"it exits by itself", func() { a.signal(a.workload("web-1").PID, syscall.SIGTERM) }},
		{"its supervisor is killed", func() { a.signal(parent(t, a.workload("web-1").PID), syscall.SIGKILL) }},
		{"it is stopped", func() { a.cli("stop", "web-1") }},
		{"it exits while the agent is away", func() {
			pid := a.workload("web-1").PID
			a.kill()
			a.signal(pid, syscall.SIGKILL)
			processGone(t, pid)
			a.start()
		}},
		{"its supervisor is killed while the agent is away", func() {
			pid := a.workload("web-1").PID
			a.stop()
			a.signal(parent(t, pid), syscall.SIGKILL)
			processGone(t, pid)
			a.start()
		}},
	} {
		start()
		pid := a.workload("web-1").PID
		c.end()
		t.Log(c.what)
		processGone(t, pid)
		a.collected("web-1")
	}
	// The last address is given out again only because nobody has it any more.
	a.run("my-network", "web-1", "--ip", "10.210.0.2", "-p", "8080:80")
	if out := a.cli("stop", "web-1"); out != "" {
		t.Errorf("stop says %q", out)
	}
}

// Stop kills what does not listen, after its grace.
func TestStopKillsTheDeaf(t *testing.T) {
	t.Parallel()
	a := newAgent(t, testlab.New(t).Host("n1"))
	a.cli("network", "create", "my-network")
	a.cli("run", "-d", "--network", "my-network", "--name", "deaf", "--", "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done")
	testlab.Eventually(t, settleLimit, func() error {
		text, err := os.ReadFile(a.workload("deaf").Log)
		if err == nil && !strings.Contains(string(text), "ready") {
			err = fmt.Errorf("log: %q", text)
		}
		return err
	})
	pid := a.workload("deaf").PID
	const grace = 500 * time.Millisecond
	begin := monotonic()
	a.cli("stop", "--time", grace.String(), "deaf")
	if took := monotonic() - begin; took < grace {
		t.Errorf("killed after %v, want its grace of %v first", took, grace)
	}
	processGone(t, pid)
	a.collected("deaf")
	if _, err := a.tryCLI("stop", "deaf"); err == nil || !strings.Contains(err.Error(), `no such workload`) {
		t.Errorf("stop of what is stopped: %v", err)
	}
}

// collected waits until nothing is left of a workload: process, endpoint, address, registration, map entries.
func (a *agent) collected(name string) {
	a.t.Helper()
	testlab.Eventually(a.t, settleLimit, func() error {
		if out := a.cli("ps"); strings.Contains(out, name) {
			return fmt.Errorf("ps:\n%s", out)
		}
		if out := a.cli("network", "inspect", "my-network"); strings.Contains(out, name) {
			return fmt.Errorf("network:\n%s", out)
		}
		if out := a.get("/v1/agent/services") + a.get("/v1/catalog/services"); strings.Contains(out, `"web"`) {
			return fmt.Errorf("services: %s", out)
		}
		if out := a.datapath(); strings.Contains(out, "endpoint ") || strings.Contains(out, ":8080 ") {
			return fmt.Errorf("datapath:\n%s", out)
		}
		if out := a.host.Exec("ip", "-o", "link"); strings.Contains(out, ": flv") {
			return fmt.Errorf("links:\n%s", out)
		}
		if _, err := os.Stat(a.runDir() + "/workloads/" + name); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("its directory: %v", err) //nolint:errorlint // it may be nil
		}
		return nil
	})
}

func (a *agent) signal(pid int, sig syscall.Signal) {
	a.t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		a.t.Fatalf("signal %d: %v", pid, err)
	}
}

// said waits for a word of a process.
func said(t testing.TB, p *testlab.Proc, word string) {
	t.Helper()
	testlab.Eventually(t, settleLimit, func() error {
		if !strings.Contains(p.Output(), word) {
			return fmt.Errorf("it said %q", p.Output())
		}
		return nil
	})
}

// processGone waits until a process that is no child of the test has ended.
func processGone(t testing.TB, pid int) {
	t.Helper()
	testlab.Eventually(t, settleLimit, func() error {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err == nil && !strings.Contains(string(stat), ") Z ") {
			return fmt.Errorf("process %d: %s", pid, stat)
		}
		return nil
	})
}

// parent is the process that started another: of a workload its supervisor.
func parent(t testing.TB, pid int) int {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	ppid, err := strconv.Atoi(strings.Fields(after)[1])
	if err != nil || ppid < 2 {
		t.Fatalf("parent of %d: %d, %v", pid, ppid, err)
	}
	return ppid
}

func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}
