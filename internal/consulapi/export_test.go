package consulapi

// Remembered is how many clients' rates are known.
func (g *Guard) Remembered() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.buckets)
}
