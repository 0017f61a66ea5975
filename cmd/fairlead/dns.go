package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"github.com/spf13/cobra"
)

const (
	defaultDNSAddr = "127.0.0.1:8600"
	// dnsTimeout bounds one exchange; names that the agent forwards may take the
	// time of another resolver.
	dnsTimeout = 5 * time.Second
	// dnsPayload is the largest answer over UDP that is asked for: what passes
	// everywhere without fragments (DNS flag day 2020).
	dnsPayload = 1232
)

func dnsCommand(o *options) *cobra.Command {
	c := &cobra.Command{Use: "dns", Short: "Ask the agent's DNS server"}
	c.AddCommand(dnsQuery(o))
	return c
}

func dnsQuery(o *options) *cobra.Command {
	var addr string
	c := &cobra.Command{
		Use:   "query NAME [TYPE]",
		Short: "Look a name up",
		Long: `Asks the agent's DNS server for a name, of type A unless TYPE says otherwise, and
prints the records of the answer. NAME is taken as complete: nothing is appended
to it. It fails if the name does not exist.`,
		Example: `  fairlead dns query web.service.consul
  fairlead dns query web.service.consul SRV
  fairlead dns query web.virtual.consul AAAA`,
		Args: between(1, 2),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return []string{"A", "AAAA", "SRV", "TXT", "PTR", "SOA", "NS", "ANY"}, cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(c *cobra.Command, args []string) error {
			at, source := addr, "--dns-addr"
			if at == "" {
				at, source = cmp.Or(os.Getenv("FAIRLEAD_DNS_ADDR"), defaultDNSAddr), "FAIRLEAD_DNS_ADDR"
			}
			if _, err := netip.ParseAddrPort(at); err != nil {
				return usagef("%s %q: want an address and a port, such as %s", source, at, defaultDNSAddr)
			}
			q, err := question(args)
			if err != nil {
				return err
			}
			return lookUp(c, o, at, q)
		},
	}
	c.Flags().StringVar(&addr, "dns-addr", "", "the DNS server's address (FAIRLEAD_DNS_ADDR; default "+defaultDNSAddr+")")
	return c
}

func question(args []string) (dns.Question, error) {
	q := dns.Question{Name: dns.Fqdn(args[0]), Qtype: dns.TypeA, Qclass: dns.ClassINET}
	if _, ok := dns.IsDomainName(q.Name); !ok || args[0] == "" {
		return q, usagef("%q is not a domain name; want one such as web.service.consul", args[0])
	}
	if len(args) > 1 {
		t, ok := dns.StringToType[strings.ToUpper(args[1])]
		if !ok {
			return q, usagef("type %q: want one such as A, AAAA, SRV, TXT or PTR", args[1])
		}
		q.Qtype = t
	}
	return q, nil
}

func lookUp(c *cobra.Command, o *options, at string, q dns.Question) error {
	ctx, cancel := context.WithTimeout(c.Context(), 2*dnsTimeout)
	defer cancel()
	m := new(dns.Msg)
	m.Id = dns.Id()
	m.RecursionDesired = true
	m.Question = []dns.Question{q}
	m.SetEdns0(dnsPayload, false)
	proto := "udp"
	reply, _, err := (&dns.Client{Net: proto, Timeout: dnsTimeout, UDPSize: dnsPayload}).ExchangeContext(ctx, m, at)
	if err == nil && reply.Truncated {
		proto = "tcp"
		reply, _, err = (&dns.Client{Net: proto, Timeout: dnsTimeout}).ExchangeContext(ctx, m, at)
	}
	if err != nil {
		return dnsFailure(at, err)
	}
	a := answerOf(at, proto, q, reply)
	if err := o.show(c.OutOrStdout(), a, func(w io.Writer) error { return describeAnswer(w, a) }); err != nil {
		return err
	}
	return verdict(q, reply.Rcode, a.Explanation)
}

func dnsFailure(at string, err error) error {
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no DNS server answers at %s (%w); start an agent with 'fairlead agent', or name the address with --dns-addr or FAIRLEAD_DNS_ADDR", at, err)
	case errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("the DNS server at %s did not answer within %s; 'fairlead status' tells whether the agent is well, and --dns-addr names another server", at, dnsTimeout)
	}
	return fmt.Errorf("ask the DNS server at %s: %w", at, err)
}

// dnsAnswer is a reply as -o json and -o yaml show it.
type dnsAnswer struct {
	Name     string `json:"name"`
	Type     string `json:"type"`
	Server   string `json:"server"`
	Protocol string `json:"protocol"`
	Rcode    string `json:"rcode"`
	// Explanation is the text of an extended error (RFC 8914).
	Explanation string      `json:"explanation,omitempty"`
	Authority   bool        `json:"authoritative"`
	Answers     []dnsRecord `json:"answers"`
	Additional  []dnsRecord `json:"additional"`
}

