package testlab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lastBreath is how long a child may take to see that its parent, which the lab has stopped, is gone, and to end too.
const lastBreath = time.Second

// leaks names what the test left in the host, after the processes that the lab itself started were stopped.
func (h *Host) leaks() []string {
	var found []string
	_ = poll(lastBreath, pollInterval, func() error {
		found = found[:0]
		for _, pid := range cgroupProcs(h.cgroup) {
			found = append(found, fmt.Sprintf("host %s: %s", h.name, describe(pid)))
		}
		if len(found) > 0 {
			return errors.New("still running")
		}
		return nil
	})
	for _, dir := range cgroupTree(h.cgroup) {
		if dir != h.cgroup && dir != h.AgentCgroup() && dir != h.cmdCgroup() {
			found = append(found, fmt.Sprintf("host %s: control group %s", h.name, dir))
		}
	}
	for _, pin := range h.pins() {
		if slices.Contains(h.preload, pin) {
			continue
		}
		found = append(found, fmt.Sprintf("host %s: pinned BPF object %s", h.name, pin))
	}
	if h.thread == nil || h.mounts == nil {
		return found // it was never complete
	}
	err := h.thread.run(func() error {
		now, err := mountPoints("/proc/thread-self/mountinfo")
		for _, d := range Diff(h.mounts, now) {
			if point, ok := strings.CutPrefix(d, "+ "); ok && !h.ownSpace(point) {
				found = append(found, fmt.Sprintf("host %s: mount %s", h.name, point))
			}
		}
		return err
	})
	if err != nil {
		found = append(found, fmt.Sprintf("host %s: %v", h.name, err))
	}
	return found
}

func (h *Host) ownSpace(path string) bool {
	return slices.ContainsFunc(h.spaces, func(n *NS) bool { return n.path == path })
}

// pins lists the objects in the host's BPF file system.
func (h *Host) pins() []string {
	var pins []string
	_ = filepath.WalkDir(h.BPFFS(), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			pins = append(pins, path)
		}
		return nil
	})
	return pins
}

// remains names what is still there of the lab after it was removed, wherever it may have gone.
func (l *Lab) remains() []string {
	var found []string
	mark := "fl-" + l.id
	points, err := mountPoints("/proc/self/mountinfo")
	if err != nil {
		found = append(found, err.Error())
	}
	for _, point := range points {
		if strings.Contains(point, mark) {
			found = append(found, "mount "+point)
		}
	}
	for _, pattern := range []string{filepath.Join(netnsDir, mark+"-*"), filepath.Join(l.cgroupRoot, mark+"-*"), l.dir} {
		paths, _ := filepath.Glob(pattern)
		found = append(found, paths...)
	}
	links, err := foreignLinks("/proc/self/net/dev") // of the process's first thread, which never enters a host
	if err != nil {
		found = append(found, err.Error())
	}
	found = append(found, links...)
	return append(found, l.escaped()...)
}

// foreignLinks lists links with the project's names in the machine's own network namespace, where none may ever be.
func foreignLinks(procNetDev string) ([]string, error) {
	data, err := os.ReadFile(procNetDev)
	if err != nil {
		return nil, err
	}
	var found []string
	for line := range strings.Lines(string(data)) {
		name, _, ok := strings.Cut(strings.TrimSpace(line), ":")
		if ok && (strings.HasPrefix(name, "fl-") || strings.HasPrefix(name, "flv")) {
			found = append(found, "link "+name+" in the machine's own network")
		}
	}
	return found, nil
}

// escaped finds processes that left their control group but still live in a namespace of the lab.
func (l *Lab) escaped() []string {
	inside := map[uint64]bool{}
	for _, h := range l.hosts {
		for _, n := range append(h.spaces, &h.NS) {
			if n.inode != 0 {
				inside[n.inode] = true
			}
		}
	}
	var found []string
	names, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, name := range names {
		var st unix.Stat_t
		if unix.Stat(name, &st) != nil || !inside[st.Ino] {
			continue // it has ended, or it is not ours
		}
		if pid, err := strconv.Atoi(strings.Split(name, "/")[2]); err == nil {
			found = append(found, describe(pid)+" outside of its control group")
		}
	}
	return found
}
