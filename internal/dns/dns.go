// Package dns answers names: services, nodes, virtual addresses and the
// endpoints of networks from the node's own snapshot, everything else by asking
// other resolvers, whose answers it remembers.
//
// The answer itself is a pure function of (snapshot, question, asker); see
// zones.answer. Server puts listeners around it. package node makes the one
// Server, package endpoint opens and closes its listeners on the networks'
// gateways. Every exported method may be called from any goroutine; a question
// takes no lock that a writer of the state could hold.
package dns

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	miekg "github.com/miekg/dns"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/prepared"
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
	// Domain is the zone answered for, beside internal.; empty means consul.
	Domain string
	// AltDomain is a second zone with the same names; empty: none.
	AltDomain string
	// Foreign are zones inside our own that belong to somebody else: names in
	// them that are not ours are forwarded. "*" stands for any one label. Nil
	// means DefaultForeign.
	Foreign []string
	// Node is this node's name.
	Node model.NodeName
	// Site is the only datacenter that exists here; empty means dc1.
	Site string
	// Recursors answer what is not ours, tried in this order: "addr" or
	// "addr:port". When empty, they are read from ResolvConf.
	Recursors []string
	// ResolvConf is the path of a resolv.conf(5), read again whenever it
	// changes. Empty with no Recursors: nothing is forwarded.
	ResolvConf string
	// RecursorTimeout bounds one attempt to get an answer from one of them; 0
	// means 2 s.
	RecursorTimeout time.Duration
	// CacheSize bounds the memory of their answers, in bytes; 0 means
	// DefaultCacheSize, less means that none is kept.
	CacheSize int
	// NodeTTL is the TTL of nodes' names and NegativeTTL that of negative
	// answers, in whole seconds. The zero value, 0 s, is Consul's: an instance
	// that left must not be cached.
	NodeTTL, NegativeTTL time.Duration
	// ServiceTTL are the TTLs of services' names: "web" is a service, "web*" all
	// that begin so, the longest counting, "*" all others.
	ServiceTTL map[string]time.Duration
	// OnlyPassing leaves out instances that warn, too.
	OnlyPassing bool
	// UDPAnswerLimit bounds the records of an answer over UDP to askers without
	// EDNS, ARecordLimit the addresses of a service in any answer; 0: no limit but
	// the size.
	UDPAnswerLimit, ARecordLimit int
	// StaleFor says for how long no server has been in contact; 0 while one is.
	// Nil means that one always is. What is answered meanwhile is marked.
	StaleFor func() time.Duration
	// MaxStale bounds how old answers may be without contact; 0: no bound.
	MaxStale time.Duration
	// Authorizer is that of everybody who asks; nil allows everything.
	Authorizer func() acl.Authorizer
	// Resolve says what the token stored with a prepared query may do; nil means
	// that ACLs are off.
	Resolve func(secret string) (acl.Authorizer, error)
	// Log takes what goes wrong; nil discards it.
	Log *slog.Logger
}

// DefaultForeign are the zones below internal. that clouds answer inside their
// virtual machines (instance names, the metadata service).
var DefaultForeign = []string{
	"google.internal.", "c.*.internal.", // Google Cloud
	"ec2.internal.", "compute.internal.", // AWS
}

// The zones that are there without being asked for.
const (
	defaultDomain  = "consul."
	internalDomain = "internal."
)

// kinds are the labels that say what a name in our zones is a name of.
var kinds = []string{"service", "node", "virtual", "addr", "query", "connect", "ingress"}

// newZones reads the part of the configuration that answers depend on.
func newZones(cfg Config) (*zones, error) {
	z := &zones{
		node:        cfg.Node,
		site:        strings.ToLower(cfg.Site),
		nodeTTL:     seconds(cfg.NodeTTL),
		negTTL:      seconds(cfg.NegativeTTL),
		serviceTTL:  map[string]uint32{},
		onlyPassing: cfg.OnlyPassing,
		aLimit:      cfg.ARecordLimit,
	}
	if z.site == "" {
		z.site = "dc1"
	}
	for _, d := range []struct{ setting, name string }{{"domain", cmp.Or(cfg.Domain, defaultDomain)}, {"alt-domain", cfg.AltDomain}, {"", internalDomain}} {
		c := miekg.CanonicalName(d.name)
		if d.name == "" || slices.Contains(z.domains, c) {
			continue
		}
		if _, ok := miekg.IsDomainName(c); !ok || c == "." || strings.HasPrefix(c, ".") {
			return nil, fmt.Errorf("%s %q is not a domain name", d.setting, d.name)
		}
		z.domains = append(z.domains, c)
	}
	for name, ttl := range cfg.ServiceTTL {
		if i := strings.IndexByte(name, '*'); i >= 0 && i < len(name)-1 {
			return nil, fmt.Errorf("dns-service-ttl %q has a * before its end; it can only stand for what follows", name)
		}
		z.serviceTTL[strings.ToLower(name)] = seconds(ttl)
	}
	foreign := cfg.Foreign
	if foreign == nil {
		foreign = DefaultForeign
	}
	for _, d := range foreign {
		z.foreign = append(z.foreign, miekg.SplitDomainName(miekg.CanonicalName(d)))
	}
	z.queries = prepared.New(prepared.Config{Node: cfg.Node, Datacenter: z.site, Resolve: cfg.Resolve, Shuffle: z.mix})
	return z, nil
}

// ttlOf is the TTL of a service's names.
func (z *zones) ttlOf(service model.ServiceName) uint32 {
	if len(z.serviceTTL) == 0 {
		return 0
	}
	name := strings.ToLower(string(service))
	if ttl, ok := z.serviceTTL[name]; ok {
		return ttl
	}
	for n := len(name); n >= 0; n-- {
		if ttl, ok := z.serviceTTL[name[:n]+"*"]; ok {
			return ttl
		}
	}
	return 0
}

// seconds is d as a TTL, within what RFC 2181 allows.
func seconds(d time.Duration) uint32 {
	return uint32(min(max(d/time.Second, 0), 1<<31-1))
}

// parseRecursor reads "addr", "addr:port" or "[addr]:port".
func parseRecursor(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return netip.AddrPortFrom(a.Unmap(), 53), nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil || ap.Port() == 0 {
		return netip.AddrPort{}, fmt.Errorf("recursor %q is not an IP address, with or without a port", s)
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
