package lb_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/fairlead-net/fairlead/internal/datapath"
	"github.com/fairlead-net/fairlead/internal/lb"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/state"
)

var update = flag.Bool("update", false, "write the answers that the scenarios give")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestScenarios plays testdata/*.txt. A scenario is a sequence of steps, each with
// what happens, then "----", then what the balancer did about it: the changes of
// the maps' dump, the connections that it ended and how often it wrote.
//
// What can happen ("world.do" has it all):
//
//	reset                        the state has its first full snapshot
//	network NAME [internal]
//	endpoint ID NETWORK ADDR... [PROTO:HOSTPORT:PORT:EXPOSE...]
//	service NAME VIP...
//	instance SERVICE/ID [at NETWORK@ADDR:PORT|host@ADDR:PORT]... [addr A] [port P] [virtual P] [weights P,W]
//	check ID STATUS
//	del network|endpoint|service|instance NAME
//	scope NUMBER NETWORK...      the callers of this node; 1 is the host
//	del scope NUMBER
//	addrs ADDR...                of the host
//	fail OPERATION [TIMES]       the maps refuse it (without TIMES, until "fail OPERATION 0")
//	map NUMBER PROTO ADDR:PORT BACKEND  somebody else's hand in the maps
//	wait DURATION
//	problems                     show what Problems says
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var got string
			synctest.Test(t, func(t *testing.T) { got = play(t, string(text)) })
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != string(text) {
				t.Errorf("%s plays differently (-update writes it down):\n%s", file, got)
			}
		})
	}
}

// play runs a scenario and returns it with the answers that were given.
func play(t *testing.T, text string) string {
	w := newWorld(t)
	var out strings.Builder
	var step []string
	answer := false
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case answer && line != "":
			continue // the old answer
		case answer:
			answer = false
			out.WriteString("\n")
		case line == "----":
			out.WriteString("----\n" + w.step(step))
			step, answer = nil, true
		default:
			out.WriteString(line + "\n")
			if line != "" && !strings.HasPrefix(line, "#") {
				step = append(step, line)
			}
		}
	}
	return out.String()
}

// world is a balancer with everything around it.
type world struct {
	t    *testing.T
	st   *state.State
	maps *datapath.Fake
	lb   *lb.Balancer

	index   model.Index
	changes []state.Change
	before  []string // the dump

	mu      sync.Mutex // guards following
	scopes  map[datapath.Scope]lb.Scope
	changed chan struct{}
	addrs   []netip.Addr
	gone    []string
	calls   map[string]int
	fail    map[string]int // times; -1: always
}

func newWorld(t *testing.T) *world {
	w := &world{
		t: t, st: state.New(), maps: datapath.NewFake(), index: 10,
		scopes: map[datapath.Scope]lb.Scope{1: {ID: 1, Host: true}}, changed: make(chan struct{}),
		calls: map[string]int{}, fail: map[string]int{},
	}
	w.change(state.Change{Node: &model.Node{Name: "n1", Address: "192.0.2.1"}})
	w.lb = lb.New(lb.Config{
		Node: "n1", State: w.st, Maps: datapath.NewFaulty(w.maps, w.called), Local: w,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.lb.Run(ctx, func() {}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return w
}

// Scopes, Addrs and Gone are lb.Node.
func (w *world) Scopes() ([]lb.Scope, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []lb.Scope
	for _, s := range w.scopes {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b lb.Scope) int { return int(a.ID) - int(b.ID) })
	return all, w.changed
}

func (w *world) Addrs() ([]netip.Addr, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.addrs), nil
}

func (w *world) Gone(_ context.Context, instances []netip.AddrPort, still func(netip.AddrPort) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range instances {
		if still(a) {
			w.gone = append(w.gone, a.String())
		}
	}
}

// called counts an operation on the maps and says whether it fails.
func (w *world) called(op string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls[op]++
	if w.fail[op] == 0 {
		return nil
	}
	if w.fail[op] > 0 {
		w.fail[op]--
	}
	return errors.New("no room left")
}

func (w *world) change(c state.Change) { w.changes = append(w.changes, c) }

// step lets things happen and tells what came of them.
func (w *world) step(lines []string) string {
	w.mu.Lock()
	w.gone, w.calls = nil, map[string]int{}
	w.mu.Unlock()
	var say []string
	waits := false
	for _, line := range lines {
		waits = waits || strings.HasPrefix(line, "wait ")
		more, err := w.do(strings.Fields(line))
		if err != nil {
			w.t.Fatalf("%q: %v", line, err)
		}
		say = append(say, more...)
	}
	if w.synced() {
		w.apply()
	}
	synctest.Wait()
	now, err := datapath.Dump(w.maps)
	if err != nil {
		w.t.Fatal(err)
	}
	after := strings.Split(strings.TrimSuffix(now, "\n"), "\n")
	say = append(say, differences(w.before, after)...)
	w.before = after
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, g := range w.gone {
		say = append(say, "gone "+g)
	}
	count := func(op string) string {
		// How often something is repeated while time passes is partly chance.
		if waits && w.calls[op] > 0 {
			return "some"
		}
		return strconv.Itoa(w.calls[op])
	}
	say = append(say, fmt.Sprintf("calls set=%s delete=%s read=%s", count("SetFrontend"), count("DeleteFrontend"), count("Frontends")))
	return strings.Join(say, "\n") + "\n"
}

func (w *world) synced() bool {
	select {
	case <-w.st.Synced():
		return true
	default:
		return false
	}
}

func (w *world) apply() {
	if len(w.changes) > 0 {
		w.index++
		w.st.Apply(w.index, w.changes)
		w.changes = nil
	}
}

func differences(before, after []string) []string {
	var out []string
	for _, l := range before {
		if l != "" && !slices.Contains(after, l) {
			out = append(out, "- "+l)
		}
	}
	for _, l := range after {
		if l != "" && !slices.Contains(before, l) {
			out = append(out, "+ "+l)
		}
	}
	return out
}

func (w *world) do(f []string) (say []string, err error) {
	switch f[0] {
	case "reset":
		w.st.Reset(w.index, w.changes)
		w.changes = nil
	case "network":
		w.change(state.Change{Network: &model.Network{Name: model.NetworkName(f[1]), Node: "n1", Internal: len(f) > 2}})
	case "endpoint":
		return nil, w.endpoint(f[1:])
	case "service":
		v := &model.VIP{Service: model.ServiceName(f[1])}
		for _, a := range f[2:] {
			if addr := netip.MustParseAddr(a); addr.Is4() {
				v.V4 = addr
			} else {
				v.V6 = addr
			}
		}
		w.change(state.Change{VIP: v})
	case "instance":
		return nil, w.instance(f[1:])
	case "check":
		w.change(state.Change{Check: &model.Check{
			Node: "n1", ID: model.CheckID("check-" + f[1]), ServiceID: model.ServiceID(f[1]), Status: model.Status(f[2]),
		}})
	case "del":
		return nil, w.del(f[1], f[2])
	case "scope":
		id, err := strconv.Atoi(f[1])
		if err != nil {
			return nil, err
		}
		s := lb.Scope{ID: datapath.Scope(id), Host: id == 1}
		for _, n := range f[2:] {
			s.Networks = append(s.Networks, model.NetworkName(n))
		}
		w.setScope(s.ID, &s)
	case "addrs":
		w.mu.Lock()
		defer w.mu.Unlock()
		w.addrs = nil
		for _, a := range f[1:] {
			w.addrs = append(w.addrs, netip.MustParseAddr(a))
		}
	case "fail":
		times := -1
		if len(f) > 2 {
			if times, err = strconv.Atoi(f[2]); err != nil {
				return nil, err
			}
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.fail[f[1]] = times
	case "map":
		return nil, w.meddle(f[1:])
	case "wait":
		d, err := time.ParseDuration(f[1])
		if err != nil {
			return nil, err
		}
		if w.synced() {
			w.apply()
		}
		time.Sleep(d) // of the bubble's clock
	case "problems":
		return append([]string{"problems:"}, w.lb.Problems()...), nil
	default:
		return nil, errors.New("unknown")
	}
	return nil, nil
}

func (w *world) setScope(id datapath.Scope, s *lb.Scope) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s == nil {
		delete(w.scopes, id)
	} else {
		w.scopes[id] = *s
	}
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *world) endpoint(f []string) error {
	e := &model.Endpoint{ID: model.EndpointID(f[0]), Workload: model.WorkloadName(f[0]), Network: model.NetworkName(f[1]), Node: "n1"}
	for _, word := range f[2:] {
		proto, rest, ok := strings.Cut(word, ":")
		if !ok || proto != "tcp" && proto != "udp" {
			e.Addrs = append(e.Addrs, netip.MustParseAddr(word))
			continue
		}
		p := strings.Split(rest, ":")
		host, err := strconv.ParseUint(p[0], 10, 16)
		if err != nil {
			return err
		}
		port, err := strconv.ParseUint(p[1], 10, 16)
		if err != nil {
			return err
		}
		e.Ports = append(e.Ports, model.PublishedPort{
			Proto: model.Protocol(proto), HostPort: uint16(host), Port: uint16(port), Expose: model.Expose(p[2]),
		})
	}
	w.change(state.Change{Endpoint: e})
	return nil
}

func (w *world) instance(f []string) error {
	service, id, _ := strings.Cut(f[0], "/")
	in := &model.Instance{Node: "n1", ID: model.ServiceID(id), Service: model.ServiceName(service), Weights: model.DefaultWeights}
	for i := 1; i+1 < len(f); i += 2 {
		value := f[i+1]
		switch f[i] {
		case "at":
			network, at, _ := strings.Cut(value, "@")
			if network == "host" {
				network = ""
			}
			ap, err := netip.ParseAddrPort(at)
			if err != nil {
				return err
			}
			in.Places = append(in.Places, model.Place{Network: model.NetworkName(network), Addr: ap.Addr(), Port: ap.Port()})
			if in.Port == 0 {
				in.Port = int(ap.Port())
			}
		case "addr":
			in.Address = value
		case "port":
			in.Port, _ = strconv.Atoi(value)
		case "virtual":
			port, err := strconv.Atoi(value)
			if err != nil {
				return err
			}
			in.TaggedAddresses = map[string]model.ServiceAddress{model.TagVirtual: {Port: port}}
		case "weights":
			if _, err := fmt.Sscanf(value, "%d,%d", &in.Weights.Passing, &in.Weights.Warning); err != nil {
				return err
			}
		default:
			return fmt.Errorf("what is %q?", f[i])
		}
	}
	w.change(state.Change{Instance: in})
	return nil
}

func (w *world) del(kind, name string) error {
	switch kind {
	case "network":
		w.change(state.Change{Delete: true, Network: &model.Network{Name: model.NetworkName(name)}})
	case "endpoint":
		w.change(state.Change{Delete: true, Endpoint: &model.Endpoint{ID: model.EndpointID(name)}})
	case "service":
		w.change(state.Change{Delete: true, VIP: &model.VIP{Service: model.ServiceName(name)}})
	case "instance":
		_, id, _ := strings.Cut(name, "/")
		w.change(state.Change{Delete: true, Instance: &model.Instance{Node: "n1", ID: model.ServiceID(id)}})
	case "scope":
		id, err := strconv.Atoi(name)
		if err != nil {
			return err
		}
		w.setScope(datapath.Scope(id), nil)
	default:
		return fmt.Errorf("what is a %q?", kind)
	}
	return nil
}

// meddle writes to the maps behind the balancer's back.
func (w *world) meddle(f []string) error {
	scope, err := strconv.Atoi(f[0])
	if err != nil {
		return err
	}
	at := netip.MustParseAddrPort(f[2])
	fe := datapath.Frontend{Scope: datapath.Scope(scope), Proto: datapath.TCP, Addr: at.Addr(), Port: at.Port()}
	if f[1] == "udp" {
		fe.Proto = datapath.UDP
	}
	if len(f) == 3 {
		return w.maps.DeleteFrontend(fe)
	}
	return w.maps.SetFrontend(fe, datapath.FrontendOK, []datapath.Backend{{Addr: netip.MustParseAddrPort(f[3]), Weight: 1}})
}

// A frontend never leads to an instance whose connections are being ended.
func TestGoneComesLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		led := make(chan bool, 1)
		st := state.New()
		maps := datapath.NewFake()
		b := lb.New(lb.Config{Node: "n1", State: st, Maps: maps, Local: &host{gone: func(at netip.AddrPort) {
			dump, _ := datapath.Dump(maps)
			led <- strings.Contains(dump, at.String())
		}}, Log: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- b.Run(ctx, func() {}) }()
		in := model.Instance{Node: "n1", ID: "a", Service: "web", Port: 80, Address: "192.0.2.7", Weights: model.DefaultWeights}
		st.Reset(1, []state.Change{{Instance: &in}, {VIP: &model.VIP{Service: "web", V4: netip.MustParseAddr("240.0.0.1")}}})
		synctest.Wait()
		st.Apply(2, []state.Change{{Delete: true, Instance: &in}})
		if <-led {
			t.Error("the maps still lead to the instance while its connections are ended")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// While connections are being ended, which takes long, the balancer goes on; and
// an instance that comes back meanwhile keeps the connections it then gets.
func TestTheBalancerDoesNotWaitForTheGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		looking, look := make(chan struct{}), make(chan struct{})
		var ended []string
		st := state.New()
		maps := datapath.NewFake()
		b := lb.New(lb.Config{Node: "n1", State: st, Maps: maps, Log: slog.New(slog.DiscardHandler), Local: &host{
			looking: func() { looking <- struct{}{}; <-look },
			gone:    func(at netip.AddrPort) { ended = append(ended, at.String()) },
		}})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- b.Run(ctx, func() {}) }()
		instance := func(id, addr string) *model.Instance {
			return &model.Instance{Node: "n1", ID: model.ServiceID(id), Service: "web", Port: 80, Address: addr, Weights: model.DefaultWeights}
		}
		a, c := instance("a", "192.0.2.7"), instance("c", "192.0.2.9")
		st.Reset(1, []state.Change{{Instance: a}, {Instance: c}, {VIP: &model.VIP{Service: "web", V4: netip.MustParseAddr("240.0.0.1")}}})
		synctest.Wait()
		st.Apply(2, []state.Change{{Delete: true, Instance: a}})
		<-looking
		st.Apply(3, []state.Change{{Delete: true, Instance: c}, {Instance: a}})
		synctest.Wait()
		if dump, _ := datapath.Dump(maps); !strings.Contains(dump, "192.0.2.7:80*1") || strings.Contains(dump, "192.0.2.9") {
			t.Errorf("the maps while connections are being ended:\n%s", dump)
		}
		look <- struct{}{} // for a, which is back
		<-looking
		look <- struct{}{} // for c
		synctest.Wait()
		if want := []string{"192.0.2.9:80"}; !slices.Equal(ended, want) {
			t.Errorf("ended connections to %v, want %v", ended, want)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// Whoever has made a change and awaits the balancer finds it in the maps.
func TestAwait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := state.New()
		maps := datapath.NewFake()
		b := lb.New(lb.Config{Node: "n1", State: st, Maps: maps, Local: &host{}, Log: slog.New(slog.DiscardHandler)})
		late, over := context.WithTimeout(t.Context(), time.Second)
		defer over()
		if err := b.Await(late); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Await without Run: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- b.Run(ctx, func() {}) }()
		st.Reset(1, []state.Change{{VIP: &model.VIP{Service: "web", V4: netip.MustParseAddr("240.0.0.1")}}})
		for i := range 20 {
			addr := fmt.Sprintf("192.0.2.%d", i+1)
			st.Apply(model.Index(i+2), []state.Change{{Instance: &model.Instance{
				Node: "n1", ID: "a", Service: "web", Port: 80, Address: addr, Weights: model.DefaultWeights,
			}}})
			if err := b.Await(ctx); err != nil {
				t.Fatal(err)
			}
			if dump, _ := datapath.Dump(maps); !strings.Contains(dump, addr+":80*1") {
				t.Fatalf("after Await the maps lack %s:\n%s", addr, dump)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// An instance is taken out while the host's addresses cannot be listed.
func TestServicesDoNotWaitForAddrs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		let := make(chan struct{}, 1)
		let <- struct{}{}
		st := state.New()
		maps := datapath.NewFake()
		b := lb.New(lb.Config{Node: "n1", State: st, Maps: maps, Local: &host{addrs: func() { <-let }}, Log: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- b.Run(ctx, func() {}) }()
		in := model.Instance{Node: "n1", ID: "a", Service: "web", Port: 80, Address: "192.0.2.7", Weights: model.DefaultWeights}
		check := model.Check{Node: "n1", ID: "c", ServiceID: "a", Status: model.Critical}
		st.Reset(1, []state.Change{{Instance: &in}, {VIP: &model.VIP{Service: "web", V4: netip.MustParseAddr("240.0.0.1")}}})
		synctest.Wait()
		if dump, _ := datapath.Dump(maps); !strings.Contains(dump, "192.0.2.7:80*1") {
			t.Fatalf("the instance is not given out:\n%s", dump)
		}
		st.Apply(2, []state.Change{{Check: &check}})
		synctest.Wait()
		if dump, _ := datapath.Dump(maps); strings.Contains(dump, "192.0.2.7:80*1") {
			t.Errorf("the critical instance is still given out:\n%s", dump)
		}
		close(let)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// host is a node without workloads.
type host struct {
	gone    func(netip.AddrPort)
	looking func()
	addrs   func()
}

func (h *host) Scopes() ([]lb.Scope, <-chan struct{}) { return []lb.Scope{{ID: 1, Host: true}}, nil }
func (h *host) Addrs() ([]netip.Addr, error) {
	if h.addrs != nil {
		h.addrs()
	}
	return nil, nil
}
func (h *host) Gone(_ context.Context, instances []netip.AddrPort, still func(netip.AddrPort) bool) {
	if h.looking != nil {
		h.looking()
	}
	for _, at := range instances {
		if h.gone != nil && still(at) {
			h.gone(at)
		}
	}
}

// BenchmarkOneChange measures from a published change of one instance of one
// service until its frontends are written, beside many services that stay the
// same. Each service has an address in each family and one instance.
func BenchmarkOneChange(b *testing.B) {
	for _, services := range []int{100, 10_000} {
		b.Run(fmt.Sprintf("services=%d", services), func(b *testing.B) {
			st := state.New()
			writes := make(chan struct{}, 16*services)
			maps := datapath.NewFaulty(datapath.NewFake(), func(op string) error {
				if op == "SetFrontend" {
					writes <- struct{}{}
				}
				return nil
			})
			lbr := lb.New(lb.Config{Node: "n1", State: st, Maps: maps, Local: &host{}, Log: slog.New(slog.DiscardHandler)})
			ctx, cancel := context.WithCancel(b.Context())
			done := make(chan error)
			go func() { done <- lbr.Run(ctx, func() {}) }()
			instance := func(i, weight int) state.Change {
				return state.Change{Instance: &model.Instance{
					Node: "n1", ID: model.ServiceID(fmt.Sprint("i", i)), Service: model.ServiceName(fmt.Sprint("s", i)), Port: 80,
					Address: netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).String(), Weights: model.Weights{Passing: weight, Warning: 1},
				}}
			}
			var all []state.Change
			for i := range services {
				v6 := netip.MustParseAddr("fd77::").As16()
				v6[13], v6[14], v6[15] = byte(i>>16), byte(i>>8), byte(i)
				all = append(all, instance(i, 1), state.Change{VIP: &model.VIP{
					Service: model.ServiceName(fmt.Sprint("s", i)), V4: netip.AddrFrom4([4]byte{240, byte(i >> 16), byte(i >> 8), byte(i)}), V6: netip.AddrFrom16(v6),
				}})
			}
			st.Reset(1, all)
			for range 4 * services {
				<-writes
			}
			index := model.Index(1)
			for b.Loop() {
				index++
				st.Apply(index, []state.Change{instance(int(index)%services, int(index))})
				<-writes // TCP and UDP; IPv6 stays unreachable
				<-writes
			}
			cancel()
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		})
	}
}
