package state

import (
	"github.com/fairlead-net/fairlead/internal/model"
)

// servers are the tables that only servers hold: they are in no agent's feed.
type servers struct {
	sessions   *table[*model.Session]       // id
	alive      *table[*model.Alive]         // session
	lockDelays *table[*model.LockDelay]     // key
	queries    *table[*model.PreparedQuery] // id
	tokens     *table[*model.ACLToken]      // accessor id
	policies   *table[*model.ACLPolicy]     // id
	roles      *table[*model.ACLRole]       // id
	caRoots    *table[*model.CARoot]        // id
	caKeys     *table[*model.CAKey]         // id of the root
	settings   *table[*model.Setting]       // name

	// Secondary indexes.
	locksOf       *lookup[*model.KV]       // session, key
	sessionsOf    *lookup[*model.Session]  // node, id
	tokenBySecret *lookup[*model.ACLToken] // secret
}

func emptyServers(rev model.Index) servers {
	return servers{
		sessions:   newTable[*model.Session](rev),
		alive:      newTable[*model.Alive](rev),
		lockDelays: newTable[*model.LockDelay](rev),
		queries:    newTable[*model.PreparedQuery](rev),
		tokens:     newTable[*model.ACLToken](rev),
		policies:   newTable[*model.ACLPolicy](rev),
		roles:      newTable[*model.ACLRole](rev),
		caRoots:    newTable[*model.CARoot](rev),
		caKeys:     newTable[*model.CAKey](rev),
		settings:   newTable[*model.Setting](rev),

		locksOf:       newLookup[*model.KV](rev),
		sessionsOf:    newLookup[*model.Session](rev),
		tokenBySecret: newLookup[*model.ACLToken](rev),
	}
}

func (s *servers) wakers() []func() {
	return []func(){
		s.sessions.wakeAll, s.alive.wakeAll, s.lockDelays.wakeAll, s.queries.wakeAll, s.tokens.wakeAll, s.policies.wakeAll, s.roles.wakeAll, s.caRoots.wakeAll, s.caKeys.wakeAll, s.settings.wakeAll,
	}
}

// serversEdit is servers being changed.
type serversEdit struct {
	sessions   *tableEdit[*model.Session]
	alive      *tableEdit[*model.Alive]
	lockDelays *tableEdit[*model.LockDelay]
	queries    *tableEdit[*model.PreparedQuery]
	tokens     *tableEdit[*model.ACLToken]
	policies   *tableEdit[*model.ACLPolicy]
	roles      *tableEdit[*model.ACLRole]
	caRoots    *tableEdit[*model.CARoot]
	caKeys     *tableEdit[*model.CAKey]
	settings   *tableEdit[*model.Setting]

	locksOf       lookupEdit[*model.KV]
	sessionsOf    lookupEdit[*model.Session]
	tokenBySecret lookupEdit[*model.ACLToken]
}

func (s *servers) edit(rev model.Index) serversEdit {
	return serversEdit{
		sessions:   s.sessions.edit(rev),
		alive:      s.alive.edit(rev),
		lockDelays: s.lockDelays.edit(rev),
		queries:    s.queries.edit(rev),
		tokens:     s.tokens.edit(rev),
		policies:   s.policies.edit(rev),
		roles:      s.roles.edit(rev),
		caRoots:    s.caRoots.edit(rev),
		caKeys:     s.caKeys.edit(rev),
		settings:   s.settings.edit(rev),

		locksOf:       editLookup(s.locksOf, rev),
		sessionsOf:    editLookup(s.sessionsOf, rev),
		tokenBySecret: editLookup(s.tokenBySecret, rev),
	}
}

// apply makes a change that concerns one of these tables.
func (e *serversEdit) apply(c *Change) {
	switch {
	case c.Session != nil:
		e.applySession(c.Session, c.Delete)
	case c.Alive != nil:
		set(e.alive, key(c.Alive.Session), c.Alive, c.Delete)
	case c.LockDelay != nil:
		set(e.lockDelays, key(c.LockDelay.Key), c.LockDelay, c.Delete)
	case c.Query != nil:
		set(e.queries, key(c.Query.ID), c.Query, c.Delete)
	case c.Token != nil:
		e.applyToken(c.Token, c.Delete)
	case c.Policy != nil:
		set(e.policies, key(c.Policy.ID), c.Policy, c.Delete)
	case c.Role != nil:
		set(e.roles, key(c.Role.ID), c.Role, c.Delete)
	case c.CARoot != nil:
		set(e.caRoots, key(c.CARoot.ID), c.CARoot, c.Delete)
	case c.CAKey != nil:
		set(e.caKeys, key(c.CAKey.Root), c.CAKey, c.Delete)
	case c.Setting != nil:
		set(e.settings, key(c.Setting.Name), c.Setting, c.Delete)
	}
}

// lock follows which session holds which entries.
func (e *serversEdit) lock(before, kv *model.KV, del bool) {
	if before != nil && before.Session != "" {
		e.locksOf.delete(key2(before.Session, before.Key))
	}
	if !del && kv.Session != "" {
		e.locksOf.put(key2(kv.Session, kv.Key), kv)
	}
}

func (e *serversEdit) applySession(s *model.Session, del bool) {
	if before, had := set(e.sessions, key(s.ID), s, del); had {
		e.sessionsOf.delete(key2(before.Node, before.ID))
	}
	if !del {
		e.sessionsOf.put(key2(s.Node, s.ID), s)
	}
}

