package compat

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

func TestKVMethods(t *testing.T) {
	store := startAgent(t).client().KV()
	if p, meta, err := store.Get("app/a", nil); err != nil || p != nil || meta.LastIndex == 0 {
		t.Fatalf("a key that is not there: %v, %+v, %v", p, meta, err)
	}
	if _, err := store.Put(&api.KVPair{Key: "app/a", Value: []byte("1"), Flags: 42}, nil); err != nil {
		t.Fatal(err)
	}
	p, meta, err := store.Get("app/a", nil)
	must(t, err)
	if string(p.Value) != "1" || p.Flags != 42 || p.CreateIndex == 0 || p.ModifyIndex != p.CreateIndex || p.LockIndex != 0 || p.Session != "" {
		t.Errorf("got %+v", p)
	}
	if meta.LastIndex < p.ModifyIndex || !meta.KnownLeader || meta.LastContact != 0 {
		t.Errorf("meta %+v", meta)
	}

	for _, c := range []struct {
		name string
		do   func() (bool, error)
		want bool
	}{
		{"create what is there", func() (bool, error) { ok, _, err := store.CAS(kv("app/a", "x"), nil); return ok, err }, false},
		{"create what is not", func() (bool, error) { ok, _, err := store.CAS(kv("app/b", "2"), nil); return ok, err }, true},
		{"replace", func() (bool, error) { ok, _, err := store.CAS(at(p, "3"), nil); return ok, err }, true},
		{"replace what has changed", func() (bool, error) { ok, _, err := store.CAS(at(p, "4"), nil); return ok, err }, false},
		{"replace what is not there", func() (bool, error) {
			ok, _, err := store.CAS(&api.KVPair{Key: "none", ModifyIndex: 7}, nil)
			return ok, err
		}, false},
		{"remove what has changed", func() (bool, error) { ok, _, err := store.DeleteCAS(p, nil); return ok, err }, false},
	} {
		if ok, err := c.do(); err != nil || ok != c.want {
			t.Errorf("%s: %v, %v", c.name, ok, err)
		}
	}
	p, _, err = store.Get("app/a", nil)
	must(t, err)
	if ok, _, err := store.DeleteCAS(p, nil); err != nil || !ok {
		t.Errorf("remove: %v, %v", ok, err)
	}

	for _, key := range []string{"app/dir/x/1", "app/dir/x/2", "app/dir/y", "app//odd %?#&+", "appendix"} {
		_, err := store.Put(kv(key, key), nil)
		must(t, err)
	}
	list, _, err := store.List("app/", nil)
	must(t, err)
	if got := keysOf(list); !slices.Equal(got, []string{"app//odd %?#&+", "app/b", "app/dir/x/1", "app/dir/x/2", "app/dir/y"}) {
		t.Errorf("list: %q", got)
	}
	keys, _, err := store.Keys("app/", "/", nil)
	must(t, err)
	if !slices.Equal(keys, []string{"app//", "app/b", "app/dir/"}) {
		t.Errorf("keys: %q", keys)
	}
	_, err = store.DeleteTree("app/dir/", nil)
	must(t, err)
	_, err = store.Delete("appendix", nil)
	must(t, err)
	keys, _, err = store.Keys("app", "", nil)
	must(t, err)
	if !slices.Equal(keys, []string{"app//odd %?#&+", "app/b"}) {
		t.Errorf("keys after removing: %q", keys)
	}
	if keys, _, err := store.Keys("none/", "", nil); err != nil || len(keys) != 0 {
		t.Errorf("keys below nothing: %q, %v", keys, err)
	}
}

// at is a pair with another value and the index of the one that was read.
func at(p *api.KVPair, value string) *api.KVPair {
	return &api.KVPair{Key: p.Key, Value: []byte(value), ModifyIndex: p.ModifyIndex}
}

func keysOf(list api.KVPairs) []string {
	var out []string
	for _, p := range list {
		out = append(out, p.Key)
	}
	return out
}

// TestKVReadModes: a write that was acknowledged is seen by reads of every kind.
func TestKVReadModes(t *testing.T) {
	store := startAgent(t).client().KV()
	modes := map[string]*api.QueryOptions{"default": nil, "stale": {AllowStale: true}, "consistent": {RequireConsistent: true}}
	for i := range 20 {
		value := fmt.Sprint(i)
		_, err := store.Put(kv("k", value), nil)
		must(t, err)
		for name, mode := range modes {
			if p, _, err := store.Get("k", mode); err != nil || string(p.Value) != value {
				t.Fatalf("%s read of %s: %v, %v", name, value, p, err)
			}
		}
	}
	if _, _, err := store.Get("k", &api.QueryOptions{AllowStale: true, RequireConsistent: true}); err == nil || !strings.Contains(err.Error(), "conflicting semantics") {
		t.Errorf("stale and consistent: %v", err)
	}
}

