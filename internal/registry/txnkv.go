package registry

import (
	"slices"
	"strings"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/store"
)

// runKV carries out one operation on entries.
func (t *overlay) runKV(op *model.TxnKV) error {
	given, key := &op.KV, op.KV.Key
	switch op.Verb {
	case "set", "cas", "lock", "unlock":
		if err := validateKV(given); err != nil {
			return err
		}
	}
	switch op.Verb {
	case "set":
		t.writtenKV(t.setKV(given))
	case "cas":
		if !matches(t.kv(key), given.ModifyIndex) {
			return say(nil, "failed to set key %q, index is stale", key)
		}
		t.writtenKV(t.setKV(given))
	case "lock":
		return t.lock(given)
	case "unlock":
		return t.unlock(given)
	case "get":
		kv := t.kv(key)
		if kv == nil {
			return say(nil, "key %q doesn't exist", key)
		}
		t.foundKV(kv)
	case "get-or-empty":
		kv := t.kv(key)
		if kv == nil {
			kv = &model.KV{Key: key}
		}
		t.foundKV(kv)
	case "get-tree":
		for _, kv := range t.tree(key) {
			t.foundKV(kv)
		}
	case "check-index", "check-session", "check-not-exists":
		return t.checkKV(op.Verb, given)
	case "delete":
		t.deleteKV(key)
	case "delete-cas":
		if kv := t.kv(key); kv != nil && kv.ModifyIndex != given.ModifyIndex {
			return say(nil, "failed to delete key %q, index is stale", key)
		}
		t.deleteKV(key)
	case "delete-tree":
		t.deleteTree(key)
	default:
		return say(ErrInvalid, "unknown KV verb %q", op.Verb)
	}
	return nil
}

// matches says what a compare-and-set says: index 0 stands for nothing there.
func matches[R any, P interface {
	*R
	Modified() model.Index
}](cur P, index model.Index) bool {
	if cur == nil || index == 0 {
		return cur == nil && index == 0
	}
	return cur.Modified() == index
}

func (t *overlay) foundKV(kv *model.KV) { t.results = append(t.results, model.TxnResult{KV: kv}) }

// writtenKV is the result of a write, which does not repeat the value.
func (t *overlay) writtenKV(kv *model.KV) {
	bare := *kv
	bare.Value = nil
	t.foundKV(&bare)
}

// kv is an entry as it is now, nil if there is none.
func (t *overlay) kv(key string) *model.KV {
	if w, written := t.kvs[key]; written {
		return w.rec
	}
	if t.dropped(store.KVKey(key)) {
		return nil
	}
	kv, _ := t.snap.KV(key)
	if t.once(store.KVKey(key)) {
		t.p.readValue(key, kv)
	}
	if t.once(store.KVLockKey(key)) {
		t.p.readLock(key, kv)
	}
	return kv
}

// tree are the entries under a prefix, sorted by key. That no entry was written
// since shows in the prefixes of values and of locks; that none was deleted, in
// the entries themselves, since a lock goes only together with its value.
func (t *overlay) tree(prefix string) []*model.KV {
	t.since(store.KVPrefix(prefix))
	t.since(store.KVLockPrefix(prefix))
	var list []*model.KV
	snap, _ := t.snap.KVTree(prefix)
	for _, kv := range snap {
		if t.kvs[kv.Key] != nil || t.dropped(store.KVKey(kv.Key)) {
			continue
		}
		if t.once(store.KVKey(kv.Key)) {
			t.p.readValue(kv.Key, kv)
		}
		list = append(list, kv)
	}
	for key, w := range t.kvs {
		if w.rec != nil && strings.HasPrefix(key, prefix) {
			list = append(list, w.rec)
		}
	}
	slices.SortFunc(list, func(a, b *model.KV) int { return strings.Compare(a.Key, b.Key) })
	return list
}

// setKV writes value and flags; the lock stays.
func (t *overlay) setKV(given *model.KV) *model.KV {
	next := model.KV{Key: given.Key, Value: given.Value, Flags: given.Flags, Stamp: given.Stamp}
	if cur := t.kv(given.Key); cur != nil {
		next.Session, next.LockIndex = cur.Session, cur.LockIndex
	}
	return t.putKV(&next)
}

