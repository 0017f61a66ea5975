package main

import (
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fairlead-net/fairlead/api"
)

func statusCommand(o *options) *cobra.Command {
	var datapath bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Show how the agent is doing",
		Long: `Shows the agent's node, the registry's leader and newest revision, what is in the
registry, and what needs a person. It succeeds whenever the agent answers; for a
probe see /readyz.`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			if datapath {
				text, err := cl.Datapath(c.Context())
				if err != nil {
					return err
				}
				lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
				return o.show(c.OutOrStdout(), lines, func(w io.Writer) error {
					_, err := io.WriteString(w, text)
					return err
				})
			}
			s, err := cl.Status(c.Context())
			if err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), s, func(w io.Writer) error { return describeStatus(w, s) })
		},
	}
	c.Flags().BoolVar(&datapath, "datapath", false, "show what the balancer's maps hold instead, one fact a line")
	return c
}

func describeStatus(w io.Writer, s api.Status) error {
	p := &printer{w: w}
	p.line("Node:      %s (site %s)", plain(s.Node), plain(s.Site))
	p.line("Version:   %s", plain(s.Version))
	p.line("PID:       %d", s.PID)
	p.line("Leader:    %s", orDash(plain(s.Leader)))
	p.line("Servers:   %s", orDash(plain(strings.Join(s.Servers, ", "))))
	p.line("Index:     %d", s.Index)
	p.line("Nodes:     %d", s.Nodes)
	p.line("Services:  %d", s.Services)
	p.line("Networks:  %d", s.Networks)
	p.line("Endpoints: %d on this node", s.Endpoints)
	if len(s.Problems) == 0 {
		p.line("Problems:  none")
		return p.err
	}
	p.line("Problems:  %d", len(s.Problems))
	for _, problem := range s.Problems {
		p.line("  - %s", plain(problem))
	}
	return p.err
}
