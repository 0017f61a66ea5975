package local_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"github.com/fairlead-net/fairlead/internal/local"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const me model.NodeName = "n1"

var errDown = errors.New("no leader")

// refusing is an error with which a catalogue says that it does not want a record.
type refusing string

func (r refusing) Error() string { return string(r) }
func (refusing) Refused() bool   { return true }

// catalog is a catalogue in memory that keeps a real state up to date and, as the
// real one, does not let an owner overwrite another's records.
type catalog struct {
	st *state.State

	mu    sync.Mutex
	rev   model.Index
	calls []string
	fail  func(call string) error // asked before each write
}

func newCatalog() *catalog { return &catalog{st: state.New()} }

// sync gives the state its first full snapshot.
func (c *catalog) sync(records ...state.Change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rev += 10
	c.st.Reset(c.rev, records)
}

// put changes the catalogue behind the agent's back.
func (c *catalog) put(changes ...state.Change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rev++
	c.st.Apply(c.rev, changes)
}

func (c *catalog) setFail(f func(call string) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail = f
}

// take returns the calls so far, sorted, and forgets them.
func (c *catalog) take() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	calls := slices.Sorted(slices.Values(c.calls))
	c.calls = nil
	return strings.Join(calls, "; ")
}

func (c *catalog) write(call string, changes func(*state.Snapshot) ([]state.Change, error)) (model.Index, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls = append(c.calls, call)
	if c.fail != nil {
		if err := c.fail(call); err != nil {
			return 0, err
		}
	}
	list, err := changes(c.st.Snapshot())
	if err != nil {
		return 0, err
	}
	c.rev++
	c.st.Apply(c.rev, list)
	return c.rev, nil
}

func (c *catalog) RegisterNode(_ context.Context, n model.Node) (model.Index, error) {
	return c.write("node "+n.Address, func(*state.Snapshot) ([]state.Change, error) {
		return []state.Change{{Node: &n}}, nil
	})
}

func (c *catalog) Check(i model.Instance, _ []model.Check) error {
	if i.Port > 65535 {
		return fmt.Errorf("%w: port %d", model.ErrInvalid, i.Port)
	}
	return nil
}

func (c *catalog) RegisterMany(_ context.Context, instances []model.Instance, checks [][]model.Check) []error {
	errs := make([]error, len(instances))
	for n, i := range instances {
		errs[n] = c.register(i, checks[n])
	}
	return errs
}

// mayTake is the registry's rule.
func mayTake(has, wants model.Owner) bool { return has == wants || has == model.OwnerExternal }

func (c *catalog) register(i model.Instance, checks []model.Check) error {
	call := fmt.Sprintf("register %s", i.ID)
	for _, ch := range checks {
		call += fmt.Sprintf(" %s=%s", ch.ID, ch.Status)
	}
	_, err := c.write(call, func(s *state.Snapshot) ([]state.Change, error) {
		if old, _ := s.Instance(i.Node, i.ID); old != nil && !mayTake(old.Owner, i.Owner) {
			return nil, refusing("instance belongs to " + string(old.Owner))
		}
		list := []state.Change{{Instance: &i}}
		for _, old := range s.InstanceChecks(i.Node, i.ID) {
			if mayTake(old.Owner, i.Owner) {
				list = append(list, state.Change{Delete: true, Check: old})
			}
		}
		for _, ch := range checks {
			if old, _ := s.Check(i.Node, ch.ID); old != nil && !mayTake(old.Owner, ch.Owner) {
				return nil, refusing("check belongs to " + string(old.Owner))
			}
			list = append(list, state.Change{Check: &ch})
		}
		return list, nil
	})
	return err
}

func (c *catalog) Deregister(_ context.Context, n model.NodeName, id model.ServiceID) (model.Index, error) {
	return c.write("deregister "+string(id), func(s *state.Snapshot) ([]state.Change, error) {
		list := []state.Change{{Delete: true, Instance: &model.Instance{Node: n, ID: id}}}
		shown, _ := s.NodeChecks(n)
		for _, old := range shown {
			if old.ServiceID == id {
				list = append(list, state.Change{Delete: true, Check: old})
			}
		}
		return list, nil
	})
}

func (c *catalog) PutChecks(_ context.Context, checks []model.Check) []error {
	errs := make([]error, len(checks))
	for n, ch := range checks {
		_, errs[n] = c.write(fmt.Sprintf("check %s=%s", ch.ID, ch.Status), func(*state.Snapshot) ([]state.Change, error) {
			return []state.Change{{Check: &ch}}, nil
		})
	}
	return errs
}

