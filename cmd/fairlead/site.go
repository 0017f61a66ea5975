package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairlead-net/fairlead/api"
)

func serverCommand(o *options) *cobra.Command {
	c := &cobra.Command{Use: "server", Short: "List, remove and replace the servers of a site"}
	c.AddCommand(serverList(o), serverRemove(o, false), serverRemove(o, true))
	return c
}

func serverList(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the servers", Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			all, err := cl.Servers(c.Context())
			if err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), all, func(w io.Writer) error {
				t := &table{head: []string{"NAME", "ADDRESS", "ROLE", "ID"}}
				for _, s := range all {
					t.add(s.Name, orDash(s.Addr), serverRole(s), s.ID)
				}
				return t.write(w)
			})
		},
	}
}

func serverRole(s api.Server) string {
	switch {
	case s.Leader:
		return "leader"
	case s.Voter:
		return "voter"
	}
	return "learner"
}

func serverRemove(o *options, replace bool) *cobra.Command {
	use, short := "remove NAME", "Take a server out of the cluster"
	long := `Takes a server out of the cluster, dead or alive; if it runs, it ends. The last
server that votes cannot go. Its host can join again when its data directory is
empty.`
	if replace {
		use, short = "replace NAME", "Take a server out and let another take its place"
		long = `Takes a server out of the cluster and lets one that has joined and does not vote
yet take its place. Join that one first: fairlead up --join TOKEN --server.`
	}
	return &cobra.Command{
		Use: use, Short: short, Long: long, Args: exactly(1), ValidArgsFunction: o.names(1, serverNames),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			return cl.RemoveServer(c.Context(), args[0], replace)
		},
	}
}

func joinTokenCommand(o *options) *cobra.Command {
	c := &cobra.Command{Use: "token", Short: "Make and withdraw the tokens that hosts join with"}
	c.AddCommand(joinTokenCreate(o), joinTokenList(o), joinTokenRemove(o))
	return c
}

func joinTokenCreate(o *options) *cobra.Command {
	var spec api.JoinTokenSpec
	c := &cobra.Command{
		Use: "create", Short: "Make a join token", Args: exactly(0),
		Long: `Makes a token for 'fairlead up --join' and prints it. It is a secret: whoever has
it can make a node of any host that reaches a server.`,
		Example: "  fairlead token create --uses 1\n  fairlead token create --server --ttl 10m",
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			t, err := cl.CreateJoinToken(c.Context(), spec)
			if err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), t, func(w io.Writer) error {
				_, err := fmt.Fprintln(w, t.Token)
				return err
			})
		},
	}
	c.Flags().BoolVar(&spec.Server, "server", false, "let hosts join as servers, too")
	c.Flags().DurationVar(&spec.TTL, "ttl", time.Hour, "for how long it is good, at most 720h")
	c.Flags().IntVar(&spec.Uses, "uses", 0, "how many hosts it admits; 0 is any number")
	return c
}

func joinTokenList(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List the join tokens that are good", Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			all, err := cl.JoinTokens(c.Context())
			if err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), all, func(w io.Writer) error {
				t := &table{head: []string{"ID", "ADMITS", "USES LEFT", "EXPIRES"}}
				for _, x := range all {
					admits, uses := "agents", "any number"
					if x.Server {
						admits = "agents and servers"
					}
					if x.Uses > 0 {
						uses = strconv.Itoa(x.Uses)
					}
					t.add(x.ID, admits, uses, x.Expires.Format(time.RFC3339))
				}
				return t.write(w)
			})
		},
	}
}

func joinTokenRemove(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "rm ID", Short: "Withdraw a join token; nodes that joined with it stay", Args: exactly(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			return cl.DeleteJoinToken(c.Context(), args[0])
		},
	}
}

func serverNames(ctx context.Context, cl *api.Client) ([]string, error) {
	all, err := cl.Servers(ctx)
	return mapped(all, func(s api.Server) string { return s.Name }), err
}
