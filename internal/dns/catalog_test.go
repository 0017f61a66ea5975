package dns

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/prepared"
	"github.com/fairlead-net/fairlead/internal/state"
)

// parseFact reads one line of a catalogue as the files in testdata write it, such
// as "instance n1 web-1 web port=80 tags=a,b place=net/10.0.0.2/80". A leading
// "-" deletes.
func parseFact(line string) (state.Change, error) {
	var c state.Change
	f := strings.Fields(line)
	if f[0] == "-" {
		c.Delete, f = true, f[1:]
	}
	kind, args := f[0], []string{}
	opts := map[string][]string{}
	for _, w := range f[1:] {
		if k, v, ok := strings.Cut(w, "="); ok {
			opts[k] = append(opts[k], v)
		} else {
			args = append(args, w)
		}
	}
	arg := func(i int) string {
		if i < len(args) {
			return args[i]
		}
		return ""
	}
	opt := func(k string) string { return strings.Join(opts[k], ",") }
	list := func(k string) []string {
		if opt(k) == "" {
			return nil
		}
		return strings.Split(opt(k), ",")
	}
	switch kind {
	case "node":
		c.Node = &model.Node{Name: model.NodeName(arg(0)), Address: arg(1)}
		if v := opt("lan_ipv6"); v != "" {
			c.Node.TaggedAddresses = map[string]string{"lan_ipv6": v}
		}
		c.Node.Meta = pairs(opts["meta"])
	case "network":
		n := &model.Network{Name: model.NetworkName(arg(0)), Driver: model.DriverBridge, Node: model.NodeName(opt("node")), Internal: opt("internal") != ""}
		for _, p := range list("pool") {
			prefix, err := netip.ParsePrefix(p)
			if err != nil {
				return c, err
			}
			n.Pools = append(n.Pools, model.Pool{Prefix: prefix, Gateway: prefix.Addr().Next()})
		}
		c.Network = n
	case "endpoint":
		e := &model.Endpoint{
			Network: model.NetworkName(arg(0)), Workload: model.WorkloadName(arg(1)), Node: model.NodeName(opt("node")),
			ID: model.EndpointID(arg(0) + "/" + opt("node") + "/" + arg(1)), Aliases: list("alias"), NetNS: "/run/netns/" + arg(1),
		}
		for _, s := range list("addr") {
			ip, err := netip.ParseAddr(s)
			if err != nil {
				return c, err
			}
			e.Addrs = append(e.Addrs, ip)
		}
		c.Endpoint = e
	case "vip":
		v := &model.VIP{Service: model.ServiceName(arg(0))}
		for i, to := range []*netip.Addr{&v.V4, &v.V6} {
			var err error
			if *to, err = netip.ParseAddr(arg(i + 1)); err != nil {
				return c, err
			}
		}
		c.VIP = v
	case "check":
		c.Check = &model.Check{Node: model.NodeName(arg(0)), ID: model.CheckID(arg(1)), Status: model.Status(arg(2)), ServiceID: model.ServiceID(opt("of"))}
	case "query":
		q := &model.PreparedQuery{ID: arg(0), Name: opt("name"), Token: opt("token"), DNS: model.QueryDNS{TTL: opt("ttl")}}
		q.Service = model.QueryService{Service: opt("service"), Near: opt("near"), Tags: list("tags"), OnlyPassing: opt("only") != "", Connect: opt("connect") != ""}
		if q.Tmpl.Regexp = opt("regexp"); q.Tmpl.Regexp != "" || opt("template") != "" {
			q.Tmpl.Type = prepared.NamePrefixMatch
		}
		c.Query = q
	case "instance":
		return c, parseInstance(&c, arg, opt, list)
	default:
		return c, fmt.Errorf("unknown fact %q", kind)
	}
	return c, nil
}

// pairs reads "key:value" each.
func pairs(list []string) map[string]string {
	m := map[string]string{}
	for _, kv := range list {
		k, v, _ := strings.Cut(kv, ":")
		m[k] = v
	}
	return m
}

func parseInstance(c *state.Change, arg func(int) string, opt func(string) string, list func(string) []string) error {
	i := &model.Instance{
		Node: model.NodeName(arg(0)), ID: model.ServiceID(arg(1)), Service: model.ServiceName(arg(2)),
		Address: opt("addr"), Tags: list("tags"), Weights: model.DefaultWeights,
	}
	i.Port, _ = strconv.Atoi(opt("port"))
	i.Meta = pairs(list("meta"))
	i.Native = opt("native") != ""
	if i.Proxy.Service = model.ServiceName(opt("proxy")); i.Proxy.Service != "" {
		i.Kind = model.KindConnectProxy
	}
	for k, v := range pairs(list("tagged")) {
		addr, port, _ := strings.Cut(v, "/")
		n, _ := strconv.Atoi(port)
		if i.TaggedAddresses == nil {
			i.TaggedAddresses = map[string]model.ServiceAddress{}
		}
		i.TaggedAddresses[k] = model.ServiceAddress{Address: addr, Port: n}
	}
	if w := opt("weights"); w != "" {
		if _, err := fmt.Sscanf(w, "%d/%d", &i.Weights.Passing, &i.Weights.Warning); err != nil {
			return err
		}
	}
	for _, p := range list("place") {
		f := strings.Split(p, "/")
		if len(f) != 3 {
			return fmt.Errorf("place %q is not network/address/port", p)
		}
		ip, err := netip.ParseAddr(f[1])
		if err != nil {
			return err
		}
		port, err := strconv.ParseUint(f[2], 10, 16)
		if err != nil {
			return err
		}
		i.Places = append(i.Places, model.Place{Network: model.NetworkName(f[0]), Addr: ip, Port: uint16(port)})
	}
	c.Instance = i
	return nil
}

// catalog makes a state out of facts, one a line.
func catalog(facts string) (*state.State, error) {
	var all []state.Change
	for line := range strings.Lines(facts) {
		if strings.TrimSpace(line) == "" {
			continue
		}
		c, err := parseFact(line)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", line, err)
		}
		all = append(all, c)
	}
	st := state.New()
	st.Reset(7, all)
	return st, nil
}
