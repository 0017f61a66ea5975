package story

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/fairlead-net/fairlead/internal/testlab"
)

// TestReadme runs the README's first ten minutes, word for word, on a host of the laboratory. What a reader has and a host
// of the laboratory does not, the build and sudo, stands in for itself.
func TestReadme(t *testing.T) {
	t.Parallel()
	testlab.Require(t, testlab.Tool("curl"), testlab.Tool("dig"), testlab.Tool("python3"), testlab.Tool("bash"))
	h := testlab.New(t).Host("reader")
	a := &agent{t: t, host: h, before: h.Inventory()}
	t.Cleanup(a.down)

	dir := filepath.Join(h.Dir(), "checkout")
	shim := filepath.Join(h.Dir(), "shim")
	for _, d := range []string{filepath.Join(dir, "bin"), shim} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(binary, filepath.Join(dir, "bin", "fairlead")); err != nil {
		t.Fatal(err)
	}
	for name, script := range map[string]string{"make": "exit 0", "sudo": `exec "$@"`} {
		if err := os.WriteFile(filepath.Join(shim, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	env := append(a.env(), "PATH="+shim+":"+os.Getenv("PATH"))
	out, stderr, err := h.Run(testlab.Cmd{Args: []string{"bash", "-euo", "pipefail", "-c", firstMinutes(t)}, Env: env, Dir: dir})
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, stderr)
	}
	for _, want := range []string{
		"web-3 +running", "Healthy: 3 of 3", `(?s)SRV.*SRV.*SRV`, "Directory listing", "truehello",
		"removed eBPF programs and maps",
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("the output lacks %q", want)
		}
	}
	if t.Failed() {
		t.Logf("output:\n%s\n%s", out, stderr)
	}
}

// firstMinutes is the shell block of the README's section on the first ten minutes.
func firstMinutes(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok1 := strings.Cut(string(b), "## The first ten minutes")
	_, rest, ok2 := strings.Cut(section, "```sh\n")
	block, _, ok3 := strings.Cut(rest, "```")
	if !ok1 || !ok2 || !ok3 {
		t.Fatal("README.md has no shell block on the first ten minutes")
	}
	return block
}
