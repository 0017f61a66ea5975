package feed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// reader collects what it is sent.
type reader struct {
	mu     sync.Mutex
	b      bytes.Buffer
	writes [][]byte
	slow   time.Duration
	end    context.CancelFunc
	done   chan error
}

func read(ctx context.Context, f *Feed, from model.Index, run string) *reader {
	r := &reader{done: make(chan error, 1)}
	return r.on(ctx, f, from, run)
}

func (r *reader) on(ctx context.Context, f *Feed, from model.Index, run string) *reader {
	ctx, r.end = context.WithCancel(ctx)
	go func() {
		r.done <- f.Serve(ctx, from, run, func(b []byte) error {
			time.Sleep(r.slow)
			r.mu.Lock()
			defer r.mu.Unlock()
			r.b.Write(b)
			r.writes = append(r.writes, b)
			return nil
		})
	}()
	return r
}

// sent is what was written to it until now.
func (r *reader) sent() [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.writes)
}

// has is what a reader knows: nodes, at which index, and how often it was sent
// everything.
func (r *reader) has(t *testing.T) (nodes []string, at model.Index, resets int) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	in := wire.NewReader(bytes.NewReader(r.b.Bytes()))
	know := map[string]bool{}
	for {
		f, err := in.Next()
		if err != nil {
			if r.b.Len() > 0 && errors.Is(err, wire.ErrFormat) {
				t.Fatal(err)
			}
			return slices.Sorted(maps.Keys(know)), at, resets
		}
		switch {
		case f.Kind == wire.Begin && f.Full:
			clear(know)
			resets++
		case f.Kind == wire.Commit:
			at = f.Index
		}
		for _, c := range f.Changes {
			if c.Delete {
				delete(know, string(c.Node.Name))
			} else {
				know[string(c.Node.Name)] = true
			}
		}
	}
}

func node(name string) state.Change {
	return state.Change{Node: &model.Node{Name: model.NodeName(name)}}
}

// in runs do with a feed at index 10 that has the node "a".
func in(t *testing.T, do func(t *testing.T, ctx context.Context, f *Feed)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		f := New(state.New(), "r1", slog.New(slog.DiscardHandler))
		f.Reset(10, []state.Change{node("a"), {KV: &model.KV{Key: "secret"}}})
		do(t, ctx, f)
		cancel()
		time.Sleep(time.Minute) // timers and slow readers end
		synctest.Wait()
	})
}

func (r *reader) want(t *testing.T, at model.Index, resets int, nodes ...string) {
	t.Helper()
	synctest.Wait()
	if got, index, n := r.has(t); !slices.Equal(got, nodes) || index != at || n != resets {
		t.Errorf("%q at %d after %d resets; want %q at %d after %d", got, index, n, nodes, at, resets)
	}
}

func TestAReaderHasEverythingThenEachChange(t *testing.T) {
	in(t, func(t *testing.T, ctx context.Context, f *Feed) {
		r := read(ctx, f, 0, "")
		r.want(t, 10, 1, "a")
		time.Sleep(time.Minute)
		f.Apply(11, []state.Change{node("b")})
		r.want(t, 11, 1, "a", "b") // at once
		f.Apply(12, []state.Change{{KV: &model.KV{Key: "secret"}}})
		time.Sleep(indexGather)
		r.want(t, 12, 1, "a", "b")
		if bytes.Contains(bytes.Join(r.sent(), nil), []byte("secret")) {
			t.Error("a key is in the feed")
		}
		f.Reset(20, []state.Change{node("c")})
		r.want(t, 20, 2, "c")
		f.Apply(21, []state.Change{node("d")})
		time.Sleep(MaxGather)
		r.want(t, 21, 2, "c", "d")
	})
}

