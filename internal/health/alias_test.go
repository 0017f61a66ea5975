package health

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/fairlead-net/fairlead/internal/model"
)

// reports hands the reports of a Runner to a test.
type reports chan string

func (r reports) Report(id model.CheckID, s model.Status, output string) {
	r <- fmt.Sprintf("%s %s %s", id, s, output)
}

// target is what an alias stands for.
type target struct {
	mu      sync.Mutex // guards the following
	status  model.Status
	changed chan struct{}
}

func (t *target) Target(spec model.CheckSpec) (model.Status, string, [2]<-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.status, string(spec.AliasService), [2]<-chan struct{}{nil, t.changed}
}

func (t *target) become(s model.Status) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.status = s
	close(t.changed)
	t.changed = make(chan struct{})
}

// TestAliases: an alias is in the state of its target from the start, and as soon
// as that changes.
func TestAliases(t *testing.T) {
	target := &target{status: model.Passing, changed: make(chan struct{})}
	got := make(reports)
	r := New(got, Config{Targets: target})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	r.Set(model.CheckSpec{ID: "c", AliasService: "web"}, model.Critical)
	for i, want := range []model.Status{model.Passing, model.Warning, model.Critical, model.Passing} {
		if i > 0 {
			target.become(want)
		}
		if row := <-got; row != "c "+string(want)+" web" {
			t.Errorf("%q, want %s", row, want)
		}
	}
	cancel()
	<-done

	lost := New(got, Config{})
	ctx, cancel = context.WithCancel(context.Background())
	go func() { done <- lost.Run(ctx) }()
	lost.Set(model.CheckSpec{ID: "c", AliasService: "web"}, model.Critical)
	if row := <-got; row != "c critical this agent follows no aliases" {
		t.Errorf("without targets: %q", row)
	}
	cancel()
	<-done
}
