package main

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fairlead-net/fairlead/api"
)

func serviceCommand(o *options) *cobra.Command {
	c := &cobra.Command{Use: "service", Short: "List, register and deregister services"}
	c.AddCommand(serviceList(o), serviceInspect(o), serviceRegister(o), serviceDeregister(o))
	return c
}

func serviceList(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List services", Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			all, err := cl.Services(c.Context())
			if err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), all, func(w io.Writer) error {
				t := &table{head: []string{"NAME", "HEALTHY", "VIP", "TAGS"}}
				for _, s := range all {
					t.add(s.Name, healthy(s), orDash(vips(s)), orDash(strings.Join(s.Tags, ", ")))
				}
				return t.write(w)
			})
		},
	}
}

// healthy counts the instances that DNS and the balancer give out: those that
// warn, too.
func healthy(s api.ServiceInfo) string {
	n := 0
	for _, i := range s.Instances {
		if i.Status != "critical" {
			n++
		}
	}
	return fmt.Sprintf("%d of %d", n, len(s.Instances))
}

func vips(s api.ServiceInfo) string {
	var all []netip.Addr
	for _, a := range []netip.Addr{s.VIP4, s.VIP6} {
		if a.IsValid() {
			all = append(all, a)
		}
	}
	return addrs(all)
}

func serviceInspect(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "inspect NAME", Short: "Show a service, its instances and their checks", Args: exactly(1),
		ValidArgsFunction: o.names(1, serviceNames),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			s, err := cl.Service(c.Context(), args[0])
			if err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), s, func(w io.Writer) error { return describeService(w, s) })
		},
	}
}

func describeService(w io.Writer, s api.ServiceInfo) error {
	p := &printer{w: w}
	p.line("Name:    %s", plain(s.Name))
	p.line("VIP:     %s", orDash(vips(s)))
	p.line("Tags:    %s", orDash(plain(strings.Join(s.Tags, ", "))))
	p.line("Healthy: %s", healthy(s))
	p.line("")
	if p.err != nil {
		return p.err
	}
	instances := &table{head: []string{"ID", "NODE", "ADDRESS", "STATUS", "TAGS", "META"}}
	checks := &table{head: []string{"CHECK", "INSTANCE", "STATUS", "OUTPUT"}}
	for _, i := range s.Instances {
		instances.add(i.ID, i.Node, net.JoinHostPort(i.Address, strconv.Itoa(i.Port)), i.Status,
			orDash(strings.Join(i.Tags, ", ")), orDash(pairs(i.Meta)))
		for _, k := range i.Checks {
			if k.ID == nodeCheck && k.Status == "passing" {
				continue // it is the same for every instance of a node that lives
			}
			checks.add(k.ID, i.ID, k.Status, orDash(shortened(k.Output)))
		}
	}
	if err := instances.write(w); err != nil || len(checks.rows) == 0 {
		return err
	}
	p.line("")
	if p.err != nil {
		return p.err
	}
	return checks.write(w)
}

// nodeCheck is the id of the check that says whether an instance's node lives.
const nodeCheck = "serfHealth"

// longestOutput is how much of a check's output fits into a table, in
// characters; -o json has all of it.
const longestOutput = 120

func shortened(s string) string {
	s = plain(s)
	if r := []rune(s); len(r) > longestOutput {
		return string(r[:longestOutput]) + "…"
	}
	return s
}

func serviceDeregister(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "deregister ID", Short: "Remove an instance that is registered at this node", Args: exactly(1),
		Long: `Removes an instance from the catalogue, with its checks. It takes the instance's
id, which 'fairlead service inspect NAME' shows, at the agent where it was
registered. Workloads that 'fairlead run --service' started leave the catalogue
with 'fairlead stop'.`,
		ValidArgsFunction: o.names(1, instanceIDs),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			return instanceHint(cl.Deregister(c.Context(), args[0]))
		},
	}
}
