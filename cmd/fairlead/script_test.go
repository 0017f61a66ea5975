package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

var update = flag.Bool("update", false, "rewrite the scripts' output")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestScripts runs testdata/script/*.txt: command lines with exactly what they
// ask of the agent, print and end with. In a script
//
//	# is a comment
//	$ fairlead ... is a command line, words as in a shell's double or single quotes;
//	  $DIR is a directory of the test's
//	< is a line of its standard input
//
// and what follows is the outcome: "> " a request to the agent, then the standard
// output, "! " a line of the standard error, and the exit code if it is not 0.
// go test -update rewrites it.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/script/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			a := newAgent(t)
			got := a.runScript(t, string(want))
			if got == string(want) {
				return
			}
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			t.Errorf("output differs (-update rewrites it):\n%s", firstDifference(string(want), got))
		})
	}
}

// runScript returns the script as it should be.
func (a *agent) runScript(t *testing.T, script string) string {
	var out strings.Builder
	var command, stdin string
	flush := func() {
		if command != "" {
			out.WriteString(a.runLine(t, command, stdin))
		}
		command, stdin = "", ""
	}
	for line := range strings.Lines(script) {
		switch {
		case strings.HasPrefix(line, "# "):
			flush()
			if out.Len() > 0 && !strings.HasSuffix(out.String(), "\n\n") && !isComment(out.String()) {
				out.WriteString("\n")
			}
			out.WriteString(line)
		case strings.HasPrefix(line, "$ "):
			flush()
			command = line
			out.WriteString(line)
		case strings.HasPrefix(line, "< "):
			stdin += strings.TrimPrefix(line, "< ")
			out.WriteString(line)
		}
	}
	flush()
	return out.String()
}

// isComment reports whether a text ends with a comment.
func isComment(text string) bool {
	text = strings.TrimSuffix(text, "\n")
	return strings.HasPrefix(text[strings.LastIndex(text, "\n")+1:], "# ")
}

func (a *agent) runLine(t *testing.T, line, stdin string) string {
	args, err := words(strings.TrimSpace(strings.TrimPrefix(line, "$ ")))
	if err != nil || len(args) == 0 || args[0] != "fairlead" {
		t.Fatalf("%s: want a command line of fairlead (%v)", line, err)
	}
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "$DIR", a.dir)
	}
	var stdout, stderr bytes.Buffer
	code := execute(context.Background(), args[1:], strings.NewReader(stdin), &stdout, &stderr)
	var out strings.Builder
	for _, r := range a.requests() {
		fmt.Fprintf(&out, "> %s\n", r)
	}
	out.WriteString(stdout.String())
	if stdout.Len() > 0 && !strings.HasSuffix(stdout.String(), "\n") {
		out.WriteString("\n(no newline)\n")
	}
	for l := range strings.Lines(stderr.String()) {
		out.WriteString("! " + l)
	}
	if code != 0 {
		fmt.Fprintf(&out, "exit %d\n", code)
	}
	return a.anonymous(out.String())
}

// words splits a command line the way a shell does, as far as quotes go.
func words(line string) ([]string, error) {
	var all []string
	var word strings.Builder
	quote, in := rune(0), false
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote == 0 && (r == '\'' || r == '"'):
			quote, in = r, true
		case quote == 0 && r == ' ':
			if in {
				all = append(all, word.String())
			}
			word.Reset()
			in = false
		default:
			word.WriteRune(r)
			in = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("unfinished quote in %s", line)
	}
	if in {
		all = append(all, word.String())
	}
	return all, nil
}

func firstDifference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(w), len(g)) {
		if i >= len(w) || i >= len(g) || w[i] != g[i] {
			from := func(lines []string) string {
				return strings.Join(lines[min(max(i-3, 0), len(lines)):min(i+4, len(lines))], "\n")
			}
			return fmt.Sprintf("line %d\nwant:\n%s\n\ngot:\n%s", i+1, from(w), from(g))
		}
	}
	return ""
}
