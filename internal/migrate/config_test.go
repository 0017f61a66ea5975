package migrate

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite what is wanted")

// TestFromConsul translates each configuration in testdata/consul, a file or a
// directory, and compares settings, definitions and report with testdata/want.
func TestFromConsul(t *testing.T) {
	entries, err := os.ReadDir("testdata/consul")
	if err != nil || len(entries) < 6 {
		t.Fatalf("%d configurations: %v", len(entries), err)
	}
	for _, e := range entries {
		t.Run(e.Name(), func(t *testing.T) {
			c, err := FromConsul([]string{filepath.Join("testdata/consul", e.Name())})
			if err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			got.Write(c.YAML("/etc/fairlead/services"))
			for _, f := range c.Definitions {
				fmt.Fprintf(&got, "-- %s --\n%s", f.Name, f.Content)
			}
			got.WriteString("-- report --\n")
			for _, n := range c.Notes {
				fmt.Fprintf(&got, "%s: %s: %s: %s\n", strings.TrimPrefix(n.Pos.String(), "testdata/consul/"), n.Key, n.Why, n.Do)
			}
			file := filepath.Join("testdata/want", e.Name()+".txt")
			want, err := os.ReadFile(file)
			if *update {
				err = os.WriteFile(file, []byte(got.String()), 0o644)
				want = []byte(got.String())
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.String() != string(want) {
				t.Errorf("got:\n%s\nwant (-update rewrites it):\n%s", got.String(), want)
			}
		})
	}
}

func TestFromConsulRefuses(t *testing.T) {
	for _, c := range []struct{ name, content, want string }{
		{"a.hcl", "nod_name = \"a\"", `a.hcl:1: unknown key "nod_name"; did you mean "node_name"?`},
		{"a.json", "{\n  \"acl\": {\n    \"enable\": true\n  }\n}", `a.json:3: unknown key "acl.enable"; did you mean "enabled"?`},
		{"a.hcl", "frobnicate = 1", `a.hcl:1: unknown key "frobnicate"`},
		{"a.hcl", "acl = true", "a.hcl:1: acl: want a block, not true"},
		{"a.hcl", "\nserver = \"perhaps\"", `a.hcl:2: server: want true or false, not "perhaps"`},
		{"a.hcl", "ports { http = 1.5 }", "a.hcl:1: ports.http: want a whole number, not 1.5"},
		{"a.hcl", "node_name { a = 1 }", "a.hcl:1: node_name: want one plain value, not a block"},
		{"a.hcl", "session_ttl_min = 10", "a.hcl:1: session_ttl_min: want a duration such as 10s, not 10"},
		{"a.hcl", "node_meta = \"a\"", `a.hcl:1: node_meta: want a block of texts, not "a"`},
		{"a.hcl", "node_meta { a = [1, 2] }", "a.hcl:1: node_meta: a: want one plain value, not a list"},
		{"a.hcl", "retry_join = [{}]", "a.hcl:1: retry_join: want one plain value, not a block"},
		{"a.hcl", "service = \"web\"", `a.hcl:1: service: want a block, not "web"`},
		{"a.hcl", "a = [", "a.hcl:1: "},
		{"a.hcl", "x = 99999999999999999999", "a.hcl: not HCL"},
		{"a.json", "{\n\"server\": tru\n}", "a.json:2: "},
		{"a.json", "{\"server\": true} x", "a.json:1: something follows the object"},
		{"a.json", "{\"server\":\n ", "a.json:2: it ends too early"},
		{"a.json", "[1]", "a.json:1: want an object with keys, not a list"},
		{"a.json", strings.Repeat("[", 100_000), "a.json: nested too deep"},
	} {
		t.Run(c.want, func(t *testing.T) {
			t.Chdir(t.TempDir())
			write(t, c.name, c.content)
			_, err := FromConsul([]string{c.name})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
	if _, err := FromConsul([]string{t.TempDir()}); err == nil || !strings.Contains(err.Error(), "no file ends with .json or .hcl") {
		t.Errorf("of an empty directory: %v", err)
	}
	if _, err := FromConsul([]string{"testdata/nowhere"}); err == nil {
		t.Error("a file that is not there is accepted")
	}
}

// TestAllErrorsAtOnce spares the user one run for each mistake.
func TestAllErrorsAtOnce(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.hcl"), "one = 1\ntwo = 2\n")
	write(t, filepath.Join(dir, "b.json"), `{"three": 3}`)
	_, err := FromConsul([]string{dir})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{`a.hcl:1: unknown key "one"`, `a.hcl:2: unknown key "two"`, `b.json:1: unknown key "three"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nlacks %s", err, want)
		}
	}
}

func TestWriteReplacesNothing(t *testing.T) {
	c, err := FromConsul([]string{"testdata/consul/client.json"})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "new", "fairlead")
	names, err := c.Write(dir)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, n := range []string{"fairlead.yaml", "services/web-1.json", "services/orders.json", "services/check-ntp.json"} {
		want = append(want, filepath.Join(dir, n))
	}
	if !slices.Equal(names, want) {
		t.Errorf("wrote %v, want %v", names, want)
	}
	for _, n := range names {
		st, err := os.Stat(n)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v; it may have tokens in it", n, st.Mode())
		}
	}
	if _, err := c.Write(dir); err == nil || !strings.Contains(err.Error(), "has files already") {
		t.Errorf("a second time: %v", err)
	}
	other := t.TempDir()
	write(t, filepath.Join(other, "fairlead.yaml"), "mine: true")
	if _, err := c.Write(other); err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("over a configuration: %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(other, "fairlead.yaml")); err != nil || string(b) != "mine: true" {
		t.Errorf("it was changed: %s, %v", b, err)
	}
}

// TestWrittenDefinitionsAreRead closes the circle: what is written is what the
// agent reads.
func TestWrittenDefinitionsAreRead(t *testing.T) {
	c, err := FromConsul([]string{"testdata/consul/split", "testdata/consul/client.json"})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, err := c.Write(dir); err != nil {
		t.Fatal(err)
	}
	services, checks, _, err := Definitions(filepath.Join(dir, "services"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range services {
		got = append(got, fmt.Sprintf("%s/%s checks=%d token=%t", s.Instance.Service, s.Instance.ID, len(s.Checks), s.Token != ""))
	}
	for _, k := range checks {
		got = append(got, string(k.ID))
	}
	want := []string{
		"cache/cache-2 checks=0 token=true", "cache/cache checks=2 token=true", "orders/orders checks=1 token=true",
		"queue/queue:1 checks=0 token=true", "web/web-1 checks=2 token=true", "disk", "mem", "ntp",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// TestKeysAreWhole guards the table: a child has its block, and what is dropped
// says both why and what to do.
func TestKeysAreWhole(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range keys {
		if seen[k.path] {
			t.Errorf("%s is there twice", k.path)
		}
		seen[k.path] = true
		if (k.why == "") != (k.do == "") {
			t.Errorf("%s: why %q, do %q", k.path, k.why, k.do)
		}
		if i := strings.LastIndex(k.path, "."); i >= 0 && catalogue[k.path[:i]].shape != block {
			t.Errorf("%s: no block around it", k.path)
		}
	}
}

func FuzzFromConsul(f *testing.F) {
	for _, name := range []string{"server.hcl", "client.json", "legacy.json", "mesh.hcl", "addresses.hcl"} {
		b, err := os.ReadFile(filepath.Join("testdata/consul", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, filepath.Ext(name) == ".json")
	}
	f.Add([]byte("{\"retry_join\": [\"\x7f\"]}"), true)
	f.Fuzz(func(t *testing.T, b []byte, isJSON bool) {
		name := "a.hcl"
		if isJSON {
			name = "a.json"
		}
		v, err := parse(name, b)
		if err != nil {
			return
		}
		tr := newTree()
		if errs := joined(tr.add("", v)); errs != nil {
			return
		}
		c := tr.translate()
		if _, err := parse("a.yaml", c.YAML("/x")); err != nil {
			t.Errorf("our own file cannot be read: %v\n%s", err, c.YAML("/x"))
		}
		for _, d := range c.Definitions {
			if strings.ContainsAny(d.Name, "/\x00") || strings.HasPrefix(d.Name, ".") {
				t.Errorf("file name %q", d.Name)
			}
		}
	})
}

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}
