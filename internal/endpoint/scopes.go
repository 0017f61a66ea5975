package endpoint

import (
	"errors"
	"fmt"
	"maps"
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

// ScopeMap is the data path's record of which namespace is in which scope.
type ScopeMap interface {
	SetScope(cookie uint64, s datapath.Scope) error
	DeleteScope(cookie uint64) error
	Scopes() (map[uint64]datapath.Scope, error)
}

// scopes numbers the sets of networks in use and tells the data path which
// namespace is in which. Numbers stay over a restart, because the pinned maps
// speak of them: they are learned again from the namespaces' entries. That takes
// all of a namespace's networks, so nothing is told before the first sync.
type scopes struct {
	path ScopeMap
	host uint64

	// turn is held while the path is told, so that what it hears last is the
	// newest. Taken before mu.
	turn sync.Mutex

	mu      sync.Mutex // guards following
	opened  bool
	places  map[model.EndpointID]membership
	members map[uint64]map[model.NetworkName]int // by cookie: endpoints in each network
	sets    map[uint64]setKey                    // by cookie: the set that it has
	users   map[setKey]int
	ids     map[setKey]datapath.Scope // of all sets ever in use: a number is not given twice
	next    datapath.Scope
	changed chan struct{}
}

// membership is what one endpoint does for its namespace.
type membership struct {
	cookie  uint64
	network model.NetworkName
}

func newScopes(p ScopeMap, host uint64) *scopes {
	return &scopes{
		path: p, host: host,
		places:  map[model.EndpointID]membership{},
		members: map[uint64]map[model.NetworkName]int{},
		sets:    map[uint64]setKey{},
		users:   map[setKey]int{},
		ids:     map[setKey]datapath.Scope{},
		next:    datapath.HostScope + 1,
		changed: make(chan struct{}),
	}
}

// put says which namespace and network an endpoint is in.
func (s *scopes) put(id model.EndpointID, cookie uint64, n model.NetworkName) error {
	return s.move(id, &membership{cookie, n})
}

// drop forgets an endpoint. One that is not known is no error.
func (s *scopes) drop(id model.EndpointID) error { return s.move(id, nil) }

func (s *scopes) move(id model.EndpointID, to *membership) error {
	s.turn.Lock()
	defer s.turn.Unlock()
	s.mu.Lock()
	was, had := s.places[id]
	delete(s.places, id)
	if had {
		m := s.members[was.cookie]
		if m[was.network]--; m[was.network] == 0 {
			delete(m, was.network)
		}
	}
	if to != nil {
		s.places[id] = *to
		if s.members[to.cookie] == nil {
			s.members[to.cookie] = map[model.NetworkName]int{}
		}
		s.members[to.cookie][to.network]++
	}
	if had {
		s.settle(was.cookie)
	}
	if to != nil {
		s.settle(to.cookie)
	}
	opened := s.opened
	s.mu.Unlock()

	if !opened {
		return nil
	}
	var errs []error
	if had && (to == nil || to.cookie != was.cookie) {
		errs = append(errs, s.tell(was.cookie))
	}
	if to != nil {
		errs = append(errs, s.tell(to.cookie))
	}
	return errors.Join(errs...)
}

// settle brings the bookkeeping of a namespace's set up to date and wakes
// whoever waits if a set came into use or went out of it. The caller holds mu.
func (s *scopes) settle(cookie uint64) {
	was, had := s.sets[cookie]
	now := keyOf(s.members[cookie])
	if len(s.members[cookie]) == 0 {
		delete(s.members, cookie)
		delete(s.sets, cookie)
	} else {
		s.sets[cookie] = now
		if s.users[now]++; s.users[now] == 1 && s.opened {
			s.number(now)
			s.notify()
		}
	}
	if !had {
		return
	}
	if s.users[was]--; s.users[was] == 0 {
		delete(s.users, was)
		s.notify()
	}
}

// number gives a set the next number unless it has one. The caller holds mu.
func (s *scopes) number(k setKey) {
	if s.ids[k] == 0 {
		s.ids[k] = s.next
		s.next++
	}
}

// tell brings the path's entry of one namespace about. The caller holds turn.
func (s *scopes) tell(cookie uint64) error {
	s.mu.Lock()
	k, member := s.sets[cookie]
	id := s.ids[k]
	s.mu.Unlock()
	if !member {
		return s.path.DeleteScope(cookie)
	}
	return s.path.SetScope(cookie, id)
}

// sync compares the path's entries with what is known here and corrects them.
// With prune, namespaces that nobody is in are removed; else they stay, since
// their endpoints may not have been found yet. The first call numbers the sets
// that were put so far, those that the path has numbers for keeping theirs.
func (s *scopes) sync(prune bool) error {
	s.turn.Lock()
	defer s.turn.Unlock()
	have, err := s.path.Scopes()
	if err != nil {
		return fmt.Errorf("read the scopes: %w", err)
	}
	s.open(have)
	s.mu.Lock()
	want := map[uint64]datapath.Scope{s.host: datapath.HostScope}
	for cookie, k := range s.sets {
		want[cookie] = s.ids[k]
	}
	s.mu.Unlock()
	var errs []error
	for cookie, id := range want {
		if have[cookie] != id {
			errs = append(errs, s.path.SetScope(cookie, id))
		}
	}
	for cookie := range have {
		if _, ok := want[cookie]; !ok && prune {
			errs = append(errs, s.path.DeleteScope(cookie))
		}
	}
	return errors.Join(errs...)
}

func (s *scopes) open(have map[uint64]datapath.Scope) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.opened {
		return
	}
	s.opened = true
	taken := map[datapath.Scope]bool{0: true, datapath.HostScope: true}
	for _, id := range have {
		s.next = max(s.next, id+1)
	}
	cookies := slices.Sorted(maps.Keys(s.sets))
	for _, cookie := range cookies {
		if k, id := s.sets[cookie], have[cookie]; s.ids[k] == 0 && !taken[id] {
			s.ids[k] = id
			taken[id] = true
		}
	}
	for _, cookie := range cookies {
		s.number(s.sets[cookie])
	}
	s.notify()
}

// inUse lists the scopes that have a namespace, sorted by number, without the
// host's.
func (s *scopes) inUse() ([]Scope, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Scope
	for k := range s.users {
		if id := s.ids[k]; id != 0 {
			all = append(all, Scope{ID: id, Networks: k.networks()})
		}
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

// setKey is a set of networks in a form that can be compared: their names,
// sorted, separated by what no name has.
type setKey string

const setSeparator = "\x00"

func keyOf(m map[model.NetworkName]int) setKey {
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, string(n))
	}
	slices.Sort(names)
	return setKey(strings.Join(names, setSeparator))
}

func (k setKey) networks() []model.NetworkName {
	var all []model.NetworkName
	for n := range strings.SplitSeq(string(k), setSeparator) {
		all = append(all, model.NetworkName(n))
	}
	return all
}
