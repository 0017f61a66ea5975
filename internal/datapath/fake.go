package datapath

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
)

// Fake holds in memory what Kernel holds in the kernel, and accepts and refuses the same. It is for tests of reconcilers.
type Fake struct {
	mu        sync.Mutex // guards following
	frontends map[Frontend]Entry
	scopes    map[uint64]Scope
	endpoints map[endpointID]NetEndpoint
	veths     map[int]Veth
	v4, v6    netip.Prefix
}

type endpointID struct {
	network uint32
	addr    netip.Addr
}

var _ Maps = (*Fake)(nil)

// NewFake returns an empty Fake.
func NewFake() *Fake {
	return &Fake{
		frontends: map[Frontend]Entry{},
		scopes:    map[uint64]Scope{},
		endpoints: map[endpointID]NetEndpoint{},
		veths:     map[int]Veth{},
	}
}

// SetFrontend implements Maps.
func (k *Fake) SetFrontend(f Frontend, s State, backends []Backend) error {
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
	k.frontends[f] = e
	return nil
}

// DeleteFrontend implements Maps.
func (k *Fake) DeleteFrontend(f Frontend) error {
	f, err := f.check()
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.frontends, f)
	return nil
}

// Frontends implements Maps.
func (k *Fake) Frontends() (map[Frontend]Entry, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make(map[Frontend]Entry, len(k.frontends))
	for f, e := range k.frontends {
		out[f] = Entry{State: e.State, Backends: slices.Clone(e.Backends)}
	}
	return out, nil
}

// SetScope implements Maps.
func (k *Fake) SetScope(cookie uint64, s Scope) error {
	if err := checkScope(cookie, s); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.scopes[cookie] = s
	return nil
}

// DeleteScope implements Maps.
func (k *Fake) DeleteScope(cookie uint64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.scopes, cookie)
	return nil
}

// Scopes implements Maps.
func (k *Fake) Scopes() (map[uint64]Scope, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(k.scopes), nil
}

// SetEndpoint implements Maps.
func (k *Fake) SetEndpoint(e NetEndpoint) error {
	e, err := e.check()
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.endpoints[endpointID{e.Network, e.Addr}] = e
	return nil
}

// DeleteEndpoint implements Maps.
func (k *Fake) DeleteEndpoint(network uint32, addr netip.Addr) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.endpoints, endpointID{network, addr.Unmap()})
	return nil
}

// Endpoints implements Maps.
func (k *Fake) Endpoints() ([]NetEndpoint, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.SortedFunc(maps.Values(k.endpoints), NetEndpoint.compare), nil
}

// SetVIPPools implements Maps.
func (k *Fake) SetVIPPools(v4, v6 netip.Prefix) error {
	v4, v6, err := checkPools(v4, v6)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.v4, k.v6 = v4, v6
	return nil
}

// VIPPools implements Maps.
func (k *Fake) VIPPools() (v4, v6 netip.Prefix, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.v4, k.v6, nil
}

// AttachVeth remembers v; see Kernel.AttachVeth.
func (k *Fake) AttachVeth(v Veth) error {
	v, err := v.check()
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.veths[v.IfIndex] = v
	return nil
}

// DetachVeth forgets a veth; see Kernel.DetachVeth.
func (k *Fake) DetachVeth(ifindex int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.veths, ifindex)
	return nil
}

// Veths returns the attached veths in order of their index; see Kernel.Veths.
func (k *Fake) Veths() ([]Veth, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.SortedFunc(maps.Values(k.veths), Veth.compare), nil
}
