package process

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead-net/fairlead/api"
)

// The hidden commands of the binary that run Supervise and Init.
const (
	SuperviseCommand = "workload-supervise"
	InitCommand      = "workload-init"
)

// holdTime bounds the time between a supervisor's start and the go-ahead: the
// agent attaches the endpoint in it.
const holdTime = time.Minute

// Spec is what a client wants run.
type Spec struct {
	Name    string   `json:"name"`
	Command []string `json:"command"`
	Env     []string `json:"env"` // all of it, KEY=VALUE
	Dir     string   `json:"dir"` // empty: the client's own
	// PIDNamespace gives the command process numbers of its own.
	PIDNamespace bool `json:"pid_namespace,omitempty"`
	// Detach cuts the workload loose from the client's terminal; its output goes
	// to a log file.
	Detach bool `json:"detach,omitempty"`

	RunDir string `json:"run_dir"`
	Cgroup string `json:"cgroup"` // the parent of the workload's own
}

// Started is a supervisor that holds namespaces and waits for the go-ahead.
type Started struct {
	// NetNS is the path of the workload's network namespace.
	NetNS string

	spec    Spec
	cmd     *exec.Cmd
	control io.WriteCloser
	reports *bufio.Scanner
	pipe    io.Closer
}

// report is what a supervisor tells its client, a line of JSON each.
type report struct {
	NetNS   string `json:"netns,omitempty"`
	Process int    `json:"process,omitempty"`
	Error   string `json:"error,omitempty"`
}

// Start starts a workload's supervisor, which makes the namespaces. The command
// itself runs after Go; a client that ends before, or calls Abandon, leaves
// nothing behind. ErrExists says that the name is taken.
func Start(spec Spec) (*Started, error) {
	if err := checkName(spec.Name); err != nil {
		return nil, err
	}
	if len(spec.Command) == 0 {
		return nil, errors.New("no command: say what to run, after --")
	}
	if err := checkCommand(&spec); err != nil {
		return nil, err
	}
	if err := claimDir(spec); err != nil {
		return nil, err
	}
	s, err := startSupervisor(spec)
	if err != nil {
		return nil, errors.Join(err, discard(spec))
	}
	r, err := s.next()
	if err == nil && r.NetNS == "" {
		err = errors.New("the supervisor did not say where its namespace is")
	}
	if err != nil {
		return nil, errors.Join(err, s.Abandon())
	}
	s.NetNS = r.NetNS
	return s, nil
}

// claimDir makes the workload's directory, which is what claims the name. A
// directory without a state is of a client that died before its supervisor
// started; after a moment it may be taken over, by one client only.
func claimDir(spec Spec) error {
	dir := workloadDir(spec.RunDir, spec.Name)
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return fmt.Errorf("run directory: %w", err)
	}
	all, err := os.Open(filepath.Dir(dir))
	if err != nil {
		return fmt.Errorf("run directory: %w", err)
	}
	defer all.Close() // which gives up the lock
	if err := unix.Flock(int(all.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", all.Name(), err)
	}
	err = os.Mkdir(dir, 0o700)
	if !errors.Is(err, os.ErrExist) {
		if err != nil {
			return fmt.Errorf("run directory: %w", err)
		}
		return nil
	}
	st, serr := os.Stat(dir)
	if _, lerr := load(dir); errors.Is(lerr, os.ErrNotExist) && serr == nil && time.Since(st.ModTime()) > holdTime {
		return os.Chtimes(dir, time.Now(), time.Now())
	}
	return fmt.Errorf("workload %q: %w; 'fairlead stop %s' ends it", spec.Name, ErrExists, spec.Name)
}

func startSupervisor(spec Spec) (*Started, error) {
	cg, err := makeCgroup(cgroupOf(spec))
	if err != nil {
		return nil, err
	}
	defer cg.Close() // a directory
	controlR, controlW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start the supervisor: %w", err)
	}
	defer controlR.Close() // the supervisor has its own
	reportR, reportW, err := os.Pipe()
	if err != nil {
		_ = controlW.Close()
		return nil, fmt.Errorf("start the supervisor: %w", err)
	}
	defer reportW.Close() // the supervisor has its own

	// What else the client was started with, such as a lock that a script holds,
	// is not the workload's; Go's own files are marked already.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, errors.Join(fmt.Errorf("keep files from the supervisor: %w", err), controlW.Close(), reportR.Close())
	}
	cmd := exec.Command("/proc/self/exe", SuperviseCommand, spec.Name) // the name is for those who look at processes
	cmd.Args[0] = "fairlead"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.Dir = "/"                                  // it must not keep a file system of the client busy
	cmd.ExtraFiles = []*os.File{controlR, reportW} // file descriptors 3 and 4
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cg.Fd()), Setsid: spec.Detach}
	if spec.Detach {
		log, err := openLog(spec)
		if err != nil {
			return nil, errors.Join(err, controlW.Close(), reportR.Close())
		}
		defer log.Close() // the supervisor has its own
		cmd.Stdout, cmd.Stderr = log, log
	} else {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start the supervisor: %w", err), controlW.Close(), reportR.Close())
	}
	s := &Started{spec: spec, cmd: cmd, control: controlW, reports: bufio.NewScanner(reportR), pipe: reportR}
	if err := json.NewEncoder(controlW).Encode(spec); err != nil {
		return nil, errors.Join(fmt.Errorf("instruct the supervisor: %w", err), s.Abandon())
	}
	return s, nil
}

