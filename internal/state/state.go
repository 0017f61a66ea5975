// Package state holds a node's copy of the replicated catalogue: typed tables
// in immutable snapshots, with a watch channel for every object.
//
// There is one writer (store on a server, mirror on an agent), which calls Apply
// and Reset; everybody else takes a Snapshot, which never changes, costs no lock
// and may be kept as long as one likes. Every read answers with a Mark: the index
// of the last change of what was read, and a channel that closes at the next one.
package state

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/fairlead-net/fairlead/internal/model"
)

// Mark goes with every read.
type Mark struct {
	// Index is the revision at which what was read last changed, deletions
	// included, or a later one. It never goes backwards on a node.
	Index model.Index
	// Changed closes when what was read changes (now and then also when it did
	// not). By then State.Snapshot shows the change.
	Changed <-chan struct{}
}

// Change is one record put or deleted. Exactly one of the pointers is set; with
// Delete the record needs only the fields of its key. The record belongs to the
// state from then on and must not be changed any more.
type Change struct {
	Delete   bool
	Node     *model.Node
	Instance *model.Instance
	Check    *model.Check
	VIP      *model.VIP
	Network  *model.Network
	Endpoint *model.Endpoint
	Lease    *model.AddressLease
	Block    *model.Block
	KV       *model.KV

	// What only servers hold.
	Session   *model.Session
	Alive     *model.Alive
	LockDelay *model.LockDelay
	Query     *model.PreparedQuery
	Token     *model.ACLToken
	Policy    *model.ACLPolicy
	Role      *model.ACLRole
	CARoot    *model.CARoot
	CAKey     *model.CAKey
	Setting   *model.Setting
}

// State is the current snapshot and its one writer's door.
type State struct {
	current atomic.Pointer[Snapshot]
	synced  chan struct{}

	// writing is held by Apply and Reset. There is one writer; a second one by
	// mistake has to wait instead of losing changes.
	writing sync.Mutex
	loaded  bool // guarded by writing; synced is closed
}

// New returns an empty, unsynced state.
func New() *State {
	s := &State{synced: make(chan struct{})}
	empty := emptySnapshot(0)
	empty.announced.Store(true)
	s.current.Store(empty)
	return s
}

// Snapshot returns the current snapshot.
func (s *State) Snapshot() *Snapshot { return s.current.Load() }

// Apply publishes a snapshot at index rev with the changes made. Only the one
// writer calls it, with revisions that rise; one that does not rise is the
// writer's fault and panics, because readers that wait by index would miss it.
// Without changes it only moves the snapshot's index forward, and rev may then
// repeat the current one.
func (s *State) Apply(rev model.Index, changes []Change) {
	s.writing.Lock()
	defer s.writing.Unlock()
	old := s.current.Load()
	if rev == old.index && len(changes) == 0 {
		return
	}
	if rev <= old.index {
		panic(fmt.Sprintf("state: Apply at index %d, but %d is published", rev, old.index))
	}
	e := newEdit(old, rev)
	for i := range changes {
		e.apply(&changes[i])
	}
	next, wake := e.commit()
	s.publish(old, next, wake)
}

// Reset replaces everything: the full content as of rev. It wakes every waiter,
// raises every index to rev and marks the state synced. A rev below the current
// index panics: indexes never go backwards on a node.
func (s *State) Reset(rev model.Index, records []Change) {
	s.replace(rev, records, true)
}

func (s *State) replace(rev model.Index, records []Change, synced bool) {
	s.writing.Lock()
	defer s.writing.Unlock()
	old := s.current.Load()
	if rev < old.index {
		panic(fmt.Sprintf("state: Reset to index %d, but %d is published", rev, old.index))
	}
	e := newEdit(emptySnapshot(rev), rev)
	// Instances share what their nodes have, and checks what those have.
	for _, turn := range []func(*Change) bool{
		func(c *Change) bool { return c.Node != nil },
		func(c *Change) bool { return c.Instance != nil },
		func(c *Change) bool { return c.Node == nil && c.Instance == nil },
	} {
		for i := range records {
			if turn(&records[i]) {
				e.apply(&records[i])
			}
		}
	}
	// Nobody has read the empty snapshot, so its own wakers are not needed.
	next, _ := e.commit()
	s.publish(old, next, old.wakers())
	if synced && !s.loaded {
		s.loaded = true
		close(s.synced)
	}
}

// publish shows next to readers and only then wakes those who wait: a woken
// reader must find the news.
func (s *State) publish(old, next *Snapshot, wake []func()) {
	s.current.Store(next)
	close(old.changed)
	for _, fn := range wake {
		fn()
	}
	next.announced.Store(true)
}

// Wait returns the first snapshot whose index is at least index, or ctx's error.
// It does not wait for the state to be synced.
func (s *State) Wait(ctx context.Context, index model.Index) (*Snapshot, error) {
	for {
		snap := s.current.Load()
		if snap.index >= index {
			return snap, nil
		}
		select {
		case <-snap.changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Synced closes when the state has held one full snapshot. Until then
// reconcilers add but never delete.
func (s *State) Synced() <-chan struct{} { return s.synced }
