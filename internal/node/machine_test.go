package node

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairlead-net/fairlead/internal/testlab"
)

func TestUsableDir(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		dir:                              "",
		filepath.Join(dir, "new"):        "",
		filepath.Join(dir, "new/deeper"): "",
		file:                             "is not a directory",
		filepath.Join(file, "below"):     "not a directory",
		"/proc/1/nothing":                "write to /proc/1",
	} {
		err := usableDir("data-dir", path)
		if want == "" && err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if want != "" && (err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "data-dir "+path+": ")) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	if got, err := os.ReadDir(dir); err != nil || len(got) != 1 {
		t.Errorf("it was only looked at: %v %v", got, err)
	}
}

// One agent has the run directory, and the next is told which.
func TestLockRunDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	first, err := lockRunDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockRunDir(dir); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("in use by another agent (pid %d)", os.Getpid())) {
		t.Errorf("a second one: %v", err)
	}
	if err := first.release(); err != nil {
		t.Fatal(err)
	}
	second, err := lockRunDir(dir)
	if err != nil {
		t.Fatalf("after the first has given it up: %v", err)
	}
	if err := second.file.Truncate(0); err != nil { // as one that has not come to write its number
		t.Fatal(err)
	}
	if _, err := lockRunDir(dir); err == nil || !strings.Contains(err.Error(), "in use by another agent") {
		t.Errorf("while one starts: %v", err)
	}
	if err := second.release(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := lockRunDir(file); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("a file as directory: %v", err)
	}
}

func TestNodeID(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	id, err := nodeID(dir)
	if err != nil || len(id) != 36 {
		t.Fatalf("%q %v", id, err)
	}
	if again, err := nodeID(dir); err != nil || again != id {
		t.Errorf("again: %q %v, want %q", again, err, id)
	}
	path := filepath.Join(dir, nodeIDFile)
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st.Mode(), err)
	}
	if err := os.WriteFile(path, []byte("me\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := nodeID(dir); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "remove the file") {
		t.Errorf("a spoilt id: %v", err)
	}
}

