package store

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// childDir tells the test binary that it was started by inChild, and with which
// data directory.
const childDir = "FAIRLEAD_STORE_TEST_DIR"

// inChild runs the calling test again in a process of its own, alone in a new
// network namespace, whose only interface is a loopback that is down, and a mount namespace. It returns
// that process's output, and whether this is the child.
func inChild(t *testing.T, dir string) (out string, child bool) {
	t.Helper()
	if os.Getenv(childDir) != "" {
		return "", true
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}}
	}
	b, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("child: %v\n%s", err, b)
	}
	return string(b), false
}

func TestNeedsNoNetwork(t *testing.T) {
	if _, child := inChild(t, t.TempDir()); !child {
		return
	}
	n := startStore(t, os.Getenv(childDir))
	n.must(t, put("a", ""), true)
	for _, f := range []string{"tcp", "tcp6", "udp", "udp6", "unix"} {
		b, err := os.ReadFile("/proc/self/net/" + f)
		if err != nil && !os.IsNotExist(err) {
			t.Error(err)
		}
		if lines := bytes.Count(b, []byte("\n")); lines > 1 {
			t.Errorf("%s sockets:\n%s", f, b)
		}
	}
}

// A second process is refused while the first lives, and not after it was
// killed; what the first had confirmed is there.
func TestKilledOwner(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir != "" {
		n := startStore(t, dir)
		n.must(t, put("a", "1"), true)
		fmt.Println("written")
		<-t.Context().Done() // until killed
		return
	}
	dir = t.TempDir()
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, len("written"))
	if _, err := out.Read(line); err != nil || string(line) != "written" {
		t.Fatalf("child says %q, %v", line, err)
	}
	err = New(Config{Dir: dir, Name: "n1", Log: quiet()}, newFakeState()).Run(t.Context(), func() {})
	if want := fmt.Sprintf("(pid %d)", cmd.Process.Pid); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want %q", err, want)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	n := startStore(t, dir)
	if kv := n.st.at(t, 1); string(kv["a"].Value) != "1" {
		t.Errorf("state shows %v", kv)
	}
}

// A damaged log gives an error instead of ending the process.
func TestDamagedLog(t *testing.T) {
	if d := os.Getenv(childDir); d != "" {
		begin := time.Now()
		err := New(Config{Dir: d, Name: "n1", Log: quiet()}, newFakeState()).Run(t.Context(), func() { t.Error("ready") })
		fmt.Printf("error after %v: %v\n", time.Since(begin), err)
		os.Exit(0) // etcd leaves goroutines behind
	}
	dir := t.TempDir()
	n := startStore(t, dir)
	n.must(t, put("a", "1"), true)
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	logs, err := filepath.Glob(filepath.Join(dir, "etcd", "member", "wal", "*.wal"))
	if err != nil || len(logs) == 0 {
		t.Fatalf("no log: %v", err)
	}
	b, err := os.ReadFile(logs[0])
	if err != nil {
		t.Fatal(err)
	}
	for i := range 64 {
		b[100+i] ^= 0xff
	}
	if err := os.WriteFile(logs[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	out, _ := inChild(t, dir)
	if !strings.Contains(out, "start etcd in") {
		t.Errorf("child says:\n%s", out)
	}
	t.Log(out)
}
