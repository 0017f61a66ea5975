package health

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/task"
)

// Bounds of what a check may ask for.
const (
	defaultTimeout  = 10 * time.Second
	programTimeout  = 30 * time.Second
	defaultInterval = 10 * time.Second
	minInterval     = 100 * time.Millisecond // below it a check is load, not a question
	mostOutput      = 4096                   // bytes
)

// probe asks once.
type probe func(ctx context.Context) (model.Status, string)

// check is one check that is set: its rules and the door to the reporter.
type check struct {
	spec   model.CheckSpec
	rep    Reporter
	log    *slog.Logger
	gone   context.Context // over once retired
	retire func() string   // ends the check and returns the last words of a TTL

	wake chan struct{} // a TTL that had expired has been heard of again

	mu      sync.Mutex // guards the following; held during Report
	started bool
	dead    bool
	shown   model.Status
	rules   thresholds
	ttl     countdown
}

func newCheck(spec model.CheckSpec, initial model.Status, rep Reporter, log *slog.Logger) *check {
	if !initial.Valid() {
		initial = model.Critical
	}
	gone, cancel := context.WithCancel(context.Background())
	c := &check{spec: spec, rep: rep, log: log, gone: gone, wake: make(chan struct{}, 1), shown: initial}
	c.rules = newThresholds(spec, initial)
	c.ttl = countdown{ttl: spec.TTL, deadline: time.Now().Add(spec.TTL)}
	c.retire = func() string {
		cancel()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.dead = true
		return c.ttl.output
	}
	return c
}

// inherit takes over the last words of the TTL check that c replaces.
func (c *check) inherit(words string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ttl.output == "" {
		c.ttl.output = words
	}
}

// begin says whether the caller is the first to start the check's loop.
func (c *check) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.started || c.dead {
		return false
	}
	c.started = true
	c.ttl.deadline = time.Now().Add(c.ttl.ttl)
	return true
}

// poll asks at once and then at every interval until ctx ends. A check that
// begins as critical is most often that of a program that is just starting: until
// it first answers, it is asked sooner, at first after minInterval and then after
// twice as long each time.
func (c *check) poll(ctx context.Context, ask probe) {
	every, soon := interval(c.spec), minInterval
	starting := c.state() == model.Critical
	for {
		asked := time.Now()
		if !c.ask(ctx, ask) {
			return
		}
		wait := every
		if starting = starting && c.state() == model.Critical && soon < every; starting {
			wait, soon = soon, 2*soon
		}
		if task.Sleep(ctx, wait-time.Since(asked)) != nil {
			return
		}
	}
}

// ask asks once, and says whether to go on: what is heard once ctx is over is
// about our own end.
func (c *check) ask(ctx context.Context, ask probe) bool {
	status, output := ask(ctx)
	if ctx.Err() != nil {
		return false
	}
	c.outcome(status, output)
	return true
}

func (c *check) state() model.Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.shown
}

func (c *check) outcome(status model.Status, output string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead {
		return
	}
	if shown, counts := c.rules.next(status); counts {
		c.report(shown, output)
	}
}

// report passes an outcome on; c.mu is held.
func (c *check) report(status model.Status, output string) {
	if status != c.shown {
		c.log.Info("check changed", "check", c.spec.ID, "service", c.spec.ServiceID, "from", c.shown, "to", status, "output", firstLine(output))
		c.shown = status
	}
	c.rep.Report(c.spec.ID, status, output)
}

// firstLine is what a log shows of an output, which may be a whole page.
func firstLine(output string) string {
	const most = 200 // bytes
	line, _, _ := strings.Cut(output, "\n")
	return strings.ToValidUTF8(line[:min(len(line), most)], "")
}

// countDown reports when the TTL runs out, until ctx ends.
func (c *check) countDown(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-c.wake:
		}
		if left, ok := c.expire(time.Now()); ok {
			timer.Reset(left)
		}
	}
}

// expire reports an expiry that is due and returns the time left otherwise.
func (c *check) expire(now time.Time) (time.Duration, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	left := c.ttl.left(now)
	if left > 0 {
		return left, true
	}
	if output, first := c.ttl.expire(); first && !c.dead {
		c.report(model.Critical, output)
	}
	return 0, false
}

// beat is a sign of life of a TTL check; false if the check is gone.
func (c *check) beat(status model.Status, output string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead {
		return false
	}
	output = shorten(output, outputMax(c.spec))
	if c.ttl.beat(time.Now(), output) {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
	c.report(status, output)
	return true
}

// interval is the time from one question to the next.
func interval(s model.CheckSpec) time.Duration {
	if s.Interval <= 0 {
		return defaultInterval
	}
	return max(s.Interval, minInterval)
}

// timeout is how long one question over the network may take: never longer than
// to the next.
func timeout(s model.CheckSpec) time.Duration {
	t := s.Timeout
	if t <= 0 {
		t = defaultTimeout
	}
	return min(t, interval(s))
}

// programTime is how long a program may run. One that takes longer than the interval
// only delays its next run.
func programTime(s model.CheckSpec) time.Duration {
	if s.Timeout <= 0 {
		return programTimeout
	}
	return s.Timeout
}

// outputMax is the most bytes of output that are kept. As with Consul, a check can
// only ask for less: every output goes to every node.
func outputMax(s model.CheckSpec) int {
	if s.OutputMaxSize <= 0 {
		return mostOutput
	}
	return min(s.OutputMaxSize, mostOutput)
}
