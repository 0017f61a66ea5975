package testlab

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"
)

// A Feature is something a test needs of the machine, with the proof that it is lacking.
type Feature struct {
	name    string
	lacking func() string // why it is lacking, shown true; empty when it is there
}

// Root is the right to make namespaces.
var Root = Feature{"root", func() string {
	if uid := os.Geteuid(); uid != 0 {
		return fmt.Sprintf("the effective user is %d, not 0", uid)
	}
	return ""
}}

// Tool is a program in the PATH.
func Tool(name string) Feature {
	return Feature{"program " + name, func() string {
		if _, err := exec.LookPath(name); err != nil {
			return err.Error()
		}
		return ""
	}}
}

// File is a file that must exist, such as /sys/kernel/btf/vmlinux.
func File(path string) Feature {
	return Feature{"file " + path, func() string {
		if _, err := os.Stat(path); err != nil {
			return err.Error()
		}
		return ""
	}}
}

// Require skips the test when a feature is shown to be lacking on this machine. Where the variable CI is "true" it fails
// instead: a machine that is there to run every test must be able to.
func Require(tb testing.TB, features ...Feature) {
	tb.Helper()
	for _, f := range features {
		why := f.lacking()
		if why == "" {
			continue
		}
		if os.Getenv("CI") == "true" {
			tb.Fatalf("needs %s: %s (and CI=true: nothing is skipped)", f.name, why)
		}
		tb.Skipf("needs %s: %s", f.name, why)
	}
}

// Eventually calls cond every 20 ms until it returns nil, and fails the test with the last error when the time is over.
func Eventually(tb testing.TB, timeout time.Duration, cond func() error) {
	tb.Helper()
	if err := poll(timeout, pollInterval, cond); err != nil {
		tb.Fatalf("not within %v: %v", timeout, err)
	}
}

const pollInterval = 20 * time.Millisecond

func poll(timeout, interval time.Duration, cond func() error) error {
	deadline := time.Now().Add(timeout)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		err := cond()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		<-tick.C
	}
}
