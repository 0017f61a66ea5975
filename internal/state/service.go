package state

import (
	"cmp"
	"maps"
	"slices"
	"sync"

	"github.com/fairlead-net/fairlead/internal/model"
)

// Member is an instance with what health answers need beside it.
type Member struct {
	// Node is never nil; while the node's own record is missing it has only its
	// name.
	Node     *model.Node
	Instance *model.Instance
	// Checks are the node's and then the instance's, each sorted by id.
	Checks []*model.Check
}

// Status is the worst state of the member's checks; passing without any.
func (m *Member) Status() model.Status {
	worst := model.Passing
	for _, c := range m.Checks {
		worst = worst.Worse(c.Status)
	}
	return worst
}

// Addr is where the instance says it can be reached: its address, or its node's.
func (m *Member) Addr() string {
	if m.Instance.Address != "" {
		return m.Instance.Address
	}
	return m.Node.Address
}

// Service is all instances of one service, ready to be answered from.
type Service struct {
	Name    model.ServiceName
	VIP     *model.VIP // nil until one is allocated
	Members []*Member  // sorted by node, then id
	Index   model.Index
}

// Service returns one service; without instances it has no members, and is never
// nil. The mark covers instances, their checks, their nodes and the VIP.
func (s *Snapshot) Service(name model.ServiceName) (*Service, Mark) {
	svc, mark, ok := s.services.get(key(name))
	if !ok {
		svc = &Service{Name: name, Index: mark.Index}
	}
	return svc, mark
}

// Services returns every service that has an instance, sorted by name. Its mark
// covers every service.
func (s *Snapshot) Services() ([]*Service, Mark) {
	return s.serviceList(), Mark{Index: s.services.index, Changed: s.services.watch()}
}

// ServiceTags returns the sorted names of services with the union of their
// instances' tags; its mark changes with names and tags only (and not with
// health).
func (s *Snapshot) ServiceTags() (map[model.ServiceName][]string, Mark) {
	return s.tagMap(), Mark{Index: s.tags.index, Changed: s.tags.watch()}
}

// ServiceChecks returns the checks of a service's instances, sorted by node and
// id. Its mark is the service's.
func (s *Snapshot) ServiceChecks(name model.ServiceName) ([]*model.Check, Mark) {
	svc, mark := s.Service(name)
	list := []*model.Check{}
	for _, m := range svc.Members {
		for _, c := range m.Checks {
			if c.ServiceID != "" {
				list = append(list, c)
			}
		}
	}
	slices.SortFunc(list, func(a, b *model.Check) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.ID, b.ID))
	})
	return list, mark
}

func listServices(t *table[*Service]) func() []*Service {
	return sync.OnceValue(func() []*Service {
		list := make([]*Service, 0, t.size)
		t.tree.walk(func(_ string, e entry[*Service]) bool {
			if len(e.val.Members) > 0 {
				list = append(list, e.val)
			}
			return false
		})
		return list
	})
}

func mapTags(t *table[[]string]) func() map[model.ServiceName][]string {
	return sync.OnceValue(func() map[model.ServiceName][]string {
		m := make(map[model.ServiceName][]string, t.size)
		t.tree.walk(func(k string, e entry[[]string]) bool {
			m[model.ServiceName(k)] = e.val
			return false
		})
		return m
	})
}

// memberKey says which instance a member is.
type memberKey struct {
	node model.NodeName
	id   model.ServiceID
}

func (k memberKey) compare(o memberKey) int {
	return cmp.Or(cmp.Compare(k.node, o.node), cmp.Compare(k.id, o.id))
}

func (m *Member) against(k memberKey) int { return m.key().compare(k) }

// memberAt is the member of a key in a sorted list; nil if it is not there.
func memberAt(list []*Member, k memberKey) *Member {
	if i, found := slices.BinarySearchFunc(list, k, (*Member).against); found {
		return list[i]
	}
	return nil
}

func (m *Member) key() memberKey { return memberKey{m.Instance.Node, m.Instance.ID} }

// touched collects what has to be rebuilt: the services that a change concerns.
type touched map[model.ServiceName]*touchedService

type touchedService struct {
	members map[memberKey]bool
	// tags: an instance came, went or changed, and not only its health.
	tags bool
}

func (t touched) service(name model.ServiceName) *touchedService {
	s := t[name]
	if s == nil {
		s = &touchedService{members: map[memberKey]bool{}}
		t[name] = s
	}
	return s
}

