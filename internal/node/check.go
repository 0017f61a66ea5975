package node

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fairlead-net/fairlead/internal/rpc"
)

var label = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)

// check lists everything that is wrong with the values, which come from sources.
func (c *Config) check(sources map[string]string) []error {
	var errs []error
	bad := func(setting, value, want string) {
		errs = append(errs, fmt.Errorf("%s %q: want %s (from %s)", setting, value, want, sources[setting]))
	}
	for name, value := range map[string]string{"http-addr": c.HTTPAddr, "dns-addr": c.DNSAddr, "https-addr": c.HTTPSAddr} {
		if name == "https-addr" && value == "" {
			continue
		}
		if host, port, err := net.SplitHostPort(value); err != nil || net.ParseIP(host) == nil || !isPort(port) {
			bad(name, value, "an IP address and a port, such as 127.0.0.1:8500")
		}
	}
	if c.ClusterAddr != "" {
		if _, err := c.clusterAddr(); err != nil || c.Dev {
			bad("cluster-addr", c.ClusterAddr, "an IP address and a port, such as 10.0.0.1:8300, and no dev with it")
		}
	}
	if _, err := rpc.ParsePeers(c.Servers); err != nil {
		bad("servers", c.Servers, "IP addresses, each with a port or without, separated by commas")
	}
	if !label.MatchString(c.NodeName) {
		bad("node-name", c.NodeName, "1 to 63 letters, digits and inner hyphens, since it is answered by DNS")
	}
	if !label.MatchString(c.Site) {
		bad("site", c.Site, "1 to 63 letters, digits and inner hyphens, since it is answered by DNS")
	}
	if _, err := netip.ParseAddr(c.Advertise); err != nil {
		bad("advertise", c.Advertise, "an IP address")
	}
	if p, err := netip.ParsePrefix(c.VIPPool); err != nil || !p.Addr().Is4() || p.Bits() > 24 || p != p.Masked() {
		bad("vip-pool", c.VIPPool, "an IPv4 prefix of at most 24 bits, such as 240.0.0.0/4")
	}
	if p, err := netip.ParsePrefix(c.VIPPool6); err != nil || !p.Addr().Is6() || p.Bits() != 64 || p != p.Masked() {
		bad("vip-pool6", c.VIPPool6, "an IPv6 prefix of 64 bits")
	}
	if c.Cgroup != "" && !filepath.IsAbs(c.Cgroup) {
		bad("cgroup", c.Cgroup, "an absolute path below a cgroup v2 mount")
	}
	for name, value := range map[string]string{"data-dir": c.DataDir, "run-dir": c.RunDir, "bpffs": c.BPFFS} {
		if !filepath.IsAbs(value) {
			bad(name, value, "an absolute path")
		}
	}
	for _, choice := range []struct {
		setting, value string
		of             []string
	}{
		{"log-level", c.LogLevel, []string{"debug", "info", "warn", "error"}},
		{"log-format", c.LogFormat, []string{"text", "json"}},
		{"acl-default-policy", c.ACLDefaultPolicy, []string{"allow", "deny"}},
		{"script-checks", c.ScriptChecks, []string{"off", "local", "on"}},
	} {
		if !slices.Contains(choice.of, choice.value) {
			last := len(choice.of) - 1
			bad(choice.setting, choice.value, strings.Join(choice.of[:last], ", ")+" or "+choice.of[last])
		}
	}
	c.checkTLS(bad)
	c.checkNames(bad)
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errs
}

// checkTLS checks what HTTPS needs.
func (c *Config) checkTLS(bad func(setting, value, want string)) {
	if c.HTTPSAddr != "" && (c.TLSCertFile == "" || c.TLSKeyFile == "") {
		bad("https-addr", c.HTTPSAddr, "tls-cert-file and tls-key-file with it")
	}
	if c.TLSVerifyIncoming && c.TLSCAFile == "" {
		bad("tls-verify-incoming", "true", "tls-ca-file with it")
	}
}

// checkNames checks what DNS answers with and from, and what is written as lists.
func (c *Config) checkNames(bad func(setting, value, want string)) {
	for name, value := range map[string]string{"domain": c.Domain, "alt-domain": c.AltDomain} {
		if name == "alt-domain" && value == "" {
			continue
		}
		for l := range strings.SplitSeq(strings.TrimSuffix(value, "."), ".") {
			if !label.MatchString(l) {
				bad(name, value, "a DNS name, such as consul or svc.example.com")
				break
			}
		}
	}
	if _, err := c.nodeMeta(); err != nil {
		bad("node-meta", c.NodeMeta, "key=value, separated by commas")
	}
	if _, err := c.serviceTTLs(); err != nil {
		bad("dns-service-ttl", c.DNSServiceTTL, "service=duration, separated by commas, such as web=10s,*=5s")
	}
	if _, err := c.recursors(); err != nil {
		bad("recursors", c.Recursors, "IP addresses, each with a port or without, separated by commas")
	}
}

// nodeMeta is node-meta as a map.
func (c *Config) nodeMeta() (map[string]string, error) { return pairs(c.NodeMeta) }

// serviceTTLs is dns-service-ttl as a map.
func (c *Config) serviceTTLs() (map[string]time.Duration, error) {
	texts, err := pairs(c.DNSServiceTTL)
	if err != nil {
		return nil, err
	}
	ttls := map[string]time.Duration{}
	for service, text := range texts {
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 {
			return nil, fmt.Errorf("%q is no duration", text)
		}
		ttls[service] = d
	}
	return ttls, nil
}

// recursors are the addresses in recursors, with their ports.
func (c *Config) recursors() ([]string, error) {
	var all []string
	for _, r := range list(c.Recursors) {
		if a, err := netip.ParseAddr(r); err == nil {
			all = append(all, netip.AddrPortFrom(a, 53).String())
			continue
		}
		a, err := netip.ParseAddrPort(r)
		if err != nil {
			return nil, err
		}
		all = append(all, a.String())
	}
	return all, nil
}

// list is a setting's text taken apart at the commas.
func list(text string) []string {
	var all []string
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part != "" {
			all = append(all, part)
		}
	}
	return all
}

// pairs is a list of key=value as a map.
func pairs(text string) (map[string]string, error) {
	all := map[string]string{}
	for _, part := range list(text) {
		k, v, ok := strings.Cut(part, "=")
		if k = strings.TrimSpace(k); !ok || k == "" {
			return nil, fmt.Errorf("%q is not key=value", part)
		}
		all[k] = strings.TrimSpace(v)
	}
	return all, nil
}

func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n <= 65535
}
