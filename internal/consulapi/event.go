package consulapi

import (
	"cmp"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/event"
	"github.com/fairlead-net/fairlead/internal/model"
)

// Events are the user events that this node has seen.
type Events interface {
	// Fire sends an event; its error is the asker's fault.
	Fire(e model.UserEvent) (model.UserEvent, error)
	// Recent returns the newest events, oldest first, and a channel that closes
	// when there is another one.
	Recent() ([]model.UserEvent, <-chan struct{})
}

var _ Events = (*event.Log)(nil)

var eventRoutes = []route{
	// Consul takes PUT only; Spring's client is declared with POST.
	{path: "/v1/event/fire/", methods: map[string]endpoint{http.MethodPut: (*handler).eventFire, http.MethodPost: (*handler).eventFire}},
	get("/v1/event/list", (*handler).eventList),
}

// eventShape is an event as clients see it.
type eventShape struct {
	ID            string
	Name          string
	Payload       []byte // base64; null when empty
	NodeFilter    string
	ServiceFilter string
	TagFilter     string
	Version       int
	LTime         uint64
}

func shapeEvent(e model.UserEvent) eventShape {
	s := eventShape{
		ID: e.ID, Name: e.Name, NodeFilter: e.NodeFilter, ServiceFilter: e.ServiceFilter, TagFilter: e.TagFilter,
		Version: 1, LTime: e.LTime,
	}
	if len(e.Payload) > 0 {
		s.Payload = e.Payload
	}
	return s
}

func (h *handler) eventsHere(c *call) error {
	if h.Events == nil {
		return fail(http.StatusNotImplemented, "Events are not available on this agent")
	}
	return h.checkDatacenter(c)
}

func (h *handler) eventFire(c *call) (answer, error) {
	if err := h.eventsHere(c); err != nil {
		return answer{}, err
	}
	if c.rest == "" {
		return answer{}, badRequest("Missing name")
	}
	if err := c.require(acl.Event, c.rest, acl.Write); err != nil {
		return answer{}, err
	}
	e := model.UserEvent{
		Name: c.rest, NodeFilter: c.params.Get("node"), ServiceFilter: c.params.Get("service"), TagFilter: c.params.Get("tag"),
	}
	var err error
	// One byte more than fits tells that it is too large.
	if e.Payload, err = io.ReadAll(io.LimitReader(c.r.Body, event.MaxSize+1)); err != nil {
		return answer{}, unread(err)
	}
	if e, err = h.Events.Fire(e); err != nil {
		return answer{}, fail(http.StatusInternalServerError, "%s", err.Error())
	}
	out := shapeEvent(e)
	out.LTime = 0 // a time is shown where an event arrives, not where it is fired
	return value(out), nil
}

// eventList lists the events that have reached this node, oldest first, those of
// one name with ?name. Its index is made of the newest event's id, so it is no
// number that grows: a query waits as long as the index is the very one that it
// came with. Of the parameters node, service and tag Consul's documentation
// speaks, but its answer does not depend on them; nor does this one.
func (h *handler) eventList(c *call) (answer, error) {
	if err := h.eventsHere(c); err != nil {
		return answer{}, err
	}
	o, err := parseOptions(c)
	if err != nil {
		return answer{}, err
	}
	if c.params.Get("wait") == "" {
		o.wait = maxWait
	}
	var timeout <-chan time.Time
	if o.index > 0 {
		t := time.NewTimer(o.wait)
		defer t.Stop()
		timeout = t.C
	}
	for {
		all, changed := h.Events.Recent()
		out, err := h.seenEvents(c, all)
		if err != nil {
			return answer{}, err
		}
		index := eventIndex(out)
		c.h.Set("X-Consul-Index", strconv.FormatUint(index, 10))
		if o.index == 0 || model.Index(index) != o.index {
			return value(out), nil
		}
		select {
		case <-changed:
		case <-timeout:
			return value(out), nil
		case <-c.r.Context().Done():
			return value(out), nil
		}
	}
}

// seenEvents are those of the name asked for that the token may see.
func (h *handler) seenEvents(c *call, all []model.UserEvent) ([]eventShape, error) {
	c.lookAgain()
	name := c.params.Get("name")
	var named []model.UserEvent
	for _, e := range all {
		if name == "" || e.Name == name {
			named = append(named, e)
		}
	}
	named, err := visible(c, named, func(a acl.Authorizer, e model.UserEvent) bool { return a.Allow(acl.Event, e.Name, acl.Read) })
	if err != nil {
		return nil, err
	}
	out := make([]eventShape, len(named))
	for i, e := range named {
		out[i] = shapeEvent(e)
	}
	return out, nil
}

// eventIndex folds the id of the last event into a number as Consul and its
// clients do: the two halves of the UUID, one xor the other. It is 1 where there
// is no event, since 0 would make clients ask without waiting.
func eventIndex(all []eventShape) uint64 {
	if len(all) == 0 {
		return 1
	}
	id := strings.ReplaceAll(all[len(all)-1].ID, "-", "")
	if len(id) != 32 {
		return 1
	}
	low, err1 := strconv.ParseUint(id[:16], 16, 64)
	high, err2 := strconv.ParseUint(id[16:], 16, 64)
	if errors.Join(err1, err2) != nil {
		return 1
	}
	return cmp.Or(low^high, 1)
}
