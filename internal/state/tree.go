package state

import (
	"slices"
	"strings"
	"sync/atomic"

	"github.com/fairlead-net/fairlead/internal/model"
)

// node is one of a persistent radix tree: what readers have seen of it never
// changes, and an edit makes those anew that lie on the way to what it changes.
// Every node and every leaf can tell when it is no longer what it was. A node made
// costs no channel until somebody waits for it: there are several for each record,
// and hardly any is ever waited for.
type node[V any] struct {
	rev     model.Index // the edit that made it, and may change it
	leaf    *leaf[V]    // what has the key that ends here, if anything
	prefix  string      // what leads here from the node above
	edges   []edge[V]   // sorted by label
	changed signal      // it or anything below it
}

type leaf[V any] struct {
	key     string
	val     V
	changed signal
}

type edge[V any] struct {
	label byte // that its node's prefix begins with
	node  *node[V]
}

// signal is a channel that is made for the first who waits for it.
type signal struct{ event atomic.Pointer[event] }

type event struct{ closed chan struct{} }

// over is the event of all signals that were given.
var over = func() *event {
	e := &event{make(chan struct{})}
	close(e.closed)
	return e
}()

// wait returns what closes when the signal is given, which it may have been.
func (s *signal) wait() <-chan struct{} {
	e := s.event.Load()
	if e == nil {
		e = &event{make(chan struct{})}
		if !s.event.CompareAndSwap(nil, e) {
			e = s.event.Load()
		}
	}
	return e.closed
}

// give wakes who waits. Only the writer gives signals.
func (s *signal) give() {
	if e := s.event.Swap(over); e != nil && e != over {
		close(e.closed)
	}
}

// child is where the node below with a label is among the edges, or belongs; nil
// if there is none.
func (n *node[V]) child(label byte) (int, *node[V]) {
	low, high := 0, len(n.edges)
	for low < high {
		if mid := (low + high) / 2; n.edges[mid].label < label {
			low = mid + 1
		} else {
			high = mid
		}
	}
	if low < len(n.edges) && n.edges[low].label == label {
		return low, n.edges[low].node
	}
	return low, nil
}

// find returns what has a key, nil for nothing, and what tells when that changes
// (without a leaf perhaps also when it does not).
func (n *node[V]) find(key string) (*leaf[V], *signal) {
	for key != "" {
		_, c := n.child(key[0])
		switch {
		case c == nil:
			return nil, &n.changed
		case !strings.HasPrefix(key, c.prefix):
			return nil, &c.changed // it will be split
		}
		n, key = c, key[len(c.prefix):]
	}
	if n.leaf == nil {
		return nil, &n.changed
	}
	return n.leaf, &n.leaf.changed
}

// get returns what is under a key.
func (n *node[V]) get(key string) (v V, ok bool) {
	l, _ := n.find(key)
	if l == nil {
		return v, false
	}
	return l.val, true
}

// seek returns the node below which all keys with a prefix are, nil if there are
// none, and what tells when that changes.
func (n *node[V]) seek(prefix string) (*node[V], *signal) {
	for prefix != "" {
		_, c := n.child(prefix[0])
		switch {
		case c == nil:
			return nil, &n.changed
		case strings.HasPrefix(c.prefix, prefix):
			return c, &c.changed
		case !strings.HasPrefix(prefix, c.prefix):
			return nil, &c.changed
		}
		n, prefix = c, prefix[len(c.prefix):]
	}
	return n, &n.changed
}

// walk calls fn for all leaves in the order of their keys, until it returns true,
// and reports whether it did. The tree may be nil.
func (n *node[V]) walk(fn func(key string, v V) bool) bool {
	if n == nil {
		return false
	}
	if n.leaf != nil && fn(n.leaf.key, n.leaf.val) {
		return true
	}
	for _, e := range n.edges {
		if e.node.walk(fn) {
			return true
		}
	}
	return false
}

// give gives all signals of a tree.
func (n *node[V]) give() {
	n.changed.give()
	if n.leaf != nil {
		n.leaf.changed.give()
	}
	for _, e := range n.edges {
		e.node.give()
	}
}

// treeEdit is a tree being changed. Nobody else may edit the same tree, nor its
// successor with the same rev.
type treeEdit[V any] struct {
	root *node[V]
	rev  model.Index
	size int // of leaves, how many more
	// gone are the signals to give when the new tree can be seen; none if quiet,
	// because nobody waits for them.
	gone  []*signal
	quiet bool
}

func (e *treeEdit[V]) went(s *signal) {
	if !e.quiet {
		e.gone = append(e.gone, s)
	}
}

// own returns a node that the edit may change.
func (e *treeEdit[V]) own(n *node[V]) *node[V] {
	if n.rev == e.rev {
		return n
	}
	e.went(&n.changed)
	return &node[V]{rev: e.rev, leaf: n.leaf, prefix: n.prefix, edges: slices.Clone(n.edges)}
}

// put writes v under a key and returns what was there before.
func (e *treeEdit[V]) put(key string, v V) (before V, had bool) {
	fresh := &leaf[V]{key: key, val: v}
	e.root = e.own(e.root)
	n := e.root
	for rest := key; rest != ""; {
		i, c := n.child(rest[0])
		if c == nil {
			n.edges = inserted(n.edges, i, edge[V]{rest[0], &node[V]{rev: e.rev, leaf: fresh, prefix: rest}})
			e.size++
			return before, false
		}
		same := common(rest, c.prefix)
		c = e.own(c)
		if same < len(c.prefix) {
			above := &node[V]{rev: e.rev, prefix: c.prefix[:same], edges: []edge[V]{{c.prefix[same], c}}}
			c.prefix = c.prefix[same:]
			c = above
		}
		n.edges[i].node = c
		n, rest = c, rest[same:]
	}
	old := n.leaf
	n.leaf = fresh
	if old == nil {
		e.size++
		return before, false
	}
	e.went(&old.changed)
	fresh.key = old.key // which the nodes' prefixes are parts of
	return old.val, true
}

// inserted returns a longer list that has no room to spare: most never grow again.
func inserted[V any](edges []edge[V], i int, e edge[V]) []edge[V] {
	list := make([]edge[V], len(edges)+1)
	copy(list, edges[:i])
	list[i] = e
	copy(list[i+1:], edges[i:])
	return list
}

// common is how long the beginning is that two strings have in common.
func common(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// delete removes what is under a key and returns it.
func (e *treeEdit[V]) delete(key string) (before V, had bool) {
	old, _ := e.root.find(key)
	if old == nil {
		return before, false
	}
	e.went(&old.changed)
	e.size--
	e.root = e.own(e.root)
	e.cut(e.root, key)
	return old.val, true
}

// cut removes the leaf at the end of rest below n, which is owned, and the nodes
// that nothing needs any more, but for n itself.
func (e *treeEdit[V]) cut(n *node[V], rest string) {
	if rest == "" {
		n.leaf = nil
		return
	}
	i, c := n.child(rest[0])
	c = e.own(c)
	e.cut(c, rest[len(c.prefix):])
	switch {
	case c.leaf == nil && len(c.edges) == 0:
		n.edges = slices.Delete(n.edges, i, i+1)
		return
	case c.leaf == nil && len(c.edges) == 1:
		last := e.own(c.edges[0].node)
		last.prefix = c.prefix + last.prefix
		c = last
	}
	n.edges[i].node = c
}

// give tells those who wait for what the edit replaced.
func (e *treeEdit[V]) give() {
	for _, s := range e.gone {
		s.give()
	}
}
