package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/api"
)

// serveSessions answers for the fake agent's sessions and events.
func (a *agent) serveSessions(w http.ResponseWriter, r *http.Request, body []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	verb, id, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v1/session/"), "/")
	switch {
	case verb == "create" && bytes.Contains(body, []byte("1s")):
		http.Error(w, "Invalid Session TTL '1000000000', must be between [10s=24h0m0s]", http.StatusInternalServerError)
	case verb == "create":
		id := fmt.Sprintf("00000000-0000-0000-0000-%012d", len(a.sessions)+1)
		a.sessions = append(a.sessions, id)
		fmt.Fprintf(w, `{"ID":%q}`, id)
	case verb == "destroy":
		a.endSessionLocked(id)
		_, _ = io.WriteString(w, "true")
	case verb == "renew" && !slices.Contains(a.sessions, id):
		http.Error(w, "Session id '"+id+"' not found", http.StatusNotFound)
	case verb == "renew":
		_, _ = io.WriteString(w, "[]")
	case verb == "list":
		all := []api.Session{}
		for _, id := range a.sessions {
			all = append(all, api.Session{ID: id, Name: "mine", Node: "host-1", TTL: "15s", Behavior: "release", LockDelay: 15 * time.Second, NodeChecks: []string{"serfHealth"}, CreateIndex: 10})
		}
		_ = json.NewEncoder(w).Encode(all)
	case verb == "node":
		_, _ = io.WriteString(w, "[]")
	case r.Method == http.MethodPut:
		_, _ = io.WriteString(w, `{"ID":"e0000000-0000-0000-0000-000000000001"}`)
	default:
		_ = json.NewEncoder(w).Encode([]api.Event{{ID: "e0000000-0000-0000-0000-000000000001", Name: "deploy", Payload: []byte("1.2.3\n"), LTime: 3}})
	}
}

func (a *agent) endSessionLocked(id string) {
	a.sessions = slices.DeleteFunc(a.sessions, func(s string) bool { return s == id })
	for i := range a.kv {
		if a.kv[i].Session == id {
			a.index++
			a.kv[i].Session, a.kv[i].ModifyIndex = "", a.index
		}
	}
	close(a.changed)
	a.changed = make(chan struct{})
}

// lockKVLocked refuses a write that asks for a lock which it cannot have.
func (a *agent) lockKVLocked(w http.ResponseWriter, q url.Values, i int, there bool) bool {
	holder := ""
	if there {
		holder = a.kv[i].Session
	}
	switch s := q.Get("acquire"); {
	case q.Has("acquire") && !slices.Contains(a.sessions, s):
		http.Error(w, fmt.Sprintf("invalid session %q", s), http.StatusInternalServerError)
		return false
	case q.Has("acquire") && holder != "" && holder != s, q.Has("release") && (holder == "" || holder != q.Get("release")):
		_, _ = io.WriteString(w, "false")
		return false
	}
	return true
}

func (a *agent) setLockLocked(key string, q url.Values) {
	for i := range a.kv {
		switch {
		case a.kv[i].Key != key:
		case q.Has("acquire"):
			a.kv[i].Session = q.Get("acquire")
			a.kv[i].LockIndex++
		case q.Has("release"):
			a.kv[i].Session = ""
		}
	}
}

// lock runs fairlead lock and returns its exit code and what it printed.
func lock(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = execute(ctx, append([]string{"lock"}, args...), strings.NewReader("input"), &out, &errs)
	return code, out.String(), errs.String()
}

// left is what a lock leaves behind at the agent: sessions and keys.
func (a *agent) left() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return fmt.Sprint(a.sessions, len(a.kv))
}

func TestLockRunsTheCommand(t *testing.T) {
	for _, c := range []struct {
		args   []string
		code   int
		stdout string
		stderr string
	}{
		{[]string{"job", "echo", "-n", "done"}, 0, "done", ""},
		{[]string{"job", "--", "echo", "-n", "done"}, 0, "done", ""},
		{[]string{"--ttl", "20s", "job", "cat"}, 0, "input", ""},
		{[]string{"job", "sh", "-c", "echo $CONSUL_LOCK_HELD; exit 7"}, 7, "true\n", ""},
		{[]string{"job", "sh", "-c", "kill -9 $$"}, 137, "", ""},
		{[]string{"job", "/none"}, 1, "", "fairlead: lock job/.lock: fork/exec /none: no such file or directory\n"},
		{[]string{"--ttl", "1s", "job", "true"}, 1, "", "fairlead: lock job/.lock: Invalid Session TTL '1000000000', must be between [10s=24h0m0s]\n"},
		{[]string{"job"}, 2, "", "fairlead: name a key and a command: fairlead lock KEY COMMAND [ARG...]\n"},
		{[]string{"job", "--"}, 2, "", "fairlead: name a key and a command: fairlead lock KEY COMMAND [ARG...]\n"},
	} {
		a := newAgent(t)
		code, stdout, stderr := lock(t.Context(), c.args...)
		if code != c.code || stdout != c.stdout || stderr != c.stderr {
			t.Errorf("%q: %d %q %q, want %d %q %q", c.args, code, stdout, stderr, c.code, c.stdout, c.stderr)
		}
		if a.left() != "[] 0" {
			t.Errorf("%q: left behind: %s", c.args, a.left())
		}
	}
}

