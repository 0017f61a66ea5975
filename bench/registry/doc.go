// Command registry measures a Consul-compatible server: key/value, registration, catalogue and health over HTTP, names over DNS,
// blocking queries, memory and start, with the CPU time that the server spent for each operation.
//
// From the repository's root,
//
//	make bench-registry                             # Fairlead, beside Consul's figures as they were recorded elsewhere
//	make bench-registry BENCHFLAGS=--quick          # about a minute, coarser
//	go run ./bench/registry --rows kv-put,health    # some rows (--rows help names them)
//
// builds the agent, starts it registry-only with fsync on in a directory on a disk, and prints the table. Peers are put in the same
// table, one window after the other in turns, with
//
//	go run ./bench/registry --target consul,http://127.0.0.1:8500,127.0.0.1:8600,PID
//
// and one server alone is measured with --http URL --dns ADDR --pid PID [--name NAME]. The caller starts peers and ends them; what was
// written to them is removed again. Consul's client limit of 200 connections is not met: connections come from several loopback addresses.
//
// Client and server share the machine's cores, so the client is one thread with epoll, requests made beforehand and no allocation for an
// operation. Rates move by a quarter between hours; CPU for an operation is the steadiest figure. A figure is the median over --repeat
// windows. Only loopback addresses are accepted. Nothing imports this package.
package main
