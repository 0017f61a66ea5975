datacenter = "lab"
data_dir   = "/opt/consul"
log_level  = "info"
recursors  = ["192.0.2.1"]
node_meta {
  zone = "a"
  kind = "small"
}
ports {
  http = 8500
}
service {
  name = "cache"
  port = 6379
  check {
    tcp      = "127.0.0.1:6379"
    interval = "10s"
  }
  check {
    name = "heartbeat"
    ttl  = "30s"
  }
}
