package compat

import "testing"

func TestARegistryOnlyAgentKeepsItsDataOverARestart(t *testing.T) {
	a := startAgent(t, "dev=false")
	c := a.client()
	if _, err := c.KV().Put(kv("a/b", "1"), nil); err != nil {
		t.Fatal(err)
	}
	a = a.restart()
	got, _, err := a.client().KV().Get("a/b", nil)
	if err != nil || got == nil || string(got.Value) != "1" {
		t.Errorf("after a restart: %v, %v", got, err)
	}
}
