package datapath_test

import (
	"errors"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/datapath"
	"golang.org/x/sys/unix"
)

func TestConnectSpreadsByWeight(t *testing.T) {
	w := newWorld(t)
	for _, tc := range []struct {
		network, ip string
		proto       uint8
		vip         netip.Addr
	}{
		{"tcp4", "127.0.0.1", datapath.TCP, vip4},
		{"tcp6", "::1", datapath.TCP, vip6},
		{"udp4", "127.0.0.1", datapath.UDP, vip4},
		{"udp6", "::1", datapath.UDP, vip6},
	} {
		t.Run(tc.network, func(t *testing.T) {
			a, b, idle := w.serve(tc.network, tc.ip), w.serve(tc.network, tc.ip), w.serve(tc.network, tc.ip)
			f := datapath.Frontend{Scope: datapath.HostScope, Proto: tc.proto, Addr: tc.vip, Port: 80}
			w.must(w.k.SetFrontend(f, datapath.FrontendOK, []datapath.Backend{{Addr: a, Weight: 1}, {Addr: b, Weight: 3}, {Addr: idle}}))
			const n = 600
			got := map[string]int{}
			for range n {
				answer, err := w.ask(tc.network, netip.AddrPortFrom(tc.vip, 80).String())
				w.must(err)
				got[answer]++
			}
			// Three quarters of 600 with a standard deviation of 10.6; six of them are one failure in 500 million runs.
			if math.Abs(float64(got[b.String()]-n*3/4)) > 64 || got[a.String()]+got[b.String()] != n {
				t.Errorf("weights 1, 3 and 0 gave %v", got)
			}
		})
	}
}

func TestMappedAddressIsIPv4(t *testing.T) {
	w := newWorld(t)
	for network, proto := range map[string]uint8{"tcp4": datapath.TCP, "udp4": datapath.UDP} {
		a := w.serve(network, "127.0.0.1")
		w.must(w.k.SetFrontend(datapath.Frontend{Scope: 1, Proto: proto, Addr: vip4, Port: 80}, datapath.FrontendOK, backends(a)))
	}
	for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
		w.do(func() error {
			fd, err := unix.Socket(unix.AF_INET6, typ|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			to := &unix.SockaddrInet6{Addr: vip4.As16(), Port: 80}
			if err := unix.Connect(fd, to); err != nil {
				return err
			}
			sa, err := unix.Getpeername(fd)
			if got, ok := sa.(*unix.SockaddrInet6); err != nil || !ok || got.Addr != to.Addr || got.Port != 80 {
				t.Errorf("socket type %d: getpeername: %+v, %v", typ, sa, err)
			}
			return nil
		})
	}
}

func TestWhatCannotBeReachedFailsAtOnce(t *testing.T) {
	w := newWorld(t)
	a4, a6 := netip.MustParseAddrPort("127.0.0.1:9"), netip.MustParseAddrPort("[::1]:9")
	for _, proto := range []uint8{datapath.TCP, datapath.UDP} {
		for vip, a := range map[netip.Addr]netip.AddrPort{vip4: a4, vip6: a6} {
			set := func(scope datapath.Scope, port uint16, s datapath.State, b []datapath.Backend) {
				w.must(w.k.SetFrontend(datapath.Frontend{Scope: scope, Proto: proto, Addr: vip, Port: port}, s, b))
			}
			set(1, 81, datapath.FrontendNoHealthy, nil)
			set(1, 82, datapath.FrontendUnreachable, nil)
			set(1, 83, datapath.FrontendOK, nil)
			set(1, 84, datapath.FrontendOK, []datapath.Backend{{Addr: a}})
			set(2, 85, datapath.FrontendOK, backends(a))
		}
	}
	outside := w.host.Namespace("outside")
	for _, tc := range []struct {
		what    string
		port    string
		outside bool
		want    error
	}{
		{"no healthy instance", "81", false, unix.ECONNREFUSED},
		{"no reachable instance", "82", false, unix.EHOSTUNREACH},
		{"no instance", "83", false, unix.ECONNREFUSED},
		{"only drained instances", "84", false, unix.ECONNREFUSED},
		{"frontend of another scope", "85", false, unix.ECONNREFUSED},
		{"unknown port", "86", false, unix.ECONNREFUSED},
		{"namespace without a scope", "81", true, unix.EHOSTUNREACH},
	} {
		for _, network := range []string{"tcp", "udp"} {
			for _, vip := range []netip.Addr{vip4, vip6} {
				in := w.host.Do
				if tc.outside {
					in = outside.Do
				}
				to := net.JoinHostPort(vip.String(), tc.port)
				err := in(func() error {
					c, err := net.Dial(network, to)
					if err == nil {
						c.Close()
					}
					return err
				})
				if !errors.Is(err, tc.want) {
					t.Errorf("%s: connect %s %s: %v, want %v", tc.what, network, to, err, tc.want)
				}
				if network == "tcp" {
					continue
				}
				err = in(func() error {
					p, err := net.ListenPacket("udp", net.JoinHostPort(map[bool]string{true: "0.0.0.0", false: "::"}[vip.Is4()], "0"))
					if err != nil {
						return err
					}
					defer p.Close()
					_, err = p.WriteTo([]byte("?"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to)))
					return err
				})
				if !errors.Is(err, tc.want) {
					t.Errorf("%s: sendto %s: %v, want %v", tc.what, to, err, tc.want)
				}
			}
		}
	}
}