// hold puts a lock into the agent that a session holds.
func (a *agent) hold(key string, flags uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sessions = append(a.sessions, "other")
	a.index++
	a.kv = append(a.kv, api.KV{Key: key, Session: "other", Flags: flags, LockIndex: 1, CreateIndex: a.index, ModifyIndex: a.index})
}

// TestLockWaits: the command does not run while another holds the lock, and runs
// when that lets go.
func TestLockWaits(t *testing.T) {
	a := newAgent(t)
	a.hold("job/.lock", lockFlags)
	code, stdout, stderr := lock(t.Context(), "--timeout", "50ms", "job", "echo", "no")
	if code != 1 || stdout != "" || !strings.Contains(stderr, "lock job/.lock: not to be had within 50ms") {
		t.Errorf("held by another: %d %q %q", code, stdout, stderr)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if code, stdout, _ = lock(ctx, "job", "echo", "no"); code == 0 || stdout != "" {
		t.Errorf("interrupted: %d %q", code, stdout)
	}
	done := make(chan string, 1)
	go func() {
		_, stdout, stderr := lock(t.Context(), "job", "echo", "-n", "mine")
		done <- stdout + stderr
	}()
	awaitRequest(t, a, "GET /v1/kv/job/.lock?index=")
	a.mu.Lock()
	a.endSessionLocked("other")
	a.mu.Unlock()
	if got := <-done; got != "mine" {
		t.Errorf("after its release: %q", got)
	}
}

// TestLockRefusesAForeignKey: an entry that is no lock is left alone.
func TestLockRefusesAForeignKey(t *testing.T) {
	a := newAgent(t)
	a.hold("job/.lock", 7)
	if code, _, stderr := lock(t.Context(), "job", "true"); code != 1 || !strings.Contains(stderr, "is no lock; choose another") {
		t.Errorf("%d %q", code, stderr)
	}
}

func awaitRequest(t *testing.T, a *agent, prefix string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		a.mu.Lock()
		found := slices.ContainsFunc(a.seen, func(s string) bool { return strings.HasPrefix(s, prefix) })
		a.mu.Unlock()
		if found {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no request %s", prefix)
		}
		<-time.After(time.Millisecond)
	}
}

// TestLockLost: a command that loses its lock is ended, and that is a failure.
func TestLockLost(t *testing.T) {
	a := newAgent(t)
	done := make(chan string, 1)
	go func() {
		code, _, stderr := lock(t.Context(), "job", "sleep", "60")
		done <- fmt.Sprint(code, " ", stderr)
	}()
	awaitRequest(t, a, "GET /v1/kv/job/.lock?index=")
	a.mu.Lock()
	a.endSessionLocked(a.sessions[0])
	a.mu.Unlock()
	if got := <-done; got != "1 fairlead: lock job/.lock: the lock is lost: it was taken away; the command was ended\n" {
		t.Error(got)
	}
}

// TestLockPassesSignalsOn: a signal is the command's to handle, and the lock is
// held until it has.
func TestLockPassesSignalsOn(t *testing.T) {
	a := newAgent(t)
	out := &syncBuffer{}
	done := make(chan int, 1)
	go func() {
		done <- execute(t.Context(), []string{"lock", "job", "sh", "-c", "trap 'echo got it; exit 3' USR1; echo ready; while :; do sleep 0.01; done"}, strings.NewReader(""), out, io.Discard)
	}()
	deadline := time.Now().Add(20 * time.Second)
	for !strings.Contains(out.String(), "ready") {
		if time.Now().After(deadline) {
			t.Fatal("the command did not start")
		}
		<-time.After(time.Millisecond)
	}
	if err := syscall.Kill(syscall.Getpid(), syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if code := <-done; code != 3 || out.String() != "ready\ngot it\n" {
		t.Errorf("%d %q", code, out.String())
	}
	if a.left() != "[] 0" {
		t.Errorf("left behind: %s", a.left())
	}
}

// syncBuffer is a buffer that is read while it is written.
type syncBuffer struct {
	mu sync.Mutex // guards following
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
