package consulapi

import (
	"context"
	"maps"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// look is what an endpoint made of the state at one moment.
type look struct {
	answer answer
	err    error
	// marks are of everything that it was made from; none if the endpoint has not
	// got as far as reading, or reads no state.
	marks []state.Mark
	// header is what the endpoint has set, if not in the answer's own.
	header http.Header
}

// run answers one request: a read whose client asks to wait is looked at again
// until its answer is newer than the client's, the wait is over or the request
// ends.
//
// The index is that of the last change to what was read, but not less than what
// the client asked with, as long as this node has been there: a client that
// moves between servers must not see it go backwards, since it would start over.
//
// What the lot takes is answered from there, and the rest waits here.
func (h *handler) run(c *call, rt route, serve endpoint) (answer, error) {
	var timeout *time.Timer
	defer func() {
		if timeout != nil {
			timeout.Stop()
		}
	}()
	for {
		l := h.look(c, rt, serve)
		if l.marks == nil {
			return l.answer, l.err
		}
		index := l.index()
		if c.index == 0 || index > c.index {
			return h.finish(c, l, index)
		}
		if timeout == nil {
			if h.park(c, rt, serve) {
				return answer{written: true, parked: true}, nil
			}
			timeout = time.NewTimer(c.lasts())
		}
		select {
		case <-l.marks[0].Changed:
			continue
		case <-l.second():
			continue
		case <-timeout.C:
		case <-c.r.Context().Done():
		}
		return h.finish(c, l, c.index)
	}
}

// lasts is for how long a query waits.
func (o options) lasts() time.Duration { return o.wait + rand.N(o.wait/jitterPart+1) }

// finish completes an answer's header.
func (h *handler) finish(c *call, l *look, index model.Index) (answer, error) {
	maps.Copy(c.h, l.header)
	h.setMeta(c.h, c.options, index)
	return l.answer, l.err
}

// look takes the answer from the shelf if it may be shared, and otherwise asks
// the endpoint.
func (h *handler) look(c *call, rt route, serve endpoint) *look {
	if rt.shared && c.r.Method == http.MethodGet {
		if l := h.shared(c, serve); l != nil {
			return l
		}
	}
	return h.ask(c, serve)
}

// ask has the endpoint look.
func (h *handler) ask(c *call, serve endpoint) *look {
	c.marks = nil
	a, err := serve(h, c)
	return &look{answer: a, err: err, marks: c.marks}
}

// index is that of the last change of what was read; at least 1, since 0 would
// make clients ask without blocking.
func (l *look) index() model.Index {
	var index model.Index = 1
	for _, m := range l.marks {
		index = max(index, m.Index)
	}
	return index
}

// second is the second mark's channel; no read has more than two.
func (l *look) second() <-chan struct{} {
	if len(l.marks) < 2 {
		return nil
	}
	return l.marks[1].Changed
}

// reachable is the index that a client may wait behind. One that this node has
// not reached within lagGrace is from another life of the cluster: 0 then, and
// the client is answered at once with the present one.
func (h *handler) reachable(ctx context.Context, o options) model.Index {
	if o.index == 0 || o.index <= h.Reader.Snapshot().Index() {
		return o.index
	}
	ctx, cancel := context.WithTimeout(ctx, min(lagGrace, o.wait))
	defer cancel()
	if _, err := h.Reader.Wait(ctx, o.index); err != nil {
		return 0
	}
	return o.index
}

// Values of headers that all answers share.
var (
	yes, no, zero        = []string{"true"}, []string{"false"}, []string{"0"}
	backend              = []string{"blocking-query"}
	byLeader, consistent = []string{"leader"}, []string{"consistent"}
	stale                = []string{"stale"}
)

// setMeta sets the headers that go with an answer.
func (h *handler) setMeta(hd http.Header, o options, index model.Index) {
	hd["X-Consul-Index"] = []string{strconv.FormatUint(uint64(index), 10)}
	hd["X-Consul-Knownleader"] = no
	if h.Cluster.Leader() != "" {
		hd["X-Consul-Knownleader"] = yes
	}
	hd["X-Consul-Lastcontact"] = zero
	if ago := h.lastContact(); ago >= time.Millisecond {
		hd["X-Consul-Lastcontact"] = []string{strconv.FormatInt(ago.Milliseconds(), 10)}
	}
	hd["X-Consul-Query-Backend"] = backend
	switch {
	case o.consistent:
		hd["X-Consul-Effective-Consistency"] = consistent
	case o.stale:
		hd["X-Consul-Effective-Consistency"] = stale
	default:
		hd["X-Consul-Effective-Consistency"] = byLeader
	}
	switch {
	case !o.cached:
	case o.revalidate:
		hd.Set("X-Cache", "MISS")
	default:
		// Every answer comes from this node's memory, which is kept current.
		hd.Set("X-Cache", "HIT")
		hd.Set("Age", "0")
	}
}
