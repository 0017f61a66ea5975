package registry

import (
	"math"
	"slices"
	"strings"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/store"
)

// pending is the index of what a transaction writes, until it is known. Nothing
// that a client gives equals it.
const pending = model.Index(math.MaxUint64)

// overlay is the catalogue as the operations of a transaction have left it so
// far: a snapshot with their writes over it. What is read from the snapshot
// becomes a compare of the plan. Records once written are replaced, never
// changed, since results refer to them.
type overlay struct {
	snap *state.Snapshot
	p    *plan
	read map[string]bool // keys and prefixes that the plan depends on already

	kvs       map[string]*kvWrite // by the entry's key
	nodes     map[string]*model.Node
	instances map[string]*model.Instance // by the store's key, nil for removed,
	checks    map[string]*model.Check    // as for nodes
	drops     []drop
	holds     map[string]bool // sessions that took locks

	results []model.TxnResult
	failed  []model.TxnError
}

// kvWrite is what becomes of an entry.
type kvWrite struct {
	rec         *model.KV // nil: removed
	value, lock bool      // the halves of it that were written
	removed     bool      // it was removed, perhaps before it was written again
}

// drop is a prefix of the store's keys of which nothing is left but what was
// written since.
type drop struct {
	prefix string
	keys   []string // those that the snapshot has
}

func newOverlay(snap *state.Snapshot, p *plan) *overlay {
	return &overlay{
		snap: snap, p: p, read: map[string]bool{},
		kvs: map[string]*kvWrite{}, nodes: map[string]*model.Node{},
		instances: map[string]*model.Instance{}, checks: map[string]*model.Check{},
		holds: map[string]bool{},
	}
}

// once reports whether the plan does not depend on a key yet, and notes that it
// does now.
func (t *overlay) once(key string) bool {
	first := !t.read[key]
	t.read[key] = true
	return first
}

// since makes the plan depend on nothing under prefix having been written after
// the snapshot.
func (t *overlay) since(prefix string) {
	if t.once("prefix " + prefix) {
		t.p.unchanged(prefix, t.snap.Index())
	}
}

// dropped reports whether a key of the snapshot is gone with a prefix.
func (t *overlay) dropped(key string) bool {
	return slices.ContainsFunc(t.drops, func(d drop) bool { return strings.HasPrefix(key, d.prefix) })
}

// drop removes everything under a prefix; keys are what the snapshot has there.
func (t *overlay) drop(prefix string, keys []string) {
	t.drops = append(t.drops, drop{prefix, keys})
	forget(t.instances, prefix)
	forget(t.checks, prefix)
}

func forget[R any](writes map[string]*R, prefix string) {
	for k := range writes {
		if strings.HasPrefix(k, prefix) {
			delete(writes, k)
		}
	}
}

// look finds a record of a table: in the writes, else the snapshot's.
func look[R any](t *overlay, writes map[string]*R, key string, snap *R) *R {
	if rec, written := writes[key]; written {
		return rec
	}
	if t.dropped(key) {
		return nil
	}
	if t.once(key) {
		t.p.read(key, snap)
	}
	return snap
}

// restamp is the bookkeeping of a record that is written where the snapshot has
// snap, which may be nil.
func restamp[P interface {
	comparable
	Created() model.Index
}](owner model.Owner, snap P) model.Stamp {
	s := model.Stamp{Owner: owner, CreateIndex: pending, ModifyIndex: pending}
	var none P
	if snap != none {
		s.CreateIndex = snap.Created()
	}
	return s
}

// flush puts the net effect of the writes into the plan.
func (t *overlay) flush(r *Registry) {
	puts := map[string]any{}
	for key, w := range t.kvs {
		t.flushKV(key, w, puts)
	}
	collect(t, t.nodes, puts)
	collect(t, t.instances, puts)
	collect(t, t.checks, puts)
	for _, d := range t.drops {
		t.flushDrop(d, puts)
	}
	for key, rec := range puts {
		t.p.put(key, rec)
	}
	for id := range t.holds {
		t.p.put(store.HoldKey(id), "")
	}
	for _, i := range t.instances {
		if i != nil {
			r.planVIP(t.snap, t.p, i.Service)
		}
	}
}

func (t *overlay) flushKV(key string, w *kvWrite, puts map[string]any) {
	if w.rec == nil {
		t.p.txn.Deletes = append(t.p.txn.Deletes, store.KVKey(key), store.KVLockKey(key))
		return
	}
	if w.value {
		puts[store.KVKey(key)] = w.rec
	}
	if w.lock {
		puts[store.KVLockKey(key)] = store.Lock{Session: w.rec.Session, LockIndex: w.rec.LockIndex}
	} else if w.removed {
		t.p.txn.Deletes = append(t.p.txn.Deletes, store.KVLockKey(key))
	}
}

func collect[R any](t *overlay, writes map[string]*R, puts map[string]any) {
	for key, rec := range writes {
		if rec == nil {
			t.p.txn.Deletes = append(t.p.txn.Deletes, key)
		} else {
			puts[key] = rec
		}
	}
}

// flushDrop removes what is under a prefix, whatever it is by then, unless the
// transaction puts something there again: one transaction of the store cannot
// delete a range and put a key in it. Then it goes key by key, and nothing may
// have come that the snapshot does not have.
func (t *overlay) flushDrop(d drop, puts map[string]any) {
	if len(d.keys) == 0 {
		t.since(d.prefix)
		return
	}
	for key := range puts {
		if !strings.HasPrefix(key, d.prefix) {
			continue
		}
		t.since(d.prefix)
		for _, key := range d.keys {
			if _, put := puts[key]; !put && !slices.Contains(t.p.txn.Deletes, key) {
				t.p.txn.Deletes = append(t.p.txn.Deletes, key)
			}
		}
		return
	}
	t.p.txn.DeletePrefixes = append(t.p.txn.DeletePrefixes, d.prefix)
}
