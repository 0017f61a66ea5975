package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// errOperations is the refusal of a transaction some of whose operations failed;
// callers see the operations' own errors.
var errOperations = errors.New("some operations failed")

// Transact carries out operations one after the other, each seeing what those
// before it did, and commits all or nothing. It returns what they found and wrote
// (not every operation has a result, and a tree has many), or else, without an
// error, which of them failed and why, in Consul's words; nothing is written
// then. A transaction that only reads is answered from the newest snapshot.
//
// What was read is compared when it is committed, so that the outcome is that of
// the operations run at one instant. Whoever deletes an entry and writes it again
// in one transaction keeps its CreateIndex. In the catalogue the rules are those of
// RegisterExternal.
func (r *Registry) Transact(ctx context.Context, ops []model.TxnOp) ([]model.TxnResult, []model.TxnError, model.Index, error) {
	var t *overlay
	if !slices.ContainsFunc(ops, writesOp) {
		snap := r.st.Snapshot()
		t = newOverlay(snap, &plan{})
		t.run(ops)
		return t.outcome(snap.Index())
	}
	const what = "commit a transaction"
	leave, err := r.queues.enterAll(ctx, txnQueues(ops))
	if err != nil {
		return nil, nil, 0, fmt.Errorf("%s: %w", what, err)
	}
	defer leave()
	index, err := r.write(ctx, what, func(snap *state.Snapshot, p *plan) {
		t = newOverlay(snap, p)
		if t.run(ops); len(t.failed) > 0 {
			p.refuse(errOperations)
			return
		}
		t.flush(r)
	})
	if err != nil && !errors.Is(err, errOperations) {
		return nil, nil, 0, err
	}
	return t.outcome(index)
}

// writesOp reports whether an operation can write.
func writesOp(op model.TxnOp) bool {
	switch {
	case op.KV != nil:
		switch op.KV.Verb {
		case "get", "get-or-empty", "get-tree", "check-index", "check-session", "check-not-exists":
			return false
		}
		return true
	case op.Node != nil:
		return op.Node.Verb != "get"
	case op.Instance != nil:
		return op.Instance.Verb != "get"
	case op.Check != nil:
		return op.Check.Verb != "get"
	}
	return false
}

// txnQueues names the queues of the entries that operations write, in an order
// in which no two transactions can wait for each other.
func txnQueues(ops []model.TxnOp) []string {
	var names []string
	for _, op := range ops {
		if op.KV != nil && writesOp(op) {
			names = append(names, kvQueue(op.KV.KV.Key))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// run carries out the operations on the overlay. Like Consul it goes on after one
// that failed, so that all failures are told at once, except that what is refused
// before anything is looked up stops it before it begins.
func (t *overlay) run(ops []model.TxnOp) {
	for i := range ops {
		t.check(i, t.admit(&ops[i]))
	}
	if len(t.failed) > 0 {
		return
	}
	for i := range ops {
		op := &ops[i]
		switch {
		case op.KV != nil:
			t.check(i, t.runKV(op.KV))
		case op.Node != nil:
			t.check(i, t.runNode(op.Node))
		case op.Instance != nil:
			t.check(i, t.runInstance(op.Instance))
		case op.Check != nil:
			t.check(i, t.runCheck(op.Check))
		default:
			t.check(i, say(ErrInvalid, "no operation specified"))
		}
	}
}

func (t *overlay) check(op int, err error) {
	if err != nil {
		t.failed = append(t.failed, model.TxnError{OpIndex: op, What: err.Error()})
	}
}

// admit finds what Consul refuses before it begins.
func (t *overlay) admit(op *model.TxnOp) error {
	switch {
	case op.KV != nil:
		kv := &op.KV.KV
		if kv.Key == "" && op.KV.Verb != "delete-tree" {
			return say(ErrInvalid, "Must provide key")
		}
		if op.KV.Verb == "lock" && t.delayed(kv.Key) {
			return say(nil, "failed to lock key %q due to lock delay", kv.Key)
		}
	case op.Node != nil && op.Node.Verb != "get":
		if op.Node.Node.Name == "" {
			return say(ErrInvalid, "Must provide node")
		}
	case op.Instance != nil && op.Instance.Verb != "get":
		if inst := &op.Instance.Instance; inst.ID != "" && inst.Service == "" && op.Instance.Verb != "delete" && op.Instance.Verb != "delete-cas" {
			return say(ErrInvalid, "Must provide service name with ID")
		}
	}
	return nil
}

// outcome returns what the operations found and wrote, as written at index.
func (t *overlay) outcome(index model.Index) ([]model.TxnResult, []model.TxnError, model.Index, error) {
	if len(t.failed) > 0 {
		return nil, t.failed, index, nil
	}
	for _, res := range t.results {
		switch {
		case res.KV != nil:
			date(&res.KV.Stamp, index)
		case res.Node != nil:
			date(&res.Node.Stamp, index)
		case res.Instance != nil:
			date(&res.Instance.Stamp, index)
		case res.Check != nil:
			date(&res.Check.Stamp, index)
		}
	}
	return t.results, nil, index, nil
}

// date fills in the indexes that were not known before the commit. Only records
// of the transaction's own have any.
func date(s *model.Stamp, index model.Index) {
	if s.CreateIndex == pending {
		s.CreateIndex = index
	}
	if s.ModifyIndex == pending {
		s.ModifyIndex = index
	}
}
