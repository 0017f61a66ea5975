package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// ErrNoInstance says that a service has no healthy instance, or that nobody has
// heard of it.
var ErrNoInstance = errors.New("no healthy instance")

// Selection names what a Resolver follows: the healthy instances of a service.
type Selection struct {
	Service string
	Tag     string // only those that have it; empty: all
	Site    string // the datacenter; empty: the agent's
}

func (s Selection) String() string {
	name := s.Service
	if s.Tag != "" {
		name = s.Tag + "." + name
	}
	if s.Site != "" {
		name += "." + s.Site
	}
	return name
}

// Instance is a healthy instance of a service.
type Instance struct {
	ID     string
	Node   string
	Host   string // an IP address, or a name, as it was registered
	Port   int    // 0 if it was registered without one
	Tags   []string
	Meta   map[string]string
	Status string // "passing" or "warning"
	Weight int    // its share beside the others'; at least 1
}

// Addr is the instance's "host:port".
func (i Instance) Addr() string { return net.JoinHostPort(i.Host, strconv.Itoa(i.Port)) }

// key tells instances apart: one that came back at another address is another.
func (i Instance) key() string { return i.Node + "/" + i.ID + "/" + i.Addr() }

// Snapshot is what is known of a selection at one time. It never changes.
type Snapshot struct {
	// Instances are those that are healthy, sorted by node and id. While the agent
	// is away they are those of its last answer.
	Instances []Instance
	// Known is false until the agent has answered for the first time.
	Known bool
	// Err says why the agent does not answer; nil while it does.
	Err error

	changed chan struct{}
}

// Changed is closed when there is a newer snapshot.
func (s *Snapshot) Changed() <-chan struct{} { return s.changed }

// Resolver follows services. It watches each from its first use until Close, and
// goes on with what it knows while the agent is away. It is safe for concurrent use.
type Resolver struct {
	client *Client
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex // guards following
	targets map[Selection]*Target
}

// NewResolver returns a resolver that asks the client's agent. It must be closed.
func NewResolver(c *Client) *Resolver {
	ctx, cancel := context.WithCancel(context.Background())
	return &Resolver{client: c, ctx: ctx, cancel: cancel, targets: map[Selection]*Target{}}
}

// Close ends all watches and waits until they have ended. Snapshots stay as they
// were.
func (r *Resolver) Close() {
	r.mu.Lock()
	r.cancel()
	r.mu.Unlock()
	r.wg.Wait()
}

// Service follows all healthy instances of a service.
func (r *Resolver) Service(name string) *Target { return r.Select(Selection{Service: name}) }

// Select follows the instances that s names. Each selection is watched once,
// however often it is asked for; the names should come from configuration, not from
// whoever sends requests.
func (r *Resolver) Select(s Selection) *Target {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t := r.targets[s]; t != nil {
		return t
	}
	t := &Target{selection: s}
	t.now.Store(&Snapshot{changed: make(chan struct{})})
	r.targets[s] = t
	if r.ctx.Err() == nil {
		r.wg.Go(func() { t.watch(r.ctx, r.client) })
	}
	return t
}

// Target is a selection that a Resolver follows.
type Target struct {
	selection Selection
	now       atomic.Pointer[Snapshot]
}

// Snapshot is what is known now. It takes no lock and makes no call.
func (t *Target) Snapshot() *Snapshot { return t.now.Load() }

// Wait returns the first snapshot with a healthy instance in it. When ctx ends
// before, its error is ErrNoInstance, and tells why.
func (t *Target) Wait(ctx context.Context) (*Snapshot, error) {
	for {
		s := t.Snapshot()
		if len(s.Instances) > 0 {
			return s, nil
		}
		select {
		case <-s.changed:
		case <-ctx.Done():
			return s, t.none(s, ctx.Err())
		}
	}
}

// none is the error for a snapshot without instances.
func (t *Target) none(s *Snapshot, cause error) error {
	err := fmt.Errorf("service %s: %w", t.selection, ErrNoInstance)
	if why := cmp.Or(s.Err, cause); why != nil {
		err = fmt.Errorf("%w: %w", err, why)
	}
	return err
}

