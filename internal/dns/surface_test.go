package dns

import (
	"strings"
	"testing"

	miekg "github.com/miekg/dns"
)

const surfaceFacts = `
node n1 127.0.0.1 lan_ipv6=::1 meta=rack:a
node n2 127.0.0.2
network net-a node=n1 pool=127.9.0.0/24
endpoint net-a box node=n1 addr=127.9.0.2
instance n1 web-1 web port=8080 addr=127.0.0.11 tags=v1 meta=zone:a
instance n2 web-2 web port=8081 tags=v2
instance n1 px web-proxy port=21000 addr=127.0.0.12 proxy=web
instance n1 sick-1 sick port=1
instance n1 mail-1 mail port=25 addr=mx.example.com
check n1 c critical of=sick-1
vip web 240.0.0.1 fdff::1
query q1 name=find-web service=web tags=v1
query q2 name=any- service=${name.suffix} template=1
`

// TestSurface asks for every kind of name, over UDP and TCP, as clients do.
func TestSurface(t *testing.T) {
	outside := startResolver(t, says("192.0.2.25"))
	s := startOn(t, surfaceFacts, Config{AltDomain: "example.net", Recursors: []string{outside.at}})
	for _, tt := range []struct {
		name, qtype string
		rcode       string
		want        string // records of the answer, sorted by nothing: each has to be there
	}{
		{"web.service.consul", "A", "NOERROR", "A 127.0.0.11;A 127.0.0.2"},
		{"web.service.consul", "AAAA", "NOERROR", ""},
		{"web.service.consul", "SRV", "NOERROR", "SRV 1 1 8080 7f00000b.addr.dc1.consul.;SRV 1 1 8081 n2.node.dc1.consul."},
		{"web.service.consul", "ANY", "NOERROR", "A 127.0.0.11;SRV 1 1 8081 n2.node.dc1.consul."},
		{"web.service.consul", "TXT", "NOERROR", `TXT "zone=a"`},
		{"web.service.consul", "HTTPS", "NOERROR", ""},
		{"web.service.dc1.consul", "A", "NOERROR", "A 127.0.0.11"},
		{"web.service.dc1.dc.consul", "A", "NOERROR", "A 127.0.0.11"},
		{"web.service.dc2.consul", "A", "NXDOMAIN", ""},
		{"web.service.example.net", "SRV", "NOERROR", "SRV 1 1 8081 n2.node.dc1.example.net."},
		{"web.service.internal", "A", "NOERROR", "A 127.0.0.2"},
		{"v1.web.service.consul", "A", "NOERROR", "A 127.0.0.11"},
		{"v3.web.service.consul", "A", "NXDOMAIN", ""},
		{"_web._tcp.service.consul", "SRV", "NOERROR", "SRV 1 1 8080 7f00000b.addr.dc1.consul.;SRV 1 1 8081 n2.node.dc1.consul."},
		{"_web._v2.service.dc1.consul", "SRV", "NOERROR", "SRV 1 1 8081 n2.node.dc1.consul."},
		{"wEb.SerVIce.coNSul", "A", "NOERROR", "A 127.0.0.11"},
		{"sick.service.consul", "A", "NXDOMAIN", ""},
		{"nosuch.service.consul", "A", "NXDOMAIN", ""},
		{"n1.node.consul", "A", "NOERROR", "A 127.0.0.1"},
		{"n1.node.dc1.consul", "AAAA", "NOERROR", "AAAA ::1"},
		{"n1.node.consul", "TXT", "NOERROR", `TXT "rack=a"`},
		{"n9.node.consul", "A", "NXDOMAIN", ""},
		{"find-web.query.consul", "SRV", "NOERROR", "SRV 1 1 8080 7f00000b.addr.dc1.consul."},
		{"_find-web._tcp.query.dc1.consul", "SRV", "NOERROR", "SRV 1 1 8080 7f00000b.addr.dc1.consul."},
		{"any-web.query.consul", "A", "NOERROR", "A 127.0.0.11;A 127.0.0.2"},
		{"nosuch.query.consul", "A", "NXDOMAIN", ""},
		{"web.connect.consul", "SRV", "NOERROR", "SRV 1 1 21000 7f00000c.addr.dc1.consul."},
		{"web.virtual.consul", "A", "NOERROR", "A 240.0.0.1"},
		{"web.ingress.consul", "A", "NXDOMAIN", ""},
		{"7f00000b.addr.dc1.consul", "A", "NOERROR", "A 127.0.0.11"},
		{"zz00000b.addr.dc1.consul", "A", "NXDOMAIN", ""},
		{"1.0.0.127.in-addr.arpa", "PTR", "NOERROR", "PTR n1.node.dc1.consul."},
		{"11.0.0.127.in-addr.arpa", "PTR", "NOERROR", "PTR web.service.dc1.consul."},
		{"2.0.9.127.in-addr.arpa", "PTR", "NOERROR", "PTR box.net-a.internal."},
		{"3.0.9.127.in-addr.arpa", "PTR", "NXDOMAIN", ""},
		{"consul", "SOA", "NOERROR", "SOA ns.consul. hostmaster.consul. 7 3600 600 86400 0"},
		{"consul", "NS", "NOERROR", "NS ns.consul."},
		{"example.net", "NS", "NOERROR", "NS ns.example.net."},
		{"mail.service.consul", "A", "NOERROR", "CNAME mx.example.com.;A 192.0.2.25"},
		{"www.example.com", "A", "NOERROR", "A 192.0.2.25"},
	} {
		for _, network := range []string{"udp", "tcp"} {
			m := query(t, network, s.at, miekg.Fqdn(tt.name), miekg.StringToType[tt.qtype])
			var got []string
			for _, rr := range m.Answer {
				got = append(got, miekg.TypeToString[rr.Header().Rrtype]+" "+strings.TrimPrefix(rr.String(), rr.Header().String()))
			}
			text := strings.Join(got, ";")
			ok := miekg.RcodeToString[m.Rcode] == tt.rcode && (tt.want != "") == (len(got) > 0)
			for _, w := range strings.Split(tt.want, ";") {
				ok = ok && strings.Contains(text, w)
			}
			if !ok || m.Question[0].Name != miekg.Fqdn(tt.name) || !m.RecursionAvailable {
				t.Errorf("%s %s over %s: %s %q, want %s %q", tt.name, tt.qtype, network, miekg.RcodeToString[m.Rcode], text, tt.rcode, tt.want)
			}
			// A negative answer says how long it holds.
			if len(got) == 0 && (len(m.Ns) != 1 || m.Ns[0].Header().Rrtype != miekg.TypeSOA) {
				t.Errorf("%s %s over %s: no SOA: %v", tt.name, tt.qtype, network, m.Ns)
			}
		}
	}
}
