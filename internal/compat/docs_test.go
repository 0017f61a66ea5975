package compat

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// docs are the pages whose commands are run, each against an agent of its own.
var docs = []string{"services", "checks", "dns", "kv", "acl", "migrate-from-consul", "prometheus", "snapshots"}

// TestDocs runs the ```console blocks of the pages: a line with "$ " is a command, what follows is what it prints, "..." stands
// for anything. A comment <!-- agent: name=value ... --> at the top gives the agent's settings.
func TestDocs(t *testing.T) {
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(bin, "fairlead"), "../../cmd/fairlead")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range docs {
		t.Run(name, func(t *testing.T) {
			page, err := os.ReadFile(filepath.Join("../../docs", name+".md"))
			must(t, err)
			runPage(t, bin, string(page))
		})
	}
}

var (
	settingsComment = regexp.MustCompile(`<!-- agent: (.*?) -->`)
	consoleBlock    = regexp.MustCompile("(?ms)^```console\n(.*?)^```$")
)

func runPage(t *testing.T, bin, page string) {
	t.Helper()
	dir := t.TempDir()
	var settings []string
	if m := settingsComment.FindStringSubmatch(page); m != nil {
		settings = strings.Fields(strings.ReplaceAll(m[1], "$DIR", dir))
	}
	blocks := consoleBlock.FindAllStringSubmatch(page, -1)
	if len(blocks) == 0 {
		t.Fatal("no console block")
	}
	a := startAgent(t, settings...)
	_, dnsPort, err := net.SplitHostPort(a.dns)
	must(t, err)
	here := strings.NewReplacer("127.0.0.1:8500", a.http, "127.0.0.1:8600", a.dns, "-p 8600", "-p "+dnsPort)
	sh := newShell(t, dir, append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "FAIRLEAD_ADDR="+a.http, "CONSUL_HTTP_ADDR="+a.http))
	for _, b := range blocks {
		for _, step := range steps(b[1]) {
			out := sh.run(here.Replace(step.command))
			if want := here.Replace(step.output); !matchOutput(out, want) {
				t.Fatalf("$ %s\n%s\nwant:\n%s", step.command, out, want)
			}
		}
	}
}

// step is a command and what it prints.
type step struct{ command, output string }

func steps(block string) []step {
	var all []step
	continued := false
	for line := range strings.Lines(block) {
		command, ok := strings.CutPrefix(line, "$ ")
		switch {
		case continued:
			all[len(all)-1].command += line
		case ok:
			all = append(all, step{command: command})
			line = command
		case len(all) > 0:
			all[len(all)-1].output += line
			continue
		}
		continued = strings.HasSuffix(strings.TrimRight(line, "\n"), `\`)
	}
	return all
}

// matchOutput reports whether the lines of want are in out, one behind the other; "..." in a line stands for anything. Runs of
// blanks count as one.
func matchOutput(out, want string) bool {
	var pattern strings.Builder
	pattern.WriteString("(?ms)")
	for line := range strings.Lines(want) {
		line = strings.Join(strings.Fields(line), " ")
		if line == "" || line == "..." {
			continue
		}
		pattern.WriteString(`^` + strings.ReplaceAll(regexp.QuoteMeta(line), `\.\.\.`, `[^\n]*`) + `$.*`)
	}
	var folded strings.Builder
	for line := range strings.Lines(out) {
		folded.WriteString(strings.Join(strings.Fields(line), " ") + "\n")
	}
	return regexp.MustCompile(pattern.String()).MatchString(folded.String())
}

// shell runs the commands of one page one after the other, variables and directory kept.
type shell struct {
	t    *testing.T
	dir  string
	env  []string
	past strings.Builder
}

func newShell(t *testing.T, dir string, env []string) *shell { return &shell{t: t, dir: dir, env: env} }

// run runs a command and returns what it printed. Variables and functions of earlier commands are carried over by a file.
func (s *shell) run(command string) string {
	s.t.Helper()
	const state = ".shell-state"
	script := "[ ! -f " + state + " ] || . ./" + state + "\n" + command + "\nstatus=$?\n" +
		"declare -p | grep -v '^declare -[^ ]*r' | grep -v -e ' status=' -e ' BASH' -e ' FUNCNAME' >" + state + "\nexit $status\n"
	cmd := exec.CommandContext(s.t.Context(), "bash", "-c", script)
	cmd.Dir, cmd.Env = s.dir, s.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("$ %s%v\n%s\nbefore it:\n%s", command, err, out, s.past.String())
	}
	s.past.WriteString("$ " + command + string(out))
	return string(out)
}

func TestMatchOutput(t *testing.T) {
	const out = "NAME   PORT\nweb    80\nid 7c0c2ba6\n"
	for want, match := range map[string]bool{
		"": true, "web 80\n": true, "NAME PORT\nid ...\n": true, "web 8\n": false, "id ...\nweb 80\n": false, "...\nweb ...\n": true,
	} {
		if matchOutput(out, want) != match {
			t.Errorf("matchOutput(%q) = %v", want, !match)
		}
	}
}
