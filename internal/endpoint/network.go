package endpoint

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/fairlead-net/fairlead/internal/ipam"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/netdrv"
	"github.com/fairlead-net/fairlead/internal/state"
)

// The refusals of CreateNetwork beside those of ipam.
var (
	ErrNetworkName = errors.New("not a valid network name")
	ErrBadNetwork  = errors.New("not a valid network")
)

// The bounds of a network's MTU in bytes: IPv6's minimum (RFC 8200) and what a
// veth takes.
const (
	minMTU = 1280
	maxMTU = 65535
)

// CreateNetwork checks a network against everything this host already uses,
// records it and makes its bridge. Pools need only their prefix; without any, a
// free one of each family is chosen. When it fails nothing remains.
func (s *Set) CreateNetwork(ctx context.Context, n model.Network) (model.Network, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	n, err := s.recordNetwork(ctx, n)
	if err != nil {
		return model.Network{}, err
	}
	if n.Driver == model.DriverOverlay {
		return n, nil // it stands on a host with the first endpoint there
	}
	if err = s.ensureNetwork(ctx, n.Name, true); err == nil {
		err = s.applyRules(ctx)
	}
	if err == nil {
		return n, nil
	}
	ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	if _, derr := s.cfg.Registry.DeleteNetwork(ctx, n.Name); derr != nil {
		err = errors.Join(err, fmt.Errorf("take the record back: %w", derr))
	}
	if derr := s.dropNetwork(ctx, n.Name); derr != nil {
		s.log.Warn("undo network", "network", n.Name, "error", derr) // Run tries again
	}
	return model.Network{}, fmt.Errorf("create network %s: %w", n.Name, err)
}

// recordNetwork completes a network and writes it down. Two at once could not
// choose the same subnet, but one of them would fail for no reason of its own.
func (s *Set) recordNetwork(ctx context.Context, n model.Network) (model.Network, error) {
	unlock, err := s.choose.lock(ctx, struct{}{})
	if err != nil {
		return n, fmt.Errorf("create network %s: %w", n.Name, err)
	}
	defer unlock()
	if n, err = s.draftNetwork(ctx, n); err != nil {
		return n, err
	}
	if _, err := s.cfg.Registry.CreateNetwork(ctx, n); err != nil {
		return n, fmt.Errorf("create network %s: %w", n.Name, err)
	}
	return n, nil
}

// RemoveNetwork removes a network that has no endpoints, with its bridge.
func (s *Set) RemoveNetwork(ctx context.Context, name model.NetworkName) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	n, _ := s.cfg.State.Snapshot().Network(name)
	if n == nil {
		return fmt.Errorf("network %q: %w", name, ErrNoNetwork)
	}
	if err := s.usable(n); err != nil {
		return err
	}
	if _, err := s.cfg.Registry.DeleteNetwork(ctx, name); err != nil {
		return fmt.Errorf("remove network %s: %w", name, err)
	}
	return s.dropNetwork(ctx, name)
}

// here reports whether a network's bridge belongs on this host.
func (s *Set) here(snap *state.Snapshot, n *model.Network) bool {
	if n.Driver == model.DriverOverlay {
		return s.hasBlock(snap, n.Name)
	}
	return n.Node == s.cfg.Node && n.Driver == model.DriverBridge
}

// ensureNetwork makes a recorded network's bridge and the resolver's listeners.
// Unless it is full it relies on what it made before. A network that is recorded
// no more gives ErrNoNetwork.
func (s *Set) ensureNetwork(ctx context.Context, name model.NetworkName, full bool) error {
	unlock, err := s.bridge.lock(ctx, name)
	if err != nil {
		return fmt.Errorf("network %s: %w", name, err)
	}
	defer unlock()
	snap := s.cfg.State.Snapshot()
	record, _ := snap.Network(name)
	if record == nil || !s.here(snap, record) {
		return fmt.Errorf("network %s: %w", name, ErrNoNetwork)
	}
	n := *record
	n.Stamp = model.Stamp{}
	var overlay *netdrv.Overlay
	if n.Driver == model.DriverOverlay {
		o := s.overlay(snap, n)
		overlay = &o
	}
	s.mu.Lock()
	b, known := s.networks[name]
	s.mu.Unlock()
	if b.complete && !full && reflect.DeepEqual(b.network, n) && reflect.DeepEqual(b.overlay, overlay) {
		return nil
	}
	b.network, b.overlay, b.complete = n, overlay, false
	s.mu.Lock()
	s.networks[name] = b
	s.mu.Unlock()
	var failed error
	if overlay == nil {
		err = s.cfg.Driver.EnsureNetwork(ctx, n)
	} else if err = s.cfg.Driver.EnsureOverlay(ctx, *overlay); errors.Is(err, netdrv.ErrUnreachable) {
		failed, err = err, nil
	}
	if err != nil {
		return err
	}
	if !known {
		s.scopes.touch()
	}
	var listening []netip.AddrPort
	for _, p := range n.Pools {
		at := netip.AddrPortFrom(p.Gateway, dnsPort)
		if !slices.Contains(b.listening, at) {
			if err := s.cfg.Resolver.Listen(ctx, at); err != nil {
				failed = errors.Join(failed, fmt.Errorf("answer names at %s: %w", at, err))
				continue
			}
		}
		listening = append(listening, at)
	}
	b.listening, b.complete = listening, failed == nil
	s.mu.Lock()
	defer s.mu.Unlock()
	s.networks[name] = b
	return failed
}

