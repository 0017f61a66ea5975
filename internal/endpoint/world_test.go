package endpoint_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/fairlead-net/fairlead/internal/datapath"
	"github.com/fairlead-net/fairlead/internal/endpoint"
	"github.com/fairlead-net/fairlead/internal/ipam"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/netdrv"
	"github.com/fairlead-net/fairlead/internal/state"
)

// world is a host: a kernel that outlives agents, a catalogue that usually does,
// and an agent's endpoints. Every call that endpoint makes to the outside goes
// through called, which can make it fail and checks that no lock is held.
type world struct {
	t    testing.TB
	st   *state.State
	set  *endpoint.Set
	maps *datapath.Fake
	disk []state.Change // what the next agent's state will be synced with
	stop func()         // ends the agent

	mu         sync.Mutex // guards following
	index      model.Index
	links      map[string]link              // the kernel's veths, by name
	bridges    map[string]model.NetworkName // the kernel's bridges, by name
	namespaces map[string]namespace         // by path
	rules      string                       // the packet filter's
	held       map[string]bool              // host ports, by "tcp/8080"
	listening  map[netip.AddrPort]bool      // of the resolver
	number     int                          // of the last link, bridge or namespace
	calls      map[string]int               // by operation
	failures   map[string]*failure          // by operation
	hooks      map[string]func()            // by operation
}

type link struct {
	endpoint model.Endpoint
	index    int
	bridge   int
	inside   string // the namespace's identity
}

type namespace struct {
	id     string
	cookie uint64
}

// failure makes calls of an operation fail: those after the first so many, once.
type failure struct {
	skip   int
	after  bool // it has had its effect
	always bool
	done   bool
}

var errTest = errors.New("refused for a test")

func newWorld(t testing.TB) *world {
	return &world{
		t: t, st: state.New(), maps: datapath.NewFake(), index: 1,
		links: map[string]link{}, bridges: map[string]model.NetworkName{}, namespaces: map[string]namespace{},
		held: map[string]bool{}, listening: map[netip.AddrPort]bool{}, number: 100,
		calls: map[string]int{}, failures: map[string]*failure{}, hooks: map[string]func(){},
	}
}

// start starts an agent; the state is synced with what it holds.
func (w *world) start() {
	w.boot()
	w.sync()
}

// boot starts an agent whose state is not synced yet, unless it was before.
func (w *world) boot() {
	w.set = endpoint.New(endpoint.Config{
		Node: "n1", State: w.st, Registry: catalog{w}, Driver: driver{w}, Resolver: resolver{w},
		Path:       path{datapath.NewFaulty(w.maps, w.called), w},
		VIPPools:   []netip.Prefix{netip.MustParsePrefix("240.0.0.0/4")},
		HostCookie: 1, Log: slog.New(slog.NewTextHandler(w.t.Output(), nil)),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.set.Run(ctx, func() {}) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("Run: %v", err)
		}
	})
	w.t.Cleanup(w.stop)
}

func (w *world) sync() {
	select {
	case <-w.st.Synced():
	default:
		w.st.Reset(w.index, w.disk)
	}
}

// halt ends the agent. The next one will load its state from the disk.
func (w *world) halt() {
	w.stop()
	w.disk = nil
	networks, _ := w.st.Snapshot().Networks()
	for _, n := range networks {
		w.disk = append(w.disk, state.Change{Network: n})
	}
	endpoints, _ := w.st.Snapshot().Endpoints()
	for _, e := range endpoints {
		w.disk = append(w.disk, state.Change{Endpoint: e})
	}
	w.set, w.st = nil, state.New()
}

// called is called before every call to the outside.
func (w *world) called(op string) error {
	// They would wait for ever for a lock that the caller holds.
	w.set.Problems()
	w.set.Scopes()
	w.set.Namespaces()
	w.mu.Lock()
	hook := w.hooks[op]
	w.mu.Unlock()
	if hook != nil {
		hook()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls[op]++
	f := w.failures[op]
	if f == nil || f.done || f.after {
		return nil
	}
	if f.skip > 0 {
		f.skip--
		return nil
	}
	f.done = !f.always
	return fmt.Errorf("%s: %w", op, errTest)
}

// afterwards is called after what can fail once it has had its effect.
func (w *world) afterwards(op string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.failures[op]
	if f == nil || f.done || !f.after {
		return nil
	}
	f.done = !f.always
	return fmt.Errorf("%s: %w", op, errTest)
}

// onCall runs hook before every call of an operation; nil ends that.
func (w *world) onCall(op string, hook func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hooks[op] = hook
}

func (w *world) fail(op string, f failure) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failures[op] = &f
}

