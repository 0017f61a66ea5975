package netdrv

import (
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
)

// How long an attach waits for its pair to carry packets, and how often it looks.
const (
	carrierWait = 2 * time.Second
	carrierLook = time.Millisecond
)

// awaitCarrier waits until both ends of the pair and the bridge carry packets. The kernel notes
// that the other end is up in a work item of its own (net/core/link_watch.c);
// until then an interface drops what it is given, and a bridge does not forward
// to it. Without the wait a workload's first packet, most often its first name
// lookup, is lost and repeated only after seconds.
func (a *attachment) awaitCarrier(peer netlink.Link) error {
	ends := []struct {
		handle *netlink.Handle
		index  int
	}{
		{a.inner, peer.Attrs().Index}, {a.h.nl, a.result.HostIfIndex},
		// A bridge has a carrier while a port of it has one, so that of a network's
		// first endpoint has just got it; without, the gateway's answers are lost.
		{a.h.nl, a.bridge.Attrs().Index},
	}
	end := time.Now().Add(carrierWait)
	for _, e := range ends {
		for {
			l, err := e.handle.LinkByIndex(e.index)
			if err != nil {
				return fmt.Errorf("wait for the carrier: %w", err)
			}
			if l.Attrs().OperState == netlink.OperUp {
				break
			}
			if time.Now().After(end) {
				return fmt.Errorf("%s has no carrier after %s", l.Attrs().Name, carrierWait)
			}
			time.Sleep(carrierLook)
		}
	}
	// The state is shown before the rest is done, under one lock: a change, though
	// it changes nothing, waits for that lock and so for the rest.
	if err := a.inner.LinkSetUp(peer); err != nil {
		return fmt.Errorf("wait for the carrier: %w", err)
	}
	return nil
}
