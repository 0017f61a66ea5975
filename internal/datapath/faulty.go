package datapath

import "net/netip"

// faulty asks fail before every operation.
type faulty struct {
	m    Maps
	fail func(op string) error
}

var _ Maps = (*faulty)(nil)

// NewFaulty returns m, but before every operation fail is called with the name of the method, such as "SetFrontend"; if it returns
// an error, that is the operation's result and m is not asked. fail is called by the goroutines that use the result.
func NewFaulty(m Maps, fail func(op string) error) Maps {
	return &faulty{m: m, fail: fail}
}

func (f *faulty) SetFrontend(fe Frontend, s State, b []Backend) error {
	if err := f.fail("SetFrontend"); err != nil {
		return err
	}
	return f.m.SetFrontend(fe, s, b)
}

func (f *faulty) DeleteFrontend(fe Frontend) error {
	if err := f.fail("DeleteFrontend"); err != nil {
		return err
	}
	return f.m.DeleteFrontend(fe)
}

func (f *faulty) Frontends() (map[Frontend]Entry, error) {
	if err := f.fail("Frontends"); err != nil {
		return nil, err
	}
	return f.m.Frontends()
}

func (f *faulty) SetScope(cookie uint64, s Scope) error {
	if err := f.fail("SetScope"); err != nil {
		return err
	}
	return f.m.SetScope(cookie, s)
}

func (f *faulty) DeleteScope(cookie uint64) error {
	if err := f.fail("DeleteScope"); err != nil {
		return err
	}
	return f.m.DeleteScope(cookie)
}

func (f *faulty) Scopes() (map[uint64]Scope, error) {
	if err := f.fail("Scopes"); err != nil {
		return nil, err
	}
	return f.m.Scopes()
}

func (f *faulty) SetEndpoint(e NetEndpoint) error {
	if err := f.fail("SetEndpoint"); err != nil {
		return err
	}
	return f.m.SetEndpoint(e)
}

func (f *faulty) DeleteEndpoint(network uint32, addr netip.Addr) error {
	if err := f.fail("DeleteEndpoint"); err != nil {
		return err
	}
	return f.m.DeleteEndpoint(network, addr)
}

func (f *faulty) Endpoints() ([]NetEndpoint, error) {
	if err := f.fail("Endpoints"); err != nil {
		return nil, err
	}
	return f.m.Endpoints()
}

func (f *faulty) SetVIPPools(v4, v6 netip.Prefix) error {
	if err := f.fail("SetVIPPools"); err != nil {
		return err
	}
	return f.m.SetVIPPools(v4, v6)
}

func (f *faulty) VIPPools() (v4, v6 netip.Prefix, err error) {
	if err := f.fail("VIPPools"); err != nil {
		return netip.Prefix{}, netip.Prefix{}, err
	}
	return f.m.VIPPools()
}
