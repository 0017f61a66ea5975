package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairlead-net/fairlead/api"
)

func aclCommand(o *options) *cobra.Command {
	c := &cobra.Command{
		Use: "acl", Short: "Make tokens, and say what they may do",
		Long: `A token is a secret that a request carries. What it may do is what its policies
say, its roles' policies and the identities it stands for. The commands act with
the token that --token or FAIRLEAD_TOKEN names.`,
	}
	token := &cobra.Command{Use: "token", Short: "Make, list and remove tokens"}
	token.AddCommand(tokenCreate(o), tokenUpdate(o), tokenList(o), tokenRead(o), tokenDelete(o))
	policy := &cobra.Command{Use: "policy", Short: "Make, list and remove policies"}
	policy.AddCommand(policyCreate(o), policyUpdate(o), policyList(o), policyRead(o), policyDelete(o))
	role := &cobra.Command{Use: "role", Short: "Make, list and remove roles"}
	role.AddCommand(roleCreate(o), roleUpdate(o), roleList(o), roleRead(o), roleDelete(o))
	c.AddCommand(aclBootstrap(o), token, policy, role)
	return c
}

func aclBootstrap(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "bootstrap", Short: "Make the first token", Args: exactly(0),
		Long: `Makes the first token of a site, which may do everything, and prints its secret:
keep it. It works once. When that secret is lost, the refusal names an index;
written into the file acl-bootstrap-reset in the data directory of the agent it
allows one more.`,
		RunE: func(c *cobra.Command, _ []string) error {
			return o.tell(c, func(ctx context.Context, cl *api.Client) (api.ACLToken, error) { return cl.BootstrapACL(ctx) }, o.showToken)
		},
	}
}

// tell runs a call and shows what it answers.
func (o *options) tell(c *cobra.Command, call func(context.Context, *api.Client) (api.ACLToken, error), show func(io.Writer, api.ACLToken) error) error {
	cl, err := o.client()
	if err != nil {
		return err
	}
	t, err := call(c.Context(), cl)
	if err != nil {
		return err
	}
	return show(c.OutOrStdout(), t)
}

// grants are the flags of what gives a token or a role its rights.
type grants struct{ policies, roles, services, nodes *[]string }

func grantFlags(c *cobra.Command, o *options, roles bool) grants {
	f := c.Flags()
	g := grants{
		policies: f.StringArray("policy", nil, "name of a policy, once for each"),
		services: f.StringArray("service-identity", nil, "service whose own rights to give, NAME or NAME:DATACENTER,DATACENTER"),
		nodes:    f.StringArray("node-identity", nil, "node whose agent's rights to give, NAME:DATACENTER"),
	}
	completeFlagWith(c, "policy", o.names(0, policyNames))
	if roles {
		g.roles = f.StringArray("role", nil, "name of a role, once for each")
		completeFlagWith(c, "role", o.names(0, roleNames))
	}
	return g
}

func links(names *[]string) []api.ACLLink {
	if names == nil {
		return nil
	}
	return mapped(*names, func(n string) api.ACLLink { return api.ACLLink{Name: n} })
}

func (g grants) serviceIdentities() []api.ACLServiceIdentity {
	return mapped(*g.services, func(s string) api.ACLServiceIdentity {
		name, dcs, scoped := strings.Cut(s, ":")
		id := api.ACLServiceIdentity{ServiceName: name}
		if scoped {
			id.Datacenters = strings.Split(dcs, ",")
		}
		return id
	})
}

func (g grants) nodeIdentities() ([]api.ACLNodeIdentity, error) {
	var out []api.ACLNodeIdentity
	for _, n := range *g.nodes {
		name, dc, ok := strings.Cut(n, ":")
		if !ok || name == "" || dc == "" {
			return nil, usagef("--node-identity %q: want NAME:DATACENTER, such as host-1:dc1", n)
		}
		out = append(out, api.ACLNodeIdentity{NodeName: name, Datacenter: dc})
	}
	return out, nil
}

func tokenCreate(o *options) *cobra.Command {
	var description, accessor, secret string
	var ttl time.Duration
	c := &cobra.Command{
		Use: "create", Short: "Make a token", Args: exactly(0),
		Long: "Makes a token and prints it, with its secret. Without any flag it may do what no\nrule speaks of.",
		Example: `  fairlead acl token create --description "web's own" --service-identity web
  fairlead acl token create --policy kv-reader --expires 8h`,
	}
	g := grantFlags(c, o, true)
	f := c.Flags()
	f.StringVar(&description, "description", "", "what the token is for")
	f.StringVar(&accessor, "accessor", "", "id of the token, a UUID (default: one is made up)")
	f.StringVar(&secret, "secret", "", "secret of the token, a UUID (default: one is made up, which is safer)")
	f.DurationVar(&ttl, "expires", 0, "when the token ends, 1m to 24h from now (default: never)")
	c.RunE = func(c *cobra.Command, _ []string) error {
		t := api.ACLToken{AccessorID: accessor, SecretID: secret, Description: description}
		if ttl != 0 {
			t.ExpirationTTL = ttl.String()
		}
		if err := g.toToken(&t); err != nil {
			return err
		}
		return o.tell(c, func(ctx context.Context, cl *api.Client) (api.ACLToken, error) { return cl.CreateACLToken(ctx, t) }, o.showToken)
	}
	return c
}

func (g grants) toToken(t *api.ACLToken) (err error) {
	t.Policies, t.Roles, t.ServiceIdentities = links(g.policies), links(g.roles), g.serviceIdentities()
	t.NodeIdentities, err = g.nodeIdentities()
	return err
}

