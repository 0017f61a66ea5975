package node

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/fairlead-net/fairlead/internal/migrate"
	"github.com/fairlead-net/fairlead/internal/registry"
)

// Load reads the configuration: flags over variables over the file over the
// defaults. flags holds those that were given, by name; file may be empty.
// Everything that is wrong is in the one error that it returns.
func Load(file string, getenv func(string) (string, bool), flags map[string]string) (Config, error) {
	var c Config
	fromFile, err := readFile(file)
	errs := []error{err}
	sources := map[string]string{}
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
		if err := s.set(&c, value); err != nil {
			errs = append(errs, fmt.Errorf("%s %q: %w (from %s)", s.Name, value, err, source))
		}
	}
	errs = append(errs, c.fill(sources))
	errs = append(errs, c.check(sources)...)
	return c, errors.Join(errs...)
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
			errs = append(errs, fmt.Errorf("%s:%d: unknown key %q%s", file, n.Line, key, migrate.Suggestion(key, slices.Collect(maps.Keys(known)))))
			delete(raw, key)
		case n.Kind != yaml.ScalarNode:
			errs = append(errs, fmt.Errorf("%s:%d: %s: want one plain value", file, n.Line, key))
			delete(raw, key)
		}
	}
	return raw, errors.Join(errs...)
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
