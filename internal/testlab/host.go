package testlab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const netnsDir = "/run/netns"

// NS is a network namespace of a lab: a host's own, or a bare one inside a host, as a container has.
// Processes started in it see the mount and UTS namespaces of its host.
type NS struct {
	lab    *Lab
	host   *Host
	name   string
	path   string
	cwd    string
	net    *os.File
	thread *thread
	cookie uint64
	inode  uint64 // of the namespace
}

// Host is one machine of a lab. What a process inside sees: its own network with lo up and forwarding off; its own empty
// /run; /etc/hosts and /etc/resolv.conf of its own; /sys of its network, with a BPF file system of its own at /sys/fs/bpf;
// its own host name; and the rest of the machine's files, shared.
type Host struct {
	NS
	dir     string
	cgroup  string
	mnt     *os.File
	uts     *os.File
	mounts  []string // mount points inside the host when it was new
	preload []string // what the kernel itself puts into a BPF file system
	eth     int      // how many ethN exist
	spaces  []*NS
	gaveUp  bool // Abandon was called
}

// Name is the name given to Lab.Host or Host.Namespace.
func (n *NS) Name() string { return n.name }

// NetNSPath is a file that stands for the network namespace, as `ip netns` uses it. It is the same path on the machine
// and inside the host.
func (n *NS) NetNSPath() string { return n.path }

// Cookie is the network namespace's cookie, as the kernel gives it to BPF programs (SO_NETNS_COOKIE).
func (n *NS) Cookie() uint64 { return n.cookie }

// Dir is a scratch directory of the host with a short path (fit for Unix sockets), removed with the lab.
func (h *Host) Dir() string { return h.dir }

// BPFFS is the mount point of the host's BPF file system, visible inside and outside of the host.
// Inside it is /sys/fs/bpf as well. Pins left in it are leaks.
func (h *Host) BPFFS() string { return filepath.Join(h.dir, "bpf") }

// Cgroup is the host's own control group (version 2, absolute path of the directory). Everything started in the host lives
// below it, so it is the place to attach programs to. Tests may make children.
func (h *Host) Cgroup() string { return h.cgroup }

// AgentCgroup is the child of Cgroup meant for the agent, so that a test can end the agent's whole group alone.
func (h *Host) AgentCgroup() string { return filepath.Join(h.cgroup, "agent") }

func (h *Host) cmdCgroup() string { return filepath.Join(h.cgroup, "cmd") }

// Do runs fn on an OS thread of its own inside the namespaces and returns its error. The thread ends with fn, so fn must
// not hand work to other goroutines that has to run inside; sockets and file descriptors opened by fn may be kept.
// The working directory is the caller's. A panic in fn is passed on to the caller.
func (n *NS) Do(fn func() error) error {
	err := errGoexit
	var panicked any
	done := make(chan struct{})
	onOwnThread(func() {
		defer close(done)
		defer func() { panicked = recover() }()
		if e := n.enter(); e != nil {
			err = fmt.Errorf("enter %s: %w", n.name, e)
			return
		}
		err = fn()
	})
	<-done
	if panicked != nil {
		panic(panicked)
	}
	if errors.Is(err, errGoexit) {
		runtime.Goexit()
	}
	return err
}

// enter puts the calling thread, which must be locked and must end afterwards, into the namespaces.
func (n *NS) enter() error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare working directory: %w", err)
	}
	for _, ns := range []struct {
		file *os.File
		kind int
	}{{n.host.mnt, unix.CLONE_NEWNS}, {n.host.uts, unix.CLONE_NEWUTS}, {n.net, unix.CLONE_NEWNET}} {
		if ns.file == nil {
			continue // a namespace under construction
		}
		if err := unix.Setns(int(ns.file.Fd()), ns.kind); err != nil {
			return fmt.Errorf("setns %s: %w", ns.file.Name(), err)
		}
	}
	return unix.Chdir(n.cwd)
}

// bindNetNS makes the calling thread's network namespace visible at path.
func bindNetNS(path string) error {
	for {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o444)
		if errors.Is(err, os.ErrNotExist) {
			continue // another lab has just removed the empty directory
		}
		if err != nil {
			return err
		}
		_ = f.Close()
		break
	}
	if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind network namespace to %s: %w", path, err)
	}
	return nil
}

// unshareNet gives the calling thread a new network namespace, visible at n.path, with lo up.
func (n *NS) unshareNet() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare network: %w", err)
	}
	if err := bindNetNS(n.path); err != nil {
		return err
	}
	var err error
	if n.net, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return err
	}
	if n.cookie, err = netnsCookie(); err != nil {
		return fmt.Errorf("network namespace cookie: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(n.net.Fd()), &st); err != nil {
		return err
	}
	n.inode = st.Ino
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(fd) }()
	return unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
}

// Settings that a new network namespace copies from the machine; a lab behaves the same on every machine.
var newHostSysctls = map[string]string{
	"net/ipv4/ip_forward":             "0",
	"net/ipv4/conf/all/rp_filter":     "0",
	"net/ipv4/conf/default/rp_filter": "0",
}