// count is how often an operation was called since the last count of it.
func (w *world) count(op string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.calls[op]
	w.calls[op] = 0
	return n
}

// namespace makes the path lead to a new namespace.
func (w *world) namespace(path string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.number++
	w.namespaces[path] = namespace{id: fmt.Sprintf("boot/%d", w.number), cookie: uint64(w.number)}
	return path
}

// kill ends a namespace, and with it the interfaces inside.
func (w *world) kill(path string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	id := w.namespaces[path].id
	delete(w.namespaces, path)
	for name, l := range w.links {
		if l.inside == id {
			delete(w.links, name)
		}
	}
}

// dump is everything there is, a fact per line.
func (w *world) dump() string {
	w.t.Helper()
	var out []string
	snap := w.st.Snapshot()
	networks, _ := snap.Networks()
	for _, n := range networks {
		out = append(out, fmt.Sprintf("record network %s", n.Name))
	}
	endpoints, _ := snap.Endpoints()
	for _, e := range endpoints {
		line := fmt.Sprintf("record endpoint %s/%s addrs=%v mac=%s netns=%s %s", e.Network, e.Workload, e.Addrs, e.MAC, e.NetNS, e.NSID)
		if len(e.Aliases) > 0 {
			line += fmt.Sprintf(" aliases=%v", e.Aliases)
		}
		for _, p := range e.Ports {
			line += fmt.Sprintf(" %d:%d/%s@%s", p.HostPort, p.Port, p.Proto, p.Expose)
		}
		out = append(out, line)
	}
	if w.set != nil {
		for _, p := range w.set.Problems() {
			out = append(out, "problem "+p)
		}
		scopes, _ := w.set.Scopes()
		for _, s := range scopes {
			out = append(out, fmt.Sprintf("scope %d host=%t %v", s.ID, s.Host, s.Networks))
		}
	}
	text, err := datapath.Dump(w.maps)
	if err != nil {
		w.t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		out = append(out, "map "+strings.TrimSpace(line))
	}
	veths, err := w.maps.Veths()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, v := range veths {
		out = append(out, fmt.Sprintf("map program ifindex=%d network=%d addrs=%v", v.IfIndex, v.Network, v.Addrs))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range w.bridges {
		out = append(out, fmt.Sprintf("kernel bridge %s", n))
	}
	for _, l := range w.links {
		out = append(out, fmt.Sprintf("kernel veth %s/%s ifindex=%d in %s", l.endpoint.Network, l.endpoint.Workload, l.index, l.inside))
	}
	for p := range w.held {
		out = append(out, "kernel port "+p)
	}
	for at := range w.listening {
		out = append(out, fmt.Sprintf("resolver %s", at))
	}
	if w.rules != "" {
		out = append(out, "rules "+w.rules)
	}
	slices.Sort(out)
	return strings.Join(out, "\n") + "\n"
}

// catalog is the registry: records in the state, with a lease per address.
type catalog struct{ *world }

func (c catalog) write(op string, plan func(*state.Snapshot) ([]state.Change, error)) (model.Index, error) {
	if err := c.called(op); err != nil {
		return 0, err
	}
	c.mu.Lock()
	changes, err := plan(c.st.Snapshot())
	if err == nil && len(changes) > 0 {
		c.index++
		c.st.Apply(c.index, changes)
	}
	index := c.index
	c.mu.Unlock()
	if err == nil {
		err = c.afterwards(op)
	}
	return index, err
}

func (c catalog) CreateEndpoint(_ context.Context, e model.Endpoint, want []netip.Addr) (model.Endpoint, model.Index, error) {
	index, err := c.write("CreateEndpoint", func(snap *state.Snapshot) ([]state.Change, error) {
		if now, _ := snap.Endpoint(e.ID); now != nil {
			for _, a := range want {
				if !slices.Contains(now.Addrs, a) {
					return nil, errors.New("exists with other addresses")
				}
			}
			e = now.Clone()
			return nil, nil
		}
		for _, o := range snap.EndpointsByName(e.Network, string(e.Workload)) {
			if strings.EqualFold(string(o.Workload), string(e.Workload)) {
				return nil, errors.New("name taken")
			}
		}
		n, _ := snap.Network(e.Network)
		leases, _ := snap.NetworkEndpoints(e.Network)
		for _, p := range n.Pools {
			var wanted netip.Addr
			for _, a := range want {
				if p.Prefix.Contains(a) {
					wanted = a
				}
			}
			a, err := ipam.Next(p, func(a netip.Addr) bool {
				return slices.ContainsFunc(leases, func(o *model.Endpoint) bool { return slices.Contains(o.Addrs, a) })
			}, wanted)
			if err != nil {
				return nil, err
			}
			e.Addrs = append(e.Addrs, a)
		}
		e.MAC = ipam.MAC(e.ID, e.Addrs)
		record := e.Clone()
		return []state.Change{{Endpoint: &record}}, nil
	})
	return e, index, err
}

func (c catalog) UpdateEndpoint(_ context.Context, e model.Endpoint) (model.Index, error) {
	return c.write("UpdateEndpoint", func(*state.Snapshot) ([]state.Change, error) {
		record := e.Clone()
		return []state.Change{{Endpoint: &record}}, nil
	})
}

func (c catalog) DeleteEndpoint(_ context.Context, id model.EndpointID) (model.Index, error) {
	return c.write("DeleteEndpoint", func(snap *state.Snapshot) ([]state.Change, error) {
		e, _ := snap.Endpoint(id)
		if e == nil {
			return nil, nil
		}
		return []state.Change{{Delete: true, Endpoint: e}}, nil
	})
}

func (c catalog) CreateNetwork(_ context.Context, n model.Network) (model.Index, error) {
	return c.write("CreateNetwork", func(snap *state.Snapshot) ([]state.Change, error) {
		if now, _ := snap.Network(n.Name); now != nil {
			return nil, errors.New("exists")
		}
		record := n.Clone()
		return []state.Change{{Network: &record}}, nil
	})
}

func (c catalog) DeleteNetwork(_ context.Context, name model.NetworkName) (model.Index, error) {
	return c.write("DeleteNetwork", func(snap *state.Snapshot) ([]state.Change, error) {
		n, _ := snap.Network(name)
		if e, _ := snap.NetworkEndpoints(name); len(e) > 0 {
			return nil, errors.New("in use")
		}
		if n == nil {
			return nil, errors.New("no such network")
		}
		return []state.Change{{Delete: true, Network: n}}, nil
	})
}

// driver is the kernel's interfaces and rules.
type driver struct{ *world }

func (d driver) EnsureNetwork(_ context.Context, n model.Network) error {
	if err := d.called("EnsureNetwork"); err != nil {
		return err
	}
	d.mu.Lock()
	d.bridges[netdrv.BridgeName(n.Name)] = n.Name
	d.mu.Unlock()
	return d.afterwards("EnsureNetwork")
}

func (d driver) EnsureOverlay(_ context.Context, o netdrv.Overlay) error {
	if err := d.called("EnsureOverlay"); err != nil {
		return err
	}
	d.mu.Lock()
	d.bridges[netdrv.BridgeName(o.Network.Name)] = o.Network.Name
	d.mu.Unlock()
	return d.afterwards("EnsureOverlay")
}

func (d driver) RemoveNetwork(_ context.Context, name model.NetworkName) error {
	if err := d.called("RemoveNetwork"); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.bridges, netdrv.BridgeName(name))
	return nil
}

