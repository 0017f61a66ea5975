package process

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

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
	Env     []string `json:"env"`
	Dir     string   `json:"dir"`
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
	if _, err := lookPath(spec); err != nil {
		return nil, fmt.Errorf("command %q: %w", spec.Command[0], err)
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
// started; after a moment it may be taken over.
func claimDir(spec Spec) error {
	dir := workloadDir(spec.RunDir, spec.Name)
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return fmt.Errorf("run directory: %w", err)
	}
	err := os.Mkdir(dir, 0o700)
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
	defer cg.Close() //nolint:errcheck // a directory
	controlR, controlW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start the supervisor: %w", err)
	}
	defer controlR.Close() //nolint:errcheck // the supervisor has its own
	reportR, reportW, err := os.Pipe()
	if err != nil {
		_ = controlW.Close()
		return nil, fmt.Errorf("start the supervisor: %w", err)
	}
	defer reportW.Close() //nolint:errcheck // the supervisor has its own

	cmd := exec.Command("/proc/self/exe", SuperviseCommand)
	cmd.Args[0] = "fairlead"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.ExtraFiles = []*os.File{controlR, reportW} // file descriptors 3 and 4
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cg.Fd()), Setsid: spec.Detach}
	if spec.Detach {
		log, err := openLog(spec)
		if err != nil {
			return nil, errors.Join(err, controlW.Close(), reportR.Close())
		}
		defer log.Close() //nolint:errcheck // the supervisor has its own
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
// runs.
func (s *Started) Go(a api.Attachment) error {
	if err := json.NewEncoder(s.control).Encode(a); err != nil {
		return fmt.Errorf("instruct the supervisor: %w", err)
	}
	if _, err := s.next(); err != nil {
		return err
	}
	return errors.Join(s.control.Close(), s.pipe.Close())
}

// Wait waits for a workload that was not detached, and returns its exit code.
func (s *Started) Wait() (int, error) {
	err := s.cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
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
	return errors.Join(removeCgroup(cgroupOf(spec)), os.RemoveAll(workloadDir(spec.RunDir, spec.Name)))
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

// lookPath finds the command as the workload will: in its directory and its PATH.
func lookPath(spec Spec) (string, error) {
	name := spec.Command[0]
	if filepath.Base(name) != name {
		if !filepath.IsAbs(name) {
			name = filepath.Join(spec.Dir, name)
		}
		return exec.LookPath(name)
	}
	return exec.LookPath(name)
}

// Signal sends a signal to the supervisor, which passes it on to the command.
func (s *Started) Signal(sig os.Signal) {
	_ = s.cmd.Process.Signal(sig) // one that has just ended needs none
}
