package consulapi

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

var kvRoutes = []route{
	{path: "/v1/kv/", shared: true, methods: map[string]endpoint{
		http.MethodGet:    (*handler).kvGet,
		http.MethodPut:    (*handler).kvPut,
		http.MethodDelete: (*handler).kvDelete,
	}},
}

// kvGet reads one key, a tree (?recurse) or the names in it (?keys). What is not
// there is a 404 without a body but with an index to block on.
func (h *handler) kvGet(c *call) (answer, error) {
	switch {
	case c.has("keys"):
		return h.kvKeys(c)
	case c.has("recurse"):
		return h.kvTree(c)
	case c.rest == "":
		return answer{}, badRequest("Missing key name")
	}
	v, err := h.query(c, func(s *state.Snapshot) (any, []state.Mark, error) {
		kv, mark := s.KV(c.rest)
		return kv, marks(mark), c.require(acl.Key, c.rest, acl.Read)
	})
	if err != nil {
		return answer{}, err
	}
	kv, _ := v.(*model.KV)
	if kv == nil {
		return answer{status: http.StatusNotFound}, nil
	}
	if c.has("raw") {
		// A browser must neither guess at the type of a stored value nor run it.
		c.h.Set("X-Content-Type-Options", "nosniff")
		c.h.Set("Content-Security-Policy", "sandbox")
		return answer{status: http.StatusOK, body: kv.Value, ctype: "text/plain"}, nil
	}
	return value([]kvShape{shapeKV(kv)}), nil
}

func (h *handler) kvTree(c *call) (answer, error) {
	v, err := h.query(c, func(s *state.Snapshot) (any, []state.Mark, error) {
		tree, mark := s.KVTree(c.rest)
		tree, err := h.mayList(c, tree)
		if err != nil {
			return nil, nil, err
		}
		out := make([]kvShape, len(tree))
		for i, kv := range tree {
			out[i] = shapeKV(kv)
		}
		return out, marks(mark), nil
	})
	if err != nil {
		return answer{}, err
	}
	if len(v.([]kvShape)) == 0 {
		return answer{status: http.StatusNotFound}, nil
	}
	return value(v), nil
}

// mayList returns what the token may read of a tree.
func (h *handler) mayList(c *call, tree []*model.KV) ([]*model.KV, error) {
	if h.cfg.KeyListPolicy {
		if err := c.require(acl.Key, c.rest, acl.List); err != nil {
			return nil, err
		}
	}
	return visible(c, tree, seeKV)
}

// kvKeys lists keys below a prefix, each only as far as the first separator
// behind the prefix, once.
func (h *handler) kvKeys(c *call) (answer, error) {
	// The first spelling is an old mistake that clients still send.
	sep := c.params.Get("seperator") //nolint:misspell // clients do
	if c.has("separator") {
		sep = c.params.Get("separator")
	}
	v, err := h.query(c, func(s *state.Snapshot) (any, []state.Mark, error) {
		tree, mark := s.KVTree(c.rest)
		tree, err := h.mayList(c, tree)
		if err != nil {
			return nil, nil, err
		}
		out := []string{}
		for _, kv := range tree {
			k := kv.Key
			if sep != "" {
				if i := strings.Index(k[len(c.rest):], sep); i >= 0 {
					k = k[:len(c.rest)+i+len(sep)]
				}
			}
			if len(out) == 0 || out[len(out)-1] != k {
				out = append(out, k)
			}
		}
		return out, marks(mark), nil
	})
	if err != nil {
		return answer{}, err
	}
	if len(v.([]string)) == 0 && c.rest != "" {
		return answer{status: http.StatusNotFound}, nil
	}
	return value(v), nil
}

func (h *handler) kvPut(c *call) (answer, error) {
	if err := h.checkDatacenter(c); err != nil {
		return answer{}, err
	}
	if c.rest == "" {
		return answer{}, badRequest("Missing key name")
	}
	if err := conflict(c, "cas", "acquire", "release"); err != nil {
		return answer{}, err
	}
	kv := model.KV{Key: c.rest}
	if c.has("flags") {
		flags, err := strconv.ParseUint(c.params.Get("flags"), 10, 64)
		if err != nil {
			return answer{}, fail(http.StatusInternalServerError, "%v", err)
		}
		kv.Flags = flags
	}
	cas, err := casIndex(c)
	if err != nil {
		return answer{}, err
	}
	if kv.Value, err = h.kvBody(c); err != nil {
		return answer{}, err
	}
	if err := c.require(acl.Key, kv.Key, acl.Write); err != nil {
		return answer{}, err
	}
	ok, err := h.writeKV(c, kv, cas)
	if err != nil {
		return answer{}, err
	}
	return value(ok), nil
}

