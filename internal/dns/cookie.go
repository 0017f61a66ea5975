package dns

import (
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"math/bits"
	"net/netip"
	"time"

	miekg "github.com/miekg/dns"
)

// Server cookies are those of RFC 9018: version 1, three reserved bytes, a time in
// seconds and SipHash-2-4 over the client's cookie, the former, and its address.
const (
	clientCookie = 8  // bytes
	serverCookie = 16 // bytes
	maxCookie    = 40 // bytes, client's and any server's

	cookieLife  = time.Hour        // how long one is taken
	cookieRenew = 30 * time.Minute // from which age on a new one is given
	cookieSkew  = 5 * time.Minute  // how far another server's clock may be ahead
)

// cookies makes and checks server cookies: whoever brings one back has received
// it at the address that it asks from.
type cookies struct {
	key [2]uint64 // secret
}

func newCookies(secret [16]byte) cookies {
	return cookies{[2]uint64{binary.LittleEndian.Uint64(secret[:]), binary.LittleEndian.Uint64(secret[8:])}}
}

// check reads the cookie of a query. It returns the cookie to answer with, empty
// without one; whether the asker's address is proved; and false if the option is
// malformed (RFC 7873, 5.2.2).
func (c *cookies) check(req *miekg.Msg, asker netip.Addr, now time.Time) (answer string, proved, ok bool) {
	opt := req.IsEdns0()
	if opt == nil {
		return "", false, true
	}
	for _, o := range opt.Option {
		o, is := o.(*miekg.EDNS0_COOKIE)
		if !is {
			continue
		}
		raw, err := hex.DecodeString(o.Cookie)
		if err != nil || len(raw) != clientCookie && len(raw) < 2*clientCookie || len(raw) > maxCookie {
			return "", false, false
		}
		client, server := raw[:clientCookie], raw[clientCookie:]
		age, proved := c.verify(client, server, asker, now)
		if !proved || age > cookieRenew {
			server = c.make(client, asker, uint32(now.Unix()))
		}
		return hex.EncodeToString(client) + hex.EncodeToString(server), proved, true
	}
	return "", false, true
}

func (c *cookies) verify(client, server []byte, asker netip.Addr, now time.Time) (age time.Duration, ok bool) {
	if len(server) != serverCookie || server[0] != 1 {
		return 0, false
	}
	made := binary.BigEndian.Uint32(server[4:])
	// Serial number arithmetic: the seconds wrap around (RFC 1982).
	age = time.Duration(int32(uint32(now.Unix())-made)) * time.Second
	if age > cookieLife || age < -cookieSkew {
		return 0, false
	}
	want := c.sum(client, server[:8], asker)
	return age, subtle.ConstantTimeCompare(want[:], server[8:]) == 1
}

func (c *cookies) make(client []byte, asker netip.Addr, seconds uint32) []byte {
	b := []byte{1, 0, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(b[4:], seconds)
	sum := c.sum(client, b, asker)
	return append(b, sum[:]...)
}

func (c *cookies) sum(client, head []byte, asker netip.Addr) [8]byte {
	in := make([]byte, 0, 32)
	in = append(in, client...)
	in = append(in, head...)
	in = append(in, asker.Unmap().AsSlice()...)
	var out [8]byte
	binary.LittleEndian.PutUint64(out[:], sipHash(c.key, in))
	return out
}

// sipHash is SipHash-2-4 (Aumasson and Bernstein, 2012).
func sipHash(key [2]uint64, in []byte) uint64 {
	v0, v1 := key[0]^0x736f6d6570736575, key[1]^0x646f72616e646f6d
	v2, v3 := key[0]^0x6c7967656e657261, key[1]^0x7465646279746573
	round := func() {
		v0 += v1
		v1 = bits.RotateLeft64(v1, 13) ^ v0
		v0 = bits.RotateLeft64(v0, 32)
		v2 += v3
		v3 = bits.RotateLeft64(v3, 16) ^ v2
		v0 += v3
		v3 = bits.RotateLeft64(v3, 21) ^ v0
		v2 += v1
		v1 = bits.RotateLeft64(v1, 17) ^ v2
		v2 = bits.RotateLeft64(v2, 32)
	}
	word := func(m uint64) {
		v3 ^= m
		round()
		round()
		v0 ^= m
	}
	length := len(in)
	for ; len(in) >= 8; in = in[8:] {
		word(binary.LittleEndian.Uint64(in))
	}
	var last [8]byte
	copy(last[:], in)
	last[7] = byte(length)
	word(binary.LittleEndian.Uint64(last[:]))
	v2 ^= 0xff
	for range 4 {
		round()
	}
	return v0 ^ v1 ^ v2 ^ v3
}
