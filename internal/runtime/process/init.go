package process

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Init is the first thing that runs in a workload's namespaces: it finishes the
// mounts and becomes the command. args are the workload's directory, "pid" for a
// process namespace of its own or "-", and the command. It returns only when it
// fails, having said why on file descriptor 3.
func Init(args []string) int {
	fail, err := inherited(3, "failure")
	if err == nil && len(args) < 3 {
		err = errors.New("too few arguments")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return neverRan
	}
	// The death signal belongs to the thread that becomes the command.
	runtime.LockOSThread()
	err = initialise(args[0], args[1] == "pid", args[2:], fail)
	_, _ = fmt.Fprintln(fail, err) // nobody else could be told
	return neverRan
}

func initialise(dir string, pidNamespace bool, command []string, supervisor *os.File) error {
	// What the host mounts or unmounts later is seen inside too, or it could not
	// let go of a file system; what is mounted inside stays inside.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("part the mounts: %w", err)
	}
	for _, name := range []string{"resolv.conf", "hosts"} {
		if err := bindOver(filepath.Join(dir, name), "/etc/"+name); err != nil {
			return err
		}
	}
	if err := mountSys(); err != nil {
		return err
	}
	if pidNamespace {
		if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("mount /proc: %w", err)
		}
	}
	path, err := exec.LookPath(command[0])
	if err != nil {
		return fmt.Errorf("command %q: %w", command[0], err)
	}
	if err := dieWith(supervisor); err != nil {
		return err
	}
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("keep files from the command: %w", err)
	}
	return fmt.Errorf("run %s: %w", path, unix.Exec(path, command, os.Environ()))
}

// dieWith has the kernel kill the command when the supervisor dies. Its starter
// asked for that too, but for the process's first thread, and Go runs on any.
func dieWith(supervisor *os.File) error {
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("die with the supervisor: %w", err)
	}
	// One that died before that is told by its pipe.
	pipe := []unix.PollFd{{Fd: int32(supervisor.Fd())}}
	if n, err := unix.Poll(pipe, 0); err == nil && n > 0 {
		return errors.New("the supervisor died")
	}
	return nil
}

// mountSys mounts a new sysfs: it shows the network namespace of its mounter, so
// that with the old one the workload would see the host's interfaces. What is
// mounted below for cgroups is carried over, since programs read their limits
// there.
func mountSys() error {
	const cgroups = "/sys/fs/cgroup"
	tree, err := unix.OpenTree(unix.AT_FDCWD, cgroups, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("keep %s: %w", cgroups, err)
	}
	kept := err == nil
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	if !kept {
		return nil
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, cgroups, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("keep %s: %w", cgroups, err)
	}
	return unix.Close(tree)
}

// bindOver mounts a file over another, following links: /etc/resolv.conf often
// is one, and a mount on the link itself would not be seen.
func bindOver(file, at string) error {
	target, err := filepath.EvalSymlinks(at)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("this host has no %s, or a link to nothing, to mount the workload's over; an empty file will do", at)
	}
	if err != nil {
		return fmt.Errorf("find %s: %w", at, err)
	}
	if err := unix.Mount(file, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount over %s: %w", at, err)
	}
	return nil
}
