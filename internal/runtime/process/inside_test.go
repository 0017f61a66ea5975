package process_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairlead-net/fairlead/internal/testlab"
)

func TestNamesInside(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const resolv = "nameserver 10.9.0.1\nnameserver fd00:9::1\nsearch my-network.internal\noptions timeout:1 attempts:5\n"
	const hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n10.9.0.2\tweb\nfd00:9::2\tweb\n"
	if got := w.output(w.script("web", "cat /etc/resolv.conf /etc/hosts")); got != resolv+hosts {
		t.Errorf("resolv.conf and hosts inside:\n%s", got)
	}
	if got := w.host.Exec("cat", "/etc/resolv.conf"); strings.Contains(got, "10.9.0.1") {
		t.Errorf("the host's own resolv.conf has changed:\n%s", got)
	}
}

// Many distributions have a link there. The host's /etc is the machine's own, so
// this one has another in its place.
func TestNamesBehindLink(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	etc := filepath.Join(w.host.Dir(), "etc")
	if err := os.Mkdir(etc, 0o755); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(w.host.Dir(), "stub-resolv.conf")
	for _, file := range []string{target, filepath.Join(etc, "hosts")} {
		if err := os.WriteFile(file, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(target, filepath.Join(etc, "resolv.conf")); err != nil {
		t.Fatal(err)
	}
	w.mount(etc, "/etc", "", unix.MS_BIND)
	if got := w.output(w.script("web", "grep -c nameserver /etc/resolv.conf")); got != "2\n" {
		t.Errorf("name servers inside: %s", got)
	}

	if err := os.Remove(target); err != nil {
		t.Fatal(err)
	}
	s, err := w.hold(w.script("web", "exit 0"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Go(attachment); err == nil || !strings.Contains(err.Error(), "/etc/resolv.conf") || !strings.Contains(err.Error(), "empty file") {
		t.Errorf("with a link to nothing: %v", err)
	}
	w.clear("web")
}

// mount mounts inside the host until the end of the test.
func (w *world) mount(source, target, fs string, flags uintptr) {
	w.t.Helper()
	if err := w.host.Do(func() error { return unix.Mount(source, target, fs, flags, "") }); err != nil {
		w.t.Fatalf("mount %s: %v", target, err)
	}
	w.t.Cleanup(func() {
		if err := w.host.Do(func() error { return unix.Unmount(target, 0) }); err != nil {
			w.t.Errorf("unmount %s: %v", target, err)
		}
	})
}

func TestSysInside(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.host.Exec("ip", "link", "add", "fl-a", "type", "veth", "peer", "name", "fl-b")
	defer w.host.Exec("ip", "link", "del", "fl-a")
	got := w.output(w.script("web", "ls /sys/class/net; grep -l . /sys/fs/cgroup/cgroup.controllers /sys/fs/cgroup/unified/cgroup.controllers 2> /dev/null; cat /proc/self/cgroup | grep ^0::"))
	lines := strings.Fields(got)
	if len(lines) != 3 || lines[0] != "lo" || !strings.HasPrefix(lines[1], "/sys/fs/cgroup") || !strings.HasSuffix(lines[2], "/fairlead.slice/web.scope") {
		t.Errorf("inside there are %q, want its own links, the cgroup hierarchy and its own cgroup", lines)
	}
}

// What the host mounts and unmounts is followed inside; nothing of the inside is
// seen outside.
func TestMountsInside(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	shared, inner := filepath.Join(w.host.Dir(), "shared"), filepath.Join(w.host.Dir(), "shared", "later")
	if err := os.Mkdir(shared, 0o755); err != nil {
		t.Fatal(err)
	}
	w.mount("tmpfs", shared, "tmpfs", 0)
	if err := w.host.Do(func() error {
		return unix.Mount("", shared, "", unix.MS_SHARED, "") // as a system has all of its mounts
	}); err != nil {
		t.Fatal(err)
	}
	w.host.Exec("mkdir", inner, filepath.Join(shared, "inside"))
	s := w.start(with(w.script("web", `
		mount -t tmpfs tmpfs "$SHARED/inside"
		read line < "$FIFO"
		ls "$SHARED/later"`), "SHARED="+shared, "FIFO="+w.fifo("go")))
	w.mount("tmpfs", inner, "tmpfs", 0)
	w.host.Exec("touch", filepath.Join(inner, "seen"))
	w.release("go")
	if code := w.wait(s); code != 0 || w.log("web") != "seen\n" {
		t.Errorf("exit code %d, and what was mounted later has inside: %q", code, w.log("web"))
	}
	if got := w.host.Exec("cat", "/proc/mounts"); strings.Contains(got, filepath.Join(shared, "inside")) {
		t.Errorf("what was mounted inside is seen outside:\n%s", got)
	}
	w.clear("web")
}

func TestOwnProcessNumbers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	spec := w.script("web", "echo $$; ls -d /proc/[0-9]* | wc -l; readlink /proc/self/ns/pid")
	spec.PIDNamespace = true
	lines := strings.Fields(w.output(spec))
	outside, err := os.Readlink("/proc/self/ns/pid")
	if err != nil || len(lines) != 3 || lines[0] != "1" || len(lines[1]) > 1 || lines[2] == outside {
		t.Errorf("own number, number of processes and namespace: %q; outside it is %s (%v)", lines, outside, err)
	}
	if got := w.output(w.script("web", "readlink /proc/self/ns/pid")); got != outside+"\n" {
		t.Errorf("without asking for it: %s, want %s", got, outside)
	}
}

// The workload gets what its client was given, and nothing of the machinery
// between them.
func TestInheritance(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	// A file that a script left open for its client, as flock(1) does.
	leak, err := unix.Open("/dev/null", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(leak) // a test's file
	spec := w.script("web", `
		# In subshells: for a pipe or a file of its own the shell would open more.
		(ls /proc/$$/fd > fds); (tr '\n' ' ' < fds); echo
		readlink /proc/$$/fd/0
		env | sort | grep -v '^_=\|^SHLVL=\|^OLDPWD='
		pwd
		# Its child's, which inherits them: the shell blocks signals while it starts one.
		grep -E 'CapEff|CapBnd|SigBlk|NoNewPrivs|Seccomp:' /proc/self/status
		ulimit -n`)
	spec.Dir = w.host.Dir()
	spec.Env = []string{"PATH=/usr/bin:/bin", "KEY=first", "KEY=last one", "PWD=" + w.host.Dir()}
	got := strings.Split(w.output(spec), "\n")

	want := []string{"0 1 2 ", "/dev/null", "KEY=last one", "PATH=/usr/bin:/bin", "PWD=" + w.host.Dir(), w.host.Dir(), strings.TrimSpace(w.host.Exec("sh", "-c", "ulimit -n"))}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{"SigBlk", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp"} {
		for line := range strings.Lines(string(status)) {
			if strings.HasPrefix(line, field+":") {
				want = append(want, strings.TrimSpace(line))
			}
		}
	}
	want = append(want, "")
	if diff := testlab.Diff(want, got); len(diff) > 0 || len(got) != len(want) {
		t.Errorf("inside, compared with what was given:\n%s", strings.Join(diff, "\n"))
	}
}

// A client's strict umask is the workload's too, but its names can be read by
// whatever user it becomes.
func TestUmask(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	spec := w.script("web", "umask; cut -d' ' -f1 /etc/resolv.conf | uniq; stat -c %a /etc/resolv.conf /etc/hosts")
	spec.Detach = false
	p := w.client("run", spec, "sh", "-c", `umask 077; exec "$@"`, "sh")
	if err := p.Wait(limit); err != nil {
		t.Error(err)
	}
	if got, want := p.Output(), "0077\nnameserver\nsearch\noptions\n644\n644\n"; strings.Replace(got, "running\n", "", 1) != want {
		t.Errorf("umask and modes inside:\n%s", got)
	}
	w.clear("web")
}

// In the foreground the workload has the client's streams, its exit code and its
// signals; SIGINT comes from the terminal, to all at once, and must come once.
func TestForeground(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	spec := w.script("web", `
		trap 'echo interrupted; n=$((n+1))' INT
		trap 'exit $((40+n))' TERM
		echo ready
		while :; do sleep 1000 & wait $!; done`)
	spec.Detach = false
	// setsid makes a process group of client, supervisor and workload, as a
	// terminal has one in its foreground.
	p := w.client("run", spec, "setsid", "--wait")
	w.says(p, "ready")
	w.says(p, "running")
	state := w.state("web")
	group, err := unix.Getpgid(state.Process)
	if err != nil {
		t.Fatal(err)
	}
	if of, err := unix.Getpgid(state.Supervisor.Number); err != nil || of != group {
		t.Errorf("the supervisor is in group %d, the workload in %d (%v): Ctrl-Z would stop one only", of, group, err)
	}
	if err := unix.Kill(-group, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	w.says(p, "interrupted")
	if err := unix.Kill(state.Supervisor.Number, syscall.SIGTERM); err != nil { // as the client passes it on
		t.Fatal(err)
	}
	if code := exitCode(p.Wait(limit)); code != 41 {
		t.Errorf("exit code %d, want 41: one interrupt\n%s", code, p.Output())
	}
	w.clear("web")
}

// What the client ignores, as under nohup(1), the workload ignores.
func TestNohup(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	spec := w.script("web", "grep SigIgn /proc/$$/status; echo ready; exec sleep 1000")
	p := w.client("run", spec, "sh", "-c", `trap "" HUP; exec "$@"`, "sh")
	w.says(p, "running")
	testlab.Eventually(t, limit, func() error {
		if !strings.Contains(w.log("web"), "ready") {
			return fmt.Errorf("log: %q", w.log("web"))
		}
		return nil
	})
	state := w.state("web")
	for _, pid := range []int{state.Supervisor.Number, state.Process} {
		if err := unix.Kill(pid, syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	if !strings.Contains(w.log("web"), "0001\n") {
		t.Errorf("ignored signals inside: %s", w.log("web"))
	}
	if err := w.table.Stop(t.Context(), "web", limit); err != nil {
		t.Error(err)
	}
	if code := exitCode(p.Wait(limit)); code != 143 {
		t.Errorf("exit code %d, want 143, by the stop", code)
	}
	w.clear("web")
}