func (e *serversEdit) applyToken(t *model.ACLToken, del bool) {
	if before, had := set(e.tokens, key(t.AccessorID), t, del); had {
		// The secret may already have gone to another token.
		if holder, ok := e.tokenBySecret.root.get(key(before.SecretID)); ok && holder == before {
			e.tokenBySecret.delete(key(before.SecretID))
		}
	}
	if !del {
		e.tokenBySecret.put(key(t.SecretID), t)
	}
}

// commit fills in dst and adds what wakes the waiters of what changed.
func (e *serversEdit) commit(dst *servers, wake *[]func()) {
	finish(&dst.sessions, e.sessions, wake)
	finish(&dst.alive, e.alive, wake)
	finish(&dst.lockDelays, e.lockDelays, wake)
	finish(&dst.queries, e.queries, wake)
	finish(&dst.tokens, e.tokens, wake)
	finish(&dst.policies, e.policies, wake)
	finish(&dst.roles, e.roles, wake)
	finish(&dst.caRoots, e.caRoots, wake)
	finish(&dst.caKeys, e.caKeys, wake)
	finish(&dst.settings, e.settings, wake)
	dst.locksOf = e.locksOf.root
	dst.sessionsOf = e.sessionsOf.root
	dst.tokenBySecret = e.tokenBySecret.root
}

// Session returns a session, nil if there is none.
func (s *Snapshot) Session(id string) (*model.Session, Mark) {
	v, mark, _ := s.sessions.get(key(id))
	return v, mark
}

// Sessions returns all sessions, sorted by id.
func (s *Snapshot) Sessions() ([]*model.Session, Mark) { return s.sessions.all() }

// NodeSessions returns a node's sessions, sorted by id. The mark covers all
// sessions.
func (s *Snapshot) NodeSessions(n model.NodeName) ([]*model.Session, Mark) {
	return under(s.sessionsOf, key2(n, "")), Mark{Index: s.sessions.index, Changed: s.sessions.watch()}
}

// Locked returns the KV entries that a session holds the lock of, sorted by key.
func (s *Snapshot) Locked(session string) []*model.KV {
	return under(s.locksOf, key2(session, ""))
}

// Alive returns the mark that a session is being renewed, nil if it is not.
func (s *Snapshot) Alive(session string) (*model.Alive, Mark) {
	v, mark, _ := s.alive.get(key(session))
	return v, mark
}

// AllAlive returns every such mark, sorted by session.
func (s *Snapshot) AllAlive() ([]*model.Alive, Mark) { return s.alive.all() }

// LockDelay returns what keeps an entry from being locked, nil if nothing does.
func (s *Snapshot) LockDelay(key string) (*model.LockDelay, Mark) {
	v, mark, _ := s.lockDelays.get(key)
	return v, mark
}

// LockDelays returns all of them, sorted by the entries' keys.
func (s *Snapshot) LockDelays() ([]*model.LockDelay, Mark) { return s.lockDelays.all() }

// Query returns a prepared query by id, nil if there is none.
func (s *Snapshot) Query(id string) (*model.PreparedQuery, Mark) {
	v, mark, _ := s.queries.get(key(id))
	return v, mark
}

// Queries returns all prepared queries, sorted by id.
func (s *Snapshot) Queries() ([]*model.PreparedQuery, Mark) { return s.queries.all() }

// Token returns a token by its accessor id, nil if there is none.
func (s *Snapshot) Token(accessor string) (*model.ACLToken, Mark) {
	v, mark, _ := s.tokens.get(key(accessor))
	return v, mark
}

// TokenBySecret returns the token of a secret, nil if there is none. The mark
// covers all tokens.
func (s *Snapshot) TokenBySecret(secret string) (*model.ACLToken, Mark) {
	t, _ := s.tokenBySecret.get(key(secret))
	return t, Mark{Index: s.tokens.index, Changed: s.tokens.watch()}
}

// Tokens returns all tokens, sorted by accessor id.
func (s *Snapshot) Tokens() ([]*model.ACLToken, Mark) { return s.tokens.all() }

// Policy returns a policy, nil if there is none of that id.
func (s *Snapshot) Policy(id string) (*model.ACLPolicy, Mark) {
	v, mark, _ := s.policies.get(key(id))
	return v, mark
}

// Policies returns all policies, sorted by id.
func (s *Snapshot) Policies() ([]*model.ACLPolicy, Mark) { return s.policies.all() }

// Role returns a role, nil if there is none of that id.
func (s *Snapshot) Role(id string) (*model.ACLRole, Mark) {
	v, mark, _ := s.roles.get(key(id))
	return v, mark
}

// Roles returns all roles, sorted by id.
func (s *Snapshot) Roles() ([]*model.ACLRole, Mark) { return s.roles.all() }

// CARoots returns all roots, sorted by id.
func (s *Snapshot) CARoots() ([]*model.CARoot, Mark) { return s.caRoots.all() }

// CAKey returns the private key of a root, nil if this node does not have it.
func (s *Snapshot) CAKey(root string) (*model.CAKey, Mark) {
	v, mark, _ := s.caKeys.get(key(root))
	return v, mark
}

// Setting returns a cluster-wide setting, nil if it was never set.
func (s *Snapshot) Setting(name string) (*model.Setting, Mark) {
	v, mark, _ := s.settings.get(key(name))
	return v, mark
}