func tokenUpdate(o *options) *cobra.Command {
	var description string
	c := &cobra.Command{
		Use: "update ACCESSOR", Short: "Change what a token may do", Args: exactly(1), ValidArgsFunction: o.names(1, tokenIDs),
		Long: `Gives a token the policies, roles and identities named, in place of all that it
had; without any it has none. Its description stays unless another is given. The
token of requests that carry none is 00000000-0000-0000-0000-000000000002.`,
	}
	g := grantFlags(c, o, true)
	c.Flags().StringVar(&description, "description", "", "what the token is for")
	c.RunE = func(c *cobra.Command, args []string) error {
		t := api.ACLToken{}
		if err := g.toToken(&t); err != nil {
			return err
		}
		return o.tell(c, func(ctx context.Context, cl *api.Client) (api.ACLToken, error) {
			old, err := cl.ACLToken(ctx, args[0])
			if err != nil {
				return old, err
			}
			t.AccessorID, t.Description, t.Local = old.AccessorID, old.Description, old.Local
			if c.Flags().Changed("description") {
				t.Description = description
			}
			return cl.UpdateACLToken(ctx, t)
		}, o.showToken)
	}
	return c
}

func tokenList(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List tokens", Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			all, err := cl.ACLTokens(c.Context())
			if err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), mapped(all, shownToken), func(w io.Writer) error {
				t := &table{head: []string{"ACCESSOR", "DESCRIPTION", "POLICIES", "ROLES", "IDENTITIES", "EXPIRES"}}
				for _, tok := range all {
					s := shownToken(tok)
					t.add(s.Accessor, orDash(s.Description), commas(s.Policies), commas(s.Roles), commas(append(s.Services, s.Nodes...)), orDash(s.Expires))
				}
				return t.write(w)
			})
		},
	}
}

func tokenRead(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "inspect ACCESSOR", Aliases: []string{"read"}, Short: "Show a token", Args: exactly(1), ValidArgsFunction: o.names(1, tokenIDs),
		Long: "Shows a token by its accessor id; self is the one that the command acts with.",
		RunE: func(c *cobra.Command, args []string) error {
			return o.tell(c, func(ctx context.Context, cl *api.Client) (api.ACLToken, error) { return cl.ACLToken(ctx, args[0]) }, o.showToken)
		},
	}
}

func tokenDelete(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "delete ACCESSOR", Aliases: []string{"rm"}, Short: "Remove a token", Args: exactly(1), ValidArgsFunction: o.names(1, tokenIDs),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			return cl.DeleteACLToken(c.Context(), args[0])
		},
	}
}

// tokenShown is a token as -o json and -o yaml show it.
type tokenShown struct {
	Accessor    string   `json:"accessor"`
	Secret      string   `json:"secret,omitempty"`
	Description string   `json:"description"`
	Policies    []string `json:"policies"`
	Roles       []string `json:"roles"`
	Services    []string `json:"service_identities"`
	Nodes       []string `json:"node_identities"`
	Expires     string   `json:"expires,omitempty"`
}

func shownToken(t api.ACLToken) tokenShown {
	s := tokenShown{
		Accessor: t.AccessorID, Secret: t.SecretID, Description: t.Description, Policies: linked(t.Policies), Roles: linked(t.Roles),
		Services: mapped(t.ServiceIdentities, serviceIdentity), Nodes: mapped(t.NodeIdentities, nodeIdentity),
	}
	if t.ExpirationTime != nil {
		s.Expires = t.ExpirationTime.UTC().Format(time.RFC3339)
	}
	return s
}

func linked(all []api.ACLLink) []string {
	return mapped(all, func(l api.ACLLink) string { return l.Name })
}

func serviceIdentity(s api.ACLServiceIdentity) string {
	if len(s.Datacenters) == 0 {
		return s.ServiceName
	}
	return s.ServiceName + ":" + strings.Join(s.Datacenters, ",")
}

func nodeIdentity(n api.ACLNodeIdentity) string { return n.NodeName + ":" + n.Datacenter }

func commas(all []string) string { return orDash(plain(strings.Join(all, ", "))) }

func (o *options) showToken(w io.Writer, t api.ACLToken) error {
	s := shownToken(t)
	return o.show(w, s, func(w io.Writer) error {
		p := &printer{w: w}
		p.line("Accessor:    %s", s.Accessor)
		p.line("Secret:      %s", plain(s.Secret))
		p.line("Description: %s", orDash(plain(s.Description)))
		p.line("Policies:    %s", commas(s.Policies))
		p.line("Roles:       %s", commas(s.Roles))
		p.line("Services:    %s", commas(s.Services))
		p.line("Nodes:       %s", commas(s.Nodes))
		p.line("Expires:     %s", orDash(s.Expires))
		return p.err
	})
}

// readText returns what a flag gives: text, the content of a file for @FILE, or
// of the standard input for -.
func readText(c *cobra.Command, flag, value string) (string, error) {
	var b []byte
	var err error
	switch {
	case value == "-":
		b, err = io.ReadAll(c.InOrStdin())
	case strings.HasPrefix(value, "@"):
		b, err = os.ReadFile(value[1:])
	default:
		return value, nil
	}
	if err != nil {
		return "", fmt.Errorf("--%s: %w", flag, err)
	}
	return string(b), nil
}

func tokenIDs(ctx context.Context, cl *api.Client) ([]string, error) {
	all, err := cl.ACLTokens(ctx)
	return mapped(all, func(t api.ACLToken) string { return t.AccessorID }), err
}

func policyNames(ctx context.Context, cl *api.Client) ([]string, error) {
	all, err := cl.ACLPolicies(ctx)
	return mapped(all, func(p api.ACLPolicy) string { return p.Name }), err
}

func roleNames(ctx context.Context, cl *api.Client) ([]string, error) {
	all, err := cl.ACLRoles(ctx)
	return mapped(all, func(r api.ACLRole) string { return r.Name }), err
}
