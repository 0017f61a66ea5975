package consulapi

import (
	"strings"

	"github.com/google/uuid"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// vetTxn says which operations cannot be or are not the token's to do. Values
// that are only read are not among them: what may not be seen is left out of the
// answer.
func (h *handler) vetTxn(c *call, ops []model.TxnOp) []model.TxnError {
	var failed []model.TxnError
	snap := h.Reader.Snapshot()
	for i := range ops {
		var err error
		switch op := &ops[i]; {
		case op.KV != nil:
			err = vetKV(c, op.KV)
		case op.Node != nil:
			err = vetNode(c, snap, op.Node)
		case op.Instance != nil:
			err = vetInstance(c, snap, op.Instance)
		case op.Check != nil:
			err = vetCheck(c, snap, op.Check)
		}
		if err != nil {
			failed = append(failed, txnFailure(i, "%s", err))
		}
	}
	return failed
}

// refuseOp is why an operation cannot be.
func refuseOp(format string, args ...any) error { return badRequest(format, args...) }

func vetKV(c *call, op *model.TxnKV) error {
	key := op.KV.Key
	if key == "" && op.Verb != "delete-tree" {
		return refuseOp("Must provide key")
	}
	switch op.Verb {
	case "get", "get-tree", "get-or-empty":
		return nil
	case "check-session", "check-index":
		// Their outcome tells what is there.
		return c.require(acl.Key, key, acl.Read)
	case "delete-tree":
		return c.requirePrefix(acl.Key, key, acl.Write)
	case "set", "cas", "lock", "unlock", "delete", "delete-cas", "check-not-exists":
		return c.require(acl.Key, key, acl.Write)
	}
	return refuseOp("unknown KV verb %q", op.Verb)
}

// vetVerb checks a verb of nodes, services and checks; it reports whether the
// operation writes.
func vetVerb(what, verb string) (writes bool, err error) {
	switch verb {
	case verbGet:
		return false, nil
	case "set", "cas", "delete", "delete-cas":
		return true, nil
	}
	return false, refuseOp("unknown %s operation: %s", what, verb)
}

func vetNode(c *call, snap *state.Snapshot, op *model.TxnNode) error {
	writes, err := vetVerb("node", op.Verb)
	if err != nil || !writes {
		return err
	}
	n := &op.Node
	if n.Name == "" {
		return refuseOp("Must provide node")
	}
	if n.ID != "" {
		if _, err := uuid.Parse(n.ID); err != nil {
			return refuseOp("Bad node ID: %v", err)
		}
		// The id decides which node is meant.
		nodes, _ := snap.Nodes()
		for _, other := range nodes {
			if strings.EqualFold(other.ID, n.ID) && other.Name != n.Name {
				if err := c.require(acl.Node, string(other.Name), acl.Write); err != nil {
					return err
				}
			}
		}
	}
	return c.require(acl.Node, string(n.Name), acl.Write)
}

func vetInstance(c *call, snap *state.Snapshot, op *model.TxnInstance) error {
	writes, err := vetVerb("service", op.Verb)
	if err != nil || !writes {
		return err
	}
	i := &op.Instance
	if i.Service == "" {
		return refuseOp("Must provide service name (Service.Service) when service ID is provided")
	}
	// The id decides which instance is meant, whatever service it is of.
	if old, _ := snap.Instance(i.Node, i.ID); old != nil && old.Service != i.Service {
		if err := c.require(acl.Service, string(old.Service), acl.Write); err != nil {
			return err
		}
	}
	if err := c.require(acl.Service, string(i.Service), acl.Write); err != nil || op.Verb == "delete" || op.Verb == "delete-cas" {
		return err
	}
	if err := fitService(i); err != nil || i.Kind != model.KindConnectProxy {
		return err
	}
	// A proxy draws the connections that are meant for the service it stands for.
	return c.require(acl.Service, string(i.Proxy.Service), acl.Write)
}

func vetCheck(c *call, snap *state.Snapshot, op *model.TxnCheck) error {
	writes, err := vetVerb("check", op.Verb)
	if err != nil || !writes {
		return err
	}
	ch := &op.Check
	if old, _ := snap.Check(ch.Node, ch.ID); old != nil {
		// The right to the check that is there is what counts, and the right to
		// what it becomes.
		if err := vetCheckOwner(c, snap, old); err != nil {
			return err
		}
		if op.Verb == "delete" || op.Verb == "delete-cas" {
			return nil
		}
	}
	return vetCheckOwner(c, snap, ch)
}

// vetCheckOwner takes the right to write the check's service, or its node for a
// check of the node. A service that the same transaction brings is taken by the
// name that the check says.
func vetCheckOwner(c *call, snap *state.Snapshot, ch *model.Check) error {
	if ch.ServiceID == "" {
		return c.require(acl.Node, string(ch.Node), acl.Write)
	}
	name := ch.ServiceName
	if i, _ := snap.Instance(ch.Node, ch.ServiceID); i != nil {
		name = i.Service
	}
	if name == "" {
		return refuseOp("unknown service ID %q for check ID %q", ch.ServiceID, ch.ID)
	}
	return c.require(acl.Service, string(name), acl.Write)
}

func seeTxnResult(a acl.Authorizer, r model.TxnResult) bool {
	switch {
	case r.KV != nil:
		return seeKV(a, r.KV)
	case r.Node != nil:
		return seeNode(a, r.Node)
	case r.Instance != nil:
		return seeInstance(a, r.Instance)
	case r.Check != nil:
		return seeOwnCheck(a, *r.Check)
	}
	return true
}
