package migrate

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestDefinitionsOfADirectory(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "20-web.hcl"), `
service {
  name = "web"
  port = 8080
  meta { canary = true }
  check {
    http     = "http://127.0.0.1:8080/"
    interval = "500ms"
  }
  checks {
    id  = "beat"
    ttl = "15s"
  }
  check {
    id       = "port"
    tcp      = "127.0.0.1:8080"
    interval = "10s"
  }
}
service {
  name = "admin"
  port = 8081
}
`)
	write(t, filepath.Join(dir, "10-db.json"), `{"Service": {"Name": "db", "Port": 5432, "Token": "secret"}}`)
	write(t, filepath.Join(dir, "30-node.yaml"), `
checks:
  - name: disk
    args: [/usr/local/bin/disk, "90"]
    interval: 1m
  - &beat {name: beat2, ttl: 30s, notes: "2026-01-02"}
services:
  - {name: cron, port: 0x1f}
`)
	write(t, filepath.Join(dir, "empty.json"), "")
	write(t, filepath.Join(dir, "README.md"), "{ not read")
	if err := os.Mkdir(filepath.Join(dir, "old.json"), 0o755); err != nil {
		t.Fatal(err)
	}
	services, checks, warnings, err := Definitions(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range services {
		got = append(got, string(s.Instance.Service))
		for _, c := range s.Checks {
			got = append(got, "  "+string(c.ID)+" "+c.Type())
		}
		if !s.Declared {
			t.Errorf("%s is not marked as declared", s.Instance.Service)
		}
	}
	for _, c := range checks {
		got = append(got, string(c.ID)+" "+c.Type())
	}
	want := []string{"db", "web", "  service:web:1 http", "  beat ttl", "  port tcp", "admin", "cron", "disk script", "beat2 ttl"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if services[0].Token != "secret" || services[1].Instance.Meta["canary"] != "true" || services[3].Instance.Port != 31 || checks[0].Interval != time.Minute || checks[1].Notes != "2026-01-02" {
		t.Errorf("details are lost: %+v %+v", services, checks)
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0], "20-web.hcl:2: check \"service:web:1\": Interval 500ms") {
		t.Errorf("warnings: %q", warnings)
	}
}

func TestDefinitionsRefuse(t *testing.T) {
	for _, c := range []struct{ name, content, want string }{
		{"a.json", "{\n\"service\": {\n\"nome\": \"web\"}}", `a.json:2: service number 1: json: unknown field "nome"`},
		{"a.hcl", "\nservice {\n name = \"web\"\n check { http = \"nowhere\" interval = \"1s\" }\n}", `a.hcl:2: service "web": Invalid check: HTTP must be a URL`},
		{"a.hcl", "check { name = \"x\" }", `a.hcl:1: check "x": Invalid check: TTL must be > 0`},
		{"a.yml", "services:\n  - name: a\n  - name: a\n", `a.yml:3: the service id "a" is also in a.yml:2`},
		{"a.yml", "service: {name: a, check: {ttl: 1s}}\ncheck: {name: b, id: 'service:a', ttl: 1s}\n", `a.yml:2: the check id "service:a" is also in a.yml:1`},
		{"a.hcl", "datacenter = \"x\"", "a.hcl:1: \"datacenter\" is a setting of Consul's agent, no definition; 'fairlead config from-consul' translates it"},
		{"a.hcl", "servise { name = \"x\" }", `a.hcl:1: unknown key "servise"; did you mean "service"?`},
		{"a.yaml", "service: [1]", "a.yaml:1: service: want a block, not 1"},
		{"a.yaml", "a: b: c", "a.yaml: yaml:"},
		{"a.yaml", "[]", "a.yaml:1: want an object with keys, not a list"},
		{"a.yaml", "service: {name: a}\n---\nservice: {name: b}", "a.yaml: a second document"},
		{"a.yaml", "service: &a {b: *a}", "nested too deep"},
		{"a.yaml", "? [a]\n: b", "a.yaml:1: a key must be a word"},
		{"a.yaml", "service: {name: a, port: .inf}", "a.yaml:1: "},
	} {
		t.Run(c.want, func(t *testing.T) {
			t.Chdir(t.TempDir())
			write(t, c.name, c.content)
			services, checks, _, err := Definitions(".")
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
			if services != nil || checks != nil {
				t.Errorf("half a set: %v %v", services, checks)
			}
		})
	}
	if _, _, _, err := Definitions(filepath.Join(t.TempDir(), "none")); !os.IsNotExist(err) {
		t.Errorf("a directory that is not there: %v", err)
	}
}

// TestAnAvalancheOfAliases: a few lines of YAML that stand for more values than
// there is memory.
func TestAnAvalancheOfAliases(t *testing.T) {
	var b strings.Builder
	b.WriteString("l0: &l0 [x, x, x, x, x, x, x, x, x, x]\n")
	for i := 1; i < 12; i++ {
		n := string(rune('a' + i))
		prev := string(rune('a' + i - 1))
		if i == 1 {
			prev = "l0"
		}
		b.WriteString(n + ": &" + n + " [" + strings.TrimSuffix(strings.Repeat("*"+prev+", ", 10), ", ") + "]\n")
	}
	if _, err := parse("a.yaml", []byte(b.String())); err == nil || !strings.Contains(err.Error(), "too many values") {
		t.Errorf("got %v", err)
	}
}

func FuzzDefinitions(f *testing.F) {
	f.Add([]byte(`service { name = "web" check { ttl = "1s" } check { tcp = "a:1" interval = "1s" } }`), uint8(0))
	f.Add([]byte(`{"services": [{"name": "a", "checks": [{"args": ["x"], "interval": "1s"}]}]}`), uint8(1))
	f.Add([]byte("services:\n- &a {name: a, port: 0x10, meta: {a: 1}}\n- *a\n"), uint8(2))
	f.Add([]byte("check {\n notes = <<-EOT\n  a\n  EOT\n}\n"), uint8(0))
	f.Fuzz(func(t *testing.T, b []byte, ending uint8) {
		v, err := parse("a"+[]string{".hcl", ".json", ".yaml"}[int(ending)%3], b)
		if err != nil {
			return
		}
		d := definitions{seen: map[string]Pos{}}
		d.file(v)
		for _, s := range d.services {
			if s.Instance.Service == "" || s.Instance.ID == "" {
				t.Errorf("a service without a name: %+v", s)
			}
		}
		if doc := document("x", v); !json.Valid(doc) {
			t.Errorf("not JSON: %s", doc)
		}
	})
}
