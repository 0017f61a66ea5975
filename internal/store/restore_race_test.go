package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/fairlead-net/fairlead/internal/model"
)

// Writers that are under way meet the new generation: what was confirmed before
// the flip is replaced, what was confirmed after it stays, and a comparison with
// the old generation fails.
func TestWritersDuringRestore(t *testing.T) {
	s := startSite(t)
	counter := s.put(putKV("counter", "x"), putKV("saved", "1"))
	archived := s.save()
	old, _ := counter.KV("counter")

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var mu sync.Mutex
	written := map[string]model.Index{}
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				key := fmt.Sprintf("w%d/%d", w, i)
				res, err := s.Commit(t.Context(), put(key, "x"))
				if err != nil || !res.OK {
					t.Errorf("%s: %+v, %v", key, res, err)
					return
				}
				mu.Lock()
				written[key] = res.Index
				mu.Unlock()
			}
		})
	}
	var flips []model.Index
	for range 3 {
		_, at, err := s.Restore(t.Context(), bytes.NewReader(archived))
		if err != nil {
			t.Fatal(err)
		}
		flips = append(flips, at)
	}
	stop()
	wg.Wait()
	last := flips[len(flips)-1]
	snap := s.put(putKV("end", ""))
	got := entries(snap)
	kept, dropped := 0, 0
	for key, index := range written {
		_, there := got[key]
		if there != (index > last) {
			t.Errorf("%s was written at %d, the generation changed at %d: there is %v", key, index, last, there)
		}
		if there {
			kept++
		} else {
			dropped++
		}
	}
	t.Logf("%d writes replaced, %d kept", dropped, kept)
	if got["saved"] != "1" {
		t.Errorf("entries %v", got)
	}
	txn := put("counter", "y")
	txn.Compares = []Compare{{Key: KVKey("counter"), ModIndex: old.ModifyIndex}}
	if res, err := s.Commit(t.Context(), txn); err != nil || res.OK {
		t.Errorf("a comparison with the old generation: %+v, %v", res, err)
	}
	if res, err := s.Commit(t.Context(), Txn{Compares: txn.Compares}); err != nil || res.OK {
		t.Errorf("a comparison alone: %+v, %v", res, err)
	}
}

func TestOneRestoreAtATime(t *testing.T) {
	reached, goOn := make(chan struct{}), make(chan struct{})
	s := startSite(t, func(st *Store) {
		st.beforeFlip = sync.OnceFunc(func() {
			close(reached)
			<-goOn
		})
	})
	s.put(putKV("a", "1"))
	archived := s.save()
	done := make(chan error, 1)
	go func() {
		_, _, err := s.Restore(t.Context(), bytes.NewReader(archived))
		done <- err
	}()
	<-reached
	if _, _, err := s.Restore(t.Context(), bytes.NewReader(archived)); !errors.Is(err, ErrRestoring) {
		t.Errorf("a second restore: %v", err)
	}
	// The first one's half of a generation is not taken for litter.
	if err := sweepOnce(t.Context(), s.running.Load().cli); err != nil {
		t.Error(err)
	}
	close(goOn)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := entries(s.put(putKV("b", ""))); got["a"] != "1" {
		t.Errorf("entries %v", got)
	}
}

// Another server's claim counts too, and a restore that loses its own does not
// put its generation in force.
func TestClaims(t *testing.T) {
	var s *site
	s = startSite(t, func(st *Store) {
		st.beforeFlip = func() {
			if _, err := s.running.Load().cli.Put(t.Context(), restoreKey, `{"server":"n2","generation":"theirs"}`); err != nil {
				t.Error(err)
			}
		}
	})
	s.put(putKV("a", "saved"))
	archived := s.save()
	s.put(putKV("a", "present"))
	if _, _, err := s.Restore(t.Context(), bytes.NewReader(archived)); !errors.Is(err, ErrRestoring) {
		t.Errorf("with a claim taken over: %v", err)
	}
	if _, _, err := s.Restore(t.Context(), bytes.NewReader(archived)); !errors.Is(err, ErrRestoring) {
		t.Errorf("with another's claim: %v", err)
	}
	if got := entries(s.st.Snapshot()); got["a"] != "present" {
		t.Errorf("entries %v", got)
	}
	onlyInForce(t, s.Store)
}

// A restore that dies in its middle leaves the old content in force, and the next
// run removes what it wrote.
func TestCrashDuringRestore(t *testing.T) {
	dir := t.TempDir()
	reached := make(chan struct{})
	goOn := make(chan struct{})
	n := startStore(t, dir, func(s *Store) {
		s.beforeFlip = sync.OnceFunc(func() {
			close(reached)
			<-goOn
		})
	})
	n.must(t, put("a", "saved"), true)
	var b bytes.Buffer
	if _, err := n.Save(t.Context(), &b, false, nil); err != nil {
		t.Fatal(err)
	}
	archived := b.Bytes()
	n.must(t, put("a", "present"), true)
	done := make(chan error, 1)
	go func() {
		_, _, err := n.Restore(t.Context(), bytes.NewReader(archived))
		done <- err
	}()
	<-reached
	if left := generations(t, n.Store); len(left) != 2 {
		t.Errorf("generations %v, want two", left)
	}
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	close(goOn)
	if err := <-done; err == nil {
		t.Error("a restore without its store succeeded")
	}

	n = startStore(t, dir)
	onlyInForce(t, n.Store)
	idx := n.must(t, put("b", ""), true)
	if kv := n.st.at(t, idx)["a"]; string(kv.Value) != "present" {
		t.Errorf("after the crash: %+v", kv)
	}
	if _, at, err := n.Restore(t.Context(), bytes.NewReader(archived)); err != nil {
		t.Errorf("a restore after the crash: %v", err)
	} else if kv := n.st.at(t, at)["a"]; string(kv.Value) != "saved" {
		t.Errorf("after the restore: %+v", kv)
	}
	gen := n.Status().Generation
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	n = startStore(t, dir)
	if got := n.Status().Generation; got != gen {
		t.Errorf("generation %s after a restart, was %s", got, gen)
	}
}

// A caller that gives up before the end changes nothing.
func TestCancelledRestore(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := startSite(t, func(st *Store) { st.beforeFlip = cancel })
	s.put(putKV("a", "saved"))
	archived := s.save()
	s.put(putKV("a", "present"))
	if _, _, err := s.Restore(ctx, bytes.NewReader(archived)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if got := entries(s.st.Snapshot()); got["a"] != "present" {
		t.Errorf("entries %v", got)
	}
	onlyInForce(t, s.Store)
}
