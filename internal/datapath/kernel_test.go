package datapath_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/fairlead-net/fairlead/internal/datapath"
	"github.com/fairlead-net/fairlead/internal/testlab"
)

// TestKernelEqualsFake does the same random things to both, restarts the kernel's side now and then, and compares dumps.
func TestKernelEqualsFake(t *testing.T) {
	w := newWorld(t)
	fake := datapath.NewFake()
	w.must(fake.SetVIPPools(pool4, pool6))
	w.must(fake.SetScope(w.host.Cookie(), datapath.HostScope))
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	equal := func(step int) {
		t.Helper()
		want, err := datapath.Dump(fake)
		w.must(err)
		got, err := datapath.Dump(w.k)
		w.must(err)
		if got != want {
			t.Fatalf("seed %d, step %d: kernel holds\n%s\nfake holds\n%s", seed, step, got, want)
		}
	}
	const steps = 1500
	for i := range steps {
		op := randomOp(r)
		inKernel, inFake := op.do(w.k), op.do(fake)
		if (inKernel == nil) != (inFake == nil) || inFake != nil && !errors.Is(inKernel, datapath.ErrInvalid) {
			t.Fatalf("seed %d, step %d: %s: kernel says %v, fake %v", seed, i, op.what, inKernel, inFake)
		}
		if i%300 == 0 {
			w.k.Close()
			w.load()
		}
		if i%10 == 0 {
			equal(i)
		}
	}
	all, err := w.k.Frontends()
	w.must(err)
	for f := range all {
		w.must(w.k.DeleteFrontend(f))
		w.must(fake.DeleteFrontend(f))
	}
	equal(steps)
	if n := w.k.Places(); n != 0 {
		t.Errorf("%d backends are left without a frontend", n)
	}
}

type operation struct {
	what string
	do   func(datapath.Maps) error
}

// randomOp draws from few values, so that they meet, and from some that are invalid.
func randomOp(r *rand.Rand) operation {
	addr := func() netip.Addr {
		if r.IntN(2) == 0 {
			return netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(6))})
		}
		return netip.AddrFrom16([16]byte{0xfd, 15: byte(r.IntN(6))})
	}
	f := datapath.Frontend{Scope: datapath.Scope(r.IntN(3)), Proto: []uint8{datapath.TCP, datapath.UDP, datapath.UDP, datapath.TCP, 1}[r.IntN(5)], Addr: addr(), Port: uint16(r.IntN(4))}
	var b []datapath.Backend
	for range r.IntN(6) {
		a := addr()
		for a.Is4() != f.Addr.Is4() && r.IntN(50) > 0 {
			a = addr()
		}
		b = append(b, datapath.Backend{Addr: netip.AddrPortFrom(a, uint16(80+r.IntN(2))), Weight: uint32(r.IntN(3))})
	}
	state := datapath.State(r.IntN(3))
	network, cookie, scope := uint32(r.IntN(3)), uint64(r.IntN(5)), datapath.Scope(r.IntN(4))
	e := datapath.NetEndpoint{Network: network, Addr: addr(), IfIndex: uint32(r.IntN(5)), MAC: [6]byte{2, 5: byte(r.IntN(9))}}
	bits := r.IntN(33)
	switch r.IntN(12) {
	case 0, 1, 2, 3, 4:
		return operation{fmt.Sprint("SetFrontend ", f, state, b), func(m datapath.Maps) error { return m.SetFrontend(f, state, b) }}
	case 5, 6:
		return operation{fmt.Sprint("DeleteFrontend ", f), func(m datapath.Maps) error { return m.DeleteFrontend(f) }}
	case 7:
		return operation{fmt.Sprint("SetScope ", cookie, scope), func(m datapath.Maps) error { return m.SetScope(cookie, scope) }}
	case 8:
		return operation{fmt.Sprint("DeleteScope ", cookie), func(m datapath.Maps) error { return m.DeleteScope(cookie) }}
	case 9:
		return operation{fmt.Sprint("SetEndpoint ", e), func(m datapath.Maps) error { return m.SetEndpoint(e) }}
	case 10:
		return operation{fmt.Sprint("DeleteEndpoint ", e), func(m datapath.Maps) error { return m.DeleteEndpoint(e.Network, e.Addr) }}
	}
	v4, v6 := netip.PrefixFrom(netip.MustParseAddr("10.1.2.3"), bits), netip.PrefixFrom(netip.MustParseAddr("fd01:203::1"), 3*bits)
	if bits == 7 {
		v4 = netip.Prefix{}
	}
	if bits == 8 {
		v4, v6 = v6, v4
	}
	return operation{fmt.Sprint("SetVIPPools ", v4, v6), func(m datapath.Maps) error { return m.SetVIPPools(v4, v6) }}
}