// putKV makes an entry what next says, lock included, and returns it. What
// changes nothing is not written.
func (t *overlay) putKV(next *model.KV) *model.KV {
	if next.Owner == "" {
		next.Owner = model.OwnerOperator
	}
	cur := t.kv(next.Key)
	value := !t.p.same(cur, next)
	lock := next.Session != "" || next.LockIndex != 0
	if cur != nil {
		lock = cur.Session != next.Session || cur.LockIndex != next.LockIndex
	}
	if !value && !lock {
		return cur
	}
	before, _ := t.snap.KV(next.Key)
	next.Stamp = restamp(next.Owner, before)
	w := t.kvs[next.Key]
	if w == nil {
		// What went with a prefix may have left a lock behind.
		w = &kvWrite{removed: before != nil && t.dropped(store.KVKey(next.Key))}
		t.kvs[next.Key] = w
	}
	w.rec, w.value, w.lock = next, w.value || value, w.lock || lock
	return next
}

func (t *overlay) deleteKV(key string) {
	if t.kv(key) == nil {
		return
	}
	t.kvs[key] = &kvWrite{removed: true}
}

func (t *overlay) deleteTree(prefix string) {
	var values, locks []string
	list, _ := t.snap.KVTree(prefix)
	for _, kv := range list {
		values = append(values, store.KVKey(kv.Key))
		if kv.LockModified > 0 {
			locks = append(locks, store.KVLockKey(kv.Key))
		}
	}
	t.drop(store.KVPrefix(prefix), values)
	t.drop(store.KVLockPrefix(prefix), locks)
	forget(t.kvs, prefix)
}

func (t *overlay) checkKV(verb string, given *model.KV) error {
	kv := t.kv(given.Key)
	switch verb {
	case "check-not-exists":
		if kv != nil {
			return say(nil, "key %q exists", given.Key)
		}
		return nil
	case "check-index":
		if kv == nil {
			return say(nil, "failed to check index, key %q doesn't exist", given.Key)
		}
		if kv.ModifyIndex != given.ModifyIndex {
			return say(nil, "failed index check for key %q, current modify index %d != %d", given.Key, kv.ModifyIndex, given.ModifyIndex)
		}
	case "check-session":
		if kv == nil {
			return say(nil, "failed to check session, key %q doesn't exist", given.Key)
		}
		if kv.Session != given.Session {
			return say(nil, "failed session check for key %q, current session %q != %q", given.Key, kv.Session, given.Session)
		}
	}
	t.writtenKV(kv)
	return nil
}

func (t *overlay) lock(given *model.KV) error {
	if given.Session == "" {
		return errMissingSession
	}
	s, _ := t.snap.Session(given.Session)
	if t.once(store.SessionKey(given.Session)) {
		t.p.read(store.SessionKey(given.Session), s)
	}
	if s == nil || s.Dying {
		return unknownSession(given.Session)
	}
	next := model.KV{Key: given.Key, Value: given.Value, Flags: given.Flags, Session: given.Session, LockIndex: 1, Stamp: given.Stamp}
	switch cur := t.kv(given.Key); {
	case cur == nil:
	case cur.Session == given.Session:
		next.LockIndex = cur.LockIndex
	case cur.Session != "":
		return say(nil, "failed to lock key %q, lock is already held", given.Key)
	default:
		next.LockIndex = cur.LockIndex + 1
	}
	t.holds[given.Session] = true
	t.writtenKV(t.putKV(&next))
	return nil
}

func (t *overlay) unlock(given *model.KV) error {
	if given.Session == "" {
		return errMissingSession
	}
	cur := t.kv(given.Key)
	if cur == nil || cur.Session != given.Session {
		return say(nil, "failed to unlock key %q, lock isn't held, or is held by another session", given.Key)
	}
	next := model.KV{Key: given.Key, Value: given.Value, Flags: given.Flags, LockIndex: cur.LockIndex, Stamp: given.Stamp}
	t.writtenKV(t.putKV(&next))
	return nil
}

// delayed reports whether a lock delay keeps an entry from being locked.
func (t *overlay) delayed(key string) bool {
	d, _ := t.snap.LockDelay(key)
	if t.once(store.LockDelayKey(key)) {
		t.p.read(store.LockDelayKey(key), d)
	}
	return delayed(d)
}
