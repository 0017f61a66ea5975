// Package dns answers names: services, nodes, virtual addresses and the
// endpoints of networks from the node's own snapshot, everything else by asking
// the host's resolvers.
//
// The answer itself is a pure function of (snapshot, question, asker); see
// zones.answer. Server puts listeners around it. package node makes the one
// Server, package endpoint opens and closes its listeners on the networks'
// gateways. Every exported method may be called from any goroutine; a question
// takes no lock that a writer of the state could hold.
package dns

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	miekg "github.com/miekg/dns"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// ErrNotRunning is returned by Listen while Run is not running: nobody would own
// the listener.
var ErrNotRunning = errors.New("the DNS server is not running")

// Reader is where answers come from.
type Reader interface {
	// Snapshot is the current catalogue. It must not block.
	Snapshot() *state.Snapshot
}

// Config is what a Server is made of. The zero value of each field but Addr and
// Node has a meaning.
type Config struct {
	// Addr is the main address, "host:port", UDP and TCP. Port 0 picks one; see
	// Server.Addr.
	Addr string
	// Domains are the zones answered for; nil means consul. and internal.
	Domains []string
	// Foreign are zones inside Domains that belong to somebody else: names in
	// them that are not ours are forwarded. "*" stands for any one label. Nil
	// means DefaultForeign.
	Foreign []string
	// Node is this node's name.
	Node model.NodeName
	// Site is the only datacenter that exists here; empty means dc1.
	Site string
	// Forwarders answer what is not ours, tried in this order: "addr" or
	// "addr:port". When empty, they are read from ResolvConf.
	Forwarders []string
	// ResolvConf is the path of a resolv.conf(5), read again whenever it
	// changes. Empty with no Forwarders: nothing is forwarded.
	ResolvConf string
	// TTL of positive and NegativeTTL of negative answers, in whole seconds. The
	// zero value, 0 s, is Consul's: an instance that left must not be cached.
	TTL, NegativeTTL time.Duration
	// Log takes what goes wrong; nil discards it.
	Log *slog.Logger
}

// DefaultForeign are the zones below internal. that clouds answer inside their
// virtual machines (instance names, the metadata service).
var DefaultForeign = []string{
	"google.internal.", "c.*.internal.", // Google Cloud
	"ec2.internal.", "compute.internal.", // AWS
}

// kinds are the labels that say what a name in our zones is a name of.
var kinds = []string{"service", "node", "virtual", "addr"}

// newZones reads the part of the configuration that answers depend on.
func newZones(cfg Config) (*zones, error) {
	z := &zones{
		node:   cfg.Node,
		site:   strings.ToLower(cfg.Site),
		ttl:    seconds(cfg.TTL),
		negTTL: seconds(cfg.NegativeTTL),
	}
	if z.site == "" {
		z.site = "dc1"
	}
	domains := cfg.Domains
	if domains == nil {
		domains = []string{"consul.", "internal."}
	}
	for _, d := range domains {
		c := miekg.CanonicalName(d)
		if _, ok := miekg.IsDomainName(c); !ok || c == "." {
			return nil, fmt.Errorf("domain %q is not a domain name", d)
		}
		z.domains = append(z.domains, c)
	}
	if len(z.domains) == 0 {
		return nil, errors.New("no domain to answer for")
	}
	foreign := cfg.Foreign
	if foreign == nil {
		foreign = DefaultForeign
	}
	for _, d := range foreign {
		z.foreign = append(z.foreign, miekg.SplitDomainName(miekg.CanonicalName(d)))
	}
	return z, nil
}

// seconds is d as a TTL, within what RFC 2181 allows.
func seconds(d time.Duration) uint32 {
	return uint32(min(max(d/time.Second, 0), 1<<31-1))
}

// parseForwarder reads "addr", "addr:port" or "[addr]:port".
func parseForwarder(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return netip.AddrPortFrom(a.Unmap(), 53), nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil || ap.Port() == 0 {
		return netip.AddrPort{}, fmt.Errorf("forwarder %q is not an IP address, with or without a port", s)
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
}

// addrPort is the address behind one of package net's, the zero AddrPort if it
// is of no kind that a DNS listener has.
func addrPort(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.UDPAddr:
		ap = a.AddrPort()
	case *net.TCPAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
