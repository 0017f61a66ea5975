package consulapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"

	"github.com/fairlead-net/fairlead/internal/model"
)

// Transactor carries out transactions.
type Transactor interface {
	// Transact does all operations, in order, or none: then it says which failed
	// and why. An error says that the outcome of the whole is not known, or that
	// nothing was done. What only reads is answered from the newest snapshot.
	Transact(ctx context.Context, ops []model.TxnOp) ([]model.TxnResult, []model.TxnError, model.Index, error)
}

var txnRoutes = []route{put("/v1/txn", (*handler).txn)}

const (
	// maxTxnOps is how many operations a transaction may have, since Consul 1.14.
	maxTxnOps  = 128
	txnSizeDoc = " See https://www.consul.io/docs/agent/config/config-files#txn_max_req_len."
)

// txnShape is the outcome of a transaction. Either list is null when empty, as
// Consul has it.
type txnShape struct {
	Results []txnResultShape
	Errors  []txnErrorShape
}

// txnReadShape is that of one that only reads; it repeats the headers, but for
// the index, of which there is none.
type txnReadShape struct {
	txnShape
	Index                 uint64
	LastContact           int64
	KnownLeader           bool
	ConsistencyLevel      string
	NotModified           bool
	Backend               int
	ResultsFilteredByACLs bool
}

type txnResultShape struct {
	KV      *kvShape      `json:",omitempty"`
	Node    *nodeShape    `json:",omitempty"`
	Service *serviceShape `json:",omitempty"`
	Check   *checkShape   `json:",omitempty"`
}

type txnErrorShape struct {
	OpIndex int
	What    string
}

func (h *handler) txn(c *call) (answer, error) {
	if h.Transactor == nil {
		return answer{}, fail(http.StatusNotImplemented, "Transactions are not available on this agent")
	}
	if err := h.checkDatacenter(c); err != nil {
		return answer{}, err
	}
	ops, err := h.txnOps(c)
	if err != nil {
		return answer{}, err
	}
	if _, err := c.authorizer(); err != nil {
		return answer{}, err
	}
	for i := range ops {
		if txnWrites(&ops[i]) {
			return h.txnWrite(c, ops)
		}
	}
	return h.txnRead(c, ops)
}

// txnOps decodes the body. An operation that names nothing to operate on is left
// out, as Consul does.
func (h *handler) txnOps(c *call) ([]model.TxnOp, error) {
	body, err := h.txnBody(c)
	if err != nil {
		return nil, err
	}
	var in []txnOpBody
	dec := json.NewDecoder(bytes.NewReader(body))
	if err := dec.Decode(&in); err != nil {
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) && wrong.Type == reflect.TypeOf(in) {
			err = fmt.Errorf("json: cannot unmarshal %s into a list of operations", wrong.Value)
		}
		return nil, badRequest("Failed to parse body: %v", err)
	}
	if _, more := dec.Token(); !errors.Is(more, io.EOF) {
		return nil, badRequest("Failed to parse body: more than one JSON value")
	}
	if len(in) > maxTxnOps {
		return nil, fail(http.StatusRequestEntityTooLarge, "Transaction contains too many operations (%d > %d)", len(in), maxTxnOps)
	}
	ops := make([]model.TxnOp, 0, len(in))
	for i := range in {
		if kv := in[i].KV; kv != nil && int64(len(kv.Value)) > h.cfg.KVMaxValueSize {
			return nil, fail(http.StatusRequestEntityTooLarge, "Value for key %q is too large (%d > %d bytes)", kv.Key, len(kv.Value), h.cfg.KVMaxValueSize)
		}
		op, ok, err := in[i].op()
		if err != nil {
			return nil, badRequest("Failed to parse body: %v", err)
		}
		if ok {
			ops = append(ops, op)
		}
	}
	return ops, nil
}

