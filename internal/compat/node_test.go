package compat

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestNodeClient runs a script with the npm package consul.
func TestNodeClient(t *testing.T) {
	a := startAgent(t)
	_, port, _ := strings.Cut(a.http, ":")
	script, err := filepath.Abs("testdata/node/client.mjs")
	must(t, err)
	home := clientProgram(t, "node")
	// A module is looked for beside the script, so the script goes where the package is.
	copied := filepath.Join(home, "client.mjs")
	copyFile(t, script, copied)
	compareLines(t, run(t, home, "node", copied, port), `
leader 127.0.0.1:8300 ["127.0.0.1:8300"]
critical 0
watched [0,1]
catalog ["api","consul"] 9000
nodes ["n1"] ["dc1"]
checks [["service:api-1","passing"]]
kv true red ["node/colour"]
cas false none
lock true true
renew job 1
release true
sessions 0
txn 1
event deploy 1
query 1
maintenance 0
gone []
empty not found
`)
}
