package main

import (
	"github.com/spf13/cobra"

	"github.com/fairlead-net/fairlead/internal/demo"
	"github.com/fairlead-net/fairlead/internal/runtime/process"
)

func demoCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Show one host, one network and a balanced service, in namespaces of its own",
		Long: `Shows the main job on this machine in under a minute: an agent, a network, three
instances of a service that are found, checked and balanced, one of them killed
under load, the agent killed under load, a published port. It measures what it
claims and fails if a claim does not hold.

It needs root, runs in network and mount namespaces of its own and removes what
it made.`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error { return demo.Run(c.Context(), c.OutOrStdout()) },
	}
}

// roles are this binary in another role, started by itself with nothing but what
// it needs. They must not run anything before.
var roles = map[string]func(args []string) int{
	process.SuperviseCommand: func([]string) int { return process.Supervise() },
	process.InitCommand:      process.Init,
	demo.InsideCommand:       demo.Inside,
	demo.ServeCommand:        demo.Serve,
	demo.LoadCommand:         demo.Load,
}
