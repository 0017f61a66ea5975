package datapath_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/datapath"
	"github.com/fairlead-net/fairlead/internal/testlab"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// network is a bridge in the host with three endpoints, attached as the agent does it.
type network struct {
	w      *world
	number uint32
	ends   []*end
}

type end struct {
	ns    *testlab.NS
	dev   string // host side
	index int    // host side
	mac   [6]byte
	v4    netip.Addr
	v6    netip.Addr
}

func newNetwork(w *world) *network {
	w.t.Helper()
	n := &network{w: w, number: 7}
	w.host.Exec("ip", "link", "add", "br0", "type", "bridge")
	w.host.Exec("ip", "addr", "add", "10.9.0.1/24", "dev", "br0")
	w.host.Exec("ip", "addr", "add", "fd09::1/64", "dev", "br0", "nodad")
	w.host.Exec("ip", "link", "set", "br0", "up")
	for i := range 3 {
		n.add(fmt.Sprintf("e%d", i), byte(i+2))
	}
	return n
}

func (n *network) add(name string, last byte) {
	w := n.w
	w.t.Helper()
	e := &end{ns: w.host.Namespace(name), dev: "flv-" + name, v4: netip.AddrFrom4([4]byte{10, 9, 0, last}), v6: netip.AddrFrom16([16]byte{0xfd, 9, 15: last})}
	w.host.Exec("ip", "link", "add", e.dev, "type", "veth", "peer", "name", "eth0", "netns", e.ns.NetNSPath())
	w.host.Exec("ip", "link", "set", e.dev, "master", "br0", "up")
	w.must(e.ns.Do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		e.mac = [6]byte(l.Attrs().HardwareAddr)
		for _, a := range []string{e.v4.String() + "/24", e.v6.String() + "/64"} {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			addr.Flags = unix.IFA_F_NODAD
			if err := netlink.AddrAdd(l, addr); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(l)
	}))
	w.do(func() error {
		l, err := netlink.LinkByName(e.dev)
		if err != nil {
			return err
		}
		e.index = l.Attrs().Index
		return w.k.AttachVeth(datapath.Veth{IfIndex: e.index, Network: n.number, MAC: e.mac, Addrs: []netip.Addr{e.v4, e.v6}})
	})
	for _, a := range []netip.Addr{e.v4, e.v6} {
		w.must(w.k.SetEndpoint(datapath.NetEndpoint{Network: n.number, Addr: a, IfIndex: uint32(e.index), MAC: e.mac}))
	}
	n.ends = append(n.ends, e)
}

// dropForwarded is somebody else's firewall, such as Docker's or ufw's.
func (n *network) dropForwarded() {
	n.w.t.Helper()
	n.w.host.Exec("nft", `add table inet foreign; add chain inet foreign forward { type filter hook forward priority 0 ; policy drop ; }`)
	n.w.host.Exec("nft", `add rule inet foreign forward counter`)
	n.w.do(func() error {
		for _, f := range []string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables"} {
			if err := os.WriteFile("/proc/sys/net/bridge/"+f, []byte("1"), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
}

// exchange opens a TCP connection from one endpoint to another and sends one byte each way.
func exchange(from, to *end, addr netip.Addr) error {
	var l net.Listener
	err := to.ns.Do(func() (err error) {
		l, err = net.Listen("tcp", "[::]:0")
		return err
	})
	if err != nil {
		return err
	}
	defer l.Close()
	accepted := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = c.Write([]byte("!"))
			c.Close()
		}
		accepted <- err
	}()
	var c net.Conn
	err = from.ns.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", netip.AddrPortFrom(addr, l.Addr().(*net.TCPAddr).AddrPort().Port()).String(), 3*time.Second)
		return err
	})
	if err != nil {
		l.Close()
		<-accepted
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	_, err = c.Read(make([]byte, 1))
	return errors.Join(err, <-accepted)
}

func (n *network) counters() datapath.Counters {
	n.w.t.Helper()
	c, err := n.w.k.Counters()
	n.w.must(err)
	return c
}

