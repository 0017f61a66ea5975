package presence

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/fairlead-net/fairlead/internal/identity"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/registry"
	"github.com/fairlead-net/fairlead/internal/rpc"
	"github.com/fairlead-net/fairlead/internal/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// book notes what is said of nodes, and when.
type book struct {
	registry.Leaser
	mu    sync.Mutex
	start time.Time
	said  []string
	epoch uint64
	fails int // how many verdicts fail first
	// refuses is how many sessions are not recorded first.
	refuses int
}

func (b *book) note(format string, args ...any) {
	b.said = append(b.said, fmt.Sprintf(format, args...)+fmt.Sprintf(" at %v", time.Since(b.start).Round(time.Millisecond)))
}

func (b *book) Attach(_ context.Context, _ identity.Node, _ string) (uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.refuses > 0 {
		b.refuses--
		return 0, context.DeadlineExceeded
	}
	b.epoch++
	return b.epoch, nil
}

func (b *book) Alive(_ context.Context, n model.NodeName, epoch uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.note("%s lives (%d)", n, epoch)
	return nil
}

func (b *book) Suspect(_ context.Context, n model.NodeName, epoch uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.note("%s is suspect (%d)", n, epoch)
	return nil
}

func (b *book) Dead(_ context.Context, n model.NodeName, epoch uint64, _ string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fails > 0 {
		b.fails--
		return context.DeadlineExceeded
	}
	b.note("%s is dead (%d)", n, epoch)
	return nil
}

func (b *book) KeepMark(context.Context, string, int64) (model.Index, error) { return 1, nil }
func (b *book) Leases() registry.Leaser                                      { return b }

func (b *book) GrantLease(context.Context, time.Duration) (int64, error) { return 7, nil }
func (b *book) RenewLease(context.Context, int64) error                  { return nil }

// on runs a presence in a bubble and returns what was said.
func on(t *testing.T, st *state.State, leads bool, do func(t *testing.T, p *Presence, b *book)) (said []string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &book{start: time.Now()}
		if st == nil {
			st = state.New()
		}
		p := New("s1", b, st, func() bool { return leads }, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		ready, done := make(chan struct{}), make(chan error, 1)
		go func() { done <- p.Run(ctx, func() { close(ready) }) }()
		<-ready
		do(t, p, b)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		said = b.said
	})
	return said
}

func attach(t *testing.T, p *Presence) (beat func(), gone func(string)) {
	t.Helper()
	beat, gone, err := p.Attach(t.Context(), identity.Node{ID: "id", Name: "web"}, netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	return beat, gone
}

func TestHowSessionsEnd(t *testing.T) {
	for _, c := range []struct {
		how     string
		goodbye string
		silence time.Duration
		want    []string
	}{
		{"cut off", "", 0, []string{"web is suspect (1) at 10s", "web is dead (1) at 12s"}},
		{"silent", "", 3 * time.Second, []string{"web is dead (1) at 12s"}},
		{"leaving", rpc.GoodbyeLeave, 0, []string{"web is dead (1) at 9s"}},
		{"restarting", rpc.GoodbyeRestart, 0, []string{"web is dead (1) at 39s"}},
	} {
		said := on(t, nil, false, func(t *testing.T, p *Presence, _ *book) {
			beat, gone := attach(t, p)
			for range 9 {
				time.Sleep(time.Second)
				beat()
			}
			time.Sleep(c.silence)
			gone(c.goodbye)
			time.Sleep(time.Minute)
		})
		if want := append([]string{"web lives (1) at 0s"}, c.want...); !slices.Equal(said, want) {
			t.Errorf("%s: %q, want %q", c.how, said, want)
		}
	}
}

func TestAServersOwnNodeIsAttachedInTheEnd(t *testing.T) {
	said := on(t, nil, false, func(t *testing.T, p *Presence, b *book) {
		b.refuses = 3
		p.Own(t.Context(), identity.Node{ID: "s1", Name: "s1"})
		synctest.Wait()
	})
	if len(said) != 1 || !strings.HasPrefix(said[0], "s1 lives (1)") {
		t.Errorf("%q", said)
	}
}

func TestANodeThatComesBackIsNotJudged(t *testing.T) {
	said := on(t, nil, false, func(t *testing.T, p *Presence, _ *book) {
		_, gone := attach(t, p)
		gone("")
		time.Sleep(900 * time.Millisecond)
		_, again := attach(t, p)
		gone("") // told twice
		time.Sleep(time.Minute)
		again(rpc.GoodbyeRestart)
		time.Sleep(20 * time.Second)
		attach(t, p)
		time.Sleep(time.Minute)
	})
	if want := []string{"web lives (1) at 0s", "web lives (2) at 900ms", "web lives (3) at 1m20.9s"}; !slices.Equal(said, want) {
		t.Errorf("%q", said)
	}
}

func TestAVerdictIsWrittenInTheEnd(t *testing.T) {
	said := on(t, nil, false, func(t *testing.T, p *Presence, b *book) {
		b.fails = 3
		_, gone := attach(t, p)
		gone(rpc.GoodbyeLeave)
		time.Sleep(time.Minute)
	})
	if len(said) != 2 || said[1][:len("web is dead (1)")] != "web is dead (1)" {
		t.Errorf("%q", said)
	}
}

func TestNodesOfAServerThatIsGone(t *testing.T) {
	// One that this server holds, one of a living server, one of a dead one.
	st := state.New()
	note := func(node, server string) state.Change {
		return state.Change{Setting: &model.Setting{Name: "attach/" + node, Value: fmt.Sprintf(`{"node": %q, "server": %q, "epoch": 5}`, node, server)}}
	}
	st.Reset(1, []state.Change{note("a", "s2"), note("b", "s3"), note("c", "s1"), {Alive: &model.Alive{Session: "server:s2", Lease: 1}}})
	wait := func(_ *testing.T, _ *Presence, _ *book) { time.Sleep(30 * time.Second) }
	said := on(t, st, true, wait)
	if len(said) == 0 || said[0] != "b is dead (5) at 10s" && said[0] != "c is dead (5) at 10s" {
		t.Errorf("%q", said)
	}
	if slices.ContainsFunc(said, func(s string) bool { return s[0] == 'a' }) {
		t.Errorf("a living server's node is judged: %q", said)
	}
	// After a restart a server holds none of the sessions that are recorded as its own.
	said = on(t, st, false, wait)
	if len(said) == 0 || slices.ContainsFunc(said, func(s string) bool { return s[0] != 'c' }) {
		t.Errorf("one that does not lead judges others' nodes, or not its own: %q", said)
	}
}
