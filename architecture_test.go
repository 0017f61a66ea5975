// Package architecture holds the tests of what the whole repository promises: who imports whom, and that its documents are
// true. It has no code of its own.
package architecture

import (
	"bytes"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/fairlead-net/fairlead"

// A diagram maps each box of ARCHITECTURE.md to the boxes that it may import.
type diagram map[string][]string

// parseDiagram reads the dag block of a Markdown text: lines "box: box box", "#" starts a comment, "*" stands for every
// box that does not itself lead to this one.
func parseDiagram(markdown string) (diagram, error) {
	_, rest, ok := strings.Cut(markdown, "\n```dag\n")
	block, _, closed := strings.Cut(rest, "\n```")
	if !ok || !closed {
		return nil, fmt.Errorf("no dag block")
	}
	d := diagram{}
	for line := range strings.Lines(block) {
		line, _, _ = strings.Cut(line, "#")
		if strings.TrimSpace(line) == "" {
			continue
		}
		name, imports, ok := strings.Cut(line, ":")
		name = strings.TrimSpace(name)
		if _, twice := d[name]; !ok || name == "" || twice {
			return nil, fmt.Errorf("line %q: want one \"box: imports\" for each box", strings.TrimSpace(line))
		}
		d[name] = strings.Fields(imports)
	}
	for _, name := range slices.Sorted(maps.Keys(d)) {
		for _, to := range d[name] {
			if _, known := d[to]; !known && to != "*" {
				return nil, fmt.Errorf("%s may import %s, which is no box", name, to)
			}
		}
		if loop := d.path(name, name); loop != nil {
			return nil, fmt.Errorf("cycle: %s", strings.Join(loop, " -> "))
		}
	}
	return d, nil
}

// path is a way from one box to another along at least one named import, or nil.
func (d diagram) path(from, to string) []string {
	seen := map[string]bool{}
	var walk func(at string) []string
	walk = func(at string) []string {
		for _, next := range d[at] {
			if next == to {
				return []string{at, to}
			}
			if !seen[next] {
				seen[next] = true
				if rest := walk(next); rest != nil {
					return append([]string{at}, rest...)
				}
			}
		}
		return nil
	}
	return walk(from)
}

func (d diagram) allows(from, to string) bool {
	if from == to || slices.Contains(d[from], to) {
		return true
	}
	return slices.Contains(d[from], "*") && d.path(to, from) == nil
}

// A source is what the rules look at in one Go file.
type source struct {
	dir      string // slash-separated, from the repository's root
	name     string
	external bool // of a foo_test package
	test     bool
	doc      bool // has a package comment
	imports  []string
}

// boxOf names the box a folder belongs to: internal/NAME or NAME at the root.
func boxOf(dir string) string {
	return strings.SplitN(strings.TrimPrefix(dir, "internal/"), "/", 2)[0]
}

// violations lists what in the sources contradicts the diagram.
func violations(d diagram, sources []source) []string {
	var found []string
	documented := map[string]bool{}
	boxes := map[string]bool{}
	for _, s := range sources {
		documented[s.dir] = documented[s.dir] || s.doc && !s.external
		if s.dir == "." {
			continue
		}
		box := boxOf(s.dir)
		boxes[box] = true
		if _, known := d[box]; !known || s.external {
			continue
		}
		for _, imported := range s.imports {
			to, ours := strings.CutPrefix(imported, module+"/")
			if !ours {
				continue
			}
			target := boxOf(to)
			// The laboratory is for tests: "*" does not open it to the product.
			lab := target == "testlab" && box != "testlab" && box != "bench" && !s.test
			if !d.allows(box, target) || lab {
				found = append(found, fmt.Sprintf("%s/%s imports %s: not allowed by the diagram", s.dir, s.name, target))
			}
		}
	}
	for dir, ok := range documented {
		if !ok {
			found = append(found, fmt.Sprintf("package %s has no doc comment", dir))
		}
	}
	for box := range boxes {
		if _, known := d[box]; !known {
			found = append(found, fmt.Sprintf("box %s is not in the diagram", box))
		}
	}
	for box := range d {
		if !boxes[box] {
			found = append(found, fmt.Sprintf("box %s is in the diagram but has no Go file", box))
		}
	}
	slices.Sort(found)
	return found
}

// walk calls fn for every file of the repository that is not built or foreign.
func walk(t *testing.T, fn func(name string)) {
	t.Helper()
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name == ".git" || name == "bin" || name == "dist" {
				return fs.SkipDir
			}
			return nil
		}
		if d.Type().IsRegular() {
			fn(filepath.ToSlash(name))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func readSources(t *testing.T) []source {
	t.Helper()
	var sources []source
	walk(t, func(name string) {
		if !strings.HasSuffix(name, ".go") || strings.Contains(name, "testdata/") {
			return
		}
		// Parsed, not listed by the go command: a file under any build tag counts.
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			t.Error(err)
			return
		}
		s := source{dir: path.Dir(name), name: path.Base(name), doc: f.Doc.Text() != ""}
		s.test = strings.HasSuffix(s.name, "_test.go")
		s.external = s.test && strings.HasSuffix(f.Name.Name, "_test")
		for _, spec := range f.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Error(err)
			}
			s.imports = append(s.imports, imported)
		}
		sources = append(sources, s)
	})
	return sources
}

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestDiagram(t *testing.T) {
	d, err := parseDiagram(read(t, "ARCHITECTURE.md"))
	if err != nil {
		t.Fatalf("ARCHITECTURE.md: %v", err)
	}
	for _, v := range violations(d, readSources(t)) {
		t.Error(v)
	}
}

