package process

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead-net/fairlead/api"
)

// supervisor is the process that holds one workload.
type supervisor struct {
	spec    Spec
	dir     string
	state   State
	control *bufio.Scanner
	reports *json.Encoder
	pipes   [2]*os.File
}

// Supervise is the main function of a supervisor. It returns the exit code: the
// command's, 128 plus the number of the signal that ended it, or 125 when the
// command never ran.
func Supervise() int {
	// The namespace belongs to this thread, and the command gets a signal when
	// the thread that started it ends: so there is one thread for both.
	runtime.LockOSThread()
	s := &supervisor{}
	for i, name := range []string{"control", "reports"} {
		f, err := inherited(3+i, name)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return neverRan
		}
		s.pipes[i] = f
	}
	s.control = bufio.NewScanner(s.pipes[0])
	s.control.Buffer(nil, 8<<20) // an environment may be large
	s.reports = json.NewEncoder(s.pipes[1])
	code, err := s.run()
	if err != nil {
		// The client may be gone; then nobody needs to know.
		_ = s.reports.Encode(report{Error: err.Error()})
		return neverRan
	}
	return code
}

// neverRan is the exit code of a supervisor whose command did not run.
const neverRan = 125

// inherited opens a pipe that the starter of this process has put at fd. It
// refuses anything else, so that these roles do nothing when a person tries them.
func inherited(fd int, name string) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return nil, errors.New("this is for fairlead's own use: 'fairlead run' starts workloads")
	}
	unix.CloseOnExec(fd)
	// For a file that does not block, reads can have a deadline.
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (s *supervisor) run() (int, error) {
	if err := s.pipes[0].SetReadDeadline(time.Now().Add(holdTime)); err != nil {
		return 0, fmt.Errorf("wait for instructions: %w", err)
	}
	if err := s.read(&s.spec); err != nil {
		return 0, err
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 0, fmt.Errorf("become the reaper: %w", err)
	}
	if err := s.hold(); err != nil {
		return 0, err
	}
	code, err := s.runWorkload()
	// Whatever happened is recorded, so that the agent clears the workload away.
	return code, errors.Join(err, s.ended(code))
}

// runWorkload waits for the go-ahead, runs the command to its end and then ends
// what it left behind.
func (s *supervisor) runWorkload() (int, error) {
	if err := s.reports.Encode(report{NetNS: s.state.NetNS}); err != nil {
		return neverRan, fmt.Errorf("report: %w", err)
	}
	var a api.Attachment
	if err := s.read(&a); err != nil {
		return neverRan, err
	}
	// Until here a signal simply ends this process.
	signals := make(chan os.Signal, 16)
	for _, sig := range []os.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2} {
		if !signal.Ignored(sig) { // what nohup(1) or a shell has ignored stays so
			signal.Notify(signals, sig)
		}
	}
	cmd, err := s.start(a)
	if err != nil {
		return neverRan, err
	}
	s.state.Process = cmd.Process.Pid
	if err := s.state.save(s.dir); err != nil {
		return neverRan, errors.Join(err, killRest(s.state.Cgroup, os.Getpid()))
	}
	_ = s.reports.Encode(report{Process: cmd.Process.Pid}) // the workload runs, whoever listens
	for _, f := range s.pipes {
		_ = f.Close()
	}
	code := s.reap(cmd.Process, signals)
	return code, killRest(s.state.Cgroup, os.Getpid())
}

func (s *supervisor) read(v any) error {
	if !s.control.Scan() {
		if err := s.control.Err(); err != nil {
			return fmt.Errorf("wait for instructions: %w", err)
		}
		return errors.New("the client went away")
	}
	if err := json.Unmarshal(s.control.Bytes(), v); err != nil {
		return fmt.Errorf("instructions: %w", err)
	}
	return nil
}

