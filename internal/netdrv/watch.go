package netdrv

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"
	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/task"
)

const (
	// settle is how long Run waits after a notice for more of the same burst.
	settle = 5 * time.Millisecond
	// resyncEvery is how often everything is compared without a notice.
	resyncEvery = 30 * time.Second
	// nftGroup is NFNLGRP_NFTABLES.
	nftGroup = 7
)

// Run keeps what SetRules and EnsureNetwork made: it listens to the kernel's
// notices, and when somebody flushed or changed our table, when a bridge of ours
// is gone or the host's own prefixes changed, it repairs that, usually within
// 50 ms; every 30 s it compares without a notice. It calls ready once it listens
// and returns nil when ctx ends, after the deletions that Detach began.
func (h *Host) Run(ctx context.Context, ready func()) error {
	defer h.waitDeletions()
	notices := make(chan struct{}, 1)
	filter, err := h.listen(unix.NETLINK_NETFILTER, nftGroup)
	if err != nil {
		return err
	}
	links, err := h.listen(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
	if err != nil {
		return errors.Join(err, filter.Close())
	}
	var listeners sync.WaitGroup
	listeners.Go(func() { h.forward(ctx, filter, notices, concernsTable) })
	listeners.Go(func() { h.forward(ctx, links, notices, concernsLinks) })
	defer func() {
		closeQuietly(filter) // ends the listeners
		closeQuietly(links)
		listeners.Wait()
	}()
	ready()

	var failing task.Backoff
	next := time.Duration(0) // what was missed before Run
	for {
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		case <-notices:
			timer.Stop()
			if task.Sleep(ctx, settle) != nil {
				return nil
			}
		}
		if err := h.repair(); err != nil {
			next = min(failing.Next(), resyncEvery)
			h.log.Error("host network not as it should be", "error", err, "retry", next)
			continue
		}
		failing.Reset()
		next = task.Jitter(resyncEvery)
	}
}

// listen opens a socket that hears of changes in the host's namespace.
func (h *Host) listen(proto int, groups ...uint32) (*mdnetlink.Conn, error) {
	c, err := mdnetlink.Dial(proto, &mdnetlink.Config{NetNS: int(h.ns.Fd())})
	if err != nil {
		return nil, fmt.Errorf("listen to the kernel: %w", err)
	}
	for _, g := range groups {
		if err := c.JoinGroup(g); err != nil {
			return nil, errors.Join(fmt.Errorf("listen to the kernel: join group %d: %w", g, err), c.Close())
		}
	}
	if err := c.SetReadBuffer(1 << 20); err != nil {
		h.log.Warn("small buffer for the kernel's notices", "error", err) // lost ones are noticed
	}
	return c, nil
}

// forward turns messages that concern us into a notice, until the socket is
// closed.
func (h *Host) forward(ctx context.Context, c *mdnetlink.Conn, notices chan<- struct{}, concerns func(mdnetlink.Message) bool) {
	var failing task.Backoff
	for ctx.Err() == nil {
		messages, err := c.Receive()
		notice := err != nil // lost messages (ENOBUFS) may have been anything
		if err != nil {
			if ctx.Err() != nil || task.Sleep(ctx, failing.Next()) != nil {
				return
			}
		} else {
			failing.Reset()
		}
		for _, m := range messages {
			notice = notice || concerns(m)
		}
		if notice {
			select {
			case notices <- struct{}{}:
			default: // one is waiting already
			}
		}
	}
}

// concernsTable: something was deleted from, or a rule was added to, our table.
func concernsTable(m mdnetlink.Message) bool {
	if int(m.Header.Type)>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < 4 || m.Data[0] != unix.NFPROTO_INET {
		return false
	}
	switch int(m.Header.Type) & 0xff {
	case unix.NFT_MSG_DELTABLE, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE, unix.NFT_MSG_DELSETELEM, unix.NFT_MSG_NEWSETELEM:
	default:
		return false
	}
	// The table's name is attribute 1 in all of them.
	return attribute(m.Data[4:], 1) == TableName
}

// concernsLinks: an address came or went, or a bridge of ours did.
func concernsLinks(m mdnetlink.Message) bool {
	switch m.Header.Type {
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return true
	case unix.RTM_DELLINK:
		return len(m.Data) > unix.SizeofIfInfomsg && m.Data[0] == unix.AF_UNSPEC &&
			bridgePattern.MatchString(attribute(m.Data[unix.SizeofIfInfomsg:], unix.IFLA_IFNAME))
	}
	return false
}

