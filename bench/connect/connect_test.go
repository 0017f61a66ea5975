package connect_test

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/datapath"
	"github.com/fairlead-net/fairlead/internal/testlab"
	"golang.org/x/sys/unix"
)

const (
	workerVar = "FAIRLEAD_BENCH_WORKER"
	rounds    = 300 // turns of each way for each size
	turn      = 25  // connects in a turn
	warm      = 5   // of these the first do not count: the worker has just woken up
	port      = 80
)

func TestMain(m *testing.M) {
	if os.Getenv(workerVar) != "" {
		if err := work(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// work reads addresses, connects to each once, and writes how long that took in nanoseconds.
func work(in io.Reader, out io.Writer) error {
	runtime.LockOSThread()
	// All workers on one CPU: two are rarely equally fast, on a virtual machine least of all.
	if err := unix.SchedSetaffinity(0, &unix.CPUSet{1}); err != nil {
		return fmt.Errorf("keep to the first CPU: %w", err)
	}
	r := bufio.NewReader(in)
	for {
		addrs := make([]byte, 6*turn)
		if _, err := io.ReadFull(r, addrs); err != nil {
			return nil // the benchmark is over
		}
		took := make([]byte, 0, 8*turn)
		for ; len(addrs) > 0; addrs = addrs[6:] {
			d, err := connect(&unix.SockaddrInet4{Addr: [4]byte(addrs), Port: int(binary.BigEndian.Uint16(addrs[4:]))})
			if err != nil {
				return err
			}
			took = binary.NativeEndian.AppendUint64(took, uint64(d))
		}
		if _, err := out.Write(took); err != nil {
			return err
		}
	}
}

func connect(to *unix.SockaddrInet4) (time.Duration, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	// Ends with a reset, so that ports are not used up by TIME_WAIT.
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return 0, err
	}
	start := time.Now()
	err = unix.Connect(fd, to)
	return time.Since(start), err
}

type worker struct {
	in  io.Writer
	out io.Reader
}

// start runs a worker in the host's network and the given cgroup.
func start(b *testing.B, h *testlab.Host, cgroup string) *worker {
	b.Helper()
	dir, err := os.Open(cgroup)
	if err != nil {
		b.Fatal(err)
	}
	defer dir.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), workerVar+"=1")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := h.Do(cmd.Start); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			b.Error(err)
		}
	})
	return &worker{in, out}
}

// connect takes one turn and returns how long each connect took, in microseconds.
func (w *worker) connect(b *testing.B, next func() netip.AddrPort) []float64 {
	b.Helper()
	var addrs []byte
	for range turn {
		a := next()
		addrs = append(addrs, a.Addr().AsSlice()...)
		addrs = binary.BigEndian.AppendUint16(addrs, a.Port())
	}
	if _, err := w.in.Write(addrs); err != nil {
		b.Fatal(err)
	}
	took := make([]byte, 8*turn)
	if _, err := io.ReadFull(w.out, took); err != nil {
		b.Fatal(err)
	}
	var us []float64
	for ; len(took) > 0; took = took[8:] {
		us = append(us, float64(binary.NativeEndian.Uint64(took))/1e3)
	}
	return us
}

func vip(service int) netip.Addr {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], 240<<24+uint32(service)+1)
	return netip.AddrFrom4(a)
}

