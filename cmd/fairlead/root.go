package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fairlead-net/fairlead/api"
)

// usageError is a command line that cannot be carried out as written.
type usageError struct{ err error }

func (u *usageError) Error() string { return u.err.Error() }
func (u *usageError) Unwrap() error { return u.err }

func usagef(format string, a ...any) error { return &usageError{fmt.Errorf(format, a...)} }

// options are the flags of every client command.
type options struct {
	addr   string
	output string
}

func (o *options) client() (*api.Client, error) {
	c, err := api.New(o.addr)
	if err != nil {
		return nil, &usageError{err}
	}
	return c, nil
}

func rootCommand() *cobra.Command {
	o := &options{}
	root := &cobra.Command{
		Use:   "fairlead",
		Short: "One network and one way to find each other, for containers and processes on Linux hosts",
		Long: `Fairlead gives containers and plain processes one network and one way to find
each other: a registry with health checks, DNS, a Consul-compatible HTTP API and
load balancing in the kernel. One binary per host, no Kubernetes.

Try it:  fairlead demo
Run it:  fairlead agent --dev`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	addr := os.Getenv("FAIRLEAD_ADDR")
	if addr == "" {
		addr = api.DefaultAddr
	}
	root.PersistentFlags().StringVar(&o.addr, "addr", addr, "the agent's HTTP address (FAIRLEAD_ADDR)")
	root.PersistentFlags().StringVarP(&o.output, "output", "o", "table", "form of the output: table, json or yaml")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usagef("%w; see '%s --help'", err, c.CommandPath())
	})
	root.AddCommand(
		agentCommand(), downCommand(),
		networkCommand(o), runCommand(o), psCommand(o), stopCommand(o),
		versionCommand(),
	)
	for _, c := range root.Commands() {
		strictGroup(c)
	}
	return root
}

// strictGroup makes a command that only groups others refuse a word that is none
// of them; cobra would print help and succeed.
func strictGroup(c *cobra.Command) {
	if !c.HasSubCommands() || c.Runnable() {
		return
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return c.Help()
		}
		near := ""
		if s := c.SuggestionsFor(args[0]); len(s) > 0 {
			near = fmt.Sprintf("; did you mean %q?", strings.Join(s, " or "))
		}
		return usagef("unknown command %q for %q%s; see '%s --help'", args[0], c.CommandPath(), near, c.CommandPath())
	}
}

// exactly is cobra.ExactArgs with an error that says how to call it.
func exactly(n int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != n {
			return usagef("%d arguments, want %d: %s", len(args), n, c.UseLine())
		}
		return nil
	}
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(c.OutOrStdout(), "fairlead", version)
			return err
		},
	}
}
