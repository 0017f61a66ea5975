// Package connect measures what connecting to a VIP costs against connecting to the instance itself, with 10, 1,000 and 10,000
// services in the maps.
//
// Run it as root with
//
//	go test -bench . -run '^$' ./bench/connect
//
// Two worker processes in the same network namespace take turns: one in a cgroup without our programs, which connects to the server's
// address ("direct"), and one in a cgroup with them, which connects to the server's address ("hooked"), to the VIP of the last service
// ("vip") and to that of a service chosen at random for each connect ("any vip": nothing that a pick reads is in a cache then). The server is in a second namespace behind a veth. Everything lives in a testlab host of its own. Nothing imports
// this package.
package connect