type pinnedMap struct {
	w *world
	m *ebpf.Map
}

// pinned opens one of the maps behind the agent's back.
func (w *world) pinned(name string) pinnedMap {
	w.t.Helper()
	found, err := filepath.Glob(filepath.Join(w.cfg.PinDir, "v*", name))
	if err != nil || len(found) != 1 {
		w.t.Fatalf("map %s: %v, %v", name, found, err)
	}
	m, err := ebpf.LoadPinnedMap(found[0], nil)
	w.must(err)
	w.t.Cleanup(func() { m.Close() })
	return pinnedMap{w, m}
}

// entries counts elements; an array's count if their first eight bytes are not zero.
func (p pinnedMap) entries() (n int) {
	p.w.t.Helper()
	var key, val []byte
	it := p.m.Iterate()
	for it.Next(&key, &val) {
		if p.m.Type() != ebpf.Array || binary.NativeEndian.Uint64(val) != 0 {
			n++
		}
	}
	p.w.must(it.Err())
	return n
}

func TestEqualBackendsAreStoredOnce(t *testing.T) {
	w := newWorld(t)
	a, b := netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("10.0.0.2:80")
	frontend := func(port uint16) datapath.Frontend {
		return datapath.Frontend{Scope: 1, Proto: datapath.TCP, Addr: vip4, Port: port}
	}
	for port := range uint16(100) {
		w.must(w.k.SetFrontend(frontend(port+1), datapath.FrontendOK, backends(a, b)))
	}
	if n := w.k.Places(); n != 2 {
		t.Errorf("100 frontends with the same 2 backends take %d places", n)
	}
	w.k.Close()
	w.load()
	for port := range uint16(99) {
		w.must(w.k.SetFrontend(frontend(port+1), datapath.FrontendNoHealthy, nil))
	}
	if n := w.k.Places(); n != 2 {
		t.Errorf("one frontend is left, which has 2 backends in %d places", n)
	}
	w.must(w.k.DeleteFrontend(frontend(100)))
	if n := w.k.Places(); n != 0 {
		t.Errorf("%d places are taken without a frontend", n)
	}
}

// hammer connects to addr in several goroutines until the returned function is called, which gives the number of connections made and
// the first failure.
func (w *world) hammer(network, addr string) func() (int64, error) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var made atomic.Int64
	var failed atomic.Pointer[error]
	for range 4 {
		wg.Go(func() {
			for n := 0; n < 100_000 && ctx.Err() == nil; n++ {
				if _, err := w.ask(network, addr); err != nil {
					failed.CompareAndSwap(nil, &err)
					return
				}
				made.Add(1)
			}
		})
	}
	return func() (int64, error) {
		cancel()
		wg.Wait()
		if err := failed.Load(); err != nil {
			return made.Load(), *err
		}
		return made.Load(), nil
	}
}

// TestNoConnectionFailsWhileTheAgentIsAway restarts and upgrades the agent and changes the frontend all the time under load.
func TestNoConnectionFailsWhileTheAgentIsAway(t *testing.T) {
	w := newWorld(t)
	a, b := w.serve("tcp4", "127.0.0.1"), w.serve("tcp4", "127.0.0.1")
	f := datapath.Frontend{Scope: datapath.HostScope, Proto: datapath.TCP, Addr: vip4, Port: 80}
	sets := [][]datapath.Backend{backends(a), backends(b), backends(a, b)}
	w.must(w.k.SetFrontend(f, datapath.FrontendOK, sets[0]))
	stop := w.hammer("tcp4", "240.0.0.1:80")
	for i := range 20 {
		w.k.Close()
		w.load()
		if i%5 == 4 {
			w.upgrade(func() { w.must(w.k.SetFrontend(f, datapath.FrontendOK, sets[0])) })
		}
		for j := range 100 {
			w.must(w.k.SetFrontend(f, datapath.FrontendOK, sets[j%3]))
		}
	}
	n, err := stop()
	if err != nil {
		t.Errorf("after %d connections: %v", n, err)
	}
	if n < 20 {
		t.Errorf("only %d connections were made", n)
	}
}

