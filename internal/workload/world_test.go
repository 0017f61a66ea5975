package workload_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fairlead-net/fairlead/api"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/workload"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world stands for the boxes behind a Set. It writes down what was done, a line
// each, in order.
type world struct {
	t   *testing.T
	st  *state.State
	set *workload.Set

	mu      sync.Mutex // guards following
	rev     model.Index
	done    []string
	regs    []model.Registration
	procs   map[string]*api.Workload
	changed chan struct{}
	warning string           // of registrations
	drops   []string         // of foreign firewalls
	fail    map[string]error // by what is done
	during  map[string]func()
	listed  func() // after processes were listed
	awaited []model.Index
}

const node = "n1"

func newWorld(t *testing.T) *world {
	w := &world{
		t: t, st: state.New(), rev: 1, procs: map[string]*api.Workload{}, changed: make(chan struct{}),
		fail: map[string]error{}, during: map[string]func(){},
	}
	w.st.Reset(w.rev, []state.Change{{Network: &model.Network{Name: "my-network", Driver: model.DriverBridge, Node: node, Pools: []model.Pool{
		{Prefix: netip.MustParsePrefix("10.9.0.0/24"), Gateway: netip.MustParseAddr("10.9.0.1")},
		{Prefix: netip.MustParsePrefix("fd00:9::/64"), Gateway: netip.MustParseAddr("fd00:9::1")},
	}}}})
	w.set = workload.New(workload.Config{
		Node: node, State: w.st, Endpoints: w, Registrations: registrations{w}, Processes: processes{w}, Firewalls: w,
		Balancer: w, HostAddr: netip.MustParseAddr("192.0.2.1"), Domain: "internal", Log: slog.New(slog.DiscardHandler),
	})
	return w
}

// do writes a line down, and fails if that was asked for.
func (w *world) do(format string, a ...any) error {
	what := fmt.Sprintf(format, a...)
	verb, _, _ := strings.Cut(what, " ")
	w.mu.Lock()
	w.done = append(w.done, what)
	during, err := w.during[verb], w.fail[verb]
	w.mu.Unlock()
	if during != nil {
		during()
	}
	return err
}

// did returns what was done since the last call.
func (w *world) did() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := strings.Join(w.done, "; ")
	w.done = nil
	return all
}

func (w *world) Await(context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.awaited = append(w.awaited, w.rev)
	return w.fail["await"]
}

func (w *world) apply(c state.Change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rev++
	w.st.Apply(w.rev, []state.Change{c})
}

func id(e model.Endpoint) model.EndpointID {
	return model.EndpointID(string(e.Workload) + "@" + string(e.Network))
}

func (w *world) Attach(_ context.Context, e model.Endpoint, want []netip.Addr) (model.Endpoint, error) {
	if err := w.do("attach %s", id(e)); err != nil {
		return model.Endpoint{}, err
	}
	e.ID, e.Node, e.Addrs, e.MAC = id(e), node, want, "02:00:00:00:00:07"
	if e.Addrs == nil {
		e.Addrs = []netip.Addr{netip.MustParseAddr("10.9.0.7"), netip.MustParseAddr("fd00:9::7")}
	}
	w.apply(state.Change{Endpoint: &e})
	return e, nil
}

func (w *world) Detach(ctx context.Context, id model.EndpointID) error {
	err := w.do("detach %s", id)
	if err == nil {
		err = ctx.Err()
	}
	e, _ := w.st.Snapshot().Endpoint(id)
	if e == nil {
		return errors.Join(err, errors.New("no such endpoint"))
	}
	if err != nil {
		return err
	}
	w.apply(state.Change{Endpoint: e, Delete: true})
	return nil
}

func (w *world) ForeignDrops(context.Context) ([]string, error) { return w.drops, w.fail["drops"] }

type registrations struct{ *world }

func (w registrations) Register(_ context.Context, r model.Registration) (string, error) {
	if err := w.do("register %s", r.Instance.ID); err != nil {
		return "", err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.regs = append(w.regs, r)
	return w.warning, nil
}

func (w registrations) Deregister(_ context.Context, id model.ServiceID) error {
	if err := w.do("deregister %s", id); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	before := len(w.regs)
	w.regs = slices.DeleteFunc(w.regs, func(r model.Registration) bool { return r.Instance.ID == id })
	if len(w.regs) == before {
		return errors.New("unknown service")
	}
	return nil
}

func (w registrations) Services() []model.Registration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.regs)
}

type processes struct{ *world }

func (w processes) List() ([]api.Workload, error) {
	w.mu.Lock()
	var all []api.Workload
	for _, p := range w.procs {
		all = append(all, *p)
	}
	err, listed := w.fail["list"], w.listed
	w.listed = nil
	w.mu.Unlock()
	if listed != nil {
		listed()
	}
	return all, err
}

func (w processes) Stop(_ context.Context, name string, grace time.Duration) error {
	if err := w.do("stop %s within %s", name, grace); err != nil {
		return err
	}
	w.end(name)
	return nil
}

func (w processes) Clear(name string) error {
	if err := w.do("clear %s", name); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.procs, name)
	return nil
}

func (w processes) Changed(ctx context.Context) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	changed, ended := w.changed, make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}()
	return ended
}

// start makes a process with an endpoint and, if it has a service, that.
func (w *world) start(name, service string) {
	w.t.Helper()
	if _, err := w.set.Attach(w.t.Context(), spec(name, service)); err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	w.procs[name] = &api.Workload{Name: name, State: "running", PID: 5}
	w.mu.Unlock()
	w.did()
}

// end lets a process end.
func (w *world) end(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p := w.procs[name]; p != nil {
		p.State = "exited"
	}
	close(w.changed)
	w.changed = make(chan struct{})
}

// run runs the Set until the test, or a call of the function returned, ends it.
func (w *world) run() (stop func()) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- w.set.Run(ctx, func() { close(ready) }) }()
	<-ready
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("run: %v", err)
		}
	})
	w.t.Cleanup(stop)
	return stop
}

func spec(name, service string) api.WorkloadSpec {
	s := api.WorkloadSpec{Name: name, Network: "my-network", NetNS: "/proc/5/ns/net"}
	if service != "" {
		s.Service = &api.Service{Name: service, Port: 80}
	}
	return s
}
