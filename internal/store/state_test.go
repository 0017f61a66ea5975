package store

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// What is committed shows in the real state at the index that Commit returned,
// and after a restart.
func TestCommittedShowsInState(t *testing.T) {
	dir := t.TempDir()
	addr := netip.MustParseAddr("fd00::5")
	var idx model.Index
	run := func(check func(ctx context.Context, s *Store, st *state.State)) {
		t.Helper()
		st := state.New()
		s := New(Config{Dir: dir, Name: "n1", Log: quiet()}, st)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		err := s.Run(ctx, func() {
			go func() {
				defer cancel()
				check(ctx, s, st)
			}()
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	value := func(record any) []byte {
		b, err := Encode(record)
		if err != nil {
			t.Error(err)
		}
		return b
	}
	show := func(ctx context.Context, st *state.State) {
		snap, err := st.Wait(ctx, idx)
		if err != nil {
			t.Error(err)
			return
		}
		if n, _ := snap.Node("a/b"); n == nil || n.Owner != model.NodeOwner("a/b") || n.CreateIndex == 0 {
			t.Errorf("node %+v", n)
		}
		if svc, mark := snap.Service("web"); len(svc.Members) != 1 || svc.Members[0].Instance.Port != 80 || mark.Index > idx {
			t.Errorf("service %+v, %+v", svc, mark)
		}
		if e := snap.EndpointByAddr(addr); e == nil || e.ID != "e" {
			t.Errorf("endpoint %+v", e)
		}
		if kv, _ := snap.KV("x/y"); kv == nil || string(kv.Value) != "v" || kv.Flags != 7 {
			t.Errorf("entry %+v", kv)
		}
	}
	run(func(ctx context.Context, s *Store, st *state.State) {
		node := model.Node{Name: "a/b", Address: "10.0.0.1", Stamp: model.Stamp{Owner: model.NodeOwner("a/b")}}
		res, err := s.Commit(ctx, Txn{
			Compares: []Compare{{Key: NodeKey("a/b")}},
			Puts: []Put{
				{NodeKey("a/b"), value(node)},
				{InstanceKey("a/b", "w/1"), value(model.Instance{Node: "a/b", ID: "w/1", Service: "web", Port: 80})},
				{EndpointKey("e"), value(model.Endpoint{ID: "e", Network: "net", Addrs: []netip.Addr{addr}})},
				{LeaseKey("net", addr), value(model.AddressLease{Network: "net", Addr: addr, Endpoint: "e"})},
				{NameKey("net", "web"), value("e")},
				{KVKey("x/y"), value(model.KV{Key: "x/y", Value: []byte("v"), Flags: 7})},
			},
		})
		if err != nil || !res.OK {
			t.Errorf("Commit: %+v, %v", res, err)
			return
		}
		idx = res.Index
		show(ctx, st)
	})
	run(func(ctx context.Context, s *Store, st *state.State) {
		show(ctx, st)
		res, err := s.Commit(ctx, Txn{DeletePrefixes: []string{InstancePrefix("a/b")}, Deletes: []string{NodeKey("a/b"), LeaseKey("net", addr)}})
		if err != nil || !res.OK {
			t.Errorf("Commit: %+v, %v", res, err)
			return
		}
		snap, err := st.Wait(ctx, res.Index)
		if err != nil {
			t.Error(err)
			return
		}
		if n, _ := snap.Node("a/b"); n != nil {
			t.Errorf("node %+v", n)
		}
		if svc, _ := snap.Service("web"); len(svc.Members) != 0 {
			t.Errorf("service %+v", svc)
		}
		if l, _ := snap.Leases("net"); len(l) != 0 {
			t.Errorf("leases %+v", l)
		}
	})
}
