package testlab

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"
)

// findCgroupRoot returns where control groups version 2 are mounted: /sys/fs/cgroup, or below it beside version 1.
func findCgroupRoot(mountinfo string) (string, error) {
	f, err := os.Open(mountinfo)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	for s := bufio.NewScanner(f); s.Scan(); {
		if m, ok := parseMount(s.Text()); ok && m.fs == "cgroup2" && strings.HasPrefix(m.point, "/sys/fs/cgroup") {
			return m.point, nil
		}
	}
	return "", errors.New("no cgroup2 file system is mounted below /sys/fs/cgroup")
}

type mount struct{ root, point, fs, source string }

// parseMount reads one line of /proc/PID/mountinfo (proc(5)).
func parseMount(line string) (mount, bool) {
	left, right, ok := strings.Cut(line, " - ")
	l, r := strings.Fields(left), strings.Fields(right)
	if !ok || len(l) < 5 || len(r) < 2 {
		return mount{}, false
	}
	return mount{root: l[3], point: l[4], fs: r[0], source: r[1]}, true
}

// mountPoints lists where something is mounted, a place with two mounts on it twice.
func mountPoints(mountinfo string) ([]string, error) {
	data, err := os.ReadFile(mountinfo)
	if err != nil {
		return nil, err
	}
	var points []string
	for line := range strings.Lines(string(data)) {
		if m, ok := parseMount(line); ok {
			points = append(points, m.point)
		}
	}
	return points, nil
}

// cgroupTree lists the directory and everything below it, deepest first.
func cgroupTree(dir string) []string {
	var dirs []string
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil // a group that vanishes meanwhile is not missed
	})
	sort.Sort(sort.Reverse(sort.StringSlice(dirs)))
	return dirs
}

// cgroupProcs lists the processes in the group and below it.
func cgroupProcs(dir string) []int {
	var pids []int
	for _, d := range cgroupTree(dir) {
		data, err := os.ReadFile(filepath.Join(d, "cgroup.procs"))
		if err != nil {
			continue
		}
		for _, word := range strings.Fields(string(data)) {
			if pid, err := strconv.Atoi(word); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// removeCgroup kills what lives in the group and removes it with everything below.
func removeCgroup(dir string) error {
	if _, err := os.Stat(dir); err != nil {
		return nil
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0o644); err != nil {
		return fmt.Errorf("kill control group: %w", err)
	}
	return poll(10*time.Second, pollInterval, func() error {
		var last error
		for _, d := range cgroupTree(dir) {
			if err := os.Remove(d); err != nil && !errors.Is(err, os.ErrNotExist) {
				last = err // busy until the last process is reaped
			}
		}
		return last
	})
}

// describe names a process for a message.
func describe(pid int) string {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	words := strings.TrimRight(strings.ReplaceAll(string(data), "\x00", " "), " ")
	if words == "" {
		words = "already dead"
	}
	return fmt.Sprintf("process %d (%s)", pid, words)
}
