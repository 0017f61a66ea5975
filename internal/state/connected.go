package state

import (
	"slices"

	"github.com/fairlead-net/fairlead/internal/model"
)

// Connected returns the instances at which a service is to be had with mutual
// TLS: its proxies, whatever they are called, and its own instances that speak it
// themselves. They are sorted by node, then id; the mark covers them, their
// checks and their nodes.
func (s *Snapshot) Connected(name model.ServiceName) ([]*Member, Mark) {
	return s.connected.under(key2(name, ""))
}

// speaksFor is the service that an instance is a way to with mutual TLS; empty if
// it is none.
func speaksFor(i *model.Instance) model.ServiceName {
	switch {
	case i.Kind == model.KindConnectProxy:
		return i.Proxy.Service
	case i.Native:
		return i.Service
	}
	return ""
}

func connectedKey(m *Member) []byte {
	return key3(speaksFor(m.Instance), m.Instance.Node, m.Instance.ID)
}

// reconnect brings the table of such instances up to date with a service whose
// members in gone were replaced by fresh, which is sorted.
func (e *edit) reconnect(before []*Member, gone map[memberKey]bool, fresh []*Member) {
	for _, m := range before {
		if to := speaksFor(m.Instance); to != "" && gone[m.key()] {
			i, stays := slices.BinarySearchFunc(fresh, m, func(f, m *Member) int { return f.key().compare(m.key()) })
			if !stays || speaksFor(fresh[i].Instance) != to {
				e.connected.delete(connectedKey(m))
			}
		}
	}
	for _, m := range fresh {
		if speaksFor(m.Instance) != "" {
			e.connected.put(connectedKey(m), m)
		}
	}
}
