package health

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
)

func always(model.CheckSpec) bool { return true }

func sh(script string) model.CheckSpec {
	return model.CheckSpec{Args: []string{"/bin/sh", "-c", script}}
}

func TestScripts(t *testing.T) {
	t.Setenv("FAIRLEAD_ACL_AGENT_TOKEN", "secret")
	t.Setenv("COLOUR", "blue")
	long := sh("printf 0123456789")
	long.OutputMaxSize = 4
	expectAll(t, []outcome{
		{sh("echo fine; echo too >&2"), model.Passing, "fine\ntoo\n"},
		{sh("echo so so; exit 1"), model.Warning, "so so\n"},
		{sh("echo bad; exit 2"), model.Critical, "bad\n"},
		{sh("kill -9 $$"), model.Critical, ""},
		{sh(`echo "$COLOUR $FAIRLEAD_ACL_AGENT_TOKEN"`), model.Passing, "blue \n"},
		{sh("cat"), model.Passing, ""}, // there is no input
		{long, model.Passing, "Captured 4 of 10 bytes\n...\n6789"},
		{sh(`printf 'a\377b'`), model.Passing, "a\uFFFDb"},
		{model.CheckSpec{Args: []string{"/does/not/exist"}}, model.Critical, "fork/exec /does/not/exist: no such file or directory"},
		{model.CheckSpec{Args: []string{"/bin/echo", "$HOME; x"}}, model.Passing, "$HOME; x\n"}, // no shell
	})
	status, output := newProbe(sh("true"), Config{})(t.Context())
	if status != model.Critical || output != scriptsOff {
		t.Errorf("not enabled: %s %q", status, output)
	}
}

// TestScriptTimeout: when a script's time is up, it ends with everything that it
// has started.
func TestScriptTimeout(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	spec := sh("sleep 1000 & echo $! >" + pid + "; echo begun; wait")
	spec.Timeout = 300 * time.Millisecond
	expectAll(t, []outcome{{spec, model.Critical, "Timed out (300ms) running check\n\nbegun\n"}})
	gone(t, pid)

	// What a script that has ended leaves behind does not hold up the check.
	begin := time.Now()
	pid = filepath.Join(t.TempDir(), "pid")
	expectAll(t, []outcome{{sh("sleep 30 & echo $! >" + pid + "; echo done"), model.Passing, "done\n"}})
	if d := time.Since(begin); d > 20*time.Second {
		t.Errorf("it took %v", d)
	}
	if p, err := os.FindProcess(readPID(t, pid)); err == nil {
		p.Kill()
	}
}

// TestScriptEndsWithTheAgent: the end of the agent ends a script too.
func TestScriptEndsWithTheAgent(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		newProbe(sh("echo $$ >"+pid+".new; mv "+pid+".new "+pid+"; sleep 1000"), Config{MayRun: always})(ctx)
		close(done)
	}()
	until(t, func() bool { _, err := os.Stat(pid); return err == nil })
	cancel()
	<-done
	gone(t, pid)
}

func readPID(t *testing.T, file string) int {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// gone waits for the process whose id is in a file to have ended.
func gone(t *testing.T, file string) {
	t.Helper()
	pid := readPID(t, file)
	until(t, func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}

func until(t *testing.T, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(20 * time.Second)
	for !cond() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatal("it does not come about")
		}
	}
}

// engine answers for Docker: one container "web", and the programs named below.
type engine struct {
	output string
	code   string // JSON
	hang   bool
	cmd    []string
}

