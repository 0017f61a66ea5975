package migrate

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Config is what an agent of Consul was told, for an agent of ours.
type Config struct {
	Settings    []Setting // in the order of the file
	Definitions []File    // service and check definitions in Consul's own spelling
	// Notes tell of what cannot be honoured, in the order of the files.
	Notes []Note

	comments []string
}

// Setting is one line of our configuration.
type Setting struct{ Key, Value string }

// File is a file to be written, by its name.
type File struct {
	Name    string
	Content []byte
}

// Note tells of one key that cannot be honoured, or not as it was.
type Note struct {
	Key string
	Pos Pos
	Why string
	Do  string
}

// FromConsul translates configuration files of Consul, JSON and HCL; of a
// directory those that end with .json or .hcl, by name. What several files say
// is merged as Consul does: of plain values the last counts, lists are appended,
// tables united, services and checks collected. Keys that Consul does not know
// and values of the wrong kind are errors, all of them in one.
func FromConsul(paths []string) (*Config, error) {
	names, err := files(paths, ".json", ".hcl")
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%s: no file ends with .json or .hcl", strings.Join(paths, ", "))
	}
	t := newTree()
	var errs []error
	for _, name := range names {
		v, err := readFile(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, t.add("", v)...)
	}
	if err := joined(errs); err != nil {
		return nil, err
	}
	return t.translate(), nil
}

// translate makes our configuration of what was read. It cannot fail: what has
// no place in ours is noted.
func (t *tree) translate() *Config {
	tr := &translation{tree: t}
	tr.notes = t.dropped()
	tr.identity()
	tr.addresses()
	tr.dns()
	tr.acl()
	tr.tls()
	tr.checks()
	tr.limits()
	tr.log()
	tr.definitions()
	slices.SortStableFunc(tr.notes, func(a, b Note) int {
		return cmp.Or(a.Pos.compare(b.Pos), strings.Compare(a.Key, b.Key))
	})
	return &Config{Settings: tr.settings, Definitions: tr.files, Notes: tr.notes, comments: tr.comments}
}

// YAML is the configuration file. servicesDir is where the definitions are;
// empty leaves that out.
func (c *Config) YAML(servicesDir string) []byte {
	var b bytes.Buffer
	b.WriteString("# Translated from Consul's configuration by 'fairlead config from-consul'.\n")
	for _, line := range c.comments {
		b.WriteString("# " + line + "\n")
	}
	all := c.Settings
	if servicesDir != "" {
		all = append(slices.Clone(all), Setting{"services_dir", servicesDir})
	}
	for _, s := range all {
		b.WriteString(s.Key + ": " + yamlText(s.Value) + "\n")
	}
	return b.Bytes()
}

// yamlText is a text as one plain or quoted value on one line.
func yamlText(s string) string {
	if s == "true" || s == "false" {
		return s
	}
	n := yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
	if strings.ContainsAny(s, "\n\r") {
		n.Style = yaml.DoubleQuotedStyle
	}
	var plain yaml.Node
	if yaml.Unmarshal([]byte(s), &plain) == nil && len(plain.Content) == 1 && plain.Content[0].Kind == yaml.ScalarNode && plain.Content[0].ShortTag() == "!!int" && plain.Content[0].Value == s {
		return s
	}
	out, err := yaml.Marshal(&n)
	if err != nil {
		return fmt.Sprintf("%q", s)
	}
	return strings.TrimSuffix(string(out), "\n")
}

// servicesDir is where Write puts definitions, below its directory.
const servicesDir = "services"

// Write puts fairlead.yaml and services/*.json below a directory, which is made
// if it is not there, and returns the files' names. It never replaces a file:
// the directory must have neither. Tokens may be in them, so nobody but their
// owner reads them.
func (c *Config) Write(dir string) (names []string, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	services := filepath.Join(dir, servicesDir)
	old, err := os.ReadDir(services)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if len(old) > 0 {
		return nil, fmt.Errorf("%s has files already; name another directory, or remove them", services)
	}
	if err := os.MkdirAll(services, 0o700); err != nil {
		return nil, err
	}
	all := []File{{filepath.Join(dir, "fairlead.yaml"), c.YAML(services)}}
	for _, f := range c.Definitions {
		all = append(all, File{filepath.Join(services, f.Name), f.Content})
	}
	for _, f := range all {
		if err := writeNew(f); err != nil {
			return names, err
		}
		names = append(names, f.Name)
	}
	return names, nil
}

func writeNew(f File) error {
	out, err := os.OpenFile(f.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s is there already; name another directory, or remove it", f.Name)
	}
	if err != nil {
		return err
	}
	_, err = out.Write(f.Content)
	return errors.Join(err, out.Close())
}
