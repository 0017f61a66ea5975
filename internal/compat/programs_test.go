package compat

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// clientProgram is where scripts/clients.sh has put a program.
func clientProgram(t testing.TB, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("../../bin/clients", name))
	must(t, err)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v; 'make clients' brings it", err)
	}
	return path
}

// program is a program that runs until the test ends.
type program struct {
	cmd    *exec.Cmd
	mu     sync.Mutex
	output bytes.Buffer
}

func (p *program) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.Write(b)
}

func (p *program) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.String()
}

// start runs a program in a directory until the test ends. What it wrote is shown when the test fails.
func start(t testing.TB, dir, path string, args ...string) *program {
	t.Helper()
	p := &program{cmd: exec.Command(path, args...)}
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, p, p
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	must(t, p.cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- p.cmd.Wait() }()
	t.Cleanup(func() {
		_ = p.cmd.Process.Signal(unix.SIGTERM) // fails only when it has ended
		select {
		case <-ended:
		case <-time.After(settleLimit):
			_ = unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL)
			<-ended
			t.Errorf("%s did not end", filepath.Base(path))
		}
		if t.Failed() {
			t.Logf("%s wrote:\n%s", filepath.Base(path), p.text())
		}
	})
	return p
}

// run runs a program to its end and returns what it wrote to stdout.
func run(t testing.TB, dir string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	var stderr bytes.Buffer
	cmd.Dir, cmd.Stderr = dir, &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s%s", args, err, out, stderr.String())
	}
	return string(out)
}

// webServer answers every request with its name, at an address of the loopback interface, until the test ends.
func webServer(t testing.TB, name string) (port int) {
	t.Helper()
	l := listenLoopback(t)
	srv := &http.Server{ReadHeaderTimeout: settleLimit, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, "%s\n", name) // the caller may be gone
	})}
	go func() { _ = srv.Serve(l) }() // ends with Close
	t.Cleanup(func() { _ = srv.Close() })
	return portOf(l.Addr())
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	must(t, err)
	must(t, os.WriteFile(to, data, 0o644))
}
