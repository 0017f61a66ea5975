package datapath

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// stored is what we know to be in the frontends map.
type stored struct {
	state State
	set   *backendSet // nil: no backends
}

// backendSet is a list of backends in the slots map, shared by all frontends that have the same ones. A set never changes, and its
// number is never used again, so that a program that reads one either gets it whole or notices.
type backendSet struct {
	id    uint32
	count int
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
		val.Set, val.Count = set.id, uint32(set.count)
	}
	if err := k.maps[connectMapFrontends].Put(&key, &val); err != nil {
		return errors.Join(fmt.Errorf("put frontend %s: %w", f, err), k.release(set))
	}
	old := k.frontends[f]
	k.frontends[f] = stored{e.State, set}
	return k.release(old.set)
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
	old := k.frontends[f]
	delete(k.frontends, f)
	return k.release(old.set)
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
	k.nextSet++
	s := &backendSet{id: k.nextSet, count: len(backends), key: key, users: 1}
	keys, vals := slotsOf(s.id, backends)
	if _, err := k.maps[connectMapSlots].BatchUpdate(keys, vals, nil); err != nil {
		return nil, errors.Join(err, k.deleteSlots(keys))
	}
	k.sets[key] = s
	return s, nil
}

// release counts one user less and deletes the set after the last one.
func (k *Kernel) release(s *backendSet) error {
	if s == nil {
		return nil
	}
	if s.users--; s.users > 0 {
		return nil
	}
	delete(k.sets, s.key)
	keys := make([]connectSlotKey, s.count)
	for i := range keys {
		keys[i] = connectSlotKey{Set: s.id, Slot: uint32(i)}
	}
	return k.deleteSlots(keys)
}

// deleteSlots deletes those of keys that exist.
func (k *Kernel) deleteSlots(keys []connectSlotKey) error {
	for len(keys) > 0 {
		n, err := k.maps[connectMapSlots].BatchDelete(keys, nil)
		if err == nil {
			return nil
		}
		if !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete unused backends: %w", err)
		}
		keys = keys[n+1:] // the batch stops at the first that is missing
	}
	return nil
}

// Frontends implements Maps. It reads the kernel's maps, not what this process remembers.
func (k *Kernel) Frontends() (map[Frontend]Entry, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	vals, sets, err := k.read()
	if err != nil {
		return nil, err
	}
	out := make(map[Frontend]Entry, len(vals))
	for f, v := range vals {
		e := Entry{State: State(v.State)}
		if v.Set != 0 {
			e.Backends = append([]Backend(nil), sets[v.Set]...)
		}
		out[f] = e
	}
	return out, nil
}

// read returns the contents of the frontends and slots maps.
func (k *Kernel) read() (map[Frontend]connectFrontend, map[uint32][]Backend, error) {
	frontends := map[Frontend]connectFrontend{}
	err := readAll(k.maps[connectMapFrontends], func(key connectFrontendKey, v connectFrontend) { frontends[decodeFrontend(key)] = v })
	if err != nil {
		return nil, nil, err
	}
	sets := map[uint32][]Backend{}
	err = readAll(k.maps[connectMapSlots], func(key connectSlotKey, v connectSlot) {
		s := sets[key.Set]
		for uint32(len(s)) <= key.Slot {
			s = append(s, Backend{})
		}
		s[key.Slot] = Backend{Addr: addrPort(v.Addr.W, v.Port), Weight: v.Weight}
		sets[key.Set] = s
	})
	return frontends, sets, err
}

// adopt learns what an earlier process left in the maps, and deletes the sets that no frontend uses.
func (k *Kernel) adopt() error {
	frontends, sets, err := k.read()
	if err != nil {
		return fmt.Errorf("adopt pinned maps: %w", err)
	}
	byID := map[uint32]*backendSet{}
	var unused []connectSlotKey
	for f, v := range frontends {
		if v.Set != 0 && byID[v.Set] == nil {
			byID[v.Set] = &backendSet{id: v.Set, count: len(sets[v.Set]), key: keyOf(sets[v.Set])}
		}
		s := stored{state: State(v.State), set: byID[v.Set]}
		if s.set != nil {
			s.set.users++
		}
		k.frontends[f] = s
	}
	for id, backends := range sets {
		k.nextSet = max(k.nextSet, id)
		if s := byID[id]; s != nil {
			k.sets[s.key] = s
			continue
		}
		for i := range backends {
			unused = append(unused, connectSlotKey{Set: id, Slot: uint32(i)})
		}
	}
	if err := k.deleteSlots(unused); err != nil {
		return fmt.Errorf("adopt pinned maps: %w", err)
	}
	return nil
}
