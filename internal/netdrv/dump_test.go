package netdrv_test

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
)

// What the driver reads is whole although links come and go meanwhile: the kernel marks such a list as interrupted, and it
// may lack what was there all the time.
func TestListsWhileLinksChange(t *testing.T) {
	w := newWorld(t)
	w.network("web", "10.1.0.0/24", "fd01::/64")
	changed := make(chan error, 1)
	go func() {
		changed <- w.node.Do(func() error {
			h, err := netlink.NewHandle()
			if err != nil {
				return err
			}
			defer h.Close()
			for range 300 {
				v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v0"}, PeerName: "v1"}
				if err := errors.Join(h.LinkAdd(v), h.LinkDel(v)); err != nil {
					return err
				}
			}
			return nil
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
			t.Fatal(err)
		}
	}
}
