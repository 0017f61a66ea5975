package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fairlead-net/fairlead/api"
)

// policyFlags are what a policy is made of.
type policyFlags struct {
	rules, description string
	datacenters        []string
}

func (p *policyFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&p.rules, "rules", "", "the rules, in HCL or JSON; @FILE reads a file, - the standard input")
	f.StringVar(&p.description, "description", "", "what the policy is for")
	f.StringArrayVar(&p.datacenters, "datacenter", nil, "where the policy counts, once for each (default: everywhere)")
}

func policyCreate(o *options) *cobra.Command {
	var flags policyFlags
	c := &cobra.Command{
		Use: "create NAME", Short: "Make a policy", Args: exactly(1), ValidArgsFunction: cobra.NoFileCompletions,
		Example: `  fairlead acl policy create kv-reader --rules 'key_prefix "app/" { policy = "read" }'
  fairlead acl policy create web --rules @web.hcl`,
	}
	flags.add(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		rules, err := readText(c, "rules", flags.rules)
		if err != nil {
			return err
		}
		cl, err := o.client()
		if err != nil {
			return err
		}
		p, err := cl.PutACLPolicy(c.Context(), api.ACLPolicy{Name: args[0], Rules: rules, Description: flags.description, Datacenters: flags.datacenters})
		if err != nil {
			return err
		}
		return o.showPolicy(c.OutOrStdout(), p)
	}
	return c
}

func policyUpdate(o *options) *cobra.Command {
	var flags policyFlags
	var name string
	c := &cobra.Command{
		Use: "update NAME", Short: "Change a policy", Args: exactly(1), ValidArgsFunction: o.names(1, policyNames),
		Long: "Changes what is given of a policy; the rest stays.",
	}
	flags.add(c)
	c.Flags().StringVar(&name, "name", "", "another name")
	c.RunE = func(c *cobra.Command, args []string) error {
		cl, err := o.client()
		if err != nil {
			return err
		}
		p, err := cl.ACLPolicy(c.Context(), args[0])
		if err != nil {
			return noPolicy(args[0], err)
		}
		changed := c.Flags().Changed
		if changed("rules") {
			if p.Rules, err = readText(c, "rules", flags.rules); err != nil {
				return err
			}
		}
		if changed("description") {
			p.Description = flags.description
		}
		if changed("datacenter") {
			p.Datacenters = flags.datacenters
		}
		if changed("name") {
			p.Name = name
		}
		if p, err = cl.PutACLPolicy(c.Context(), p); err != nil {
			return err
		}
		return o.showPolicy(c.OutOrStdout(), p)
	}
	return c
}

func noPolicy(name string, err error) error {
	if api.IsNotFound(err) {
		return fmt.Errorf("policy %q: there is none of that name; 'fairlead acl policy ls' lists them", name)
	}
	return err
}

func policyList(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List policies", Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			all, err := cl.ACLPolicies(c.Context())
			if err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), mapped(all, shownPolicy), func(w io.Writer) error {
				t := &table{head: []string{"NAME", "DATACENTERS", "DESCRIPTION"}}
				for _, p := range all {
					t.add(p.Name, commas(p.Datacenters), orDash(p.Description))
				}
				return t.write(w)
			})
		},
	}
}

func policyRead(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "inspect NAME", Aliases: []string{"read"}, Short: "Show a policy and its rules", Args: exactly(1), ValidArgsFunction: o.names(1, policyNames),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			p, err := cl.ACLPolicy(c.Context(), args[0])
			if err != nil {
				return noPolicy(args[0], err)
			}
			return o.showPolicy(c.OutOrStdout(), p)
		},
	}
}

func policyDelete(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME", Aliases: []string{"rm"}, Short: "Remove a policy", Args: exactly(1), ValidArgsFunction: o.names(1, policyNames),
		Long: "Removes a policy. Tokens and roles that were linked to it are no longer.",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			p, err := cl.ACLPolicy(c.Context(), args[0])
			if err != nil {
				return noPolicy(args[0], err)
			}
			return cl.DeleteACLPolicy(c.Context(), p.ID)
		},
	}
}

// policyShown is a policy as -o json and -o yaml show it.
type policyShown struct {
	ID          string   `json:"id"`
	Name        string   `json:"name"`
	Description string   `json:"description"`
	Datacenters []string `json:"datacenters"`
	Rules       string   `json:"rules,omitempty"`
}

func shownPolicy(p api.ACLPolicy) policyShown {
	return policyShown{p.ID, p.Name, p.Description, append([]string{}, p.Datacenters...), p.Rules}
}

func (o *options) showPolicy(w io.Writer, p api.ACLPolicy) error {
	return o.show(w, shownPolicy(p), func(w io.Writer) error {
		out := &printer{w: w}
		out.line("ID:          %s", p.ID)
		out.line("Name:        %s", plain(p.Name))
		out.line("Description: %s", orDash(plain(p.Description)))
		out.line("Datacenters: %s", commas(p.Datacenters))
		out.line("")
		for line := range strings.SplitSeq(strings.TrimRight(p.Rules, "\n"), "\n") {
			out.line("%s", plain(line))
		}
		return out.err
	})
}

