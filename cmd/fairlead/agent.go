package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fairlead-net/fairlead/internal/node"
)

// configFlags puts every setting of an agent on a command line.
func configFlags(flags *pflag.FlagSet) (load func() (node.Config, error)) {
	var file string
	flags.StringVar(&file, "config", "", "YAML file with settings (FAIRLEAD_CONFIG)")
	for _, s := range node.Settings() {
		doc := fmt.Sprintf("%s (%s)", s.Doc, s.Env)
		if s.Bool {
			flags.Bool(s.Name, false, doc)
		} else {
			flags.String(s.Name, s.Default, doc)
		}
	}
	return func() (node.Config, error) {
		given := map[string]string{}
		flags.Visit(func(f *pflag.Flag) { given[f.Name] = f.Value.String() })
		cfg, err := node.Load(cmp.Or(file, os.Getenv("FAIRLEAD_CONFIG")), os.LookupEnv, given)
		if err != nil {
			return cfg, &usageError{err}
		}
		return cfg, nil
	}
}

func newLogger(cfg node.Config, w io.Writer) *slog.Logger {
	var level slog.Level
	// node.Load has checked the name.
	_ = level.UnmarshalText([]byte(cfg.LogLevel))
	o := &slog.HandlerOptions{Level: level}
	if cfg.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

func agentCommand() *cobra.Command {
	var check bool
	c := &cobra.Command{
		Use:   "agent",
		Short: "Run this host's agent",
		Long: `Runs the agent of this host in the foreground: the network, the registry, DNS,
the HTTP API and the balancer. It needs root.

Every setting can be given as a flag, as an environment variable or in the YAML
file; the first of these wins. SIGTERM ends the agent and leaves workloads,
networks and the balancer at work: the next start takes them over. 'fairlead
down' removes them.`,
		Args: exactly(0),
	}
	c.Flags().BoolVar(&check, "check", false, "say what is wrong with the settings and this host, and change nothing")
	load := configFlags(c.Flags())
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		if check {
			if err := node.Check(cfg); err != nil {
				return err
			}
			_, err := fmt.Fprintln(c.OutOrStdout(), "ok")
			return err
		}
		return node.Run(c.Context(), cfg, version, newLogger(cfg, c.ErrOrStderr()))
	}
	return c
}

func downCommand() *cobra.Command {
	var purge bool
	c := &cobra.Command{
		Use:   "down",
		Short: "End the agent and its workloads and remove what they made in the kernel",
		Long: `Ends the agent and the workloads of this host and removes everything that they
made in the kernel: interfaces, routes, the nftables table, eBPF programs and
cgroups; changed sysctls get their old values back. Then it looks again, and
fails if anything is left. Give it the settings that the agent had.`,
		Args: exactly(0),
	}
	c.Flags().BoolVar(&purge, "purge", false, "remove the registry's data and the run directory too")
	load := configFlags(c.Flags())
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		return down(c.Context(), cfg, purge, c.OutOrStdout(), c.ErrOrStderr())
	}
	return c
}

func down(ctx context.Context, cfg node.Config, purge bool, w, log io.Writer) error {
	done, err := node.Down(ctx, cfg, purge, newLogger(cfg, log))
	for _, line := range done {
		if _, werr := fmt.Fprintln(w, line); werr != nil {
			return werr
		}
	}
	if err == nil && len(done) == 0 {
		_, err = fmt.Fprintln(w, "there was nothing to remove")
	}
	return err
}
