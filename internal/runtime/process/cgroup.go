package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// makeCgroup makes a workload's cgroup and returns it opened, for clone3(2).
func makeCgroup(path string) (*os.File, error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, fmt.Errorf("make cgroup: %w", err)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	return f, nil
}

// killCgroup kills every process of a cgroup and those below it. One that is not
// there has none.
func killCgroup(path string) error {
	if path == "" {
		return nil
	}
	err := writeExisting(filepath.Join(path, "cgroup.kill"), "1")
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) { // ENODEV: removed while the file was open
		return nil
	}
	if err != nil {
		return fmt.Errorf("kill cgroup %s: %w", path, err)
	}
	return nil
}

func writeExisting(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// killEach kills the processes of a cgroup and those below it one by one, but
// for one of them, and returns how many there were.
func killEach(path string, except int) (n int, err error) {
	err = filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, os.ErrNotExist):
			return nil
		case err != nil:
			return fmt.Errorf("read cgroup: %w", err)
		case !d.IsDir():
			return nil
		}
		b, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
			return nil // it was removed, or is threaded: then its parent lists them
		}
		if err != nil {
			return fmt.Errorf("read cgroup: %w", err)
		}
		for _, f := range strings.Fields(string(b)) {
			pid, err := strconv.Atoi(f)
			if err != nil || pid == except || pid <= 0 {
				continue
			}
			n++
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill process %d of cgroup %s: %w", pid, path, err)
			}
		}
		return nil
	})
	return n, err
}

// killStep is the time between two looks at whether the killed are gone.
const killStep = 5 * time.Millisecond

// killRest kills everything in a cgroup but one process, until nothing else is
// left: what forks while it is killed is found the next time.
func killRest(path string, except int) error {
	for end := time.Now().Add(killWait); ; time.Sleep(killStep) {
		n, err := killEach(path, except)
		if err != nil || n == 0 {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d processes of cgroup %s are still there %s after they were killed", n, path, killWait)
		}
	}
}

// RemoveCgroup kills what is left in a cgroup and removes it with those that were
// made below it. It waits some seconds for what it killed.
func RemoveCgroup(path string) error {
	if path == "" {
		return nil
	}
	// Killed processes leave their cgroup as they exit.
	for end := time.Now().Add(killWait); ; time.Sleep(killStep) {
		if err := killCgroup(path); err != nil {
			return err
		}
		err := removeTree(path)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
}

func removeTree(path string) error {
	below, err := os.ReadDir(path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
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
	if err := unix.Rmdir(path); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "rmdir", Path: path, Err: err}
	}
	return nil
}
