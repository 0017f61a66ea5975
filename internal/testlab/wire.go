package testlab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Hosts are never joined directly: every link and switch is a bridge in one more namespace of the lab, where packets can
// be dropped without either host seeing its interface change or a foreign rule in its packet filter.

// A Wire joins hosts on one Ethernet segment.
type Wire struct {
	lab      *Lab
	bridge   string
	prefixes []netip.Prefix
	ends     map[*Host]*End
}

// End is a host's place on a wire.
type End struct {
	Device string         // name inside the host: eth0, eth1, ... in the order of joining
	Addrs  []netip.Prefix // one for each prefix of the wire, in its order
	port   string         // name on the wire's side
}

// Link joins two hosts by a cable of their own. Each prefix ("10.1.0.0/24", "fd01::/64") gives host a its first address
// and host b its second.
func (l *Lab) Link(a, b *Host, prefixes ...string) *Wire {
	l.tb.Helper()
	w := l.Switch(prefixes...)
	w.Join(a, b)
	return w
}

// Switch makes a segment for any number of hosts. Each host that joins gets the next address of every prefix.
func (l *Lab) Switch(prefixes ...string) *Wire {
	l.tb.Helper()
	w, err := l.newWire(prefixes)
	if err != nil {
		l.tb.Fatalf("testlab: new wire: %v", err)
	}
	return w
}

// Join plugs hosts into the wire.
func (w *Wire) Join(hosts ...*Host) {
	w.lab.tb.Helper()
	for _, h := range hosts {
		if err := w.join(h); err != nil {
			w.lab.tb.Fatalf("testlab: join host %s to the wire: %v", h.name, err)
		}
	}
}

// End is the host's place on the wire; the zero value when it has none.
func (w *Wire) End(h *Host) End {
	w.lab.mu.Lock()
	defer w.lab.mu.Unlock()
	if e := w.ends[h]; e != nil {
		return *e
	}
	return End{}
}

// Addr is the host's first address on the wire.
func (w *Wire) Addr(h *Host) netip.Addr {
	w.lab.tb.Helper()
	e := w.End(h)
	if len(e.Addrs) == 0 {
		w.lab.tb.Fatalf("testlab: host %s has no address on the wire", h.name)
	}
	return e.Addrs[0].Addr()
}

// DefaultVia sends what host from has no route for to the addresses of host via on this wire, in each family.
func (w *Wire) DefaultVia(from, via *Host) {
	w.lab.tb.Helper()
	dev := w.End(from).Device
	for _, p := range w.End(via).Addrs {
		from.Exec("ip", "route", "add", "default", "via", p.Addr().String(), "dev", dev)
	}
}

func (l *Lab) newWire(prefixes []string) (*Wire, error) {
	w := &Wire{lab: l, ends: map[*Host]*End{}}
	for _, s := range prefixes {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, err
		}
		w.prefixes = append(w.prefixes, p.Masked())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.wires == nil {
		closet := &NS{lab: l, host: &Host{dir: l.dir}, name: "wires", path: netnsDir + "/fl-" + l.id + "-wires", cwd: l.cwd}
		var err error
		if closet.thread, err = newThread(closet.unshareNet); err != nil {
			return nil, err
		}
		l.wires = closet
	}
	w.bridge = fmt.Sprintf("wire%d", len(l.segments))
	l.segments = append(l.segments, w)
	return w, l.wires.thread.run(func() error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: w.bridge}}
		if err := netlink.LinkAdd(br); err != nil {
			return fmt.Errorf("add bridge: %w", err)
		}
		// A cable learns and filters nothing: multicast snooping would hold back the first neighbour discovery.
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+w.bridge+"/disable_ipv6", []byte("1"), 0o644); err != nil {
			return err
		}
		if err := netlink.BridgeSetMcastSnoop(br, false); err != nil {
			return fmt.Errorf("set multicast snooping: %w", err)
		}
		return netlink.LinkSetUp(br)
	})
}

