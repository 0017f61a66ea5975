package model

import (
	"errors"
	"slices"
	"time"
)

// ErrUnknownSession says that there is no such session, or no longer.
var ErrUnknownSession = errors.New("unknown session")

// Times of sessions; the values are Consul's.
const (
	// MinSessionTTL is the shortest TTL that a session may ask for, unless the
	// site is set otherwise.
	MinSessionTTL = 10 * time.Second
	// SessionTTLMax is the longest.
	SessionTTLMax = 24 * time.Hour
	// DefaultLockDelay is the lock delay of a session that asked for none.
	DefaultLockDelay = 15 * time.Second
	// MaxLockDelay is the longest that is kept; a session may ask for more.
	MaxLockDelay = 60 * time.Second
)

// SessionBehavior is what becomes of a session's locked keys when it ends.
type SessionBehavior string

// The behaviours of a session; the values are Consul's.
const (
	SessionRelease SessionBehavior = "release" // the key stays, its lock is released
	SessionDelete  SessionBehavior = "delete"  // the key goes with its lock
)

// Session holds locks on KV entries for a client. It ends when it is destroyed,
// when its TTL runs out without a renewal, or when its node or one of its checks
// goes away or becomes critical.
type Session struct {
	ID            string           `json:"id"` // UUID
	Name          string           `json:"name,omitempty"`
	Node          NodeName         `json:"node"`
	Behavior      SessionBehavior  `json:"behavior"`
	TTL           time.Duration    `json:"ttl,omitempty"` // 0: lives as long as its node and checks
	LockDelay     time.Duration    `json:"lock_delay"`    // 0: none
	NodeChecks    []CheckID        `json:"node_checks,omitempty"`
	ServiceChecks []SessionService `json:"service_checks,omitempty"`
	// TTLText is the TTL as its creator spelled it, which is how it is shown.
	TTLText string `json:"ttl_text,omitempty"`
	// Dying is set while the session ends in several steps: it takes no locks.
	Dying bool `json:"dying,omitempty"`
	Stamp
}

// SessionService is a service check that a session depends on.
type SessionService struct {
	ID        CheckID `json:"id"`
	Namespace string  `json:"namespace,omitempty"`
}

// Clone returns a copy that shares nothing with s.
func (s Session) Clone() Session {
	s.NodeChecks = slices.Clone(s.NodeChecks)
	s.ServiceChecks = slices.Clone(s.ServiceChecks)
	return s
}

// Alive is the mark that a session with a TTL is being renewed. Its key hangs on
// a lease and vanishes by itself; nothing else does.
type Alive struct {
	Session string `json:"session"`
	Lease   int64  `json:"lease"` // etcd's id of the lease
	Stamp
}

// LockDelay keeps a KV entry from being locked again for a while after a session
// that held its lock has ended otherwise than by releasing it.
type LockDelay struct {
	Key   string        `json:"key"`
	Delay time.Duration `json:"delay"`
	// Seen is when this process applied the record: the delay counts from there,
	// on the monotonic clock, so that it may be longer than asked but never
	// shorter.
	Seen time.Time `json:"-"`
	Stamp
}