func TestEastWestPassesForeignForwardDrop(t *testing.T) {
	w := newWorld(t)
	n := newNetwork(w)
	n.dropForwarded()
	a, b, c := n.ends[0], n.ends[1], n.ends[2]
	for _, pair := range [][2]*end{{a, b}, {b, a}, {c, a}} {
		for _, addr := range []netip.Addr{pair[1].v4, pair[1].v6} {
			if err := exchange(pair[0], pair[1], addr); err != nil {
				t.Errorf("to %s: %v", addr, err)
			}
		}
	}
	// Link-local addresses are nobody's in the maps.
	var local netip.Addr
	var zone string
	w.must(a.ns.Do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err == nil {
			zone = strconv.Itoa(l.Attrs().Index) // package net remembers names' indexes, whichever namespace they are in
		}
		return err
	}))
	w.must(b.ns.Do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return poll(func() error {
			addrs, err := netlink.AddrList(l, netlink.FAMILY_V6)
			for _, a := range addrs {
				if got, _ := netip.AddrFromSlice(a.IP); got.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0 {
					local = got.WithZone(zone)
					return nil
				}
			}
			return errors.Join(errors.New("no link-local address"), err)
		})
	}))
	if err := exchange(a, b, local); err != nil {
		t.Errorf("to %s: %v", local, err)
	}
	if n.counters().Redirected == 0 {
		t.Error("nothing was redirected")
	}
	w.k.Close()
	if err := exchange(a, b, b.v4); err != nil {
		t.Errorf("without an agent: %v", err)
	}
	w.load()
	if err := exchange(b, a, a.v6); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	// Without the program the foreign firewall has its way; so it is the program that the above owes itself to.
	for _, e := range n.ends {
		w.do(func() error { return w.k.DetachVeth(e.index) })
	}
	if err := exchange(a, b, b.v4); err == nil {
		t.Error("the foreign firewall drops nothing")
	}
	// Attached again by a later agent, it works again.
	w.k.Close()
	w.load()
	w.do(func() error {
		for _, e := range n.ends {
			if err := w.k.AttachVeth(datapath.Veth{IfIndex: e.index, Network: n.number, MAC: e.mac, Addrs: []netip.Addr{e.v4, e.v6}}); err != nil {
				return err
			}
		}
		return nil
	})
	if err := exchange(a, b, b.v4); err != nil {
		t.Error(err)
	}
}

func TestGatewayAndOtherNetworks(t *testing.T) {
	w := newWorld(t)
	n := newNetwork(w)
	host := &end{v4: netip.MustParseAddr("10.9.0.1"), v6: netip.MustParseAddr("fd09::1"), ns: &w.host.NS}
	for _, addr := range []netip.Addr{host.v4, host.v6} {
		if err := exchange(n.ends[0], host, addr); err != nil {
			t.Errorf("to the gateway %s: %v", addr, err)
		}
	}
	for _, addr := range []netip.Addr{n.ends[0].v4, n.ends[0].v6} {
		if err := exchange(host, n.ends[0], addr); err != nil {
			t.Errorf("from the gateway to %s: %v", addr, err)
		}
	}
	// An endpoint of the same address in another network is not meant.
	before := n.counters().Redirected
	w.must(w.k.SetEndpoint(datapath.NetEndpoint{Network: 8, Addr: host.v4, IfIndex: uint32(n.ends[1].index), MAC: n.ends[1].mac}))
	if err := exchange(n.ends[0], host, host.v4); err != nil {
		t.Errorf("to the gateway %s: %v", host.v4, err)
	}
	if after := n.counters().Redirected; after != before {
		t.Errorf("%d packets were redirected", after-before)
	}
}

func TestDuplicateAddressDetectionIsNotAnsweredByOneself(t *testing.T) {
	w := newWorld(t)
	n := newNetwork(w)
	a := n.ends[0]
	w.must(a.ns.Do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		addr, _ := netlink.ParseAddr(a.v6.String() + "/64")
		if err := netlink.AddrDel(l, addr); err != nil {
			return err
		}
		addr.Flags = 0
		if err := netlink.AddrAdd(l, addr); err != nil {
			return err
		}
		return poll(func() error {
			addrs, err := netlink.AddrList(l, netlink.FAMILY_V6)
			if err != nil {
				return err
			}
			for _, got := range addrs {
				if got.IP.Equal(addr.IP) && got.Flags&unix.IFA_F_TENTATIVE == 0 {
					return nil
				}
			}
			return fmt.Errorf("still tentative: %v", addrs)
		})
	}))
}

