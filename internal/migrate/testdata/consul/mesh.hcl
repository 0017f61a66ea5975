# An agent of a service mesh, most of which has no counterpart.
datacenter         = "dc1"
primary_datacenter = "dc0"
data_dir           = "/opt/consul"
node_id            = "8f2c7a1e-4b8f-4f5c-9d36-5f6f2ad5f2b1"
connect {
  enabled     = true
  ca_provider = "vault"
  ca_config {
    address = "http://127.0.0.1:8200"
  }
}
ports {
  grpc_tls = 8503
}
config_entries {
  bootstrap = [
    { kind = "proxy-defaults", name = "global" },
  ]
}
retry_join_wan = ["192.0.2.77"]
auto_encrypt {
  tls = true
}
enable_central_service_config = true
default_intention_policy      = "deny"
limits {
  request_limits {
    mode      = "enforcing"
    read_rate = 500
  }
}
leave_on_terminate      = false
skip_leave_on_interrupt = true
disable_update_check    = true
acl {
  default_policy = "deny"
}
service {
  name = "billing"
  port = 7000
  connect { native = true }
  tagged_addresses {
    lan { address = "10.0.0.9" port = 7000 }
  }
  weights { passing = 10 }
}
service {
  name = "billing-proxy"
  kind = "connect-proxy"
  port = 21000
  proxy {
    destination_service_name = "billing"
    upstreams = [{ destination_name = "db", local_bind_port = 5432 }]
  }
}
