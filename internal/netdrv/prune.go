package netdrv

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/vishvananda/netlink"

	"github.com/fairlead-net/fairlead/internal/model"
)

// Prune deletes the bridges, VXLAN devices and veths of ours that keep does not want: what an
// earlier agent made whose records are gone. keep is called with a link's name
// while nobody can make, change or delete the link, so it has to answer from the
// newest records and may not call this package. Prune returns the names of the
// links that it took away; veths vanish in the background, as in Detach.
func (h *Host) Prune(ctx context.Context, keep func(link string) bool) ([]string, error) {
	h.purging.RLock()
	defer h.purging.RUnlock()
	if err := live(ctx, "prune links"); err != nil {
		return nil, err
	}
	links, err := whole(h.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("prune links: %w", err)
	}
	var did []string
	var errs []error
	for _, kind := range []string{"veth", "vxlan", "bridge"} {
		for _, l := range links {
			if l.Type() != kind || !ours(l) {
				continue
			}
			prune := h.pruneVeth
			if kind != "veth" {
				prune = h.pruneNetwork
			}
			gone, err := prune(l, keep)
			if gone {
				h.log.Info("link without a record removed", "link", describeLink(l))
				did = append(did, l.Attrs().Name)
			}
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return did, fmt.Errorf("prune links: %w", err)
	}
	return did, nil
}

func (h *Host) pruneVeth(l netlink.Link, keep func(string) bool) (bool, error) {
	name := l.Attrs().Name
	defer h.plugs.busy.lock(name)()
	if h.dying(name) || keep(name) {
		return false, nil
	}
	if err := h.disablePort(l); err != nil && !missing(err) {
		h.log.Warn("bridge port not disabled before its deletion", "link", name, "error", err)
	}
	h.deleteLater(l)
	return true, nil
}

// pruneNetwork deletes a bridge or a VXLAN device.
func (h *Host) pruneNetwork(l netlink.Link, keep func(string) bool) (bool, error) {
	name := l.Attrs().Name
	defer h.networks.busy.lock(name)()
	if keep(name) {
		return false, nil
	}
	h.networks.mu.Lock()
	maps.DeleteFunc(h.networks.wanted, func(n model.NetworkName, _ wantedNetwork) bool { return BridgeName(n) == name || TunnelName(n) == name })
	h.networks.mu.Unlock()
	if err := h.nl.LinkDel(l); err != nil && !missing(err) {
		return false, fmt.Errorf("delete %s: %w", name, err)
	}
	return true, nil
}

// dying reports whether a link is already on its way out.
func (h *Host) dying(name string) bool {
	h.plugs.mu.Lock()
	defer h.plugs.mu.Unlock()
	return h.plugs.dying[name] != nil
}
