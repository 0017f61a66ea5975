// Package store is the servers' replicated log: an embedded etcd, the layout of
// its keys, the encoding of its records, and the one watch that turns what was
// committed into state.
//
// Only registry calls Commit, and only store changes state on a server. A Store
// is safe for use by many goroutines; it owns every goroutine it starts, and Run
// returns when they are gone. See DESIGN.md in this folder for how a batch is
// proposed, repeated and read back.
package store
