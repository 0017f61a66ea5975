package identity

// MaxLeaves is the bound that tests reach.
const MaxLeaves = maxLeaves

// Len is how many leaves are kept.
func (l *Leaves) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.slots)
}
