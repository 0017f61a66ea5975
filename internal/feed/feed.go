// Package feed hands the catalogue's changes to agents. It stands between a
// server's store and its state, keeps the latest changes, and gives each reader
// what follows the index that it has, or everything.
//
// What is sent is encoded once for all readers. A change goes out at once when
// the one before is long past; the more readers there are, the longer changes
// gather, up to MaxGather, so that sending takes at most a part of one CPU. A
// reader that does not keep up is sent everything anew, and never holds up others.
package feed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/wire"
)

const (
	// MaxGather is the longest that a change waits for others to go with it.
	MaxGather = 150 * time.Millisecond
	// perReader is what a publication is taken to cost for each reader: a write,
	// TLS, and waking a goroutine. It may take a quarter of one CPU.
	perReader, share = 15 * time.Microsecond, 4
	// indexGather is how long an index waits at which agents have nothing new.
	indexGather = 250 * time.Millisecond
	// beatEvery is how often a reader hears something.
	beatEvery = time.Second
	// keep is how many changes back a reader can resume.
	keep = 16384
	// sendAtOnce is how many bytes are gathered into one write, about.
	sendAtOnce = 256 << 10
	// snapshotLife is how long an encoded snapshot is kept for further readers.
	snapshotLife = 5 * time.Second
)

// batch is what was published at once. The list of batches only grows at its end;
// what is before head is garbage once no reader is there.
type batch struct {
	from, to model.Index // it leads from the one to the other
	seq      uint64      // of the changes before it
	changes  []state.Change
	once     sync.Once
	frames   []byte
	// next is set when ready closes.
	next  *batch
	ready chan struct{}
}

// Feed is a server's. It is what the store changes in place of the state.
type Feed struct {
	st  *state.State
	run string
	log *slog.Logger

	mu      sync.Mutex // guards following
	head    *batch     // the oldest that is kept
	tail    *batch     // an empty one, to be filled by the next publication
	pending []state.Change
	index   model.Index // up to which pending goes
	last    time.Time   // of the last publication
	timer   *time.Timer // of the next one; nil if none is due
	due     time.Time   // when the timer fires
	readers int
	shot    *snapshot
}

// snapshot is everything at an index, encoded, and what follows it.
type snapshot struct {
	made time.Time
	once sync.Once
	snap *state.Snapshot
	b    []byte
	err  error
	next *batch
}

// New returns the feed of a state that nothing was applied to yet. run says whose
// indexes they are: those of another one mean nothing to this.
func New(st *state.State, run string, log *slog.Logger) *Feed {
	f := &Feed{st: st, run: run, log: log}
	f.restart(0)
	return f
}

// restart forgets what came before an index; mu is held, but in New.
func (f *Feed) restart(index model.Index) {
	b := &batch{from: index, ready: make(chan struct{})}
	if f.tail != nil {
		// Readers at the old end find no way on, and ask for everything.
		b.seq = f.tail.seq + keep + 1
		f.tail.next = b
		close(f.tail.ready)
	}
	f.head, f.tail = b, b
	f.pending, f.index, f.shot = nil, index, nil
}

// Apply is the state's Apply, see store.Applier.
func (f *Feed) Apply(rev model.Index, changes []state.Change) {
	f.st.Apply(rev, changes)
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range changes {
		if wire.Carries(&changes[i]) {
			f.pending = append(f.pending, changes[i])
		}
	}
	f.index = rev
	f.schedule(time.Now())
}

// Reset is the state's Reset, see store.Applier. All readers start anew.
func (f *Feed) Reset(rev model.Index, records []state.Change) {
	f.st.Reset(rev, records)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.restart(rev)
}

// schedule publishes now, or as soon as changes have gathered; mu is held.
func (f *Feed) schedule(now time.Time) {
	gather := min(time.Duration(f.readers)*perReader*share, MaxGather)
	if len(f.pending) == 0 {
		gather = indexGather
	}
	due := f.last.Add(gather)
	switch {
	case !due.After(now):
		f.publish(now)
	case f.timer == nil:
		f.due = due
		f.timer = time.AfterFunc(due.Sub(now), f.fire)
	case due.Before(f.due):
		f.due = due
		f.timer.Reset(due.Sub(now))
	}
}

// fire is the timer's.
func (f *Feed) fire() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.publish(time.Now())
}

// publish lets readers have what is pending; mu is held.
func (f *Feed) publish(now time.Time) {
	if f.timer != nil {
		f.timer.Stop()
		f.timer = nil
	}
	if f.index == f.tail.from {
		return
	}
	full := f.tail
	full.to, full.changes = f.index, f.pending
	full.next = &batch{from: f.index, seq: full.seq + uint64(len(f.pending)), ready: make(chan struct{})}
	f.tail, f.pending, f.last = full.next, nil, now
	close(full.ready)
	for f.tail.seq-f.head.seq > keep && f.head != f.tail {
		f.head = f.head.next
	}
}

