// Package load chooses among the instances of a service by what the caller itself
// sees of them: policy "load", least EWMA latency x (requests in flight + 1).
//
// It is shared by the HTTP, connection and gRPC clients of the SDK. A Set is safe
// for concurrent use and has no goroutines.
package load

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// The policy's figures. Looking at all instances beats two random choices; above
// scanAll that costs more than it brings.
const (
	alpha      = 0.1 // weight of one observation in the average
	scanAll    = 64  // up to so many instances all are looked at
	sampled    = 16  // of more, so many random ones
	penalty    = 10  // a failure counts as so many average latencies, at least
	medianFor  = 100 * time.Millisecond
	idleHalf   = 10 * time.Second // an idle average is half-way back to the median
	slowStart  = 10 * time.Second // until a new instance gets its full share
	slowFloor  = 0.1              // the share that it begins with
	tolerated  = 5                // failures in a row after which an instance is ejected
	firstEject = time.Second
	lastEject  = 30 * time.Second
)

// defaultTimeout is what a failure counts as, at least, if the caller has no
// timeout of its own.
const defaultTimeout = time.Second

// unknownLatency stands for the median while nothing has been observed.
const unknownLatency = 0.001

// A Member is an instance that can be chosen.
type Member[T any] struct {
	// Key tells instances apart. One that goes and comes back is a new one.
	Key string
	// Weight is its share beside the others'; below 1 counts as 1.
	Weight int
	Value  T
}

// An Outcome is what became of a request.
type Outcome uint8

// What can become of a request.
const (
	OK        Outcome = iota
	Failed            // it was answered with an error, or not in time
	Refused           // it provably never reached the instance
	Abandoned         // the caller gave up, which says nothing of the instance
)

// Set is the instances of one service.
type Set[T any] struct {
	timeout float64 // seconds

	mu       sync.Mutex // guards following
	begun    bool
	members  []*member[T]
	median   float64 // seconds
	medianAt time.Time
}

type member[T any] struct {
	Member[T]
	latency  float64 // seconds, EWMA; 0 while nothing was observed
	seen     time.Time
	since    time.Time // when it joined or came back; zero: at the beginning
	inFlight int
	failures int       // in a row
	out      time.Time // ejected until then
	ejected  int       // how many times in a row
	trial    bool      // a request finds out whether it is back
}

// New returns an empty set. The timeout is that of the caller's requests; 0 is
// for those that have none.
func New[T any](timeout time.Duration) *Set[T] {
	return &Set[T]{timeout: cmp.Or(timeout, defaultTimeout).Seconds()}
}

// Update makes the members those given; who stays keeps what is known of it.
func (s *Set[T]) Update(members []Member[T]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := make(map[string]*member[T], len(s.members))
	for _, m := range s.members {
		known[m.Key] = m
	}
	s.members = make([]*member[T], 0, len(members))
	for _, given := range members {
		m := known[given.Key]
		if m == nil {
			m = &member[T]{}
			if s.begun {
				m.since = time.Now()
			}
		}
		m.Member = given
		s.members = append(s.members, m)
	}
	s.begun = s.begun || len(members) > 0
	s.medianAt = time.Time{}
}

// Pick chooses the member with the least score among those that skip, which may
// be nil, does not name, and counts a request in flight to it; nil if there is
// none. The ejected are chosen only when nobody else is left.
func (s *Set[T]) Pick(skip func(key string) bool) *Pick[T] {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.refreshMedian(now)
	best := s.best(now, skip)
	if best == nil {
		best = s.leastEjected(skip)
	}
	if best == nil {
		return nil
	}
	best.inFlight++
	p := &Pick[T]{set: s, member: best, Value: best.Value, Key: best.Key, began: now}
	if best.ejected > 0 && !best.trial {
		best.trial, p.trial = true, true
	}
	return p
}

func (s *Set[T]) best(now time.Time, skip func(string) bool) *member[T] {
	var best *member[T]
	least := math.Inf(1)
	consider := func(m *member[T]) {
		if m.available(now) && (skip == nil || !skip(m.Key)) {
			if score := s.score(m, now); score < least {
				best, least = m, score
			}
		}
	}
	n := len(s.members)
	if n > scanAll {
		for range sampled {
			consider(s.members[rand.IntN(n)])
		}
		if best != nil {
			return best
		}
	}
	if n > 0 {
		first := rand.IntN(n) // equals take turns
		for i := range n {
			consider(s.members[(first+i)%n])
		}
	}
	return best
}

