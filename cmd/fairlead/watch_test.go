package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead-net/fairlead/api"
)

// lines hands over what is written to it, a line at a time.
type lines struct {
	out  chan string
	rest string
}

func (l *lines) Write(b []byte) (int, error) {
	l.rest += string(b)
	for {
		line, rest, ok := strings.Cut(l.rest, "\n")
		if !ok {
			return len(b), nil
		}
		l.rest = rest
		l.out <- line
	}
}

func TestWatchShowsEachChange(t *testing.T) {
	a := newAgent(t)
	put := func(args ...string) {
		if code := execute(t.Context(), append([]string{"kv"}, args...), nil, io.Discard, io.Discard); code != 0 {
			t.Fatalf("kv %v: exit %d", args, code)
		}
	}
	for _, c := range []struct {
		name, output string
		want         []string
	}{
		{"web/", "table", []string{"12 set web/b two", "13 set web/a one", "14 set web/a \"\\x00\\n\"", "15 set web/c base64://8=", "16 delete web/a"}},
		{"web/a", "table", []string{"13 set web/a one", "14 set web/a \"\\x00\\n\"", "16 delete web/a"}},
		{"web/", "json", []string{
			`{"event":"set","key":"web/b","value":"two","flags":0,"create_index":12,"modify_index":12}`,
			`{"event":"set","key":"web/a","value":"one","flags":0,"create_index":11,"modify_index":13}`,
			`{"event":"set","key":"web/a","value":"\u0000\n","flags":0,"create_index":11,"modify_index":14}`,
			`{"event":"set","key":"web/c","value_base64":"//8=","flags":0,"create_index":15,"modify_index":15}`,
			`{"event":"delete","key":"web/a","flags":0,"create_index":0,"modify_index":16}`,
		}},
	} {
		a.mu.Lock()
		a.kv, a.index = nil, 10
		a.mu.Unlock()
		put("put", "web/a", "old")
		put("put", "web/b", "two")
		put("put", "web/a", "one")
		ctx, cancel := context.WithCancel(t.Context())
		out := &lines{out: make(chan string)}
		done := make(chan int)
		go func() { done <- execute(ctx, []string{"kv", "watch", c.name, "-o", c.output}, nil, out, io.Discard) }()
		changes := [][]string{{"put", "web/a", "\x00\n"}, {"put", "web/c", "\xff\xff"}, {"delete", "web/a"}}
		var got []string
		for len(got) < len(c.want) {
			got = append(got, <-out.out)
			// The next change comes when the one before was shown, or is not for us.
			if initial := len(c.want) - 3; c.name == "web/" && len(got) >= initial && len(changes) > 0 {
				put(changes[0]...)
				changes = changes[1:]
			} else if c.name == "web/a" && len(changes) > 0 {
				put(changes[0]...)
				if len(got) == 2 {
					put(changes[1]...)
				}
				changes = changes[1:]
			}
		}
		cancel()
		if code := <-done; code != 0 {
			t.Errorf("watch %s: exit %d after an interrupt, want 0", c.name, code)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("watch %s -o %s:\n%s\nwant:\n%s", c.name, c.output, strings.Join(got, "\n"), strings.Join(c.want, "\n"))
		}
	}
}