func TestOtherDestinationsAreLeftAlone(t *testing.T) {
	w := newWorld(t)
	a := w.serve("tcp4", "127.0.0.1")
	u := w.serve("udp4", "127.0.0.1")
	for network, to := range map[string]netip.AddrPort{"tcp4": a, "udp4": u} {
		if got, err := w.ask(network, to.String()); err != nil || got != to.String() {
			t.Errorf("%s %s: answered by %q, %v", network, to, got, err)
		}
	}
	// A resolver connects UDP sockets to port 0 to sort addresses; that has to depend on routes alone.
	w.host.Exec("ip", "route", "add", "240.0.0.0/4", "dev", "lo")
	w.do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Connect(fd, &unix.SockaddrInet4{Addr: vip4.As4()})
	})
}

func TestPublishedPortOnHostAddress(t *testing.T) {
	w := newWorld(t)
	a := w.serve("tcp4", "127.0.0.1")
	f := datapath.Frontend{Scope: datapath.HostScope, Proto: datapath.TCP, Addr: netip.MustParseAddr("127.0.0.1"), Port: 8080}
	w.must(w.k.SetFrontend(f, datapath.FrontendOK, backends(a)))
	if got, err := w.ask("tcp4", "127.0.0.1:8080"); err != nil || got != a.String() {
		t.Errorf("answered by %q, %v", got, err)
	}
}

// udpSocket sends to one VIP again and again without connecting.
type udpSocket struct {
	w  *world
	p  net.PacketConn
	to net.Addr
}

func (w *world) udpSocket(network, local, to string) *udpSocket {
	w.t.Helper()
	s := &udpSocket{w: w, to: net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))}
	w.do(func() (err error) {
		s.p, err = net.ListenPacket(network, local)
		return err
	})
	w.t.Cleanup(func() { s.p.Close() })
	return s
}

// ask returns which instance answered, and fails the test if the answer does not seem to come from where the question went.
func (s *udpSocket) ask() string {
	s.w.t.Helper()
	_, err := s.p.WriteTo([]byte("?"), s.to)
	s.w.must(err)
	buf := make([]byte, 100)
	_ = s.p.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, from, err := s.p.ReadFrom(buf)
	s.w.must(err)
	if from.String() != s.to.String() {
		s.w.t.Fatalf("sent to %s, answered from %s", s.to, from)
	}
	return string(buf[:n])
}

func TestUDPIsSticky(t *testing.T) {
	w := newWorld(t)
	for _, tc := range []struct {
		network, ip string
		vip         netip.Addr
	}{{"udp4", "127.0.0.1", vip4}, {"udp6", "::1", vip6}} {
		t.Run(tc.network, func(t *testing.T) {
			f := datapath.Frontend{Scope: datapath.HostScope, Proto: datapath.UDP, Addr: tc.vip, Port: 53}
			var all []netip.AddrPort
			for range 8 {
				all = append(all, w.serve(tc.network, tc.ip))
			}
			set := func(b ...datapath.Backend) { w.must(w.k.SetFrontend(f, datapath.FrontendOK, b)) }
			set(backends(all...)...)
			s := w.udpSocket(tc.network, net.JoinHostPort(tc.ip, "0"), netip.AddrPortFrom(tc.vip, 53).String())
			first := s.ask()
			keeps := func(when string) {
				t.Helper()
				for range 20 {
					if got := s.ask(); got != first {
						t.Fatalf("%s: answered by %s, before by %s", when, got, first)
					}
				}
			}
			keeps("nothing changed")
			mine := netip.MustParseAddrPort(first)
			weighted := backends(all...)
			for i := range weighted {
				weighted[i].Weight = uint32(i + 1)
			}
			set(weighted...)
			keeps("weights changed")
			var draining []datapath.Backend
			for _, a := range all {
				b := datapath.Backend{Addr: a, Weight: 1}
				if a == mine {
					b.Weight = 0
				}
				draining = append(draining, b)
			}
			set(draining...)
			keeps("instance draining")
			w.k.Close()
			w.load()
			keeps("agent restarted")
			var rest []netip.AddrPort
			for _, a := range all {
				if a != mine {
					rest = append(rest, a)
				}
			}
			set(backends(rest...)...)
			if first = s.ask(); first == mine.String() {
				t.Fatalf("answered by %s, which is gone", first)
			}
			keeps("after the instance was gone")
		})
	}
}

