package state

import "github.com/fairlead-net/fairlead/internal/model"

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

func connectedKey(m *Member) string {
	return key3(speaksFor(m.Instance), m.Instance.Node, m.Instance.ID)
}

// reconnect brings the table of such instances up to date with a service whose
// members in gone were replaced by fresh. An instance that changed its service may
// have been written for the other one already.
func (e *edit) reconnect(before []*Member, gone map[memberKey]bool, fresh []*Member) {
	for _, m := range fresh {
		if speaksFor(m.Instance) != "" {
			e.connected.put(connectedKey(m), m)
		}
	}
	for k := range gone {
		m := memberAt(before, k)
		if m == nil || speaksFor(m.Instance) == "" {
			continue
		}
		if now, ok := e.connected.get(connectedKey(m)); ok && now == m {
			e.connected.delete(connectedKey(m))
		}
	}
}
