// Package event keeps the user events that this node has seen: the newest ones,
// in memory, for as long as the process lives. They are no replicated state.
//
// A Log starts no goroutine and may be used by many. Who carries events from
// host to host fires them at one Log, follows it with Recent, and hands what
// comes from elsewhere to Receive.
package event

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/fairlead-net/fairlead/internal/model"
)

const (
	// Kept is how many events a Log remembers.
	Kept = 256
	// MaxSize bounds an event's name and payload together, in bytes.
	MaxSize = 512
)

// Log is what one node has seen.
type Log struct {
	node     model.NodeName
	services func() []model.Registration

	mu      sync.Mutex        // guards following
	recent  []model.UserEvent // oldest first; a slice that was handed out is never written again
	clock   uint64            // Lamport's
	changed chan struct{}     // closes at the next event
}

// New returns an empty log of a node; services tells which services run on it,
// for events that are meant for some only.
func New(node model.NodeName, services func() []model.Registration) *Log {
	return &Log{node: node, services: services, changed: make(chan struct{})}
}

// Fire makes an event: it gives it an id and a time, and keeps it if it is meant
// for this node. The error says what is wrong with the event.
func (l *Log) Fire(e model.UserEvent) (model.UserEvent, error) {
	if err := check(e); err != nil {
		return model.UserEvent{}, err
	}
	e.ID, e.At = uuid.NewString(), time.Now()
	l.mu.Lock()
	l.clock++
	e.LTime = l.clock
	l.mu.Unlock()
	l.Receive(e)
	return e, nil
}

// Receive takes an event that was fired somewhere, and keeps it if it is meant
// for this node and not known yet.
func (l *Log) Receive(e model.UserEvent) {
	meant := l.meant(e)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clock = max(l.clock, e.LTime)
	if !meant || slices.ContainsFunc(l.recent, func(o model.UserEvent) bool { return o.ID == e.ID }) {
		return
	}
	kept := l.recent[max(0, len(l.recent)-Kept+1):]
	l.recent = append(slices.Clip(slices.Clone(kept)), e)
	close(l.changed)
	l.changed = make(chan struct{})
}

// Recent returns the events that are kept, oldest first, and a channel that
// closes when there is another one. The list is shared: do not change it.
func (l *Log) Recent() ([]model.UserEvent, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.recent, l.changed
}

// check refuses what no node could make sense of, in words that Consul's clients
// know.
func check(e model.UserEvent) error {
	switch {
	case e.Name == "":
		return errors.New("User event missing name") //nolint:staticcheck // the wording is Consul's
	case e.TagFilter != "" && e.ServiceFilter == "":
		return errors.New("Cannot provide tag filter without service filter") //nolint:staticcheck // as above
	case len(e.Name)+len(e.Payload) > MaxSize:
		return fmt.Errorf("user event exceeds configured limit of %d bytes before encoding", MaxSize)
	}
	for _, f := range []struct{ what, expr string }{{"node", e.NodeFilter}, {"service", e.ServiceFilter}, {"tag", e.TagFilter}} {
		if _, err := regexp.Compile(f.expr); err != nil {
			return fmt.Errorf("Invalid %s filter: %w", f.what, err) //nolint:staticcheck // as above
		}
	}
	return nil
}

// meant reports whether an event's filters let this node hear of it. A filter of
// a stranger that is no regular expression lets nobody.
func (l *Log) meant(e model.UserEvent) bool {
	if !matches(e.NodeFilter, string(l.node)) {
		return false
	}
	if e.ServiceFilter == "" {
		return true
	}
	return slices.ContainsFunc(l.services(), func(r model.Registration) bool {
		i := &r.Instance
		if !matches(e.ServiceFilter, string(i.Service)) && !matches(e.ServiceFilter, string(i.ID)) {
			return false
		}
		return e.TagFilter == "" || slices.ContainsFunc(i.Tags, func(t string) bool { return matches(e.TagFilter, t) })
	})
}

func matches(expr, s string) bool {
	if expr == "" {
		return true
	}
	re, err := regexp.Compile(expr)
	return err == nil && re.MatchString(s)
}
