package netdrv

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Purge removes everything this package ever made on the host, by whichever
// process: links, table, routes; and puts back the sysctls that the journal in
// StateDir says were changed. It returns what it did, a line each. It goes on
// after an error, and what is left can be purged again. A Run beside it makes
// nothing again, since nothing is wanted any more.
func (h *Host) Purge(ctx context.Context) ([]string, error) {
	if err := live(ctx, "purge the host's network"); err != nil {
		return nil, err
	}
	h.purging.Lock()
	defer h.purging.Unlock()
	h.networks.mu.Lock()
	h.networks.wanted = nil
	h.networks.mu.Unlock()
	h.rules.mu.Lock()
	defer h.rules.mu.Unlock()
	h.rules.wanted, h.rules.applied, h.rules.print = nil, plan{}, ""
	h.waitDeletions()

	var did []string
	var errs []error
	for _, part := range []func() ([]string, error){h.purgeLinks, h.purgeTable, h.purgeRoutes, h.purgeSysctls} {
		done, err := part()
		did, errs = append(did, done...), append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return did, fmt.Errorf("purge the host's network: %w", err)
	}
	return did, nil
}

// purgeLinks deletes veths before bridges.
func (h *Host) purgeLinks() (did []string, err error) {
	links, err := whole(h.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var errs []error
	for _, kind := range []string{"veth", "vxlan", "bridge"} {
		for _, l := range links {
			if l.Type() != kind || !ours(l) {
				continue
			}
			if err := h.nl.LinkDel(l); err != nil && !missing(err) {
				errs = append(errs, fmt.Errorf("delete link %s: %w", l.Attrs().Name, err))
				continue
			}
			did = append(did, fmt.Sprintf("deleted link %s", describeLink(l)))
		}
	}
	return did, errors.Join(errs...)
}

func describeLink(l netlink.Link) string {
	if alias := l.Attrs().Alias; alias != "" {
		return fmt.Sprintf("%s (%s)", l.Attrs().Name, alias)
	}
	return l.Attrs().Name
}

func (h *Host) purgeTable() ([]string, error) {
	c, err := h.nft()
	if err != nil {
		return nil, err
	}
	defer closeNFT(c)
	c.DelTable(ourTable())
	err = c.Flush()
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("delete table inet %s: %w", TableName, err)
	}
	return []string{"deleted table inet " + TableName}, nil
}

func (h *Host) purgeRoutes() (did []string, err error) {
	routes, err := h.ourRoutes()
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, r := range routes {
		if err := h.nl.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("delete route to %s: %w", r.Dst, err))
			continue
		}
		p, _ := prefixOf(r.Dst)
		did = append(did, "deleted "+describeRoute(p, r, nil))
	}
	return did, errors.Join(errs...)
}

func (h *Host) purgeSysctls() (did []string, err error) {
	err = h.inHost(func() (err error) {
		did, err = h.known.restore()
		return err
	})
	return did, err
}
