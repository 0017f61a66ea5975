package consulapi_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/fairlead-net/fairlead/internal/consulapi"
)

var update = flag.Bool("update", false, "rewrite the scripts' answers")

// TestScripts runs testdata/script/*.txt: requests with the exact answers that
// clients rely on. In a script
//
//	# is a comment
//	world ... changes what is behind the API (see world.setUp)
//	> METHOD /path?query     is a request,
//	> {"body": 1}            with a body,
//	> Header: value          and headers, in any order after the first line;
//
// the lines up to the next empty one are the answer. go test -update rewrites them.
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
			got := runScript(string(want))
			if got == string(want) {
				return
			}
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			t.Errorf("answers differ (-update rewrites them):\n%s", firstDifference(string(want), got))
		})
	}
}

func runScript(script string) string {
	w := newWorld()
	h := w.handler(func(c *consulapi.Config) { c.KVMaxValueSize, c.MaxBodySize = 64, 1000 })
	var out strings.Builder
	for block := range strings.SplitSeq(strings.TrimSpace(script), "\n\n") {
		var req []string
		for line := range strings.SplitSeq(block, "\n") {
			switch {
			case strings.HasPrefix(line, "#"):
				fmt.Fprintln(&out, line)
			case strings.HasPrefix(line, "world "):
				fmt.Fprintln(&out, line)
				w.setUp(line[len("world "):])
			case strings.HasPrefix(line, "> "):
				fmt.Fprintln(&out, line)
				req = append(req, line[2:])
			}
		}
		if len(req) > 0 {
			out.WriteString(exchange(h, req))
		}
		out.WriteString("\n")
	}
	return strings.TrimSpace(out.String()) + "\n"
}

// exchange makes one request and writes down its answer: status, the headers
// that matter, the body.
func exchange(h http.Handler, req []string) string {
	method, url, _ := strings.Cut(req[0], " ")
	var body string
	r := httptest.NewRequest(method, url, nil)
	for _, line := range req[1:] {
		if k, v, ok := strings.Cut(line, ": "); ok && !strings.ContainsAny(k, "{\"' ") {
			r.Header.Set(k, v)
			continue
		}
		body += line
	}
	with := httptest.NewRequest(method, url, strings.NewReader(body))
	with.Header = r.Header
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, with)

	var out strings.Builder
	fmt.Fprint(&out, rec.Code)
	for _, k := range []string{
		"Content-Type", "Allow", "X-Consul-Index", "X-Consul-Effective-Consistency", "X-Cache", "X-Consul-ContentHash", "X-Consul-Reason",
		"Content-Security-Policy", consulapi.WarningHeader,
	} {
		for _, v := range rec.Header().Values(k) {
			fmt.Fprintf(&out, " %s=%q", strings.TrimPrefix(k, "X-Consul-"), v)
		}
	}
	if rec.Header().Get("X-Consul-KnownLeader") == "false" {
		out.WriteString(" no known leader")
	}
	out.WriteString("\n")
	b := bytes.TrimSpace(rec.Body.Bytes())
	var pretty bytes.Buffer
	if len(b) > 120 && json.Indent(&pretty, b, "", "  ") == nil {
		b = pretty.Bytes()
	}
	if b = changing.ReplaceAll(b, []byte("$1...")); len(b) > 0 {
		fmt.Fprintf(&out, "%s\n", b)
	}
	return out.String()
}

// changing is what differs from run to run, behind its name.
var changing = regexp.MustCompile(`(?s)("runtime": )\{.*?\}`)

func firstDifference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(w), len(g)) {
		at := func(s []string) string {
			if i < len(s) {
				return s[i]
			}
			return "(end)"
		}
		if at(w) != at(g) {
			return fmt.Sprintf("line %d\nwant: %s\n got: %s", i+1, at(w), at(g))
		}
	}
	return "none"
}
