package local

import (
	"fmt"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
)

func TestAlarms(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	var a alarms
	ring := func(s int) string {
		var rung []model.ServiceID
		a.ring(at(s), func(id model.ServiceID) { rung = append(rung, id) })
		return fmt.Sprint(rung)
	}
	a.set("never", time.Time{})
	if !a.next().IsZero() || ring(1000) != "[]" {
		t.Error("no time is an alarm")
	}
	a.set("a", at(30))
	a.set("a", at(20)) // sooner takes its place
	a.set("a", at(40)) // later does not
	a.set("b", at(25))
	for _, step := range []struct {
		now  int
		want string
	}{{19, "[]"}, {20, "[a]"}, {24, "[]"}, {29, "[b]"}, {100, "[]"}} {
		if got := ring(step.now); got != step.want {
			t.Errorf("at %d rang %s, want %s", step.now, got, step.want)
		}
	}
	a.set("a", at(200)) // rung, it can be set again
	if got := ring(200); got != "[a]" || !a.next().IsZero() {
		t.Errorf("rang %s", got)
	}
}
