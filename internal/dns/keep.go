package dns

import (
	"encoding/binary"
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

const (
	// maxSure bounds the kept answers that give records out of the catalogue, and
	// maxDoubtful the others, of which whoever asks can make up as many as it likes.
	maxSure, maxDoubtful = 4096, 1024
	// maxKeptBytes bounds the memory of all of them together, in bytes.
	maxKeptBytes = 16 << 20
	// keptBuckets is how many lists they are in, and keptDoors how many questions
	// are remembered as having been asked once.
	keptBuckets, keptDoors = 4096, 8192
)

// keeper keeps answers. Readers take no lock.
type keeper struct {
	seed    maphash.Seed
	buckets [keptBuckets]atomic.Pointer[kept]
	doors   [keptDoors]atomic.Uint32

	mu    sync.Mutex // guards following, and every list's change
	sure  ring
	doubt ring
	bytes int
}

// ring is the kept answers of one kind, the clock's hand going round over them.
type ring struct {
	max  int
	all  []*kept
	hand int
}

func newKeeper() *keeper {
	return &keeper{seed: maphash.MakeSeed(), sure: ring{max: maxSure}, doubt: ring{max: maxDoubtful}}
}

func (p *keeper) hash(name []byte, qtype uint16, class askerClass) uint64 {
	var more [6]byte
	binary.LittleEndian.PutUint16(more[:], qtype)
	binary.LittleEndian.PutUint32(more[2:], uint32(class))
	var h maphash.Hash
	h.SetSeed(p.seed)
	_, _ = h.Write(more[:]) // it never fails
	_, _ = h.Write(name)
	return h.Sum64()
}

// find returns what is kept for a question, nil for nothing. While others change
// the list it may miss what is there.
func (p *keeper) find(q *plainQuery, class askerClass) *kept {
	h := p.hash(q.wire(), q.qtype, class)
	for k := p.buckets[h%keptBuckets].Load(); k != nil; k = k.next.Load() {
		if k.hash == h && k.key.qtype == q.qtype && k.key.class == class && k.key.name == string(q.wire()) {
			if !k.used.Load() {
				k.used.Store(true)
			}
			return k
		}
	}
	return nil
}

// knock reports whether a question was asked before, lately: what is asked only
// once is not worth keeping.
func (p *keeper) knock(q *plainQuery, class askerClass) bool {
	h := p.hash(q.wire(), q.qtype, class)
	door, mark := &p.doors[h%keptDoors], uint32(h>>32)|1
	if door.Load() == mark {
		return true
	}
	door.Store(mark)
	return false
}

// put keeps an answer in place of an older one, and forgets others if there are
// too many.
func (p *keeper) put(k *kept, doubtful bool) {
	k.hash = p.hash([]byte(k.key.name), k.key.qtype, k.key.class)
	p.mu.Lock()
	defer p.mu.Unlock()
	for old := p.buckets[k.hash%keptBuckets].Load(); old != nil; old = old.next.Load() {
		if old.key == k.key {
			k.used.Store(old.used.Load())
			p.drop(old)
			break
		}
	}
	r := &p.sure
	if doubtful {
		r = &p.doubt
	}
	for len(r.all) >= r.max {
		p.drop(r.victim())
	}
	k.ring, k.slot, k.size = r, len(r.all), k.cost()
	r.all = append(r.all, k)
	p.bytes += k.size
	bucket := &p.buckets[k.hash%keptBuckets]
	k.next.Store(bucket.Load())
	bucket.Store(k)
	for p.bytes > maxKeptBytes {
		if len(p.doubt.all) > 0 {
			r = &p.doubt
		} else {
			r = &p.sure
		}
		p.drop(r.victim())
	}
}

// victim is the next one that nobody has asked for since the hand came by last.
func (r *ring) victim() *kept {
	for {
		r.hand %= len(r.all)
		k := r.all[r.hand]
		if !k.used.Load() {
			return k
		}
		k.used.Store(false)
		r.hand++
	}
}

// drop forgets a kept answer. Who has found it may still use it. The caller holds
// mu.
func (p *keeper) drop(k *kept) {
	at := &p.buckets[k.hash%keptBuckets]
	for at.Load() != k {
		at = &at.Load().next
	}
	at.Store(k.next.Load())
	r, last := k.ring, len(k.ring.all)-1
	r.all[k.slot] = r.all[last]
	r.all[k.slot].slot = k.slot
	r.all[last] = nil
	r.all = r.all[:last]
	p.bytes -= k.size
}

// cost is about how much memory a kept answer takes, in bytes.
func (k *kept) cost() int {
	const fixed, perRead, perRecord = 512, 48, 20
	n := fixed + len(k.key.name) + len(k.body) + len(k.why) + perRead*(len(k.reads.records)+len(k.reads.addrs))
	if k.choice != nil {
		n += len(k.choice.wires) + perRecord*len(k.choice.records)
	}
	return n
}

// askerClass stands for all that an answer may say to an asker: for one scope.
type askerClass uint32

const (
	noClass   askerClass = iota // nothing is kept for these
	hostClass                   // processes of this host
)

// maxClasses bounds the classes.
const maxClasses = 1024

// askerClasses numbers scopes, so that equal ones have equal numbers.
type askerClasses struct {
	mu sync.Mutex // guards following
	by map[string]askerClass
}

func (c *askerClasses) of(s *scope) askerClass {
	if s.host && s.outside && len(s.networks) == 0 {
		return hostClass
	}
	var b strings.Builder
	for _, flag := range []bool{s.host, s.outside} {
		if flag {
			b.WriteByte('+')
		}
		b.WriteByte(0)
	}
	for _, n := range s.networks {
		b.WriteString(string(n))
		b.WriteByte(0)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	class, ok := c.by[b.String()]
	if !ok && len(c.by) < maxClasses {
		if c.by == nil {
			c.by = map[string]askerClass{}
		}
		class = hostClass + 1 + askerClass(len(c.by))
		c.by[b.String()] = class
	}
	return class
}

// keep makes the answer to a query anew, or for the first time if it has been
// asked before. It is called after the query has been answered.
func (s *Server) keep(wire []byte, asker askerOf) {
	var q plainQuery
	if asker.class == noClass || !q.parse(wire) {
		return
	}
	old := s.kept.find(&q, asker.class)
	if old == nil && !s.kept.knock(&q, asker.class) {
		return
	}
	if old != nil {
		if now := s.moment(); !now.quick || old.good(&now) || !old.remaking.CompareAndSwap(false, true) {
			return
		}
		defer old.remaking.Store(false)
	}
	kind := s.zones.kindOf(q.text())
	if !slices.Contains(keptKinds, kind) {
		return
	}
	if k := s.makeKept(&q, asker.addr); k != nil {
		s.kept.put(k, k.counts[0] == 0 && k.choice == nil && !k.slow || kind == "addr")
	}
}
