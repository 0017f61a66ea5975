package main

import (
	"cmp"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/fairlead-net/fairlead/internal/node"
)

func upCommand() *cobra.Command {
	var up node.Up
	c := &cobra.Command{
		Use:   "up",
		Short: "Make this host part of a site of several hosts, and run its agent",
		Long: `Runs this host's agent like 'fairlead agent' does, as part of a site of several
hosts. The first host's makes the site and prints a join token; the others take
that token, once. Servers keep the registry: have one, three or five. Started
again, a host is what it was: no token is needed.

Nodes speak mutual TLS with each other, at cluster-addr (port 8300) of the servers
and, among servers, at port 2380 of the same address.`,
		Example: `  fairlead up                           # the first host
  fairlead up --join TOKEN --server     # two more servers
  fairlead up --join TOKEN              # everything else`,
		Args: exactly(0),
	}
	c.Flags().StringVar(&up.Join, "join", "", "join token of the site (FAIRLEAD_JOIN, which other users of the host cannot see)")
	c.Flags().BoolVar(&up.Server, "server", false, "be one of the servers, with --join")
	load := configFlags(c.Flags())
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		up.Join = cmp.Or(up.Join, os.Getenv("FAIRLEAD_JOIN"))
		up.Founded = func(token string) {
			fmt.Fprintf(c.OutOrStdout(), "This is the first server of site %s. Others join it within an hour with:\n\n"+
				"  fairlead up --join %s\n\nand with --server as servers. 'fairlead token create' makes another token.\n", cfg.Site, token)
		}
		return node.RunUp(c.Context(), cfg, up, version, newLogger(cfg, c.ErrOrStderr()))
	}
	return c
}
