package health

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/fairlead-net/fairlead/internal/model"
)

// thresholds turns the outcomes of a check's questions into the check's state:
// a value without clock or goroutine.
//
// The counting is Consul's: a warning counts as a success, a state changes after
// so many equal outcomes in a row, and the first outcome of all decides at once,
// so that a new service need not wait for several rounds. One thing differs: a
// first failure does not decide when the check begins as passing or warning. A
// check that is known to be good (because its node's agent was restarted) has to
// fail as often as any other.
type thresholds struct {
	passing, warning, critical int // outcomes in a row that are needed; at least 1

	status              model.Status
	successes, failures int
}

func newThresholds(s model.CheckSpec, initial model.Status) thresholds {
	t := thresholds{
		passing:  max(s.SuccessBeforePassing, 1),
		critical: max(s.FailuresBeforeCritical, 1),
		status:   initial,
	}
	t.warning = t.critical
	if s.FailuresBeforeWarning > 0 {
		t.warning = s.FailuresBeforeWarning
	}
	t.successes = t.passing
	if initial == model.Critical {
		t.failures = t.critical
	}
	return t
}

// next takes an outcome and returns the check's state, and whether the outcome
// counts: one that is waiting for more of its kind does not.
func (t *thresholds) next(outcome model.Status) (model.Status, bool) {
	want := t.status
	counts := outcome == t.status
	if outcome == model.Passing || outcome == model.Warning {
		t.failures = 0
		t.successes = min(t.successes+1, t.passing)
		if t.successes == t.passing {
			want, counts = outcome, true
		}
	} else {
		t.successes = 0
		t.failures = min(t.failures+1, max(t.critical, t.warning))
		switch {
		case t.failures >= t.critical:
			want, counts = model.Critical, true
		case t.failures >= t.warning && t.status != model.Critical:
			want, counts = model.Warning, true
		}
	}
	t.status = want
	return want, counts
}

// countdown is the state of a TTL check: a value that is told the time.
type countdown struct {
	ttl      time.Duration
	deadline time.Time
	expired  bool
	output   string // the owner's last words
}

func (c *countdown) left(now time.Time) time.Duration { return c.deadline.Sub(now) }

// beat notes a sign of life and says whether the countdown had expired.
func (c *countdown) beat(now time.Time, output string) (wasExpired bool) {
	wasExpired, c.expired = c.expired, false
	c.deadline, c.output = now.Add(c.ttl), output
	return wasExpired
}

// expire returns the message of expiry, and whether this is the first time
// since the last sign of life. The wording is Consul's.
func (c *countdown) expire() (output string, first bool) {
	first, c.expired = !c.expired, true
	if c.output == "" {
		return "TTL expired", first
	}
	return "TTL expired (last output before timeout follows): " + c.output, first
}

// shorten cuts an owner's output to size as Consul does, at a whole character,
// and makes it valid UTF-8, because it goes into JSON.
func shorten(s string, most int) string {
	if total := len(s); total > most {
		s = fmt.Sprintf("%s ... (captured %d of %d bytes)", cut(s, most), most, total)
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// cut returns the first bytes of s, at most so many, without half a character.
func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	for i := most; i > most-utf8.UTFMax && i > 0; i-- {
		if utf8.RuneStart(s[i]) {
			return s[:i]
		}
	}
	return s[:most]
}
