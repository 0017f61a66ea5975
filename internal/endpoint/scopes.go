package endpoint

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/fairlead-net/fairlead/internal/datapath"
	"github.com/fairlead-net/fairlead/internal/model"
)

// Scope is a set of networks whose members can reach the same instances. The
// host is a scope too: it reaches every network of its own.
type Scope struct {
	ID       datapath.Scope
	Host     bool
	Networks []model.NetworkName // sorted; of the host scope: all of this node
}

// scopes numbers the sets of networks in use and tells the data path which
// namespace is in which. Numbers stay over a restart, because the pinned maps
// speak of them: they are learned again from the namespaces' entries.
type scopes struct {
	path Path
	host uint64

	mu      sync.Mutex // guards following
	members map[uint64]map[model.NetworkName]int
	ids     map[string]datapath.Scope
	changed chan struct{}
}

func newScopes(p Path, host uint64) *scopes {
	return &scopes{
		path: p, host: host,
		members: map[uint64]map[model.NetworkName]int{},
		ids:     map[string]datapath.Scope{},
		changed: make(chan struct{}),
	}
}

// start enters the host's own namespace.
func (s *scopes) start() error {
	if err := s.path.SetScope(s.host, datapath.HostScope); err != nil {
		return fmt.Errorf("set the host's scope: %w", err)
	}
	return nil
}

// join puts a namespace into a network.
func (s *scopes) join(cookie uint64, n model.NetworkName) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.members[cookie] == nil {
		s.members[cookie] = map[model.NetworkName]int{}
	}
	s.members[cookie][n]++
	return s.set(cookie)
}

// leave takes a namespace out of a network.
func (s *scopes) leave(cookie uint64, n model.NetworkName) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.members[cookie]
	if m[n]--; m[n] <= 0 {
		delete(m, n)
	}
	if len(m) > 0 {
		return s.set(cookie)
	}
	delete(s.members, cookie)
	s.notify()
	return s.path.DeleteScope(cookie)
}

// set writes a namespace's scope. The caller holds mu.
func (s *scopes) set(cookie uint64) error {
	key := setKey(s.members[cookie])
	id, ok := s.ids[key]
	if !ok {
		var err error
		if id, err = s.number(cookie); err != nil {
			return err
		}
		s.ids[key] = id
	}
	s.notify()
	return s.path.SetScope(cookie, id)
}

// number chooses a scope's number: the one that the namespace already has in the
// data path if nobody else's set took it, or one above all in use.
func (s *scopes) number(cookie uint64) (datapath.Scope, error) {
	known, err := s.path.Scopes()
	if err != nil {
		return 0, fmt.Errorf("read the scopes: %w", err)
	}
	used := map[datapath.Scope]bool{datapath.HostScope: true}
	for _, id := range s.ids {
		used[id] = true
	}
	if id, ok := known[cookie]; ok && !used[id] {
		return id, nil
	}
	highest := datapath.HostScope
	for id := range used {
		highest = max(highest, id)
	}
	for _, id := range known {
		highest = max(highest, id)
	}
	return highest + 1, nil
}

// prune removes namespaces that the data path still knows and nobody owns.
func (s *scopes) prune() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	known, err := s.path.Scopes()
	if err != nil {
		return fmt.Errorf("read the scopes: %w", err)
	}
	for cookie := range known {
		if cookie == s.host || s.members[cookie] != nil {
			continue
		}
		if err := s.path.DeleteScope(cookie); err != nil {
			return fmt.Errorf("forget namespace %d: %w", cookie, err)
		}
	}
	return nil
}

// inUse lists the scopes that have a namespace, sorted by number, without the
// host's.
func (s *scopes) inUse() ([]Scope, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := map[datapath.Scope]bool{}
	var all []Scope
	for _, m := range s.members {
		id := s.ids[setKey(m)]
		if seen[id] {
			continue
		}
		seen[id] = true
		all = append(all, Scope{ID: id, Networks: sorted(m)})
	}
	slices.SortFunc(all, func(a, b Scope) int { return int(a.ID) - int(b.ID) })
	return all, s.changed
}

// touch tells whoever waits that the host's scope changed.
func (s *scopes) touch() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notify()
}

// notify wakes whoever waits. The caller holds mu.
func (s *scopes) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func sorted(m map[model.NetworkName]int) []model.NetworkName {
	var all []model.NetworkName
	for n := range m {
		all = append(all, n)
	}
	slices.Sort(all)
	return all
}

func setKey(m map[model.NetworkName]int) string {
	var b strings.Builder
	for _, n := range sorted(m) {
		b.WriteString(string(n))
		b.WriteByte(0)
	}
	return b.String()
}
