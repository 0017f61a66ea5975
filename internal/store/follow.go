package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

const (
	loadPage   = 10_000                 // keys read at once
	watchPause = 100 * time.Millisecond // before a broken watch is set up again
	// firstGeneration is what a new cluster starts with.
	firstGeneration = "1"
)

// errReload says that the watch cannot go on from where it was, and everything
// has to be read anew.
var errReload = errors.New("changes were missed")

// follower is the one writer of state: it loads everything once and then applies
// the watch, revision by revision. Only the goroutine that calls load and then
// loop uses it, the atomics excepted.
type follower struct {
	cli     *clientv3.Client
	state   Applier
	log     *slog.Logger
	gen     *atomic.Pointer[generation] // shared with the committer
	stats   *counters
	applied atomic.Int64 // newest revision that state shows
	// current is the generation that state shows; the committer may know a newer
	// one already.
	current *generation
	// locks are the KV locks of the current generation. State sees an entry and
	// its lock as one record.
	locks map[string]lockRecord
	// beforeWatch runs before a watch is set up; tests compact there.
	beforeWatch func()
}

type lockRecord struct {
	Lock
	mod model.Index
}

// load reads the generation in force, makes the first one if there is none, and
// replaces state.
func (f *follower) load(ctx context.Context) error {
	for {
		resp, err := f.cli.Get(ctx, pointerKey)
		if err != nil {
			return fmt.Errorf("read the generation pointer: %w", err)
		}
		if len(resp.Kvs) == 0 {
			absent := clientv3.Compare(clientv3.CreateRevision(pointerKey), "=", 0)
			put := clientv3.OpPut(pointerKey, firstGeneration)
			if _, err := f.cli.Txn(ctx).If(absent).Then(put).Commit(); err != nil {
				return fmt.Errorf("write the generation pointer: %w", err)
			}
			continue
		}
		gen := &generation{name: string(resp.Kvs[0].Value), mod: resp.Kvs[0].ModRevision}
		err = f.reset(ctx, gen, resp.Header.Revision)
		if !errors.Is(err, rpctypes.ErrCompacted) {
			return err
		}
	}
}

