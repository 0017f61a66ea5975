package node

import (
	"sync/atomic"
	"time"
)

// sighting remembers when something was last seen. It is asked for every request, so
// it allocates nothing. Several goroutines may use one.
type sighting struct {
	since time.Time    // when it was made
	at    atomic.Int64 // nanoseconds after since; 0: never
}

func (s *sighting) seen() { s.at.Store(max(1, int64(time.Since(s.since)))) }

// ago is how long ago it was seen, 0 if it never was.
func (s *sighting) ago() time.Duration {
	at := s.at.Load()
	if at == 0 {
		return 0
	}
	return time.Since(s.since) - time.Duration(at)
}
