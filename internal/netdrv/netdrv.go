// Package netdrv is Fairlead's hand on the kernel's network: bridges, veth
// pairs, routes, sysctls and the nftables table "inet fairlead". It is the only
// package that speaks netlink or nftables to a host.
//
// The agent's reconcilers call it: endpoint for networks and endpoints, node at
// start and for `down --purge`. A Host acts on the network namespace that New
// was called in, whatever thread its methods are called from. All methods may
// be called from several goroutines; those that name the same thing are carried
// out one after the other. Everything is idempotent: a call finds what is there
// and completes it, so a caller repeats a call after an error or a restart.
//
// No foreign chain, link, route or address is ever changed. What a Host changes
// beside its own things are a few sysctls; each is journalled with its old value
// before it is written, and Purge puts it back.
package netdrv

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"regexp"
	"runtime"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead-net/fairlead/internal/ipam"
	"github.com/fairlead-net/fairlead/internal/model"
)

// Errors of this package, each wrapped with what it was about.
var (
	// ErrNoNetwork: the network's bridge does not exist; EnsureNetwork comes first.
	ErrNoNetwork = errors.New("the network has no bridge on this host")
	// ErrNoNamespace: the path of a workload's network namespace does not exist.
	ErrNoNamespace = errors.New("no such network namespace")
	// ErrNotNamespace: the path is not that of a network namespace.
	ErrNotNamespace = errors.New("not a network namespace")
	// ErrHostNamespace: the path leads to the host's own network namespace.
	ErrHostNamespace = errors.New("that is the host's own network namespace")
	// ErrNoIPv6: the network has an IPv6 pool, and the host has IPv6 turned off.
	ErrNoIPv6 = errors.New("IPv6 is off on this host (net.ipv6.conf.all.disable_ipv6=1 or no IPv6 in the kernel)")
	// ErrNameClash: a link of a name that we need belongs to something else.
	ErrNameClash = errors.New("a link of that name belongs to something else")
	// ErrPortTaken: somebody on the host uses the port.
	ErrPortTaken = errors.New("already in use on this host")
	// ErrPortClash: two endpoints publish the same port of the host.
	ErrPortClash = errors.New("published twice")
	// ErrRouteClash: a foreign route stands where a VIP pool's has to be.
	ErrRouteClash = errors.New("a foreign route stands in the way")
)

// netlinkTimeout bounds each exchange with the kernel.
const netlinkTimeout = 10 * time.Second

// Config of a Host.
type Config struct {
	// StateDir holds the journal of changed sysctls. Empty: it is kept in memory
	// only, and a Purge by another process does not restore them.
	StateDir string
	// VIPPools are the ranges that packets never leave the host for.
	VIPPools []netip.Prefix
	// Log may be nil.
	Log *slog.Logger
}

// Host is the network of one host; see the package comment. Make it with New
// and release it with Close.
type Host struct {
	cfg   Config
	log   *slog.Logger
	ns    *os.File // the network namespace that everything happens in
	nsID  nsID
	nl    *netlink.Handle
	known *sysctls

	// purging keeps links from being made while Purge removes them. It is taken
	// before every other lock.
	purging sync.RWMutex

	rules    rulesState
	networks networksState
	plugs    plugsState
	holds    holdsState
}

// New returns the Host of the calling thread's network namespace. It opens
// sockets and changes nothing; Run starts the watch over the packet filter.
func New(cfg Config) (*Host, error) {
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	h := &Host{cfg: cfg, log: log, known: &sysctls{dir: cfg.StateDir}}
	h.plugs.hurry = make(chan struct{}, 1)
	if err := h.open(); err != nil {
		h.release()
		return nil, fmt.Errorf("open the host's network: %w", err)
	}
	return h, nil
}

func (h *Host) open() (err error) {
	runtime.LockOSThread() // what follows is about this thread's namespace
	defer runtime.UnlockOSThread()
	if h.ns, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return err
	}
	if h.nsID, err = identify(h.ns); err != nil {
		return err
	}
	if h.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	return h.nl.SetSocketTimeout(netlinkTimeout)
}

func (h *Host) release() {
	if h.nl != nil {
		h.nl.Close()
	}
	if h.ns != nil {
		_ = h.ns.Close() // opened for reading only
	}
}