// hold makes the network namespace and records that this process holds it.
func (s *supervisor) hold() error {
	s.dir = workloadDir(s.spec.RunDir, s.spec.Name)
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
	}
	me, err := self()
	if err != nil {
		return fmt.Errorf("tell own process: %w", err)
	}
	s.state = State{
		Name: s.spec.Name, Supervisor: me, Command: s.spec.Command, Started: time.Now().UTC(),
		NetNS:  fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid()),
		Cgroup: cgroupOf(s.spec),
	}
	if s.spec.Detach {
		s.state.Log = logPath(s.spec)
	}
	return s.state.save(s.dir)
}

// start runs the command through Init, which finishes the mount namespace.
func (s *supervisor) start(a api.Attachment) (*exec.Cmd, error) {
	if err := writeNames(s.dir, s.spec.Name, a); err != nil {
		return nil, err
	}
	failR, failW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer failR.Close() // read to its end
	cmd := exec.Command("/proc/self/exe", append([]string{InitCommand, s.dir, boolWord(s.spec.PIDNamespace)}, s.spec.Command...)...)
	cmd.Args[0] = "fairlead"
	cmd.Env, cmd.Dir = s.spec.Env, s.spec.Dir
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{failW} // file descriptor 3, closed by the command's exec
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	if s.spec.PIDNamespace {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWPID
	}
	err = cmd.Start()
	_ = failW.Close()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", s.spec.Command[0], err)
	}
	said := bufio.NewScanner(failR)
	if said.Scan() {
		_ = cmd.Wait() // it has said why it ends
		return nil, errors.New(said.Text())
	}
	return cmd, nil
}

// reap waits for the command, passes signals on to it, and reaps whatever else
// it left to this process.
func (s *supervisor) reap(command *os.Process, signals <-chan os.Signal) int {
	done := make(chan int, 1)
	go func() { done <- reapUntil(command.Pid) }()
	for {
		select {
		case code := <-done:
			return code
		case sig := <-signals:
			if !s.spec.Detach && (sig == unix.SIGINT || sig == unix.SIGQUIT) {
				continue // the terminal sent it to the command as well
			}
			// By its pidfd, which cannot mean another process: it may just have ended.
			_ = command.Signal(sig)
		}
	}
}

// reapUntil reaps children of this process until a certain one has ended, and
// returns its exit code.
func reapUntil(pid int) int {
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return neverRan // no child at all: it was reaped by nobody
		case got == pid && ws.Signaled():
			return 128 + int(ws.Signal())
		case got == pid && ws.Exited():
			return ws.ExitStatus()
		}
	}
}

func (s *supervisor) ended(code int) error {
	s.state.ExitCode = &code
	return s.state.save(s.dir)
}

// resolvOptions let a resolver (resolv.conf(5)) bridge the seconds of an agent's
// restart: it asks again each second, and not after five.
const resolvOptions = "options timeout:1 attempts:5\n"

// writeNames writes what the workload sees as /etc/resolv.conf and /etc/hosts.
func writeNames(dir, name string, a api.Attachment) error {
	var resolv, hosts strings.Builder
	for _, ns := range a.Nameservers {
		fmt.Fprintf(&resolv, "nameserver %s\n", ns)
	}
	if len(a.Search) > 0 {
		fmt.Fprintf(&resolv, "search %s\n", strings.Join(a.Search, " "))
	}
	if len(a.Nameservers) > 0 {
		resolv.WriteString(resolvOptions)
	}
	hosts.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	for _, addr := range a.Endpoint.Addrs {
		fmt.Fprintf(&hosts, "%s\t%s\n", addr, name)
	}
	for file, text := range map[string]string{"resolv.conf": resolv.String(), "hosts": hosts.String()} {
		path := filepath.Join(dir, file)
		err := os.WriteFile(path, []byte(text), 0o644)
		if err == nil {
			err = os.Chmod(path, 0o644) // whatever the umask: not every workload is root
		}
		if err != nil {
			return fmt.Errorf("write the workload's %s: %w", file, err)
		}
	}
	return nil
}

func boolWord(b bool) string {
	if b {
		return "pid"
	}
	return "-"
}
