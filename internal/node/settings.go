package node

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// Config is everything an agent can be told. Each field is one setting: its tag's name makes the flag (--http-addr),
// the variable (FAIRLEAD_HTTP_ADDR) and the key in the file (http_addr); `default` and `doc` make the reference.
type Config struct {
	Dev          bool   `setting:"dev" doc:"keep everything in memory, for trying things out; nothing survives a restart"`
	RegistryOnly bool   `setting:"registry-only" doc:"be registry, DNS and API only: no networks, no workloads, no balancing in the kernel; needs no root"`
	DataDir      string `setting:"data-dir" default:"/var/lib/fairlead" doc:"directory of the registry and of this node's registrations"`
	RunDir       string `setting:"run-dir" default:"/run/fairlead" doc:"directory of what lives until the next boot: workloads and changed sysctls"`
	ServicesDir  string `setting:"services-dir" doc:"directory of service and check definitions (*.json, *.hcl, *.yaml), read at the start and at a reload"`

	NodeName  string `setting:"node-name" doc:"name of this node (default: the host's name)"`
	NodeMeta  string `setting:"node-meta" doc:"meta data of this node: key=value, separated by commas"`
	Advertise string `setting:"advertise" doc:"address of this node in the catalogue (default: that of the interface with the default route, or 127.0.0.1)"`
	Site      string `setting:"site" default:"dc1" doc:"name of the site (Consul's datacenter)"`

	ClusterAddr string `setting:"cluster-addr" doc:"address at which this node is one of several: servers listen there for other nodes, and at port 2380 for each other (default: none, the host is alone; with 'fairlead up' advertise and port 8300)"`
	Servers     string `setting:"servers" doc:"addresses of servers to look for beside those that are known, IP or IP:port, separated by commas"`

	HTTPAddr          string `setting:"http-addr" default:"127.0.0.1:8500" doc:"address of the HTTP API"`
	HTTPSAddr         string `setting:"https-addr" doc:"address of the HTTP API over TLS, usually port 8501 (default: none)"`
	TLSCertFile       string `setting:"tls-cert-file" doc:"file in PEM form of the API's certificate and what signed it; read again at a reload"`
	TLSKeyFile        string `setting:"tls-key-file" doc:"file in PEM form of the certificate's private key"`
	TLSCAFile         string `setting:"tls-ca-file" doc:"file in PEM form of the authorities that sign clients' certificates"`
	TLSVerifyIncoming bool   `setting:"tls-verify-incoming" doc:"take only clients with a certificate signed by tls-ca-file over TLS"`
	HTTPMaxConns      int    `setting:"http-max-conns-per-client" default:"0" doc:"connections that one address may hold to the HTTP API; 0 is no limit"`
	HTTPRateLimit     int    `setting:"http-rate-limit" default:"0" doc:"requests a second that one address may send to the HTTP API; 0 is no limit"`
	KVMaxValueSize    int    `setting:"kv-max-value-size" default:"524288" doc:"largest value of a key, in bytes"`
	TxnMaxReqSize     int    `setting:"txn-max-req-size" default:"524288" doc:"largest body of a transaction, in bytes"`

	DNSAddr           string        `setting:"dns-addr" default:"127.0.0.1:8600" doc:"address of the DNS server, beside each network's gateway"`
	Domain            string        `setting:"domain" default:"consul" doc:"domain in DNS of services and nodes"`
	AltDomain         string        `setting:"alt-domain" doc:"second DNS domain of the same names (default: none)"`
	Recursors         string        `setting:"recursors" doc:"resolvers for names that are not ours, separated by commas: address or address:port (default: those of resolv-conf)"`
	ResolvConf        string        `setting:"resolv-conf" default:"/etc/resolv.conf" doc:"file that names the resolvers for names that are not ours"`
	DNSOnlyPassing    bool          `setting:"dns-only-passing" doc:"leave instances that warn out of DNS answers, too"`
	DNSNodeTTL        time.Duration `setting:"dns-node-ttl" default:"0s" doc:"time to live of nodes' names"`
	DNSServiceTTL     string        `setting:"dns-service-ttl" doc:"times to live of services' names: service=duration, separated by commas; * is any, web* is a prefix (default: 0s)"`
	DNSNegativeTTL    time.Duration `setting:"dns-negative-ttl" default:"0s" doc:"how long a resolver may remember that a name is not there"`
	DNSMaxStale       time.Duration `setting:"dns-max-stale" default:"87600h" doc:"how long names are answered from what is known while no server can be reached; 0 is no limit"`
	DNSUDPAnswerLimit int           `setting:"dns-udp-answer-limit" default:"0" doc:"records in an answer over UDP without EDNS; 0 is no limit but the size"`
	DNSARecordLimit   int           `setting:"dns-a-record-limit" default:"0" doc:"address records in any answer; 0 is no limit"`

	ACL                       bool   `setting:"acl" doc:"ask for tokens: what a request may do is what its token allows"`
	ACLDefaultPolicy          string `setting:"acl-default-policy" default:"allow" doc:"what is not said by any rule: allow or deny"`
	ACLInitialManagementToken string `setting:"acl-initial-management-token" doc:"secret of a token that may do everything, made at the first start"`
	ACLAgentToken             string `setting:"acl-agent-token" doc:"secret of the token of the agent's own work; taken for Consul's sake: none of that work takes a token here"`
	ACLDefaultToken           string `setting:"acl-default-token" doc:"secret of the token of requests that bring none (default: the anonymous token)"`
	ACLDNSToken               string `setting:"acl-dns-token" doc:"secret of the token of DNS questions (default: the default token)"`

	ScriptChecks  string        `setting:"script-checks" default:"off" doc:"who may register checks that run commands: off (nobody), local (definition files) or on (everybody who may register)"`
	SessionTTLMin time.Duration `setting:"session-ttl-min" default:"10s" doc:"shortest TTL of a session"`
	LeafTTL       time.Duration `setting:"leaf-ttl" default:"72h" doc:"how long a certificate of a service is good for"`

	Cgroup    string `setting:"cgroup" doc:"cgroup v2 directory that the balancer's programs attach to; callers and workloads live below it (default: the root of the hierarchy)"`
	BPFFS     string `setting:"bpffs" default:"/sys/fs/bpf" doc:"bpf file system that keeps programs and maps while no agent runs; mounted if it is not"`
	VIPPool   string `setting:"vip-pool" default:"240.0.0.0/4" doc:"IPv4 addresses that services' virtual addresses come from"`
	VIPPool6  string `setting:"vip-pool6" doc:"IPv6 prefix of virtual addresses, a /64 (default: a ULA made from the site's name)"`
	LogLevel  string `setting:"log-level" default:"info" doc:"least severe messages to log: debug, info, warn or error"`
	LogFormat string `setting:"log-format" default:"text" doc:"form of the log: text or json"`
}

