package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	miekg "github.com/miekg/dns"
)

// fakeResolver is one resolver whose answers are made up, on the clock of a
// synctest bubble.
type fakeResolver struct {
	*forwarder
	mu    sync.Mutex
	asked int
	say   func(q *miekg.Msg) (*miekg.Msg, error)
	slow  time.Duration
}

func newFakeResolver(t *testing.T, size int) *fakeResolver {
	t.Helper()
	f, err := newForwarder(Config{Recursors: []string{"192.0.2.53"}, CacheSize: size}, func(netip.AddrPort) bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	r := &fakeResolver{forwarder: f}
	f.exchange = func(ctx context.Context, _ netip.AddrPort, q *miekg.Msg) (*miekg.Msg, error) {
		r.mu.Lock()
		r.asked++
		say, slow := r.say, r.slow
		r.mu.Unlock()
		select {
		case <-time.After(slow):
			return say(q)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return r
}

func (r *fakeResolver) answers(ttls ...uint32) {
	r.say = func(q *miekg.Msg) (*miekg.Msg, error) {
		m := new(miekg.Msg)
		m.SetReply(q)
		for i, ttl := range ttls {
			m.Answer = append(m.Answer, addrRecord(q.Question[0].Name, ttl, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})))
		}
		return m, nil
	}
}

func (r *fakeResolver) denies(rcode int, soa ...uint32) {
	r.say = func(q *miekg.Msg) (*miekg.Msg, error) {
		m := new(miekg.Msg)
		m.SetRcode(q, rcode)
		if len(soa) == 2 {
			m.Ns = append(m.Ns, &miekg.SOA{Hdr: miekg.RR_Header{Name: "example.com.", Rrtype: miekg.TypeSOA, Class: miekg.ClassINET, Ttl: soa[0]}, Ns: ".", Mbox: ".", Minttl: soa[1]})
		}
		return m, nil
	}
}

func (r *fakeResolver) breaks() {
	r.say = func(*miekg.Msg) (*miekg.Msg, error) { return nil, errors.New("network is unreachable") }
}

// put asks and checks where the answer came from and how many times the resolver
// had been asked by then.
func (r *fakeResolver) put(t *testing.T, name string, want source, asked int) *miekg.Msg {
	t.Helper()
	req := new(miekg.Msg)
	req.SetQuestion(name, miekg.TypeA)
	m, from, err := r.ask(t.Context(), req)
	if from != want || r.asked != asked || (err != nil) != (want == fromNobody) {
		t.Fatalf("%s after %d questions (%v), want %s after %d", from, r.asked, err, want, asked)
	}
	if m != nil && (m.Id != req.Id || m.Question[0].Name != name) {
		t.Errorf("the answer is not to the question: %v", m)
	}
	return m
}

func TestCacheHonoursTTLs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newFakeResolver(t, 0)
		r.answers(300, 60)
		r.put(t, "example.com.", fromResolver, 1)
		time.Sleep(20 * time.Second)
		m := r.put(t, "EXAMPLE.com.", fromCache, 1)
		if m.Answer[0].Header().Ttl != 280 || m.Answer[1].Header().Ttl != 40 || m.Answer[0].Header().Name != "EXAMPLE.com." {
			t.Errorf("after 20 s: %v", m.Answer)
		}
		time.Sleep(40 * time.Second) // the shortest counts for all
		r.put(t, "example.com.", fromResolver, 2)
		r.put(t, "other.com.", fromResolver, 3)

		r.answers(0)
		r.put(t, "zero.com.", fromResolver, 4)
		r.put(t, "zero.com.", fromResolver, 5)

		r.answers(1 << 30)
		r.put(t, "long.com.", fromResolver, 6)
		time.Sleep(maxPositive)
		r.put(t, "long.com.", fromResolver, 7)
	})
}

// TestStaleAnswerAsksAllResolvers: a dead resolver in front of a good one must not
// keep an answer stale.
func TestStaleAnswerAsksAllResolvers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newFakeResolver(t, 0)
		r.answers(60)
		dead, good := r.fixed[0], netip.MustParseAddrPort("192.0.2.54:53")
		r.put(t, "example.com.", fromResolver, 1)
		time.Sleep(61 * time.Second)
		one := r.exchange
		r.fixed = append(r.fixed, good)
		r.exchange = func(ctx context.Context, to netip.AddrPort, q *miekg.Msg) (*miekg.Msg, error) {
			if to == dead {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return one(ctx, to, q)
		}
		r.put(t, "example.com.", fromResolver, 2)
		time.Sleep(29 * time.Second) // the dead one is still asked last
		asked := time.Now()
		r.put(t, "other.com.", fromResolver, 3)
		if took := time.Since(asked); took > 0 {
			t.Errorf("took %v", took)
		}
	})
}

