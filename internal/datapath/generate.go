package datapath

// Both paths of the C library's architecture headers are given, so that either architecture generates the same object; a directory
// that is missing is ignored. The instruction set v3 (Linux 5.12) has the atomic exchange.

//go:generate go tool bpf2go -target bpfel -type frontend_key -type frontend -type slot -type peer_key -type peer -type pick -type settings connect bpf/connect.c -- -O2 -g -mcpu=v3 -Wall -Wextra -Werror -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu
//go:generate go tool bpf2go -target bpfel -type veth_entry -type endpoint_key -type endpoint_entry -type mac_key veth bpf/veth.c -- -O2 -g -mcpu=v3 -Wall -Wextra -Werror -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu
