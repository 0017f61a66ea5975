package registry

import (
	"context"
	"errors"
	"fmt"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/store"
)

// Limits of a KV entry, in bytes. The end of a session names every key that it
// holds several times over in one transaction, and one always has to fit.
const (
	MaxValue = 512 << 10
	MaxKey   = maxChunkBytes
)

// errMismatch is the refusal of a compare-and-set; callers see false.
var errMismatch = errors.New("modified meanwhile")

// PutKV writes an entry's value and flags. Its lock, if it has one, stays as it
// is. With cas it writes only if the entry's ModifyIndex is *cas, or for 0 only
// if there is no such entry; if not, it returns false, no error and the index at
// which that was so.
func (r *Registry) PutKV(ctx context.Context, kv model.KV, cas *model.Index) (bool, model.Index, error) {
	what := fmt.Sprintf("put key %q", kv.Key)
	if err := validateKV(&kv); err != nil {
		return false, 0, fmt.Errorf("%s: %w", what, err)
	}
	if kv.Owner == "" {
		kv.Owner = model.OwnerOperator
	}
	return casResult(r.write(ctx, what, func(snap *state.Snapshot, p *plan) {
		cur, _ := snap.KV(kv.Key)
		switch {
		case cas != nil:
			p.readValue(kv.Key, cur)
			p.readLock(kv.Key, cur)
			if mod, _ := modified(cur); mod != *cas {
				p.refuse(errMismatch)
			} else if !p.same(cur, &kv) {
				p.put(store.KVKey(kv.Key), &kv)
			}
		case p.same(cur, &kv):
			p.readValue(kv.Key, cur)
		default:
			// Blind, so that it never conflicts.
			p.put(store.KVKey(kv.Key), &kv)
		}
	}))
}

// DeleteKV removes an entry and its lock. With cas it does so only if the
// entry's ModifyIndex is *cas, and returns false if it is not; an entry that is
// not there counts as removed either way.
func (r *Registry) DeleteKV(ctx context.Context, key string, cas *model.Index) (bool, model.Index, error) {
	what := fmt.Sprintf("delete key %q", key)
	if err := validateKey(key); err != nil {
		return false, 0, fmt.Errorf("%s: %w", what, err)
	}
	return casResult(r.write(ctx, what, func(snap *state.Snapshot, p *plan) {
		cur, _ := snap.KV(key)
		if cur == nil {
			p.readValue(key, nil)
			return
		}
		if cas != nil {
			p.readValue(key, cur)
			p.readLock(key, cur)
			if cur.ModifyIndex != *cas {
				p.refuse(errMismatch)
				return
			}
		}
		p.txn.Deletes = append(p.txn.Deletes, store.KVKey(key), store.KVLockKey(key))
	}))
}

// DeleteKVTree removes all entries whose keys begin with prefix; every entry for
// the empty prefix.
func (r *Registry) DeleteKVTree(ctx context.Context, prefix string) (model.Index, error) {
	return r.write(ctx, fmt.Sprintf("delete keys under %q", prefix), func(snap *state.Snapshot, p *plan) {
		if list, _ := snap.KVTree(prefix); len(list) == 0 {
			p.unchanged(store.KVPrefix(prefix), 0)
			return
		}
		p.txn.DeletePrefixes = append(p.txn.DeletePrefixes, store.KVPrefix(prefix), store.KVLockPrefix(prefix))
	})
}

// readValue makes the plan depend on the half of an entry that is not its lock;
// cur is nil if there is none.
func (p *plan) readValue(key string, cur *model.KV) {
	var mod model.Index
	if cur != nil {
		mod = cur.ValueModified
	}
	p.at(store.KVKey(key), mod)
}

// readLock makes the plan depend on an entry's lock.
func (p *plan) readLock(key string, cur *model.KV) {
	var mod model.Index
	if cur != nil {
		mod = cur.LockModified
	}
	p.at(store.KVLockKey(key), mod)
}

// casResult turns the refusal of a compare-and-set into false.
func casResult(index model.Index, err error) (bool, model.Index, error) {
	if errors.Is(err, errMismatch) {
		return false, index, nil
	}
	return err == nil, index, err
}
