package migrate

import (
	"cmp"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// translation collects our settings while it goes through what was read.
type translation struct {
	*tree
	settings []Setting
	comments []string
	notes    []Note
	files    []File
}

func (t *translation) set(key, value string) {
	t.settings = append(t.settings, Setting{key, value})
}

func (t *translation) note(key string, at Pos, why, do string) {
	t.notes = append(t.notes, Note{Key: key, Pos: at, Why: why, Do: do})
}

// as sets one of our settings to what was said by the first of some keys.
func (t *translation) as(ours string, paths ...string) {
	if p, _, ok := t.said(paths...); ok {
		t.set(ours, p.text)
	}
}

// whenTrue sets one of our settings if one of some keys says true.
func (t *translation) whenTrue(ours string, paths ...string) {
	if t.isTrue(paths...) {
		t.set(ours, "true")
	}
}

// label is what our agent takes for the name of a node or a site.
var label = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)

func (t *translation) identity() {
	for _, n := range []struct{ path, ours string }{{"node_name", "node_name"}, {"datacenter", "site"}} {
		p, path, ok := t.said(n.path)
		switch {
		case !ok:
		case !label.MatchString(p.text):
			t.note(path, p.pos, quoted(p.text)+" is no name in DNS", "choose 1 to 63 letters, digits and inner hyphens for "+n.ours)
		default:
			t.set(n.ours, p.text)
		}
	}
	if p, path, ok := t.said("primary_datacenter"); ok && p.text != t.plain["datacenter"].text {
		t.note(path, p.pos, "there is one site, and it is its own", nothing)
	}
	var meta []string
	for _, k := range slices.Sorted(maps.Keys(t.tables["node_meta"])) {
		p := t.tables["node_meta"][k]
		if strings.ContainsAny(k, ",=") || strings.Contains(p.text, ",") || strings.TrimSpace(p.text) != p.text {
			t.note("node_meta."+k, p.pos, "node_meta separates its pairs with commas", "write the value without a comma")
			continue
		}
		meta = append(meta, k+"="+p.text)
	}
	if meta != nil {
		t.set("node_meta", strings.Join(meta, ","))
	}
	var others []string
	for _, path := range []string{"retry_join", "start_join"} {
		for _, p := range t.lists[path] {
			others = append(others, p.text)
		}
	}
	if others != nil {
		t.comments = append(t.comments, "Consul joined "+onOneLine(strings.Join(others, ", "))+"; joining comes later.")
	}
}

// onOneLine is a text as a comment can have it.
func onOneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(s, " "))
}

// addresses translates what is listened at, and what is told to others.
func (t *translation) addresses() {
	t.listen("http_addr", "http", "8500", true)
	t.listen("https_addr", "https", "", false)
	t.listen("dns_addr", "dns", "8600", true)
	p, path, ok := t.said("advertise_addr", "advertise_addr_ipv4", "advertise_addr_ipv6", "bind_addr")
	if !ok {
		return
	}
	a, err := netip.ParseAddr(strings.Trim(p.text, "[]"))
	switch {
	case strings.Contains(p.text, "{{"):
		t.note(path, p.pos, "address templates are not run", "set advertise to what 'consul members' shows for this node")
	case err != nil:
		t.note(path, p.pos, quoted(p.text)+" is no IP address", "set advertise to one")
	case a.IsUnspecified(): // the same as not saying it
	default:
		t.set("advertise", a.String())
	}
}

// listen translates one of the ports with its addresses; standing is what Consul
// takes for a port that is not said, if it listens at all.
func (t *translation) listen(ours, name, standing string, always bool) {
	port, portPath, portSaid := t.said("ports." + name)
	hosts, hostPath, hostSaid := t.said("addresses."+name, "client_addr")
	if !portSaid && (!hostSaid || !always) {
		return
	}
	number := cmp.Or(port.text, standing)
	if strings.HasPrefix(number, "-") || number == "0" {
		if always {
			t.note(portPath, port.pos, "it cannot be turned off", "bind it to 127.0.0.1, or close it in the firewall")
		}
		return
	}
	host := "127.0.0.1"
	if hostSaid {
		var ok bool
		if host, ok = t.host(ours, hostPath, hosts, number); !ok {
			return
		}
	}
	t.set(ours, net.JoinHostPort(host, number))
}

// host chooses from the addresses that Consul would listen at: we have one.
func (t *translation) host(ours, path string, said plain, port string) (string, bool) {
	if strings.Contains(said.text, "{{") {
		t.note(path, said.pos, "address templates are not run", "set "+ours+" to the address and "+port)
		return "", false
	}
	var usable, other []string
	for _, s := range strings.Fields(said.text) {
		if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
			usable = append(usable, a.String())
		} else {
			other = append(other, s)
		}
	}
	for _, s := range other {
		why := quoted(s) + " is no IP address"
		if strings.HasPrefix(s, "unix:") {
			why = "the API is not served at a Unix socket"
		}
		t.note(path, said.pos, why, "let clients use "+ours)
	}
	if len(usable) == 0 {
		return "", false
	}
	if len(usable) > 1 {
		t.note(path, said.pos, "there is one address for it; the first was taken", "set "+ours+" to 0.0.0.0:"+port+" for all of them")
	}
	return usable[0], true
}