// Setting is one thing that can be set, for flags and for the reference page.
type Setting struct {
	Name, Env, Key string
	Default, Doc   string
	Bool           bool
	index          int
}

// set gives the setting its value; the error says what would be one.
func (s Setting) set(c *Config, value string) error {
	f := reflect.ValueOf(c).Elem().Field(s.index)
	switch f.Interface().(type) {
	case bool:
		b, err := strconv.ParseBool(cmp.Or(value, "false"))
		if err != nil {
			return errors.New("want true or false")
		}
		f.SetBool(b)
	case int:
		n, err := strconv.Atoi(value)
		if err != nil || n < 0 {
			return errors.New("want a number that is not negative")
		}
		f.SetInt(int64(n))
	case time.Duration:
		d, err := time.ParseDuration(value)
		if err != nil || d < 0 {
			return errors.New("want a duration that is not negative, such as 10s or 5m")
		}
		f.SetInt(int64(d))
	default:
		f.SetString(value)
	}
	return nil
}

// Value is what a configuration has for the setting, as text.
func (s Setting) Value(c Config) string {
	return fmt.Sprint(reflect.ValueOf(c).Field(s.index).Interface())
}

// Settings lists every setting in the order of Config's fields.
func Settings() []Setting {
	var all []Setting
	t := reflect.TypeFor[Config]()
	for i := range t.NumField() {
		f := t.Field(i)
		name, ok := f.Tag.Lookup("setting")
		if !ok {
			continue
		}
		all = append(all, Setting{
			Name: name, Env: "FAIRLEAD_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_")),
			Key: strings.ReplaceAll(name, "-", "_"), Default: f.Tag.Get("default"), Doc: f.Tag.Get("doc"),
			Bool: f.Type.Kind() == reflect.Bool, index: i,
		})
	}
	return all
}
