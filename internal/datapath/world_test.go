package datapath_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/datapath"
	"github.com/fairlead-net/fairlead/internal/testlab"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	vip4  = netip.MustParseAddr("240.0.0.1")
	vip6  = netip.MustParseAddr("fd00:f1::1")
	pool4 = netip.MustParsePrefix("240.0.0.0/4")
	pool6 = netip.MustParsePrefix("fd00:f1::/64")
)

// world is a host with the data path loaded, in whose cgroup the test process itself lives while the test runs.
type world struct {
	t    testing.TB
	host *testlab.Host
	cfg  datapath.Config
	k    *datapath.Kernel
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, host: testlab.New(t).Host("a")}
	w.cfg = datapath.Config{Cgroup: enterCgroup(t, w.host), PinDir: filepath.Join(w.host.BPFFS(), "fairlead")}
	w.load()
	t.Cleanup(func() {
		w.k.Close()
		w.do(func() error { return datapath.Purge(w.cfg) })
	})
	w.must(w.k.SetVIPPools(pool4, pool6))
	w.must(w.k.SetScope(w.host.Cookie(), datapath.HostScope))
	return w
}

// load replaces w.k by a Kernel that adopts what is pinned.
func (w *world) load() {
	w.t.Helper()
	w.do(func() error {
		k, err := datapath.Load(w.cfg)
		if err == nil {
			w.k = k
		}
		return err
	})
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// do runs fn in the host's network namespace.
func (w *world) do(fn func() error) {
	w.t.Helper()
	w.must(w.host.Do(fn))
}

// enterCgroup moves the test process into a child of the host's cgroup until the test ends: sockets belong to the cgroup of the process
// that made them.
func enterCgroup(t testing.TB, h *testlab.Host) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	_, home, ok := strings.Cut(string(data), "0::")
	if !ok {
		t.Fatalf("not in a cgroup of version 2: %s", data)
	}
	home, _, _ = strings.Cut(home, "\n")
	dir := filepath.Join(h.Cgroup(), "clients")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	move := func(dir string) error { return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0o644) }
	if err := move(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := move(filepath.Join(filepath.Dir(h.Cgroup()), home)); err != nil {
			t.Error(err)
		}
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// serve starts an instance in the host that tells its address to whoever connects or sends, and returns that address.
func (w *world) serve(network, ip string) netip.AddrPort {
	w.t.Helper()
	var addr netip.AddrPort
	w.do(func() error {
		if strings.HasPrefix(network, "tcp") {
			l, err := net.Listen(network, net.JoinHostPort(ip, "0"))
			if err != nil {
				return err
			}
			w.t.Cleanup(func() { l.Close() })
			addr = l.Addr().(*net.TCPAddr).AddrPort()
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					fmt.Fprint(c, addr)
					// The client ends the connection; whatever it sends, this side ends with it.
					go func() { defer c.Close(); _, _ = c.Read(make([]byte, 1)) }()
				}
			}()
			return nil
		}
		p, err := net.ListenPacket(network, net.JoinHostPort(ip, "0"))
		if err != nil {
			return err
		}
		w.t.Cleanup(func() { p.Close() })
		addr = p.LocalAddr().(*net.UDPAddr).AddrPort()
		go func() {
			buf := make([]byte, 1500)
			for {
				_, from, err := p.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = p.WriteTo([]byte(addr.String()), from)
			}
		}()
		return nil
	})
	return addr
}

// ask connects from the host and returns which instance answered.
func (w *world) ask(network, addr string) (string, error) {
	var answer string
	err := w.host.Do(func() error {
		c, err := net.DialTimeout(network, addr, 5*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if strings.HasPrefix(network, "udp") {
			if _, err := c.Write([]byte("?")); err != nil {
				return err
			}
		}
		buf := make([]byte, 100)
		n, err := c.Read(buf)
		answer = string(buf[:n])
		if got := peer(c); err == nil && got != addr {
			return fmt.Errorf("getpeername says %s, connected to %s", got, addr)
		}
		return err
	})
	return answer, err
}

// peer returns what getpeername says about a connection.
func peer(c net.Conn) string {
	raw, err := c.(interface {
		SyscallConn() (syscall.RawConn, error)
	}).SyscallConn()
	if err != nil {
		return err.Error()
	}
	var out string
	_ = raw.Control(func(fd uintptr) {
		sa, err := unix.Getpeername(int(fd))
		switch sa := sa.(type) {
		case *unix.SockaddrInet4:
			out = netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)).String()
		case *unix.SockaddrInet6:
			out = netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)).String()
		default:
			out = fmt.Sprint(err)
		}
	})
	return out
}

func backends(addrs ...netip.AddrPort) []datapath.Backend {
	var out []datapath.Backend
	for _, a := range addrs {
		out = append(out, datapath.Backend{Addr: a, Weight: 1})
	}
	return out
}
