package health

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/fairlead-net/fairlead/internal/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ledger is a Reporter that writes down what it hears and when.
type ledger struct {
	mu    sync.Mutex
	start time.Time
	rows  []string
}

func newLedger() *ledger { return &ledger{start: time.Now()} }

func (l *ledger) Report(id model.CheckID, s model.Status, output string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rows = append(l.rows, fmt.Sprintf("%v %s %s %s", time.Since(l.start), id, s, output))
}

func (l *ledger) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	rows := l.rows
	l.rows = nil
	return rows
}

func (l *ledger) expect(t *testing.T, want ...string) {
	t.Helper()
	if got := l.take(); !slices.Equal(got, want) {
		t.Errorf("reports:\n%q\nwant:\n%q", got, want)
	}
}

// run starts r.Run and returns its end.
func run(t *testing.T, r *Runner) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	}
}

// scripted makes every check answer from script, round by round.
func scripted(r *Runner, script ...model.Status) {
	var mu sync.Mutex
	round := 0
	r.probe = func(model.CheckSpec) probe {
		return func(context.Context) (model.Status, string) {
			mu.Lock()
			defer mu.Unlock()
			s := script[min(round, len(script)-1)]
			round++
			return s, fmt.Sprintf("round %d", round)
		}
	}
}

func TestChecksRunAtOnceAndThenEveryInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger()
		r := New(l, Config{Log: quietLog})
		scripted(r, model.Passing, model.Critical, model.Critical, model.Passing)
		r.Set(model.CheckSpec{ID: "c", TCP: "x:1", Interval: 10 * time.Second, FailuresBeforeCritical: 2}, model.Critical)
		synctest.Wait()
		l.expect(t) // nothing runs before Run
		stop := run(t, r)
		time.Sleep(31 * time.Second)
		l.expect(t, "0s c passing round 1", "20s c critical round 3", "30s c passing round 4")
		stop()
		time.Sleep(time.Minute)
		l.expect(t)
		r.Set(model.CheckSpec{ID: "late", TCP: "x:1"}, "") // after the end: harmless
		synctest.Wait()
		l.expect(t)
	})
}

// A program that is just starting is found healthy sooner than after a whole
// interval; one that was healthy, or never answers, is asked as was agreed.
func TestAStartingProgramIsAskedSooner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger()
		r := New(l, Config{Log: quietLog})
		no, yes := model.Critical, model.Passing
		scripted(r, no, no, no, yes, no, yes)
		stop := run(t, r)
		r.Set(model.CheckSpec{ID: "c", TCP: "x:1", Interval: 10 * time.Second}, model.Critical)
		time.Sleep(21 * time.Second)
		l.expect(t, "0s c critical round 1", "100ms c critical round 2", "300ms c critical round 3",
			"700ms c passing round 4", "10.7s c critical round 5", "20.7s c passing round 6")
		stop()
	})
	synctest.Test(t, func(t *testing.T) {
		l := newLedger()
		r := New(l, Config{Log: quietLog})
		scripted(r, model.Critical)
		stop := run(t, r)
		r.Set(model.CheckSpec{ID: "c", TCP: "x:1", Interval: time.Second}, model.Critical)
		time.Sleep(3 * time.Second)
		l.expect(t, "0s c critical round 1", "100ms c critical round 2", "300ms c critical round 3", "700ms c critical round 4",
			"1.5s c critical round 5", "2.5s c critical round 6")
		stop()
	})
}

func TestSetReplacesAndRemoveEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger()
		r := New(l, Config{Log: quietLog})
		r.probe = func(s model.CheckSpec) probe {
			return func(context.Context) (model.Status, string) { return model.Passing, s.TCP }
		}
		stop := run(t, r)
		defer stop()
		r.Set(model.CheckSpec{ID: "c", TCP: "old", Interval: 10 * time.Second}, "")
		time.Sleep(15 * time.Second)
		r.Set(model.CheckSpec{ID: "c", TCP: "new", Interval: 20 * time.Second}, "")
		time.Sleep(30 * time.Second)
		l.expect(t, "0s c passing old", "10s c passing old", "15s c passing new", "35s c passing new")
		r.Remove("c")
		r.Remove("never there")
		time.Sleep(time.Minute)
		l.expect(t)
	})
}

// TestNoReportAfterRemove holds a question back until its check is gone.
func TestNoReportAfterRemove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger()
		r := New(l, Config{Log: quietLog})
		asked, answer := make(chan bool), make(chan bool)
		r.probe = func(s model.CheckSpec) probe {
			return func(context.Context) (model.Status, string) {
				if s.TCP == "slow" { // and deaf to its context
					asked <- true
					<-answer
				}
				return model.Passing, s.TCP
			}
		}
		stop := run(t, r)
		defer stop()
		r.Set(model.CheckSpec{ID: "a", TCP: "slow"}, "")
		<-asked
		r.Remove("a")
		r.Set(model.CheckSpec{ID: "a", TCP: "next"}, "")
		synctest.Wait()
		close(answer)
		synctest.Wait()
		l.expect(t, "0s a passing next")
	})
}

