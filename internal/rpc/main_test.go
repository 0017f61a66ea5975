package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fairlead-net/fairlead/internal/identity"
	"github.com/fairlead-net/fairlead/internal/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// errTaken is an error that keeps what it is.
var errTaken = errors.New("taken")

var codes = Codes{"test.Taken": errTaken, "rpc.ErrNotYours": ErrNotYours}

// world is a server and what stands behind it.
type world struct {
	t      *testing.T
	issuer *identity.Issuer
	root   model.CARoot
	server *identity.Badge
	addr   netip.AddrPort

	mu       sync.Mutex
	revoked  string
	wrote    []string // what reached the catalogue, and from whom
	members  []string
	sessions map[model.NodeName]string // how each ended; "open" while it has not
	beats    int
	changed  chan struct{}
	known    []Peer
}

// start runs a server until the test ends.
func start(t *testing.T) *world {
	t.Helper()
	root, key, err := identity.NewRoot(identity.NewTrustDomain(), time.Now(), nil)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, root: root, sessions: map[model.NodeName]string{}, changed: make(chan struct{})}
	if w.issuer, err = identity.NewIssuer(root, key); err != nil {
		t.Fatal(err)
	}
	w.server = w.badge("srv", true)
	w.addr = freeAddr(t)
	w.serve(w.addr)
	return w
}

func freeAddr(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String())
}

// serve runs a server at an address; the func ends it.
func (w *world) serve(at netip.AddrPort) (stop func()) {
	w.t.Helper()
	s := NewServer(Config{
		Badge: w.server, Listen: at, Gate: w, Catalog: &catalog{world: w}, Feed: w, Presence: w, Codes: codes, Log: slog.New(slog.DiscardHandler),
		API: http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			out.Header().Set("X-Consul-Index", "7")
			fmt.Fprintf(out, "%s %s %s %s %s", r.Method, r.URL.RequestURI(), r.Header.Get("X-Consul-Token"), r.Header.Get(headerVia), body)
		}),
	})
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- s.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		w.t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("Run: %v", err)
		}
	})
	w.t.Cleanup(stop)
	return stop
}

func (w *world) certify(request string, n identity.Node) (string, error) {
	n.Site, n.TrustDomain = "dc1", w.root.TrustDomain
	return w.issuer.CertifyNode(request, n, time.Now(), identity.NodeTTL)
}

func (w *world) badge(name string, server bool) *identity.Badge {
	w.t.Helper()
	key, request, err := identity.NewRequest()
	if err != nil {
		w.t.Fatal(err)
	}
	cert, err := w.certify(request, identity.Node{ID: "id-" + name, Name: model.NodeName(name), Server: server})
	if err != nil {
		w.t.Fatal(err)
	}
	b, err := identity.OpenBadge(w.t.TempDir(), func(id string, _ time.Time) bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return id == w.revoked
	})
	if !errors.Is(err, identity.ErrNoBadge) {
		w.t.Fatal(err)
	}
	if err := b.Set(cert, key, w.root.RootCert); err != nil {
		w.t.Fatal(err)
	}
	return b
}

