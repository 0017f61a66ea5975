package consulapi

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// Sessions keeps sessions and the locks that they hold.
type Sessions interface {
	// CreateSession fills in the id. What is wrong with the session is said in
	// Consul's words, by an error that says that it is Refused.
	CreateSession(ctx context.Context, s model.Session) (id string, index model.Index, err error)
	// RenewSession gives a session its TTL anew; model.ErrUnknownSession when it
	// has ended.
	RenewSession(ctx context.Context, id string) (*model.Session, error)
	// DestroySession ends a session; one that has ended already is no error.
	DestroySession(ctx context.Context, id string) (model.Index, error)
	// LockKV writes an entry if its session holds the lock then, UnlockKV if it
	// held the lock until then; false means that it does or did not.
	LockKV(ctx context.Context, kv model.KV) (bool, model.Index, error)
	UnlockKV(ctx context.Context, kv model.KV) (bool, model.Index, error)
}

var sessionRoutes = []route{
	put("/v1/session/create", (*handler).sessionCreate),
	put("/v1/session/destroy/", (*handler).sessionDestroy),
	put("/v1/session/renew/", (*handler).sessionRenew),
	get("/v1/session/info/", (*handler).sessionInfo),
	get("/v1/session/list", (*handler).sessionList),
	get("/v1/session/node/", (*handler).sessionNode),
}

// minLockDelay: a smaller one is taken for a number of seconds, which it usually
// is.
const minLockDelay = 1000 * time.Nanosecond

// lockDelay reads "15s", a number of nanoseconds, or a small number of seconds.
type lockDelay time.Duration

// UnmarshalJSON implements json.Unmarshaler.
func (l *lockDelay) UnmarshalJSON(b []byte) error {
	var d duration
	if err := d.UnmarshalJSON(b); err != nil {
		return err
	}
	if d < 0 {
		return fmt.Errorf("%s is negative; it must be a duration such as 15s", b)
	}
	if time.Duration(d) < minLockDelay {
		d *= duration(time.Second)
	}
	*l = lockDelay(d)
	return nil
}

// sessionBody is what session/create takes. ID and the indexes are there because
// clients send back what they have read; they are ignored.
type sessionBody struct {
	ID            string
	Name          string
	Node          string
	LockDelay     *lockDelay
	Behavior      string
	TTL           string
	Checks        *[]model.CheckID // nil: not said
	NodeChecks    *[]model.CheckID
	ServiceChecks []sessionServiceBody
	CreateIndex   uint64
	ModifyIndex   uint64
}

type sessionServiceBody struct {
	ID        string
	Namespace string
}

// UnmarshalJSON implements json.Unmarshaler.
func (s *sessionServiceBody) UnmarshalJSON(b []byte) error { return decodeFields(b, s) }

// UnmarshalJSON implements json.Unmarshaler.
func (s *sessionBody) UnmarshalJSON(b []byte) error {
	if err := decodeFields(b, s); err != nil {
		return err
	}
	// A list of checks that is null is an empty one, not one that is not said.
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(b, &raw); err != nil {
		return err
	}
	for name, v := range raw {
		if !bytes.Equal(v, []byte("null")) {
			continue
		}
		switch strings.ToLower(strings.ReplaceAll(name, "_", "")) {
		case "checks":
			s.Checks = &[]model.CheckID{}
		case "nodechecks":
			s.NodeChecks = &[]model.CheckID{}
		}
	}
	return nil
}

// nodeChecks are the node checks that the session is bound to. They have two
// names; the older one, Checks, says more by being empty than by what is in it.
func (s *sessionBody) nodeChecks() []model.CheckID {
	either := func(list *[]model.CheckID) []model.CheckID {
		if list == nil {
			return []model.CheckID{model.SerfHealth}
		}
		return *list
	}
	older, newer := either(s.Checks), either(s.NodeChecks)
	switch {
	case len(older) == 0 || len(newer) == 0:
		return []model.CheckID{} // none, where nil would be the default
	case len(older) == 1 && older[0] == model.SerfHealth:
		return newer
	}
	all := slices.Clone(older)
	for _, id := range newer {
		if !slices.Contains(all, id) {
			all = append(all, id)
		}
	}
	return all
}

