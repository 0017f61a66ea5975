package datapath

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
)

func addrPort(w [4]uint32, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(fromWords(w), swap16(port))
}

// SetScope implements Maps.
func (k *Kernel) SetScope(cookie uint64, s Scope) error {
	if err := checkScope(cookie, s); err != nil {
		return err
	}
	if err := k.maps[connectMapScopes].Put(cookie, uint32(s)); err != nil {
		return fmt.Errorf("put scope of namespace %d: %w", cookie, err)
	}
	return nil
}

// DeleteScope implements Maps.
func (k *Kernel) DeleteScope(cookie uint64) error {
	if err := k.maps[connectMapScopes].Delete(cookie); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete scope of namespace %d: %w", cookie, err)
	}
	return nil
}

// Scopes implements Maps.
func (k *Kernel) Scopes() (map[uint64]Scope, error) {
	out := map[uint64]Scope{}
	err := readAll(k.maps[connectMapScopes], func(cookie uint64, s uint32) { out[cookie] = Scope(s) })
	return out, err
}

// SetEndpoint implements Maps.
func (k *Kernel) SetEndpoint(e NetEndpoint) error {
	e, err := e.check()
	if err != nil {
		return err
	}
	key := endpointKey(e.Network, e.Addr)
	val := vethEndpointEntry{Ifindex: e.IfIndex, Mac: e.MAC}
	if err := k.maps[vethMapEndpoints].Put(&key, &val); err != nil {
		return fmt.Errorf("put endpoint %s of network %d: %w", e.Addr, e.Network, err)
	}
	return nil
}

// DeleteEndpoint implements Maps.
func (k *Kernel) DeleteEndpoint(network uint32, addr netip.Addr) error {
	key := endpointKey(network, addr.Unmap())
	if err := k.maps[vethMapEndpoints].Delete(&key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete endpoint %s of network %d: %w", addr, network, err)
	}
	return nil
}

// Endpoints implements Maps.
func (k *Kernel) Endpoints() ([]NetEndpoint, error) {
	var out []NetEndpoint
	err := readAll(k.maps[vethMapEndpoints], func(key vethEndpointKey, v vethEndpointEntry) {
		out = append(out, NetEndpoint{Network: key.Network, Addr: fromWords(key.Addr.W), IfIndex: v.Ifindex, MAC: v.Mac})
	})
	slices.SortFunc(out, NetEndpoint.compare)
	return out, err
}

func endpointKey(network uint32, addr netip.Addr) vethEndpointKey {
	key := vethEndpointKey{Network: network}
	key.Addr.W = words(addr)
	return key
}

// SetVIPPools implements Maps.
func (k *Kernel) SetVIPPools(v4, v6 netip.Prefix) error {
	v4, v6, err := checkPools(v4, v6)
	if err != nil {
		return err
	}
	var s connectSettings
	s.V4.Net.W, s.V4.Mask.W, s.Bits4 = encodePool(v4)
	s.V6.Net.W, s.V6.Mask.W, s.Bits6 = encodePool(v6)
	if err := k.maps[connectMapConfig].Put(uint32(0), &s); err != nil {
		return fmt.Errorf("put VIP pools: %w", err)
	}
	return nil
}

// VIPPools implements Maps.
func (k *Kernel) VIPPools() (v4, v6 netip.Prefix, err error) {
	var s connectSettings
	if err := k.maps[connectMapConfig].Lookup(uint32(0), &s); err != nil {
		return v4, v6, fmt.Errorf("read VIP pools: %w", err)
	}
	return decodePool(s.V4.Net.W, s.Bits4), decodePool(s.V6.Net.W, s.Bits6), nil
}
