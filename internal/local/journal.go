package local

import (
	"errors"
	"runtime"
	"slices"
	"sync"

	"github.com/fairlead-net/fairlead/internal/model"
)

// journal makes changes of the set of registrations one batch after the other:
// what comes while one is written is the next one, and shares one sync. One of
// those who wait leads the batch, and then lets the first of the next lead, so
// that nobody waits for more than the batch under way and its own.
type journal struct {
	file *file

	queue queue
	mu    sync.Mutex // held while a batch is written and installed
}

// change is one edit of one registration. edit gets the present one, nil if
// there is none, which it must not modify, and returns the one to have, nil to
// have none; the same pointer changes nothing. err is set when the change is
// over.
type change struct {
	id   model.ServiceID
	edit func(old *model.Registration) (*model.Registration, error)
	touch
	err error
}

// touch says what a change means beside what it changes.
type touch struct {
	renewed bool          // a client has registered: it is alive
	only    model.CheckID // what is renewed is this check; empty: all of them
	adopted bool          // the change came from the catalogue, which has it already
	file    bool          // the change came from the definition files
}

// renews reports whether a check begins anew.
func (t touch) renews(id model.CheckID) bool { return t.renewed && (t.only == "" || t.only == id) }

// request is changes that belong into one batch.
type request struct {
	changes []*change
	turn    chan bool // holds one: true to lead the next batch, false when the request is over
}

// queue is the requests that wait.
type queue struct {
	mu      sync.Mutex // guards the following
	waiting []*request
	led     bool // somebody leads, or has been told to
}

// enter adds a request, and says whether it has to lead.
func (q *queue) enter(r *request) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, r)
	lead := !q.led
	q.led = true
	return lead
}

func (q *queue) take() []*request {
	q.mu.Lock()
	defer q.mu.Unlock()
	all := q.waiting
	q.waiting = nil
	return all
}

// pass ends a turn: the first of those who wait leads now.
func (q *queue) pass() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.led = len(q.waiting) > 0
	if q.led {
		q.waiting[0].turn <- true
	}
}

func newJournal(dir string) *journal { return &journal{file: newFile(dir)} }

// do brings changes about through apply, together with everything else that
// waits, and returns when they are durable or have failed.
func (j *journal) do(apply func([]*change), changes ...*change) error {
	r := &request{changes: changes, turn: make(chan bool, 1)}
	if j.queue.enter(r) || <-r.turn {
		j.lead(apply, r)
	}
	var errs []error
	for _, c := range changes {
		if c.err != nil && !slices.Contains(errs, c.err) {
			errs = append(errs, c.err)
		}
	}
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}

// lead makes the batch that own belongs to.
func (j *journal) lead(apply func([]*change), own *request) {
	// Let those whom the batch before answered come again, or they would always
	// miss the next one.
	runtime.Gosched()
	j.mu.Lock()
	requests := j.queue.take()
	var batch []*change
	for _, r := range requests {
		batch = append(batch, r.changes...)
	}
	apply(batch)
	j.mu.Unlock()
	j.queue.pass()
	for _, r := range requests {
		if r != own {
			r.turn <- false
		}
	}
}
