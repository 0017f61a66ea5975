package node

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// workloadCgroup is the cgroup that workloads live in: beside the agent's own,
// so that ending the agent's leaves them alone.
const workloadCgroup = "fairlead.slice"

// bpfMountMark remembers that the bpf file system was mounted by an agent.
const bpfMountMark = "mounted-bpffs"

// ErrHost says what this machine lacks for an agent.
var ErrHost = errors.New("this host cannot run an agent")

// Check says what is wrong with a configuration on this machine, without
// changing anything of it.
func Check(cfg Config) error {
	var errs []error
	if !cfg.Dev {
		errs = append(errs, usableDir("data-dir", cfg.DataDir))
	}
	errs = append(errs, usableDir("run-dir", cfg.RunDir))
	if cfg.RegistryOnly {
		return errors.Join(errs...)
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: it needs root, to make network namespaces and load eBPF programs; run it with sudo, as a system service, or with --registry-only", ErrHost)
	}
	if _, err := cfg.cgroup(); err != nil {
		errs = append(errs, err)
	}
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		errs = append(errs, fmt.Errorf("%w: the kernel has no BTF (CONFIG_DEBUG_INFO_BTF): %w", ErrHost, err))
	}
	errs = append(errs, usablePools(cfg))
	return errors.Join(errs...)
}

// usablePools refuses virtual addresses that this host uses otherwise: it would
// be cut off from them.
func usablePools(cfg Config) error {
	host, err := openNetwork(cfg, nil)
	if err != nil {
		return err
	}
	if err = host.CheckPools(); err != nil {
		err = fmt.Errorf("%w; set --vip-pool or --vip-pool6 to what nobody uses", err)
	}
	return errors.Join(err, host.Close())
}

// usableDir refuses a directory that cannot be used, or made where it is to be.
func usableDir(setting, path string) error {
	for at := path; ; at = filepath.Dir(at) {
		st, err := os.Stat(at)
		switch {
		case errors.Is(err, os.ErrNotExist) && at != filepath.Dir(at):
			continue // then it would be made in the next one up
		case err != nil:
			return fmt.Errorf("%s %s: %w", setting, path, err)
		case !st.IsDir() && at == path:
			return fmt.Errorf("%s %s: it is not a directory", setting, path)
		case !st.IsDir():
			return fmt.Errorf("%s %s: %s is not a directory", setting, path, at)
		}
		if at == path {
			if _, err := os.ReadDir(path); err != nil {
				return fmt.Errorf("%s %s: %w", setting, path, err)
			}
		}
		if err := unix.Access(at, unix.W_OK|unix.X_OK); err != nil {
			return fmt.Errorf("%s %s: %w", setting, path, &os.PathError{Op: "write to", Path: at, Err: err})
		}
		return nil
	}
}

// cgroup is the directory that the balancer's programs attach to.
func (c Config) cgroup() (string, error) {
	if c.Cgroup == "" {
		return CgroupRoot()
	}
	var st unix.Statfs_t
	if err := unix.Statfs(c.Cgroup, &st); err != nil {
		return "", fmt.Errorf("cgroup %s: %w", c.Cgroup, err)
	}
	if uint32(st.Type) != unix.CGROUP2_SUPER_MAGIC {
		return "", fmt.Errorf("cgroup %s: it is not in a cgroup v2 hierarchy; 'mount -t cgroup2' lists where there is one", c.Cgroup)
	}
	return c.Cgroup, nil
}

// CgroupRoot finds where cgroup v2 is mounted: /sys/fs/cgroup, or beside the
// older version's hierarchies.
func CgroupRoot() (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("find the cgroup v2 hierarchy: %w", err)
	}
	defer f.Close() // read only
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if ok && strings.HasPrefix(after, "cgroup2 ") && len(fields) > 4 && fields[3] == "/" {
			return fields[4], nil
		}
	}
	if err := lines.Err(); err != nil {
		return "", fmt.Errorf("find the cgroup v2 hierarchy: %w", err)
	}
	return "", fmt.Errorf("%w: cgroup v2 is not mounted; 'mount -t cgroup2 none /sys/fs/cgroup' mounts it", ErrHost)
}