func TestCacheOfDenials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newFakeResolver(t, 0)
		r.denies(miekg.RcodeNameError, 300, 60)
		r.put(t, "no.example.com.", fromResolver, 1)
		time.Sleep(59 * time.Second)
		if m := r.put(t, "no.example.com.", fromCache, 1); m.Rcode != miekg.RcodeNameError || m.Ns[0].Header().Ttl != 241 {
			t.Errorf("%v", m)
		}
		time.Sleep(time.Second)
		r.put(t, "no.example.com.", fromResolver, 2)

		r.denies(miekg.RcodeSuccess, 10, 60) // no such record
		r.put(t, "none.example.com.", fromResolver, 3)
		r.put(t, "none.example.com.", fromCache, 3)
		time.Sleep(10 * time.Second)
		r.put(t, "none.example.com.", fromResolver, 4)

		r.denies(miekg.RcodeNameError) // nobody says for how long
		r.put(t, "bare.example.com.", fromResolver, 5)
		r.put(t, "bare.example.com.", fromResolver, 6)

		r.denies(miekg.RcodeServerFailure, 10, 60) // for a moment, whatever it says (RFC 9520)
		r.put(t, "broken.example.com.", fromResolver, 7)
		if m := r.put(t, "broken.example.com.", fromCache, 7); m.Rcode != miekg.RcodeServerFailure {
			t.Errorf("%v", m)
		}
		time.Sleep(failureTTL)
		r.put(t, "broken.example.com.", fromResolver, 8)
		time.Sleep(failureTTL)
		r.breaks()
		r.put(t, "broken.example.com.", fromNobody, 9) // a failure never counts longer
	})
}

// While nobody can be asked, what was true before is better than nothing.
func TestCacheServesStaleAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newFakeResolver(t, 0)
		r.answers(60)
		r.put(t, "example.com.", fromResolver, 1)
		r.breaks()
		time.Sleep(time.Hour)
		if m := r.put(t, "example.com.", fromStale, 2); m.Answer[0].Header().Ttl != 30 {
			t.Errorf("the TTL of a stale answer: %v", m.Answer)
		}
		r.put(t, "example.com.", fromStale, 2) // not asked again for 30 s
		time.Sleep(staleTTL)
		r.put(t, "example.com.", fromStale, 3)
		time.Sleep(staleTTL)
		r.denies(miekg.RcodeServerFailure)
		r.put(t, "example.com.", fromStale, 4)
		time.Sleep(staleTTL)
		r.answers(60)
		r.put(t, "example.com.", fromResolver, 5)

		// Nobody waits longer for a silent resolver than it takes to lose patience.
		time.Sleep(time.Minute)
		r.slow = time.Hour
		began := time.Now()
		r.put(t, "example.com.", fromStale, 6)
		if took := time.Since(began); took != patience {
			t.Errorf("waited %v, want %v", took, patience)
		}
		r.slow = 0
		r.breaks()
		time.Sleep(staleFor)
		r.put(t, "example.com.", fromNobody, 7)
	})
}

func TestCacheOfFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newFakeResolver(t, 0)
		r.breaks()
		r.put(t, "example.com.", fromNobody, 1)
		r.put(t, "example.com.", fromNobody, 1)
		time.Sleep(failureTTL)
		r.answers(60)
		r.put(t, "example.com.", fromResolver, 2)
	})
}

func TestCacheIsBounded(t *testing.T) {
	r := newFakeResolver(t, 100*(entryCost+64))
	r.answers(60)
	for i := range 500 {
		r.put(t, fmt.Sprintf("n%d.example.com.", i), fromResolver, i+1)
	}
	if n := len(r.cache.entries); n < 80 || n > 110 || r.cache.size > r.cache.max || r.cache.recent.Len() != n {
		t.Errorf("%d answers of %d bytes are kept, at most %d bytes", n, r.cache.size, r.cache.max)
	}
	r.put(t, "n499.example.com.", fromCache, 500)
	r.put(t, "n0.example.com.", fromResolver, 501)
	none := newFakeResolver(t, -1)
	none.answers(60)
	none.put(t, "example.com.", fromResolver, 1)
	none.put(t, "example.com.", fromResolver, 2)
	r.cache.clear()
	if len(r.cache.entries) != 0 || r.cache.size != 0 {
		t.Error("something is left")
	}
}

// What makes answers differ keeps them apart.
func TestCacheKeys(t *testing.T) {
	r := newFakeResolver(t, 0)
	r.answers(60)
	seen := 0
	for _, edit := range []func(*miekg.Msg){
		func(*miekg.Msg) {},
		func(m *miekg.Msg) { m.SetEdns0(1232, true) },
		func(m *miekg.Msg) { m.CheckingDisabled = true },
		func(m *miekg.Msg) { m.Question[0].Qtype = miekg.TypeAAAA },
		func(m *miekg.Msg) { m.RecursionDesired = false },
	} {
		for range 2 {
			req := new(miekg.Msg)
			req.SetQuestion("example.com.", miekg.TypeA)
			edit(req)
			if _, _, err := r.ask(t.Context(), req); err != nil {
				t.Fatal(err)
			}
		}
		if seen++; r.asked != seen {
			t.Fatalf("asked %d times for %d questions", r.asked, seen)
		}
	}
}

// Many who ask the same at a time make one question; whoever asks for all may go.
func TestOneQuestionForMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newFakeResolver(t, 0)
		r.answers(60)
		r.slow = time.Second
		first, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range 20 {
			ctx := t.Context()
			if i == 0 {
				ctx = first
			}
			wg.Go(func() {
				req := new(miekg.Msg)
				req.SetQuestion("example.com.", miekg.TypeA)
				m, _, err := r.ask(ctx, req)
				if i > 0 && (err != nil || len(m.Answer) != 1 || m.Id != req.Id) {
					t.Errorf("%v, %v", m, err)
				}
			})
			if i == 0 {
				synctest.Wait() // it asks for all
			}
		}
		synctest.Wait()
		cancel()
		wg.Wait()
		if r.asked != 2 {
			t.Errorf("asked %d times, want 2", r.asked)
		}
	})
}
