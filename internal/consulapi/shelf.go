package consulapi

import (
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead-net/fairlead/internal/acl"
)

const (
	// shelfBytes bounds the answers that are kept to be shared, and a quarter of
	// it each of them.
	shelfBytes = 32 << 20
	// slotBytes is about what keeping an answer takes beside its body.
	slotBytes = 1 << 10
	// shelfSweep is how often answers go that nobody has asked for since the last
	// time; what a burst of reads has left is gone after twice as long.
	shelfSweep = 10 * time.Second
)

// shelf keeps encoded answers for as long as what they were made from stays as it
// is, so that equal readers share one. Its methods may be called concurrently.
type shelf struct {
	most int

	mu    sync.Mutex // guards following
	slots map[shelfKey]*slot
	bytes int
	tidy  *time.Timer // runs while there is anything
}

// shelfKey is all that an answer depends on beside the state.
type shelfKey struct {
	what string // path and parameters
	may  acl.Authorizer
}

// slot is the place of one answer.
type slot struct {
	making sync.Mutex // held while the answer is made: the others wait for it
	look   atomic.Pointer[look]
	used   atomic.Bool // since the last sweep
	bytes  int         // guarded by the shelf's mutex
}

func newShelf(most int) *shelf { return &shelf{most: most, slots: map[shelfKey]*slot{}} }

// shared returns the answer that all equal requests share, made now if there is
// none that still holds; nil if this request's cannot be shared.
func (h *handler) shared(c *call, serve endpoint) *look {
	if err := h.begin(c); err != nil {
		return nil
	}
	if !h.Reader.Snapshot().Announced() {
		// Answers that no longer hold cannot all be told yet.
		return nil
	}
	c.auth = nil // a query that waits must notice when its token is taken away
	may, err := c.authorizer()
	if err != nil {
		return nil
	}
	key := shelfKey{what: shelfName(c.r.URL.Path, c.r.URL.RawQuery), may: may}
	s := h.shelf.slot(key)
	if l := s.holds(); l != nil {
		return l
	}
	s.making.Lock()
	defer s.making.Unlock()
	if l := s.holds(); l != nil {
		return l
	}
	l := h.make(c, serve)
	if l.err == nil && l.marks != nil && len(l.answer.body) <= h.shelf.most/4 {
		s.look.Store(l)
		s.used.Store(true)
		h.shelf.weigh(key, s, len(l.answer.body))
	}
	return l
}

// make has the endpoint look and encodes what it answers.
func (h *handler) make(c *call, serve endpoint) *look {
	sent := c.h
	c.h = http.Header{}
	defer func() { c.h = sent }()
	l := h.ask(c, serve)
	l.header = c.h
	if l.err == nil && l.marks != nil {
		l.answer = h.encoded(c.r, l.answer)
		l.answer.zipped = sync.OnceValue(func() []byte { return compress(l.answer.body) })
	}
	return l
}

// holds returns the answer if nothing that it was made from has changed.
func (s *slot) holds() *look {
	l := s.look.Load()
	if l == nil {
		return nil
	}
	select {
	case <-l.marks[0].Changed:
		return nil
	case <-l.second():
		return nil
	default:
	}
	if !s.used.Load() {
		s.used.Store(true)
	}
	return l
}

// slot returns the place of an answer, also when it is empty.
func (f *shelf) slot(key shelfKey) *slot {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.slots[key]
	if s == nil {
		s = &slot{bytes: slotBytes}
		s.used.Store(true)
		f.slots[key] = s
		f.grow(s, slotBytes)
	}
	return s
}

// weigh notes how large an answer is now.
func (f *shelf) weigh(key shelfKey, s *slot, body int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.slots[key] != s {
		return // it has gone meanwhile
	}
	by := slotBytes + body - s.bytes
	s.bytes += by
	f.grow(s, by)
}

// grow counts bytes that came with keep, and makes room for them: a reader of
// very many things is no reason to take up memory. f.mu is held.
func (f *shelf) grow(keep *slot, by int) {
	f.bytes += by
	if f.tidy == nil {
		f.tidy = time.AfterFunc(shelfSweep, f.sweep)
	}
	if f.bytes <= f.most {
		return
	}
	for key, s := range f.slots { // in any order
		if s != keep {
			f.drop(key, s)
		}
		if f.bytes <= f.most/4*3 {
			return
		}
	}
}

func (f *shelf) drop(key shelfKey, s *slot) {
	delete(f.slots, key)
	f.bytes -= s.bytes
}

// sweep removes what nobody has asked for, and comes back while anything is left.
func (f *shelf) sweep() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, s := range f.slots {
		if !s.used.Swap(false) {
			f.drop(key, s)
		}
	}
	if len(f.slots) > 0 {
		f.tidy.Reset(shelfSweep)
	} else {
		f.tidy = nil
		f.slots = map[shelfKey]*slot{} // a map never gives back what it has grown to
	}
}

// personal are the parameters that say how a client wants to be answered, and not
// with what.
var personal = []string{"index", "wait", "stale", "consistent", "cached", "leader", "max_stale", "token", "dc", "datacenter", "ns", "partition"}

// shelfName is a path with its parameters as they came, the personal ones left
// out. Two spellings of the same request have two names, which costs a second
// copy and nothing else.
func shelfName(path, query string) string {
	if query == "" {
		return path
	}
	var b strings.Builder
	b.Grow(len(path) + 1 + len(query))
	b.WriteString(path)
	sep := byte('?')
	for part := range strings.SplitSeq(query, "&") {
		if isPersonal(part) {
			continue
		}
		b.WriteByte(sep)
		b.WriteString(part)
		sep = '&'
	}
	return b.String()
}

func isPersonal(part string) bool {
	name, _, _ := strings.Cut(part, "=")
	for _, p := range personal {
		if name == p {
			return true
		}
	}
	return false
}