// sessionShape is a session as clients see it.
type sessionShape struct {
	ID            string
	Name          string
	Node          string
	LockDelay     time.Duration // nanoseconds
	Behavior      string
	TTL           string
	NodeChecks    []model.CheckID
	ServiceChecks []sessionServiceShape // null when empty, as Consul has it
	CreateIndex   uint64
	ModifyIndex   uint64
}

type sessionServiceShape struct {
	ID        string
	Namespace string
}

func shapeSession(s *model.Session) sessionShape {
	out := sessionShape{
		ID: s.ID, Name: s.Name, Node: string(s.Node), LockDelay: s.LockDelay, Behavior: string(s.Behavior), TTL: s.TTLText,
		NodeChecks: append([]model.CheckID{}, s.NodeChecks...), CreateIndex: uint64(s.CreateIndex), ModifyIndex: uint64(s.ModifyIndex),
	}
	for _, c := range s.ServiceChecks {
		out.ServiceChecks = append(out.ServiceChecks, sessionServiceShape{string(c.ID), c.Namespace})
	}
	return out
}

func (h *handler) sessionCreate(c *call) (answer, error) {
	if err := h.sessionsHere(c); err != nil {
		return answer{}, err
	}
	b := sessionBody{Node: cmp.Or(c.r.Header.Get(model.HeaderVia), string(h.cfg.Node.Name))}
	if hasBody(c) {
		if err := h.decodeBody(c, &b); err != nil {
			return answer{}, err
		}
	}
	if b.Node == "" {
		return answer{}, fail(http.StatusInternalServerError, "Must provide Node")
	}
	if err := c.require(acl.Session, b.Node, acl.Write); err != nil {
		return answer{}, err
	}
	s, err := h.newSession(&b)
	if err != nil {
		return answer{}, err
	}
	id, _, err := h.Sessions.CreateSession(c.r.Context(), s)
	if err != nil {
		return answer{}, asConsul(err)
	}
	return value(struct{ ID string }{id}), nil
}

// newSession is the session that a body describes. What is wrong with one is a
// 500 whose text clients match on from its beginning.
func (h *handler) newSession(b *sessionBody) (model.Session, error) {
	refuse := func(format string, args ...any) (model.Session, error) {
		return model.Session{}, fail(http.StatusInternalServerError, format, args...)
	}
	s := model.Session{
		Name: b.Name, Node: model.NodeName(b.Node), LockDelay: model.DefaultLockDelay, TTLText: b.TTL, NodeChecks: b.nodeChecks(),
	}
	if b.LockDelay != nil {
		s.LockDelay = time.Duration(*b.LockDelay)
	}
	for _, ch := range b.ServiceChecks {
		s.ServiceChecks = append(s.ServiceChecks, model.SessionService{ID: model.CheckID(ch.ID), Namespace: ch.Namespace})
	}
	switch s.Behavior = model.SessionBehavior(b.Behavior); s.Behavior {
	case "":
		s.Behavior = model.SessionRelease
	case model.SessionRelease, model.SessionDelete:
	default:
		return refuse("Invalid Behavior setting '%s'", b.Behavior)
	}
	if b.TTL == "" {
		return s, nil
	}
	var err error
	if s.TTL, err = time.ParseDuration(b.TTL); err != nil {
		return refuse("Session TTL '%s' invalid: %v", b.TTL, err)
	}
	if s.TTL != 0 && (s.TTL < h.cfg.SessionTTLMin || s.TTL > model.SessionTTLMax) {
		return refuse("Invalid Session TTL '%d', must be between [%v=%v]", s.TTL, h.cfg.SessionTTLMin, model.SessionTTLMax)
	}
	return s, nil
}

func (h *handler) sessionDestroy(c *call) (answer, error) {
	s, err := h.ownSession(c)
	if err != nil {
		return answer{}, err
	}
	if s == nil {
		return value(true), nil
	}
	if _, err := h.Sessions.DestroySession(c.r.Context(), s.ID); err != nil {
		return answer{}, err
	}
	return value(true), nil
}

