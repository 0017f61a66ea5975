package netdrv_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/vishvananda/netlink"
)

// What the driver reads is whole although links come and go meanwhile. The kernel marks such a list as interrupted, which is
// frequent when there are so many links that it takes several messages.
func TestListsWhileLinksChange(t *testing.T) {
	w := newWorld(t)
	bridge := func(name string) *netlink.Bridge {
		return &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
	}
	changed := make(chan error, 1)
	go func() {
		changed <- w.node.Do(func() error {
			h, err := netlink.NewHandle()
			if err != nil {
				return err
			}
			defer h.Close()
			for i := range 40 {
				err = errors.Join(err, h.LinkAdd(bridge(fmt.Sprint("still", i))))
			}
			for i := 0; i < 40 && err == nil; i++ {
				moving := bridge("moving")
				err = errors.Join(h.LinkAdd(moving), h.LinkDel(moving))
			}
			return err
		})
	}()
	for {
		select {
		case err := <-changed:
			w.must(err)
			return
		default:
		}
		if _, err := w.drv.Claims(t.Context()); err != nil {
			t.Error(err)
			w.must(<-changed)
			return
		}
	}
}
