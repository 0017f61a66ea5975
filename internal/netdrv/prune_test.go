package netdrv_test

import (
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/fairlead-net/fairlead/internal/netdrv"
)

// Prune takes away what an earlier agent left and nobody wants, and nothing else.
func TestPrune(t *testing.T) {
	w := newWorld(t)
	web, old := w.network("web", "10.1.0.0/24"), w.network("old", "10.2.0.0/24")
	a, b, c := w.endpoint("a", web, "10.1.0.2"), w.endpoint("b", web, "10.1.0.3"), w.endpoint("c", old, "10.2.0.2")
	w.attach(a)
	gone := []string{w.attach(b).HostIf, w.attach(c).HostIf, netdrv.BridgeName("old")}
	w.node.Exec("ip", "link", "add", "fl-foreign", "type", "bridge")
	w.node.Exec("ip", "link", "add", "flv12345678", "type", "bridge")
	w.drv = w.driver() // an agent that starts again

	kept := []string{netdrv.HostIf(a.ep.ID), netdrv.BridgeName("web")}
	keep := func(link string) bool { return slices.Contains(kept, link) }
	did, err := w.drv.Prune(t.Context(), keep)
	w.must(err)
	slices.Sort(did)
	slices.Sort(gone)
	if !slices.Equal(did, gone) {
		t.Errorf("Prune took away %v, want %v", did, gone)
	}
	if again, err := w.drv.Prune(t.Context(), keep); err != nil || len(again) > 0 {
		t.Errorf("second Prune = %v, %v", again, err)
	}
	w.must(w.drv.Close())
	w.drv = w.driver()
	links := w.node.Exec("ip", "-br", "link")
	for _, l := range append(kept, "fl-foreign", "flv12345678") {
		if !strings.Contains(links, l) {
			t.Errorf("%s is gone:\n%s", l, links)
		}
	}
	for _, l := range gone {
		if strings.Contains(links, l) {
			t.Errorf("%s is there:\n%s", l, links)
		}
	}
}

// An Attach or EnsureNetwork beside Prune either finds its link or makes it
// again, if its record came first, as the callers have it.
func TestPruneBesideAttach(t *testing.T) {
	w := newWorld(t)
	web := w.network("web", "10.1.0.0/24")
	a := w.endpoint("a", web, "10.1.0.2")
	for range 10 {
		var recorded sync.Map
		recorded.Store(netdrv.BridgeName("web"), true)
		var both sync.WaitGroup
		both.Go(func() {
			if _, err := w.drv.Prune(t.Context(), func(link string) bool { _, ok := recorded.Load(link); return ok }); err != nil {
				t.Error(err)
			}
		})
		both.Go(func() {
			recorded.Store(netdrv.HostIf(a.ep.ID), true)
			if _, err := w.drv.Attach(t.Context(), netdrv.Plug{Network: web, Endpoint: a.ep}); err != nil {
				t.Error(err)
			}
		})
		both.Wait()
		if out, err := ask(a, "tcp", "10.1.0.1:9"); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("the gateway is not reached: %s, %v", out, err)
		}
	}
}
