package dns

import (
	"encoding/binary"
	"net/netip"

	"github.com/fairlead-net/fairlead/internal/acl"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

// moment is what all queries that came in at one time are answered from.
type moment struct {
	snap *state.Snapshot
	may  acl.Authorizer
	// quick: kept answers may be given.
	quick bool
	// limit is Config.UDPAnswerLimit.
	limit int
	ra    byte // the header's RA bit for those who are near
}

// moment is now.
func (s *Server) moment() moment {
	now := moment{snap: s.reader.Snapshot(), may: s.zones.authorizer(), limit: max(s.cfg.UDPAnswerLimit, 0)}
	if s.forward.configured() {
		now.ra = bitRA
	}
	// An answer that may be out of date says for how long.
	now.quick = now.snap.Index() > 0 && (s.cfg.StaleFor == nil || s.cfg.StaleFor() <= 0)
	return now
}

// askerOf is an asker as of a snapshot and of a list of this host's addresses.
type askerOf struct {
	addr  netip.Addr
	class askerClass
	index model.Index
	host  *hostAddrs
}

// clerk gives kept answers out. It belongs to one goroutine.
type clerk struct {
	s     *Server
	query plainQuery
	desk  desk
	// known are askers of late, by their addresses' last byte.
	known [64]askerOf

	// What was given out since the last count.
	rcodes    [16]int
	truncated int
	answered  int
}

// asker says what may be kept for an address. Who is not near has no class: it is
// limited, and given less.
func (c *clerk) asker(addr netip.Addr, now *moment) askerOf {
	addr = addr.Unmap().WithZone("")
	if addr.IsLoopback() {
		return askerOf{addr: addr, class: hostClass}
	}
	as16 := addr.As16()
	known := &c.known[int(as16[15])%len(c.known)]
	host := c.s.hostAddrs()
	if known.addr == addr && known.index == now.snap.Index() && known.host == host {
		return *known
	}
	*known = askerOf{addr: addr, index: now.snap.Index(), host: host}
	if c.s.isNear(addr) {
		known.class = c.s.classes.of(c.s.zones.scopeOf(now.snap, addr))
	}
	return *known
}

// answer turns the query in the first n bytes of buf into its answer, if one is
// kept, and returns the answer's length; 0 if not, and then the query is as it
// was.
func (c *clerk) answer(buf []byte, n int, from askerOf, now *moment) int {
	q := &c.query
	if from.class == noClass || !now.quick || !q.parse(buf[:n]) {
		return 0
	}
	k := c.s.kept.find(q, from.class)
	if k == nil || k.slow || !k.good(now) {
		return 0
	}
	var opt [optSize]byte // what the answer may be written over
	copy(opt[:], buf[q.end:n])
	end := k.write(buf, q, now, &c.desk)
	if end == 0 {
		copy(buf[q.end:n], opt[:])
		return 0
	}
	c.rcodes[k.rcode&0xF]++
	c.answered++
	if binary.BigEndian.Uint16(buf[2:])&(bitTC<<8) != 0 {
		c.truncated++
	}
	return end
}

// count tells the metrics.
func (c *clerk) count() {
	if c.answered == 0 {
		return
	}
	m := c.s.metrics
	for code, n := range c.rcodes {
		if n > 0 && m.byRcode[code] != nil {
			m.byRcode[code].Add(float64(n))
		}
	}
	m.kept.Add(float64(c.answered))
	if c.truncated > 0 {
		m.truncated.Add(float64(c.truncated))
	}
	c.rcodes, c.truncated, c.answered = [16]int{}, 0, 0
}
