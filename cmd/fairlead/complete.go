package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairlead-net/fairlead/api"
)

// completeTimeout bounds the wait of somebody who pressed the tabulator.
const completeTimeout = time.Second

type completer = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// names completes an argument with what list returns, but for those given
// already; most is how many arguments are names, 0 for any number. An agent that
// does not answer completes nothing.
func (o *options) names(most int, list func(context.Context, *api.Client) ([]string, error)) completer {
	return func(c *cobra.Command, args []string, start string) ([]string, cobra.ShellCompDirective) {
		none := cobra.ShellCompDirectiveNoFileComp
		if most > 0 && len(args) >= most {
			return nil, none
		}
		cl, err := o.client()
		if err != nil {
			return nil, none
		}
		ctx := c.Context()
		if ctx == nil {
			ctx = context.Background()
		}
		ctx, cancel := context.WithTimeout(ctx, completeTimeout)
		defer cancel()
		all, err := list(ctx, cl)
		if err != nil {
			return nil, none
		}
		given := map[string]bool{}
		for _, a := range args {
			given[a] = true
		}
		var out []string
		for _, name := range all {
			if strings.HasPrefix(name, start) && !given[name] {
				out = append(out, name)
			}
		}
		return out, none
	}
}

func networkNames(ctx context.Context, cl *api.Client) ([]string, error) {
	all, err := cl.Networks(ctx)
	return mapped(all, func(n api.Network) string { return n.Name }), err
}

func workloadNames(ctx context.Context, cl *api.Client) ([]string, error) {
	all, err := cl.Workloads(ctx)
	return mapped(all, func(w api.Workload) string { return w.Name }), err
}

func serviceNames(ctx context.Context, cl *api.Client) ([]string, error) {
	all, err := cl.Services(ctx)
	return mapped(all, func(s api.ServiceInfo) string { return s.Name }), err
}

// instanceIDs lists the ids that this agent can deregister.
func instanceIDs(ctx context.Context, cl *api.Client) ([]string, error) {
	host, err := cl.Host(ctx)
	if err != nil {
		return nil, err
	}
	all, err := cl.Services(ctx)
	var ids []string
	for _, s := range all {
		for _, i := range s.Instances {
			if i.Node == host.Node {
				ids = append(ids, i.ID)
			}
		}
	}
	return ids, err
}

func sessionIDs(ctx context.Context, cl *api.Client) ([]string, error) {
	all, err := cl.Sessions(ctx, "")
	return mapped(all, func(s api.Session) string { return s.ID }), err
}

// keys completes a key folder by folder.
func (o *options) keys(c *cobra.Command, args []string, start string) ([]string, cobra.ShellCompDirective) {
	folder := start[:strings.LastIndex(start, "/")+1]
	all, directive := o.names(1, func(ctx context.Context, cl *api.Client) ([]string, error) {
		return cl.KVKeys(ctx, folder, "/")
	})(c, args, start)
	for _, k := range all {
		if strings.HasSuffix(k, "/") {
			return all, directive | cobra.ShellCompDirectiveNoSpace
		}
	}
	return all, directive
}

// completeFlag offers fixed values for a flag.
func completeFlag(c *cobra.Command, flag string, values ...string) {
	completeFlagWith(c, flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}

// completeFlagWith panics on a flag that c does not have: every run of the
// program would.
func completeFlagWith(c *cobra.Command, flag string, f completer) {
	if err := c.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(err)
	}
}

func mapped[T, U any](all []T, f func(T) U) []U {
	out := make([]U, len(all))
	for i, v := range all {
		out[i] = f(v)
	}
	return out
}