// upgrade makes it look as if the maps had been made by a release with another layout, and starts the agent. Before fill returns the
// programs still use those, afterwards the new ones.
func (w *world) upgrade(fill func()) {
	w.t.Helper()
	w.k.Close()
	found, err := filepath.Glob(filepath.Join(w.cfg.PinDir, "v*"))
	if err != nil || len(found) != 1 {
		w.t.Fatalf("layouts: %v, %v", found, err)
	}
	w.must(os.Rename(found[0], filepath.Join(w.cfg.PinDir, "v0-old")))
	w.load()
	w.must(w.k.SetVIPPools(pool4, pool6))
	w.must(w.k.SetScope(w.host.Cookie(), datapath.HostScope))
	fill()
	w.do(w.k.Activate)
	if left, err := filepath.Glob(filepath.Join(w.cfg.PinDir, "v0*")); err != nil || len(left) > 0 {
		w.t.Fatalf("still there: %v, %v", left, err)
	}
}

func TestUpgradeKeepsEarlierMapsUntilActivated(t *testing.T) {
	w := newWorld(t)
	a, b := w.serve("tcp4", "127.0.0.1"), w.serve("tcp4", "127.0.0.1")
	f := datapath.Frontend{Scope: datapath.HostScope, Proto: datapath.TCP, Addr: vip4, Port: 80}
	w.must(w.k.SetFrontend(f, datapath.FrontendOK, backends(a)))
	w.upgrade(func() {
		if all, err := w.k.Frontends(); err != nil || len(all) > 0 {
			t.Errorf("new maps hold %v, %v", all, err)
		}
		w.must(w.k.SetFrontend(f, datapath.FrontendOK, backends(b)))
		if got, err := w.ask("tcp4", "240.0.0.1:80"); err != nil || got != a.String() {
			t.Errorf("before the switch %q answered, %v; want %s", got, err, a)
		}
		w.k.Close()
		w.load() // a crash in between changes nothing
		if got, err := w.ask("tcp4", "240.0.0.1:80"); err != nil || got != a.String() {
			t.Errorf("before the switch %q answered, %v; want %s", got, err, a)
		}
	})
	if got, err := w.ask("tcp4", "240.0.0.1:80"); err != nil || got != b.String() {
		t.Errorf("after the switch %q answered, %v; want %s", got, err, b)
	}
	w.do(w.k.Activate) // again: nothing
}

func TestSecondAgentOnOneCgroupIsRefused(t *testing.T) {
	w := newWorld(t)
	cfg := w.cfg
	cfg.PinDir += "-2"
	w.do(func() error {
		_, err := datapath.Load(cfg)
		if !errors.Is(err, datapath.ErrInUse) {
			t.Errorf("second agent: %v", err)
		}
		return nil
	})
	if _, err := os.Stat(cfg.PinDir); !os.IsNotExist(err) {
		t.Errorf("the refused agent left %s: %v", cfg.PinDir, err)
	}
	// Below it is another matter.
	cfg.Cgroup = filepath.Join(w.cfg.Cgroup, "below")
	w.must(os.Mkdir(cfg.Cgroup, 0o755))
	t.Cleanup(func() { os.Remove(cfg.Cgroup) })
	w.do(func() error {
		k, err := datapath.Load(cfg)
		if err != nil {
			return err
		}
		return errors.Join(k.Close(), datapath.Purge(cfg))
	})
}

func TestCgroupMadeAnew(t *testing.T) {
	h := testlab.New(t).Host("a")
	cfg := datapath.Config{Cgroup: filepath.Join(h.Cgroup(), "again"), PinDir: filepath.Join(h.BPFFS(), "fairlead")}
	for range 3 {
		if err := os.Mkdir(cfg.Cgroup, 0o755); err != nil {
			t.Fatal(err)
		}
		err := h.Do(func() error {
			k, err := datapath.Load(cfg)
			if err != nil {
				return err
			}
			return k.Close()
		})
		if err != nil {
			t.Fatal(err)
		}
		if n := attached(t, cfg.Cgroup); n != 9 {
			t.Errorf("%d programs are attached, want 9", n)
		}
		if err := os.Remove(cfg.Cgroup); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Do(func() error { return datapath.Purge(cfg) }); err != nil {
		t.Error(err)
	}
}

// attached counts the programs at the hooks we use.
func attached(t *testing.T, cgroup string) (n int) {
	t.Helper()
	dir, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for _, at := range []ebpf.AttachType{
		ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect, ebpf.AttachCGroupUDP4Sendmsg, ebpf.AttachCGroupUDP6Sendmsg,
		ebpf.AttachCGroupUDP4Recvmsg, ebpf.AttachCGroupUDP6Recvmsg, ebpf.AttachCgroupInet4GetPeername, ebpf.AttachCgroupInet6GetPeername, ebpf.AttachCgroupInetSockRelease,
	} {
		res, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: at})
		if err != nil {
			t.Fatal(err)
		}
		n += len(res.Programs)
	}
	return n
}