func TestDiagramRules(t *testing.T) {
	parse := func(block string) (diagram, error) { return parseDiagram("# A\n\n```dag\n" + block + "\n```\n") }
	for _, c := range []struct{ block, want string }{
		{"a:\nb: a", ""},
		{"a:\n\nb: a # why\nc: *", ""},
		{"a: b\nb: c\nc: a", "cycle: a -> b -> c -> a"},
		{"a: a", "cycle: a -> a"},
		{"a: z", "a may import z, which is no box"},
		{"a:\na:", "want one"},
		{"a b", "want one"},
	} {
		_, err := parse(c.block)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: got %v, want %q", c.block, err, c.want)
		}
	}
	if _, err := parseDiagram("no block"); err == nil {
		t.Error("a text without a diagram is accepted")
	}

	d, err := parse("model:\ndns: model\nnode: *\ncmd: node\ntestlab:\ngone:")
	if err != nil {
		t.Fatal(err)
	}
	imports := func(boxes ...string) (paths []string) {
		for _, b := range boxes {
			paths = append(paths, module+"/"+b)
		}
		return paths
	}
	got := violations(d, []source{
		{dir: ".", name: "architecture_test.go", test: true, doc: true, imports: imports("cmd/fairlead")},
		{dir: "internal/model", name: "model.go", doc: true, imports: []string{"errors"}},
		{dir: "internal/model", name: "loop_test.go", test: true, imports: imports("internal/dns")},
		{dir: "internal/dns", name: "dns.go", doc: true, imports: imports("internal/model", "internal/dns/wire")},
		{dir: "internal/dns", name: "dns_test.go", test: true, external: true, imports: imports("internal/node")},
		{dir: "internal/node", name: "node.go", doc: true, imports: imports("internal/dns", "cmd/fairlead", "internal/testlab")},
		{dir: "internal/testlab", name: "lab.go", doc: true},
		{dir: "cmd/fairlead", name: "main.go", imports: imports("internal/node")},
		{dir: "internal/extra", name: "extra.go", doc: true},
	})
	want := []string{
		"box extra is not in the diagram",
		"box gone is in the diagram but has no Go file",
		"internal/model/loop_test.go imports dns: not allowed by the diagram",
		"internal/node/node.go imports cmd: not allowed by the diagram",
		"internal/node/node.go imports testlab: not allowed by the diagram",
		"package cmd/fairlead has no doc comment",
	}
	if !slices.Equal(got, want) {
		t.Errorf("violations:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

var (
	fence     = regexp.MustCompile("(?ms)^[ \t]*```.*?^[ \t]*```")
	code      = regexp.MustCompile("`[^`\n]*`")
	mdLink    = regexp.MustCompile(`\]\(<?([^)\s>]+)>?(?:\s+"[^"]*")?\)|(?m)^\[[^\]]+\]:\s*(\S+)`)
	heading   = regexp.MustCompile(`(?m)^#+[ \t]+(.+?)[ \t]*$`)
	notSlug   = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
	elsewhere = regexp.MustCompile(`^[a-z][a-z0-9+.-]*:`)
)

// anchors are the places in a Markdown text that a link can name, made from its headings as GitHub makes them.
func anchors(markdown string) []string {
	var slugs []string
	for _, m := range heading.FindAllStringSubmatch(fence.ReplaceAllString(markdown, ""), -1) {
		slug := notSlug.ReplaceAllString(strings.ToLower(m[1]), "")
		slugs = append(slugs, strings.ReplaceAll(slug, " ", "-"))
	}
	return slugs
}

func TestLinksInDocuments(t *testing.T) {
	walk(t, func(name string) {
		if !strings.HasSuffix(name, ".md") {
			return
		}
		text := read(t, name)
		prose := code.ReplaceAllString(fence.ReplaceAllString(text, ""), "")
		for _, m := range mdLink.FindAllStringSubmatch(prose, -1) {
			target, anchor, _ := strings.Cut(m[1]+m[2], "#")
			if elsewhere.MatchString(target) {
				continue
			}
			file := path.Join(path.Dir(name), target)
			if target == "" {
				file = name
			}
			if strings.HasPrefix(target, "/") || strings.HasPrefix(file, "..") {
				t.Errorf("%s: link %s leads out of the repository", name, target)
				continue
			}
			if _, err := os.Stat(file); err != nil {
				t.Errorf("%s: broken link: %v", name, err)
				continue
			}
			if anchor != "" && strings.HasSuffix(file, ".md") && !slices.Contains(anchors(read(t, file)), anchor) {
				t.Errorf("%s: %s has no heading for #%s", name, file, anchor)
			}
		}
	})
}

// TestNoMachinePaths keeps the places where somebody happened to build out of sources, documents and generated objects.
func TestNoMachinePaths(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	places := [][]byte{[]byte(here + "/"), []byte("/" + "work/main"), []byte("/" + "work/shared")}
	walk(t, func(name string) {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Error(err)
			return
		}
		for _, place := range places {
			if bytes.Contains(data, place) {
				t.Errorf("%s mentions %s", name, place)
			}
		}
	})
}

var (
	makeCall   = regexp.MustCompile("(?m)(?:^|`|&& )make ([a-z-]+)")
	makeTarget = regexp.MustCompile(`(?m)^([a-z-]+):`)
	required   = regexp.MustCompile(`(?m)^\t(\S+) v\S+`)
)

func TestCommandsInDocuments(t *testing.T) {
	var targets []string
	for _, m := range makeTarget.FindAllStringSubmatch(read(t, "Makefile"), -1) {
		targets = append(targets, m[1])
	}
	walk(t, func(name string) {
		if !strings.HasSuffix(name, ".md") && name != ".ci/run" {
			return
		}
		for _, m := range makeCall.FindAllStringSubmatch(read(t, name), -1) {
			if !slices.Contains(targets, m[1]) {
				t.Errorf("%s: the Makefile has no target %s", name, m[1])
			}
		}
	})
}

func TestDependenciesAreExplained(t *testing.T) {
	var modules []string
	for _, m := range required.FindAllStringSubmatch(read(t, "go.mod"), -1) {
		modules = append(modules, m[1])
	}
	imported := map[string]bool{}
	for _, s := range readSources(t) {
		for _, name := range s.imports {
			best := "" // the longest: modules nest
			for _, m := range modules {
				if (name == m || strings.HasPrefix(name, m+"/")) && len(m) > len(best) {
					best = m
				}
			}
			imported[best] = true
		}
	}
	delete(imported, "") // the standard library, and this module
	explained := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)`").FindAllStringSubmatch(read(t, "docs/dependencies.md"), -1) {
		explained[m[1]] = true
	}
	for m := range imported {
		if !explained[m] {
			t.Errorf("docs/dependencies.md does not say why %s is needed", m)
		}
	}
	for m := range explained {
		if !imported[m] {
			t.Errorf("docs/dependencies.md explains %s, which nothing imports", m)
		}
	}
}
