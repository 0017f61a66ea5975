package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/fairlead-net/fairlead/internal/archive"
)

// An archive shows one revision, whatever is written and compacted meanwhile.
func TestSaveIsConsistent(t *testing.T) {
	s := startSite(t, func(st *Store) { st.compactEvery = 2 * time.Millisecond })
	pad := strings.Repeat("x", 2000)
	for i := range 40 {
		var puts []Put
		for k := range 100 {
			puts = append(puts, putKV(fmt.Sprintf("pad/%d/%d", i, k), pad))
		}
		s.put(puts...)
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			if _, err := s.Commit(t.Context(), Txn{Puts: []Put{putKV("a", fmt.Sprint(i)), putKV("z", fmt.Sprint(i))}}); err != nil {
				t.Error(err)
			}
		}
	})
	defer wg.Wait()
	defer stop()
	for range 3 {
		got := map[string]string{}
		pr, pw := io.Pipe()
		saved := make(chan error, 1)
		go func() {
			_, err := s.Save(t.Context(), pw, false, nil)
			saved <- errors.Join(err, pw.Close())
		}()
		slow := iotest.HalfReader(pr)
		if _, err := archive.Read(slow, 0, func(k string, v []byte) error {
			got[k] = string(v)
			pause(t.Context(), 20*time.Microsecond)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if err := <-saved; err != nil {
			t.Fatal(err)
		}
		if len(got) < 4000 || got[KVKey("a")] != got[KVKey("z")] {
			t.Errorf("%d records, a is %q and z %q", len(got), got[KVKey("a")], got[KVKey("z")])
		}
	}
	if s.Status().Stats.Compactions == 0 {
		t.Error("nothing was compacted; the test shows nothing")
	}
}

func TestPins(t *testing.T) {
	var p pins
	if got := p.oldest(7); got != 7 {
		t.Errorf("nothing held: %d", got)
	}
	one, two := p.hold(3), p.hold(3)
	five := p.hold(5)
	if got := p.oldest(7); got != 3 {
		t.Errorf("held: %d", got)
	}
	one()
	if got := p.oldest(7); got != 3 {
		t.Errorf("held once more: %d", got)
	}
	two()
	if got := p.oldest(7); got != 5 {
		t.Errorf("released: %d", got)
	}
	five()
	if got := p.oldest(7); got != 7 {
		t.Errorf("all released: %d", got)
	}
}

// A save whose reader goes away fails.
func TestSaveFails(t *testing.T) {
	s := startSite(t)
	s.put(putKV("a", "1"))
	gone := errors.New("gone")
	pr, pw := io.Pipe()
	pr.CloseWithError(gone)
	if _, err := s.Save(t.Context(), pw, false, nil); !errors.Is(err, gone) {
		t.Errorf("a reader that is gone: %v", err)
	}
	if _, err := s.Save(t.Context(), io.Discard, true, nil); err != nil {
		t.Errorf("a stale one: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Save(ctx, io.Discard, false, nil); err == nil {
		t.Error("a cancelled one succeeded")
	}
}
