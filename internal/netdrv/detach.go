package netdrv

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/fairlead-net/fairlead/internal/model"
)

const (
	// bridgePortDisabled is BR_STATE_DISABLED.
	bridgePortDisabled = 0
	// dyingGroup is the link group in which links wait for their deletion.
	dyingGroup = 0x666c_0001
	// gather is how long a deletion waits for others to share its RCU pause.
	gather = 50 * time.Millisecond
)

// plugsState is the work on endpoints that is going on.
type plugsState struct {
	busy  keyed
	hurry chan struct{} // wakes the deleter

	mu      sync.Mutex // guards following
	pending []netlink.Link
	dying   map[string]chan struct{} // closed when the link is gone
	deleter chan struct{}            // closed when the deleter has ended; nil: none
}

// Detach cuts the endpoint off its network at once and deletes its veth pair in
// the background, since that takes the kernel 20 ms. No link is no error. An
// Attach of the same endpoint waits for the deletion; so do Purge and Close.
func (h *Host) Detach(ctx context.Context, e model.Endpoint) error {
	name := HostIf(e.ID)
	h.purging.RLock()
	defer h.purging.RUnlock()
	defer h.plugs.busy.lock(name)()
	if err := live(ctx, "detach endpoint "+string(e.ID)); err != nil {
		return err
	}
	link, err := h.nl.LinkByName(name)
	if missing(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("detach endpoint %s: look up %s: %w", e.ID, name, err)
	}
	if !ours(link) {
		return fmt.Errorf("detach endpoint %s: %s (%s): %w", e.ID, name, link.Type(), ErrNameClash)
	}
	// The address may be leased again before the link is gone.
	if err := h.disablePort(link); err != nil {
		h.log.Warn("bridge port not disabled before its deletion", "endpoint", e.ID, "link", name, "error", err)
	}
	h.deleteLater(link)
	return nil
}

// disablePort makes the bridge neither take frames from the link nor send any
// to it. Unlike setting the link down, it does not wait for RCU.
func (h *Host) disablePort(link netlink.Link) error {
	if link.Attrs().MasterIndex == 0 {
		return nil
	}
	return h.inHost(func() error {
		req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
		msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
		msg.Index = int32(link.Attrs().Index)
		req.AddData(msg)
		info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
		info.AddRtAttr(nl.IFLA_BRPORT_STATE, nl.Uint8Attr(bridgePortDisabled))
		req.AddData(info)
		_, err := req.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
}

// deleteLater hands the link to the deleter, which lives as long as it has work.
func (h *Host) deleteLater(link netlink.Link) {
	s := &h.plugs
	s.mu.Lock()
	defer s.mu.Unlock()
	name := link.Attrs().Name
	if s.dying[name] != nil {
		return
	}
	if s.dying == nil {
		s.dying = map[string]chan struct{}{}
	}
	s.dying[name] = make(chan struct{})
	s.pending = append(s.pending, link)
	if s.deleter == nil {
		s.deleter = make(chan struct{})
		go h.deletePending(s.deleter)
	}
}

func (h *Host) deletePending(ended chan struct{}) {
	defer close(ended)
	s := &h.plugs
	for {
		timer := time.NewTimer(gather)
		select {
		case <-timer.C:
		case <-s.hurry:
			timer.Stop()
		}
		s.mu.Lock()
		batch := s.pending
		s.pending = nil
		s.mu.Unlock()

		h.deleteLinks(batch)

		s.mu.Lock()
		for _, l := range batch {
			close(s.dying[l.Attrs().Name])
			delete(s.dying, l.Attrs().Name)
		}
		if len(s.pending) == 0 {
			s.deleter = nil
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
	}
}

// deleteLinks deletes links in one go: the kernel holds its lock on all links
// for 20 ms for each deletion, however many links it is about.
func (h *Host) deleteLinks(links []netlink.Link) {
	if len(links) > 1 && h.deleteGroup(links) == nil {
		return
	}
	for _, l := range links {
		if err := h.nl.LinkDel(l); err != nil && !missing(err) {
			h.log.Error("link not deleted", "link", l.Attrs().Name, "error", err)
		}
	}
}

func (h *Host) deleteGroup(links []netlink.Link) error {
	dying := map[int]bool{}
	for _, l := range links {
		dying[l.Attrs().Index] = true
		if err := h.nl.LinkSetGroup(l, dyingGroup); err != nil && !missing(err) {
			return err
		}
	}
	all, err := whole(h.nl.LinkList)
	if err != nil {
		return err
	}
	for _, l := range all {
		if l.Attrs().Group == dyingGroup && !dying[l.Attrs().Index] && !ours(l) {
			return fmt.Errorf("link %s is in group %d: %w", l.Attrs().Name, dyingGroup, ErrNameClash)
		}
	}
	return h.inHost(func() error {
		req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
		req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(dyingGroup)))
		_, err := req.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
}

// waitDeleted waits until a deletion of the link that is going on has ended.
func (h *Host) waitDeleted(ctx context.Context, name string) error {
	h.plugs.mu.Lock()
	done := h.plugs.dying[name]
	h.plugs.mu.Unlock()
	if done == nil {
		return ctx.Err()
	}
	h.hurryDeletions()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the deletion of %s: %w", name, ctx.Err())
	}
}

// waitDeletions waits until everything that was detached is deleted.
func (h *Host) waitDeletions() {
	for {
		h.plugs.mu.Lock()
		ended := h.plugs.deleter
		h.plugs.mu.Unlock()
		if ended == nil {
			return
		}
		h.hurryDeletions()
		<-ended
	}
}

func (h *Host) hurryDeletions() {
	select {
	case h.plugs.hurry <- struct{}{}:
	default:
	}
}
