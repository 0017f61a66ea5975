package dns

import (
	"container/list"
	"strings"
	"sync"
	"time"

	miekg "github.com/miekg/dns"
)

// DefaultCacheSize bounds the remembered answers of other resolvers, in bytes.
const DefaultCacheSize = 8 << 20

const (
	// The longest that an answer, a denial and a failure count, whatever their
	// TTLs (RFC 8767, section 4; RFC 2308, section 5; RFC 9520, section 3.2).
	maxPositive = 24 * time.Hour
	maxNegative = 3 * time.Hour
	failureTTL  = time.Second
	// staleFor is how long an answer is kept beyond its TTL, for when nobody can be
	// asked; staleTTL is the TTL that it is given out with then, and for so long
	// nobody is asked again (RFC 8767).
	staleFor = 24 * time.Hour
	staleTTL = 30 * time.Second
	// entryCost is what an answer takes beside its length on the wire, in bytes; a
	// rough guess.
	entryCost = 512
)

// question is what answers are remembered by: all that makes them differ.
type question struct {
	name          string // lower case
	qtype, qclass uint16
	do, cd, rd    bool
}

func questionOf(req *miekg.Msg) question {
	q := req.Question[0]
	k := question{name: strings.ToLower(q.Name), qtype: q.Qtype, qclass: q.Qclass, cd: req.CheckingDisabled, rd: req.RecursionDesired}
	if opt := req.IsEdns0(); opt != nil {
		k.do = opt.Do()
	}
	return k
}

// cache remembers other resolvers' answers, the most recently used ones.
type cache struct {
	max int // bytes

	mu      sync.Mutex // guards following
	entries map[question]*list.Element
	recent  list.List // of *cached, the most recently used first
	size    int
}

type cached struct {
	key   question
	m     *miekg.Msg // not changed any more; nil: nobody answered
	err   error      // why not
	at    time.Time
	ttl   time.Duration
	retry time.Time // before it nobody is asked again
	size  int
}

func (c *cached) fresh(now time.Time) bool { return now.Sub(c.at) < c.ttl }

// failed reports whether nobody knew, of which nothing is worth keeping.
func (c *cached) failed() bool { return c.m == nil || !useful(c.m.Rcode) }

func newCache(size int) *cache {
	if size == 0 {
		size = DefaultCacheSize
	}
	return &cache{max: size, entries: map[question]*list.Element{}}
}

// get returns what is remembered, be it past its time; nil for nothing.
func (c *cache) get(k question, now time.Time) *cached {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[k]
	if e == nil {
		return nil
	}
	x := *e.Value.(*cached)
	if now.Sub(x.at) >= x.ttl && (x.failed() || now.Sub(x.at) >= x.ttl+staleFor) {
		c.drop(e)
		return nil
	}
	c.recent.MoveToFront(e)
	return &x
}

// put remembers an answer for as long as it says, if it may be remembered.
func (c *cache) put(k question, m *miekg.Msg, now time.Time) {
	ttl := lifetime(m)
	if ttl <= 0 {
		return
	}
	c.add(&cached{key: k, m: m.Copy(), at: now, ttl: ttl, size: m.Len() + entryCost})
}

// fail remembers for a moment that nobody knew: a resolver's answer that says so,
// or why there is none.
func (c *cache) fail(k question, m *miekg.Msg, err error, now time.Time) {
	x := &cached{key: k, err: err, at: now, ttl: failureTTL, size: entryCost}
	if m != nil {
		x.m, x.size = m.Copy(), m.Len()+entryCost
	}
	c.add(x)
}

// postpone keeps a stale answer from being asked for again for a while.
func (c *cache) postpone(k question, until time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[k]; e != nil {
		x := *e.Value.(*cached)
		x.retry = until
		e.Value = &x
	}
}

func (c *cache) add(x *cached) {
	if x.size > c.max {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[x.key]; e != nil {
		c.drop(e)
	}
	c.entries[x.key] = c.recent.PushFront(x)
	c.size += x.size
	for c.size > c.max {
		c.drop(c.recent.Back())
	}
}

// drop forgets an entry. The caller holds mu.
func (c *cache) drop(e *list.Element) {
	x := c.recent.Remove(e).(*cached)
	delete(c.entries, x.key)
	c.size -= x.size
}

func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.entries)
	c.recent.Init()
	c.size = 0
}

// lifetime is how long an answer may be remembered: 0 for not at all.
func lifetime(m *miekg.Msg) time.Duration {
	if m.Truncated || !useful(m.Rcode) {
		return 0
	}
	least, some := uint32(1<<31-1), false
	for _, section := range [][]miekg.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if rr.Header().Rrtype != miekg.TypeOPT {
				least, some = min(least, rr.Header().Ttl), true
			}
		}
	}
	if !negative(m) {
		if !some {
			return 0
		}
		return min(time.Duration(least)*time.Second, maxPositive)
	}
	for _, rr := range m.Ns {
		if soa, ok := rr.(*miekg.SOA); ok {
			return min(time.Duration(min(least, soa.Minttl))*time.Second, maxNegative)
		}
	}
	return 0 // without its SOA nobody says how long it is so
}

// negative reports whether an answer says that there is no such name or no such
// record (RFC 2308, section 2); be it at the end of aliases.
func negative(m *miekg.Msg) bool {
	if m.Rcode == miekg.RcodeNameError || len(m.Answer) == 0 {
		return true
	}
	last := m.Answer[len(m.Answer)-1].Header().Rrtype
	q := m.Question[0].Qtype
	return last == miekg.TypeCNAME && q != miekg.TypeCNAME && q != miekg.TypeANY
}

// reply is what is remembered as an answer to req: the time that passed is taken
// off the TTLs, and past its time each is staleTTL.
func (c *cached) reply(req *miekg.Msg, now time.Time) *miekg.Msg {
	m := c.m.Copy()
	age, stale := uint32(now.Sub(c.at)/time.Second), !c.fresh(now)
	for _, section := range [][]miekg.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			h := rr.Header()
			switch {
			case h.Rrtype == miekg.TypeOPT:
				continue
			case stale:
				h.Ttl = uint32(staleTTL / time.Second)
			default:
				h.Ttl -= min(h.Ttl, age)
			}
			if strings.EqualFold(h.Name, req.Question[0].Name) {
				h.Name = req.Question[0].Name
			}
		}
	}
	return downstream(m, req)
}
