package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// consul answers as a Consul with two keys and no nodes.
func consul(t *testing.T, token string) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch key := strings.TrimPrefix(r.URL.Path, "/v1/kv/"); {
		case key == "/v1/status/leader":
			_, _ = io.WriteString(w, `"127.0.0.1:8300"`)
		case r.Header.Get("X-Consul-Token") != token:
			http.Error(w, "ACL not found", http.StatusForbidden)
		case r.URL.Query().Has("keys"):
			_, _ = io.WriteString(w, `["a","b"]`)
		case key == "a" || key == "b":
			_, _ = fmt.Fprintf(w, `[{"Key":%q,"Value":"bmV3","Flags":7,"ModifyIndex":5}]`, key)
		default:
			_, _ = io.WriteString(w, "[]")
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func TestImportConsul(t *testing.T) {
	a := newAgent(t)
	t.Setenv("CONSUL_HTTP_TOKEN", "secret")
	from := consul(t, "secret")
	fairlead := func(args ...string) (string, string, int) {
		var stdout, stderr bytes.Buffer
		code := execute(t.Context(), args, strings.NewReader(""), &stdout, &stderr)
		return stdout.String(), stderr.String(), code
	}
	if _, stderr, code := fairlead("kv", "put", "b", "old"); code != 0 {
		t.Fatal(stderr)
	}
	a.requests()
	for _, c := range []struct {
		name, flags, stdout, stderr string
		code                        int
	}{
		{"dry run", "--dry-run", "keys   1         0          0           1\nconflict: key \"b\"\n", "fairlead: warning: dry run: nothing was written\nfairlead: 1 conflict left as they are: --overwrite replaces them, --keep leaves them\n", 1},
		{"first", "", "keys   1         0          0           1\nconflict: key \"b\"\n", "fairlead: 1 conflict left as they are: --overwrite replaces them, --keep leaves them\n", 1},
		{"keep", "--keep", "keys   0         0          1           1\nconflict: key \"b\"\n", "", 0},
		{"overwrite", "--overwrite", "keys   0         1          1           0\n", "", 0},
		{"again", "", "keys   0         0          2           0\n", "", 0},
	} {
		args := append([]string{"import", "consul", "--from", from, "--no-services"}, strings.Fields(c.flags)...)
		stdout, stderr, code := fairlead(args...)
		if want := "KIND   CREATED   REPLACED   UNCHANGED   CONFLICTS\n" + c.stdout; stdout != want || stderr != c.stderr || code != c.code {
			t.Errorf("%s: exit %d\n%s%s\nwant exit %d\n%s%s", c.name, code, stdout, stderr, c.code, want, c.stderr)
		}
	}
	stdout, _, _ := fairlead("kv", "get", "b", "-o", "json")
	var got entry
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || *got.Value != "new" || got.Flags != 7 {
		t.Errorf("in the end: %s, %v", stdout, err)
	}

	stdout, stderr, code := fairlead("import", "consul", "--from", from, "--from-token", "wrong")
	if code != 1 || !strings.Contains(stderr, "ACL not found") || !strings.Contains(stdout, "keys") || strings.Contains(stderr, "wrong") {
		t.Errorf("with a wrong token: exit %d\n%s%s", code, stdout, stderr)
	}
}

func TestATokenThatTheAgentDoesNotKnow(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "ACL not found", http.StatusForbidden)
	}))
	t.Cleanup(s.Close)
	var stderr bytes.Buffer
	if code := execute(t.Context(), []string{"kv", "get", "a", "--addr", s.URL}, strings.NewReader(""), io.Discard, &stderr); code != 1 || !strings.Contains(stderr.String(), "ACL not found: ") || !strings.Contains(stderr.String(), "FAIRLEAD_TOKEN") {
		t.Errorf("exit %d, %s", code, &stderr)
	}
}