func roleCreate(o *options) *cobra.Command {
	var description string
	c := &cobra.Command{
		Use: "create NAME", Short: "Make a role", Args: exactly(1), ValidArgsFunction: cobra.NoFileCompletions,
		Example: "  fairlead acl role create web-team --policy kv-reader --service-identity web",
	}
	g := grantFlags(c, o, false)
	c.Flags().StringVar(&description, "description", "", "what the role is for")
	c.RunE = func(c *cobra.Command, args []string) error {
		r := api.ACLRole{Name: args[0], Description: description}
		return o.putRole(c, g, func(context.Context, *api.Client) (api.ACLRole, error) { return r, nil })
	}
	return c
}

func roleUpdate(o *options) *cobra.Command {
	var description, name string
	c := &cobra.Command{
		Use: "update NAME", Short: "Change a role", Args: exactly(1), ValidArgsFunction: o.names(1, roleNames),
		Long: "Gives a role the policies and identities named, in place of all that it had;\nwithout any it has none. Its description stays unless another is given.",
	}
	g := grantFlags(c, o, false)
	c.Flags().StringVar(&description, "description", "", "what the role is for")
	c.Flags().StringVar(&name, "name", "", "another name")
	c.RunE = func(c *cobra.Command, args []string) error {
		return o.putRole(c, g, func(ctx context.Context, cl *api.Client) (api.ACLRole, error) {
			r, err := findRole(ctx, cl, args[0])
			if c.Flags().Changed("description") {
				r.Description = description
			}
			if c.Flags().Changed("name") {
				r.Name = name
			}
			return r, err
		})
	}
	return c
}

// putRole writes the role that find returns with the rights of the flags.
func (o *options) putRole(c *cobra.Command, g grants, find func(context.Context, *api.Client) (api.ACLRole, error)) error {
	nodes, err := g.nodeIdentities()
	if err != nil {
		return err
	}
	cl, err := o.client()
	if err != nil {
		return err
	}
	r, err := find(c.Context(), cl)
	if err != nil {
		return err
	}
	r.Policies, r.ServiceIdentities, r.NodeIdentities = links(g.policies), g.serviceIdentities(), nodes
	if r, err = cl.PutACLRole(c.Context(), r); err != nil {
		return err
	}
	return o.showRole(c.OutOrStdout(), r)
}

func findRole(ctx context.Context, cl *api.Client, name string) (api.ACLRole, error) {
	r, err := cl.ACLRole(ctx, name)
	if api.IsNotFound(err) {
		return r, fmt.Errorf("role %q: there is none of that name; 'fairlead acl role ls' lists them", name)
	}
	return r, err
}

func roleList(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List roles", Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			all, err := cl.ACLRoles(c.Context())
			if err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), mapped(all, shownRole), func(w io.Writer) error {
				t := &table{head: []string{"NAME", "POLICIES", "IDENTITIES", "DESCRIPTION"}}
				for _, r := range all {
					s := shownRole(r)
					t.add(s.Name, commas(s.Policies), commas(append(s.Services, s.Nodes...)), orDash(s.Description))
				}
				return t.write(w)
			})
		},
	}
}

func roleRead(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "inspect NAME", Aliases: []string{"read"}, Short: "Show a role", Args: exactly(1), ValidArgsFunction: o.names(1, roleNames),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			r, err := findRole(c.Context(), cl, args[0])
			if err != nil {
				return err
			}
			return o.showRole(c.OutOrStdout(), r)
		},
	}
}

func roleDelete(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME", Aliases: []string{"rm"}, Short: "Remove a role", Args: exactly(1), ValidArgsFunction: o.names(1, roleNames),
		Long: "Removes a role. Tokens that were linked to it are no longer.",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			r, err := findRole(c.Context(), cl, args[0])
			if err != nil {
				return err
			}
			return cl.DeleteACLRole(c.Context(), r.ID)
		},
	}
}

// roleShown is a role as -o json and -o yaml show it.
type roleShown struct {
	ID          string   `json:"id"`
	Name        string   `json:"name"`
	Description string   `json:"description"`
	Policies    []string `json:"policies"`
	Services    []string `json:"service_identities"`
	Nodes       []string `json:"node_identities"`
}

func shownRole(r api.ACLRole) roleShown {
	return roleShown{r.ID, r.Name, r.Description, linked(r.Policies), mapped(r.ServiceIdentities, serviceIdentity), mapped(r.NodeIdentities, nodeIdentity)}
}

func (o *options) showRole(w io.Writer, r api.ACLRole) error {
	s := shownRole(r)
	return o.show(w, s, func(w io.Writer) error {
		p := &printer{w: w}
		p.line("ID:          %s", s.ID)
		p.line("Name:        %s", plain(s.Name))
		p.line("Description: %s", orDash(plain(s.Description)))
		p.line("Policies:    %s", commas(s.Policies))
		p.line("Services:    %s", commas(s.Services))
		p.line("Nodes:       %s", commas(s.Nodes))
		return p.err
	})
}
