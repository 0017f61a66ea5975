package main

import (
	"bytes"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/fairlead-net/fairlead/internal/migrate"
)

func configCommand(o *options) *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Translate configuration"}
	c.AddCommand(configFromConsul(o))
	return c
}

// translated is a configuration as -o json and -o yaml show it.
type translated struct {
	Settings    map[string]string `json:"settings"`
	Definitions []string          `json:"definitions"` // names of files
	Report      []reported        `json:"report"`
	Written     []string          `json:"written,omitempty"` // paths of files
}

type reported struct {
	Key  string `json:"key"`
	File string `json:"file"`
	Line int    `json:"line"`
	Why  string `json:"why"`
	Do   string `json:"do"`
}

func configFromConsul(o *options) *cobra.Command {
	var out string
	var strict bool
	c := &cobra.Command{
		Use: "from-consul {FILE | DIR}...", Short: "Translate the configuration of a Consul agent",
		Long: `Reads configuration files of a Consul agent (JSON and HCL; of a directory those
that end with .json or .hcl), merges them as Consul does, and prints the same
for our agent. What cannot be honoured, or not as it was, is reported on the
standard error with the reason and with what to do about it. Keys that Consul
does not know are errors.

With --out it writes fairlead.yaml, and each service and check definition as it
is into services/, where our agent reads them. Nothing is ever replaced. Tokens
may be in these files: only their owner can read them.`,
		Example: `  fairlead config from-consul /etc/consul.d
  fairlead config from-consul --out /etc/fairlead /etc/consul.d
  fairlead config from-consul --strict server.hcl services.json > /dev/null`,
		Args: atLeast(1, "name the files or directories with Consul's configuration"),
	}
	c.Flags().StringVar(&out, "out", "", "directory to write fairlead.yaml and services/*.json into")
	c.Flags().BoolVar(&strict, "strict", false, "fail if anything is reported")
	if err := c.MarkFlagDirname("out"); err != nil {
		panic(err) // the flag is there
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		cfg, err := migrate.FromConsul(args)
		if err != nil {
			return err
		}
		if err := printConfig(c, o, cfg, out); err != nil {
			return err
		}
		if n := len(cfg.Notes); strict && n > 0 {
			return fmt.Errorf("%s cannot be honoured", counted(n, "key"))
		}
		return nil
	}
	return c
}

// atLeast wants some arguments and says what they are.
func atLeast(n int, hint string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < n {
			return usagef("%s: %s", hint, c.UseLine())
		}
		return nil
	}
}

func printConfig(c *cobra.Command, o *options, cfg *migrate.Config, out string) error {
	v := translated{Settings: map[string]string{}, Definitions: []string{}, Report: []reported{}}
	for _, s := range cfg.Settings {
		v.Settings[s.Key] = s.Value
	}
	for _, f := range cfg.Definitions {
		v.Definitions = append(v.Definitions, f.Name)
	}
	for _, n := range cfg.Notes {
		v.Report = append(v.Report, reported{n.Key, n.Pos.File, n.Pos.Line, n.Why, n.Do})
	}
	if out != "" {
		var err error
		if v.Written, err = cfg.Write(out); err != nil {
			return err
		}
	}
	if o.output == "table" {
		if err := report(c.ErrOrStderr(), cfg); err != nil {
			return err
		}
		if n := len(cfg.Definitions); n > 0 && out == "" {
			warn(c, counted(n, "definition")+" of services and checks: --out writes them into files")
		}
	}
	return o.show(c.OutOrStdout(), v, func(w io.Writer) error {
		p := &printer{w: w}
		if out == "" {
			p.line("%s", bytes.TrimSpace(cfg.YAML("")))
		}
		for _, name := range v.Written {
			p.line("%s", name)
		}
		return p.err
	})
}

// report prints what cannot be honoured.
func report(w io.Writer, cfg *migrate.Config) error {
	if len(cfg.Notes) == 0 {
		return nil
	}
	t := &table{head: []string{"KEY", "PLACE", "WHY", "WHAT TO DO"}}
	for _, n := range cfg.Notes {
		t.add(n.Key, n.Pos.String(), n.Why, n.Do)
	}
	return t.write(w)
}
