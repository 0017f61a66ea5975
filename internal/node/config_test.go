package node

import (
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead-net/fairlead/internal/migrate"
)

// load reads a configuration out of a file's text, variables and flags.
func load(t *testing.T, file string, env, flags map[string]string) (Config, string, error) {
	t.Helper()
	path := ""
	if file != "" {
		path = filepath.Join(t.TempDir(), "agent.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	getenv := func(name string) (string, bool) { v, ok := env[name]; return v, ok }
	c, err := Load(path, getenv, flags)
	return c, path, err
}

func TestPrecedence(t *testing.T) {
	type vars = map[string]string
	const file = "# settings\nsite: file\nlog_level: warn\ndev: true\nhttp_addr: 127.0.0.1:1\n"
	c, _, err := load(t, file, vars{"FAIRLEAD_SITE": "env", "FAIRLEAD_DEV": "0", "FAIRLEAD_HTTP_ADDR": "127.0.0.1:2"}, vars{"site": "flag"})
	if err != nil {
		t.Fatal(err)
	}
	got := []any{c.Site, c.LogLevel, c.Dev, c.HTTPAddr, c.DNSAddr}
	if want := []any{"flag", "warn", false, "127.0.0.1:2", "127.0.0.1:8600"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v: flag over variable over file over default", got, want)
	}
	if c, _, err := load(t, "", nil, nil); err != nil || c.DataDir != "/var/lib/fairlead" || c.NodeName == "" || c.Advertise == "" || !strings.HasPrefix(c.VIPPool6, "fd") || c.Dev {
		t.Errorf("nothing given: %+v %v", c, err)
	}
	for text, what := range map[string]string{"# only a comment\n": "a file with nothing in it", "---\n": "an empty document"} {
		if _, _, err := load(t, text, nil, nil); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if c, _, err := load(t, "site: x\n", vars{"FAIRLEAD_DEV": ""}, vars{"dev": "true"}); err != nil || !c.Dev {
		t.Errorf("a boolean flag: %+v %v", c, err)
	}
}

// Everything that is wrong is said at once, with where it came from.
func TestWrongSettings(t *testing.T) {
	const file = "http_adr: 127.0.0.1:1\nsite: [a]\nnothing_like_it: 1\nbpffs: bpf\nlog_format: xml\n"
	_, path, err := load(t, file, map[string]string{"FAIRLEAD_DEV": "maybe", "FAIRLEAD_NODE_NAME": "a_b"}, map[string]string{
		"http-addr": "here", "dns-addr": ":53", "data-dir": "data", "run-dir": "", "cgroup": "x", "vip-pool": "10.0.0.0/25", "vip-pool6": "fd00::/48",
		"log-level": "loud", "advertise": "me",
	})
	if err == nil {
		t.Fatal("all of it was taken")
	}
	want := strings.Split(strings.ReplaceAll(strings.TrimSpace(`
FILE:1: unknown key "http_adr"; did you mean "http_addr"?
FILE:2: site: want one plain value
FILE:3: unknown key "nothing_like_it"
dev "maybe": want true or false (from FAIRLEAD_DEV)
advertise "me": want an IP address (from --advertise)
bpffs "bpf": want an absolute path (from FILE:4)
cgroup "x": want an absolute path below a cgroup v2 mount (from --cgroup)
data-dir "data": want an absolute path (from --data-dir)
dns-addr ":53": want an IP address and a port, such as 127.0.0.1:8500 (from --dns-addr)
http-addr "here": want an IP address and a port, such as 127.0.0.1:8500 (from --http-addr)
log-format "xml": want text or json (from FILE:5)
log-level "loud": want debug, info, warn or error (from --log-level)
node-name "a_b": want 1 to 63 letters, digits and inner hyphens, since it is answered by DNS (from FAIRLEAD_NODE_NAME)
run-dir "": want an absolute path (from --run-dir)
vip-pool "10.0.0.0/25": want an IPv4 prefix of at most 24 bits, such as 240.0.0.0/4 (from --vip-pool)
vip-pool6 "fd00::/48": want an IPv6 prefix of 64 bits (from --vip-pool6)
`), "FILE", path), "\n")
	if got := strings.Split(err.Error(), "\n"); !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestWrongFiles(t *testing.T) {
	for text, want := range map[string]string{
		"site: a\nsite: b\n": "already defined",
		"- a\n":              "cannot unmarshal",
		"site: 'a\n":         "agent.yaml",
		"site: \n":           `site "": want`,
	} {
		if _, _, err := load(t, text, nil, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	if _, err := Load("/no/such.yaml", os.LookupEnv, map[string]string{"site": "a b"}); err == nil ||
		!strings.Contains(err.Error(), "configuration: open /no/such.yaml") || !strings.Contains(err.Error(), `site "a b"`) {
		t.Errorf("a file that is not there, and a wrong flag: %v", err)
	}
}

// Values that a user may well try.
func TestEdgesOfSettings(t *testing.T) {
	for _, c := range []struct {
		setting, value string
		ok             bool
	}{
		{"http-addr", "[::1]:8500", true},
		{"http-addr", "0.0.0.0:0", true},
		{"http-addr", "127.0.0.1:65536", false},
		{"http-addr", "localhost:8500", false},
		{"http-addr", "::1:8500", false},
		{"vip-pool", "10.0.0.0/24", true},
		{"vip-pool", "10.0.0.1/24", false},
		{"vip-pool", "fd00::/64", false},
		{"vip-pool6", "fd00::/64", true},
		{"vip-pool6", "fd00::1/64", false},
		{"vip-pool6", "::ffff:10.0.0.0/112", false},
		{"node-name", "a", true},
		{"node-name", "-a", false},
		{"node-name", strings.Repeat("a", 64), false},
		{"node-name", "a.b", false},
	} {
		if _, _, err := load(t, "", nil, map[string]string{c.setting: c.value}); (err == nil) != c.ok {
			t.Errorf("%s %q: %v", c.setting, c.value, err)
		}
	}
}

// Every setting can be explained and has one name in three spellings.
func TestSettings(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range Settings() {
		if s.Doc == "" || strings.HasSuffix(s.Doc, ".") || s.Doc[0] < 'a' && !strings.HasPrefix(s.Doc, "I") {
			t.Errorf("%s: doc %q: want a phrase", s.Name, s.Doc)
		}
		if s.Name != strings.ToLower(s.Name) || s.Key != strings.ReplaceAll(s.Name, "-", "_") || s.Env != "FAIRLEAD_"+strings.ToUpper(s.Key) || seen[s.Name] {
			t.Errorf("names: %+v", s)
		}
		seen[s.Name] = true
	}
	if n := reflect.TypeFor[Config]().NumField(); len(seen) != n {
		t.Errorf("%d settings, %d fields", len(seen), n)
	}
}

func TestSuggestion(t *testing.T) {
	known := map[string]bool{}
	for _, s := range Settings() {
		known[s.Key] = true
	}
	for key, want := range map[string]string{
		"data-dir": "data_dir", "datadir": "data_dir", "nodename": "node_name", "vip_pool5": "vip_pool", "ste": "site", "log": "", "completely": "",
	} {
		got := migrate.Suggestion(key, slices.Collect(maps.Keys(known)))
		if want != "" {
			want = `; did you mean "` + want + `"?`
		}
		if got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
}