func (c *catalog) DeleteCheck(_ context.Context, n model.NodeName, id model.CheckID) (model.Index, error) {
	return c.write("delete check "+string(id), func(*state.Snapshot) ([]state.Change, error) {
		return []state.Change{{Delete: true, Check: &model.Check{Node: n, ID: id}}}, nil
	})
}

// dump shows what the catalogue has of a node, one fact per line.
func (c *catalog) dump(n model.NodeName) string {
	s := c.st.Snapshot()
	var b strings.Builder
	if node, _ := s.Node(n); node != nil {
		fmt.Fprintf(&b, "node %s %s owner=%s\n", node.Name, node.Address, node.Owner)
	}
	instances, _ := s.NodeInstances(n)
	for _, i := range instances {
		fmt.Fprintf(&b, "service %s %s:%d tags=%v owner=%s\n", i.ID, i.Service, i.Port, i.Tags, i.Owner)
	}
	checks, _ := s.NodeChecks(n)
	for _, ch := range checks {
		fmt.Fprintf(&b, "check %s of %s %s %q owner=%s\n", ch.ID, ch.ServiceID, ch.Status, ch.Output, ch.Owner)
	}
	return b.String()
}

// running is an agent whose Run runs.
type running struct {
	*local.Agent
	stop func()
}

func config(dir string) local.Config {
	return local.Config{
		Dir: dir, Log: slog.New(slog.DiscardHandler),
		Node: model.Node{Name: me, ID: "id-1", Address: "192.0.2.1", Datacenter: "dc1"},
	}
}

func open(t *testing.T, dir string, c *catalog) *local.Agent {
	t.Helper()
	a, err := local.Open(config(dir), c, c.st)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// start opens an agent and runs it; it is ready if ready is wanted. The caller
// stops it.
func start(t *testing.T, dir string, c *catalog) running {
	t.Helper()
	a := open(t, dir, c)
	ctx, cancel := context.WithCancel(context.Background())
	done, ready := make(chan error, 1), make(chan struct{})
	go func() { done <- a.Run(ctx, func() { close(ready) }) }()
	<-ready
	return running{a, func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	}}
}

func (r running) register(t *testing.T, reg model.Registration) {
	t.Helper()
	if warning, err := r.Register(context.Background(), reg); err != nil || warning != "" {
		t.Fatalf("Register = %q, %v", warning, err)
	}
}

func (r running) beat(t *testing.T, id model.CheckID, s model.Status, output string) {
	t.Helper()
	if err := r.UpdateTTL(id, s, output); err != nil {
		t.Fatal(err)
	}
}

func service(id model.ServiceID, port int, checks ...model.CheckSpec) model.Registration {
	return model.Registration{Instance: model.Instance{ID: id, Service: "web", Port: port}, Checks: checks}
}

func ttl(id model.CheckID, d time.Duration) model.CheckSpec {
	return model.CheckSpec{ID: id, TTL: d}
}

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if strings.TrimSpace(got) != strings.TrimSpace(want) {
		t.Errorf("%s:\n%s\nwant:\n%s", what, strings.TrimSpace(got), strings.TrimSpace(want))
	}
}

// BenchmarkRegister registers new services from 16 goroutines with an agent that
// has some already; the catalogue is in memory, the file on a disk.
func BenchmarkRegister(b *testing.B) {
	for _, present := range []int{100, 1000, 5000} {
		b.Run(fmt.Sprint(present), func(b *testing.B) {
			c := newCatalog()
			c.sync()
			a, err := local.Open(config(b.TempDir()), c, c.st)
			if err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(b.Context())
			ended := make(chan error, 1)
			go func() { ended <- a.Run(ctx, func() {}) }()
			var next atomic.Int64
			register := func() {
				id := model.ServiceID(fmt.Sprintf("web-%d", next.Add(1)))
				reg := service(id, 80, ttl(model.CheckID("check-"+id), time.Hour))
				reg.Instance.Service = model.ServiceName(id)
				if warning, err := a.Register(ctx, reg); err != nil || warning != "" {
					b.Errorf("Register = %q, %v", warning, err)
				}
			}
			all := make(chan struct{})
			var g errgroup.Group
			for range 16 {
				g.Go(func() error {
					for range all {
						register()
					}
					return nil
				})
			}
			for range present {
				all <- struct{}{}
			}
			for b.Loop() {
				all <- struct{}{}
			}
			close(all)
			_ = g.Wait() // register tells
			cancel()
			<-ended
		})
	}
}
