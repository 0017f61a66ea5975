package state

import (
	"net/netip"
	"strings"

	iradix "github.com/hashicorp/go-immutable-radix/v2"

	"github.com/fairlead-net/fairlead/internal/model"
)

// maxTombstones bounds how many deletions a table remembers one by one. Older
// ones are folded into the table's floor, which costs a waiter at most one
// spurious wake.
const maxTombstones = 8192

// entry is a record with the index at which it was last written. That is the
// revision of the Apply that wrote it and not the record's ModifyIndex: a record
// made of several keys (KV) may fall back to an older ModifyIndex, an index
// never goes back.
type entry[V any] struct {
	val   V
	index model.Index
}

// table is one table of one snapshot. It never changes; an edit makes the next.
//
// Deletions leave tombstones, so that the index of a key or of a prefix rises
// when something under it goes. Tombstones are bounded: the index of whatever
// has neither a record nor a tombstone is floor, which is at least the revision
// of its last deletion.
type table[V any] struct {
	tree   *iradix.Tree[entry[V]]
	graves *iradix.Tree[model.Index]
	floor  model.Index
	index  model.Index // of the last change of anything in the table
	// burials lists tombstones in the order they were made. It belongs to the
	// writer and is handed on from each table to its successor.
	burials *[]burial
}

type burial struct {
	key   string
	index model.Index
}

func newTable[V any](rev model.Index) *table[V] {
	return &table[V]{
		tree:    iradix.New[entry[V]](),
		graves:  iradix.New[model.Index](),
		floor:   rev,
		index:   rev,
		burials: new([]burial),
	}
}

// get returns the record under k, if there is one, and the mark of that key.
func (t *table[V]) get(k []byte) (V, Mark, bool) {
	watch, e, ok := t.tree.Root().GetWatch(k)
	if ok {
		return e.val, Mark{Index: e.index, Changed: watch}, true
	}
	index := t.floor
	if at, buried := t.graves.Get(k); buried {
		index = max(index, at)
	}
	return e.val, Mark{Index: index, Changed: watch}, false
}

// watch closes at the next change of anything in the table.
func (t *table[V]) watch() <-chan struct{} {
	return t.tree.Root().Iterator().SeekPrefixWatch(nil)
}

// all returns every record in the order of its keys and the table's mark.
func (t *table[V]) all() ([]V, Mark) {
	it := t.tree.Root().Iterator()
	watch := it.SeekPrefixWatch(nil)
	list := make([]V, 0, t.tree.Len())
	for _, e, ok := it.Next(); ok; _, e, ok = it.Next() {
		list = append(list, e.val)
	}
	return list, Mark{Index: t.index, Changed: watch}
}

// under returns the records whose keys begin with prefix, in the order of the
// keys, and the mark of that prefix.
func (t *table[V]) under(prefix []byte) ([]V, Mark) {
	if len(prefix) == 0 {
		return t.all()
	}
	it := t.tree.Root().Iterator()
	mark := Mark{Index: t.floor, Changed: it.SeekPrefixWatch(prefix)}
	list := []V{}
	for _, e, ok := it.Next(); ok; _, e, ok = it.Next() {
		list = append(list, e.val)
		mark.Index = max(mark.Index, e.index)
	}
	t.graves.Root().WalkPrefix(prefix, func(_ []byte, at model.Index) bool {
		mark.Index = max(mark.Index, at)
		return false
	})
	return list, mark
}

// wakeAll closes every channel that a read of t ever handed out and that no
// change has closed yet.
func (t *table[V]) wakeAll() {
	txn := t.tree.Txn()
	txn.TrackMutate(true)
	txn.DeletePrefix(nil)
	txn.Commit()
}

// tableEdit is a table being changed. It opens its transactions at the first
// change, so that a table that is not touched costs nothing and stays the same
// pointer.
type tableEdit[V any] struct {
	old    *table[V]
	rev    model.Index
	txn    *iradix.Txn[entry[V]]
	graves *iradix.Txn[model.Index]
	floor  model.Index
}

func (t *table[V]) edit(rev model.Index) *tableEdit[V] {
	return &tableEdit[V]{old: t, rev: rev, floor: t.floor}
}

func (e *tableEdit[V]) open() {
	if e.txn == nil {
		e.txn = e.old.tree.Txn()
		e.txn.TrackMutate(true)
		e.graves = e.old.graves.Txn()
	}
}

