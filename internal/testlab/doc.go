// Package testlab builds small networks of hosts for tests: each host is a network namespace with its own mount and UTS
// namespace, its own BPF file system and its own control group, and hosts are joined only to each other. Nothing in a lab has
// a route to the machine's uplink, and the machine's own network namespace gets no link, address, route or packet filter.
//
// Tests call it; no other code may. A Lab and everything made from it may be used from several goroutines, but the
// methods that end a test (every one that returns no error) belong on the test's own goroutine, as with testing.TB.
//
// What a lab makes is named fl-<four hex digits>-<host>. At the end of the test the lab stops what it started, removes what
// it made and then fails the test for everything it had to remove that the test should have removed itself: living
// processes, pinned BPF objects, mounts, control groups, links. A lab whose process died is removed by the next one.
package testlab