// instance notes that an instance changed.
func (t touched) instance(i *model.Instance) {
	t.health(i)
	t[i.Service].tags = true
}

// health notes that a check or the node of an instance changed.
func (t touched) health(i *model.Instance) {
	t.service(i.Service).members[memberKey{i.Node, i.ID}] = true
}

// rebuild makes the services in e.touched anew from the edited tables, keeping
// the members that nothing touched.
func (e *edit) rebuild() {
	for node := range e.touchedNodes {
		here, _ := e.instances.tree.root.seek(key2(node, ""))
		here.walk(func(_ string, en entry[*model.Instance]) bool {
			e.touched.health(en.val)
			return false
		})
	}
	nodes := nodeParts{edit: e, seen: map[model.NodeName]*nodePart{}}
	for name, t := range e.touched {
		svc := e.rebuildService(name, t.members, nodes)
		if t.tags {
			e.retag(svc)
		}
	}
}

func (e *edit) rebuildService(name model.ServiceName, keys map[memberKey]bool, nodes nodeParts) *Service {
	old, existed := e.services.get(key(name))
	var before []*Member
	if existed {
		before = old.Members
	}
	fresh := e.newMembers(name, keys, nodes)
	e.reconnect(before, keys, fresh)
	svc := &Service{Name: name, Members: mergeMembers(before, keys, fresh), Index: e.rev}
	svc.VIP, _ = e.vips.get(key(name))
	switch {
	case len(svc.Members) > 0 || svc.VIP != nil:
		e.services.put(key(name), svc)
	case existed:
		e.services.delete(key(name))
	}
	return svc
}

// newMembers returns the members of a service, out of keys, that there are now;
// sorted.
func (e *edit) newMembers(name model.ServiceName, keys map[memberKey]bool, nodes nodeParts) []*Member {
	list := make([]*Member, 0, len(keys))
	for k := range keys {
		inst, ok := e.instances.get(key2(k.node, k.id))
		if !ok || inst.Service != name {
			continue
		}
		list = append(list, nodes.of(k.node).member(e.checksOf.root, inst))
	}
	slices.SortFunc(list, func(a, b *Member) int { return a.key().compare(b.key()) })
	return list
}

// mergeMembers returns before without the members in gone, and with those of
// fresh, whose keys are among those of gone; both lists and the result are sorted.
// A service has thousands of members and a change a few, so it looks at few.
func mergeMembers(before []*Member, gone map[memberKey]bool, fresh []*Member) []*Member {
	out := make([]*Member, 0, len(before)+len(fresh))
	for _, k := range slices.SortedFunc(maps.Keys(gone), memberKey.compare) {
		i, found := slices.BinarySearchFunc(before, k, (*Member).against)
		out, before = append(out, before[:i]...), before[i:]
		if found {
			before = before[1:]
		}
		if len(fresh) > 0 && fresh[0].key() == k {
			out, fresh = append(out, fresh[0]), fresh[1:]
		}
	}
	return append(out, before...)
}

// retag brings the table of tags up to date, without touching it where names
// and tags stay as they are.
func (e *edit) retag(svc *Service) {
	k := key(svc.Name)
	if len(svc.Members) == 0 {
		e.tags.delete(k)
		return
	}
	union := []string{}
	for _, m := range svc.Members {
		union = append(union, m.Instance.Tags...)
	}
	slices.Sort(union)
	union = slices.Compact(union)
	if before, ok := e.tags.get(k); !ok || !slices.Equal(before, union) {
		e.tags.put(k, union)
	}
}

// nodePart is what all members on one node have in common.
type nodePart struct {
	node   *model.Node
	checks []*model.Check
}

// nodeParts looks each node up once per rebuild, not once per member.
type nodeParts struct {
	edit *edit
	seen map[model.NodeName]*nodePart
}

func (p nodeParts) of(name model.NodeName) *nodePart {
	if part := p.seen[name]; part != nil {
		return part
	}
	node, ok := p.edit.nodes.get(key(name))
	if !ok {
		node = &model.Node{Name: name}
	}
	part := &nodePart{node: node, checks: under(p.edit.checksOf.root, key3(name, "", ""))}
	p.seen[name] = part
	return part
}

func (p *nodePart) member(checksOf *lookup[*model.Check], inst *model.Instance) *Member {
	own := under(checksOf, key3(inst.Node, inst.ID, ""))
	return &Member{Node: p.node, Instance: inst, Checks: slices.Concat(p.checks, own)}
}