func (e *engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.Method + " " + r.URL.Path {
	case "POST /containers/web/exec":
		var body struct {
			Cmd                        []string
			AttachStdout, AttachStderr bool
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil || !body.AttachStdout || !body.AttachStderr {
			http.Error(w, "bad request", 400)
			return
		}
		e.cmd = body.Cmd
		w.WriteHeader(201)
		io.WriteString(w, `{"Id":"e1"}`)
	case "POST /exec/e1/start":
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/vnd.docker.multiplexed-stream")
		for i, part := range strings.SplitAfter(e.output, " ") {
			head := []byte{byte(1 + i%2), 0, 0, 0, 0, 0, 0, 0}
			binary.BigEndian.PutUint32(head[4:], uint32(len(part)))
			w.Write(append(head, part...))
		}
		w.(http.Flusher).Flush()
		if e.hang {
			<-r.Context().Done()
		}
	case "GET /exec/e1/json":
		io.WriteString(w, e.code)
	default:
		w.WriteHeader(404)
		io.WriteString(w, `{"message":"No such container: x"}`)
	}
}

func TestDocker(t *testing.T) {
	var now atomic.Pointer[engine]
	socket := filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{
		Handler:  http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { now.Load().ServeHTTP(w, r) }),
		ErrorLog: quiet,
	}
	go s.Serve(l)
	defer s.Close()
	tests := []struct {
		container, output, code string
		hang                    bool
		socket                  string
		status                  model.Status
		want                    string
	}{
		{container: "web", output: "all is well", code: `{"ExitCode":0}`, status: model.Passing, want: "all is well"},
		{container: "web", output: "so so", code: `{"ExitCode":1}`, status: model.Warning, want: "so so"},
		{container: "web", output: strings.Repeat("x", 20), code: `{"ExitCode":9}`, status: model.Critical, want: "Captured 16 of 20 bytes\n...\n" + strings.Repeat("x", 16)},
		{container: "web", code: `{"Running":true}`, status: model.Critical, want: `the program in container "web" has closed its output, but goes on`},
		{container: "x", status: model.Critical, want: `prepare the program in container "x": 404 Not Found: No such container: x`},
		{container: "../y", status: model.Critical, want: `prepare the program in container "../y": 404 Not Found: No such container: x`},
		{container: "web", output: "begun", hang: true, status: model.Critical, want: "Timed out (200ms) running check\n\nbegun"},
		{container: "web", socket: "/no/socket", status: model.Critical, want: `prepare the program in container "web": dial unix /no/socket: connect: no such file or directory`},
	}
	for _, tt := range tests {
		e := &engine{output: tt.output, code: tt.code, hang: tt.hang}
		now.Store(e)
		if tt.socket == "" {
			tt.socket = socket
		}
		spec := model.CheckSpec{Docker: tt.container, Args: []string{"check", "it"}, OutputMaxSize: 16, Timeout: 200 * time.Millisecond}
		status, output := newProbe(spec, Config{MayRun: always, DockerSocket: tt.socket})(t.Context())
		if status != tt.status || output != tt.want {
			t.Errorf("%s %q\nwant %s %q", status, output, tt.status, tt.want)
		}
		if cmd := fmt.Sprint(e.cmd); status == model.Passing && cmd != "[check it]" {
			t.Errorf("the engine was asked to run %q", cmd)
		}
	}
}

// TestOSService asks a systemctl that stands for a systemd with three units.
func TestOSService(t *testing.T) {
	dir := t.TempDir()
	script := `#!/bin/sh
[ "$1 $2 $3" = "show --property=LoadState,ActiveState,SubState --" ] || exit 9
case "$4" in
up) printf 'LoadState=loaded\nActiveState=active\nSubState=running\n' ;;
starting) printf 'LoadState=loaded\nActiveState=activating\nSubState=auto-restart\n' ;;
down) printf 'LoadState=loaded\nActiveState=failed\nSubState=failed\n' ;;
broken) echo 'System has not been booted with systemd as init system'; exit 1 ;;
*) printf 'LoadState=not-found\nActiveState=inactive\nSubState=dead\n' ;;
esac
`
	if err := os.WriteFile(filepath.Join(dir, "systemctl"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	expectAll(t, []outcome{
		{model.CheckSpec{OSService: "up"}, model.Passing, `Service "up" is healthy`},
		{model.CheckSpec{OSService: "starting"}, model.Warning, `Service "starting" is activating (auto-restart)`},
		{model.CheckSpec{OSService: "down"}, model.Critical, `Service "down" is failed (failed)`},
		{model.CheckSpec{OSService: "--help"}, model.Critical, `systemd knows no service "--help"`},
		{model.CheckSpec{OSService: "broken"}, model.Critical, "systemd does not answer: System has not been booted with systemd as init system"},
	})
	t.Setenv("PATH", t.TempDir())
	expectAll(t, []outcome{{model.CheckSpec{OSService: "up"}, model.Critical, "OS service checks need systemd, and this host has no systemctl"}})
}
