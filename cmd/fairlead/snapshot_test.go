package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/archive"
	"github.com/fairlead-net/fairlead/internal/model"
)

// snapshot is a small archive.
func snapshot(w io.Writer) error {
	out, err := archive.NewWriter(w, time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC))
	if err != nil {
		return err
	}
	for _, key := range []string{"kv/a", "kv/b", "node/host-1"} {
		if err := out.Add(key, []byte("some value")); err != nil {
			return err
		}
	}
	_, err = out.Close(model.SnapshotMeta{Index: 12, Node: "host-1", Site: "dc1", Software: "test"})
	return err
}

// serveSnapshot is the agent's part of it; the token "nobody" may not.
func serveSnapshot(w http.ResponseWriter, r *http.Request, body []byte) {
	if r.Header.Get("X-Consul-Token") == "nobody" {
		http.Error(w, "Permission denied: anonymous token lacks permission 'acl:write'", http.StatusForbidden)
		return
	}
	if r.Method == http.MethodGet {
		_ = snapshot(w)
		return
	}
	if _, err := archive.Read(bytes.NewReader(body), 0, nil); err != nil {
		http.Error(w, "restore snapshot: "+err.Error(), http.StatusInternalServerError)
	}
}

// A save that fails leaves the file of that name as it was, and nothing beside it.
func TestFailedSaveChangesNothing(t *testing.T) {
	var whole bytes.Buffer
	if err := snapshot(&whole); err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(whole.Bytes())
	flipped[len(flipped)/2] ^= 1
	for name, tt := range map[string]struct {
		serve http.HandlerFunc
		says  string
	}{
		"cut off": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(whole.Bytes()[:whole.Len()/2])
			if err := http.NewResponseController(w).Flush(); err != nil {
				t.Error(err)
			}
			panic(http.ErrAbortHandler)
		}, "save snapshot: unexpected EOF"},
		"too short": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(whole.Bytes()[:whole.Len()/2]) }, "damaged"},
		"flipped":   {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(flipped) }, "damaged"},
		"refused":   {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "No cluster leader", 500) }, "No cluster leader"},
		"no agent":  {nil, "no agent answers"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(tt.serve)
			defer http.DefaultClient.CloseIdleConnections()
			defer srv.Close()
			if tt.serve == nil {
				srv.Close()
			}
			dir := t.TempDir()
			file := filepath.Join(dir, "backup.snap")
			if err := os.WriteFile(file, []byte("yesterday's"), 0o600); err != nil {
				t.Fatal(err)
			}
			var stdout, stderr bytes.Buffer
			code := execute(context.Background(), []string{"--addr", srv.URL, "snapshot", "save", file}, nil, &stdout, &stderr)
			if code != 1 || !strings.Contains(stderr.String(), tt.says) {
				t.Errorf("exit %d: %s", code, stderr.String())
			}
			if b, err := os.ReadFile(file); err != nil || string(b) != "yesterday's" {
				t.Errorf("the file holds %q, %v", b, err)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
				t.Errorf("left are %v, %v", left, err)
			}
		})
	}
}

// A file that cannot be written is said so; a saved one is its owner's alone.
func TestSavedFile(t *testing.T) {
	a := newAgent(t)
	save := func(file string) (int, string) {
		var stdout, stderr bytes.Buffer
		code := execute(context.Background(), []string{"snapshot", "save", file}, nil, &stdout, &stderr)
		return code, stderr.String()
	}
	file := filepath.Join(a.dir, "backup.snap")
	for range 2 {
		if code, out := save(file); code != 0 {
			t.Fatal(out)
		}
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if code, out := save(filepath.Join(a.dir, "none", "x")); code != 1 || !strings.Contains(out, "no such file") {
		t.Errorf("exit %d: %s", code, out)
	}
	var stdout, stderr bytes.Buffer
	if code := execute(context.Background(), []string{"snapshot", "save", "-"}, nil, &stdout, &stderr); code != 0 {
		t.Errorf("exit %d: %s", code, stderr.String())
	}
	if _, err := archive.Read(&stdout, 0, nil); err != nil {
		t.Errorf("standard output: %v", err)
	}
	saved, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if code := execute(context.Background(), []string{"snapshot", "restore", "-"}, bytes.NewReader(saved), &stdout, &stderr); code != 0 {
		t.Errorf("restore from the standard input: exit %d: %s", code, stderr.String())
	}
	if err := os.WriteFile(file, saved[:len(saved)-1], 0o600); err != nil {
		t.Fatal(err)
	}
	a.requests()
	for _, command := range []string{"restore", "inspect"} {
		stderr.Reset()
		code := execute(context.Background(), []string{"snapshot", command, file}, nil, &stdout, &stderr)
		if want := fmt.Sprintf("fairlead: %s: the snapshot is damaged: it ends too early\n", file); code != 1 || stderr.String() != want {
			t.Errorf("%s: exit %d: %s", command, code, stderr.String())
		}
	}
	if asked := a.requests(); len(asked) > 0 {
		t.Errorf("a damaged file was sent: %v", asked)
	}
}