func TestCgroup(t *testing.T) {
	root, err := CgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := (Config{}).cgroup(); err != nil || got != root {
		t.Errorf("default: %s %v, want %s", got, err, root)
	}
	for path, want := range map[string]string{t.TempDir(): "not in a cgroup v2 hierarchy", "/no/such": "no such file"} {
		if _, err := (Config{Cgroup: path}).cgroup(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestCheck(t *testing.T) {
	testlab.Require(t, testlab.Root)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	good, err := Load("", func(string) (string, bool) { return "", false }, map[string]string{
		"data-dir": filepath.Join(dir, "data"), "run-dir": filepath.Join(dir, "run"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := Check(good); err != nil {
		t.Error(err)
	}
	dev := good
	dev.Dev, dev.DataDir = true, file
	if err := Check(dev); err != nil {
		t.Errorf("in development the data directory does not matter: %v", err)
	}
	bad := good
	bad.DataDir, bad.RunDir, bad.Cgroup = file, filepath.Join(file, "run"), dir
	err = Check(bad)
	for _, want := range []string{"data-dir " + file, "run-dir " + file, "cgroup " + dir} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want all in one, and %q", err, want)
		}
	}
	if all, err := os.ReadDir(dir); err != nil || len(all) != 1 {
		t.Errorf("a check has made something: %v %v", all, err)
	}
}

// Without root there is one answer, before anything is looked at.
func TestNotRoot(t *testing.T) {
	testlab.Require(t, testlab.Root) // to become somebody else
	dir, err := os.MkdirTemp("", "fairlead-node-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // a test's directory
	self := copySelf(t, dir)
	for _, role := range []string{checkRole, agentRole, downRole} {
		cmd := exec.Command(self, role)
		cmd.Env = []string{"FAIRLEAD_DATA_DIR=" + dir + "/data", "FAIRLEAD_RUN_DIR=" + dir + "/run"}
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), ErrHost.Error()) || !strings.Contains(string(out), "needs root") || !strings.Contains(string(out), "sudo") {
			t.Errorf("%s: %v: %s", role, err, out)
		}
	}
}

// copySelf copies this program to where everybody can run it.
func copySelf(t *testing.T, dir string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "self")
	if err := errors.Join(os.WriteFile(path, b, 0o755), os.Chmod(path, 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	return path
}

// What is mounted is unmounted again, and only that.
func TestBPFMount(t *testing.T) {
	testlab.Require(t, testlab.Root)
	h := testlab.New(t).Host("n1")
	run := filepath.Join(h.Dir(), "run")
	if err := os.Mkdir(run, 0o700); err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(h.Dir(), "own", "bpf")
	mounted := func(path string) bool {
		var st unix.Statfs_t
		return unix.Statfs(path, &st) == nil && uint32(st.Type) == unix.BPF_FS_MAGIC
	}
	err := h.Do(func() error {
		if err := mountBPF(Config{BPFFS: h.BPFFS(), RunDir: run}); err != nil {
			return err
		}
		if done, err := unmountBPF(run); err != nil || len(done) > 0 || !mounted(h.BPFFS()) {
			t.Errorf("one that was there is not ours: %v %v", done, err)
		}
		for range 2 { // the second time it finds its own
			if err := mountBPF(Config{BPFFS: at, RunDir: run}); err != nil || !mounted(at) {
				t.Errorf("mount: %v", err)
			}
		}
		if done, err := unmountBPF(run); err != nil || len(done) != 1 || mounted(at) {
			t.Errorf("unmount: %v %v", done, err)
		}
		if _, err := os.Stat(at); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the mount point was made, and is still there: %v", err)
		}
		if done, err := unmountBPF(run); err != nil || len(done) > 0 {
			t.Errorf("again: %v %v", done, err)
		}

		if err := mountBPF(Config{BPFFS: at, RunDir: run}); err != nil {
			return err
		}
		if err := os.Mkdir(filepath.Join(at, "theirs"), 0o700); err != nil {
			return err
		}
		if done, err := unmountBPF(run); err != nil || len(done) != 1 || !strings.Contains(done[0], "others keep theirs") || !mounted(at) {
			t.Errorf("with something of others in it: %v %v", done, err)
		}
		if err := unix.Unmount(at, 0); err != nil {
			return err
		}

		if err := mountBPF(Config{BPFFS: at, RunDir: run}); err != nil {
			return err
		}
		if err := unix.Unmount(at, 0); err != nil {
			return err
		}
		if _, err := unmountBPF(run); err != nil {
			t.Errorf("somebody has unmounted it: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// An agent in development that was killed leaves its data to the next one to
// remove.
func TestTemporary(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	run := t.TempDir()
	first, err := makeTemporary(run)
	if err != nil {
		t.Fatal(err)
	}
	second, err := makeTemporary(run)
	if err != nil || second == first {
		t.Fatalf("%s, then %s %v", first, second, err)
	}
	if _, err := os.Stat(first); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the first is still there: %v", err)
	}
	for range 2 {
		if err := removeTemporary(run); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(second); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the second is still there: %v", err)
	}
}

// A purge takes what an agent has made, whatever directory it was given.
func TestPurgeData(t *testing.T) {
	data, run := filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "run")
	for _, path := range []string{
		data + "/node-id", data + "/registrations.json", data + "/registrations.json.tmp", data + "/etcd/member/wal/0.wal",
		data + "/letters/love.txt", data + "/thesis.tex",
		run + "/agent.pid", run + "/sysctl.json", run + "/.sysctl-1", run + "/workloads/web/state.json", run + "/logs/web.log", run + "/pinned",
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg := Config{DataDir: data, RunDir: run}
	done, err := purgeData(cfg)
	want := []string{"removed what is ours in " + data + ", and kept what is not: letters, thesis.tex", "removed " + run}
	if err != nil || strings.Join(done, "\n") != strings.Join(want, "\n") {
		t.Errorf("%q %v, want %q", done, err, want)
	}
	if all, err := os.ReadDir(data); err != nil || len(all) != 2 {
		t.Errorf("left: %v %v", all, err)
	}
	if _, err := os.Stat(filepath.Join(data, "letters", "love.txt")); err != nil {
		t.Error(err)
	}
	if done, err := purgeData(Config{DataDir: run, RunDir: run}); err != nil || len(done) > 0 {
		t.Errorf("again: %v %v", done, err)
	}
	if done, err := purgeData(Config{Dev: true, DataDir: data, RunDir: run}); err != nil || len(done) > 0 {
		t.Errorf("an agent in development has no data: %v %v", done, err)
	}
}
