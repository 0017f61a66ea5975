package health

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
)

// scriptsOff is what a check says that may not run its program.
const scriptsOff = "Scripts are disabled on this agent; to enable them, set script-checks to local (for those of definition files) or on (for those of the API too)"

// scriptProbe runs a program: exit code 0 is passing, 1 warning, all others
// critical.
func scriptProbe(spec model.CheckSpec) probe {
	return func(ctx context.Context) (model.Status, string) {
		code, output, err := execute(ctx, spec, spec.Args)
		if err != nil {
			return model.Critical, said(err, output)
		}
		return exitStatus(code), output
	}
}

func exitStatus(code int) model.Status {
	switch code {
	case 0:
		return model.Passing
	case 1:
		return model.Warning
	}
	return model.Critical
}

// said joins why a program did not end and what it had said until then.
func said(err error, output string) string {
	if output == "" {
		return err.Error()
	}
	return err.Error() + "\n\n" + output
}

// execute runs a program of the check's to its end, without a shell in between.
// It has no input, and a process group of its own that is killed whole when its
// time is up. An error means that there is no exit code.
func execute(ctx context.Context, spec model.CheckSpec, args []string) (code int, output string, err error) {
	most := programTime(spec)
	limited, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	tail := &tail{most: outputMax(spec)}
	cmd := exec.CommandContext(limited, args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Env = tail, tail, environment()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	// What the program leaves behind may hold its output open.
	cmd.WaitDelay = time.Second
	start := cmd.Start
	if spec.NetNS != "" {
		start = func() error { return nsDo(spec.NetNS, cmd.Start) }
	}
	if err := start(); err != nil {
		return 0, "", err
	}
	err = cmd.Wait()
	output = tail.String()
	var exit *exec.ExitError
	switch {
	case errors.Is(limited.Err(), context.DeadlineExceeded) && ctx.Err() == nil && cmd.ProcessState.ExitCode() < 0:
		return 0, output, fmt.Errorf("Timed out (%s) running check", most) //nolint:staticcheck // Consul's text
	case err == nil, errors.As(err, &exit), errors.Is(err, exec.ErrWaitDelay):
		return cmd.ProcessState.ExitCode(), output, nil // -1 for one that a signal ended
	}
	return 0, output, err
}

// environment is the agent's, without its own settings: they can hold tokens.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "FAIRLEAD_") })
}

// tail keeps the last bytes written to it.
type tail struct {
	most int

	mu    sync.Mutex // guards the following
	kept  []byte
	total int
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.total += len(p)
	t.kept = append(t.kept, p[max(len(p)-t.most, 0):]...)
	if over := len(t.kept) - t.most; over > 0 {
		t.kept = slices.Delete(t.kept, 0, over)
	}
	return len(p), nil
}

// String is what is kept as valid UTF-8, and how much it is of how much if that
// is not all. The wording is Consul's.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := strings.ToValidUTF8(string(t.kept), "\uFFFD")
	if t.total > len(t.kept) {
		return fmt.Sprintf("Captured %d of %d bytes\n...\n%s", len(t.kept), t.total, s)
	}
	return s
}

// unitProbe asks systemd for the state of a unit.
func unitProbe(spec model.CheckSpec) probe {
	ask := []string{"systemctl", "show", "--property=LoadState,ActiveState,SubState", "--", spec.OSService}
	return func(ctx context.Context) (model.Status, string) {
		code, output, err := execute(ctx, model.CheckSpec{Timeout: spec.Timeout}, ask)
		switch {
		case errors.Is(err, exec.ErrNotFound):
			return model.Critical, "OS service checks need systemd, and this host has no systemctl"
		case err != nil:
			return model.Critical, said(err, output)
		case code != 0:
			return model.Critical, "systemd does not answer: " + strings.TrimSpace(output)
		}
		return unitStatus(spec.OSService, output)
	}
}

// unitStatus reads what systemctl show says.
func unitStatus(unit, output string) (model.Status, string) {
	said := map[string]string{}
	for line := range strings.Lines(output) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		said[k] = v
	}
	state := fmt.Sprintf("Service %q is %s (%s)", unit, said["ActiveState"], said["SubState"])
	switch {
	case said["LoadState"] == "not-found":
		return model.Critical, fmt.Sprintf("systemd knows no service %q", unit)
	case said["ActiveState"] == "active":
		return model.Passing, fmt.Sprintf("Service %q is healthy", unit)
	case slices.Contains([]string{"reloading", "refreshing", "activating"}, said["ActiveState"]):
		return model.Warning, state
	}
	return model.Critical, state
}
