# Every way to say an address.
bind_addr           = "0.0.0.0"
advertise_addr_ipv4 = "198.51.100.7"
advertise_addr_wan  = "203.0.113.9"
client_addr         = "127.0.0.1 ::1"
addresses {
  https = "{{ GetInterfaceIP \"eth0\" }}"
  grpc  = "127.0.0.1"
}
ports {
  http     = 8500
  https    = 8501
  dns      = -1
  serf_wan = -1
  server   = 8300
}
domain     = "example.internal"
alt_domain = "consul"
recursors  = ["dns.example.com", "[2001:db8::53]:53", "2001:db8::54"]
dns_config {
  allow_stale       = false
  max_stale         = "10s"
  recursor_strategy = "random"
  service_ttl {
    web = "soon"
    api = "10s"
  }
}
http_config {
  response_headers {
    Access-Control-Allow-Origin = "*"
  }
  allow_write_http_from = ["127.0.0.0/8"]
}
tls {
  defaults {
    ca_path = "/etc/ssl/consul"
  }
  https {
    tls_min_version = "TLSv1_3"
  }
}