// reset replaces state by the content of a generation as of rev.
func (f *follower) reset(ctx context.Context, gen *generation, rev int64) error {
	prefix := gen.prefix()
	end := clientv3.GetPrefixRangeEnd(prefix)
	locks := map[string]lockRecord{}
	var records []state.Change
	for from := prefix; ; {
		resp, err := f.cli.Get(ctx, from, clientv3.WithRange(end), clientv3.WithRev(rev),
			clientv3.WithLimit(loadPage), clientv3.WithSerializable())
		if err != nil {
			return fmt.Errorf("load generation %s at revision %d: %w", gen.name, rev, err)
		}
		for _, kv := range resp.Kvs {
			if c, ok := f.decode(prefix, kv, locks); ok {
				records = append(records, c)
			}
		}
		if !resp.More || len(resp.Kvs) == 0 {
			break
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
	if len(locks) > 0 {
		for _, c := range records {
			mergeLock(c.KV, locks)
		}
	}
	f.locks, f.current = locks, gen
	if known := f.gen.Load(); known == nil || known.mod < gen.mod {
		f.gen.CompareAndSwap(known, gen)
	}
	f.state.Reset(model.Index(rev), records)
	f.applied.Store(rev)
	return nil
}

// loop keeps state up to date until ctx ends.
func (f *follower) loop(ctx context.Context) error {
	for {
		err := f.watch(ctx)
		if ctx.Err() != nil {
			return nil
		}
		f.stats.reloads.Add(1)
		if !errors.Is(err, errReload) {
			f.log.Warn("the watch broke", "error", err, "index", f.applied.Load())
			pause(ctx, watchPause)
			continue
		}
		f.log.Warn("reading everything anew", "error", err, "index", f.applied.Load())
		for err = f.load(ctx); err != nil && ctx.Err() == nil; err = f.load(ctx) {
			f.log.Error("reload failed", "error", err)
			pause(ctx, watchPause)
		}
	}
}

// watch applies what follows the applied revision until the watch breaks. It
// watches everything below the root, so that it sees every revision there is.
func (f *follower) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if f.beforeWatch != nil {
		f.beforeWatch()
	}
	events := f.cli.Watch(ctx, rootPrefix, clientv3.WithPrefix(), clientv3.WithRev(f.applied.Load()+1))
	for resp := range events {
		if resp.CompactRevision != 0 {
			return fmt.Errorf("%w: compacted to revision %d", errReload, resp.CompactRevision)
		}
		if err := resp.Err(); err != nil {
			return err
		}
		for evs := resp.Events; len(evs) > 0; {
			n, rev := 1, evs[0].Kv.ModRevision
			for n < len(evs) && evs[n].Kv.ModRevision == rev {
				n++
			}
			if last := f.applied.Load(); rev != last+1 {
				return fmt.Errorf("%w: revision %d follows %d", errReload, rev, last)
			}
			if err := f.apply(ctx, rev, evs[:n]); err != nil {
				return err
			}
			evs = evs[n:]
		}
	}
	return errors.New("watch ended")
}

// apply publishes one revision, also one that changes no record: somebody may
// wait for its index.
func (f *follower) apply(ctx context.Context, rev int64, events []*clientv3.Event) error {
	prefix := f.current.prefix()
	changes := make([]state.Change, 0, len(events))
	var locked map[string]bool // entries whose lock changed and that are not among changes
	for _, e := range events {
		k := string(e.Kv.Key)
		if k == pointerKey {
			if e.Type != mvccpb.Event_PUT {
				return fmt.Errorf("%w: the generation pointer was deleted", errReload)
			}
			f.log.Info("the generation changed", "generation", string(e.Kv.Value), "index", rev)
			err := f.reset(ctx, &generation{name: string(e.Kv.Value), mod: rev}, rev)
			if errors.Is(err, rpctypes.ErrCompacted) {
				return fmt.Errorf("%w: %w", errReload, err)
			}
			return err
		}
		k, ours := strings.CutPrefix(k, prefix)
		if !ours {
			continue
		}
		if lock, ok := strings.CutPrefix(k, KVLockPrefix("")); ok {
			if locked == nil {
				locked = map[string]bool{}
			}
			locked[lock] = true
		}
		if e.Type == mvccpb.Event_DELETE {
			if c, ok := f.decodeDelete(k); ok {
				changes = append(changes, c)
			}
		} else if c, ok := f.decode(prefix, e.Kv, f.locks); ok {
			changes = append(changes, c)
		}
	}
	for _, c := range changes {
		if c.KV == nil {
			continue
		}
		delete(locked, c.KV.Key)
		if !c.Delete {
			mergeLock(c.KV, f.locks)
		}
	}
	for k := range locked {
		c, ok, err := f.entryAt(ctx, k, rev)
		if err != nil {
			return err
		}
		if ok {
			changes = append(changes, c)
		}
	}
	f.state.Apply(model.Index(rev), changes)
	f.applied.Store(rev)
	return nil
}

// entryAt reads a KV entry whose lock alone changed at rev.
func (f *follower) entryAt(ctx context.Context, key string, rev int64) (state.Change, bool, error) {
	prefix := f.current.prefix()
	resp, err := f.cli.Get(ctx, prefix+KVKey(key), clientv3.WithRev(rev), clientv3.WithSerializable())
	if err != nil {
		if errors.Is(err, rpctypes.ErrCompacted) {
			err = fmt.Errorf("%w: %w", errReload, err)
		}
		return state.Change{}, false, fmt.Errorf("read entry %q at revision %d: %w", key, rev, err)
	}
	if len(resp.Kvs) == 0 {
		return state.Change{}, false, nil
	}
	c, ok := f.decode(prefix, resp.Kvs[0], f.locks)
	if ok {
		mergeLock(c.KV, f.locks)
	}
	return c, ok, nil
}

// decode turns a key and its value into a change. A KV lock goes into locks
// instead. What cannot be read is left out and counted: one bad record must not
// hide all others.
func (f *follower) decode(prefix string, kv *mvccpb.KeyValue, locks map[string]lockRecord) (state.Change, bool) {
	k := string(kv.Key[len(prefix):])
	create, mod := model.Index(kv.CreateRevision), model.Index(kv.ModRevision)
	if key, ok := strings.CutPrefix(k, KVLockPrefix("")); ok {
		l := lockRecord{mod: mod}
		if err := decodeJSON(kv.Value, &l.Lock); err != nil {
			f.bad(k, err)
			return state.Change{}, false
		}
		locks[key] = l
		return state.Change{}, false
	}
	c, ok, err := Decode(k, kv.Value, create, mod)
	if err != nil {
		f.bad(k, err)
	}
	return c, ok
}

func (f *follower) decodeDelete(k string) (state.Change, bool) {
	if key, ok := strings.CutPrefix(k, KVLockPrefix("")); ok {
		delete(f.locks, key)
		return state.Change{}, false
	}
	c, ok, err := DecodeDelete(k)
	if err != nil {
		f.bad(k, err)
	}
	return c, ok
}

func (f *follower) bad(key string, err error) {
	f.stats.unreadable.Add(1)
	f.log.Error("a record cannot be read", "key", key, "error", err)
}

// mergeLock completes an entry with its lock. kv may be nil.
func mergeLock(kv *model.KV, locks map[string]lockRecord) {
	if kv == nil {
		return
	}
	if l, ok := locks[kv.Key]; ok {
		kv.Session, kv.LockIndex = l.Session, l.LockIndex
		kv.LockModified, kv.ModifyIndex = l.mod, max(kv.ModifyIndex, l.mod)
	}
}
