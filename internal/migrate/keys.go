package migrate

// shape is what a key of Consul's agent configuration holds.
type shape int

const (
	text shape = iota
	number
	boolean
	duration
	words    // a list of texts
	table    // texts by name
	block    // keys of its own, listed behind it
	anything // what is in it does not matter, since all of it is dropped
)

// key is one key of Consul's agent configuration. One without why is honoured,
// by translate.go or because it asks for what is so anyway.
type key struct {
	path  string
	shape shape
	// why it cannot be honoured and what to do about it.
	why, do string
	// unless is the value that asks for what is so anyway.
	unless string
}

// What several keys have in common.
const (
	gossip     = "agents do not gossip"
	noRaft     = "the store is etcd, which has no such setting"
	laterHosts = "a site has one agent as yet"
	noMesh     = "there is no service mesh"
	enterprise = "it belongs to Consul Enterprise"
	ownLog     = "the log goes to the standard error"
	servedAs   = "the API is always served with its defaults"

	nothing  = "nothing"
	whenMany = "nothing; keep the addresses for when hosts are joined"
	journal  = "let systemd's journal or a pipe keep it"
)

// keys are all keys of Consul 1.21, as far as they matter: of a block whose
// whole content is dropped only the block.
var keys = []key{
	{path: "acl", shape: block},
	{path: "acl.enabled", shape: boolean},
	{path: "acl.default_policy"},
	{path: "acl.down_policy", why: "tokens are resolved from this server's own data", do: nothing, unless: "extend-cache"},
	{path: "acl.enable_key_list_policy", shape: boolean, why: listWhy, do: listDo, unless: "false"},
	{path: "acl.enable_token_persistence", shape: boolean, why: "tokens set by the API are not kept over a restart", do: "put them into the configuration", unless: "false"},
	{path: "acl.enable_token_replication", shape: boolean, why: laterHosts, do: nothing, unless: "false"},
	{path: "acl.msp_disable_bootstrap", shape: boolean, why: enterprise, do: nothing, unless: "false"},
	{path: "acl.policy_ttl", shape: duration, why: "changed rules count at once", do: nothing},
	{path: "acl.role_ttl", shape: duration, why: "changed rules count at once", do: nothing},
	{path: "acl.token_ttl", shape: duration, why: "changed rules count at once", do: nothing},
	{path: "acl.tokens", shape: block},
	{path: "acl.tokens.agent"},
	{path: "acl.tokens.agent_master", why: "there is no token for when no server answers", do: "use the initial management token"},
	{path: "acl.tokens.agent_recovery", why: "there is no token for when no server answers", do: "use the initial management token"},
	{path: "acl.tokens.config_file_service_registration"},
	{path: "acl.tokens.default"},
	{path: "acl.tokens.dns"},
	{path: "acl.tokens.initial_management"},
	{path: "acl.tokens.managed_service_provider", shape: anything, why: enterprise, do: nothing},
	{path: "acl.tokens.master"},
	{path: "acl.tokens.replication", why: laterHosts, do: nothing},
	{path: "acl_agent_master_token", why: "there is no token for when no server answers", do: "use the initial management token"},
	{path: "acl_agent_token"},
	{path: "acl_datacenter"},
	{path: "acl_default_policy"},
	{path: "acl_down_policy", why: "tokens are resolved from this server's own data", do: nothing, unless: "extend-cache"},
	{path: "acl_enable_key_list_policy", shape: boolean, why: listWhy, do: listDo, unless: "false"},
	{path: "acl_master_token"},
	{path: "acl_replication_token", why: laterHosts, do: nothing},
	{path: "acl_token"},
	{path: "acl_ttl", shape: duration, why: "changed rules count at once", do: nothing},
	{path: "enable_acl_replication", shape: boolean, why: laterHosts, do: nothing, unless: "false"},

	{path: "addresses", shape: block},
	{path: "addresses.dns"},
	{path: "addresses.grpc", why: noMesh, do: nothing},
	{path: "addresses.grpc_tls", why: noMesh, do: nothing},
	{path: "addresses.http"},
	{path: "addresses.https"},
	{path: "advertise_addr"},
	{path: "advertise_addr_ipv4"},
	{path: "advertise_addr_ipv6"},
	{path: "advertise_addr_wan", why: "there is one site", do: nothing},
	{path: "advertise_addr_wan_ipv4", why: "there is one site", do: nothing},
	{path: "advertise_addr_wan_ipv6", why: "there is one site", do: nothing},
	{path: "advertise_reconnect_timeout", shape: duration, why: gossip, do: nothing},
	{path: "bind_addr"},
	{path: "client_addr"},
	{path: "ports", shape: block},
	{path: "ports.dns", shape: number},
	{path: "ports.expose_max_port", shape: number, why: noMesh, do: nothing},
	{path: "ports.expose_min_port", shape: number, why: noMesh, do: nothing},
	{path: "ports.grpc", shape: number, why: noMesh, do: nothing, unless: "-1"},
	{path: "ports.grpc_tls", shape: number, why: noMesh, do: nothing, unless: "-1"},
	{path: "ports.http", shape: number},
	{path: "ports.https", shape: number},
	{path: "ports.serf_lan", shape: number, why: gossip, do: "close it in the firewall"},
	{path: "ports.serf_wan", shape: number, why: gossip, do: "close it in the firewall", unless: "-1"},
	{path: "ports.server", shape: number, why: "agents do not speak Consul's RPC", do: "close it in the firewall"},
	{path: "ports.sidecar_max_port", shape: number, why: noMesh, do: nothing},
	{path: "ports.sidecar_min_port", shape: number, why: noMesh, do: nothing},
	{path: "serf_lan", why: gossip, do: nothing},
	{path: "serf_lan_allowed_cidrs", shape: words, why: gossip, do: nothing},
	{path: "serf_wan", why: gossip, do: nothing},
	{path: "serf_wan_allowed_cidrs", shape: words, why: gossip, do: nothing},
	{path: "tagged_addresses", shape: table, why: "a node has the address that it advertises", do: "set advertise"},
	{path: "translate_wan_addrs", shape: boolean, why: "there is one site", do: nothing, unless: "false"},
	{path: "unix_sockets", shape: anything, why: "the API is not served at a Unix socket", do: "use a port of 127.0.0.1"},

	{path: "alt_domain"},
	{path: "dns_config", shape: block},
	{path: "dns_config.a_record_limit", shape: number},
	{path: "dns_config.allow_stale", shape: boolean, why: "every agent answers from its own copy", do: nothing, unless: "true"},
	{path: "dns_config.cache_max_age", shape: duration, why: "every agent answers from its own copy", do: nothing},
	{path: "dns_config.disable_compression", shape: boolean, why: "answers are always compressed", do: "update the resolver that cannot read them", unless: "false"},
	{path: "dns_config.enable_additional_node_meta_txt", shape: boolean},
	{path: "dns_config.enable_truncate", shape: boolean, why: "an answer that was cut is always marked", do: "let port 53 through for TCP too", unless: "true"},
	{path: "dns_config.max_stale", shape: duration, why: "every agent answers from its own copy", do: nothing},
	{path: "dns_config.node_ttl", shape: duration},
	{path: "dns_config.only_passing", shape: boolean},
	{path: "dns_config.prefer_namespace", shape: boolean, why: enterprise, do: nothing, unless: "false"},
	{path: "dns_config.recursor_strategy", why: "recursors are asked in their order", do: "write them in the order that you want", unless: "sequential"},
	{path: "dns_config.recursor_timeout", shape: duration, why: "the time for a recursor is fixed", do: nothing},
	{path: "dns_config.service_ttl", shape: table},
	{path: "dns_config.soa", shape: block},
	{path: "dns_config.soa.expire", shape: number, why: "it matters to secondary servers only, which a site's domain has none of", do: nothing},
	{path: "dns_config.soa.min_ttl", shape: number},
	{path: "dns_config.soa.refresh", shape: number, why: "it matters to secondary servers only, which a site's domain has none of", do: nothing},
	{path: "dns_config.soa.retry", shape: number, why: "it matters to secondary servers only, which a site's domain has none of", do: nothing},
	{path: "dns_config.udp_answer_limit", shape: number},
	{path: "dns_config.use_cache", shape: boolean, why: "every agent answers from its own copy", do: nothing, unless: "false"},
	{path: "domain"},
	{path: "recursors", shape: words},

	{path: "data_dir", why: "it holds Consul's own data, in Consul's format", do: "keep it for the way back; 'fairlead import consul' copies what is in it into a new one"},
	{path: "datacenter"},
	{path: "disable_host_node_id", shape: boolean},
	{path: "node_id", why: "the id is a file in the data directory", do: "before the first start, write the id to the file node-id in data_dir"},
	{path: "node_meta", shape: table},
	{path: "node_name"},
	{path: "primary_datacenter"},
	{path: "server", shape: boolean, why: "every agent holds the registry as yet", do: "import the data of the site's Consul", unless: "true"},
	{path: "server_name", why: gossip, do: nothing},

	{path: "bootstrap", shape: boolean},
	{path: "bootstrap_expect", shape: number, why: laterHosts, do: nothing, unless: "1"},
	{path: "primary_gateways", shape: words, why: noMesh, do: nothing},
	{path: "primary_gateways_interval", shape: duration, why: noMesh, do: nothing},
	{path: "reconnect_timeout", shape: duration, why: gossip, do: nothing},
	{path: "reconnect_timeout_wan", shape: duration, why: gossip, do: nothing},
	{path: "rejoin_after_leave", shape: boolean},
	{path: "retry_interval", shape: duration, why: laterHosts, do: nothing},
	{path: "retry_interval_wan", shape: duration, why: "there is one site", do: nothing},
	{path: "retry_join", shape: words, why: laterHosts, do: whenMany},
	{path: "retry_join_wan", shape: words, why: "there is one site", do: nothing},
	{path: "retry_max", shape: number, why: laterHosts, do: nothing},
	{path: "retry_max_wan", shape: number, why: "there is one site", do: nothing},
	{path: "start_join", shape: words, why: laterHosts, do: whenMany},
	{path: "start_join_wan", shape: words, why: "there is one site", do: nothing},

	{path: "ca_file"},
	{path: "ca_path"},
	{path: "cert_file"},
	{path: "key_file"},
	{path: "tls", shape: block},
	{path: "tls.defaults", shape: block},
	{path: "tls.defaults.ca_file"},
	{path: "tls.defaults.ca_path"},
	{path: "tls.defaults.cert_file"},
	{path: "tls.defaults.key_file"},
	{path: "tls.defaults.tls_cipher_suites", why: cipherWhy, do: nothing},
	{path: "tls.defaults.tls_min_version"},
	{path: "tls.defaults.verify_incoming", shape: boolean},
	{path: "tls.defaults.verify_outgoing", shape: boolean},
	{path: "tls.defaults.verify_server_hostname", shape: boolean},
	{path: "tls.grpc", shape: anything, why: noMesh, do: nothing},
	{path: "tls.https", shape: block},
	{path: "tls.https.ca_file"},
	{path: "tls.https.ca_path"},
	{path: "tls.https.cert_file"},
	{path: "tls.https.key_file"},
	{path: "tls.https.tls_cipher_suites", why: cipherWhy, do: nothing},
	{path: "tls.https.tls_min_version"},
	{path: "tls.https.verify_incoming", shape: boolean},
	{path: "tls.https.verify_outgoing", shape: boolean},
	{path: "tls.internal_rpc", shape: anything, why: "agents do not speak Consul's RPC", do: nothing},
	{path: "tls_cipher_suites", why: cipherWhy, do: nothing},
	{path: "tls_min_version"},
	{path: "tls_prefer_server_cipher_suites", shape: boolean, why: cipherWhy, do: nothing, unless: "true"},
	{path: "verify_incoming", shape: boolean},
	{path: "verify_incoming_https", shape: boolean},
	{path: "verify_incoming_rpc", shape: boolean, why: "agents do not speak Consul's RPC", do: nothing, unless: "false"},
	{path: "verify_outgoing", shape: boolean},
	{path: "verify_server_hostname", shape: boolean},
	{path: "auto_config", shape: anything, why: "an agent is given its configuration", do: "write it to the file"},
	{path: "auto_encrypt", shape: anything, why: "agents do not speak Consul's RPC", do: "set tls_cert_file and tls_key_file for the API over TLS"},
	{path: "enable_agent_tls_for_checks", shape: boolean, why: "checks present no certificate", do: "let the checked address do without one", unless: "false"},

	{path: "check", shape: anything},
	{path: "checks", shape: anything},
	{path: "check_output_max_size", shape: number, why: "an output may have 4096 bytes unless its check says otherwise", do: "set output_max_size in the checks", unless: "4096"},
	{path: "check_update_interval", shape: duration, why: "an output that alone changed reaches the catalogue after 5m", do: nothing, unless: "5m0s"},
	{path: "discard_check_output", shape: boolean, why: "outputs are kept", do: "set output_max_size in the checks", unless: "false"},
	{path: "enable_local_script_checks", shape: boolean},
	{path: "enable_script_checks", shape: boolean},
	{path: "service", shape: anything},
	{path: "services", shape: anything},
	{path: "enable_central_service_config", shape: boolean, why: "there are no config entries", do: "say it in the services", unless: "false"},
	{path: "config_entries", shape: anything, why: "there are no config entries", do: "say it in the services"},
	{path: "session_ttl_min", shape: duration},
	{path: "watches", shape: anything, why: "an agent starts no handlers", do: "run 'fairlead kv watch' or consul-template beside it"},

	{path: "http_config", shape: block},
	{path: "http_config.allow_write_http_from", shape: words, why: "who may write is said by tokens", do: "turn on acl, or bind http_addr to 127.0.0.1"},
	{path: "http_config.block_endpoints", shape: words, why: "what may be asked is said by tokens", do: "turn on acl"},
	{path: "http_config.max_header_bytes", shape: number, why: servedAs, do: nothing},
	{path: "http_config.response_headers", shape: table, why: servedAs, do: "add headers in a proxy before it"},
	{path: "http_config.use_cache", shape: boolean},
	{path: "limits", shape: block},
	{path: "limits.http_max_conns_per_client", shape: number},
	{path: "limits.https_handshake_timeout", shape: duration, why: servedAs, do: nothing},
	{path: "limits.kv_max_value_size", shape: number},
	{path: "limits.request_limits", shape: anything, why: "what is limited is one client's requests, not all of them", do: "set http_rate_limit"},
	{path: "limits.rpc_client_timeout", shape: duration, why: "agents do not speak Consul's RPC", do: nothing},
	{path: "limits.rpc_handshake_timeout", shape: duration, why: "agents do not speak Consul's RPC", do: nothing},
	{path: "limits.rpc_max_burst", shape: number, why: "agents do not speak Consul's RPC", do: nothing},
	{path: "limits.rpc_max_conns_per_client", shape: number, why: "agents do not speak Consul's RPC", do: nothing},
	{path: "limits.rpc_rate", shape: number, why: "agents do not speak Consul's RPC", do: nothing},
	{path: "limits.txn_max_req_len", shape: number},
	{path: "default_query_time", shape: duration, why: servedAs, do: nothing, unless: "5m0s"},
	{path: "max_query_time", shape: duration, why: servedAs, do: nothing, unless: "10m0s"},
	{path: "disable_http_unprintable_char_filter", shape: boolean},
	{path: "discovery_max_stale", shape: duration, why: "every agent answers from its own copy", do: nothing, unless: "0s"},
	{path: "enable_debug", shape: boolean, why: "profiles are not served", do: nothing, unless: "false"},

	{path: "enable_syslog", shape: boolean, why: ownLog, do: journal, unless: "false"},
	{path: "log_file", why: ownLog, do: journal},
	{path: "log_json", shape: boolean},
	{path: "log_level"},
	{path: "log_rotate_bytes", shape: number, why: ownLog, do: journal},
	{path: "log_rotate_duration", shape: duration, why: ownLog, do: journal},
	{path: "log_rotate_max_files", shape: number, why: ownLog, do: journal},
	{path: "pid_file", why: "the agent runs in the foreground", do: "let systemd keep track of it"},
	{path: "syslog_facility", why: ownLog, do: journal},

	{path: "leave_on_terminate", shape: boolean, why: "an agent that ends leaves its services registered and their checks to its next start", do: "'fairlead down' removes what it made; deregister services first", unless: "false"},
	{path: "skip_leave_on_interrupt", shape: boolean, why: "an agent that ends leaves its services registered and their checks to its next start", do: "'fairlead down' removes what it made; deregister services first", unless: "true"},

	{path: "connect", shape: block},
	{path: "connect.ca_config", shape: anything, why: "the certificate authority is built in", do: nothing},
	{path: "connect.ca_provider", why: "the certificate authority is built in", do: nothing, unless: "consul"},
	{path: "connect.enable_mesh_gateway_wan_federation", shape: boolean, why: noMesh, do: nothing, unless: "false"},
	{path: "connect.enable_serverless_plugin", shape: boolean, why: noMesh, do: nothing, unless: "false"},
	{path: "connect.enabled", shape: boolean},
	{path: "connect.test_ca_leaf_root_change_spread", shape: duration},
	{path: "default_intention_policy", why: noMesh, do: nothing},
	{path: "peering", shape: anything, why: "there is no peering of sites", do: nothing},
	{path: "xds", shape: anything, why: noMesh, do: nothing},

	{path: "encrypt", why: gossip, do: "nothing; keep the key for the way back"},
	{path: "encrypt_verify_incoming", shape: boolean, why: gossip, do: nothing, unless: "true"},
	{path: "encrypt_verify_outgoing", shape: boolean, why: gossip, do: nothing, unless: "true"},
	{path: "disable_keyring_file", shape: boolean},
	{path: "gossip_lan", shape: anything, why: gossip, do: nothing},
	{path: "gossip_wan", shape: anything, why: gossip, do: nothing},
	{path: "protocol", shape: number, why: gossip, do: nothing},

	{path: "autopilot", shape: anything, why: laterHosts, do: nothing},
	{path: "cache", shape: anything, why: "every agent answers from its own copy", do: nothing},
	{path: "performance", shape: anything, why: noRaft, do: nothing},
	{path: "raft_boltdb", shape: anything, why: noRaft, do: nothing},
	{path: "raft_logstore", shape: anything, why: noRaft, do: nothing},
	{path: "raft_prevote_disabled", shape: boolean, why: noRaft, do: nothing},
	{path: "raft_protocol", shape: number, why: noRaft, do: nothing},
	{path: "raft_snapshot_interval", shape: duration, why: noRaft, do: nothing},
	{path: "raft_snapshot_threshold", shape: number, why: noRaft, do: nothing},
	{path: "raft_trailing_logs", shape: number, why: noRaft, do: nothing},
	{path: "rpc", shape: anything, why: "agents do not speak Consul's RPC", do: nothing},
	{path: "use_streaming_backend", shape: boolean},

	{path: "auto_reload_config", shape: boolean, why: "files are read again when they are told to be", do: "send SIGHUP or PUT /v1/agent/reload after a change", unless: "false"},
	{path: "telemetry", shape: anything, why: "nothing is sent; metrics are read", do: "let Prometheus read /metrics of the API"},
	{path: "ui", shape: boolean, why: "there is no user interface in the browser", do: "use 'fairlead service ls' and 'fairlead kv ls'", unless: "false"},
	{path: "ui_config", shape: anything, why: "there is no user interface in the browser", do: "use 'fairlead service ls' and 'fairlead kv ls'"},
	{path: "ui_content_path", why: "there is no user interface in the browser", do: nothing},
	{path: "ui_dir", why: "there is no user interface in the browser", do: nothing},

	{path: "disable_anonymous_signature", shape: boolean},
	{path: "disable_coordinates", shape: boolean},
	{path: "disable_remote_exec", shape: boolean, why: "there is no remote execution", do: "use ssh", unless: "true"},
	{path: "disable_update_check", shape: boolean},
	{path: "experiments", shape: words, why: "they are Consul's own", do: nothing},
	{path: "locality", shape: anything, why: "a node has no place in the world", do: "say it in node_meta"},
	{path: "cloud", shape: anything, why: "it is a service of HashiCorp's", do: nothing},
	{path: "reporting", shape: anything, why: "nothing is reported to anybody", do: nothing},

	{path: "acl_enforce_version_8", shape: boolean},
	{path: "audit", shape: anything, why: enterprise, do: nothing},
	{path: "license_path", why: enterprise, do: nothing},
	{path: "non_voting_server", shape: boolean, why: enterprise, do: nothing, unless: "false"},
	{path: "partition", why: enterprise, do: nothing, unless: "default"},
	{path: "read_replica", shape: boolean, why: enterprise, do: nothing, unless: "false"},
	{path: "segment", why: enterprise, do: nothing},
	{path: "segments", shape: anything, why: enterprise, do: nothing},
	{path: "snapshot_agent", shape: anything, why: enterprise, do: "save snapshots with a timer"},
}

const (
	listWhy = "a list of keys has those that the token may read, whether or not it may list"
	listDo  = "give tokens that must not see names no right to read them"
)

const cipherWhy = "Go chooses the cipher suites of TLS 1.2 and 1.3"