func (t *Target) watch(ctx context.Context, c *Client) {
	q := url.Values{"stale": {""}} // an answer without a leader is better than none
	if t.selection.Tag != "" {
		q.Set("tag", t.selection.Tag)
	}
	if t.selection.Site != "" {
		q.Set("dc", t.selection.Site)
	}
	path := "/v1/health/service/" + url.PathEscape(t.selection.Service)
	follow(ctx, func(ctx context.Context, index uint64) (uint64, error) {
		entries, next, err := blocking[[]healthEntry](ctx, c, path, maps.Clone(q), index)
		if err == nil {
			t.set(healthy(entries), true, nil)
		}
		return next, err
	}, func(err error) {
		old := t.Snapshot()
		t.set(old.Instances, old.Known, err)
	})
}

// set puts a new snapshot in the place of the old one, unless it is the same.
func (t *Target) set(instances []Instance, known bool, err error) {
	old := t.Snapshot()
	same := old.Known == known && (old.Err == nil) == (err == nil) && slices.EqualFunc(old.Instances, instances, Instance.equal)
	if same && err == nil {
		return
	}
	t.now.Store(&Snapshot{Instances: instances, Known: known, Err: err, changed: make(chan struct{})})
	close(old.changed)
}

func (i Instance) equal(o Instance) bool {
	return i.key() == o.key() && i.Status == o.Status && i.Weight == o.Weight &&
		slices.Equal(i.Tags, o.Tags) && maps.Equal(i.Meta, o.Meta)
}

// healthEntry is an element of the answer of /v1/health/service.
type healthEntry struct {
	Node    struct{ Node, Address string }
	Service struct {
		ID      string
		Address string
		Port    int
		Tags    []string
		Meta    map[string]string
		Weights struct{ Passing, Warning int }
	}
	Checks []struct{ Status string }
}

// healthy are the instances that may get traffic, with their weights.
func healthy(entries []healthEntry) []Instance {
	all := make([]Instance, 0, len(entries))
	for _, e := range entries {
		i := Instance{
			ID: e.Service.ID, Node: e.Node.Node, Host: cmp.Or(e.Service.Address, e.Node.Address), Port: e.Service.Port,
			Tags: e.Service.Tags, Meta: e.Service.Meta, Status: "passing", Weight: max(e.Service.Weights.Passing, 1),
		}
		for _, c := range e.Checks {
			switch c.Status {
			case "passing":
			case "warning":
				if i.Status == "passing" {
					i.Status, i.Weight = c.Status, max(e.Service.Weights.Warning, 1)
				}
			default:
				i.Status = c.Status
			}
		}
		if i.Status == "passing" || i.Status == "warning" {
			all = append(all, i)
		}
	}
	slices.SortFunc(all, func(a, b Instance) int { return strings.Compare(a.key(), b.key()) })
	return all
}

// ParseName takes apart the name of a service in DNS: web.service.consul,
// v1.web.service.consul (a tag), _web._tcp.service.consul (RFC 2782), each also with
// a site (web.service.dc1.consul) and in the domain internal. False means that it is
// another kind of name.
func ParseName(host string) (Selection, bool) {
	labels := strings.Split(strings.TrimSuffix(host, "."), ".")
	n := len(labels) - 1
	if n < 2 || !strings.EqualFold(labels[n], "consul") && !strings.EqualFold(labels[n], "internal") {
		return Selection{}, false
	}
	at := n - 1
	var s Selection
	if !strings.EqualFold(labels[at], "service") {
		s.Site = labels[at]
		at--
		if at >= 0 && strings.EqualFold(s.Site, "dc") && !strings.EqualFold(labels[at], "service") {
			s.Site = labels[at]
			at--
		}
	}
	if at < 1 || at > 2 || !strings.EqualFold(labels[at], "service") {
		return Selection{}, false
	}
	s.Service = labels[at-1]
	if at == 2 {
		s.Tag = labels[0]
	}
	name, rfc := strings.CutPrefix(s.Tag, "_")
	if tag, ok := strings.CutPrefix(s.Service, "_"); ok && rfc {
		s.Service, s.Tag = name, tag
		if strings.EqualFold(tag, "tcp") || strings.EqualFold(tag, "udp") {
			s.Tag = ""
		}
	}
	return s, s.Service != ""
}
