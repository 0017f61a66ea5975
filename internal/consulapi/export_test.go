package consulapi

import "net/http"

// Remembered is how many clients' rates are known.
func (g *Guard) Remembered() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.buckets)
}

// Shelved is how many answers h keeps to be shared, and about how many bytes.
func Shelved(h http.Handler) (n, bytes int) {
	f := h.(*handler).shelf
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.slots), f.bytes
}

// ShelfBytes bounds what is kept.
const ShelfBytes = shelfBytes

// Parked is how many queries of h wait in the lot, and in how many flocks.
func Parked(h http.Handler) (queries, flocks int) {
	ws := h.(*handler).waits
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, f := range ws.flocks {
		queries += len(f.waiters)
	}
	return queries, len(ws.flocks)
}
