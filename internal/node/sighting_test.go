package node

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestSighting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := sighting{since: time.Now()}
		time.Sleep(time.Second)
		if ago := s.ago(); ago != 0 {
			t.Errorf("never seen: %v", ago)
		}
		s.seen()
		time.Sleep(3 * time.Second)
		if ago := s.ago(); ago != 3*time.Second {
			t.Errorf("seen 3 s ago: %v", ago)
		}
		s.seen()
		if ago := s.ago(); ago != 0 {
			t.Errorf("seen now: %v", ago)
		}
		if n := testing.AllocsPerRun(10, func() { s.seen(); s.ago() }); n != 0 {
			t.Errorf("%v allocations", n)
		}
	})
}
