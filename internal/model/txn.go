package model

// TxnOp is one operation of a transaction; exactly one of its fields is set.
// The verbs are those of Consul's /v1/txn.
type TxnOp struct {
	KV       *TxnKV
	Node     *TxnNode
	Instance *TxnInstance
	Check    *TxnCheck
}

// TxnKV is an operation on KV entries: set, cas, lock, unlock, get, get-or-empty,
// get-tree, check-index, check-session, check-not-exists, delete, delete-tree or
// delete-cas.
type TxnKV struct {
	Verb string
	// KV holds Key, Value, Flags and Session; ModifyIndex is the index that cas,
	// delete-cas and check-index compare with.
	KV KV
}

// TxnNode is an operation on a node: get, set, cas, delete or delete-cas.
type TxnNode struct {
	Verb string
	Node Node // ModifyIndex is what cas compares with
}

// TxnInstance is an operation on a service instance, with the verbs of TxnNode.
type TxnInstance struct {
	Verb     string
	Instance Instance
}

// TxnCheck is an operation on a check, with the verbs of TxnNode.
type TxnCheck struct {
	Verb  string
	Check Check
}

// TxnResult is what one operation of a transaction found or wrote; at most one
// field is set, none for a deletion.
type TxnResult struct {
	KV       *KV
	Node     *Node
	Instance *Instance
	Check    *Check
}

// TxnError says why one operation of a transaction failed.
type TxnError struct {
	OpIndex int
	What    string
}
