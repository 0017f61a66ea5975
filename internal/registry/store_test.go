package registry_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"sync"
	"testing"

	"github.com/fairlead-net/fairlead/internal/ipam"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/registry"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/store"
)

// startStore runs a store on a temporary directory until the test ends.
func startStore(t *testing.T) (*store.Store, *state.State) {
	t.Helper()
	st := state.New()
	s := store.New(store.Config{Name: "s1", Log: slog.New(slog.DiscardHandler)}, st)
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- s.Run(ctx, func() { close(ready) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("store: %v", err)
		}
	})
	select {
	case <-ready:
	case err := <-ended:
		ended <- nil
		t.Fatalf("store ended before it was ready: %v", err)
	}
	return s, st
}

// The promises that the fake cannot vouch for, on a real etcd with group
// commit: many writers at once, of whom the compares let the right ones win.
func TestOnStore(t *testing.T) {
	s, st := startStore(t)
	one, two := newRegistry(s, st), newRegistry(s, st)
	either := func(i int) *registry.Registry {
		if i%2 == 0 {
			return one
		}
		return two
	}
	if _, err := one.RegisterNode(t.Context(), model.Node{Name: "n1", Address: "10.0.0.1"}); err != nil {
		t.Fatal(err)
	}

	t.Run("a counter by compare and set loses nothing", func(t *testing.T) {
		const writers, each = 8, 10
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for done := 0; done < each; {
					cur, _ := st.Snapshot().KV("counter")
					n, cas := 0, new(model.Index(0))
					if cur != nil {
						n, _ = strconv.Atoi(string(cur.Value))
						cas = &cur.ModifyIndex
					}
					ok, _, err := either(w).PutKV(t.Context(), model.KV{Key: "counter", Value: fmt.Append(nil, n+1)}, cas)
					switch {
					case ok:
						done++
					case err != nil && !errors.Is(err, registry.ErrConflict):
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		if kv, _ := st.Snapshot().KV("counter"); string(kv.Value) != strconv.Itoa(writers*each) {
			t.Errorf("counter = %s, want %d", kv.Value, writers*each)
		}
	})

	t.Run("services registered at once each have their own VIP", func(t *testing.T) {
		const services = 100
		var wg sync.WaitGroup
		for i := range services {
			wg.Go(func() {
				inst := model.Instance{Node: "n1", Service: model.ServiceName(fmt.Sprint("s", i)), Port: 80}
				index, err := either(i).Register(t.Context(), inst, []model.Check{{ID: model.CheckID(fmt.Sprint("c", i))}})
				if err != nil {
					t.Error(err)
					return
				}
				svc, mark := st.Snapshot().Service(inst.Service)
				if svc.VIP == nil || len(svc.Members) != 1 || len(svc.Members[0].Checks) != 1 || mark.Index > index {
					t.Errorf("%s = %+v at %d after index %d", inst.Service, svc, mark.Index, index)
				}
			})
		}
		wg.Wait()
		addrs := map[netip.Addr]bool{}
		vips, _ := st.Snapshot().VIPs()
		for _, v := range vips {
			addrs[v.V4], addrs[v.V6] = true, true
		}
		if len(addrs) != 2*services {
			t.Errorf("%d addresses, want %d", len(addrs), 2*services)
		}
	})

	t.Run("unchanged moves no object's index", func(t *testing.T) {
		inst := model.Instance{Node: "n1", Service: "s0", Port: 80}
		_, before := st.Snapshot().Service("s0")
		if _, err := one.Register(t.Context(), inst, []model.Check{{ID: "c0"}}); err != nil {
			t.Fatal(err)
		}
		if _, after := st.Snapshot().Service("s0"); after.Index != before.Index {
			t.Errorf("index went from %d to %d", before.Index, after.Index)
		}
	})

	t.Run("a pool's addresses are each leased once", func(t *testing.T) {
		if _, err := one.CreateNetwork(t.Context(), network("a", "10.1.0.0/27")); err != nil {
			t.Fatal(err)
		}
		const asked, room = 32, 29
		var wg sync.WaitGroup
		var mu sync.Mutex
		given := map[netip.Addr]bool{}
		for i := range asked {
			wg.Go(func() {
				got, _, err := one.CreateEndpoint(t.Context(), endpoint(fmt.Sprint("e", i), "a"), nil)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					given[got.Addrs[0]] = true
				case !errors.Is(err, ipam.ErrExhausted):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(given) != room {
			t.Errorf("%d addresses given, want %d", len(given), room)
		}
		if _, err := two.DeleteNetwork(t.Context(), "a"); !errors.Is(err, registry.ErrInUse) {
			t.Errorf("delete: %v, want ErrInUse", err)
		}
	})

	t.Run("deregistering the node leaves nothing of it", func(t *testing.T) {
		if _, err := two.DeregisterNode(t.Context(), "n1"); err != nil {
			t.Fatal(err)
		}
		snap := st.Snapshot()
		services, _ := snap.Services()
		checks, _ := snap.Checks("")
		if len(services) != 0 || len(checks) != 0 {
			t.Errorf("left: %d services, %d checks", len(services), len(checks))
		}
	})

	t.Run("a tree of keys goes at one index", func(t *testing.T) {
		for i := range 20 {
			if _, _, err := one.PutKV(t.Context(), model.KV{Key: fmt.Sprint("tree/", i)}, nil); err != nil {
				t.Fatal(err)
			}
		}
		index, err := one.DeleteKVTree(t.Context(), "tree/")
		list, mark := st.Snapshot().KVTree("tree/")
		if err != nil || len(list) != 0 || mark.Index != index {
			t.Errorf("left %d at %d, want none at %d: %v", len(list), mark.Index, index, err)
		}
	})
}