// vipPools are the prefixes of virtual addresses, IPv4 first.
func (c Config) vipPools() ([]netip.Prefix, error) {
	v4, err := netip.ParsePrefix(c.VIPPool)
	if err != nil {
		return nil, fmt.Errorf("vip-pool: %w", err)
	}
	v6, err := netip.ParsePrefix(c.VIPPool6)
	if err != nil {
		return nil, fmt.Errorf("vip-pool6: %w", err)
	}
	return []netip.Prefix{v4, v6}, nil
}

// pinMark remembers where the agent of a run directory pinned its programs and
// maps, so that 'down' need not be told. Both live until the next boot.
const pinMark = "pinned"

func recordPins(runDir, pins string) error {
	if err := os.WriteFile(filepath.Join(runDir, pinMark), []byte(pins+"\n"), 0o600); err != nil {
		return fmt.Errorf("record where programs are pinned: %w", err)
	}
	return nil
}

// recalledPins is where programs and maps were pinned; empty if none were.
func recalledPins(runDir string) (string, error) {
	b, err := os.ReadFile(filepath.Join(runDir, pinMark))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("find where programs are pinned: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

func pinDir(cfg Config, id string) string { return filepath.Join(cfg.BPFFS, "fairlead", id) }

// mountBPF mounts the bpf file system where there is none, and remembers it.
func mountBPF(cfg Config) error {
	var st unix.Statfs_t
	err := unix.Statfs(cfg.BPFFS, &st)
	if err == nil && uint32(st.Type) == unix.BPF_FS_MAGIC {
		return nil
	}
	mark := cfg.BPFFS + "\n"
	if errors.Is(err, os.ErrNotExist) {
		mark += bpfDirMade + "\n"
		err = os.MkdirAll(cfg.BPFFS, 0o700)
	}
	if err != nil {
		return fmt.Errorf("bpffs %s: %w", cfg.BPFFS, err)
	}
	if err := os.WriteFile(filepath.Join(cfg.RunDir, bpfMountMark), []byte(mark), 0o600); err != nil {
		return fmt.Errorf("bpffs %s: %w", cfg.BPFFS, err)
	}
	if err := unix.Mount("bpf", cfg.BPFFS, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("bpffs %s: mount it: %w", cfg.BPFFS, err)
	}
	return nil
}

// bpfDirMade in the mark says that the mount point was made too.
const bpfDirMade = "made"

// unmountBPF unmounts the bpf file system if an agent mounted it, unless others
// have begun to keep something in it.
func unmountBPF(runDir string) ([]string, error) {
	mark := filepath.Join(runDir, bpfMountMark)
	b, err := os.ReadFile(mark)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	at, made, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	pins, err := os.ReadDir(at)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("unmount %s: %w", at, err)
	}
	for _, p := range pins {
		if p.Name() != "maps.debug" && p.Name() != "progs.debug" { // the kernel's own
			return []string{"left the bpf file system at " + at + " mounted: others keep " + p.Name() + " in it"}, os.Remove(mark)
		}
	}
	if err := unix.Unmount(at, 0); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // not mounted, or not even there
		return nil, fmt.Errorf("unmount %s: %w", at, err)
	}
	if made == bpfDirMade {
		_ = os.Remove(at) // somebody may use it by now
	}
	return []string{"unmounted the bpf file system at " + at}, os.Remove(mark)
}

// temporaryMark remembers the directory in which an agent keeps in development
// what is gone when it ends, for the one that follows an agent that was killed.
const temporaryMark = "temporary"

// makeTemporary makes the directory of an agent in development.
func makeTemporary(runDir string) (string, error) {
	if err := removeTemporary(runDir); err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "fairlead-dev-")
	if err != nil {
		return "", fmt.Errorf("make a temporary directory: %w", err)
	}
	if err := os.WriteFile(filepath.Join(runDir, temporaryMark), []byte(dir+"\n"), 0o600); err != nil {
		return "", errors.Join(fmt.Errorf("record the temporary directory: %w", err), os.Remove(dir))
	}
	return dir, nil
}

