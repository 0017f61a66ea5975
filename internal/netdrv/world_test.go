package netdrv_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fairlead-net/fairlead/internal/ipam"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/netdrv"
	"github.com/fairlead-net/fairlead/internal/testlab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	vips4 = netip.MustParsePrefix("240.0.0.0/4")
	vips6 = netip.MustParsePrefix("fd77:1::/64")
)

// world is a host under test and its driver.
type world struct {
	t    testing.TB
	lab  *testlab.Lab
	node *testlab.Host
	drv  *netdrv.Host
	dir  string
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, lab: testlab.New(t), dir: t.TempDir()}
	w.node = w.lab.Host("node")
	w.drv = w.driver()
	return w
}

// driver opens a driver on the node, as a fresh agent would.
func (w *world) driver() *netdrv.Host {
	w.t.Helper()
	var h *netdrv.Host
	w.must(w.node.Do(func() (err error) {
		h, err = netdrv.New(netdrv.Config{
			StateDir: w.dir, VIPPools: []netip.Prefix{vips4, vips6}, Log: slog.New(slog.NewTextHandler(w.t.Output(), nil)),
		})
		return err
	}))
	w.t.Cleanup(func() {
		if err := h.Close(); err != nil {
			w.t.Errorf("close: %v", err)
		}
	})
	return h
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// network makes a network on the node.
func (w *world) network(name string, prefixes ...string) model.Network {
	w.t.Helper()
	n := model.Network{Name: model.NetworkName(name), Driver: model.DriverBridge}
	for _, p := range prefixes {
		pool, err := ipam.NewPool(netip.MustParsePrefix(p), netip.Addr{}, nil)
		w.must(err)
		n.Pools = append(n.Pools, pool)
	}
	w.must(w.drv.EnsureNetwork(w.t.Context(), n))
	return n
}

// workload is a namespace with an endpoint.
type workload struct {
	*testlab.NS
	name string
	ep   model.Endpoint
	net  model.Network
}

func (w *world) endpoint(name string, n model.Network, addrs ...string) workload {
	ns := w.node.Namespace(name)
	e := model.Endpoint{
		ID: model.EndpointID(name + "-id"), Workload: model.WorkloadName(name), Network: n.Name, NetNS: ns.NetNSPath(),
	}
	for _, a := range addrs {
		e.Addrs = append(e.Addrs, netip.MustParseAddr(a))
	}
	return workload{ns, name, e, n}
}

// Name is the workload's, without its host's.
func (w workload) Name() string { return w.name }

func (w *world) attach(p workload) netdrv.Plugged {
	w.t.Helper()
	got, err := w.drv.Attach(w.t.Context(), netdrv.Plug{Network: p.net, Endpoint: p.ep})
	w.must(err)
	return got
}

// run starts the driver's watch and returns when it listens.
func (w *world) run() {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- w.drv.Run(ctx, sync.OnceFunc(func() { close(ready) })) }()
	select {
	case <-ready:
	case err := <-done:
		w.t.Fatalf("Run ended: %v", err)
	}
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("Run: %v", err)
		}
	})
}

// space is where sockets can be opened: a host or a bare namespace.
type space interface {
	Do(fn func() error) error
	Name() string
}

// serve answers each TCP connection and UDP datagram at addr with the server's
// name and the client's address.
func serve(t testing.TB, at space, addr string) {
	t.Helper()
	var l net.Listener
	var pc net.PacketConn
	err := at.Do(func() (err error) {
		if l, err = net.Listen("tcp", addr); err != nil {
			return err
		}
		pc, err = net.ListenPacket("udp", addr)
		return err
	})
	if err != nil {
		t.Fatalf("serve %s on %s: %v", addr, at.Name(), err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = fmt.Fprintf(c, "%s %s\n", at.Name(), host(c.RemoteAddr()))
			_ = c.Close()
		}
	})
	wg.Go(func() {
		buf := make([]byte, 100)
		for {
			_, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(fmt.Appendf(nil, "%s %s\n", at.Name(), host(from)), from)
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		_ = pc.Close()
		wg.Wait()
	})
}

func host(a net.Addr) string {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return a.String()
	}
	return ap.Addr().Unmap().String()
}

// ask dials and returns the answer: "<server> <client's address as seen>".
func ask(from space, proto, addr string) (answer string, err error) {
	err = from.Do(func() error {
		c, err := net.DialTimeout(proto, addr, time.Second)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		if proto == "udp" {
			if _, err := c.Write([]byte("?")); err != nil {
				return err
			}
		}
		line, err := bufio.NewReader(c).ReadString('\n')
		answer = strings.TrimSpace(line)
		return err
	})
	return answer, err
}

// expect checks who answers; "" means that nobody may.
func expect(t testing.TB, from space, proto, addr, want string) {
	t.Helper()
	got, err := ask(from, proto, addr)
	switch {
	case want == "" && err == nil:
		t.Errorf("%s -> %s %s: answered by %q, want no way", from.Name(), proto, addr, got)
	case want != "" && (err != nil || got != want):
		t.Errorf("%s -> %s %s: %q, %v; want %q", from.Name(), proto, addr, got, err, want)
	}
}

// timedOut reports whether nothing came back at all.
func timedOut(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) || isTimeout(err) }

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// udpCaller is a socket that stays open between questions.
type udpCaller struct{ net.Conn }

func dialUDP(t testing.TB, from space, addr string) (c udpCaller) {
	t.Helper()
	err := from.Do(func() (err error) {
		c.Conn, err = net.Dial("udp", addr)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func (c udpCaller) ask(t testing.TB) string {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	return strings.TrimSpace(string(buf[:n]))
}
