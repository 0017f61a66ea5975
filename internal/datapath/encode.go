package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"net/netip"

	"github.com/cilium/ebpf"
)

// words returns an address as the programs hold it: 16 bytes in network order, IPv4 mapped into IPv6.
func words(a netip.Addr) (w [4]uint32) {
	b := a.As16()
	for i := range w {
		w[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return w
}

func fromWords(w [4]uint32) netip.Addr {
	var b [16]byte
	for i := range w {
		binary.NativeEndian.PutUint32(b[4*i:], w[i])
	}
	return netip.AddrFrom16(b).Unmap()
}

// swap16 converts a port between host and network order.
func swap16(port uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], port)
	return binary.NativeEndian.Uint16(b[:])
}

func (f Frontend) encode() connectFrontendKey {
	k := connectFrontendKey{Scope: uint32(f.Scope), Port: swap16(f.Port), Proto: f.Proto}
	k.Addr.W = words(f.Addr)
	return k
}

func decodeFrontend(k connectFrontendKey) Frontend {
	return Frontend{Scope: Scope(k.Scope), Proto: k.Proto, Addr: fromWords(k.Addr.W), Port: swap16(k.Port)}
}

// tagOf is the same function as in bpf/connect.c. A program that finds another tag than its key's knows that the element it reads was
// recycled under it.
func tagOf(k connectFrontendKey) uint32 {
	return k.Addr.W[3]*0x9e3779b1 ^ k.Scope*0x85ebca6b ^ uint32(k.Port)<<16 ^ uint32(k.Proto)
}

// aliasTable returns, for each backend, the share out of 2^32 of the draws of its column that it keeps, and the backend that gets the
// others, so that a pick costs the same however many backends there are. (M. D. Vose, "A linear algorithm for generating random
// numbers with a given distribution", IEEE Transactions on Software Engineering 17(9), 1991; in integers, so that rounding cannot give
// a backend of weight zero a share.)
func aliasTable(backends []Backend) (prob []uint32, alias []int) {
	n := len(backends)
	prob, alias = make([]uint32, n), make([]int, n)
	scaled := make([]uint64, n) // weights times n: on average one total per column
	var total uint64
	for i, b := range backends {
		scaled[i] = uint64(b.Weight) * uint64(n)
		total += uint64(b.Weight)
		alias[i] = i
	}
	if total == 0 {
		return prob, alias
	}
	var small, large []int
	for i := range scaled {
		if scaled[i] < total {
			small = append(small, i)
		} else {
			large = append(large, i)
		}
	}
	for len(small) > 0 {
		s, l := small[len(small)-1], large[len(large)-1]
		small = small[:len(small)-1]
		share, _ := bits.Div64(scaled[s]>>32, scaled[s]<<32, total)
		prob[s], alias[s] = uint32(share), l
		scaled[l] -= total - scaled[s]
		if scaled[l] < total {
			large = large[:len(large)-1]
			small = append(small, l)
		}
	}
	for _, l := range large {
		prob[l] = math.MaxUint32
	}
	return prob, alias
}

// slotsOf returns the elements of the slots array that make up a backend set.
func slotsOf(set uint32, backends []Backend) []connectSlot {
	prob, alias := aliasTable(backends)
	vals := make([]connectSlot, len(backends))
	for i, b := range backends {
		v := &vals[i]
		v.Addr.W, v.Port = words(b.Addr.Addr()), swap16(b.Addr.Port())
		v.Prob, v.Alias, v.Weight, v.Set = prob[i], uint32(alias[i]), b.Weight, set
	}
	return vals
}

// encodePool fills in one half of the settings; the last value is the prefix length plus one, zero for no pool.
func encodePool(p netip.Prefix) (network, mask [4]uint32, length uint32) {
	if !p.IsValid() {
		return network, mask, 0
	}
	n := p.Bits()
	if p.Addr().Is4() {
		n += 96
	}
	var m [16]byte
	for i := range n {
		m[i/8] |= 0x80 >> (i % 8)
	}
	return words(p.Addr()), words(netip.AddrFrom16(m)), uint32(p.Bits()) + 1
}

func decodePool(network [4]uint32, length uint32) netip.Prefix {
	if length == 0 {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(fromWords(network), int(length)-1)
}

// batch is how many elements are read from a map at once. It must exceed the longest hash chain.
const batch = 4096

// readAll calls each for every element of a hash map.
func readAll[K, V any](m *ebpf.Map, each func(K, V)) error {
	keys, vals := make([]K, batch), make([]V, batch)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, vals, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("read map %s: %w", m, err)
		}
		for i := range n {
			each(keys[i], vals[i])
		}
		if err != nil {
			return nil
		}
	}
}