func (d driver) Attach(_ context.Context, p netdrv.Plug) (netdrv.Plugged, error) {
	if err := d.called("Attach"); err != nil {
		return netdrv.Plugged{}, err
	}
	d.mu.Lock()
	ns, ok := d.namespaces[p.Endpoint.NetNS]
	if !ok {
		d.mu.Unlock()
		return netdrv.Plugged{}, netdrv.ErrNoNamespace
	}
	bridge := 10 + len(p.Network.Name)
	if d.bridges[netdrv.BridgeName(p.Network.Name)] == "" {
		d.mu.Unlock()
		return netdrv.Plugged{}, netdrv.ErrNoNetwork
	}
	name := netdrv.HostIf(p.Endpoint.ID)
	l, ok := d.links[name]
	if !ok || l.inside != ns.id {
		d.number++
		l = link{endpoint: p.Endpoint, index: d.number, bridge: bridge, inside: ns.id}
		d.links[name] = l
	}
	d.mu.Unlock()
	return netdrv.Plugged{
		HostIf: name, HostIfIndex: l.index, BridgeIfIndex: bridge, IfName: "eth0", Cookie: ns.cookie, MAC: netdrv.MAC(p.Endpoint),
	}, d.afterwards("Attach")
}

func (d driver) Detach(_ context.Context, e model.Endpoint) error {
	if err := d.called("Detach"); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.links, netdrv.HostIf(e.ID))
	return nil
}

