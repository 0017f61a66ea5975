package dns

import (
	"cmp"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"slices"
	"sync/atomic"

	miekg "github.com/miekg/dns"

	"github.com/fairlead-net/fairlead/internal/acl"
)

// kept is the answer to one plain question for one class of askers, made once and
// given to whoever asks it as long as what it was made of stays as it is. What
// differs from query to query is put in when it is written out: the header, the
// question's spelling, the order of instances, the OPT record, the SOA's serial,
// and what fits.
type kept struct {
	hash  uint64
	key   keptKey
	may   acl.Authorizer
	reads reads
	// right is the index of the last snapshot that it was seen to be right for.
	right atomic.Uint64
	// remaking: somebody makes its successor.
	remaking atomic.Bool
	// slow: this question is answered in full each time.
	slow bool

	rcode  byte
	counts [3]uint16 // answers, authorities and additional records of body
	// body is all that follows the question, but for the OPT record; its pointers
	// are good because names of one key are equally long.
	body []byte
	// serial is where in body the SOA's serial is, 0 without one.
	serial int
	// why is the OPT record's explanation, a whole option; empty without one.
	why []byte
	// choice is set where body is written anew each time.
	choice *choice

	// What follows belongs to the keeper.
	next atomic.Pointer[kept]
	used atomic.Bool
	ring *ring
	slot int // in ring
	size int // bytes
}

// keptKey is what an answer is kept under.
type keptKey struct {
	name  string // as on the wire, in lower case
	qtype uint16
	class askerClass
}

// choice is the instances of a service, to be given in a new order each time. All
// of it lies close together: what is slow about thousands of services is to fetch
// them from memory.
type choice struct {
	// wires are the records, without their owners, and then all glue.
	wires   []byte
	records []record
	// ends are the members' ends among the records, which are in their order.
	ends    []uint16
	weights []uint16 // of the members
	targets int      // different targets and addresses in all records
	// weighted: some count for more than others.
	weighted bool
	// once: a target is given once, however many records have it.
	once bool
	// limit bounds the records; 0: no bound.
	limit int
}

// record is one record of an answer, whose owner is the question's name.
type record struct {
	at, end uint32 // in wires
	// glue is where the target's addresses begin in wires, and glues how many there
	// are. How long each is, it says itself.
	glue   uint32
	glues  uint16
	target uint16 // the number of an SRV record's target, or of an address
}

// maxChoice bounds the instances of kept answers; a service with more of them is
// answered in full each time.
const maxChoice = 1024

const (
	// ownerSize is the length of a pointer, which all owners are, in bytes.
	ownerSize = 2
	// rdataAt is where in a record without its owner its data is, and targetAt
	// where in an SRV record the target is.
	rdataAt, targetAt = 10, 16
)

// desk is what one goroutine needs to write answers out.
type desk struct {
	order []uint16 // of a choice's members
	keys  []float64
	// at says where a target was written, for those that were seen in this round.
	at    []uint16
	seen  []uint32
	round uint32
	given []*record // whose glue is still to be written
}

// ready makes room for a choice.
func (d *desk) ready(c *choice) {
	if len(d.order) < len(c.ends) {
		n := max(2*len(d.order), len(c.ends))
		d.order, d.keys = make([]uint16, n), make([]float64, n)
	}
	for i := range c.ends {
		d.order[i] = uint16(i)
	}
	if len(d.seen) < c.targets {
		n := max(2*len(d.seen), c.targets)
		d.at, d.seen = make([]uint16, n), make([]uint32, n)
	}
	d.given = d.given[:0]
	if d.round++; d.round == 0 {
		clear(d.seen)
		d.round = 1
	}
}

// good reports whether a kept answer still is one for a moment.
func (k *kept) good(now *moment) bool {
	if k.may != now.may {
		return false
	}
	if k.right.Load() == uint64(now.snap.Index()) {
		return true
	}
	if !k.reads.hold(now.snap) {
		return false
	}
	k.right.Store(uint64(now.snap.Index()))
	return true
}

