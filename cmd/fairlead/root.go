package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"

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
	token  string
	output string
}

// client speaks to the agent that --addr or FAIRLEAD_ADDR names.
func (o *options) client() (*api.Client, error) {
	addr, source := o.addr, "--addr"
	if addr == "" {
		addr, source = os.Getenv("FAIRLEAD_ADDR"), "FAIRLEAD_ADDR"
	}
	c, err := api.New(addr)
	if err != nil {
		return nil, usagef("%s: %w", source, err)
	}
	return c.WithToken(cmp.Or(o.token, os.Getenv("FAIRLEAD_TOKEN"), os.Getenv("CONSUL_HTTP_TOKEN"))), nil
}

// check refuses what no command could carry out, before one makes a call.
func (o *options) check() error {
	if !slices.Contains(outputs, o.output) {
		return usagef("--output %q: want table, json or yaml", o.output)
	}
	return nil
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
		SilenceUsage:      true,
		SilenceErrors:     true,
		DisableAutoGenTag: true,
		PersistentPreRunE: func(*cobra.Command, []string) error { return o.check() },
	}
	f := root.PersistentFlags()
	f.StringVar(&o.addr, "addr", "", "the agent's HTTP address (FAIRLEAD_ADDR; default "+api.DefaultAddr+")")
	f.StringVar(&o.token, "token", "", "secret of the ACL token to act with (FAIRLEAD_TOKEN, which other users of the host cannot see)")
	f.StringVarP(&o.output, "output", "o", "table", "form of the output: table, json or yaml")
	completeFlag(root, "output", outputs...)
	root.SetFlagErrorFunc(flagError)
	root.AddCommand(
		upCommand(), agentCommand(), downCommand(), demoCommand(),
		serverCommand(o), joinTokenCommand(o),
		networkCommand(o), runCommand(o), psCommand(o), stopCommand(o),
		serviceCommand(o), maintenanceCommand(o), kvCommand(o), lockCommand(o), sessionCommand(o), eventCommand(o), aclCommand(o), snapshotCommand(o), dnsCommand(o),
		configCommand(o), importCommand(o),
		statusCommand(o), reloadCommand(o), versionCommand(o), docsCommand(),
	)
	root.SetHelpCommand(helpCommand())
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	strict(root)
	return root
}

// warn tells of something that went otherwise than asked.
func warn(c *cobra.Command, text string) {
	fmt.Fprintf(c.ErrOrStderr(), "fairlead: warning: %s\n", plain(text))
}

func versionCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			v := map[string]string{"version": version}
			return o.show(c.OutOrStdout(), v, func(w io.Writer) error {
				_, err := fmt.Fprintln(w, "fairlead", version)
				return err
			})
		},
	}
}
