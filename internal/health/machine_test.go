package health

import (
	"strings"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
)

// TestThresholds reads: a check beginning as initial, with the needed outcomes in
// a row, hears the outcomes of "in" (P, W, C) and shows "want", lower case where
// the outcome does not count yet.
func TestThresholds(t *testing.T) {
	tests := []struct {
		name    string
		spec    model.CheckSpec
		initial model.Status
		in      string
		want    string
	}{
		{"none: each outcome decides", model.CheckSpec{}, model.Critical, "PCWPC", "PCWPC"},
		{"the first success decides", model.CheckSpec{SuccessBeforePassing: 3}, model.Critical, "PP", "PP"},
		{"later ones need company", model.CheckSpec{SuccessBeforePassing: 3}, model.Critical, "CPPPP", "CccPP"},
		{"a failure in between starts over", model.CheckSpec{SuccessBeforePassing: 2}, model.Critical, "CPCPP", "CcCcP"},
		{"warnings count as success", model.CheckSpec{SuccessBeforePassing: 2}, model.Critical, "CPW", "CcW"},
		{"failures need company", model.CheckSpec{FailuresBeforeCritical: 3}, model.Critical, "PCCCC", "PppCC"},
		{"also from the start, if it was good", model.CheckSpec{FailuresBeforeCritical: 3}, model.Passing, "CCC", "ppC"},
		{"not if it was bad", model.CheckSpec{FailuresBeforeCritical: 3}, model.Critical, "CP", "CP"},
		{"warning comes first", model.CheckSpec{FailuresBeforeWarning: 2, FailuresBeforeCritical: 4}, model.Passing, "CCCCP", "pWWCP"},
		{"warning at once", model.CheckSpec{FailuresBeforeWarning: 1, FailuresBeforeCritical: 3}, model.Critical, "PCCC", "PWWC"},
		{"a success resets failures", model.CheckSpec{FailuresBeforeCritical: 2}, model.Passing, "CPCPCC", "pPpPpC"},
		{"the same state counts", model.CheckSpec{SuccessBeforePassing: 3, FailuresBeforeCritical: 2}, model.Passing, "PCP", "PpP"},
		{"many outcomes", model.CheckSpec{SuccessBeforePassing: 2}, model.Critical, "PPPPPPCP", "PPPPPPCc"},
	}
	word := map[rune]model.Status{'P': model.Passing, 'W': model.Warning, 'C': model.Critical}
	letter := map[model.Status]string{model.Passing: "P", model.Warning: "W", model.Critical: "C"}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newThresholds(tt.spec, tt.initial)
			var got strings.Builder
			for _, r := range tt.in {
				status, counts := m.next(word[r])
				if l := letter[status]; counts {
					got.WriteString(l)
				} else {
					got.WriteString(strings.ToLower(l))
				}
			}
			if got.String() != tt.want {
				t.Errorf("%s shows %s, want %s", tt.in, got.String(), tt.want)
			}
		})
	}
}

func TestShorten(t *testing.T) {
	tests := []struct {
		in   string
		most int
		want string
	}{
		{"short", 5, "short"},
		{"too long", 3, "too ... (captured 3 of 8 bytes)"},
		{"añb", 2, "a ... (captured 2 of 4 bytes)"}, // no half character
		{"a\xffb", 10, "a\uFFFDb"},
		{"", 1, ""},
	}
	for _, tt := range tests {
		if got := shorten(tt.in, tt.most); got != tt.want {
			t.Errorf("shorten(%q, %d) = %q, want %q", tt.in, tt.most, got, tt.want)
		}
	}
}

func TestTimes(t *testing.T) {
	tests := []struct {
		spec              model.CheckSpec
		interval, timeout time.Duration
	}{
		{model.CheckSpec{}, 10 * time.Second, 10 * time.Second},
		{model.CheckSpec{Interval: time.Minute}, time.Minute, 10 * time.Second},
		{model.CheckSpec{Interval: time.Second}, time.Second, time.Second},
		{model.CheckSpec{Interval: 5 * time.Second, Timeout: 2 * time.Second}, 5 * time.Second, 2 * time.Second},
		{model.CheckSpec{Interval: 5 * time.Second, Timeout: time.Minute}, 5 * time.Second, 5 * time.Second},
		{model.CheckSpec{Interval: 1}, minInterval, minInterval},
	}
	for _, tt := range tests {
		if i, o := interval(tt.spec), timeout(tt.spec); i != tt.interval || o != tt.timeout {
			t.Errorf("%v/%v asked: interval %v timeout %v, want %v %v", tt.spec.Interval, tt.spec.Timeout, i, o, tt.interval, tt.timeout)
		}
	}
}
