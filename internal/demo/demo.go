// Package demo shows Fairlead at its main job on one machine: an agent, a
// network, a service of three instances that is found, checked and balanced, and
// one of them killed under load. It measures what it claims, and fails if a claim
// does not hold.
//
// Everything happens in network and mount namespaces of its own, with real
// processes of the binary that runs it. Run makes them and runs that binary again
// inside (Inside); nothing outside is touched but a cgroup and a temporary
// directory, which it removes.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead-net/fairlead/internal/node"
)

// The hidden commands of the binary that run this package's other roles.
const (
	InsideCommand = "demo-inside"
	ServeCommand  = "demo-serve"
	LoadCommand   = "demo-load"
)

// limit bounds the whole demonstration.
const limit = 90 * time.Second

// Run makes the demonstration's own world, runs it there and removes the world.
func Run(ctx context.Context, out io.Writer) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("the demo needs root, to make namespaces of its own; use sudo")
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	root, err := node.CgroupRoot()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "fairlead-demo-")
	if err != nil {
		return fmt.Errorf("make the demo's directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	cgroup := filepath.Join(root, "fairlead-demo-"+strconv.Itoa(os.Getpid()))
	if err := os.MkdirAll(filepath.Join(cgroup, "host"), 0o755); err != nil {
		return fmt.Errorf("make the demo's cgroup: %w", err)
	}
	defer func() { err = errors.Join(err, removeCgroup(cgroup)) }()
	return runInside(ctx, out, dir, cgroup)
}

// runInside runs Inside in namespaces of its own and in the demo's cgroup.
func runInside(ctx context.Context, out io.Writer, dir, cgroup string) error {
	cg, err := os.Open(filepath.Join(cgroup, "host"))
	if err != nil {
		return fmt.Errorf("enter the demo's cgroup: %w", err)
	}
	defer cg.Close() // a directory
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	cmd := exec.CommandContext(ctx, self, InsideCommand, dir, cgroup)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/"}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = 15 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, UseCgroupFD: true, CgroupFD: int(cg.Fd()),
	}
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("the demo was ended: %w", ctx.Err())
	case errors.As(err, &exit):
		return errors.New("the demo failed; see above")
	}
	return err
}

// removeCgroup ends what is left in a cgroup and those below it, and removes
// them.
func removeCgroup(path string) error {
	if err := os.WriteFile(filepath.Join(path, "cgroup.kill"), []byte("1"), 0); err != nil {
		return fmt.Errorf("end what is left of the demo: %w", err)
	}
	for end := time.Now().Add(5 * time.Second); ; {
		err := removeTree(path)
		if err == nil {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("remove the demo's cgroup: %w", err)
		}
		time.Sleep(10 * time.Millisecond) // killed processes leave their cgroup as they exit
	}
}

func removeTree(path string) error {
	below, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, d := range below {
		if d.IsDir() {
			if err := removeTree(filepath.Join(path, d.Name())); err != nil {
				return err
			}
		}
	}
	return unix.Rmdir(path)
}
