package load

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func members(n int) (all []Member[int]) {
	for i := range n {
		all = append(all, Member[int]{Key: fmt.Sprint("m", i), Weight: 1, Value: i})
	}
	return all
}

func newSet(n int) *Set[int] {
	s := New[int](time.Second)
	s.Update(members(n))
	return s
}

// request sends one request to whom the set picks; each takes as long as took says.
func request(t *testing.T, s *Set[int], o Outcome, took time.Duration) int {
	t.Helper()
	p := s.Pick(nil)
	if p == nil {
		t.Fatal("no pick")
	}
	time.Sleep(took)
	p.Done(o)
	return p.Value
}

// only makes the pick fall on one member.
func only(key string) func(string) bool { return func(k string) bool { return k != key } }

func TestPickOfNone(t *testing.T) {
	if p := New[int](0).Pick(nil); p != nil {
		t.Errorf("an empty set picks %v", p.Key)
	}
	if p := newSet(2).Pick(func(string) bool { return true }); p != nil {
		t.Errorf("a set of which all are skipped picks %v", p.Key)
	}
}

// Requests in flight spread over the members, by weight.
func TestInFlightCounts(t *testing.T) {
	s := New[int](0)
	all := members(3)
	all[2].Weight = 2
	s.Update(all)
	count := map[string]int{}
	for range 40 {
		count[s.Pick(nil).Key]++
	}
	if count["m0"] != 10 || count["m1"] != 10 || count["m2"] != 20 {
		t.Errorf("40 requests in flight are spread as %v; want 10, 10 and 20", count)
	}
}

// The slow get less, until as many wait at the fast ones as make up for it.
func TestLatencyCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSet(2)
		for key, took := range map[string]time.Duration{"m0": 10 * time.Millisecond, "m1": 50 * time.Millisecond} {
			p := s.Pick(only(key))
			time.Sleep(took)
			p.Done(OK)
		}
		count := map[string]int{}
		for range 12 {
			count[s.Pick(nil).Key]++
		}
		if count["m0"] < 9 || count["m1"] < 1 {
			t.Errorf("12 requests in flight, of two of which one takes five times as long: %v", count)
		}
	})
}

// One that fails fast attracts nothing.
func TestFailuresCountAsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSet(3)
		count := map[int]int{}
		for range 300 {
			p := s.Pick(nil)
			if p.Value == 0 {
				time.Sleep(time.Microsecond)
				p.Done(Failed)
			} else {
				time.Sleep(10 * time.Millisecond)
				p.Done(OK)
			}
			count[p.Value]++
		}
		if count[0] > 5 || count[1] == 0 || count[2] == 0 {
			t.Errorf("300 requests, m0 fails at once: %v", count)
		}
	})
}

// A member at which nothing listens is out at once, and tried by one request when its
// time is over; each time that fails it is out for longer.
func TestRefusedIsEjected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSet(2)
		s.Pick(only("m0")).Done(Refused)
		for range 20 {
			if got := request(t, s, OK, 0); got != 1 {
				t.Fatal("an ejected member is picked")
			}
		}
		time.Sleep(firstEject)
		trial := s.Pick(only("m0"))
		for range 20 {
			if got := request(t, s, OK, 0); got != 1 {
				t.Fatal("a second request finds out whether a member is back")
			}
		}
		trial.Done(Refused)
		time.Sleep(firstEject - time.Nanosecond) // half of the second time at least
		if got := request(t, s, OK, 0); got != 1 {
			t.Fatal("the second ejection is as short as the first")
		}
		time.Sleep(firstEject)
		s.Pick(only("m0")).Done(OK)
		time.Sleep(slowStart)
		s.Pick(only("m1")) // busy
		if got := request(t, s, OK, 0); got != 0 {
			t.Error("a member that is back is not picked")
		}
	})
}

// When all are out, the first one to come back is picked rather than none.
func TestAllEjected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSet(2)
		s.Pick(only("m1")).Done(Refused)
		time.Sleep(firstEject / 4)
		s.Pick(only("m0")).Done(Refused)
		if p := s.Pick(nil); p == nil || s.Pick(only(p.Key)) == nil {
			t.Error("nothing is picked of members that are all out")
		}
	})
}

// Failures eject only while that leaves half: they may come from overload.
func TestFailuresEjectAtMostHalf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSet(4)
		for range tolerated {
			for i := range 4 {
				s.Pick(only(fmt.Sprint("m", i))).Done(Failed)
			}
		}
		out := 0
		for _, m := range s.members {
			if !m.available(time.Now()) {
				out++
			}
		}
		if out != 2 {
			t.Errorf("%d of 4 are out; want 2", out)
		}
	})
}

// What is idle nears the median, so that a member that has recovered is tried.
func TestIdleDecaysToTheMedian(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSet(3)
		for key, took := range map[string]time.Duration{"m0": 10, "m1": 10, "m2": 1000} {
			p := s.Pick(only(key))
			time.Sleep(took * time.Millisecond)
			p.Done(OK)
		}
		slow := s.members[2]
		time.Sleep(idleHalf)
		s.Pick(nil).Done(Abandoned) // computes the median
		if got := s.expected(slow, slow.seen.Add(idleHalf)); got < 0.50 || got > 0.51 {
			t.Errorf("after the half-life 1 s is %.3f s; want half-way to 0.010", got)
		}
	})
}

// A member that joins later gets its share little by little.
func TestSlowStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSet(1)
		request(t, s, OK, 10*time.Millisecond)
		s.Update(members(2))
		count := map[int]int{}
		for range 9 {
			count[s.Pick(nil).Value]++
		}
		if count[1] != 0 {
			t.Errorf("of the first 9 requests in flight a new member gets %d", count[1])
		}
		time.Sleep(slowStart)
		for range 9 {
			count[s.Pick(nil).Value]++
		}
		if count[0] != 9 || count[1] != 9 {
			t.Errorf("after the slow start: %v; want both equal", count)
		}
	})
}

// Callers that give up say nothing of an instance, unless it had its time.
func TestAbandoned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSet(1)
		request(t, s, OK, 10*time.Millisecond)
		request(t, s, Abandoned, time.Millisecond)
		if got := s.members[0].latency; got != 0.01 {
			t.Errorf("latency %.4f after an early cancellation; want 0.01", got)
		}
		request(t, s, Abandoned, 110*time.Millisecond)
		if got := s.members[0].latency; got < 0.0199 || got > 0.0201 {
			t.Errorf("latency %.4f after a late cancellation; want 0.02", got)
		}
	})
}

// Above 64 members a few random ones are looked at, and still only those that may be.
func TestManyMembers(t *testing.T) {
	s := newSet(1000)
	for range 100 {
		if p := s.Pick(only("m7")); p == nil || p.Key != "m7" {
			t.Fatalf("pick of the only one that may be: %v", p)
		}
	}
	seen := map[string]bool{}
	for range 500 {
		seen[s.Pick(nil).Key] = true
	}
	if len(seen) < 300 {
		t.Errorf("500 requests in flight went to %d of 1000 members", len(seen))
	}
}

func TestReleaseCountsOnce(t *testing.T) {
	s := newSet(1)
	p := s.Pick(nil)
	p.Done(OK)
	p.Release()
	p.Observe(Failed)
	if m := s.members[0]; m.inFlight != 0 || m.failures != 0 {
		t.Errorf("in flight %d, failures %d; want none", m.inFlight, m.failures)
	}
}