// dropNetwork stops a network's resolver and removes its bridge, unless it is
// recorded again.
func (s *Set) dropNetwork(ctx context.Context, name model.NetworkName) error {
	unlock, err := s.bridge.lock(ctx, name)
	if err != nil {
		return fmt.Errorf("remove network %s: %w", name, err)
	}
	defer unlock()
	snap := s.cfg.State.Snapshot()
	if n, _ := snap.Network(name); n != nil && s.here(snap, n) {
		return nil
	}
	s.mu.Lock()
	b := s.networks[name]
	s.mu.Unlock()
	for _, at := range b.listening {
		s.cfg.Resolver.Unlisten(at)
	}
	err = s.cfg.Driver.RemoveNetwork(ctx, name)
	s.mu.Lock()
	if err != nil {
		s.networks[name] = bridged{network: b.network, overlay: b.overlay} // for Run to try again
	} else {
		delete(s.networks, name)
		delete(s.problems, problemOfNetwork(name))
	}
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("remove network %s: %w", name, err)
	}
	s.scopes.touch()
	return s.applyRules(ctx)
}

// spokenFor are the labels that have a meaning of their own in front of our
// domains: nobody in a network of that name could be found as NAME.NETWORK.internal.
var spokenFor = []string{"service", "node", "virtual", "addr", "query", "connect", "ingress"}

// draftNetwork fills in what the asker left open and refuses what cannot be.
func (s *Set) draftNetwork(ctx context.Context, n model.Network) (model.Network, error) {
	if !label.MatchString(string(n.Name)) {
		return n, fmt.Errorf("network %q: %w: want 1 to 63 letters, digits and inner hyphens", n.Name, ErrNetworkName)
	}
	if slices.Contains(spokenFor, strings.ToLower(string(n.Name))) {
		return n, fmt.Errorf("network %q: %w: in DNS that label means something else; choose another", n.Name, ErrNetworkName)
	}
	if n.Driver == "" {
		n.Driver = model.DriverBridge
	}
	if n.Driver != model.DriverBridge && n.Driver != model.DriverOverlay {
		return n, fmt.Errorf("driver %q: %w: there are %q and %q", n.Driver, ErrDriver, model.DriverBridge, model.DriverOverlay)
	}
	choose := ipam.Choose
	if n.Driver == model.DriverOverlay {
		choose = ipam.ChooseOverlay
		n.MTU = cmp.Or(n.MTU, overlayMTU)
	} else {
		n.Node = s.cfg.Node
	}
	if n.Transport != "" && n.Driver != model.DriverOverlay {
		return n, fmt.Errorf("transport %q: %w: only an overlay has one", n.Transport, ErrBadNetwork)
	}
	if n.MTU != 0 && (n.MTU < minMTU || n.MTU > maxMTU) {
		return n, fmt.Errorf("mtu %d: %w: want %d to %d bytes, or 0 for the default", n.MTU, ErrBadNetwork, minMTU, maxMTU)
	}
	n.Owner = model.OwnerOperator
	claims, err := s.claims(ctx)
	if err != nil {
		return n, err
	}
	if len(n.Pools) == 0 {
		for _, v6 := range []bool{false, true} {
			p, err := choose(claims, v6)
			if err != nil {
				return n, fmt.Errorf("choose a subnet: %w", err)
			}
			n.Pools = append(n.Pools, model.Pool{Prefix: p})
		}
	}
	n = n.Clone()
	families := map[bool]netip.Prefix{}
	for i, p := range n.Pools {
		pool, err := ipam.NewPool(p.Prefix, p.Gateway, p.Reserved)
		if err != nil {
			return n, fmt.Errorf("subnet %s: %w: %w", p.Prefix, ErrBadNetwork, err)
		}
		if was, twice := families[pool.Prefix.Addr().Is4()]; twice {
			return n, fmt.Errorf("subnets %s and %s: %w: they are of one family, and a network has at most one of each", was, pool.Prefix, ErrBadNetwork)
		}
		families[pool.Prefix.Addr().Is4()] = pool.Prefix
		if err := ipam.CheckOverlap(pool.Prefix, claims); err != nil {
			return n, err
		}
		n.Pools[i] = pool
	}
	return n, nil
}

// claims lists every prefix that a new network must leave alone: the host's
// routes and addresses, the other networks' and the VIPs' pools.
func (s *Set) claims(ctx context.Context) ([]ipam.Claim, error) {
	claims, err := s.cfg.Driver.Claims(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the host's routes: %w", err)
	}
	networks, _ := s.cfg.State.Snapshot().Networks()
	for _, n := range networks {
		for _, p := range n.Pools {
			claims = append(claims, ipam.Claim{Prefix: p.Prefix, Who: fmt.Sprintf("network %q", n.Name)})
		}
	}
	for _, p := range s.cfg.VIPPools {
		claims = append(claims, ipam.Claim{Prefix: p, Who: "the pool of service VIPs"})
	}
	return claims, nil
}