func TestKVValueSizes(t *testing.T) {
	store := startAgent(t, "kv-max-value-size=4096").client().KV()
	for _, size := range []int{0, 1, 4096} {
		value := bytes.Repeat([]byte{0, 255}, size/2+1)[:size]
		_, err := store.Put(&api.KVPair{Key: "k", Value: value}, nil)
		must(t, err)
		if p, _, err := store.Get("k", nil); err != nil || !bytes.Equal(p.Value, value) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	_, err := store.Put(&api.KVPair{Key: "k", Value: make([]byte, 4097)}, nil)
	if err == nil || !strings.Contains(err.Error(), "413") || !strings.Contains(err.Error(), "max size: 4096 bytes") {
		t.Errorf("too large: %v", err)
	}
}

// TestKVIndexesNeverGoBack: whatever is written and removed, the index of a key,
// of its prefix and of the prefix's keys rises with every change to them, and a
// query that waits from there is woken by the next.
func TestKVIndexesNeverGoBack(t *testing.T) {
	a := startAgent(t)
	store := a.client().KV()
	reads := map[string]func(*api.QueryOptions) (*api.QueryMeta, error){
		"key":    func(q *api.QueryOptions) (*api.QueryMeta, error) { _, m, err := store.Get("dir/a", q); return m, err },
		"prefix": func(q *api.QueryOptions) (*api.QueryMeta, error) { _, m, err := store.List("dir/", q); return m, err },
		"keys": func(q *api.QueryOptions) (*api.QueryMeta, error) {
			_, m, err := store.Keys("dir/", "/", q)
			return m, err
		},
	}
	change := []func() error{
		func() error { _, err := store.Put(kv("dir/a", "1"), nil); return err },
		func() error { _, err := store.Delete("dir/a", nil); return err },
		func() error { _, err := store.Put(kv("dir/a", "2"), nil); return err },
		func() error { _, err := store.DeleteTree("dir/", nil); return err },
		func() error { _, _, err := store.CAS(kv("dir/a", "3"), nil); return err },
		func() error { _, err := store.DeleteTree("", nil); return err },
	}
	last := map[string]uint64{}
	for round := range 3 * len(change) {
		// What happens elsewhere moves nothing here.
		_, err := store.Put(kv("elsewhere", fmt.Sprint(round)), nil)
		must(t, err)
		type outcome struct {
			name string
			meta *api.QueryMeta
			err  error
		}
		woken := make(chan outcome, len(reads))
		for name, read := range reads {
			meta, err := read(nil)
			must(t, err)
			if meta.LastIndex < last[name] {
				t.Fatalf("round %d: the index of %s went from %d back to %d", round, name, last[name], meta.LastIndex)
			}
			last[name] = meta.LastIndex
			go func() {
				meta, err := read(&api.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: settleLimit})
				woken <- outcome{name, meta, err}
			}()
		}
		start := time.Now()
		must(t, change[round%len(change)]())
		for range reads {
			o := <-woken
			must(t, o.err)
			if o.meta.LastIndex <= last[o.name] || time.Since(start) >= settleLimit {
				t.Fatalf("round %d: %s was at %d and is at %d after %v", round, o.name, last[o.name], o.meta.LastIndex, time.Since(start))
			}
			last[o.name] = o.meta.LastIndex
		}
	}
}

// TestManyWatchersOfAPrefix: one write wakes all who wait for it, once, with the
// same answer; who waits for something else sleeps on.
func TestManyWatchersOfAPrefix(t *testing.T) {
	a := startAgent(t)
	store := a.client().KV()
	_, err := store.Put(kv("dir/a", "1"), nil)
	must(t, err)
	_, meta, err := store.List("dir/", nil)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	const watchers = 250
	var wg sync.WaitGroup
	seen := make(chan uint64, watchers)
	other := make(chan error, 1)
	go func() {
		_, _, err := store.List("other/", (&api.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: time.Minute}).WithContext(ctx))
		other <- err
	}()
	for range watchers {
		wg.Go(func() {
			list, m, err := store.List("dir/", &api.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: settleLimit})
			if err != nil || len(list) != 2 {
				t.Errorf("woken with %d keys, %v", len(list), err)
				return
			}
			seen <- m.LastIndex
		})
	}
	_, err = store.Put(kv("dir/b", "2"), nil)
	must(t, err)
	wg.Wait()
	close(seen)
	want := uint64(0)
	for index := range seen {
		if want == 0 {
			want = index
		}
		if index != want || index <= meta.LastIndex {
			t.Fatalf("woken at %d and at %d, from %d", want, index, meta.LastIndex)
		}
	}
	select {
	case err := <-other:
		t.Errorf("a watcher of another prefix was woken: %v", err)
	default:
	}
}