// leastEjected is the one that comes back first.
func (s *Set[T]) leastEjected(skip func(string) bool) *member[T] {
	var best *member[T]
	for _, m := range s.members {
		if (skip == nil || !skip(m.Key)) && (best == nil || m.out.Before(best.out)) {
			best = m
		}
	}
	return best
}

// available reports whether a member is in, or has been out for long enough that
// one request may try it.
func (m *member[T]) available(now time.Time) bool {
	return m.ejected == 0 || !m.trial && !now.Before(m.out)
}

func (s *Set[T]) score(m *member[T], now time.Time) float64 {
	share := float64(max(m.Weight, 1))
	if !m.since.IsZero() {
		share *= min(1, max(slowFloor, now.Sub(m.since).Seconds()/slowStart.Seconds()))
	}
	return s.expected(m, now) * float64(m.inFlight+1) / share
}

// expected is the latency that a member is thought to have. One that is idle
// nears the median, so that it is tried again.
func (s *Set[T]) expected(m *member[T], now time.Time) float64 {
	switch {
	case m.latency == 0:
		return s.median
	case m.inFlight > 0:
		return m.latency
	}
	idle := now.Sub(m.seen).Seconds() / idleHalf.Seconds()
	return s.median + (m.latency-s.median)*math.Exp2(-idle)
}

// refreshMedian computes the lower median of those that are in.
func (s *Set[T]) refreshMedian(now time.Time) {
	if now.Sub(s.medianAt) < medianFor {
		return
	}
	s.medianAt, s.median = now, unknownLatency
	var all []float64
	for _, m := range s.members {
		if m.latency > 0 && m.ejected == 0 {
			all = append(all, m.latency)
		}
	}
	if len(all) > 0 {
		slices.Sort(all)
		s.median = all[(len(all)-1)/2]
	}
}

// A Pick is one request to a chosen member.
type Pick[T any] struct {
	Key   string
	Value T

	set      *Set[T]
	member   *member[T]
	began    time.Time
	trial    bool
	observed bool // guarded by set.mu, as is the following
	released bool
}

// Done tells what became of the request, which is over.
func (p *Pick[T]) Done(o Outcome) {
	p.Observe(o)
	p.Release()
}

// Observe tells what became of the request, of which an answer may still be
// coming in. The time since Pick is its latency. Only the first call counts.
func (p *Pick[T]) Observe(o Outcome) {
	s, m, now := p.set, p.member, time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.observed {
		return
	}
	p.observed = true
	if p.trial {
		m.trial = false
	}
	took := max(now.Sub(p.began).Seconds(), 1e-6)
	// The request itself is not idleness, and is still counted in flight.
	before := m.latency
	if m.inFlight <= 1 && before > 0 {
		idle := p.began.Sub(m.seen).Seconds() / idleHalf.Seconds()
		before = s.median + (before-s.median)*math.Exp2(-max(idle, 0))
	}
	switch o {
	case OK:
		m.failures = 0
		if p.trial {
			m.ejected, m.since, before = 0, now, 0
		}
	case Abandoned:
		if took <= before || before == 0 {
			return // it might have been answered in time
		}
	case Failed, Refused:
		took = max(s.timeout, penalty*cmp.Or(before, s.median), took)
		m.failures++
		s.eject(m, o, now)
	}
	if before == 0 {
		before = cmp.Or(s.median, unknownLatency)
		if o == OK && m.since.IsZero() {
			before = took // at the beginning there is no median worth the name
		}
	}
	m.latency, m.seen = before+alpha*(took-before), now
}

// eject takes a member out for a while: at once if nothing listens there, else
// after some failures in a row and only while that leaves half of the others, for
// overload would else take out one after the other.
func (s *Set[T]) eject(m *member[T], o Outcome, now time.Time) {
	if m.ejected > 0 && now.Before(m.out) {
		return // this request began before it was out
	}
	if o == Failed && m.ejected == 0 {
		out := 1
		for _, other := range s.members {
			if other != m && other.ejected > 0 {
				out++
			}
		}
		if m.failures < tolerated || 2*out > len(s.members) {
			return
		}
	}
	d := min(firstEject<<min(m.ejected, 10), lastEject)
	m.ejected++
	m.out = now.Add(d/2 + rand.N(d/2))
}

// Release ends the request's being in flight. Only the first call counts.
func (p *Pick[T]) Release() {
	p.set.mu.Lock()
	defer p.set.mu.Unlock()
	if !p.released {
		p.released = true
		p.member.inFlight--
	}
}