// serve joins a namespace to the host by a veth, and accepts connections there.
func serve(b *testing.B, h *testlab.Host) netip.AddrPort {
	b.Helper()
	ns := h.Namespace("server")
	h.Exec("ip", "link", "add", "fl-bench", "type", "veth", "peer", "name", "eth0", "netns", ns.NetNSPath())
	h.Exec("ip", "addr", "add", "10.7.0.1/24", "dev", "fl-bench")
	h.Exec("ip", "link", "set", "fl-bench", "up")
	var l net.Listener
	err := ns.Do(func() (err error) {
		for _, args := range [][]string{{"addr", "add", "10.7.0.2/24", "dev", "eth0"}, {"link", "set", "eth0", "up"}} {
			if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
				return fmt.Errorf("ip %s: %s", strings.Join(args, " "), out)
			}
		}
		l, err = net.Listen("tcp4", "10.7.0.2:0")
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	b.Cleanup(func() { l.Close(); <-done })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func BenchmarkConnect(b *testing.B) {
	h := testlab.New(b).Host("bench")
	server := serve(b, h)
	hooked, plain := filepath.Join(h.Cgroup(), "hooked"), filepath.Join(h.Cgroup(), "plain")
	for _, dir := range []string{hooked, plain} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { os.Remove(dir) })
	}
	cfg := datapath.Config{Cgroup: hooked, PinDir: filepath.Join(h.BPFFS(), "fairlead")}
	var k *datapath.Kernel
	err := h.Do(func() (err error) {
		k, err = datapath.Load(cfg)
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		k.Close()
		if err := h.Do(func() error { return datapath.Purge(cfg) }); err != nil {
			b.Error(err)
		}
	})
	if err := k.SetVIPPools(netip.MustParsePrefix("240.0.0.0/4"), netip.Prefix{}); err != nil {
		b.Fatal(err)
	}
	if err := k.SetScope(h.Cookie(), datapath.HostScope); err != nil {
		b.Fatal(err)
	}
	a, z := start(b, h, plain), start(b, h, hooked)
	fmt.Printf("\n%9s  %-7s %9s %9s %9s %9s\n", "services", "", "p10 us", "ratio", "p50 us", "ratio")
	have := 0
	for _, services := range []int{10, 1_000, 10_000} {
		began := time.Now()
		for n := have; n < services; n++ {
			// Every service has backends of its own, only that they are all one server: no two sets are equal.
			f := datapath.Frontend{Scope: datapath.HostScope, Proto: datapath.TCP, Addr: vip(n), Port: port}
			if err := k.SetFrontend(f, datapath.FrontendOK, []datapath.Backend{{Addr: server, Weight: uint32(n) + 1}}); err != nil {
				b.Fatal(err)
			}
		}
		each := time.Since(began) / time.Duration(services-have)
		have = services
		measure(b, services, a, z, server)
		fmt.Printf("%9d  SetFrontend %s each\n", services, each.Round(100*time.Nanosecond))
	}
}

// measure lets the workers take turns and prints a line for each way. "vip" is one service's, always the same, as a direct connect has
// one destination; "any vip" is another service's each time, drawn from all, so that what a pick reads is in no cache.
func measure(b *testing.B, services int, plain, hooked *worker, server netip.AddrPort) {
	direct := func() netip.AddrPort { return server }
	toVIP := func() netip.AddrPort { return netip.AddrPortFrom(vip(services-1), port) }
	toAny := func() netip.AddrPort { return netip.AddrPortFrom(vip(rand.IntN(services)), port) }
	var us [4][]float64
	turns := []func() []float64{
		func() []float64 { return plain.connect(b, direct) },
		func() []float64 { return hooked.connect(b, direct) },
		func() []float64 { return hooked.connect(b, toVIP) },
		func() []float64 { return hooked.connect(b, toAny) },
	}
	for r := range rounds {
		for i := range turns {
			i = (i + r) % len(turns) // nobody always follows the same one
			us[i] = append(us[i], turns[i]()[warm:]...)
		}
	}
	for i, what := range []string{"direct", "hooked", "vip", "any vip"} {
		slices.Sort(us[i])
		p10, p50 := us[i][len(us[i])/10], us[i][len(us[i])/2]
		fmt.Printf("%9d  %-7s %9.2f %9.3f %9.2f %9.3f\n", services, what, p10, p10/us[0][len(us[0])/10], p50, p50/us[0][len(us[0])/2])
		if i >= 2 {
			b.ReportMetric(p50/us[0][len(us[0])/2], fmt.Sprintf("%s/direct-%d", strings.ReplaceAll(what, " ", "-"), services))
		}
	}
}