// writeKV writes an entry, and takes or releases its lock if asked to.
func (h *handler) writeKV(c *call, kv model.KV, cas *model.Index) (ok bool, err error) {
	change := Sessions.LockKV
	switch {
	case c.has("acquire"):
		kv.Session = c.params.Get("acquire")
	case c.has("release"):
		kv.Session, change = c.params.Get("release"), Sessions.UnlockKV
	default:
		ok, _, err = h.Writer.PutKV(c.r.Context(), kv, cas)
		return ok, err
	}
	if err := h.sessionsHere(c); err != nil {
		return false, err
	}
	if kv.Session == "" {
		return false, fail(http.StatusInternalServerError, "missing session")
	}
	ok, _, err = change(h.Sessions, c.r.Context(), kv)
	return ok, asConsul(err)
}

// kvAtOnce is the size of the largest value for which there is room before it has
// come, in bytes.
const kvAtOnce = 64 << 10

// kvBody reads a value, refusing one over the limit before reading it where its
// length is known.
func (h *handler) kvBody(c *call) ([]byte, error) {
	limit := h.cfg.KVMaxValueSize
	tooBig := func(size int64) error {
		return fail(http.StatusRequestEntityTooLarge, "%s", tooLarge(size, limit, kvSizeDoc))
	}
	if c.r.ContentLength > limit {
		return nil, tooBig(c.r.ContentLength)
	}
	if c.r.ContentLength >= 0 && c.r.ContentLength <= kvAtOnce {
		b := make([]byte, c.r.ContentLength)
		if _, err := io.ReadFull(c.r.Body, b); err != nil {
			return nil, unread(err)
		}
		return b, nil
	}
	b, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, limit))
	var big *http.MaxBytesError
	if errors.As(err, &big) {
		return nil, tooBig(limit + 1)
	}
	if err != nil {
		return nil, unread(err)
	}
	return b, nil
}

func (h *handler) kvDelete(c *call) (answer, error) {
	if err := h.checkDatacenter(c); err != nil {
		return answer{}, err
	}
	if err := conflict(c, "recurse", "cas"); err != nil {
		return answer{}, err
	}
	if c.has("recurse") {
		if err := c.requirePrefix(acl.Key, c.rest, acl.Write); err != nil {
			return answer{}, err
		}
		if _, err := h.Writer.DeleteKVTree(c.r.Context(), c.rest); err != nil {
			return answer{}, err
		}
		return value(true), nil
	}
	if c.rest == "" {
		return answer{}, badRequest("Missing key name")
	}
	cas, err := casIndex(c)
	if err != nil {
		return answer{}, err
	}
	if err := c.require(acl.Key, c.rest, acl.Write); err != nil {
		return answer{}, err
	}
	ok, _, err := h.Writer.DeleteKV(c.r.Context(), c.rest, cas)
	if err != nil {
		return answer{}, err
	}
	// Only a comparison can say no: deleting what is not there succeeds.
	return value(ok || cas == nil), nil
}

// casIndex parses ?cas; nil without one. That Consul answers 500 to a value which
// is no number is kept.
func casIndex(c *call) (*model.Index, error) {
	if !c.has("cas") {
		return nil, nil
	}
	n, err := strconv.ParseUint(c.params.Get("cas"), 10, 64)
	if err != nil {
		return nil, fail(http.StatusInternalServerError, "%v", err)
	}
	i := model.Index(n)
	return &i, nil
}

// conflict refuses more than one of the parameters.
func conflict(c *call, names ...string) error {
	n := 0
	for _, name := range names {
		if c.has(name) {
			n++
		}
	}
	if n > 1 {
		return badRequest("Conflicting flags: %v\n", c.params.Encode())
	}
	return nil
}
