data_dir = "/opt/consul"