// encoded is the batch as it is sent.
func (b *batch) encoded() []byte {
	b.once.Do(func() {
		var w wire.Writer
		for i := range b.changes {
			// They are of the catalogue, and the store bounds their size.
			_ = w.Add(&b.changes[i])
		}
		b.frames = w.Commit(b.to)
	})
	return b.frames
}

// errAhead is for a reader that knows more than this server.
var errAhead = errors.New("the reader is ahead of this server")

// Serve writes what follows an index to one reader until ctx ends or write fails.
// A reader whose index is of another run, or too old, gets everything first; one
// whose index this server does not reach soon is sent away. It implements rpc.Feed.
func (f *Feed) Serve(ctx context.Context, from model.Index, run string, write func([]byte) error) error {
	select {
	case <-f.st.Synced():
	case <-ctx.Done():
		return ctx.Err()
	}
	f.mu.Lock()
	f.readers++
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.readers--
	}()
	at, err := f.begin(ctx, from, run, write)
	beat := time.NewTicker(beatEvery)
	defer beat.Stop()
	for err == nil {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-beat.C:
			if err := write(wire.AppendCommit(nil, at.from)); err != nil {
				return err
			}
			continue
		case <-at.ready:
		}
		if f.lost(at) {
			f.log.Debug("a reader of the change feed is too far behind, or all has changed: it is sent everything")
			if at, err = f.everything(write); err != nil {
				return err
			}
			continue
		}
		var b []byte
		if b, at = gather(at); len(b) > 0 {
			err = write(b)
			beat.Reset(beatEvery)
		}
	}
	return err
}

// lost reports whether what follows a batch is not kept any more.
func (f *Feed) lost(at *batch) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return at.seq < f.head.seq
}

// gather takes what is published from a batch on, up to about sendAtOnce bytes,
// and returns where it goes on.
func gather(at *batch) ([]byte, *batch) {
	frames := at.encoded()
	next := at.next
	if !published(next) {
		return frames, next
	}
	b := append(make([]byte, 0, 2*len(frames)), frames...)
	for published(next) && len(b) < sendAtOnce {
		b = append(b, next.encoded()...)
		next = next.next
	}
	return b, next
}

func published(b *batch) bool {
	select {
	case <-b.ready:
		return b.to > b.from || len(b.changes) > 0
	default:
		return false
	}
}

// begin writes the beginning of a stream and returns what follows it.
func (f *Feed) begin(ctx context.Context, from model.Index, run string, write func([]byte) error) (*batch, error) {
	if run != f.run || from == 0 {
		return f.everything(write)
	}
	// Another server may have been ahead of this one. What this one has would be of
	// no use to the reader, and many of them come at once when a server was lost.
	wctx, cancel := context.WithTimeout(ctx, 2*beatEvery)
	defer cancel()
	if _, err := f.st.Wait(wctx, from); err != nil {
		return nil, fmt.Errorf("%w: it has index %d, and this server %d", errAhead, from, f.st.Snapshot().Index())
	}
	at := f.after(from)
	if at == nil {
		return f.everything(write)
	}
	return at, write(wire.AppendBegin(nil, from, f.run, false))
}

// after is the batch that has what follows an index; nil if that is not kept.
// Changes that the reader has already are sent again: they are whole records.
func (f *Feed) after(from model.Index) *batch {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.publish(time.Now())
	if from < f.head.from {
		return nil
	}
	at := f.head
	for at != f.tail && at.to <= from {
		at = at.next
	}
	return at
}

// everything writes a snapshot and returns what follows it.
func (f *Feed) everything(write func([]byte) error) (*batch, error) {
	s := f.snapshot()
	s.once.Do(func() {
		s.b, s.err = wire.Everything(s.snap, f.run)
		s.snap = nil
	})
	if s.err != nil {
		return nil, s.err
	}
	for b := s.b; len(b) > 0; {
		n := min(len(b), sendAtOnce)
		if err := write(b[:n]); err != nil {
			return nil, err
		}
		b = b[n:]
	}
	return s.next, nil
}

// snapshot is one that is shared with those who came a moment ago.
func (f *Feed) snapshot() *snapshot {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if s := f.shot; s != nil && now.Sub(s.made) < snapshotLife && s.next.seq >= f.head.seq {
		return s
	}
	f.publish(now)
	// The state may be ahead of the last publication: what follows is sent twice.
	s := &snapshot{made: now, snap: f.st.Snapshot(), next: f.tail}
	f.shot = s
	time.AfterFunc(snapshotLife, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.shot == s {
			f.shot = nil
		}
	})
	return s
}