// Close waits for the link deletions that Detach began and releases the Host's
// sockets. Nothing else may be called any more. Held ports stay held until
// their own Close.
func (h *Host) Close() error {
	h.waitDeletions()
	h.release()
	return nil
}

// BridgeName is the name of a network's bridge.
func BridgeName(n model.NetworkName) string { return "fl-" + shortHash(string(n)) }

// HostIf is the name of an endpoint's host-side interface.
func HostIf(id model.EndpointID) string { return "flv" + shortHash(string(id)) }

// MAC is the address of an endpoint's interface: the recorded one, or the one
// that ipam makes for it.
func MAC(e model.Endpoint) string {
	if e.MAC != "" {
		return e.MAC
	}
	return ipam.MAC(e.ID, e.Addrs)
}

func shortHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:4])
}

// bridgeMAC is stable over re-creation, so that neighbour caches stay right.
func bridgeMAC(n model.NetworkName) net.HardwareAddr {
	sum := sha256.Sum256([]byte(n))
	return net.HardwareAddr{0x02, 0xfb, sum[4], sum[5], sum[6], sum[7]}
}

// The exact forms of our links' names: other links that begin alike are not ours.
var (
	bridgePattern = regexp.MustCompile(`^fl-[0-9a-f]{8}$`)
	vethPattern   = regexp.MustCompile(`^flv[0-9a-f]{8}$`)
	tunnelPattern = regexp.MustCompile(`^flx[0-9a-f]{8}$`)
)

// ours reports whether a link was made by this package.
func ours(l netlink.Link) bool {
	switch l.Type() {
	case "bridge":
		return bridgePattern.MatchString(l.Attrs().Name)
	case "veth":
		return vethPattern.MatchString(l.Attrs().Name)
	case "vxlan":
		return tunnelPattern.MatchString(l.Attrs().Name)
	}
	return false
}

// nsID identifies a namespace: a namespace is an inode.
type nsID struct{ dev, ino uint64 }

func identify(f *os.File) (nsID, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nsID{}, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	return nsID{dev: uint64(st.Dev), ino: st.Ino}, nil //nolint:unconvert // Dev's type differs between platforms
}

// inHost runs fn on a thread in the Host's namespace: sockets opened and
// /proc/sys/net read there belong to it.
func (h *Host) inHost(fn func() error) error { return inNamespace(h.ns, fn) }

// inNamespace runs fn on a thread that is in the network namespace ns, and
// puts the thread back. The process's first thread is not used, since /proc/self
// shows it as the whole process.
func inNamespace(ns *os.File, fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			result <- onThread(ns, fn)
			return
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread() // another thread: the waiting goroutine holds the first
			result <- onThread(ns, fn)
		}()
		<-done
		runtime.UnlockOSThread()
	}()
	return <-result
}

// onThread does it on the locked thread and unlocks it when the thread is back
// where it was. If it is not, it stays locked and so ends with its goroutine.
func onThread(ns *os.File, fn func() error) (err error) {
	back, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer func() { _ = back.Close() }() // opened for reading only
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", ns.Name(), err)
	}
	err = fn()
	if e := unix.Setns(int(back.Fd()), unix.CLONE_NEWNET); e == nil {
		runtime.UnlockOSThread()
	}
	return err
}

// keyed serialises work on things of the same name.
type keyed struct {
	mu    sync.Mutex // guards users
	users map[string]*keyLock
}

type keyLock struct {
	mu    sync.Mutex
	users int
}

func (k *keyed) lock(name string) (unlock func()) {
	k.mu.Lock()
	if k.users == nil {
		k.users = map[string]*keyLock{}
	}
	l := k.users[name]
	if l == nil {
		l = &keyLock{}
		k.users[name] = l
	}
	l.users++
	k.mu.Unlock()
	l.mu.Lock()
	return func() {
		l.mu.Unlock()
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.users, name)
		}
	}
}

// ipNet is p in the form netlink wants, host bits kept.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefixOf is the reverse of ipNet; false for nil and nonsense.
func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits == 0 {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a.Unmap(), ones), true
}

// missing reports whether err says that a link does not exist.
func missing(err error) bool {
	var none netlink.LinkNotFoundError
	return errors.As(err, &none) || errors.Is(err, unix.ENODEV)
}

// live returns ctx's error, wrapped, so that no work starts for nobody.
func live(ctx context.Context, what string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// closeQuietly closes what was only read from or is being given up.
func closeQuietly(c io.Closer) { _ = c.Close() }