func TestPurgeLeavesNothing(t *testing.T) {
	w := newWorld(t)
	n := newNetwork(w)
	// The leak check of every test looks where these are.
	links, err := filepath.Glob(filepath.Join(w.cfg.PinDir, "links", "*"))
	w.must(err)
	inventory := strings.Join(w.host.Inventory(), "\n")
	if seen := strings.Count(inventory, w.cfg.Cgroup+": 1 programs at "); seen != len(links) {
		t.Errorf("the laboratory's inventory tells of %d of %d programs:\n%s", seen, len(links), inventory)
	}
	w.must(w.k.SetFrontend(datapath.Frontend{Scope: 1, Proto: datapath.TCP, Addr: vip4, Port: 80}, datapath.FrontendOK, backends(netip.MustParseAddrPort("127.0.0.1:1"))))
	w.k.Close()
	w.do(func() error { return datapath.Purge(w.cfg) })
	if _, err := os.Stat(w.cfg.PinDir); !os.IsNotExist(err) {
		t.Errorf("pins: %v", err)
	}
	if n := attached(t, w.cfg.Cgroup); n != 0 {
		t.Errorf("%d programs are attached", n)
	}
	for _, e := range n.ends {
		if out := w.host.Exec("tc", "qdisc", "show", "dev", e.dev) + w.host.Exec("tc", "filter", "show", "dev", e.dev, "ingress"); strings.Contains(out, "clsact") || strings.Contains(out, "fl_veth") {
			t.Errorf("veth %s still has %s", e.dev, out)
		}
	}
	w.do(func() error { return datapath.Purge(w.cfg) }) // again: nothing to do, no error
	w.load()
	if dump, err := datapath.Dump(w.k); err != nil || dump != "" {
		t.Errorf("a new start finds %s, %v", dump, err)
	}
}

func TestLoadSaysWhatIsWrong(t *testing.T) {
	h := testlab.New(t).Host("a")
	pins := filepath.Join(h.BPFFS(), "fairlead")
	for what, tc := range map[string]struct {
		cfg  datapath.Config
		want string
	}{
		"no such cgroup":       {datapath.Config{Cgroup: filepath.Join(h.Cgroup(), "none"), PinDir: pins}, "no such file"},
		"not a cgroup":         {datapath.Config{Cgroup: h.Dir(), PinDir: pins}, h.Dir()},
		"not bpffs":            {datapath.Config{Cgroup: h.Cgroup(), PinDir: filepath.Join(h.Dir(), "pins")}, "not on a bpf file system"},
		"relative directory":   {datapath.Config{Cgroup: h.Cgroup(), PinDir: "pins"}, "not an absolute path"},
		"nothing is specified": {datapath.Config{}, "not an absolute path"},
	} {
		err := h.Do(func() error {
			k, err := datapath.Load(tc.cfg)
			if err == nil {
				k.Close()
			}
			return err
		})
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want something with %q", what, err, tc.want)
		}
	}
	if _, err := os.Stat(pins); !os.IsNotExist(err) {
		t.Errorf("a refused start left %s: %v", pins, err)
	}
}

func TestFaultyFailsWhatItIsTold(t *testing.T) {
	boom := errors.New("boom")
	var asked []string
	m := datapath.NewFaulty(datapath.NewFake(), func(op string) error {
		asked = append(asked, op)
		if op == "SetScope" {
			return boom
		}
		return nil
	})
	if err := m.SetScope(7, 1); !errors.Is(err, boom) {
		t.Errorf("SetScope: %v", err)
	}
	if err := m.SetVIPPools(pool4, netip.Prefix{}); err != nil {
		t.Errorf("SetVIPPools: %v", err)
	}
	if got, err := datapath.Dump(m); err != nil || got != "vip-pool 240.0.0.0/4\n" {
		t.Errorf("dump %q, %v", got, err)
	}
	if want := []string{"SetScope", "SetVIPPools", "VIPPools", "Scopes", "Frontends", "Endpoints"}; !slices.Equal(asked, want) {
		t.Errorf("asked about %v, want %v", asked, want)
	}
}
