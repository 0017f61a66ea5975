// Package attach measures what attaching an endpoint costs, 50 in a row, against the reference CNI plugin `bridge` with host-local IPAM.
//
// Run it as root with
//
//	go test -bench . -run '^$' ./bench/attach
//
// A worker process in a testlab host takes turns: one attach through the agent's own path (endpoint, the registry on etcd with fsync,
// netdrv, the eBPF data path), for IPv4 alone and for both families, and one ADD of the plugin for IPv4, each to a namespace of its own.
// Then it detaches all and looks for what is left. Everything lives in that host. The plugin is Debian's containernetworking-plugins;
// without it only our own figures are printed. Nothing imports this package.
package attach