func removeTemporary(runDir string) error {
	mark := filepath.Join(runDir, temporaryMark)
	b, err := os.ReadFile(mark)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find the temporary directory: %w", err)
	}
	if err := os.RemoveAll(strings.TrimSpace(string(b))); err != nil {
		return fmt.Errorf("remove the temporary directory: %w", err)
	}
	return os.Remove(mark)
}

// identityDir keeps the node's id: for good, or in development until the next
// boot.
func identityDir(cfg Config) string {
	if cfg.Dev {
		return cfg.RunDir
	}
	return cfg.DataDir
}

const nodeIDFile = "node-id"

// nodeID is the node's UUID, made at its first start.
func nodeID(dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("node id: %w", err)
	}
	path := filepath.Join(dir, nodeIDFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		id := uuid.NewString()
		if err := os.WriteFile(path, []byte(id+"\n"), 0o600); err != nil {
			return "", fmt.Errorf("node id: %w", err)
		}
		return id, nil
	}
	if err != nil {
		return "", fmt.Errorf("node id: %w", err)
	}
	id, err := uuid.Parse(strings.TrimSpace(string(b)))
	if err != nil {
		return "", fmt.Errorf("node id in %s: %w; remove the file to be a new node", path, err)
	}
	return id.String(), nil
}

// runLock is one agent's claim on a run directory: a locked file with its
// process number. The kernel drops the lock with the process.
type runLock struct{ file *os.File }

func lockPath(runDir string) string { return filepath.Join(runDir, "agent.pid") }

// lockRunDir claims the run directory, or says which process has it.
func lockRunDir(dir string) (*runLock, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("run-dir: %w", err)
	}
	f, err := flockRunDir(dir)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(0), writeAt0(f, strconv.Itoa(os.Getpid())+"\n")); err != nil {
		return nil, errors.Join(fmt.Errorf("run-dir: %w", err), f.Close())
	}
	return &runLock{f}, nil
}

// flockRunDir locks a run directory that is there until the file is closed.
func flockRunDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(lockPath(dir), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("run-dir: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close() // the lock is another's
		if pid := pidIn(f); pid > 0 && errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("run-dir %s is in use by another agent (pid %d); one agent serves a whole host, so stop that one first", dir, pid)
		}
		return nil, fmt.Errorf("run-dir %s is in use by another agent: %w", dir, err)
	}
	return f, nil
}

// namespaceName is an abstract unix socket's: the kernel keeps those per network
// namespace, and drops them with their process (unix(7)).
const namespaceName = "@fairlead-agent"

// claimNamespace claims this network namespace. Two agents in one would undo each
// other's packet filter, even with directories and addresses of their own.
func claimNamespace() (io.Closer, error) {
	l, err := net.Listen("unix", namespaceName)
	if err == nil {
		return l, nil
	}
	if !errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("claim the network namespace: %w", err)
	}
	pid, uid, err := namespaceHolder()
	if errors.Is(err, unix.ECONNREFUSED) {
		return io.NopCloser(nil), nil // an agent would listen
	}
	if err != nil {
		return nil, fmt.Errorf("%w: something holds this network namespace: %w", ErrHost, err)
	}
	if uid != 0 {
		// An abstract name is anybody's to take; only root can be an agent.
		return io.NopCloser(nil), nil
	}
	return nil, fmt.Errorf("%w: another one works in this network namespace (pid %d), and one agent serves a whole host", ErrHost, pid)
}

// namespaceHolder tells whose the namespace's socket is, in the kernel's word
// (SO_PEERCRED, unix(7)).
func namespaceHolder() (pid, uid int, err error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, 0, err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: namespaceName}); err != nil {
		return 0, 0, err
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, 0, err
	}
	return int(cred.Pid), int(cred.Uid), nil
}

func writeAt0(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

// release gives the directory up. The file stays, so that two processes cannot
// lock two files of one name.
func (l *runLock) release() error { return errors.Join(l.file.Truncate(0), l.file.Close()) }

func pidIn(f *os.File) int {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 32))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0
	}
	return pid
}
