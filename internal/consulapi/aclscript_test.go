package consulapi_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestACLScripts runs testdata/acl/*.txt as TestScripts does, on a world with
// ACLs, a default of deny and a real registry behind it. What a run makes up is
// written as <id-1>, <id-2> and so on, in requests too; a line "as <id-2>"
// gives the requests below it that token. A policy's index is what it was written
// at; times and hashes are left out.
func TestACLScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/acl/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := runACLScript(string(want))
			switch {
			case got == string(want):
			case *update:
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			default:
				t.Errorf("answers differ (-update rewrites them):\n%s", firstDifference(string(want), got))
			}
		})
	}
}

// namedIDs replaces ids that a run makes up by their order, and back.
type namedIDs struct{ ids []string }

var (
	madeUp  = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`)
	named   = regexp.MustCompile(`<id-\d+>`)
	leftOut = regexp.MustCompile(`"(CreateTime|ExpirationTime|Hash)": ?"[^"]*"`)
)

func (n *namedIDs) name(s string) string {
	s = madeUp.ReplaceAllStringFunc(s, func(id string) string {
		for i, known := range n.ids {
			if known == id {
				return fmt.Sprintf("<id-%d>", i+1)
			}
		}
		n.ids = append(n.ids, id)
		return fmt.Sprintf("<id-%d>", len(n.ids))
	})
	return leftOut.ReplaceAllString(s, `"$1": "..."`)
}

func (n *namedIDs) fill(s string) string {
	return named.ReplaceAllStringFunc(s, func(name string) string {
		var i int
		if _, err := fmt.Sscanf(name, "<id-%d>", &i); err != nil || i > len(n.ids) {
			return name
		}
		return n.ids[i-1]
	})
}

func runACLScript(script string) string {
	s := secure(furnished(), false)
	var ids namedIDs
	var out strings.Builder
	token := ""
	for block := range strings.SplitSeq(strings.TrimSpace(script), "\n\n") {
		var req []string
		for line := range strings.SplitSeq(block, "\n") {
			switch {
			case strings.HasPrefix(line, "#"):
			case strings.HasPrefix(line, "as "):
				token = line[len("as "):]
			case strings.HasPrefix(line, "> "):
				req = append(req, ids.fill(line[2:]))
			default:
				continue
			}
			fmt.Fprintln(&out, line)
		}
		if len(req) > 0 {
			if token != "" {
				req = append(req, "X-Consul-Token: "+ids.fill(token))
			}
			out.WriteString(ids.name(exchange(s.http, req)))
		}
		out.WriteString("\n")
	}
	return strings.TrimSpace(out.String()) + "\n"
}
