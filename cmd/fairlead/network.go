package main

import (
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fairlead-net/fairlead/api"
)

func networkCommand(o *options) *cobra.Command {
	c := &cobra.Command{Use: "network", Short: "Make, list and remove networks"}
	c.AddCommand(networkCreate(o), networkList(o), networkInspect(o), networkRemove(o))
	return c
}

func networkCreate(o *options) *cobra.Command {
	var (
		driver, transport string
		subnets, gateways []string
		reserved, labels  []string
		mtu               int
		internal          bool
		examples          = "  fairlead network create my-network\n  fairlead network create db --subnet 10.20.0.0/24 --subnet fd20::/64 --internal\n  fairlead network create shop --driver overlay"
		subnetDoc         = "addresses of the network, one prefix per family (default: free ones of both)"
		gatewayDoc        = "the host's own address in a subnet (default: the first)"
		reservedDoc       = "addresses never given to a workload, a prefix or one address"
	)
	c := &cobra.Command{
		Use: "create NAME", Short: "Make a network", Example: examples, Args: exactly(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, args []string) error {
			n := api.Network{Name: args[0], Driver: driver, Transport: transport, MTU: mtu, Internal: internal}
			var err error
			if n.Subnets, err = parseSubnets(subnets, gateways, reserved); err != nil {
				return err
			}
			if n.Labels, err = parsePairs("--label", labels); err != nil {
				return err
			}
			cl, err := o.client()
			if err != nil {
				return err
			}
			made, err := cl.CreateNetwork(c.Context(), n)
			if err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), made, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "network %s: %s\n", made.Name, strings.Join(prefixes(made), ", "))
				return err
			})
		},
	}
	f := c.Flags()
	f.StringVarP(&driver, "driver", "d", "bridge", "driver of the network: bridge (this host alone), overlay (all hosts of the site)")
	f.StringArrayVar(&subnets, "subnet", nil, subnetDoc)
	f.StringArrayVar(&gateways, "gateway", nil, gatewayDoc)
	f.StringArrayVar(&reserved, "reserve", nil, reservedDoc)
	f.StringArrayVar(&labels, "label", nil, "label, KEY=VALUE")
	f.IntVar(&mtu, "mtu", 0, "MTU of the workloads' interfaces, in bytes (default: 1500; of an overlay 1430)")
	f.StringVar(&transport, "transport", "", "how an overlay's packets get from host to host: auto (by route on a shared link, else vxlan), vxlan, direct (default: auto)")
	f.BoolVar(&internal, "internal", false, "no way to the outside")
	completeFlag(c, "driver", "bridge", "overlay")
	completeFlag(c, "transport", "auto", "vxlan", "direct")
	return c
}

// parseSubnets puts each gateway and reserved range with the subnet it lies in.
func parseSubnets(subnets, gateways, reserved []string) ([]api.Subnet, error) {
	var out []api.Subnet
	for _, s := range subnets {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, usagef("--subnet %q: %w; want an address and a prefix length, such as 10.20.0.0/24", s, err)
		}
		out = append(out, api.Subnet{Prefix: p})
	}
	within := func(a netip.Addr) *api.Subnet {
		for i := range out {
			if out[i].Prefix.Masked().Contains(a) {
				return &out[i]
			}
		}
		return nil
	}
	for _, g := range gateways {
		a, err := netip.ParseAddr(g)
		if err != nil {
			return nil, usagef("--gateway %q: %w", g, err)
		}
		s := within(a)
		if s == nil {
			return nil, usagef("--gateway %s: it lies in none of the subnets given with --subnet", a)
		}
		s.Gateway = a
	}
	for _, r := range reserved {
		p, err := parseRange(r)
		if err != nil {
			return nil, usagef("--reserve %q: want a prefix or an address", r)
		}
		s := within(p.Addr())
		if s == nil {
			return nil, usagef("--reserve %s: it lies in none of the subnets given with --subnet", r)
		}
		s.Reserved = append(s.Reserved, p)
	}
	return out, nil
}

func parseRange(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.ParsePrefix(s)
}

func networkList(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List networks", Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			all, err := cl.Networks(c.Context())
			if err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), all, func(w io.Writer) error {
				t := &table{head: []string{"NAME", "DRIVER", "NODE", "SUBNETS"}}
				for _, n := range all {
					t.add(n.Name, n.Driver, n.Node, strings.Join(prefixes(n), ", "))
				}
				return t.write(w)
			})
		},
	}
}

func networkInspect(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "inspect NAME", Short: "Show a network and who is in it", Args: exactly(1),
		ValidArgsFunction: o.names(1, networkNames),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			n, err := cl.Network(c.Context(), args[0])
			if err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), n, func(w io.Writer) error { return describeNetwork(w, n) })
		},
	}
}

func describeNetwork(w io.Writer, n api.Network) error {
	p := &printer{w: w}
	p.line("Name:      %s", plain(n.Name))
	p.line("Driver:    %s", plain(n.Driver))
	if n.Node != "" {
		p.line("Node:      %s", plain(n.Node))
	}
	if n.VNI != 0 {
		p.line("Transport: %s, VNI %d", plain(n.Transport), n.VNI)
	}
	for _, s := range n.Subnets {
		reserved := ""
		if len(s.Reserved) > 0 {
			reserved = ", reserved " + joined(s.Reserved)
		}
		p.line("Subnet:    %s, gateway %s%s", s.Prefix, s.Gateway, reserved)
	}
	if n.MTU != 0 {
		p.line("MTU:       %d", n.MTU)
	}
	p.line("Internal:  %t", n.Internal)
	for _, key := range slices.Sorted(maps.Keys(n.Labels)) {
		p.line("Label:     %s=%s", plain(key), plain(n.Labels[key]))
	}
	p.line("Endpoints: %d", len(n.Endpoints))
	if len(n.Endpoints) == 0 || p.err != nil {
		return p.err
	}
	p.line("")
	t := &table{head: []string{"WORKLOAD", "ADDRESSES", "MAC", "INTERFACE", "PORTS"}}
	slices.SortStableFunc(n.Endpoints, func(a, b api.Endpoint) int { return strings.Compare(a.Workload, b.Workload) })
	for _, e := range n.Endpoints {
		t.add(e.Workload, addrs(e.Addrs), orDash(e.MAC), e.HostIf, orDash(ports(e.Ports)))
	}
	return t.write(w)
}

func networkRemove(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME", Aliases: []string{"remove"}, Short: "Remove a network that nobody is in", Args: exactly(1),
		ValidArgsFunction: o.names(1, networkNames),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			return cl.RemoveNetwork(c.Context(), args[0])
		},
	}
}

// printer writes lines and keeps the first error.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, a ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", a...)
	}
}

func prefixes(n api.Network) []string {
	var out []string
	for _, s := range n.Subnets {
		out = append(out, s.Prefix.String())
	}
	return out
}

func addrs(all []netip.Addr) string { return joined(all) }

func joined[T fmt.Stringer](all []T) string {
	var out []string
	for _, a := range all {
		out = append(out, a.String())
	}
	return strings.Join(out, ", ")
}

func ports(all []api.Port) string {
	var out []string
	for _, p := range all {
		out = append(out, fmt.Sprintf("%s:%d->%d/%s", p.Expose, p.HostPort, p.Port, p.Proto))
	}
	return strings.Join(out, ", ")
}