// write turns the query in buf into its answer and returns the answer's length; 0
// if the answer is better given in full.
func (k *kept) write(buf []byte, q *plainQuery, now *moment, d *desk) int {
	opt, why := 0, k.why
	if q.edns {
		opt = optSize + len(why)
		if opt > q.size-q.end { // the same rule as in finish
			opt, why = optSize, nil
		}
	}
	size := min(q.size, len(buf)) - opt
	limit := 0
	if q.size == miekg.MinMsgSize {
		limit = now.limit
	}
	var end int
	var tc bool
	counts := k.counts
	if k.choice == nil {
		if end = q.end + len(k.body); end > size || limit > 0 && int(counts[0]) > limit {
			return 0
		}
		copy(buf[q.end:], k.body)
		if k.serial > 0 {
			binary.BigEndian.PutUint32(buf[q.end+k.serial:], uint32(now.snap.Index()))
		}
	} else {
		if end, tc = k.choice.write(buf[:size], q.end, limit, d, &counts); tc && q.size > len(buf) {
			return 0 // the asker takes more than there is room for here
		}
	}
	if q.edns {
		writeOPT(buf[end:], q.do, why)
		end += opt
		counts[2]++
	}
	buf[2] = buf[2]&bitRD | bitQR | bitAA
	if tc {
		buf[2] |= bitTC
	}
	buf[3] = buf[3]&bitCD | now.ra | k.rcode
	for i, n := range counts {
		binary.BigEndian.PutUint16(buf[6+2*i:], n)
	}
	return end
}

func writeOPT(b []byte, do bool, why []byte) {
	clear(b[:optSize])
	b[2] = byte(miekg.TypeOPT)
	binary.BigEndian.PutUint16(b[3:], ourUDPSize)
	if do {
		b[7] = 0x80
	}
	binary.BigEndian.PutUint16(b[9:], uint16(len(why)))
	copy(b[optSize:], why)
}

// write appends records at end of buf, as many as fit in all of buf, and returns
// where they end and if answers had to be left out (additional records go first,
// unannounced; see fit).
func (c *choice) write(buf []byte, end, limit int, d *desk, counts *[3]uint16) (int, bool) {
	d.ready(c)
	if c.weighted {
		c.draw(d)
	}
	if limit == 0 || c.limit > 0 && c.limit < limit {
		limit = c.limit
	}
	for i := range c.ends {
		m := c.nth(i, d)
		first := 0
		if m > 0 {
			first = int(c.ends[m-1])
		}
		for r := first; r < int(c.ends[m]); r++ {
			rec := &c.records[r]
			wire := c.wires[rec.at:rec.end]
			known := d.seen[rec.target] == d.round
			switch {
			case limit > 0 && int(counts[0]) == limit:
				return c.glue(buf, end, d, counts), false
			case known && c.once:
				continue
			case end+ownerSize+len(wire) > len(buf):
				return end, true
			}
			if !known {
				d.seen[rec.target], d.at[rec.target] = d.round, uint16(end+ownerSize+targetAt)
				if rec.glues > 0 {
					d.given = append(d.given, rec)
				}
			}
			buf[end], buf[end+1] = 0xC0, headerSize
			end += ownerSize + copy(buf[end+ownerSize:], wire)
			counts[0]++
		}
	}
	return c.glue(buf, end, d, counts), false
}

// nth is the member that comes after i others in an order that is random where
// draw has not said it; i rises by one.
func (c *choice) nth(i int, d *desk) int {
	if !c.weighted {
		j := i + rand.IntN(len(c.ends)-i)
		d.order[i], d.order[j] = d.order[j], d.order[i]
	}
	return int(d.order[i])
}

// draw puts the members in an order in which those with more weight tend to come
// first; see answering.rotate.
func (c *choice) draw(d *desk) {
	for i := range c.ends {
		d.keys[i] = math.Inf(1)
		if w := c.weights[i]; w > 0 {
			d.keys[i] = -math.Log(1-rand.Float64()) / float64(w)
		}
	}
	keys := d.keys
	slices.SortFunc(d.order[:len(c.ends)], func(a, b uint16) int {
		return cmp.Or(cmp.Compare(keys[a], keys[b]), cmp.Compare(a, b))
	})
}

// glue appends the additional records of the answers given, as many as fit.
func (c *choice) glue(buf []byte, end int, d *desk, counts *[3]uint16) int {
	for _, rec := range d.given {
		wires := c.wires[rec.glue:]
		for range rec.glues {
			size := rdataAt + int(binary.BigEndian.Uint16(wires[rdataAt-2:]))
			if end+ownerSize+size > len(buf) {
				return end
			}
			binary.BigEndian.PutUint16(buf[end:], 0xC000|d.at[rec.target])
			end += ownerSize + copy(buf[end+ownerSize:], wires[:size])
			wires = wires[size:]
			counts[2]++
		}
	}
	return end
}
