package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/fairlead-net/fairlead/api"
	"github.com/fairlead-net/fairlead/internal/migrate/transfer"
)

func importCommand(o *options) *cobra.Command {
	c := &cobra.Command{Use: "import", Short: "Copy the content of another registry"}
	c.AddCommand(importConsul(o))
	return c
}

// importFlags are the flags of import consul as they were given.
type importFlags struct {
	from, fromToken, fromCA string
	prefix                  string
	noKV, noServices        bool
	acl, queries            bool
	dryRun, overwrite, keep bool
}

func importConsul(o *options) *cobra.Command {
	f := &importFlags{}
	c := &cobra.Command{
		Use: "consul --from URL", Short: "Copy keys, external services and more of a running Consul",
		Long: `Copies what a running Consul holds into this agent's registry, through the HTTP
API of both: keys with values and flags, and nodes that were registered without
an agent, with their services and checks. With --queries and --acl also prepared
queries, and policies, roles and tokens with their secrets.

It may be run again: what is there already is left, and nothing is removed. What
is there and differs is left too, listed, and makes the command fail, unless
--keep says that this is well or --overwrite has it replaced.

Locks and sessions are not copied: they belong to programs that run. Nor are the
services of nodes with agents: they move with the agent's configuration, see
'fairlead config from-consul'.`,
		Example: `  fairlead import consul --from http://consul.example:8500 --dry-run
  fairlead import consul --from http://consul.example:8500 --kv-prefix app/ --no-services
  CONSUL_HTTP_TOKEN=... fairlead import consul --from https://consul.example:8501 --from-ca-file ca.pem --acl`,
		Args: exactly(0), ValidArgsFunction: cobra.NoFileCompletions,
	}
	fs := c.Flags()
	fs.StringVar(&f.from, "from", "", "Consul's HTTP address (CONSUL_HTTP_ADDR)")
	fs.StringVar(&f.fromToken, "from-token", "", "secret of the token for Consul (CONSUL_HTTP_TOKEN, which other users of the host cannot see)")
	fs.StringVar(&f.fromCA, "from-ca-file", "", "PEM file of who signed Consul's certificate (CONSUL_CACERT; default: the system's)")
	fs.StringVar(&f.prefix, "kv-prefix", "", "only keys that begin with this")
	fs.BoolVar(&f.noKV, "no-kv", false, "leave out keys")
	fs.BoolVar(&f.noServices, "no-services", false, "leave out external nodes and their services")
	fs.BoolVar(&f.queries, "queries", false, "copy prepared queries")
	fs.BoolVar(&f.acl, "acl", false, "copy ACL policies, roles and tokens")
	fs.BoolVar(&f.dryRun, "dry-run", false, "only say what would be done")
	fs.BoolVar(&f.overwrite, "overwrite", false, "replace what is there and differs")
	fs.BoolVar(&f.keep, "keep", false, "leave what is there and differs, and succeed")
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, err := f.config(o)
		if err != nil {
			return err
		}
		sum, err := transfer.Import(c.Context(), cfg)
		if perr := printSummary(c, o, sum, f.dryRun); perr != nil && err == nil {
			err = perr
		}
		if err == nil && sum.Conflicting() && !f.keep {
			err = fmt.Errorf("%s left as they are: --overwrite replaces them, --keep leaves them", counted(len(sum.Conflicts), "conflict"))
		}
		return err
	}
	return c
}

// config is what the flags and the environment ask for.
func (f *importFlags) config(o *options) (transfer.Config, error) {
	cfg := transfer.Config{
		From: transfer.Peer{
			Addr:   cmp.Or(f.from, os.Getenv("CONSUL_HTTP_ADDR")),
			Token:  cmp.Or(f.fromToken, os.Getenv("CONSUL_HTTP_TOKEN")),
			CAFile: cmp.Or(f.fromCA, os.Getenv("CONSUL_CACERT")),
		},
		To: transfer.Peer{
			Addr:  cmp.Or(o.addr, os.Getenv("FAIRLEAD_ADDR"), api.DefaultAddr),
			Token: cmp.Or(o.token, os.Getenv("FAIRLEAD_TOKEN")),
		},
		KV: !f.noKV, Prefix: f.prefix, Services: !f.noServices, Queries: f.queries, ACL: f.acl,
		Overwrite: f.overwrite, DryRun: f.dryRun,
	}
	switch {
	case cfg.From.Addr == "":
		return cfg, usagef("say with --from where Consul answers, such as http://consul.example:8500")
	case f.overwrite && f.keep:
		return cfg, usagef("--overwrite and --keep: choose one")
	case f.noKV && f.prefix != "":
		return cfg, usagef("--no-kv and --kv-prefix: choose one")
	case !cfg.KV && !cfg.Services && !cfg.Queries && !cfg.ACL:
		return cfg, usagef("there is nothing left to copy: leave out --no-kv or --no-services")
	}
	return cfg, nil
}

// printSummary prints what was done, and on the standard error what was not.
func printSummary(c *cobra.Command, o *options, sum transfer.Summary, dryRun bool) error {
	if o.output == "table" {
		if dryRun {
			warn(c, "dry run: nothing was written")
		}
		for _, r := range sum.Remarks {
			warn(c, r)
		}
		for _, u := range sum.Uncertain {
			warn(c, u+": no answer came; it may have been written, or not")
		}
	}
	return o.show(c.OutOrStdout(), sum, func(w io.Writer) error {
		if len(sum.Counts) == 0 {
			return nil
		}
		t := &table{head: []string{"KIND", "CREATED", "REPLACED", "UNCHANGED", "CONFLICTS"}}
		for _, n := range sum.Counts {
			t.add(n.Kind, strconv.Itoa(n.Created), strconv.Itoa(n.Replaced), strconv.Itoa(n.Unchanged), strconv.Itoa(n.Conflicts))
		}
		if err := t.write(w); err != nil {
			return err
		}
		p := &printer{w: w}
		for _, line := range sum.Conflicts {
			p.line("conflict: %s", plain(line))
		}
		return p.err
	})
}