// TestSpoofedSourcesAreDropped sends raw frames and sees which ones the host's bridge and the other endpoint get.
func TestSpoofedSourcesAreDropped(t *testing.T) {
	w := newWorld(t)
	n := newNetwork(w)
	a, b := n.ends[0], n.ends[1]
	other4, other6 := netip.MustParseAddr("10.9.0.99"), netip.MustParseAddr("fd09::99")
	otherMAC := [6]byte{2, 9, 9, 9, 9, 9}
	local := netip.MustParseAddr("fe80::1234")
	for _, tc := range []struct {
		what  string
		frame []byte
		drop  bool
	}{
		{"own IPv4", ipFrame(a.mac, b.mac, a.v4, b.v4), false},
		{"own IPv6", ipFrame(a.mac, b.mac, a.v6, b.v6), false},
		{"link-local", ipFrame(a.mac, b.mac, local, b.v6), false},
		{"unspecified IPv4, as DHCP sends it", ipFrame(a.mac, [6]byte{255, 255, 255, 255, 255, 255}, netip.IPv4Unspecified(), netip.MustParseAddr("255.255.255.255")), false},
		{"own ARP", arpFrame(a.mac, a.mac, a.v4), false},
		{"ARP probe", arpFrame(a.mac, a.mac, netip.IPv4Unspecified()), false},
		{"own advertisement", advertFrame(a.mac, b.mac, a.v6, b.v6, a.v6), false},
		{"IPv4 of nobody", ipFrame(a.mac, b.mac, other4, b.v4), true},
		{"IPv4 of another endpoint", ipFrame(a.mac, b.mac, n.ends[2].v4, b.v4), true},
		{"IPv6 of nobody", ipFrame(a.mac, b.mac, other6, b.v6), true},
		{"IPv6 of another endpoint", ipFrame(a.mac, b.mac, n.ends[2].v6, b.v6), true},
		{"to the gateway too", ipFrame(a.mac, otherMAC, other4, netip.MustParseAddr("10.9.0.1")), true},
		{"another MAC address", ipFrame(otherMAC, b.mac, a.v4, b.v4), true},
		{"ARP of another's address", arpFrame(a.mac, a.mac, n.ends[2].v4), true},
		{"ARP with another's MAC address", arpFrame(a.mac, otherMAC, a.v4), true},
		{"advertisement of another's address", advertFrame(a.mac, b.mac, a.v6, b.v6, n.ends[2].v6), true},
		{"shorter than its header", ipFrame(a.mac, b.mac, a.v4, b.v4)[:20], true},
	} {
		before := n.counters()
		w.must(a.ns.Do(func() error { return sendFrame(tc.frame) }))
		// What a veth sends is processed by the receiving side within the call or shortly after.
		err := poll(func() error {
			c := n.counters()
			switch dropped, passed := c.Spoofed+c.Malformed-before.Spoofed-before.Malformed, c.Redirected+c.Bridged-before.Redirected-before.Bridged; {
			case tc.drop && dropped > 0, !tc.drop && passed > 0 && dropped == 0:
				return nil
			default:
				return fmt.Errorf("%d dropped, %d passed", dropped, passed)
			}
		})
		if err != nil {
			t.Errorf("%s: %v", tc.what, err)
		}
	}
}

func ethernet(src, dst [6]byte, proto uint16, payload ...[]byte) []byte {
	head := append(append(slices.Clone(dst[:]), src[:]...), byte(proto>>8), byte(proto))
	return append(head, bytes.Join(payload, nil)...)
}