// unshareHost makes the rest of the host on the calling thread, which is in the host's network namespace already.
func (h *Host) unshareHost() error {
	for name, value := range newHostSysctls {
		if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0o644); err != nil {
			return fmt.Errorf("set sysctl: %w", err)
		}
	}
	resolv, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil {
		resolv = "/etc/resolv.conf"
	}
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("unshare mounts and host name: %w", err)
	}
	if err := unix.Sethostname([]byte(h.name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := h.mountOwn(resolv); err != nil {
		return err
	}
	if h.mnt, err = os.Open("/proc/thread-self/ns/mnt"); err != nil {
		return err
	}
	if h.uts, err = os.Open("/proc/thread-self/ns/uts"); err != nil {
		return err
	}
	h.mounts, err = mountPoints("/proc/thread-self/mountinfo")
	return err
}

// mountOwn gives the calling thread's new mount namespace the host's own view of /sys, /run and /etc.
func (h *Host) mountOwn(resolv string) error {
	steps := []struct {
		source, target, fs string
		flags              uintptr
	}{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE}, // nothing mounted here is seen outside
		// A new sysfs shows this network's devices but hides what was mounted below the old one: carry cgroups over.
		{"/sys/fs/cgroup", filepath.Join(h.dir, "sys"), "", unix.MS_BIND | unix.MS_REC},
		{"sysfs", "/sys", "sysfs", 0},
		{filepath.Join(h.dir, "sys"), "/sys/fs/cgroup", "", unix.MS_MOVE},
		{h.BPFFS(), "/sys/fs/bpf", "", unix.MS_BIND},
		{"tmpfs", "/run", "tmpfs", 0},
	}
	for _, s := range steps {
		if err := unix.Mount(s.source, s.target, s.fs, s.flags, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", s.source, s.target, err)
		}
	}
	if err := os.MkdirAll(filepath.Dir(resolv), 0o755); err != nil {
		return err
	}
	for file, target := range map[string]string{"resolv.conf": resolv, "hosts": "/etc/hosts"} {
		f, err := os.OpenFile(target, os.O_CREATE|os.O_RDONLY, 0o644)
		if err != nil {
			return err
		}
		_ = f.Close()
		if err := unix.Mount(filepath.Join(h.dir, file), target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", target, err)
		}
	}
	return bindNetNS(h.path)
}

func (l *Lab) newHost(name string) (*Host, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	full := "fl-" + l.id + "-" + name
	h := &Host{dir: filepath.Join(l.dir, name), cgroup: filepath.Join(l.cgroupRoot, full)}
	h.NS = NS{lab: l, host: h, name: name, path: filepath.Join(netnsDir, full), cwd: l.cwd}
	l.mu.Lock()
	if l.hosts[name] != nil {
		l.mu.Unlock()
		return nil, fmt.Errorf("host %q exists already", name)
	}
	l.hosts[name] = h // from here on the lab removes it, complete or not
	l.mu.Unlock()

	for _, dir := range []string{h.dir, h.BPFFS(), filepath.Join(h.dir, "sys"), h.cgroup, h.AgentCgroup(), h.cmdCgroup()} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, err
		}
	}
	if err := unix.Mount("bpf", h.BPFFS(), "bpf", 0, "mode=0700"); err != nil {
		return nil, fmt.Errorf("mount BPF file system: %w", err)
	}
	h.preload = h.pins()
	hosts := "127.0.0.1 localhost\n::1 localhost ip6-localhost\n127.0.1.1 " + name + "\n"
	if err := os.WriteFile(filepath.Join(h.dir, "hosts"), []byte(hosts), 0o644); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(h.dir, "resolv.conf"), []byte("# no resolver\n"), 0o644); err != nil {
		return nil, err
	}
	var err error
	h.thread, err = newThread(func() error {
		if err := h.unshareNet(); err != nil {
			return err
		}
		return h.unshareHost()
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}

// Namespace makes a bare network namespace inside the host, as the sandbox of a workload: lo up, nothing else.
// Its path is valid inside the host and outside.
func (h *Host) Namespace(name string) *NS {
	h.lab.tb.Helper()
	n, err := h.newNamespace(name)
	if err != nil {
		h.lab.tb.Fatalf("testlab: namespace %s in host %s: %v", name, h.name, err)
	}
	return n
}

func (h *Host) newNamespace(name string) (*NS, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	n := &NS{lab: h.lab, host: h, name: h.name + "/" + name, path: h.path + "-" + name, cwd: h.cwd}
	var err error
	n.thread, err = newThread(func() error {
		if err := n.unshareNet(); err != nil {
			return err
		}
		if err := n.enter(); err != nil {
			return err
		}
		return bindNetNS(n.path)
	})
	h.lab.mu.Lock()
	h.spaces = append(h.spaces, n)
	h.lab.mu.Unlock()
	return n, err
}

// SetResolvers writes the host's /etc/resolv.conf.
func (h *Host) SetResolvers(servers ...netip.Addr) {
	h.lab.tb.Helper()
	var b strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	// Written in place: the file is bind-mounted, a new one under the same name would not be seen.
	if err := os.WriteFile(filepath.Join(h.dir, "resolv.conf"), []byte(b.String()), 0o644); err != nil {
		h.lab.tb.Fatalf("testlab: %v", err)
	}
}

// Abandon says that what is left running or pinned in the host when the test ends is meant to be left, for tests that
// end an agent for good. The lab then removes it without calling it a leak.
func (h *Host) Abandon() {
	h.lab.mu.Lock()
	defer h.lab.mu.Unlock()
	h.gaveUp = true
}

// checkName keeps names fit for files, interface names and host names.
func checkName(name string) error {
	if name == "" || len(name) > 24 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return fmt.Errorf("bad name %q: 1 to 24 of a-z, 0-9 and -", name)
	}
	return nil
}
