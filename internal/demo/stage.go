package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead-net/fairlead/api"
)

// stage is the world inside: one agent and the claims made about it.
type stage struct {
	out    io.Writer
	self   string
	dir    string
	cgroup string
	env    []string
	agent  *exec.Cmd
	log    *os.File
	api    *api.Client
	claims []claim
}

// claim is one line of the summary.
type claim struct {
	what, saw string
	holds     bool
}

func (s *stage) claim(holds bool, what, format string, a ...any) {
	s.claims = append(s.claims, claim{what, fmt.Sprintf(format, a...), holds})
}

// Inside runs the demonstration in the namespaces that Run made. Its arguments
// are the directory and the cgroup.
func Inside(args []string) int {
	if len(args) != 2 {
		return 2
	}
	s, err := newStage(args[0], args[1])
	if err == nil {
		err = s.play()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "fairlead demo: %v\n", err)
		s.showLog()
		return 1
	}
	return 0
}

func newStage(dir, cgroup string) (*stage, error) {
	s := &stage{out: os.Stdout, dir: dir, cgroup: cgroup}
	var err error
	if s.self, err = os.Executable(); err != nil {
		return s, fmt.Errorf("find this program: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return s, fmt.Errorf("make the mounts private: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return s, err
	}
	if s.log, err = os.Create(filepath.Join(dir, "agent.log")); err != nil {
		return s, err
	}
	if s.api, err = api.New(""); err != nil {
		return s, err
	}
	s.env = append(os.Environ(),
		"FAIRLEAD_RUN_DIR="+filepath.Join(dir, "run"), "FAIRLEAD_DATA_DIR="+filepath.Join(dir, "data"),
		"FAIRLEAD_BPFFS="+filepath.Join(dir, "bpf"), "FAIRLEAD_CGROUP="+cgroup, "FAIRLEAD_NODE_NAME=demo",
	)
	return s, os.MkdirAll(filepath.Join(cgroup, "agent"), 0o755)
}

// loopbackUp sets lo up; in a new network namespace it is down. netdevice(7)
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("set the loopback up: %w", err)
	}
	defer unix.Close(fd) // used for one request
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("set the loopback up: %w", err)
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("set the loopback up: %w", err)
	}
	return nil
}

// startAgent starts the agent in its own cgroup and waits until it is ready.
func (s *stage) startAgent(ctx context.Context) error {
	cg, err := os.Open(filepath.Join(s.cgroup, "agent"))
	if err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	defer cg.Close() // a directory
	s.agent = exec.Command(s.self, "agent")
	s.agent.Env, s.agent.Stdout, s.agent.Stderr = s.env, s.log, s.log
	s.agent.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cg.Fd())}
	if err := s.agent.Start(); err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	return s.until(ctx, "the agent to be ready", func() error {
		_, err := s.api.Do(ctx, http.MethodGet, "/readyz", nil)
		return err
	})
}

// pollEvery is how often until looks.
const pollEvery = 2 * time.Millisecond

// patience bounds each wait.
const patience = 15 * time.Second

// until waits for something to hold.
func (s *stage) until(ctx context.Context, what string, holds func() error) error {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := holds()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited %s for %s: %w", since(began), what, err)
		case <-tick.C:
		}
	}
}

// fairlead runs a command line of this program, shows it, and returns what it
// printed.
func (s *stage) fairlead(ctx context.Context, args ...string) (string, error) {
	s.say("$ fairlead %s", strings.Join(shorten(s.self, args), " "))
	out, err := s.quietly(ctx, args...)
	if text := strings.TrimRight(out, "\n"); text != "" {
		s.say("%s", text)
	}
	return out, err
}

func (s *stage) quietly(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, s.self, args...)
	var out, errs bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.Dir = s.env, &out, &errs, "/"
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("fairlead %s: %w: %s", strings.Join(shorten(s.self, args), " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// shorten makes a command line fit to be read.
func shorten(self string, args []string) []string {
	var out []string
	for _, a := range args {
		if a == self {
			a = "fairlead"
		}
		out = append(out, a)
	}
	return out
}

func (s *stage) say(format string, a ...any) { fmt.Fprintf(s.out, format+"\n", a...) }

func (s *stage) heading(text string) { s.say("\n== %s", text) }

// summary prints every claim, and fails if one does not hold.
func (s *stage) summary() error {
	s.heading("Summary")
	w := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CLAIM\tSEEN\tHOLDS")
	var failed []string
	for _, c := range s.claims {
		verdict := "yes"
		if !c.holds {
			verdict = "NO"
			failed = append(failed, c.what)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", c.what, c.saw, verdict)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(failed) > 0 {
		return errors.New("did not hold: " + strings.Join(failed, "; "))
	}
	return nil
}

// showLog prints the end of the agent's log, to tell why something failed.
func (s *stage) showLog() {
	b, err := os.ReadFile(filepath.Join(s.dir, "agent.log"))
	if err != nil {
		return
	}
	const tail = 4000
	if len(b) > tail {
		b = b[len(b)-tail:]
	}
	fmt.Fprintf(os.Stderr, "-- end of the agent's log --\n%s", b)
}
