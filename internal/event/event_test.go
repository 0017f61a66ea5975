package event_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/fairlead-net/fairlead/internal/event"
	"github.com/fairlead-net/fairlead/internal/model"
)

func log() *event.Log {
	return event.New("n1", func() []model.Registration {
		return []model.Registration{{Instance: model.Instance{ID: "web-1", Service: "web", Tags: []string{"v1", "blue"}}}}
	})
}

func TestFire(t *testing.T) {
	for _, c := range []struct {
		name string
		e    model.UserEvent
		kept bool
		err  string
	}{
		{"for everybody", model.UserEvent{Name: "deploy"}, true, ""},
		{"for this node", model.UserEvent{Name: "deploy", NodeFilter: "^n[0-9]$"}, true, ""},
		{"for another node", model.UserEvent{Name: "deploy", NodeFilter: "db"}, false, ""},
		{"for a service here", model.UserEvent{Name: "deploy", ServiceFilter: "^web$"}, true, ""},
		{"for an instance here", model.UserEvent{Name: "deploy", ServiceFilter: "^web-1$"}, true, ""},
		{"for another service", model.UserEvent{Name: "deploy", ServiceFilter: "db"}, false, ""},
		{"for a tag here", model.UserEvent{Name: "deploy", ServiceFilter: "web", TagFilter: "blue|green"}, true, ""},
		{"for another tag", model.UserEvent{Name: "deploy", ServiceFilter: "web", TagFilter: "red"}, false, ""},
		{"at its largest", model.UserEvent{Name: "deploy", Payload: make([]byte, event.MaxSize-6)}, true, ""},

		{"no name", model.UserEvent{}, false, "User event missing name"},
		{"a tag of no service", model.UserEvent{Name: "deploy", TagFilter: "v1"}, false, "Cannot provide tag filter without service filter"},
		{"too large", model.UserEvent{Name: "deploy", Payload: make([]byte, event.MaxSize-5)}, false, "user event exceeds configured limit of 512 bytes before encoding"},
		{"a bad node filter", model.UserEvent{Name: "deploy", NodeFilter: "("}, false, "Invalid node filter: error parsing regexp"},
		{"a bad service filter", model.UserEvent{Name: "deploy", ServiceFilter: "("}, false, "Invalid service filter: error parsing regexp"},
		{"a bad tag filter", model.UserEvent{Name: "deploy", ServiceFilter: "a", TagFilter: "("}, false, "Invalid tag filter: error parsing regexp"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := log()
			_, changed := l.Recent()
			e, err := l.Fire(c.e)
			if c.err != "" {
				if err == nil || !strings.HasPrefix(err.Error(), c.err) {
					t.Fatalf("error %v, want %s", err, c.err)
				}
				return
			}
			if err != nil || e.ID == "" || e.LTime != 1 || e.At.IsZero() {
				t.Fatalf("fired %+v, %v", e, err)
			}
			recent, _ := l.Recent()
			if (len(recent) == 1) != c.kept {
				t.Errorf("kept %+v, want %v", recent, c.kept)
			}
			if closed(changed) != c.kept {
				t.Errorf("told who waits: %v, want %v", closed(changed), c.kept)
			}
		})
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// TestTheNewestAreKept: a log is bounded, and what it handed out stays as it was.
func TestTheNewestAreKept(t *testing.T) {
	l := log()
	var early []model.UserEvent
	for i := range event.Kept + 10 {
		if _, err := l.Fire(model.UserEvent{Name: fmt.Sprint("e", i)}); err != nil {
			t.Fatal(err)
		}
		if i == 9 {
			early, _ = l.Recent()
		}
	}
	recent, _ := l.Recent()
	if len(recent) != event.Kept || recent[0].Name != "e10" || recent[event.Kept-1].Name != fmt.Sprint("e", event.Kept+9) {
		t.Errorf("%d kept, from %s to %s", len(recent), recent[0].Name, recent[len(recent)-1].Name)
	}
	for i, e := range early {
		if e.Name != fmt.Sprint("e", i) {
			t.Errorf("a list that was handed out changed: %d is %s", i, e.Name)
		}
	}
}

// TestReceive: an event from another node is kept once, and the next one fired
// here comes after it.
func TestReceive(t *testing.T) {
	l := log()
	there := model.UserEvent{ID: "11111111-1111-1111-1111-111111111111", Name: "deploy", LTime: 41}
	l.Receive(there)
	_, changed := l.Recent()
	l.Receive(there)
	l.Receive(model.UserEvent{ID: "2", Name: "deploy", NodeFilter: "("})
	if recent, _ := l.Recent(); len(recent) != 1 || closed(changed) {
		t.Errorf("kept %+v", recent)
	}
	if e, err := l.Fire(model.UserEvent{Name: "here"}); err != nil || e.LTime != 42 {
		t.Errorf("fired at %d, %v", e.LTime, err)
	}
}
