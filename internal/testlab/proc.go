package testlab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// execLimit ends a command that Exec, Try or Run waits for.
const execLimit = 2 * time.Minute

// stopLimit is how long Stop waits after SIGTERM before it kills.
const stopLimit = 15 * time.Second

// Cmd says what to run in a host. Only Args is needed.
type Cmd struct {
	Args   []string
	Env    []string // added to the test's own environment, less its FAIRLEAD_ variables
	Dir    string   // working directory; the test's own if empty
	Stdin  io.Reader
	Cgroup string // absolute directory below Host.Cgroup; a child of it kept for commands if empty
}

// Proc is a process of a host, started by the lab and reaped by it. It dies with the test process.
type Proc struct {
	name   string
	cmd    *exec.Cmd
	output string        // path of the file that takes stdout and stderr
	done   chan struct{} // closed when the process has ended
	err    error         // valid after done
}

// Exec runs a command in the host, fails the test unless it exits with 0 within two minutes, and returns its stdout.
func (n *NS) Exec(args ...string) string {
	n.lab.tb.Helper()
	stdout, stderr, err := n.Run(Cmd{Args: args})
	if err != nil {
		n.lab.tb.Fatalf("on %s: %s: %v\n%s%s", n.name, strings.Join(args, " "), err, stdout, stderr)
	}
	return stdout
}

// Try runs a command in the host and returns its stdout. The error names the exit status and ends with its stderr.
func (n *NS) Try(args ...string) (string, error) {
	stdout, stderr, err := n.Run(Cmd{Args: args})
	if err != nil && stderr != "" {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr))
	}
	return stdout, err
}

// Run runs a command in the host to its end. Processes that the command leaves behind are not waited for.
func (n *NS) Run(c Cmd) (stdout, stderr string, err error) {
	// Files and not pipes: a pipe would stay open as long as any child that the command leaves behind.
	outFile, err := n.scratch()
	if err != nil {
		return "", "", err
	}
	defer func() { _ = outFile.Close() }()
	errFile, err := n.scratch()
	if err != nil {
		return "", "", err
	}
	defer func() { _ = errFile.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), execLimit)
	defer cancel()
	cmd, err := n.fork(ctx, c, outFile, errFile)
	if err != nil {
		return "", "", err
	}
	err = cmd.Wait()
	if ctx.Err() != nil {
		err = fmt.Errorf("not done within %v and killed", execLimit)
	}
	out, outErr := readAll(outFile)
	text, textErr := readAll(errFile)
	return out, text, errors.Join(err, outErr, textErr)
}

// scratch makes a file without a name.
func (n *NS) scratch() (*os.File, error) {
	f, err := os.CreateTemp(n.host.dir, "out")
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}

func readAll(f *os.File) (string, error) {
	data, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<30))
	return string(data), err
}

// Start starts a process in the host and fails the test when it cannot be started.
func (n *NS) Start(args ...string) *Proc {
	n.lab.tb.Helper()
	return n.StartCmd(Cmd{Args: args})
}

// StartCmd is Start with choices.
func (n *NS) StartCmd(c Cmd) *Proc {
	n.lab.tb.Helper()
	p, err := n.start(c)
	if err != nil {
		n.lab.tb.Fatalf("on %s: start %s: %v", n.name, strings.Join(c.Args, " "), err)
	}
	return p
}

func (n *NS) start(c Cmd) (*Proc, error) {
	if len(c.Args) == 0 {
		return nil, errors.New("no command")
	}
	out, err := os.CreateTemp(n.host.dir, "log-"+filepath.Base(c.Args[0])+"-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }() // the child has its own
	cmd, err := n.fork(context.Background(), c, out, out)
	if err != nil {
		return nil, err
	}
	p := &Proc{name: n.name + ": " + strings.Join(c.Args, " "), cmd: cmd, output: out.Name(), done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = cmd.Wait()
	}()
	n.lab.mu.Lock()
	n.lab.procs = append(n.lab.procs, p)
	n.lab.mu.Unlock()
	return p, nil
}

// fork starts the command from the host's thread, whose namespaces it inherits: the process has no wrapper around it, and
// its process id is the one of the program itself.
func (n *NS) fork(ctx context.Context, c Cmd, stdout, stderr *os.File) (*exec.Cmd, error) {
	if len(c.Args) == 0 {
		return nil, errors.New("no command")
	}
	dir := c.Cgroup
	if dir == "" {
		dir = n.host.cmdCgroup()
	}
	group, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open control group: %w", err)
	}
	defer func() { _ = group.Close() }()
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	if path, err := findProgram(c); err != nil {
		return nil, err
	} else if path != "" {
		cmd.Path, cmd.Err = path, nil
	}
	cmd.Env = append(cleanEnv(), c.Env...)
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Dir, c.Stdin, stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		UseCgroupFD: true, CgroupFD: int(group.Fd()), // born in the group, so that no fork escapes it
		Pdeathsig: unix.SIGKILL, // of the host's thread, which lives as long as the lab
	}
	if err := n.thread.run(cmd.Start); err != nil {
		return nil, err
	}
	return cmd, nil
}

// findProgram looks a program up in the command's own PATH; "" means that the test's is the one.
func findProgram(c Cmd) (string, error) {
	if strings.Contains(c.Args[0], "/") {
		return "", nil
	}
	for _, kv := range slices.Backward(c.Env) {
		path, ok := strings.CutPrefix(kv, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(path) {
			if found, err := exec.LookPath(filepath.Join(dir, c.Args[0])); err == nil {
				return found, nil
			}
		}
		return "", fmt.Errorf("%w: %s in %s", exec.ErrNotFound, c.Args[0], path)
	}
	return "", nil
}

func isExit(err error) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit)
}

func cleanEnv() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "FAIRLEAD_") {
			env = append(env, kv)
		}
	}
	return env
}

// Pid is the process id, as the whole machine sees it.
func (p *Proc) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Proc) Done() <-chan struct{} { return p.done }

// Running tells whether the process has not ended yet.
func (p *Proc) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Signal sends a signal; os.ErrProcessDone when the process has ended.
func (p *Proc) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// Kill sends SIGKILL and waits for the end.
func (p *Proc) Kill() {
	_ = p.cmd.Process.Kill() // fails only when it has ended
	<-p.done
}

// Stop sends SIGTERM, waits for the end and returns what Wait returns. A process that does not end in 15 s is killed,
// which is an error.
func (p *Proc) Stop() error {
	if err := p.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return p.Wait(stopLimit)
}

// Wait waits for the end and returns nil for exit status 0, else an *exec.ExitError. When the time is over it kills the
// process and returns another error.
func (p *Proc) Wait(limit time.Duration) error {
	select {
	case <-p.done:
		return p.err
	case <-time.After(limit):
		p.Kill()
		return fmt.Errorf("%s did not end within %v and was killed", p.name, limit)
	}
}

// Output is what the process and its children have written to stdout and stderr so far.
func (p *Proc) Output() string {
	data, err := os.ReadFile(p.output)
	if err != nil {
		return err.Error()
	}
	return string(data)
}
