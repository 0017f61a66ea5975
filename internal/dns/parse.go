package dns

import (
	"encoding/binary"

	miekg "github.com/miekg/dns"
)

const (
	// headerSize is the length of a message's header, and optSize that of an OPT
	// record without options, in bytes.
	headerSize = 12
	optSize    = 11
	// maxName is the longest name on the wire, in bytes.
	maxName = 255
)

// The bits of a header's second pair of bytes.
const (
	bitTC = 0x02 // of the first
	bitAA = 0x04
	bitRD = 0x01
	bitQR = 0x80
	bitRA = 0x80 // of the second
	bitAD = 0x20
	bitCD = 0x10
)

// plainQuery is a query of the kind that nearly all are: one question about a
// name of letters, digits, hyphens and underscores in class IN, with no more
// beside it than an OPT record without options.
type plainQuery struct {
	name  [maxName]byte // as on the wire, in lower case
	len   int           // of name
	qtype uint16
	end   int // of the question, in the message
	edns  bool
	do    bool
	size  int // that the asker takes over UDP, in bytes
}

// wire is the name, ended by the root.
func (q *plainQuery) wire() []byte { return q.name[:q.len] }

// parse reads a message and reports whether it is a plain query; whatever else it
// may be is not looked into. It allocates nothing.
func (q *plainQuery) parse(msg []byte) bool {
	if len(msg) < headerSize || msg[2]&^bitRD != 0 || msg[3]&^(bitAD|bitCD) != 0 {
		return false
	}
	// One question, no answer and no authority; up to one record beside them.
	if binary.BigEndian.Uint32(msg[4:]) != 1<<16 || binary.BigEndian.Uint16(msg[8:]) != 0 || msg[10] != 0 || msg[11] > 1 {
		return false
	}
	if !q.readName(msg[headerSize:]) {
		return false
	}
	at := headerSize + q.len
	if len(msg) < at+4 || binary.BigEndian.Uint16(msg[at+2:]) != miekg.ClassINET {
		return false
	}
	q.qtype = binary.BigEndian.Uint16(msg[at:])
	q.end = at + 4
	q.edns, q.do, q.size = false, false, miekg.MinMsgSize
	if msg[11] == 0 {
		return len(msg) == q.end
	}
	return q.readOPT(msg[q.end:])
}

// readName reads the name that b begins with.
func (q *plainQuery) readName(b []byte) bool {
	at := 0
	for at < len(b) {
		n := int(b[at])
		// One byte stays free for the end.
		if n > 63 || at+1+n >= len(b) || at+1+n >= maxName {
			return false
		}
		q.name[at] = b[at]
		if n == 0 {
			q.len = at + 1
			return at > 0
		}
		for i := at + 1; i <= at+n; i++ {
			c := plainBytes[b[i]]
			if c == 0 {
				return false
			}
			q.name[i] = c
		}
		at += 1 + n
	}
	return false
}

// plainBytes are the bytes of plain names, by those in either case.
var plainBytes = func() (t [256]byte) {
	for c := range t {
		switch {
		case 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_':
			t[c] = byte(c)
		case 'A' <= c && c <= 'Z':
			t[c] = byte(c - 'A' + 'a')
		}
	}
	return t
}()

// readOPT reads an OPT record of version 0 without options, which has to be all
// that b is.
func (q *plainQuery) readOPT(b []byte) bool {
	if len(b) != optSize || b[0] != 0 || binary.BigEndian.Uint16(b[1:]) != miekg.TypeOPT {
		return false
	}
	// No extended code, version 0, no flag but DO, no options.
	if b[5] != 0 || b[6] != 0 || b[7]&0x7F != 0 || b[8] != 0 || b[9] != 0 || b[10] != 0 {
		return false
	}
	q.edns, q.do = true, b[7] != 0
	q.size = min(max(miekg.MinMsgSize, int(binary.BigEndian.Uint16(b[3:]))), maxUDP)
	return true
}

// text is the name as package miekg writes it. No byte of a plain one has to be
// escaped.
func (q *plainQuery) text() string {
	b := make([]byte, 0, q.len)
	for at := 0; q.name[at] != 0; at += 1 + int(q.name[at]) {
		b = append(append(b, q.name[at+1:at+1+int(q.name[at])]...), '.')
	}
	return string(b)
}
