package compat

import (
	"strings"
	"testing"
)

// TestPatroniKeepsOneLeader runs what Patroni does, with Debian's python3-consul.
func TestPatroniKeepsOneLeader(t *testing.T) {
	a := startAgent(t)
	_, port, _ := strings.Cut(a.http, ":")
	compareLines(t, run(t, ".", "/usr/bin/python3", "testdata/patroni.py", port), `
self True
check nope: refused 500 Missing check 'nope' registration
renew True
renew of the dead: NotFound
initialize True False
leader True False
again True
cluster [('initialize', False), ('leader', True), ('members/one', True), ('members/two', False)] True
config True False
config cas True False
destroy True
woken True True
failover True
members ['config', 'initialize', 'leader', 'members/two']
delete cas False True
service True
services ['batman/two']
delete all True None
`)
}

// compareLines compares what a script printed with what it should have.
func compareLines(t *testing.T, got, want string) {
	t.Helper()
	g, w := strings.Split(strings.TrimSpace(got), "\n"), strings.Split(strings.TrimSpace(want), "\n")
	for i := range max(len(g), len(w)) {
		if i >= len(g) || i >= len(w) || g[i] != w[i] {
			t.Fatalf("line %d differs; got:\n%s\nwant:\n%s", i+1, got, want)
		}
	}
}