// client is a node's, which knows the servers at some addresses.
func (w *world) client(b *identity.Badge, at ...netip.AddrPort) *Client {
	w.t.Helper()
	dir, err := OpenDirectory("", at, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	c := NewClient(ClientConfig{Badge: b, Directory: dir, Codes: codes, Log: slog.New(slog.DiscardHandler)})
	w.t.Cleanup(c.Close)
	return c
}

// The gate.

func (w *world) Admit(_ context.Context, req JoinRequest, _ netip.Addr) (Admission, error) {
	if req.Secret != "good" {
		return Admission{}, fmt.Errorf("join: %w", errTaken)
	}
	cert, err := w.certify(req.Request, identity.Node{ID: req.ID, Name: req.Name, Server: req.Server})
	return Admission{Cert: cert, Roots: w.root.RootCert, Site: "dc1"}, err
}

func (w *world) Renew(_ context.Context, n identity.Node, request string) (Admission, error) {
	cert, err := w.certify(request, n)
	return Admission{Cert: cert, Roots: w.root.RootCert}, err
}

func (w *world) AddServer(_ context.Context, id string) (map[string]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.members = append(w.members, id)
	return map[string]string{id: "https://" + id}, nil
}

func (w *world) Announced(p Peer, _ model.Index) []Peer {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.ID != "" {
		w.known = append(w.known, p)
	}
	return append([]Peer{{ID: "id-srv", Name: "srv", Addr: w.addr}}, w.known...)
}

// The feed: two pieces, then nothing more.

func (w *world) Serve(ctx context.Context, from model.Index, run string, write func([]byte) error) error {
	if err := errors.Join(write(fmt.Appendf(nil, "from %d of %s;", from, run)), write([]byte("more;"))); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

// Presence.

func (w *world) Attach(_ context.Context, n identity.Node, _ netip.Addr) (func(), func(string), error) {
	w.session(n.Name, "open")
	return func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.beats++
			w.news()
		}, func(goodbye string) {
			w.session(n.Name, "ended:"+goodbye)
		}, nil
}

func (w *world) session(n model.NodeName, now string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sessions[n] = now
	w.news()
}

func (w *world) news() {
	close(w.changed)
	w.changed = make(chan struct{})
}

// until waits for something of the world.
func (w *world) until(what string, holds func() bool) {
	w.t.Helper()
	limit := time.After(20 * time.Second)
	for {
		w.mu.Lock()
		ok, changed := holds(), w.changed
		w.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-limit:
			w.t.Fatalf("not in time: %s", what)
		}
	}
}

// catalog notes what reaches it.
type catalog struct {
	Catalog
	world *world
}

func (c *catalog) note(format string, args ...any) model.Index {
	c.world.mu.Lock()
	defer c.world.mu.Unlock()
	c.world.wrote = append(c.world.wrote, fmt.Sprintf(format, args...))
	return model.Index(len(c.world.wrote))
}

func (c *catalog) RegisterNode(_ context.Context, n model.Node) (model.Index, error) {
	return c.note("node %s %s %s", n.Name, n.ID, n.Owner), nil
}

func (c *catalog) RegisterMany(_ context.Context, instances []model.Instance, _ [][]model.Check) []error {
	errs := make([]error, len(instances))
	for i, inst := range instances {
		c.note("instance %s/%s %s", inst.Node, inst.ID, inst.Owner)
		if inst.ID == "taken" {
			errs[i] = fmt.Errorf("register: %w", errTaken)
		}
	}
	return errs
}

func (c *catalog) PutChecks(_ context.Context, checks []model.Check) []error {
	for _, x := range checks {
		c.note("check %s/%s %s", x.Node, x.ID, x.Owner)
	}
	return make([]error, len(checks))
}

func (c *catalog) Deregister(_ context.Context, n model.NodeName, id model.ServiceID) (model.Index, error) {
	return c.note("deregister %s/%s", n, id), nil
}

func (c *catalog) DeleteCheck(_ context.Context, n model.NodeName, id model.CheckID) (model.Index, error) {
	return c.note("delete check %s/%s", n, id), nil
}

func (c *catalog) CreateEndpoint(_ context.Context, e model.Endpoint, want []netip.Addr) (model.Endpoint, model.Index, error) {
	e.Addrs = want
	return e, c.note("endpoint %s %s", e.ID, e.Owner), nil
}

func (c *catalog) UpdateEndpoint(_ context.Context, e model.Endpoint) (model.Index, error) {
	return c.note("update %s", e.ID), nil
}

func (c *catalog) DeleteEndpoint(_ context.Context, id model.EndpointID) (model.Index, error) {
	return c.note("delete endpoint %s", id), nil
}

func (c *catalog) EndpointNode(id model.EndpointID) model.NodeName {
	if id == "theirs" {
		return "other"
	}
	return ""
}

func (c *catalog) Index() model.Index {
	c.world.mu.Lock()
	defer c.world.mu.Unlock()
	return model.Index(len(c.world.wrote))
}