func (h *handler) sessionRenew(c *call) (answer, error) {
	gone := fail(http.StatusNotFound, "Session id '%s' not found", c.rest)
	s, err := h.ownSession(c)
	if err != nil {
		return answer{}, err
	}
	if s == nil {
		return answer{}, gone
	}
	s, err = h.Sessions.RenewSession(c.r.Context(), s.ID)
	switch {
	case errors.Is(err, model.ErrUnknownSession):
		return answer{}, gone
	case err != nil:
		return answer{}, err
	}
	return value([]sessionShape{shapeSession(s)}), nil
}

// ownSession returns the session that the path names and that the request may
// change, nil if there is none. A client takes it as the end of its lock to hear
// that its session has gone, so that is said only of one that no server knows.
func (h *handler) ownSession(c *call) (*model.Session, error) {
	if err := h.sessionsHere(c); err != nil {
		return nil, err
	}
	if c.rest == "" {
		return nil, badRequest("Missing session")
	}
	if _, err := c.authorizer(); err != nil {
		return nil, err
	}
	s, _ := h.Reader.Snapshot().Session(c.rest)
	if s == nil {
		if err := h.catchUp(c.r.Context()); err != nil {
			return nil, err
		}
		if s, _ = h.Reader.Snapshot().Session(c.rest); s == nil {
			return nil, nil
		}
	}
	return s, c.require(acl.Session, string(s.Node), acl.Write)
}

func (h *handler) sessionInfo(c *call) (answer, error) {
	if c.rest == "" {
		return answer{}, badRequest("Missing session")
	}
	return h.sessions(c, func(s *state.Snapshot) ([]*model.Session, state.Mark) {
		one, mark := s.Session(c.rest)
		if one == nil {
			return nil, mark
		}
		return []*model.Session{one}, mark
	})
}

func (h *handler) sessionList(c *call) (answer, error) {
	return h.sessions(c, (*state.Snapshot).Sessions)
}

func (h *handler) sessionNode(c *call) (answer, error) {
	if c.rest == "" {
		return answer{}, badRequest("Missing node name")
	}
	return h.sessions(c, func(s *state.Snapshot) ([]*model.Session, state.Mark) {
		return s.NodeSessions(model.NodeName(c.rest))
	})
}

// sessions answers with the sessions that find finds and the token may see.
func (h *handler) sessions(c *call, find func(*state.Snapshot) ([]*model.Session, state.Mark)) (answer, error) {
	if err := h.sessionsHere(c); err != nil {
		return answer{}, err
	}
	v, err := h.query(c, func(s *state.Snapshot) (any, []state.Mark, error) {
		all, mark := find(s)
		all, err := visible(c, all, seeSession)
		if err != nil {
			return nil, nil, err
		}
		out := make([]sessionShape, len(all))
		for i, one := range all {
			out[i] = shapeSession(one)
		}
		return out, marks(mark), nil
	})
	if err != nil {
		return answer{}, err
	}
	return value(v), nil
}

func seeSession(a acl.Authorizer, s *model.Session) bool {
	return a.Allow(acl.Session, string(s.Node), acl.Read)
}

// sessionsHere refuses what this agent has no sessions for.
func (h *handler) sessionsHere(c *call) error {
	if h.Sessions == nil {
		return fail(http.StatusNotImplemented, "Sessions are not available on this agent")
	}
	return h.checkDatacenter(c)
}

// asConsul answers 500 with what was wrong with the request and nothing around
// it, which is what clients look for; other errors stay as they are.
func asConsul(err error) error {
	var refused interface {
		error
		Refused() bool
	}
	if errors.As(err, &refused) {
		return fail(http.StatusInternalServerError, "%s", refused.Error())
	}
	return err
}

// hasBody reports whether there is anything in the request's body, which stays
// to be read.
func hasBody(c *call) bool {
	if c.r.ContentLength == 0 {
		return false
	}
	b := bufio.NewReader(c.r.Body)
	_, err := b.Peek(1)
	c.r.Body = struct {
		io.Reader
		io.Closer
	}{b, c.r.Body}
	return err == nil
}
