ports {
  http = 9500
}
service {
  name = "cache"
  id   = "cache-2"
  port = 6380
}
checks = [
  { id = "disk", name = "disk", ttl = "1h" },
  { name = "mem", ttl = "1h", notes = <<EOT
free -m says it
EOT
  },
]
acl = {
  enabled = true
  tokens = {
    default                          = "2f1f6c2e-5f0e-49a4-a9f1-0a6c0a7a3a01"
    config_file_service_registration = "6a0e1fd4-2f77-4f1d-8a61-9b5a7b7c2e55"
  }
}