func (h *handler) txnBody(c *call) ([]byte, error) {
	limit := max(h.cfg.TxnMaxReqSize, h.cfg.KVMaxValueSize)
	if c.r.ContentLength > limit {
		return nil, fail(http.StatusRequestEntityTooLarge, "%s", tooLarge(c.r.ContentLength, limit, txnSizeDoc))
	}
	b, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, limit))
	var big *http.MaxBytesError
	switch {
	case errors.As(err, &big):
		return nil, fail(http.StatusRequestEntityTooLarge, "Request body too large, max size: %d bytes.%s", limit, txnSizeDoc)
	case err != nil:
		return nil, badRequest("Failed to parse body: %v", err)
	}
	return b, nil
}

// txnWrites reports whether an operation changes anything. An unknown verb of
// KV, which fails either way, does not.
func txnWrites(op *model.TxnOp) bool {
	switch {
	case op.KV != nil:
		switch op.KV.Verb {
		case "set", "cas", "lock", "unlock", "delete", "delete-tree", "delete-cas":
			return true
		}
		return false
	case op.Node != nil:
		return op.Node.Verb != verbGet
	case op.Instance != nil:
		return op.Instance.Verb != verbGet
	default:
		return op.Check.Verb != verbGet
	}
}

func (h *handler) txnWrite(c *call, ops []model.TxnOp) (answer, error) {
	failed := h.vetTxn(c, ops)
	var results []model.TxnResult
	if len(failed) == 0 {
		var err error
		if results, failed, _, err = h.Transactor.Transact(c.r.Context(), ops); err != nil {
			return answer{}, err
		}
	}
	out, err := h.txnOutcome(c, results, failed)
	if err != nil {
		return answer{}, err
	}
	c.h.Del(filteredHeader) // it belongs to reads
	return txnAnswer(out, len(failed) > 0), nil
}

// txnRead answers a transaction that only reads, like any read: it takes a leader
// only if the answer must be consistent.
func (h *handler) txnRead(c *call, ops []model.TxnOp) (answer, error) {
	o, err := parseOptions(c)
	if err != nil {
		return answer{}, err
	}
	if o.consistent {
		if err := h.catchUp(c.r.Context()); err != nil {
			return answer{}, fail(http.StatusInternalServerError, noLeader)
		}
	}
	failed := h.vetTxn(c, ops)
	var results []model.TxnResult
	if len(failed) == 0 {
		if results, failed, _, err = h.Transactor.Transact(c.r.Context(), ops); err != nil {
			return answer{}, err
		}
	}
	out, err := h.txnOutcome(c, results, failed)
	if err != nil {
		return answer{}, err
	}
	h.setMeta(c.h, o, 0)
	c.h.Del("X-Consul-Index") // nothing here can be waited for
	return txnAnswer(txnReadShape{
		txnShape: out, KnownLeader: h.Cluster.Leader() != "", ResultsFilteredByACLs: c.h.Get(filteredHeader) != "",
	}, len(failed) > 0), nil
}

func txnAnswer(v any, failed bool) answer {
	a := value(v)
	if failed {
		a.status = http.StatusConflict
	}
	return a
}

// txnOutcome is what the token may see of an outcome.
func (h *handler) txnOutcome(c *call, results []model.TxnResult, failed []model.TxnError) (txnShape, error) {
	var out txnShape
	for _, f := range failed {
		out.Errors = append(out.Errors, txnErrorShape(f))
	}
	if len(failed) > 0 {
		return out, nil
	}
	results, err := visible(c, results, seeTxnResult)
	if err != nil {
		return out, err
	}
	out.Results = []txnResultShape{}
	for _, r := range results {
		var s txnResultShape
		switch {
		case r.KV != nil:
			s.KV = new(shapeKV(r.KV))
		case r.Node != nil:
			s.Node = new(shapeNode(r.Node, h.cfg.Node.Datacenter))
		case r.Instance != nil:
			s.Service = new(shapeService(r.Instance))
		case r.Check != nil:
			s.Check = new(shapeCheck(r.Check))
		default:
			continue // a deletion has nothing to show
		}
		out.Results = append(out.Results, s)
	}
	return out, nil
}

// txnFailure is the error of one operation.
func txnFailure(i int, format string, args ...any) model.TxnError {
	return model.TxnError{OpIndex: i, What: fmt.Sprintf(format, args...)}
}
