package compat

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

func save(t *testing.T, c *api.Client) []byte {
	t.Helper()
	in, meta, err := c.Snapshot().Save(nil)
	must(t, err)
	b, err := io.ReadAll(in)
	must(t, err)
	must(t, in.Close())
	if meta.LastIndex == 0 || !meta.KnownLeader {
		t.Errorf("meta %+v", meta)
	}
	return b
}

// TestSnapshot saves and restores with the client library: what was written since is gone, indexes go on, who waits is woken, and
// what the agent itself has registered stays.
func TestSnapshot(t *testing.T) {
	a := startAgent(t)
	c := a.client()
	session, _, err := c.Session().Create(&api.SessionEntry{Name: "s", TTL: "30s"}, nil)
	must(t, err)
	if ok, _, err := c.KV().Acquire(&api.KVPair{Key: "lock", Value: []byte("mine"), Session: session}, nil); !ok || err != nil {
		t.Fatal(ok, err)
	}
	_, err = c.KV().Put(&api.KVPair{Key: "odd//key\x01%", Value: []byte("old"), Flags: 7}, nil)
	must(t, err)
	_, err = c.Catalog().Register(&api.CatalogRegistration{Node: "outside", Address: "127.0.0.9", Service: &api.AgentService{Service: "db", Port: 5432}}, nil)
	must(t, err)
	must(t, c.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: "before"}))
	archived := save(t, c)

	_, err = c.KV().Put(kv("odd//key\x01%", "new"), nil)
	must(t, err)
	_, err = c.KV().Put(kv("later", "x"), nil)
	must(t, err)
	_, err = c.Session().Destroy(session, nil)
	must(t, err)
	_, err = c.Catalog().Deregister(&api.CatalogDeregistration{Node: "outside"}, nil)
	must(t, err)
	must(t, c.Agent().ServiceDeregister("before"))
	must(t, c.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: "after"}))

	_, before, err := c.KV().Get("odd//key\x01%", nil)
	must(t, err)
	type woken struct {
		pair *api.KVPair
		meta *api.QueryMeta
		err  error
	}
	answer := make(chan woken, 1)
	go func() {
		pair, meta, err := c.KV().Get("odd//key\x01%", &api.QueryOptions{WaitIndex: before.LastIndex, WaitTime: time.Minute})
		answer <- woken{pair, meta, err}
	}()
	must(t, c.Snapshot().Restore(nil, bytes.NewReader(archived)))

	got := <-answer
	must(t, got.err)
	if string(got.pair.Value) != "old" || got.pair.Flags != 7 || got.meta.LastIndex <= before.LastIndex {
		t.Errorf("who waited got %+v at index %d after %d", got.pair, got.meta.LastIndex, before.LastIndex)
	}
	if pair, _, err := c.KV().Get("later", nil); pair != nil || err != nil {
		t.Errorf("a later key: %+v, %v", pair, err)
	}
	pair, _, err := c.KV().Get("lock", nil)
	must(t, err)
	if pair == nil || pair.Session != session || pair.LockIndex != 1 {
		t.Errorf("the lock: %+v", pair)
	}
	if entry, _, err := c.Session().Renew(session, nil); err != nil || entry == nil {
		t.Errorf("the session: %+v, %v", entry, err)
	}
	if ok, _, err := c.KV().Release(&api.KVPair{Key: "lock", Session: session}, nil); !ok || err != nil {
		t.Errorf("releasing the lock: %v, %v", ok, err)
	}
	expectCatalogue(t, c, "after consul db")
	health, _, err := c.Health().Node("n1", nil)
	must(t, err)
	if status := health.AggregatedStatus(); status != api.HealthPassing {
		t.Errorf("the node is %s", status)
	}
}

// expectCatalogue waits for just these services in the catalogue.
func expectCatalogue(t *testing.T, c *api.Client, want string) {
	t.Helper()
	eventually(t, func() error {
		services, _, err := c.Catalog().Services(nil)
		if err != nil {
			return err
		}
		if got := strings.Join(slices.Sorted(maps.Keys(services)), " "); got != want {
			return fmt.Errorf("services %s, want %s", got, want)
		}
		return nil
	})
}

// TestSnapshotElsewhere restores into a cluster built anew, whose node has another name.
func TestSnapshotElsewhere(t *testing.T) {
	const rootSecret = "8f6bf4d5-1c2f-4d0c-9a53-0d9b8a0d8a11"
	a := startAgent(t, "acl=true", "acl-default-policy=deny")
	_, _, err := a.client().ACL().BootstrapWithToken(rootSecret)
	must(t, err)
	root := a.client(rootSecret)
	_, err = root.KV().Put(kv("a", "1"), nil)
	must(t, err)
	must(t, root.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: "web"}))
	reader := tokenFor(t, root, "reader", `key_prefix "" { policy = "read" }`)
	_, _, err = a.client(reader).Snapshot().Save(nil)
	refused(t, err, 403, "Permission denied")
	archived := save(t, root)

	b, other := startACL(t, "node-name=n2")
	refused(t, b.client().Snapshot().Restore(nil, bytes.NewReader(archived)), 403, "Permission denied")
	damaged := bytes.Clone(archived)
	damaged[len(damaged)/2] ^= 0x10
	refused(t, other.Snapshot().Restore(nil, bytes.NewReader(damaged)), 500, "the snapshot is damaged")
	refused(t, other.Snapshot().Restore(nil, strings.NewReader("hello")), 500, "not a snapshot of Fairlead")
	if pair, _, err := other.KV().Get("a", nil); pair != nil || err != nil {
		t.Errorf("after refused restores: %+v, %v", pair, err)
	}
	must(t, other.Snapshot().Restore(nil, bytes.NewReader(archived)))

	// The tokens are those of the archive.
	_, _, err = other.KV().Get("a", nil)
	refused(t, err, 403, "ACL not found")
	if pair, _, err := b.client(reader).KV().Get("a", nil); err != nil || pair == nil || string(pair.Value) != "1" {
		t.Errorf("with a token of the archive: %+v, %v", pair, err)
	}
	// The old node is known, and not taken for alive; the new one is here.
	all := b.client(rootSecret)
	for node, want := range map[string]string{"n1": api.HealthCritical, "n2": api.HealthPassing} {
		checks, _, err := all.Health().Node(node, nil)
		must(t, err)
		if got := checks.AggregatedStatus(); got != want {
			t.Errorf("node %s is %s, want %s", node, got, want)
		}
	}
	expectCatalogue(t, all, "consul web")
}
