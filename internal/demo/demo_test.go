package demo_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead-net/fairlead/internal/demo"
	"github.com/fairlead-net/fairlead/internal/node"
	"github.com/fairlead-net/fairlead/internal/testlab"
)

// The whole demonstration, as a user runs it: every claim holds, and the machine
// is as before.
func TestDemo(t *testing.T) {
	testlab.Require(t, testlab.Root)
	before := traces(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, binary, "demo")
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s%s", err, out.String(), errs.String())
	}
	_, summary, ok := strings.Cut(out.String(), "== Summary\n")
	lines := strings.Split(strings.TrimSpace(summary), "\n")
	if !ok || !strings.HasPrefix(lines[0], "CLAIM ") {
		t.Fatalf("no summary:\n%s", out.String())
	}
	seen := map[string]bool{}
	for _, line := range lines[1:] {
		claim, _, _ := strings.Cut(line, "  ")
		seen[claim] = true
		if !strings.HasSuffix(line, " yes") {
			t.Errorf("does not hold: %s", line)
		}
	}
	for _, claim := range []string{
		"an agent starts", "three instances run, checked over HTTP", "DNS has every instance as A", "DNS has every instance as AAAA",
		"DNS has every instance as SRV", "requests to the VIP reach every instance", "no request fails before", "a killed instance leaves DNS",
		"a killed instance leaves the balancer", "connections go on while the agent is away", "registrations are back without a client's help",
		"a published port leads to its workload", "'down --purge' leaves nothing behind",
	} {
		if !seen[claim] {
			t.Errorf("no word on: %s", claim)
		}
	}
	if errs.Len() > 0 {
		t.Errorf("complaints:\n%s", errs.String())
	}
	if after := traces(t); !reflect.DeepEqual(before, after) {
		t.Errorf("left: %v, before: %v", after, before)
	}
}

// A demonstration that is ended leaves nothing either.
func TestDemoInterrupted(t *testing.T) {
	testlab.Require(t, testlab.Root)
	before := traces(t)
	out := &watched{want: "agent &", seen: make(chan struct{})}
	cmd := exec.CommandContext(t.Context(), binary, "demo")
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-out.seen:
	case err := <-ended:
		t.Fatalf("%v\n%s", err, out.text.String())
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil || !strings.Contains(out.text.String(), "the demo was ended") {
		t.Errorf("%v\n%s", err, out.text.String())
	}
	if after := traces(t); !reflect.DeepEqual(before, after) {
		t.Errorf("left: %v, before: %v", after, before)
	}
}

// watched is an output that says when it has something in it.
type watched struct {
	text bytes.Buffer
	want string
	seen chan struct{}
	said atomic.Bool
}

func (w *watched) Write(b []byte) (int, error) {
	n, err := w.text.Write(b)
	if strings.Contains(w.text.String(), w.want) && !w.said.Swap(true) {
		close(w.seen)
	}
	return n, err
}

// traces is everything on the machine that a demonstration could have left.
func traces(t *testing.T) []string {
	t.Helper()
	root, err := node.CgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, pattern := range []string{filepath.Join(root, "fairlead-demo-*"), filepath.Join(os.TempDir(), "fairlead-demo-[0-9]*")} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		all = append(all, "link "+l.Name)
	}
	return all
}

func TestNotRoot(t *testing.T) {
	testlab.Require(t, testlab.Root) // to become somebody else
	if err := os.Chmod(filepath.Dir(binary), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), binary, "demo")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "the demo needs root") {
		t.Errorf("%v: %s", err, out)
	}
}

// The service answers with its name on both families until it is ended.
func TestServe(t *testing.T) {
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err := errors.Join(err, l.Close()); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), binary, demo.ServeCommand, "web-7", port)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for _, host := range []string{"127.0.0.1", "::1"} {
		testlab.Eventually(t, 20*time.Second, func() error {
			res, err := client.Get("http://" + net.JoinHostPort(host, port) + "/")
			if err != nil {
				return err
			}
			b, err := io.ReadAll(res.Body)
			if string(b) != "web-7" {
				err = errors.Join(err, fmt.Errorf("it answers %q", b))
			}
			return errors.Join(err, res.Body.Close())
		})
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("ended with %v", err)
	}
}
