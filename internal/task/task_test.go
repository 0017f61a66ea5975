package task_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/fairlead-net/fairlead/internal/task"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// diary records in which order things happened.
type diary struct {
	mu   sync.Mutex
	rows []string
}

func (d *diary) add(s string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rows = append(d.rows, s)
}

func (d *diary) String() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Join(d.rows, " ")
}

// steady is a unit that is ready after a while and runs until it is stopped.
func (d *diary) steady(name string, after time.Duration) task.Unit {
	return task.Unit{Name: name, Run: func(ctx context.Context, ready func()) error {
		d.add("+" + name)
		if err := task.Sleep(ctx, after); err != nil {
			d.add("-" + name)
			return err
		}
		ready()
		ready() // must be harmless
		<-ctx.Done()
		_ = task.Sleep(context.Background(), after) // stopping takes a while too
		d.add("-" + name)
		return ctx.Err()
	}}
}

func TestUnitsStartInOrderAndStopInReverse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := task.Run(ctx, d.steady("a", time.Second), d.steady("b", 2*time.Second), d.steady("c", 0)); err != nil {
			t.Fatalf("Run = %v, want nil at the end of ctx", err)
		}
		if got, want := d.String(), "+a +b +c -c -b -a"; got != want {
			t.Errorf("order %q, want %q", got, want)
		}
	})
}

func TestContextEndsDuringStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if err := task.Run(ctx, d.steady("a", time.Second), d.steady("b", time.Hour), d.steady("c", 0)); err != nil {
			t.Fatalf("Run = %v", err)
		}
		if got, want := d.String(), "+a +b -b -a"; got != want {
			t.Errorf("order %q, want %q", got, want)
		}
	})
}

func TestContextAlreadyOver(t *testing.T) {
	var d diary
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := task.Run(ctx, d.steady("a", 0)); err != nil || d.String() != "" {
		t.Errorf("Run = %v, diary %q; want nothing started", err, d.String())
	}
}

func TestEndOfUnits(t *testing.T) {
	boom := errors.New("boom")
	failing := func(after time.Duration, ready bool, err error) task.Unit {
		return task.Unit{Name: "x", Run: func(ctx context.Context, r func()) error {
			if ready {
				r()
			}
			_ = task.Sleep(ctx, after)
			return err
		}}
	}
	tests := []struct {
		name  string
		unit  task.Unit
		want  error
		order string
	}{
		{"fails before ready", failing(time.Second, false, boom), boom, "+a -a"},
		{"fails after ready", failing(time.Minute, true, boom), boom, "+a +b -b -a"},
		{"returns nil before ready", failing(time.Second, false, nil), task.ErrNotReady, "+a -a"},
		{"finishes after ready", failing(time.Minute, true, nil), nil, "+a +b -b -a"},
		{"fails while stopping", failing(2*time.Hour, true, boom), boom, "+a +b -b -a"},
		{"returns cancellation unasked", failing(time.Second, true, context.Canceled), context.Canceled, "+a +b -b -a"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var d diary
				ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
				defer cancel()
				err := task.Run(ctx, d.steady("a", time.Second), tt.unit, d.steady("b", 0))
				if !errors.Is(err, tt.want) {
					t.Errorf("Run = %v, want %v", err, tt.want)
				}
				if err != nil && !strings.HasPrefix(err.Error(), "x: ") {
					t.Errorf("error %q does not name the unit", err)
				}
				if got := d.String(); got != tt.order {
					t.Errorf("order %q, want %q", got, tt.order)
				}
			})
		})
	}
}

func TestRunEndsWhenAllFinished(t *testing.T) {
	done := task.Unit{Name: "once", Run: func(_ context.Context, ready func()) error { ready(); return nil }}
	if err := task.Run(context.Background(), done, done); err != nil {
		t.Errorf("Run = %v", err)
	}
	if err := task.Run(context.Background()); err != nil {
		t.Errorf("Run of nothing = %v", err)
	}
}

func TestAnEarlierUnitFailsWhileALaterOneStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boom := errors.New("boom")
		var d diary
		early := task.Unit{Name: "early", Run: func(ctx context.Context, ready func()) error {
			ready()
			_ = task.Sleep(ctx, time.Second)
			return boom
		}}
		err := task.Run(context.Background(), early, d.steady("late", time.Hour), d.steady("never", 0))
		if !errors.Is(err, boom) || d.String() != "+late -late" {
			t.Errorf("Run = %v, order %q", err, d.String())
		}
	})
}

func TestUnitContextKeepsValuesNotCancellation(t *testing.T) {
	type key struct{}
	ctx, cancel := context.WithCancel(context.WithValue(context.Background(), key{}, "v"))
	var seen []error
	last := task.Unit{Name: "last", Run: func(own context.Context, ready func()) error {
		ready()
		<-own.Done()
		return nil
	}}
	first := task.Unit{Name: "first", Run: func(own context.Context, ready func()) error {
		if own.Value(key{}) != "v" {
			t.Error("values of the parent are gone")
		}
		ready()
		cancel()
		seen = append(seen, own.Err())
		<-own.Done()
		return nil
	}}
	if err := task.Run(ctx, first, last); err != nil || !slices.Equal(seen, []error{nil}) {
		t.Errorf("Run = %v, own error right after the parent's end %v", err, seen)
	}
}

func TestBackoff(t *testing.T) {
	within := func(t *testing.T, b *task.Backoff, most time.Duration) {
		t.Helper()
		if d := b.Next(); d < most/2 || d > most {
			t.Errorf("delay %v, want %v..%v", d, most/2, most)
		}
	}
	b := task.Backoff{Min: time.Second, Max: 5 * time.Second}
	for _, want := range []time.Duration{1, 2, 4, 5, 5} {
		within(t, &b, want*time.Second)
	}
	b.Reset()
	within(t, &b, time.Second)

	var zero task.Backoff
	within(t, &zero, 100*time.Millisecond)
	for range 100 {
		zero.Next()
	}
	within(t, &zero, 30*time.Second)

	odd := task.Backoff{Min: time.Hour} // above the default maximum
	within(t, &odd, time.Hour)
	within(t, &odd, time.Hour)
}

func TestJitter(t *testing.T) {
	for range 100 {
		if d := task.Jitter(time.Minute); d < time.Minute || d > time.Minute+time.Minute/16 {
			t.Fatalf("Jitter(1m) = %v", d)
		}
	}
	if d := task.Jitter(0); d != 0 {
		t.Errorf("Jitter(0) = %v", d)
	}
}

func TestSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if err := task.Sleep(context.Background(), time.Hour); err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		before := time.Now()
		if err := task.Sleep(ctx, time.Hour); !errors.Is(err, context.DeadlineExceeded) || time.Since(before) != time.Minute {
			t.Errorf("Sleep = %v after %v", err, time.Since(before))
		}
		if err := task.Sleep(ctx, 0); err == nil {
			t.Error("Sleep with a finished context = nil")
		}
	})
}