// root is the tree as edited so far.
func (e *tableEdit[V]) root() *iradix.Node[entry[V]] {
	if e.txn == nil {
		return e.old.tree.Root()
	}
	return e.txn.Root()
}

func (e *tableEdit[V]) get(k []byte) (V, bool) {
	en, ok := e.root().Get(k)
	return en.val, ok
}

// put writes v under k and returns what was there before.
func (e *tableEdit[V]) put(k []byte, v V) (before V, had bool) {
	e.open()
	en, had := e.txn.Insert(k, entry[V]{val: v, index: e.rev})
	if !had {
		e.graves.Delete(k)
	}
	return en.val, had
}

// delete removes what is under k and returns it. Deleting nothing changes no
// index.
func (e *tableEdit[V]) delete(k []byte) (before V, had bool) {
	if _, ok := e.root().Get(k); !ok {
		return before, false
	}
	e.open()
	en, _ := e.txn.Delete(k)
	e.graves.Insert(k, e.rev)
	*e.old.burials = append(*e.old.burials, burial{key: string(k), index: e.rev})
	return en.val, true
}

// prune folds the oldest tombstones into the floor.
func (e *tableEdit[V]) prune() {
	queue := *e.old.burials
	over := len(queue) - maxTombstones
	if over <= 0 {
		return
	}
	for _, b := range queue[:over] {
		k := []byte(b.key)
		// The key may have been written or deleted again since.
		if at, ok := e.graves.Get(k); ok && at == b.index {
			e.graves.Delete(k)
			e.floor = max(e.floor, b.index)
		}
	}
	clear(queue[:over]) // let go of the keys; appending moves the rest in time
	*e.old.burials = queue[over:]
}

// commit returns the edited table and what closes the channels of what was
// changed; the caller runs that once readers can see the table. An untouched
// table comes back as it was, with nil.
func (e *tableEdit[V]) commit() (*table[V], func()) {
	if e.txn == nil {
		return e.old, nil
	}
	e.prune()
	next := &table[V]{
		tree:    e.txn.CommitOnly(),
		graves:  e.graves.Commit(),
		floor:   e.floor,
		index:   e.rev,
		burials: e.old.burials,
	}
	return next, e.txn.Notify
}

// lookup is a secondary index: no marks, no tombstones.
type lookup[V any] = iradix.Tree[V]

// lookupEdit is a lookup being changed.
type lookupEdit[V any] struct {
	old *lookup[V]
	txn *iradix.Txn[V]
}

func (e *lookupEdit[V]) open() *iradix.Txn[V] {
	if e.txn == nil {
		e.txn = e.old.Txn()
	}
	return e.txn
}

func (e *lookupEdit[V]) root() *iradix.Node[V] {
	if e.txn == nil {
		return e.old.Root()
	}
	return e.txn.Root()
}

func (e *lookupEdit[V]) commit() *lookup[V] {
	if e.txn == nil {
		return e.old
	}
	return e.txn.Commit()
}

// under returns the records of a lookup whose keys begin with prefix.
func under[V any](root *iradix.Node[V], prefix []byte) []V {
	var list []V
	root.WalkPrefix(prefix, func(_ []byte, v V) bool {
		list = append(list, v)
		return false
	})
	return list
}

// Keys of tables: parts separated by NUL, which no name contains, so that keys
// sort as the tuples of their parts do and no name is the prefix of another.

func key[S ~string](s S) []byte { return []byte(s) }

func key2[A, B ~string](a A, b B) []byte {
	k := make([]byte, 0, len(a)+len(b)+1)
	k = append(k, a...)
	k = append(k, 0)
	return append(k, b...)
}

func key3[A, B, C ~string](a A, b B, c C) []byte {
	k := make([]byte, 0, len(a)+len(b)+len(c)+2)
	k = append(k, a...)
	k = append(k, 0)
	k = append(k, b...)
	k = append(k, 0)
	return append(k, c...)
}

// addrKey sorts as netip.Addr.Compare does: IPv4 first.
func addrKey(a netip.Addr) []byte {
	a = a.Unmap().WithZone("")
	if !a.IsValid() {
		return nil
	}
	return append([]byte{byte(a.BitLen())}, a.AsSlice()...)
}

// nameKey folds case as DNS does, for ASCII only (RFC 4343).
func nameKey(name string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, name)
}