// attribute returns a text attribute, or "".
func attribute(data []byte, kind uint16) string {
	d, err := mdnetlink.NewAttributeDecoder(data)
	if err != nil {
		return ""
	}
	for d.Next() {
		if d.Type() == kind {
			return d.String()
		}
	}
	return ""
}

// repair compares the kernel with what is wanted and brings back what is gone.
func (h *Host) repair() error {
	var errs []error
	for _, n := range h.wantedNetworks() {
		errs = append(errs, h.repairNetwork(n.Name))
	}
	h.rules.mu.Lock()
	defer h.rules.mu.Unlock()
	if h.rules.wanted == nil {
		return errors.Join(errs...)
	}
	why, err := h.tableDiffers()
	if err != nil { // as when the table goes while it is being read
		why = err.Error()
	}
	switch {
	case why != "":
		h.log.Warn("packet filter repaired", "reason", why)
		errs = append(errs, h.applyRules())
	default:
		errs = append(errs, h.ensureVIPRoutes())
	}
	return errors.Join(errs...)
}

// repairNetwork makes a bridge again that somebody deleted. Endpoints come back
// by Attach.
func (h *Host) repairNetwork(name model.NetworkName) error {
	h.purging.RLock()
	defer h.purging.RUnlock()
	defer h.networks.busy.lock(BridgeName(name))()
	h.networks.mu.Lock()
	n, wanted := h.networks.wanted[name]
	h.networks.mu.Unlock()
	if !wanted {
		return nil
	}
	var err error
	if n.overlay != nil {
		err = h.ensureOverlay(*n.overlay)
	} else {
		err = h.ensureNetwork(n.Network)
	}
	if err != nil && !errors.Is(err, ErrUnreachable) { // of which its owner has heard
		return fmt.Errorf("network %s: %w", name, err)
	}
	return nil
}

// tableDiffers says why the table has to be replaced, or "". rules.mu is held.
func (h *Host) tableDiffers() (string, error) {
	now, err := h.fingerprint()
	if err != nil {
		return "", err
	}
	if now != h.rules.print || now == "" {
		return "table changed by somebody else", nil
	}
	onLink, err := h.connected()
	if err != nil {
		return "", err
	}
	if p, err := newPlan(*h.rules.wanted, h.cfg.VIPPools, onLink); err != nil || p.String() != h.rules.applied.String() {
		return "the host's addresses changed", err
	}
	return "", nil
}

// fingerprint tells two states of our table apart: its chains, the handles of
// its rules (the kernel gives every new or replaced rule a new one) and the
// elements of its sets. It is "" if there is no table.
func (h *Host) fingerprint() (string, error) {
	c, err := h.nft()
	if err != nil {
		return "", err
	}
	defer closeNFT(c)
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return "", fmt.Errorf("list chains: %w", err)
	}
	var facts []string
	for _, ch := range chains {
		if ch.Table.Name != TableName {
			continue
		}
		fact := "chain " + ch.Name
		if ch.Hooknum != nil {
			fact += fmt.Sprintf(" %s hook %d priority %d", ch.Type, *ch.Hooknum, *ch.Priority)
		}
		rules, err := c.GetRules(ourTable(), ch)
		if err != nil {
			return "", fmt.Errorf("list rules of %s: %w", ch.Name, err)
		}
		for _, r := range rules {
			fact += fmt.Sprintf(" %d", r.Handle)
		}
		facts = append(facts, fact)
	}
	if len(facts) == 0 {
		return "", nil
	}
	sets, err := c.GetSets(ourTable())
	if err != nil {
		return "", fmt.Errorf("list sets: %w", err)
	}
	for _, s := range sets {
		elements, err := c.GetSetElements(s)
		if err != nil {
			return "", fmt.Errorf("list elements of %s: %w", s.Name, err)
		}
		for _, e := range elements {
			facts = append(facts, fmt.Sprintf("%s %x %x %t", s.Name, e.Key, e.Val, e.IntervalEnd))
		}
		facts = append(facts, "set "+s.Name)
	}
	sort.Strings(facts)
	return strings.Join(facts, "\n"), nil
}
