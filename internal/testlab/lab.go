package testlab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Lab is the hosts of one test.
type Lab struct {
	tb         testing.TB
	id         string // four hexadecimal digits, unique on the machine
	dir        string // scratch directory, /tmp/fl-ID
	cwd        string
	cgroupRoot string
	lock       *os.File // held as long as the process lives; see sweep

	mu       sync.Mutex // guards following, and the fields of hosts and wires that change
	hosts    map[string]*Host
	wires    *NS // where all bridges are; nil before the first
	segments []*Wire
	ports    int
	cuts     map[[2]string]bool
	procs    []*Proc
}

// New makes an empty lab that is removed, and checked for leaks, when the test ends. It needs root (see Require).
func New(tb testing.TB) *Lab {
	tb.Helper()
	Require(tb, Root)
	sweepOnce()
	l, err := newLab(tb)
	if err != nil {
		tb.Fatalf("testlab: %v", err)
	}
	tb.Cleanup(l.close)
	return l
}

func newLab(tb testing.TB) (*Lab, error) {
	root, err := findCgroupRoot("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	cwd, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	l := &Lab{tb: tb, cwd: cwd, cgroupRoot: root, hosts: map[string]*Host{}}
	if err := l.claim(); err != nil {
		return nil, err
	}
	return l, nil
}

// Host adds a host to the lab. See Host for what it consists of.
func (l *Lab) Host(name string) *Host {
	l.tb.Helper()
	h, err := l.newHost(name)
	if err != nil {
		l.tb.Fatalf("testlab: host %s: %v", name, err)
	}
	return h
}

// close stops and removes everything, then fails the test for what should not have been there.
func (l *Lab) close() {
	l.tb.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range slices.Backward(l.procs) {
		if err := p.Stop(); p.Running() && err != nil {
			l.tb.Errorf("testlab: %v", err)
		}
	}
	if l.tb.Failed() {
		l.logOutputs()
	}
	var leaks []string
	for _, h := range l.hosts {
		if found := h.leaks(); !h.gaveUp {
			leaks = append(leaks, found...)
		}
	}
	err := l.remove()
	leaks = append(leaks, l.remains()...)
	err = errors.Join(err, l.forget())
	if len(leaks) > 0 {
		slices.Sort(leaks)
		l.tb.Errorf("testlab: the test left behind:\n\t%s", strings.Join(leaks, "\n\t"))
	}
	if err != nil {
		l.tb.Errorf("testlab: remove lab: %v", err)
	}
}

// logOutputs shows the end of what each process wrote, since the files go away with the lab.
func (l *Lab) logOutputs() {
	const tail = 4000
	for _, p := range l.procs {
		out := p.Output()
		if len(out) > tail {
			out = "..." + out[len(out)-tail:]
		}
		l.tb.Logf("testlab: output of %s (%v):\n%s", p.name, p.cmd.ProcessState, out)
	}
}

// remove takes the lab apart; it goes on after an error.
func (l *Lab) remove() error {
	var errs []error
	for _, h := range l.hosts {
		for _, n := range h.spaces {
			n.close()
		}
		errs = append(errs, removeCgroup(h.cgroup))
		h.close()
		errs = append(errs, closeFile(h.mnt), closeFile(h.uts))
	}
	if l.wires != nil {
		l.wires.close()
	}
	errs = append(errs, removeFiles(l.id), closeFile(l.lock))
	return errors.Join(errs...)
}

func (n *NS) close() {
	if n.thread != nil {
		n.thread.close()
	}
}

// forget lets go of the namespaces. Until then no other one can get their inode numbers, by which processes that escaped are
// found.
func (l *Lab) forget() error {
	var errs []error
	for _, h := range l.hosts {
		for _, n := range append(h.spaces, &h.NS) {
			errs = append(errs, closeFile(n.net))
		}
	}
	if l.wires != nil {
		errs = append(errs, closeFile(l.wires.net))
	}
	return errors.Join(errs...)
}

func closeFile(f *os.File) error {
	if f == nil {
		return nil
	}
	return f.Close()
}

// removeFiles unmounts and deletes the files of a lab: its namespaces' names and its scratch directory.
func removeFiles(id string) error {
	var errs []error
	names, _ := filepath.Glob(filepath.Join(netnsDir, "fl-"+id+"-*"))
	for _, name := range names {
		if err := unix.Unmount(name, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: not mounted
			errs = append(errs, fmt.Errorf("unmount %s: %w", name, err))
		}
		errs = append(errs, os.Remove(name))
	}
	_ = os.Remove(netnsDir) // if it is empty, as it was before
	dir := labDir(id)
	mounts, _ := filepath.Glob(filepath.Join(dir, "*", "bpf"))
	for _, name := range mounts {
		if err := unix.Unmount(name, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", name, err))
		}
		errs = append(errs, os.Remove(name)) // never RemoveAll through a mount that would not go
	}
	if errors.Join(errs...) == nil {
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}
