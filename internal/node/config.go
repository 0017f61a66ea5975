package node

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/fairlead-net/fairlead/internal/registry"
)

// Config is everything an agent can be told. Each field with a `setting` tag is
// one setting: the tag's name makes the flag (--http-addr), the variable
// (FAIRLEAD_HTTP_ADDR) and the key in the file (http_addr); `default` and `doc`
// make the reference.
type Config struct {
	Dev          bool   `setting:"dev" doc:"keep everything in memory, for trying things out; nothing survives a restart"`
	RegistryOnly bool   `setting:"registry-only" doc:"be registry, DNS and API only: no networks, no workloads, no balancing in the kernel; needs no root"`
	DataDir      string `setting:"data-dir" default:"/var/lib/fairlead" doc:"directory of the registry and of this node's registrations"`
	RunDir       string `setting:"run-dir" default:"/run/fairlead" doc:"directory of what lives until the next boot: workloads and changed sysctls"`
	HTTPAddr     string `setting:"http-addr" default:"127.0.0.1:8500" doc:"address of the HTTP API"`
	DNSAddr      string `setting:"dns-addr" default:"127.0.0.1:8600" doc:"address of the DNS server, beside each network's gateway"`
	NodeName     string `setting:"node-name" doc:"name of this node (default: the host's name)"`
	Advertise    string `setting:"advertise" doc:"address of this node in the catalogue (default: that of the interface with the default route, or 127.0.0.1)"`
	Site         string `setting:"site" default:"dc1" doc:"name of the site (Consul's datacenter)"`
	Cgroup       string `setting:"cgroup" doc:"cgroup v2 directory that the balancer's programs attach to; callers and workloads live below it (default: the root of the hierarchy)"`
	BPFFS        string `setting:"bpffs" default:"/sys/fs/bpf" doc:"bpf file system that keeps programs and maps while no agent runs; mounted if it is not"`
	VIPPool      string `setting:"vip-pool" default:"240.0.0.0/4" doc:"IPv4 addresses that services' virtual addresses come from"`
	VIPPool6     string `setting:"vip-pool6" doc:"IPv6 prefix of virtual addresses, a /64 (default: a ULA made from the site's name)"`
	ResolvConf   string `setting:"resolv-conf" default:"/etc/resolv.conf" doc:"file that names the resolvers for names that are not ours"`
	LogLevel     string `setting:"log-level" default:"info" doc:"least severe messages to log: debug, info, warn or error"`
	LogFormat    string `setting:"log-format" default:"text" doc:"form of the log: text or json"`
}

// Setting is one thing that can be set, for flags and for the reference page.
type Setting struct {
	Name, Env, Key string
	Default, Doc   string
	Bool           bool
	index          int
}

// Value is what a configuration has for the setting, as text.
func (s Setting) Value(c Config) string {
	return fmt.Sprint(reflect.ValueOf(c).Field(s.index).Interface())
}

// Settings lists every setting in the order of Config's fields.
func Settings() []Setting {
	var all []Setting
	t := reflect.TypeFor[Config]()
	for i := range t.NumField() {
		f := t.Field(i)
		name, ok := f.Tag.Lookup("setting")
		if !ok {
			continue
		}
		all = append(all, Setting{
			Name: name, Env: "FAIRLEAD_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_")),
			Key: strings.ReplaceAll(name, "-", "_"), Default: f.Tag.Get("default"), Doc: f.Tag.Get("doc"),
			Bool: f.Type.Kind() == reflect.Bool, index: i,
		})
	}
	return all
}

// Load reads the configuration: flags over variables over the file over the
// defaults. flags holds those that were given, by name; file may be empty.
// Everything that is wrong is in the one error that it returns.
func Load(file string, getenv func(string) (string, bool), flags map[string]string) (Config, error) {
	var c Config
	fromFile, err := readFile(file)
	errs := []error{err}
	sources := map[string]string{}
	v := reflect.ValueOf(&c).Elem()
	for _, s := range Settings() {
		value, source := s.Default, "the default"
		if x, ok := fromFile[s.Key]; ok {
			value, source = x.Value, fmt.Sprintf("%s:%d", file, x.Line)
		}
		if x, ok := getenv(s.Env); ok {
			value, source = x, s.Env
		}
		if x, ok := flags[s.Name]; ok {
			value, source = x, "--"+s.Name
		}
		sources[s.Name] = source
		if s.Bool {
			b, err := strconv.ParseBool(orFalse(value))
			if err != nil {
				errs = append(errs, fmt.Errorf("%s %q: want true or false (from %s)", s.Name, value, source))
			}
			v.Field(s.index).SetBool(b)
			continue
		}
		v.Field(s.index).SetString(value)
	}
	errs = append(errs, c.fill(sources))
	errs = append(errs, c.check(sources)...)
	return c, errors.Join(errs...)
}