func TestAReaderGoesOnWhereItWas(t *testing.T) {
	in(t, func(t *testing.T, ctx context.Context, f *Feed) {
		for i := range 5 {
			f.Apply(model.Index(11+i), []state.Change{node(fmt.Sprintf("n%d", i))})
		}
		read(ctx, f, 13, "r1").want(t, 15, 0, "n3", "n4")
		read(ctx, f, 15, "r1").want(t, 0, 0)
		read(ctx, f, 13, "r2").want(t, 15, 1, "a", "n0", "n1", "n2", "n3", "n4") // another run's index
		read(ctx, f, 9, "r1").want(t, 15, 1, "a", "n0", "n1", "n2", "n3", "n4")  // too old
		ahead := read(ctx, f, 16, "r1")                                          // this server is behind
		time.Sleep(time.Second)
		f.Apply(16, []state.Change{node("n5")})
		f.Apply(17, []state.Change{node("n6")})
		time.Sleep(time.Second)
		if got, at, resets := ahead.has(t); at != 17 || resets != 0 || !slices.Contains(got, "n6") {
			t.Errorf("%q at %d after %d resets", got, at, resets)
		}
	})
}

func TestAReaderThatKnowsMoreIsSentAway(t *testing.T) {
	in(t, func(t *testing.T, ctx context.Context, f *Feed) {
		r := read(ctx, f, 11, "r1")
		if err := <-r.done; !errors.Is(err, errAhead) || len(r.sent()) != 0 {
			t.Errorf("%v, after %d writes", err, len(r.sent()))
		}
	})
}

func TestManyReadersShareOneEncodingOfGatheredChanges(t *testing.T) {
	in(t, func(t *testing.T, ctx context.Context, f *Feed) {
		var all []*reader
		for range 200 {
			all = append(all, read(ctx, f, 0, ""))
		}
		all[199].want(t, 10, 1, "a")
		time.Sleep(time.Second)
		for i := range 10 {
			f.Apply(model.Index(11+i), []state.Change{node(fmt.Sprintf("n%d", i))})
			time.Sleep(time.Millisecond)
		}
		time.Sleep(MaxGather)
		synctest.Wait()
		begun, first := 0, all[0].sent()
		for _, r := range all {
			var deltas [][]byte
			for _, w := range r.sent() {
				if bytes.Contains(w, []byte(`"name":"n`)) {
					deltas = append(deltas, w)
				}
			}
			if len(deltas) != 2 { // the first at once, the others together
				t.Fatalf("%d writes for 10 changes", len(deltas))
			}
			if &deltas[1][0] == &first[len(first)-1][0] {
				begun++
			}
		}
		if begun != len(all) {
			t.Errorf("%d of %d readers share the bytes", begun, len(all))
		}
	})
}

func TestASlowReaderStartsAnewAndHoldsUpNobody(t *testing.T) {
	in(t, func(t *testing.T, ctx context.Context, f *Feed) {
		slow := (&reader{slow: 5 * time.Second, done: make(chan error, 1)}).on(ctx, f, 0, "")
		quick := read(ctx, f, 0, "")
		synctest.Wait()
		for i := range 3 * keep {
			f.Apply(model.Index(11+i), []state.Change{node("b"), {Delete: true, Node: &model.Node{Name: "a"}}})
			if i%1000 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		time.Sleep(MaxGather)
		quick.want(t, 10+3*keep, 1, "b")
		time.Sleep(time.Minute)
		if got, at, resets := slow.has(t); !slices.Equal(got, []string{"b"}) || at != 10+3*keep || resets < 2 {
			t.Errorf("%q at %d after %d resets", got, at, resets)
		}
	})
}

func TestAReaderHearsSomethingEverySecond(t *testing.T) {
	in(t, func(t *testing.T, ctx context.Context, f *Feed) {
		r := read(ctx, f, 0, "")
		synctest.Wait()
		before := len(r.sent())
		time.Sleep(10*time.Second + time.Millisecond)
		synctest.Wait()
		if n := len(r.sent()) - before; n != 10 {
			t.Errorf("%d signs of life in 10 s", n)
		}
		r.end()
		if err := <-r.done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func TestAFeedWaitsForItsState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(state.New(), "r1", slog.New(slog.DiscardHandler))
		r := read(t.Context(), f, 0, "")
		r.want(t, 0, 0)
		f.Reset(3, []state.Change{node("a")})
		r.want(t, 3, 1, "a")
		r.end()
		<-r.done
		time.Sleep(2 * snapshotLife)
	})
}