func (t *translation) dns() {
	for _, path := range []string{"domain", "alt_domain"} {
		if p, _, ok := t.said(path); ok {
			t.set(path, strings.Trim(p.text, "."))
		}
	}
	var servers []string
	for _, p := range t.lists["recursors"] {
		a, err := netip.ParseAddr(strings.Trim(p.text, "[]"))
		ap, err2 := netip.ParseAddrPort(p.text)
		switch {
		case err == nil:
			servers = append(servers, a.String())
		case err2 == nil:
			servers = append(servers, ap.String())
		default:
			t.note("recursors", p.pos, quoted(p.text)+" is no IP address", "add the address to recursors")
		}
	}
	if servers != nil {
		t.set("recursors", strings.Join(servers, ","))
	}
	t.whenTrue("dns_only_passing", "dns_config.only_passing")
	t.as("dns_node_ttl", "dns_config.node_ttl")
	t.serviceTTL()
	if p, _, ok := t.said("dns_config.soa.min_ttl"); ok {
		t.set("dns_negative_ttl", p.text+"s")
	}
	t.as("dns_udp_answer_limit", "dns_config.udp_answer_limit")
	t.as("dns_a_record_limit", "dns_config.a_record_limit")
}

// serviceTTL writes the TTLs of services' names as one list.
func (t *translation) serviceTTL() {
	const path = "dns_config.service_ttl"
	var ttls []string
	for _, name := range slices.Sorted(maps.Keys(t.tables[path])) {
		p := t.tables[path][name]
		d, err := time.ParseDuration(p.text)
		if err != nil || d < 0 || strings.ContainsAny(name, ",=") {
			t.note(path+"."+name, p.pos, quoted(p.text)+" is no duration", "write it such as 10s in dns_service_ttl")
			continue
		}
		ttls = append(ttls, name+"="+d.String())
	}
	if ttls != nil {
		t.set("dns_service_ttl", strings.Join(ttls, ","))
	}
}

func (t *translation) acl() {
	on := t.isTrue("acl.enabled")
	if _, _, said := t.said("acl.enabled"); !said {
		_, _, on = t.said("acl_datacenter") // what turned it on before there was a block
	}
	if on {
		t.set("acl", "true")
	}
	if p, path, ok := t.said("acl.default_policy", "acl_default_policy"); ok {
		if p.text == "allow" || p.text == "deny" {
			t.set("acl_default_policy", p.text)
		} else {
			t.note(path, p.pos, quoted(p.text)+" is no default policy", "set acl_default_policy to allow or deny")
		}
	}
	t.as("acl_initial_management_token", "acl.tokens.initial_management", "acl.tokens.master", "acl_master_token")
	t.as("acl_agent_token", "acl.tokens.agent", "acl_agent_token")
	t.as("acl_default_token", "acl.tokens.default", "acl_token")
	t.as("acl_dns_token", "acl.tokens.dns")
}

// tls translates the files of the API over TLS. What Consul's agents speak among
// each other has no counterpart.
func (t *translation) tls() {
	file := func(name string) (plain, string, bool) {
		return t.said("tls.https."+name, "tls.defaults."+name, name)
	}
	if !t.listens("https_addr") {
		for _, name := range []string{"cert_file", "ca_file", "ca_path"} {
			if p, path, ok := file(name); ok {
				t.note(path, p.pos, "without ports.https they were for agents among each other", "set https_addr, tls_cert_file and tls_key_file to serve the API over TLS")
				return
			}
		}
		return
	}
	for _, name := range []string{"cert_file", "key_file", "ca_file"} {
		if p, _, ok := file(name); ok {
			t.set("tls_"+name, p.text)
		}
	}
	verify := t.isTrue("tls.https.verify_incoming", "tls.defaults.verify_incoming", "verify_incoming", "verify_incoming_https") ||
		t.isTrue("verify_incoming_https")
	if verify {
		t.set("tls_verify_incoming", "true")
	}
	if p, path, ok := file("ca_path"); ok {
		t.note(path, p.pos, "the authorities are read from one file", "write them to one, as with cat, and set tls_ca_file")
	}
	if p, path, ok := file("tls_min_version"); ok && !slices.Contains([]string{"tls10", "tls11", "tls12", "TLSv1_0", "TLSv1_1", "TLSv1_2", "TLS_AUTO"}, p.text) {
		t.note(path, p.pos, "TLS 1.2 is taken too", nothing)
	}
	if _, _, ok := file("cert_file"); !ok {
		p, path, _ := t.said("ports.https")
		t.note(path, p.pos, "there is no certificate for it", "set tls_cert_file and tls_key_file")
	}
}

func (t *translation) listens(ours string) bool {
	return slices.ContainsFunc(t.settings, func(s Setting) bool { return s.Key == ours })
}

func (t *translation) checks() {
	switch {
	case t.isTrue("enable_script_checks"):
		t.set("script_checks", "on")
	case t.isTrue("enable_local_script_checks"):
		t.set("script_checks", "local")
	}
	t.as("session_ttl_min", "session_ttl_min")
}

func (t *translation) limits() {
	t.as("http_max_conns_per_client", "limits.http_max_conns_per_client")
	t.as("kv_max_value_size", "limits.kv_max_value_size")
	t.as("txn_max_req_size", "limits.txn_max_req_len")
}

// logLevels are Consul's names of levels, which it takes in any case.
var logLevels = map[string]string{
	"trace": "debug", "debug": "debug", "info": "info", "warn": "warn", "warning": "warn", "err": "error", "error": "error",
}

func (t *translation) log() {
	if p, path, ok := t.said("log_level"); ok {
		if level, known := logLevels[strings.ToLower(p.text)]; known {
			t.set("log_level", level)
		} else {
			t.note(path, p.pos, quoted(p.text)+" is no level", "set log_level to debug, info, warn or error")
		}
	}
	if t.isTrue("log_json") {
		t.set("log_format", "json")
	}
}

func quoted(s string) string { return strconv.Quote(s) }
