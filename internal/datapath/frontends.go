package datapath

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
)

// stored is what we know to be in the frontends map.
type stored struct {
	state State
	set   *backendSet // nil: no backends
}

// backendSet is a list of backends in the slots array, shared by all frontends that have the same ones. A set never changes, and its
// number is never used again, so that a program that reads one either gets it whole or notices.
type backendSet struct {
	id    uint32
	start uint32
	count uint32
	key   setKey
	users int
}

// setKey is the hash of a canonical list of backends.
type setKey [sha256.Size]byte

func keyOf(backends []Backend) setKey {
	b := make([]byte, 0, 22*len(backends))
	for _, be := range backends {
		a := be.Addr.Addr().As16()
		b = append(b, a[:]...)
		b = binary.BigEndian.AppendUint16(b, be.Addr.Port())
		b = binary.BigEndian.AppendUint32(b, be.Weight)
	}
	return sha256.Sum256(b)
}

// SetFrontend implements Maps.
func (k *Kernel) SetFrontend(f Frontend, s State, backends []Backend) error {
	f, err := f.check()
	if err != nil {
		return err
	}
	e, err := canonical(f, s, backends)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	set, err := k.acquire(e.Backends)
	if err != nil {
		return fmt.Errorf("put backends of frontend %s: %w", f, err)
	}
	key := f.encode()
	val := connectFrontend{State: uint32(e.State), Tag: tagOf(key)}
	if set != nil {
		val.Set, val.Start, val.Count = set.id, set.start, set.count
	}
	if err := k.maps[connectMapFrontends].Put(&key, &val); err != nil {
		k.release(set)
		return fmt.Errorf("put frontend %s: %w", f, err)
	}
	k.release(k.frontends[f].set)
	k.frontends[f] = stored{e.State, set}
	return nil
}

// DeleteFrontend implements Maps.
func (k *Kernel) DeleteFrontend(f Frontend) error {
	f, err := f.check()
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	key := f.encode()
	if err := k.maps[connectMapFrontends].Delete(&key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete frontend %s: %w", f, err)
	}
	k.release(k.frontends[f].set)
	delete(k.frontends, f)
	return nil
}

// acquire finds or stores a set of backends and counts one more user.
func (k *Kernel) acquire(backends []Backend) (*backendSet, error) {
	if len(backends) == 0 {
		return nil, nil
	}
	key := keyOf(backends)
	if s := k.sets[key]; s != nil {
		s.users++
		return s, nil
	}
	start, ok := k.room.take(uint32(len(backends)), time.Now())
	if !ok {
		return nil, fmt.Errorf("%w: all places for backends are taken", ErrFull)
	}
	k.nextSet++
	s := &backendSet{id: k.nextSet, start: start, count: uint32(len(backends)), key: key, users: 1}
	vals := slotsOf(s.id, backends)
	at := make([]uint32, len(vals))
	for i := range at {
		at[i] = start + uint32(i)
	}
	if _, err := k.maps[connectMapSlots].BatchUpdate(at, vals, nil); err != nil {
		k.room.give(s.start, s.count, time.Now())
		return nil, err
	}
	k.sets[key] = s
	return s, nil
}

// release counts one user less and gives the set's place back after the last one.
func (k *Kernel) release(s *backendSet) {
	if s == nil {
		return
	}
	if s.users--; s.users > 0 {
		return
	}
	delete(k.sets, s.key)
	k.room.give(s.start, s.count, time.Now())
}

// Frontends implements Maps. It reads the kernel's maps, not what this process remembers.
func (k *Kernel) Frontends() (map[Frontend]Entry, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	vals, slots, err := k.read()
	if err != nil {
		return nil, err
	}
	out := make(map[Frontend]Entry, len(vals))
	for f, v := range vals {
		backends, err := backendsOf(v, slots)
		if err != nil {
			return nil, fmt.Errorf("frontend %s: %w", f, err)
		}
		out[f] = Entry{State: State(v.State), Backends: backends}
	}
	return out, nil
}

// read returns the contents of the frontends map, and of the slots array as far as frontends use it.
func (k *Kernel) read() (map[Frontend]connectFrontend, []connectSlot, error) {
	frontends := map[Frontend]connectFrontend{}
	end := uint32(0)
	err := readAll(k.maps[connectMapFrontends], func(key connectFrontendKey, v connectFrontend) {
		frontends[decodeFrontend(key)] = v
		end = max(end, v.Start+v.Count)
	})
	if err != nil || end == 0 {
		return frontends, nil, err
	}
	at, slots := make([]uint32, end), make([]connectSlot, end)
	var cursor ebpf.MapBatchCursor
	n, err := k.maps[connectMapSlots].BatchLookup(&cursor, at, slots, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, nil, fmt.Errorf("read map slots: %w", err)
	}
	return frontends, slots[:n], nil
}

// backendsOf returns a frontend's part of the slots array.
func backendsOf(v connectFrontend, slots []connectSlot) ([]Backend, error) {
	if v.Set == 0 {
		return nil, nil
	}
	if uint64(v.Start)+uint64(v.Count) > uint64(len(slots)) {
		return nil, fmt.Errorf("%w: backends %d to %d of %d", errCorrupt, v.Start, v.Start+v.Count, len(slots))
	}
	out := make([]Backend, 0, v.Count)
	for _, s := range slots[v.Start : v.Start+v.Count] {
		if s.Set != v.Set {
			return nil, fmt.Errorf("%w: backends of set %d, want %d", errCorrupt, s.Set, v.Set)
		}
		out = append(out, Backend{Addr: addrPort(s.Addr.W, s.Port), Weight: s.Weight})
	}
	return out, nil
}

// adopt learns what an earlier process left in the maps.
func (k *Kernel) adopt() error {
	frontends, slots, err := k.read()
	if err != nil {
		return fmt.Errorf("adopt pinned maps: %w", err)
	}
	byID := map[uint32]*backendSet{}
	for f, v := range frontends {
		k.frontends[f] = stored{state: State(v.State)}
		if v.Set == 0 {
			continue
		}
		s := byID[v.Set]
		if s == nil {
			backends, err := backendsOf(v, slots)
			if err != nil {
				return fmt.Errorf("adopt frontend %s: %w", f, err)
			}
			s = &backendSet{id: v.Set, start: v.Start, count: v.Count, key: keyOf(backends)}
			byID[v.Set], k.sets[s.key] = s, s
			k.room.reserve(s.start, s.count)
			k.nextSet = max(k.nextSet, s.id)
		}
		s.users++
		k.frontends[f] = stored{State(v.State), s}
	}
	return nil
}