func (w *Wire) join(h *Host) error {
	w.lab.mu.Lock()
	defer w.lab.mu.Unlock()
	if w.ends[h] != nil {
		return errors.New("it has joined already")
	}
	end := &End{Device: fmt.Sprintf("eth%d", h.eth), port: fmt.Sprintf("p%d", w.lab.ports)}
	h.eth++
	w.lab.ports++
	for _, p := range w.prefixes {
		addr := p.Addr()
		for range len(w.ends) + 1 {
			addr = addr.Next()
		}
		if !p.Contains(addr) {
			return fmt.Errorf("no address left in %s", p)
		}
		end.Addrs = append(end.Addrs, netip.PrefixFrom(addr, p.Bits()))
	}
	w.ends[h] = end
	if err := h.thread.run(func() error { return plug(end, w.lab.wires.net) }); err != nil {
		return err
	}
	err := w.lab.wires.thread.run(func() error {
		br, err := netlink.LinkByName(w.bridge)
		if err != nil {
			return fmt.Errorf("find wire: %w", err)
		}
		port, err := netlink.LinkByName(end.port)
		if err != nil {
			return fmt.Errorf("find port: %w", err)
		}
		if err := netlink.LinkSetMaster(port, br); err != nil {
			return fmt.Errorf("plug port: %w", err)
		}
		if err := netlink.LinkSetUp(port); err != nil {
			return fmt.Errorf("set port up: %w", err)
		}
		return waitUp(end.port)
	})
	if err != nil {
		return err
	}
	return h.thread.run(func() error { return waitUp(end.Device) })
}

// waitUp waits until the kernel has noted the carrier, which it does a moment after the other end came up. Until then the
// device drops what it is given, and a bridge does not forward to it.
func waitUp(name string) error {
	err := poll(5*time.Second, time.Millisecond, func() error {
		dev, err := netlink.LinkByName(name)
		if err == nil && dev.Attrs().OperState != netlink.OperUp {
			err = fmt.Errorf("%s is %v", name, dev.Attrs().OperState)
		}
		return err
	})
	if err != nil {
		return err
	}
	// The state is shown before the queue is opened, under one lock: taking it once more is to wait for the rest.
	dev, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(dev)
}

// plug makes the host's device with its peer directly in the wires' namespace, on a thread that lives in the host.
func plug(end *End, wires *os.File) error {
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: end.Device}, PeerName: end.port,
		PeerNamespace: netlink.NsFd(int(wires.Fd()))}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("add %s: %w", end.Device, err)
	}
	// Its link-local address is usable at once, too, and is part of the host's first inventory.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+end.Device+"/accept_dad", []byte("0"), 0o644); err != nil {
		return fmt.Errorf("set sysctl: %w", err)
	}
	for _, p := range end.Addrs {
		addr, err := netlink.ParseAddr(p.String())
		if err != nil {
			return err
		}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // usable at once; nobody else can have it
		}
		if err := netlink.AddrAdd(veth, addr); err != nil {
			return fmt.Errorf("add address %s: %w", p, err)
		}
	}
	return netlink.LinkSetUp(veth)
}

// Partition drops every packet between the two hosts on the wires they share. Their interfaces stay up, and nothing tells
// either side. Cutting twice is the same as once.
func (l *Lab) Partition(a, b *Host) {
	l.tb.Helper()
	if err := l.setCut(a, b, true); err != nil {
		l.tb.Fatalf("testlab: partition %s from %s: %v", a.name, b.name, err)
	}
}

// Heal undoes Partition.
func (l *Lab) Heal(a, b *Host) {
	l.tb.Helper()
	if err := l.setCut(a, b, false); err != nil {
		l.tb.Fatalf("testlab: heal %s and %s: %v", a.name, b.name, err)
	}
}

func (l *Lab) setCut(a, b *Host, cut bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cuts == nil {
		l.cuts = map[[2]string]bool{}
	}
	shared := false
	for _, w := range l.segments {
		ea, eb := w.ends[a], w.ends[b]
		if ea == nil || eb == nil {
			continue
		}
		shared = true
		for _, pair := range [][2]string{{ea.port, eb.port}, {eb.port, ea.port}} {
			if cut {
				l.cuts[pair] = true
			} else {
				delete(l.cuts, pair)
			}
		}
	}
	if !shared {
		return errors.New("no wire joins them")
	}
	var rules strings.Builder
	rules.WriteString("table bridge cuts\ndelete table bridge cuts\ntable bridge cuts {\n" +
		"chain forward {\ntype filter hook forward priority 0;\n")
	for pair := range l.cuts {
		fmt.Fprintf(&rules, "iifname %q oifname %q drop\n", pair[0], pair[1])
	}
	rules.WriteString("}\n}\n")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules.String())
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := l.wires.thread.run(cmd.Start); err != nil {
		return fmt.Errorf("start nft: %w", err)
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, out.String())
	}
	return nil
}
