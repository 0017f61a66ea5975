package registry

import (
	"bytes"
	"reflect"
	"slices"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/store"
)

// plan is one attempt at a write: what it read, as compares, and what it
// writes.
type plan struct {
	txn     store.Txn
	refusal error // the write must not be, if what was read is still so
	err     error // the plan cannot be made
}

// final is the transaction to commit. A refusal is compared only.
func (p *plan) final() store.Txn {
	if p.refusal != nil {
		return store.Txn{Compares: p.txn.Compares, Reads: p.txn.Reads, ReadPrefixes: p.txn.ReadPrefixes}
	}
	return p.txn
}

func (p *plan) refuse(err error) { p.refusal = err }

// read makes the plan depend on a record: that it has not changed, or that there
// still is none if rec is nil.
func (p *plan) read(key string, rec any) {
	mod, _ := modified(rec)
	p.at(key, mod)
}

// at makes the plan depend on a key's having been modified last at mod.
func (p *plan) at(key string, mod model.Index) {
	p.txn.Compares = append(p.txn.Compares, store.Compare{Key: key, ModIndex: mod})
}

// absent makes the plan depend on there being no such key.
func (p *plan) absent(key string) { p.at(key, 0) }

// unchanged makes the plan depend on no key that begins with prefix having been
// written after since; on there being none for 0.
func (p *plan) unchanged(prefix string, since model.Index) {
	p.txn.Compares = append(p.txn.Compares, store.Compare{Key: prefix, ModIndex: since, Prefix: true})
}

// put writes rec, without a condition.
func (p *plan) put(key string, rec any) {
	value, err := store.Encode(rec)
	if err != nil {
		p.err = err
		return
	}
	p.txn.Puts = append(p.txn.Puts, store.Put{Key: key, Value: value})
}

// puts reports whether the plan writes a key already.
func (p *plan) puts(key string) bool {
	return slices.ContainsFunc(p.txn.Puts, func(put store.Put) bool { return put.Key == key })
}

// replace makes the plan depend on cur (nil: nothing there) and puts rec in its
// place, unless the two say the same. It reports whether there is anything to
// write.
func (p *plan) replace(key string, cur, rec any) bool {
	p.read(key, cur)
	if p.same(cur, rec) {
		return false
	}
	p.put(key, rec)
	return true
}

// same reports whether two records, owners included, are encoded alike.
func (p *plan) same(cur, rec any) bool {
	if _, exists := modified(cur); !exists {
		return false
	}
	a, err := store.Encode(cur)
	if err != nil {
		p.err = err
		return false
	}
	b, err := store.Encode(rec)
	if err != nil {
		p.err = err
		return false
	}
	return bytes.Equal(a, b)
}

// remove makes the plan depend on cur and deletes it; nothing if there is none.
func (p *plan) remove(key string, cur any) {
	p.read(key, cur)
	if _, exists := modified(cur); exists {
		p.txn.Deletes = append(p.txn.Deletes, key)
	}
}

// modified is the index at which a record was last modified; false for a nil
// pointer.
func modified(rec any) (model.Index, bool) {
	if v := reflect.ValueOf(rec); !v.IsValid() || v.Kind() != reflect.Pointer || v.IsNil() {
		return 0, false
	}
	return rec.(interface{ Modified() model.Index }).Modified(), true
}