// TestWatchOutlivesTheAgent lets the agent go away, come back with a history that
// began anew, and refuse.
func TestWatchOutlivesTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone := errors.New("connection refused")
		refused := &api.Error{Status: http.StatusForbidden, Message: "no"}
		kv := func(value string, index uint64) []api.KV {
			return []api.KV{{Key: "a", Value: []byte(value), ModifyIndex: index}}
		}
		var asked []uint64
		answers := []struct {
			all  []api.KV
			next uint64
			err  error
		}{{kv("1", 7), 7, nil}, {err: gone}, {err: gone}, {kv("1", 7), 0, nil}, {kv("2", 3), 3, nil}, {err: refused}}
		var shown, warned []string
		w := watcher{
			name: "a",
			next: func(_ context.Context, _ string, index uint64, _ time.Duration) ([]api.KV, uint64, error) {
				asked = append(asked, index)
				a := answers[len(asked)-1]
				return a.all, a.next, a.err
			},
			show: func(ch change) error { shown = append(shown, *ch.Value); return nil },
			warn: func(text string) { warned = append(warned, text) },
		}
		start := time.Now()
		if err := w.run(t.Context()); !errors.Is(err, refused) {
			t.Errorf("ended with %v, want what the agent refused", err)
		}
		if want := []uint64{0, 7, 7, 7, 0, 3}; !slices.Equal(asked, want) {
			t.Errorf("asked with the indexes %v, want %v", asked, want)
		}
		if want := []string{"1", "2"}; !slices.Equal(shown, want) {
			t.Errorf("shown %v, want %v", shown, want)
		}
		if want := 3 * time.Second; time.Since(start) != want || len(warned) != 2 {
			t.Errorf("waited %s with the warnings %q, want %s and two", time.Since(start), warned, want)
		}
	})
}

func TestWatchNeedsAnAgentAtFirst(t *testing.T) {
	var stderr bytes.Buffer
	if code := execute(t.Context(), []string{"kv", "watch", "a", "--addr", "127.0.0.1:1"}, nil, io.Discard, &stderr); code != 1 {
		t.Errorf("exit %d, want 1: %s", code, stderr.String())
	}
}

// TestCompletionDoesNotWait presses the tabulator at an agent that says nothing.
func TestCompletionDoesNotWait(t *testing.T) {
	release := make(chan struct{})
	silent := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	t.Cleanup(silent.Close)
	t.Cleanup(func() { close(release) })
	start := time.Now()
	code := execute(t.Context(), []string{"__complete", "network", "inspect", "--addr", silent.URL, ""}, nil, io.Discard, io.Discard)
	if took := time.Since(start); code != 0 || took > 5*completeTimeout {
		t.Errorf("exit %d after %s, want 0 within about %s", code, took, completeTimeout)
	}
}

type fullDisk struct{}

var errFull = errors.New("no space left on device")

func (fullDisk) Write([]byte) (int, error) { return 0, errFull }

func TestOutputThatCannotBeWritten(t *testing.T) {
	newAgent(t)
	for _, line := range []string{"network ls", "network inspect my-network", "service ls", "service inspect web", "status", "status -o json", "ps -o yaml", "version", "dns query web.service.consul", "docs settings", "service register web --port 1"} {
		var stderr bytes.Buffer
		if code := execute(t.Context(), strings.Fields(line), nil, fullDisk{}, &stderr); code != 1 || !strings.Contains(stderr.String(), errFull.Error()) {
			t.Errorf("%s: exit %d, %q; want 1 and the reason", line, code, stderr.String())
		}
	}
}

func TestSettingsPageIsCurrent(t *testing.T) {
	var want bytes.Buffer
	if err := writeSettings(&want); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../../docs/reference/agent.md")
	if err != nil {
		t.Fatal(err)
	}
	if d := firstDifference(want.String(), string(got)); d != "" {
		t.Errorf("docs/reference/agent.md is not what 'go generate ./cmd/fairlead' writes: %s", d)
	}
}

func TestPagesForEachCommand(t *testing.T) {
	for kind, file := range map[string]string{"man": "fairlead-kv-watch.1", "md": "fairlead_kv_watch.md"} {
		dir := filepath.Join(t.TempDir(), "pages")
		var stderr bytes.Buffer
		if code := execute(t.Context(), []string{"docs", kind, dir}, nil, io.Discard, &stderr); code != 0 {
			t.Fatalf("docs %s: exit %d: %s", kind, code, stderr.String())
		}
		page, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(page), "PREFIX/") {
			t.Errorf("%s does not say how to call it:\n%s", file, page)
		}
		if hidden, _ := filepath.Glob(filepath.Join(dir, "*docs*")); len(hidden) > 0 {
			t.Errorf("hidden commands have pages: %v", hidden)
		}
	}
}