// TestRetiredCheckIsSilent: also in the moment before its loop notices.
func TestRetiredCheckIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger()
		c := newCheck(model.CheckSpec{ID: "c", TTL: time.Second}, "", l, quietLog)
		c.retire()
		c.outcome(model.Passing, "late")
		c.expire(time.Now().Add(time.Hour))
		if c.beat(model.Passing, "late") || c.begin() {
			t.Error("a retired check takes signs of life")
		}
		l.expect(t)
	})
}

func TestTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger()
		r := New(l, Config{Log: quietLog})
		ttl := model.CheckSpec{ID: "t", TTL: 10 * time.Second}
		beat := func(s model.Status, out string) {
			t.Helper()
			if err := r.TTL("t", s, out); err != nil {
				t.Fatal(err)
			}
		}
		stop := run(t, r)
		defer stop()
		r.Set(ttl, model.Passing)
		time.Sleep(11 * time.Second)
		l.expect(t, "10s t critical TTL expired")
		time.Sleep(time.Minute)
		l.expect(t) // said once
		beat(model.Passing, "fine")
		l.expect(t, "1m11s t passing fine") // before TTL returns
		time.Sleep(9 * time.Second)
		beat(model.Warning, "so so")
		time.Sleep(9 * time.Second)
		l.expect(t, "1m20s t warning so so")
		time.Sleep(time.Second)
		synctest.Wait()
		l.expect(t, "1m30s t critical TTL expired (last output before timeout follows): so so")

		beat(model.Passing, "again")
		time.Sleep(5 * time.Second)
		r.Set(ttl, model.Passing) // registered again: the whole TTL, the last words kept
		time.Sleep(9 * time.Second)
		l.expect(t, "1m30s t passing again")
		time.Sleep(time.Second)
		synctest.Wait()
		l.expect(t, "1m45s t critical TTL expired (last output before timeout follows): again")
	})
}

func TestTTLOutputIsCut(t *testing.T) {
	l := newLedger()
	r := New(l, Config{Log: quietLog})
	r.Set(model.CheckSpec{ID: "t", TTL: time.Hour, OutputMaxSize: 4}, "")
	if err := r.TTL("t", model.Passing, "123456"); err != nil { // also before Run
		t.Fatal(err)
	}
	rows := l.take()
	if want := "t passing 1234 ... (captured 4 of 6 bytes)"; len(rows) != 1 || !strings.HasSuffix(rows[0], want) {
		t.Errorf("reports %q, want one that ends %q", rows, want)
	}
}

func TestTTLErrors(t *testing.T) {
	r := New(newLedger(), Config{Log: quietLog})
	r.Set(model.CheckSpec{ID: "h", HTTP: "http://127.0.0.1"}, "")
	if err := r.TTL("h", model.Passing, ""); !errors.Is(err, ErrNotTTL) {
		t.Errorf("TTL of an HTTP check = %v", err)
	}
	if err := r.TTL("x", model.Passing, ""); !errors.Is(err, ErrUnknownCheck) {
		t.Errorf("TTL of no check = %v", err)
	}
}

func TestConcurrentUse(t *testing.T) {
	l := newLedger()
	r := New(l, Config{Log: quietLog})
	r.probe = func(model.CheckSpec) probe {
		return func(context.Context) (model.Status, string) { return model.Passing, "" }
	}
	stop := run(t, r)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 200 {
				id := model.CheckID(fmt.Sprint(i % 3))
				switch (g + i) % 4 {
				case 0:
					r.Set(model.CheckSpec{ID: id, TCP: "x", Interval: time.Second}, "")
				case 1:
					r.Set(model.CheckSpec{ID: id, TTL: time.Second}, "")
				case 2:
					_ = r.TTL(id, model.Passing, "")
				case 3:
					r.Remove(id)
				}
			}
		})
	}
	wg.Wait()
	stop()
}

// TestTTLWhileReplaced: a sign of life that comes while its check is registered
// again is heard by the one or the other.
func TestTTLWhileReplaced(t *testing.T) {
	r := New(newLedger(), Config{})
	spec := model.CheckSpec{ID: "t", TTL: time.Hour}
	r.Set(spec, "")
	var wg sync.WaitGroup
	for range 8 { // waiting for one lock, some of them hold what is replaced
		wg.Go(func() {
			for range 2000 {
				if err := r.TTL("t", model.Passing, ""); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 2000 {
		r.Set(spec, "")
	}
	wg.Wait()
	r.Remove("t")
}

func TestOutputIsBounded(t *testing.T) {
	l := newLedger()
	r := New(l, Config{})
	r.Set(model.CheckSpec{ID: "t", TTL: time.Hour, OutputMaxSize: 1 << 30}, "")
	if err := r.TTL("t", model.Passing, strings.Repeat("x", 1<<20)); err != nil {
		t.Fatal(err)
	}
	if rows := strings.Join(l.take(), ""); len(rows) > 5000 || !strings.Contains(rows, "captured 4096 of 1048576 bytes") {
		t.Errorf("%d bytes were kept", len(rows))
	}
}