type dnsRecord struct {
	Name string `json:"name"`
	TTL  uint32 `json:"ttl"` // seconds
	Type string `json:"type"`
	Data string `json:"data"`
}

func answerOf(at, proto string, q dns.Question, m *dns.Msg) dnsAnswer {
	return dnsAnswer{
		Name: q.Name, Type: dns.TypeToString[q.Qtype], Server: at, Protocol: proto,
		Rcode: rcodeName(m.Rcode), Explanation: explanation(m), Authority: m.Authoritative,
		Answers: records(m.Answer), Additional: records(m.Extra),
	}
}

func explanation(m *dns.Msg) string {
	opt := m.IsEdns0()
	if opt == nil {
		return ""
	}
	var all []string
	for _, o := range opt.Option {
		if e, ok := o.(*dns.EDNS0_EDE); ok && e.ExtraText != "" {
			all = append(all, plain(e.ExtraText))
		}
	}
	return strings.Join(all, "; ")
}

func rcodeName(code int) string {
	return cmp.Or(dns.RcodeToString[code], fmt.Sprintf("RCODE%d", code))
}

func records(all []dns.RR) []dnsRecord {
	out := []dnsRecord{}
	for _, rr := range all {
		h := rr.Header()
		if h.Rrtype == dns.TypeOPT {
			continue // belongs to the message, not to the answer
		}
		out = append(out, dnsRecord{
			Name: h.Name, TTL: h.Ttl, Type: cmp.Or(dns.TypeToString[h.Rrtype], fmt.Sprintf("TYPE%d", h.Rrtype)),
			Data: strings.TrimPrefix(rr.String(), h.String()),
		})
	}
	return out
}

// describeAnswer prints records the way dig does.
func describeAnswer(w io.Writer, a dnsAnswer) error {
	p := &printer{w: w}
	p.line("; %s %s: %s, %s, from %s over %s", a.Name, a.Type, a.Rcode, counted(len(a.Answers), "record"), a.Server, a.Protocol)
	if a.Explanation != "" {
		p.line("; %s", a.Explanation)
	}
	if p.err != nil {
		return p.err
	}
	rows := func(all []dnsRecord) error {
		if len(all) == 0 {
			return nil
		}
		t := &table{}
		for _, r := range all {
			t.add(r.Name, fmt.Sprint(r.TTL), "IN", r.Type, r.Data)
		}
		return t.write(w)
	}
	if err := rows(a.Answers); err != nil || len(a.Additional) == 0 {
		return err
	}
	p.line("; additional")
	if p.err != nil {
		return p.err
	}
	return rows(a.Additional)
}

// verdict turns what the server says went wrong into what to do about it. The
// server's explanation, if there is one, comes before a guess from the name.
func verdict(q dns.Question, code int, explained string) error {
	name := strings.TrimSuffix(q.Name, ".")
	switch code {
	case dns.RcodeSuccess:
		return nil
	case dns.RcodeNameError:
		return fmt.Errorf("%s does not exist (NXDOMAIN): %s", name, whyMissing(name, explained))
	case dns.RcodeServerFailure:
		return fmt.Errorf("%s could not be looked up (SERVFAIL): %s", name,
			cmp.Or(explained, "names outside the agent's own domains are asked of the resolvers in its resolv-conf, which do not answer"))
	}
	if explained != "" {
		explained = ": " + explained
	}
	return fmt.Errorf("%s was not looked up: the server answered %s%s", name, rcodeName(code), explained)
}

func whyMissing(name, explained string) string {
	labels := strings.Split(strings.ToLower(name), ".")
	for i, l := range labels {
		if i == 0 || i == len(labels)-1 {
			continue
		}
		of := labels[i-1]
		switch l {
		case "service":
			guess := ""
			if rfc2782 := strings.HasPrefix(of, "_"); rfc2782 && i > 1 {
				of = strings.TrimPrefix(labels[i-2], "_")
			} else if i > 1 {
				guess = fmt.Sprintf("no healthy instance of %q has the tag %q", of, strings.Join(labels[:i-1], "."))
			}
			guess = cmp.Or(guess, fmt.Sprintf("no healthy instance of %q is in the catalogue", of))
			return fmt.Sprintf("%s; 'fairlead service inspect %s' shows its instances and their checks", cmp.Or(explained, guess), of)
		case "virtual":
			return cmp.Or(explained, fmt.Sprintf("service %q has no virtual address, since it was never registered; 'fairlead service ls' lists services", of))
		case "node":
			return cmp.Or(explained, fmt.Sprintf("no node is called %q", of))
		}
	}
	if len(labels) == 1 {
		return cmp.Or(explained, fmt.Sprintf("bare names are answered to workloads in a network only; ask for %s.service.consul", name))
	}
	return cmp.Or(explained, "names of services end in .service.consul or .service.internal")
}
