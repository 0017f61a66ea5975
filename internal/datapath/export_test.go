package datapath

// Places returns how many backends are stored.
func (k *Kernel) Places() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := 0
	for _, s := range k.sets {
		n += int(s.count)
	}
	free := 0
	for _, s := range k.room.free {
		free += int(s.count)
	}
	for _, s := range k.room.resting {
		free += int(s.count)
	}
	if total := int(k.maps[connectMapSlots].MaxEntries()); n+free != total {
		return -total // places were lost
	}
	return n
}
