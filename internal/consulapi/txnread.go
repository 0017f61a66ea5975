package consulapi

import (
	"fmt"
	"strings"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// readTxn carries out operations that only read.
func readTxn(snap *state.Snapshot, ops []model.TxnOp) ([]model.TxnResult, []model.TxnError) {
	var results []model.TxnResult
	var failed []model.TxnError
	for i := range ops {
		found, err := readOp(snap, &ops[i])
		if err != nil {
			failed = append(failed, txnFailure(i, "%s", err))
		}
		results = append(results, found...)
	}
	if len(failed) > 0 {
		return nil, failed
	}
	return results, nil
}

func readOp(snap *state.Snapshot, op *model.TxnOp) ([]model.TxnResult, error) {
	switch {
	case op.KV != nil:
		return readKV(snap, op.KV)
	case op.Node != nil:
		n := findNode(snap, &op.Node.Node)
		if n == nil {
			return nil, fmt.Errorf("node %q doesn't exist", op.Node.Node.Name)
		}
		return []model.TxnResult{{Node: n}}, nil
	case op.Instance != nil:
		want := &op.Instance.Instance
		i, _ := snap.Instance(want.Node, want.ID)
		if i == nil {
			return nil, fmt.Errorf("service %q on node %q doesn't exist", want.ID, want.Node)
		}
		return []model.TxnResult{{Instance: i}}, nil
	default:
		want := &op.Check.Check
		c, _ := snap.Check(want.Node, want.ID)
		if c == nil {
			return nil, fmt.Errorf("check %q on node %q doesn't exist", want.ID, want.Node)
		}
		return []model.TxnResult{{Check: c}}, nil
	}
}

// findNode finds a node by its id if one is given, else by its name.
func findNode(snap *state.Snapshot, want *model.Node) *model.Node {
	if want.ID == "" {
		n, _ := snap.Node(want.Name)
		return n
	}
	nodes, _ := snap.Nodes()
	for _, n := range nodes {
		if strings.EqualFold(n.ID, want.ID) {
			return n
		}
	}
	return nil
}

func readKV(snap *state.Snapshot, op *model.TxnKV) ([]model.TxnResult, error) {
	key := op.KV.Key
	kv, _ := snap.KV(key)
	one := func(kv *model.KV) ([]model.TxnResult, error) { return []model.TxnResult{{KV: kv}}, nil }
	// bare leaves out the value, which only get and its like answer with.
	bare := func() ([]model.TxnResult, error) {
		b := *kv
		b.Value = nil
		return one(&b)
	}
	switch op.Verb {
	case "get-tree":
		tree, _ := snap.KVTree(key)
		all := make([]model.TxnResult, len(tree))
		for i, kv := range tree {
			all[i].KV = kv
		}
		return all, nil
	case "get-or-empty":
		if kv == nil {
			empty := op.KV
			empty.Value = nil
			return one(&empty)
		}
		return one(kv)
	case "check-not-exists":
		if kv != nil {
			return nil, fmt.Errorf("key %q exists", key)
		}
		return nil, nil
	case "get":
		if kv == nil {
			return nil, fmt.Errorf("key %q doesn't exist", key)
		}
		return one(kv)
	case "check-index":
		switch {
		case kv == nil:
			return nil, fmt.Errorf("failed to check index, key %q doesn't exist", key)
		case kv.ModifyIndex != op.KV.ModifyIndex:
			return nil, fmt.Errorf("failed index check for key %q, current modify index %d != %d", key, kv.ModifyIndex, op.KV.ModifyIndex)
		}
		return bare()
	case "check-session":
		switch {
		case kv == nil:
			return nil, fmt.Errorf("failed to check session, key %q doesn't exist", key)
		case kv.Session != op.KV.Session:
			return nil, fmt.Errorf("failed session check for key %q, current session %q != %q", key, kv.Session, op.KV.Session)
		}
		return bare()
	}
	return nil, fmt.Errorf("unknown KV verb %q", op.Verb)
}
