package process

import (
	"errors"
	"fmt"
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

// killCgroup kills every process of a cgroup. One that is not there has none.
func killCgroup(path string) error {
	if path == "" {
		return nil
	}
	err := os.WriteFile(filepath.Join(path, "cgroup.kill"), []byte("1"), 0)
	if errors.Is(err, os.ErrNotExist) {
		return killEach(path, 0) // before Linux 5.14, or no such cgroup
	}
	if err != nil {
		return fmt.Errorf("kill cgroup %s: %w", path, err)
	}
	return nil
}

// killEach kills a cgroup's processes one by one, but for one of them.
func killEach(path string, except int) error {
	b, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read cgroup %s: %w", path, err)
	}
	for _, f := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(f)
		if err != nil || pid == except || pid <= 0 {
			continue
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill process %d of cgroup %s: %w", pid, path, err)
		}
	}
	return nil
}

// removeCgroup kills what is left in a cgroup and removes it.
func removeCgroup(path string) error {
	if path == "" {
		return nil
	}
	for end := time.Now().Add(killWait); ; {
		if err := killCgroup(path); err != nil {
			return err
		}
		err := unix.Rmdir(path)
		switch {
		case err == nil, errors.Is(err, unix.ENOENT):
			return nil
		case !errors.Is(err, unix.EBUSY) || time.Now().After(end):
			return fmt.Errorf("remove cgroup %s: %w", path, err)
		}
		time.Sleep(5 * time.Millisecond) // killed processes leave their cgroup as they exit
	}
}
