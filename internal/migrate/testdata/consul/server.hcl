# The only server of a small site, as its operators wrote it by hand.
datacenter = "fra1"
node_name  = "registry-1"
data_dir   = "/opt/consul"
server           = true
bootstrap_expect = 1

bind_addr   = "10.20.0.5"
client_addr = "0.0.0.0"

addresses {
  dns = "10.20.0.5 127.0.0.1"
}

ports {
  dns   = 53
  https = 8501
  grpc  = 8502
}

encrypt = "pUqJrVyVRj5jsiYEkM/tFQYfWyJIv4s3XkvDwy7Cu5s="

acl {
  enabled        = true
  default_policy = "deny"
  down_policy    = "extend-cache"
  tokens {
    initial_management = "5a1f3c52-3f6c-4a38-8f0e-0c2a7f5c1b11"
    agent              = "b7a8f7a4-7f2f-4c3e-9a0e-58bd9a1d6f10"
    dns                = "1c0cb1b6-6d0c-4c34-8d47-5d6a0dbb1a77"
  }
}

tls {
  defaults {
    ca_file         = "/etc/consul.d/tls/ca.pem"
    cert_file       = "/etc/consul.d/tls/server.pem"
    key_file        = "/etc/consul.d/tls/server-key.pem"
    verify_incoming = true
    verify_outgoing = true
  }
  https {
    verify_incoming = false
  }
  internal_rpc {
    verify_server_hostname = true
  }
}

dns_config {
  only_passing     = true
  node_ttl         = "30s"
  udp_answer_limit = 5
  enable_truncate  = true
  service_ttl {
    "*"     = "5s"
    "batch" = "1m"
  }
  soa {
    min_ttl = 10
  }
}

recursors = ["10.20.0.2", "9.9.9.9"]

limits {
  http_max_conns_per_client = 500
  kv_max_value_size         = 1048576
  txn_max_req_len           = 2097152
  rpc_rate                  = 1000
}

ui_config {
  enabled = true
}

telemetry {
  prometheus_retention_time = "24h"
  disable_hostname          = true
}

performance {
  raft_multiplier = 1
}

autopilot {
  cleanup_dead_servers = true
}

log_level = "WARN"
log_json  = true