func TestGoneInstanceEndsItsConnections(t *testing.T) {
	w := newWorld(t)
	a, b := w.serve("tcp4", "127.0.0.1"), w.serve("tcp4", "127.0.0.1")
	f := datapath.Frontend{Scope: datapath.HostScope, Proto: datapath.TCP, Addr: vip4, Port: 80}
	w.must(w.k.SetFrontend(f, datapath.FrontendOK, backends(a, b)))
	conns := map[string][]net.Conn{}
	for len(conns[a.String()]) < 3 || len(conns[b.String()]) < 3 {
		var c net.Conn
		w.do(func() (err error) { c, err = net.Dial("tcp", "240.0.0.1:80"); return err })
		t.Cleanup(func() { c.Close() })
		buf := make([]byte, 100)
		n, err := c.Read(buf)
		w.must(err)
		conns[string(buf[:n])] = append(conns[string(buf[:n])], c)
	}
	w.must(w.k.SetFrontend(f, datapath.FrontendOK, backends(b)))
	picks, err := w.k.PickedTo(a)
	w.must(err)
	if len(picks) != len(conns[a.String()]) {
		t.Fatalf("%d sockets were picked to %s, found %v", len(conns[a.String()]), a, picks)
	}
	if both, err := w.k.PickedTo(a, b); err != nil || len(both) != len(conns[a.String()])+len(conns[b.String()]) {
		t.Errorf("sockets picked to %s and %s: %v, %v", a, b, both, err)
	}
	elsewhere := w.host.Namespace("elsewhere")
	w.must(elsewhere.Do(func() error {
		n, err := datapath.DestroySockets(picks)
		if n != 0 {
			t.Errorf("ended %d sockets of another namespace", n)
		}
		return err
	}))
	w.do(func() error {
		elsewhere := slices.Clone(picks)
		for i := range elsewhere {
			elsewhere[i].Instance = b
		}
		if n, err := datapath.DestroySockets(elsewhere); n != 0 || err != nil {
			t.Errorf("ended %d sockets that are connected elsewhere, %v", n, err)
		}
		n, err := datapath.DestroySockets(picks)
		if n != len(picks) {
			t.Errorf("ended %d of %d sockets", n, len(picks))
		}
		return err
	})
	for _, c := range conns[a.String()] {
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
			t.Errorf("connection to the gone instance: %v", err)
		}
	}
	for _, c := range conns[b.String()] {
		_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("connection to the other instance: %v", err)
		}
	}
	for _, c := range slices.Concat(conns[a.String()], conns[b.String()]) {
		c.Close()
	}
	if n := w.pinned("picks").entries(); n != 0 {
		t.Errorf("%d picks are remembered of sockets that are closed", n)
	}
}

// TestSocketsThatShareAPlaceAreBothRemembered makes sockets until one has the place of a connected one.
func TestSocketsThatShareAPlaceAreBothRemembered(t *testing.T) {
	w := newWorld(t)
	a := w.serve("tcp4", "127.0.0.1")
	w.must(w.k.SetFrontend(datapath.Frontend{Scope: 1, Proto: datapath.TCP, Addr: vip4, Port: 80}, datapath.FrontendOK, backends(a)))
	to := &unix.SockaddrInet4{Addr: vip4.As4(), Port: 80}
	places := uint64(w.pinned("picks").m.MaxEntries())
	socket := func() (fd int, place uint64) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		w.must(err)
		cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
		w.must(err)
		return fd, cookie % places
	}
	const held = 100
	w.do(func() error {
		taken := map[uint64]bool{}
		for range held {
			fd, place := socket()
			defer unix.Close(fd)
			if err := unix.Connect(fd, to); err != nil {
				return err
			}
			taken[place] = true
		}
		for range 2_000_000 {
			fd, place := socket()
			if !taken[place] {
				unix.Close(fd)
				continue
			}
			defer unix.Close(fd)
			if err := unix.Connect(fd, to); err != nil {
				return err
			}
			if sa, err := unix.Getpeername(fd); err != nil || sa.(*unix.SockaddrInet4).Addr != to.Addr {
				t.Errorf("getpeername: %+v, %v", sa, err)
			}
			picks, err := w.k.PickedTo(a)
			if len(picks) != held+1 {
				t.Errorf("found %d of %d sockets", len(picks), held+1)
			}
			return err
		}
		return errors.New("no socket came to the place of another")
	})
	for _, name := range []string{"picks", "more_picks"} {
		if n := w.pinned(name).entries(); n != 0 {
			t.Errorf("%d picks are left in %s after all sockets were closed", n, name)
		}
	}
}
