package state

import (
	"net/netip"
	"strings"

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
	tree   *node[entry[V]]
	size   int
	graves *node[model.Index]
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
		tree:    &node[entry[V]]{rev: rev},
		graves:  &node[model.Index]{rev: rev},
		floor:   rev,
		index:   rev,
		burials: new([]burial),
	}
}

// get returns the record under k, if there is one, and the mark of that key.
func (t *table[V]) get(k string) (V, Mark, bool) {
	l, changed := t.tree.find(k)
	if l != nil {
		return l.val.val, Mark{Index: l.val.index, Changed: changed.wait()}, true
	}
	index := t.floor
	if at, buried := t.graves.get(k); buried {
		index = max(index, at)
	}
	var none V
	return none, Mark{Index: index, Changed: changed.wait()}, false
}

// watch closes at the next change of anything in the table.
func (t *table[V]) watch() <-chan struct{} { return t.tree.changed.wait() }

// all returns every record in the order of its keys and the table's mark.
func (t *table[V]) all() ([]V, Mark) {
	list := make([]V, 0, t.size)
	t.tree.walk(func(_ string, e entry[V]) bool {
		list = append(list, e.val)
		return false
	})
	return list, t.mark()
}

// under returns the records whose keys begin with prefix, in the order of the
// keys, and the mark of that prefix.
func (t *table[V]) under(prefix string) ([]V, Mark) {
	if prefix == "" {
		return t.all()
	}
	top, changed := t.tree.seek(prefix)
	mark := Mark{Index: t.floor, Changed: changed.wait()}
	list := []V{}
	top.walk(func(_ string, e entry[V]) bool {
		list = append(list, e.val)
		mark.Index = max(mark.Index, e.index)
		return false
	})
	buried, _ := t.graves.seek(prefix)
	buried.walk(func(_ string, at model.Index) bool {
		mark.Index = max(mark.Index, at)
		return false
	})
	return list, mark
}

// wakeAll closes every channel that a read of t ever handed out and that no
// change has closed yet.
func (t *table[V]) wakeAll() { t.tree.give() }

// tableEdit is a table being changed. A table that is not touched stays the same
// pointer.
type tableEdit[V any] struct {
	old    *table[V]
	tree   treeEdit[entry[V]]
	graves treeEdit[model.Index]
	floor  model.Index
	edited bool
}

func (t *table[V]) edit(rev model.Index) *tableEdit[V] {
	return &tableEdit[V]{
		old: t, floor: t.floor,
		tree:   treeEdit[entry[V]]{root: t.tree, rev: rev, size: t.size},
		graves: treeEdit[model.Index]{root: t.graves, rev: rev, quiet: true},
	}
}

func (e *tableEdit[V]) get(k string) (V, bool) {
	en, ok := e.tree.root.get(k)
	return en.val, ok
}

// put writes v under k and returns what was there before.
func (e *tableEdit[V]) put(k string, v V) (before V, had bool) {
	e.edited = true
	en, had := e.tree.put(k, entry[V]{val: v, index: e.tree.rev})
	if !had {
		e.graves.delete(k)
	}
	return en.val, had
}

// delete removes what is under k and returns it. Deleting nothing changes no
// index.
func (e *tableEdit[V]) delete(k string) (before V, had bool) {
	en, had := e.tree.delete(k)
	if !had {
		return before, false
	}
	e.edited = true
	e.graves.put(k, e.tree.rev)
	*e.old.burials = append(*e.old.burials, burial{key: k, index: e.tree.rev})
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
		// The key may have been written or deleted again since.
		if at, ok := e.graves.root.get(b.key); ok && at == b.index {
			e.graves.delete(b.key)
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
	if !e.edited {
		return e.old, nil
	}
	e.prune()
	next := &table[V]{
		tree:    e.tree.root,
		size:    e.tree.size,
		graves:  e.graves.root,
		floor:   e.floor,
		index:   e.tree.rev,
		burials: e.old.burials,
	}
	return next, e.tree.give
}

// lookup is a secondary index: no marks, no tombstones.
type lookup[V any] = node[V]

func newLookup[V any](rev model.Index) *lookup[V] { return &lookup[V]{rev: rev} }

// lookupEdit is a lookup being changed.
type lookupEdit[V any] = treeEdit[V]

func editLookup[V any](l *lookup[V], rev model.Index) lookupEdit[V] {
	return lookupEdit[V]{root: l, rev: rev, quiet: true}
}

// under returns the records of a lookup whose keys begin with prefix.
func under[V any](root *node[V], prefix string) []V {
	var list []V
	top, _ := root.seek(prefix)
	top.walk(func(_ string, v V) bool {
		list = append(list, v)
		return false
	})
	return list
}

// Keys of tables: parts separated by NUL, which no name contains, so that keys
// sort as the tuples of their parts do and no name is the prefix of another.

func key[S ~string](s S) string { return string(s) }

func key2[A, B ~string](a A, b B) string { return string(a) + "\x00" + string(b) }

func key3[A, B, C ~string](a A, b B, c C) string {
	return string(a) + "\x00" + string(b) + "\x00" + string(c)
}

// addrKey sorts as netip.Addr.Compare does: IPv4 first. It is empty for no address.
func addrKey(a netip.Addr) string {
	a = a.Unmap().WithZone("")
	if !a.IsValid() {
		return ""
	}
	var b [17]byte
	return string(append(append(b[:0], byte(a.BitLen())), a.AsSlice()...))
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