func (d driver) Prune(_ context.Context, keep func(string) bool) (did []string, err error) {
	if err := d.called("Prune"); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for name := range d.links {
		if !keep(name) {
			delete(d.links, name)
			did = append(did, name)
		}
	}
	for name := range d.bridges {
		if !keep(name) {
			delete(d.bridges, name)
			did = append(did, name)
		}
	}
	return did, nil
}

func (d driver) SetRules(_ context.Context, r netdrv.Rules) error {
	if err := d.called("SetRules"); err != nil {
		return err
	}
	var words []string
	for _, n := range r.Networks {
		words = append(words, string(n.Name))
	}
	for _, e := range r.Endpoints {
		for _, p := range e.Ports {
			words = append(words, fmt.Sprintf("%d/%s->%s:%d", p.HostPort, p.Proto, e.Addr4(), p.Port))
		}
	}
	d.mu.Lock()
	d.world.rules = strings.Join(words, " ")
	d.mu.Unlock()
	return d.afterwards("SetRules")
}

func (d driver) HoldPort(proto model.Protocol, port uint16) (io.Closer, error) {
	if err := d.called("HoldPort"); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	name := fmt.Sprintf("%s/%d", proto, port)
	if d.world.held[name] {
		return nil, netdrv.ErrPortTaken
	}
	d.world.held[name] = true
	return hold{d.world, name}, nil
}

type hold struct {
	w    *world
	name string
}

func (h hold) Close() error {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	if !h.w.held[h.name] {
		h.w.t.Errorf("port %s is given up twice", h.name)
	}
	delete(h.w.held, h.name)
	return nil
}

func (d driver) Claims(context.Context) ([]ipam.Claim, error) {
	if err := d.called("Claims"); err != nil {
		return nil, err
	}
	return []ipam.Claim{{Prefix: netip.MustParsePrefix("192.0.2.0/24"), Who: "route 192.0.2.0/24 dev eth0"}}, nil
}

func (d driver) Identity(path string) (string, error) {
	if err := d.called("Identity"); err != nil {
		return "", err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	ns, ok := d.namespaces[path]
	if !ok {
		return "", fmt.Errorf("%q: %w", path, netdrv.ErrNoNamespace)
	}
	return ns.id, nil
}

// path is the data path.
type path struct {
	datapath.Maps
	*world
}

func (p path) AttachVeth(v datapath.Veth) error {
	if err := p.called("AttachVeth"); err != nil {
		return err
	}
	return p.maps.AttachVeth(v)
}

func (p path) DetachVeth(ifindex int) error {
	if err := p.called("DetachVeth"); err != nil {
		return err
	}
	return p.maps.DetachVeth(ifindex)
}

func (p path) Veths() ([]datapath.Veth, error) {
	if err := p.called("Veths"); err != nil {
		return nil, err
	}
	return p.maps.Veths()
}

type resolver struct{ *world }

func (r resolver) Listen(_ context.Context, at netip.AddrPort) error {
	if err := r.called("Listen"); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.listening[at] {
		return fmt.Errorf("%s: address in use", at)
	}
	r.listening[at] = true
	return nil
}

func (r resolver) Unlisten(at netip.AddrPort) {
	_ = r.called("Unlisten") // it cannot fail
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.listening[at] {
		r.t.Errorf("Unlisten %s, which nobody listens at", at)
	}
	delete(r.listening, at)
}