// ipFrame is a UDP datagram, its checksums wrong: who looks at addresses does not care.
func ipFrame(srcMAC, dstMAC [6]byte, src, dst netip.Addr) []byte {
	udp := []byte{0, 9, 0, 9, 0, 8, 0, 0}
	if src.Is4() {
		return ethernet(srcMAC, dstMAC, unix.ETH_P_IP, []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}, src.AsSlice(), dst.AsSlice(), udp)
	}
	return ethernet(srcMAC, dstMAC, unix.ETH_P_IPV6, []byte{0x60, 0, 0, 0, 0, 8, unix.IPPROTO_UDP, 64}, src.AsSlice(), dst.AsSlice(), udp)
}

func arpFrame(srcMAC, senderMAC [6]byte, sender netip.Addr) []byte {
	return ethernet(srcMAC, [6]byte{255, 255, 255, 255, 255, 255}, unix.ETH_P_ARP, []byte{0, 1, 8, 0, 6, 4, 0, 1}, senderMAC[:], sender.AsSlice(), make([]byte, 6), sender.AsSlice())
}

func advertFrame(srcMAC, dstMAC [6]byte, src, dst, target netip.Addr) []byte {
	return ethernet(srcMAC, dstMAC, unix.ETH_P_IPV6, []byte{0x60, 0, 0, 0, 0, 24, unix.IPPROTO_ICMPV6, 255}, src.AsSlice(), dst.AsSlice(), []byte{136, 0, 0, 0, 0x40, 0, 0, 0}, target.AsSlice())
}

// sendFrame sends from eth0 of the namespace the calling thread is in.
func sendFrame(frame []byte) error {
	ifc, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Protocol: binary.BigEndian.Uint16(frame[12:14]), Ifindex: ifc.Index})
}

func TestAttachVethTwiceAndDetach(t *testing.T) {
	w := newWorld(t)
	n := newNetwork(w)
	a := n.ends[0]
	more := datapath.Veth{IfIndex: a.index, Network: n.number, MAC: a.mac, Addrs: []netip.Addr{a.v4, netip.MustParseAddr("10.9.0.77"), a.v6}}
	fake := datapath.NewFake()
	for _, e := range n.ends {
		w.must(fake.AttachVeth(datapath.Veth{IfIndex: e.index, Network: n.number, MAC: e.mac, Addrs: []netip.Addr{e.v4, e.v6}}))
	}
	w.must(fake.AttachVeth(more))
	w.do(func() error { return w.k.AttachVeth(more) })
	w.do(func() error { return w.k.AttachVeth(more) })
	same := func() {
		t.Helper()
		want, _ := fake.Veths()
		got, err := w.k.Veths()
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("kernel has %v, %v; fake %v", got, err, want)
		}
	}
	same()
	if out := w.host.Exec("tc", "filter", "show", "dev", a.dev, "ingress"); bytes.Count([]byte(out), []byte("handle 0x1 fl_veth")) != 1 {
		t.Errorf("filters: %s", out)
	}
	// A link that went without notice, and one that is there.
	w.host.Exec("ip", "link", "del", a.dev)
	for _, e := range n.ends[:2] {
		w.do(func() error { return w.k.DetachVeth(e.index) })
		w.do(func() error { return w.k.DetachVeth(e.index) })
		w.must(fake.DetachVeth(e.index))
	}
	same()
	if n := w.pinned("macs").entries(); n != 1 {
		t.Errorf("%d MAC addresses are left of one veth", n)
	}
	for what, v := range map[string]datapath.Veth{
		"no link":            {Network: 1, MAC: a.mac},
		"no network":         {IfIndex: 1, MAC: a.mac},
		"no MAC address":     {IfIndex: 1, Network: 1},
		"unspecified":        {IfIndex: 1, Network: 1, MAC: a.mac, Addrs: []netip.Addr{netip.IPv6Unspecified()}},
		"too many addresses": {IfIndex: 1, Network: 1, MAC: a.mac, Addrs: slices.Repeat([]netip.Addr{a.v4}, datapath.MaxVethAddrs+1)},
	} {
		if err := errors.Join(w.k.AttachVeth(v), fake.AttachVeth(v)); !errors.Is(err, datapath.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// poll asks until there is no error, for at most ten seconds.
func poll(cond func() error) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); ; <-tick.C {
		err := cond()
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}