// Go tells the supervisor to run the command in its place, and returns when it
// runs. When it fails the supervisor has ended and recorded that; the agent
// clears its workload away like any other that ended.
func (s *Started) Go(a api.Attachment) error {
	err := json.NewEncoder(s.control).Encode(a)
	if err != nil {
		err = fmt.Errorf("instruct the supervisor: %w", err)
	} else {
		_, err = s.next()
	}
	_ = s.control.Close() // it was read to its end
	_ = s.pipe.Close()
	if err != nil {
		_ = s.cmd.Wait() // it has ended with an error, which was told
	}
	return err
}

// Wait waits for the workload's end and returns its exit code, 128 plus the
// number of the signal that ended it.
func (s *Started) Wait() (int, error) {
	err := s.cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return 0, err
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal()), nil // killed together with its supervisor
	}
	return exit.ExitCode(), nil
}

// Abandon gives up a workload before Go: the supervisor ends and nothing is left.
func (s *Started) Abandon() error {
	_ = s.control.Close() // the end of its control is its order to end
	_ = s.pipe.Close()
	_ = s.cmd.Wait() // it ends with an error, since it was given up
	return discard(s.spec)
}

func (s *Started) next() (report, error) {
	var r report
	if !s.reports.Scan() {
		return r, errors.Join(errors.New("the supervisor ended before the workload ran"), s.reports.Err())
	}
	if err := json.Unmarshal(s.reports.Bytes(), &r); err != nil {
		return r, fmt.Errorf("the supervisor said %q: %w", s.reports.Text(), err)
	}
	if r.Error != "" {
		return r, errors.New(r.Error)
	}
	return r, nil
}

// discard removes what a workload that never ran has made.
func discard(spec Spec) error {
	err := errors.Join(RemoveCgroup(cgroupOf(spec)), os.RemoveAll(workloadDir(spec.RunDir, spec.Name)))
	if spec.Detach {
		_ = os.Remove(logPath(spec)) // it may not have come that far
	}
	return err
}

func cgroupOf(spec Spec) string { return filepath.Join(spec.Cgroup, spec.Name+".scope") }

func logPath(spec Spec) string { return filepath.Join(spec.RunDir, "logs", spec.Name+".log") }

func openLog(spec Spec) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(logPath(spec)), 0o700); err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	f, err := os.OpenFile(logPath(spec), os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	return f, nil
}

// checkCommand refuses what cannot be run: it looks for the directory, and for
// the command as the workload will, in its directory or its PATH. It makes the
// directory absolute.
func checkCommand(spec *Spec) error {
	dir, err := filepath.Abs(spec.Dir)
	if err != nil {
		return fmt.Errorf("working directory %q: %w", spec.Dir, err)
	}
	spec.Dir = dir
	if st, err := os.Stat(dir); err != nil {
		return fmt.Errorf("working directory: %w", err)
	} else if !st.IsDir() {
		return fmt.Errorf("working directory: %s: %w", dir, syscall.ENOTDIR)
	}
	name := spec.Command[0]
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("command: %w", err)
		}
		return nil
	}
	for _, dir := range filepath.SplitList(pathOf(spec.Env)) {
		if _, err := exec.LookPath(filepath.Join(dir, name)); filepath.IsAbs(dir) && err == nil {
			return nil
		}
	}
	return fmt.Errorf("command %q: %w", name, exec.ErrNotFound)
}

// pathOf is an environment's PATH; the last one counts, as it does for the
// command.
func pathOf(env []string) string {
	path := ""
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v
		}
	}
	return path
}

// Signal sends a signal to the supervisor, which passes it on to the command.
func (s *Started) Signal(sig os.Signal) {
	_ = s.cmd.Process.Signal(sig) // one that has just ended needs none
}
