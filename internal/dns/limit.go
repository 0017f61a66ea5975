package dns

import (
	"net/netip"
	"sync"
	"time"
)

const (
	// Whoever may be anybody gets so many answers a second over UDP, and so many
	// at once, from each of its networks; the rest is cut, so that real askers come
	// back over TCP and forged ones gain nothing.
	farRate  = 20
	farBurst = 100
	// maxFar bounds how many networks are counted.
	maxFar = 8192
)

// carrierNAT is shared between a provider and its customers (RFC 6598).
var carrierNAT = netip.MustParsePrefix("100.64.0.0/10")

// farAskers counts the answers given to networks that may be forged.
type farAskers struct {
	mu sync.Mutex // guards following
	by map[netip.Prefix]*bucket
}

type bucket struct {
	tokens float64
	at     time.Time
}

// take reports whether an asker may have an answer now.
func (f *farAskers) take(asker netip.Addr, now time.Time) bool {
	bits := 24
	if asker.Is6() {
		bits = 56
	}
	network, err := asker.Prefix(bits)
	if err != nil {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	b := f.by[network]
	if b == nil {
		if f.by == nil || len(f.by) >= maxFar {
			f.by = map[netip.Prefix]*bucket{}
		}
		b = &bucket{tokens: farBurst, at: now}
		f.by[network] = b
	}
	b.tokens = min(farBurst, b.tokens+farRate*max(0, now.Sub(b.at).Seconds()))
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// isNear reports whether an asker is of this host or of a network around it: its
// address cannot be that of a stranger.
func (s *Server) isNear(asker netip.Addr) bool {
	return asker.IsLoopback() || asker.IsPrivate() || asker.IsLinkLocalUnicast() || carrierNAT.Contains(asker) || s.besideHost(asker)
}
