package state

import (
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead-net/fairlead/internal/model"
)

// content is what a tree has below a prefix, and whether walking found it in order.
func content(n *node[int], prefix string) (map[string]int, bool) {
	all, keys := map[string]int{}, []string{}
	top, _ := n.seek(prefix)
	top.walk(func(k string, v int) bool {
		all[k] = v
		keys = append(keys, k)
		return false
	})
	return all, slices.IsSorted(keys)
}

func below(m map[string]int, prefix string) map[string]int {
	some := maps.Clone(m)
	maps.DeleteFunc(some, func(k string, _ int) bool { return !strings.HasPrefix(k, prefix) })
	return some
}

func given(s *signal) bool {
	select {
	case <-s.wait():
		return true
	default:
		return false
	}
}

// Whatever is done to a tree, it holds what a map would, the trees before it stay as
// they were, and all are told who asked for something that changed.
func TestTreeIsAMapThatTells(t *testing.T) {
	const letters = "ab\x00"
	keys := []string{""}
	for at := 0; len(keys) < 1+3+9+27+81; at++ {
		for _, l := range letters {
			keys = append(keys, keys[at]+string(l))
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	tree, want, size := &node[int]{}, map[string]int{}, 0
	for rev := model.Index(1); rev <= 400; rev++ {
		old, had := tree, maps.Clone(want)
		ofKey, ofPrefix, held := map[string]*signal{}, map[string]*signal{}, map[string]bool{}
		for _, k := range keys {
			l, s := old.find(k)
			ofKey[k], held[k] = s, l != nil
			_, ofPrefix[k] = old.seek(k)
			if given(ofKey[k]) || given(ofPrefix[k]) {
				t.Fatalf("at %d a signal of %q was given before its time", rev, k)
			}
		}
		edit := treeEdit[int]{root: tree, rev: rev, size: size}
		written := map[string]bool{}
		for range 1 + random.IntN(6) {
			k, v := keys[random.IntN(len(keys))], random.Int()
			if before, ok := want[k]; random.IntN(5) < 2+int(rev/100)%2 {
				if got, found := edit.put(k, v); found != ok || got != before {
					t.Fatalf("at %d put of %q returned %v %v", rev, k, got, found)
				}
				want[k], written[k] = v, true
			} else {
				if got, found := edit.delete(k); found != ok || got != before {
					t.Fatalf("at %d delete of %q returned %v %v", rev, k, got, found)
				}
				delete(want, k)
				written[k] = written[k] || ok
			}
		}
		tree, size = edit.root, edit.size
		edit.give()
		if got, _ := content(old, ""); !maps.Equal(got, had) {
			t.Fatalf("at %d the tree before it is another: %v, want %v", rev, got, had)
		}
		if size != len(want) {
			t.Fatalf("at %d the size is %d, want %d", rev, size, len(want))
		}
		for _, k := range keys {
			got, sorted := content(tree, k)
			if expect := below(want, k); !sorted || !maps.Equal(got, expect) {
				t.Fatalf("at %d below %q: %v, want %v", rev, k, got, expect)
			}
			if v, ok := tree.get(k); v != want[k] || ok != keyIn(want, k) {
				t.Fatalf("at %d %q is %v %v", rev, k, v, ok)
			}
			changed := keyIn(want, k) != keyIn(had, k) || want[k] != had[k]
			if told := given(ofKey[k]); changed && !told || held[k] && told && !written[k] {
				t.Errorf("at %d who waits for %q was told: %v, changed: %v", rev, k, told, changed)
			}
			if !given(ofPrefix[k]) && !maps.Equal(below(want, k), below(had, k)) {
				t.Errorf("at %d who waits for what is below %q was not told", rev, k)
			}
		}
	}
	last := tree
	last.give()
	for _, k := range keys {
		if _, s := last.find(k); !given(s) {
			t.Errorf("the signal of %q was not given", k)
		}
	}
}

func keyIn(m map[string]int, k string) bool { _, ok := m[k]; return ok }

// Before an edit that fails to find anything, nothing is made anew.
func TestDeletingNothing(t *testing.T) {
	e := treeEdit[int]{root: &node[int]{rev: 1}, rev: 2}
	if _, had := e.delete("a"); had || e.root.rev != 1 || len(e.gone) != 0 {
		t.Error("an edit that changed nothing has a new tree")
	}
}
