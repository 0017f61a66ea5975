package mirror

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
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

var quiet = slog.New(slog.DiscardHandler)

// server is a feed in the test's hands.
type server struct {
	mu    sync.Mutex
	asked []model.Index
	runs  []string
	out   *io.PipeWriter // of the newest stream
	down  bool
}

func (s *server) open(_ context.Context, from model.Index, run string) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return nil, errors.New("nobody is there")
	}
	in, out := io.Pipe()
	s.out, s.asked, s.runs = out, append(s.asked, from), append(s.runs, run)
	return in, nil
}

func (s *server) say(b []byte) {
	s.mu.Lock()
	out := s.out
	s.mu.Unlock()
	_, _ = out.Write(b) // the mirror may have gone
}

func (s *server) cut(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
	s.out.Close()
}

// again waits until it was asked n times.
func (s *server) again(t *testing.T, n int) {
	t.Helper()
	for range 10000 {
		s.mu.Lock()
		asked := len(s.asked)
		s.mu.Unlock()
		if asked >= n {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("it was not asked %d times", n)
}

func everything(run string, at model.Index, names ...string) []byte {
	return append(wire.AppendBegin(nil, 0, run, true), changes(at, names...)...)
}

func changes(at model.Index, names ...string) []byte {
	var w wire.Writer
	for _, n := range names {
		c := state.Change{Node: &model.Node{Name: model.NodeName(n)}}
		if n[0] == '-' {
			c = state.Change{Delete: true, Node: &model.Node{Name: model.NodeName(n[1:])}}
		}
		_ = w.Add(&c) // a node is in the catalogue
	}
	return w.Commit(at)
}

func shows(t *testing.T, st *state.State, at model.Index, want ...string) {
	t.Helper()
	synctest.Wait()
	snap := st.Snapshot()
	nodes, _ := snap.Nodes()
	var got []string
	for _, n := range nodes {
		got = append(got, string(n.Name))
	}
	if !slices.Equal(got, want) || snap.Index() != at {
		t.Errorf("%q at %d, want %q at %d", got, snap.Index(), want, at)
	}
}

// with runs a mirror of a server.
func with(t *testing.T, file string, do func(t *testing.T, s *server, m *Mirror, st *state.State, ready *bool)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s, st := &server{}, state.New()
		m := New(Config{Feed: s.open, State: st, File: file, Log: quiet})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		ready := false
		go func() { done <- m.Run(ctx, func() { ready = true }) }()
		synctest.Wait()
		do(t, s, m, st, &ready)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestTheFeedBecomesTheState(t *testing.T) {
	with(t, "", func(t *testing.T, s *server, m *Mirror, st *state.State, ready *bool) {
		if *ready || m.Connected() {
			t.Error("ready without anything to show")
		}
		s.say(everything("r1", 10, "a", "b"))
		shows(t, st, 10, "a", "b")
		if !*ready || !m.Connected() || !m.synced() {
			t.Error("not ready")
		}
		s.say(changes(12, "c", "-a"))
		shows(t, st, 12, "b", "c")
		s.say(changes(12))
		s.say(changes(11, "old")) // sent twice
		shows(t, st, 12, "b", "c")
		s.say(changes(15))
		shows(t, st, 15, "b", "c")
		s.say(everything("r1", 20, "d"))
		shows(t, st, 20, "d")
	})
}

func TestALostFeedGoesOnWhereItWas(t *testing.T) {
	with(t, "", func(t *testing.T, s *server, m *Mirror, st *state.State, _ *bool) {
		s.say(everything("r1", 10, "a"))
		synctest.Wait()
		s.cut(true)
		time.Sleep(10 * time.Second)
		if m.Connected() || m.LastContact() < 10*time.Second {
			t.Errorf("connected %v, last contact %v ago", m.Connected(), m.LastContact())
		}
		shows(t, st, 10, "a") // it goes on answering
		s.mu.Lock()
		s.down = false
		s.mu.Unlock()
		s.again(t, 2)
		s.say(append(wire.AppendBegin(nil, 10, "r1", false), changes(11, "b")...))
		shows(t, st, 11, "a", "b")
		if !slices.Equal(s.asked, []model.Index{0, 10}) || s.runs[1] != "r1" {
			t.Errorf("asked behind %v of %q", s.asked, s.runs)
		}
	})
}

func TestASilentServerIsLeft(t *testing.T) {
	with(t, "", func(t *testing.T, s *server, m *Mirror, _ *state.State, _ *bool) {
		s.say(everything("r1", 10, "a"))
		time.Sleep(silence - time.Millisecond)
		synctest.Wait()
		if len(s.asked) != 1 || !m.Connected() {
			t.Error("left too early")
		}
		time.Sleep(retryMax)
		synctest.Wait()
		if len(s.asked) < 2 {
			t.Error("a silent server is not left")
		}
	})
}

func TestTheIndexNeverGoesBack(t *testing.T) {
	with(t, "", func(t *testing.T, s *server, _ *Mirror, st *state.State, _ *bool) {
		s.say(everything("r1", 10, "a"))
		synctest.Wait()
		s.cut(false)
		s.again(t, 2)
		s.say(everything("r1", 9, "old"))
		shows(t, st, 10, "a")
		s.again(t, 3)
		s.say(everything("r1", 10, "a", "b"))
		shows(t, st, 10, "a", "b")
		if len(s.asked) != 3 {
			t.Errorf("asked %v", s.asked)
		}
	})
}

func TestAnAgentWithoutServersHasWhatItKept(t *testing.T) {
	file := filepath.Join(t.TempDir(), "catalogue")
	with(t, file, func(t *testing.T, s *server, _ *Mirror, st *state.State, _ *bool) {
		s.say(everything("r1", 10, "a"))
		shows(t, st, 10, "a")
	})
	with(t, file, func(t *testing.T, s *server, m *Mirror, st *state.State, ready *bool) {
		shows(t, st, 10, "a")
		if !*ready || m.synced() {
			t.Errorf("ready %v, synced %v", *ready, m.synced())
		}
		if s.asked[0] != 0 {
			t.Error("the file's index is taken for the servers'")
		}
		s.say(everything("r1", 12, "b"))
		shows(t, st, 12, "b")
		if !m.synced() {
			t.Error("not synced")
		}
	})
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		broken := slices.Clone(b)
		broken[i] ^= 0x10
		if _, _, err := parse(broken); err == nil {
			t.Fatalf("byte %d may be changed", i)
		}
	}
	if err := os.WriteFile(file, b[:len(b)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	with(t, file, func(t *testing.T, _ *server, _ *Mirror, st *state.State, ready *bool) {
		if shows(t, st, 0); *ready {
			t.Error("a torn file is shown")
		}
	})
}
