package consulapi_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/fairlead-net/fairlead/internal/event"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// refusal is an error of the registry that is the asker's fault.
type refusal string

func (r refusal) Error() string { return string(r) }
func (r refusal) Refused() bool { return true }

// wrapped is how the registry passes a refusal on.
func wrapped(what string, r refusal) error { return fmt.Errorf("%s: %w", what, r) }

func (w *world) CreateSession(_ context.Context, s model.Session) (string, model.Index, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		return "", 0, w.fail
	}
	snap := w.st.Snapshot()
	if n, _ := snap.Node(s.Node); n == nil {
		return "", 0, wrapped("create session", "Missing node registration")
	}
	ids := s.NodeChecks
	for _, c := range s.ServiceChecks {
		ids = append(ids, c.ID)
	}
	for _, id := range ids {
		if c, _ := snap.Check(s.Node, id); c == nil {
			return "", 0, wrapped("create session", refusal("Missing check '"+string(id)+"' registration"))
		}
	}
	s.ID = fmt.Sprintf("00000000-0000-0000-0000-%012d", w.rev)
	return s.ID, w.putLocked("session/"+s.ID, state.Change{Session: &s}), nil
}

func (w *world) RenewSession(_ context.Context, id string) (*model.Session, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s, _ := w.st.Snapshot().Session(id)
	switch {
	case w.fail != nil:
		return nil, w.fail
	case s == nil || s.Name == "expired":
		return nil, fmt.Errorf("renew session: %w", model.ErrUnknownSession)
	}
	return s, nil
}

func (w *world) DestroySession(_ context.Context, id string) (model.Index, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		return 0, w.fail
	}
	for _, kv := range w.st.Snapshot().Locked(id) {
		free := *kv
		free.Session = ""
		w.putLocked("kv/"+kv.Key, state.Change{KV: &free})
	}
	return w.putLocked("session/"+id, state.Change{Delete: true, Session: &model.Session{ID: id}}), nil
}

func (w *world) LockKV(_ context.Context, kv model.KV) (bool, model.Index, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		return false, 0, w.fail
	}
	snap := w.st.Snapshot()
	if s, _ := snap.Session(kv.Session); s == nil {
		return false, 0, wrapped("lock key", refusal(fmt.Sprintf("invalid session %q", kv.Session)))
	}
	kv.LockIndex = 1
	if cur, _ := snap.KV(kv.Key); cur != nil {
		switch cur.Session {
		case kv.Session:
			kv.LockIndex = cur.LockIndex
		case "":
			kv.LockIndex = cur.LockIndex + 1
		default:
			return false, w.rev, nil
		}
	}
	return true, w.putLocked("kv/"+kv.Key, state.Change{KV: &kv}), nil
}

func (w *world) UnlockKV(_ context.Context, kv model.KV) (bool, model.Index, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	cur, _ := w.st.Snapshot().KV(kv.Key)
	if cur == nil || cur.Session != kv.Session {
		return false, w.rev, nil
	}
	kv.Session, kv.LockIndex = "", cur.LockIndex
	return true, w.putLocked("kv/"+kv.Key, state.Change{KV: &kv}), nil
}

// Transact knows set, get and delete of keys, and set and get of a node, an
// instance and a check. What is said of keys below no/ fails.
func (w *world) Transact(_ context.Context, ops []model.TxnOp) ([]model.TxnResult, []model.TxnError, model.Index, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	writes := slices.ContainsFunc(ops, func(op model.TxnOp) bool {
		return op.KV != nil && op.KV.Verb != "get" || op.Node != nil && op.Node.Verb != "get"
	})
	if w.fail != nil && writes {
		return nil, nil, 0, w.fail
	}
	for i, op := range ops {
		if op.KV != nil && strings.HasPrefix(op.KV.KV.Key, "no/") {
			return nil, []model.TxnError{{OpIndex: i, What: "failed to set key \"" + op.KV.KV.Key + "\", index is stale"}}, w.rev, nil
		}
	}
	var out []model.TxnResult
	for _, op := range ops {
		switch {
		case op.KV != nil && op.KV.Verb == "get":
			kv, _ := w.st.Snapshot().KV(op.KV.KV.Key)
			out = append(out, model.TxnResult{KV: kv})
		case op.KV != nil && op.KV.Verb == "delete":
			w.putLocked("kv/"+op.KV.KV.Key, state.Change{Delete: true, KV: &model.KV{Key: op.KV.KV.Key}})
			out = append(out, model.TxnResult{})
		case op.KV != nil:
			kv := op.KV.KV
			w.putLocked("kv/"+kv.Key, state.Change{KV: &kv})
			bare := kv
			bare.Value = nil
			out = append(out, model.TxnResult{KV: &bare})
		case op.Node != nil && op.Node.Verb == "get":
			n, _ := w.st.Snapshot().Node(op.Node.Node.Name)
			out = append(out, model.TxnResult{Node: n})
		case op.Node != nil:
			n := op.Node.Node
			w.putLocked("node/"+string(n.Name), state.Change{Node: &n})
			out = append(out, model.TxnResult{Node: &n})
		case op.Instance != nil:
			i := op.Instance.Instance
			w.putLocked("instance/"+string(i.ID), state.Change{Instance: &i})
			out = append(out, model.TxnResult{Instance: &i})
		case op.Check != nil:
			c := op.Check.Check
			w.putLocked("check/"+string(c.ID), state.Change{Check: &c})
			out = append(out, model.TxnResult{Check: &c})
		}
	}
	return out, nil, w.rev, nil
}

// fakeEvents is an event log whose ids are known before.
type fakeEvents struct {
	mu      sync.Mutex // guards following
	all     []model.UserEvent
	changed chan struct{}
}

func (f *fakeEvents) Fire(e model.UserEvent) (model.UserEvent, error) {
	e, err := event.New("n1", func() []model.Registration { return nil }).Fire(e) // refuses what the real one refuses
	if err != nil {
		return e, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	e.LTime = uint64(len(f.all) + 1)
	e.ID = fmt.Sprintf("00000000-0000-0100-0000-%012d", e.LTime)
	f.all = append(f.all, e)
	if f.changed != nil {
		close(f.changed)
		f.changed = nil
	}
	return e, nil
}

func (f *fakeEvents) Recent() ([]model.UserEvent, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.changed == nil {
		f.changed = make(chan struct{})
	}
	return f.all, f.changed
}