func orFalse(s string) string {
	if s == "" {
		return "false"
	}
	return s
}

// readFile reads a YAML file of plain values. An unknown key is an error that
// suggests the nearest known one.
func readFile(file string) (map[string]yaml.Node, error) {
	if file == "" {
		return nil, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	defer f.Close() // read only
	raw := map[string]yaml.Node{}
	if err := yaml.NewDecoder(f).Decode(&raw); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("configuration %s: %w", file, err)
	}
	known := map[string]bool{}
	for _, s := range Settings() {
		known[s.Key] = true
	}
	var errs []error
	for _, key := range slices.SortedFunc(maps.Keys(raw), func(a, b string) int { return cmp.Compare(raw[a].Line, raw[b].Line) }) {
		n := raw[key]
		switch {
		case !known[key]:
			errs = append(errs, fmt.Errorf("%s:%d: unknown key %q%s", file, n.Line, key, suggestion(key, known)))
			delete(raw, key)
		case n.Kind != yaml.ScalarNode:
			errs = append(errs, fmt.Errorf("%s:%d: %s: want one plain value", file, n.Line, key))
			delete(raw, key)
		}
	}
	return raw, errors.Join(errs...)
}

func suggestion(key string, known map[string]bool) string {
	best, distance := "", min((len(key)+2)/3, 3)+1 // as far as this it is a different word
	for k := range known {
		if d := editDistance(key, k); d < distance || (d == distance && k < best) {
			best, distance = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// editDistance is Levenshtein's.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diagonal
			if a[i-1] != b[j-1] {
				cost++
			}
			diagonal = row[j]
			row[j] = min(cost, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}

// fill sets what depends on the host.
func (c *Config) fill(sources map[string]string) error {
	if c.NodeName == "" {
		sources["node-name"] = "the host's name; set --node-name"
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("tell the host's name: %w; set --node-name", err)
		}
		c.NodeName, _, _ = strings.Cut(name, ".")
	}
	if c.Advertise == "" {
		c.Advertise = outgoingAddr()
	}
	if c.VIPPool6 == "" {
		c.VIPPool6 = registry.SitePool6(c.Site).String()
	}
	return nil
}

var label = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)

// check lists everything that is wrong with the values, which come from sources.
func (c *Config) check(sources map[string]string) []error {
	var errs []error
	bad := func(setting, value, want string) {
		errs = append(errs, fmt.Errorf("%s %q: want %s (from %s)", setting, value, want, sources[setting]))
	}
	for name, value := range map[string]string{"http-addr": c.HTTPAddr, "dns-addr": c.DNSAddr} {
		if host, port, err := net.SplitHostPort(value); err != nil || net.ParseIP(host) == nil || !isPort(port) {
			bad(name, value, "an IP address and a port, such as 127.0.0.1:8500")
		}
	}
	if !label.MatchString(c.NodeName) {
		bad("node-name", c.NodeName, "1 to 63 letters, digits and inner hyphens, since it is answered by DNS")
	}
	if !label.MatchString(c.Site) {
		bad("site", c.Site, "1 to 63 letters, digits and inner hyphens, since it is answered by DNS")
	}
	if _, err := netip.ParseAddr(c.Advertise); err != nil {
		bad("advertise", c.Advertise, "an IP address")
	}
	if p, err := netip.ParsePrefix(c.VIPPool); err != nil || !p.Addr().Is4() || p.Bits() > 24 || p != p.Masked() {
		bad("vip-pool", c.VIPPool, "an IPv4 prefix of at most 24 bits, such as 240.0.0.0/4")
	}
	if p, err := netip.ParsePrefix(c.VIPPool6); err != nil || !p.Addr().Is6() || p.Bits() != 64 || p != p.Masked() {
		bad("vip-pool6", c.VIPPool6, "an IPv6 prefix of 64 bits")
	}
	if c.Cgroup != "" && !filepath.IsAbs(c.Cgroup) {
		bad("cgroup", c.Cgroup, "an absolute path below a cgroup v2 mount")
	}
	for name, value := range map[string]string{"data-dir": c.DataDir, "run-dir": c.RunDir, "bpffs": c.BPFFS} {
		if !filepath.IsAbs(value) {
			bad(name, value, "an absolute path")
		}
	}
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.LogLevel) {
		bad("log-level", c.LogLevel, "debug, info, warn or error")
	}
	if !slices.Contains([]string{"text", "json"}, c.LogFormat) {
		bad("log-format", c.LogFormat, "text or json")
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errs
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n <= 65535
}
