package netdrv_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/netdrv"
	"github.com/fairlead-net/fairlead/internal/testlab"
)

// table is our table as nft shows it.
func (w *world) table() string {
	out, err := w.node.Try("nft", "list", "table", "inet", netdrv.TableName)
	if err != nil {
		return ""
	}
	return out
}

func TestTableComesBack(t *testing.T) {
	w := newWorld(t)
	lan := w.lab.Switch("198.51.100.0/24")
	lan.Join(w.node)
	web := w.network("web", "10.1.0.0/24", "fd01::/64")
	a := w.endpoint("a", web, "10.1.0.2", "fd01::2")
	a.ep.Ports = []model.PublishedPort{{Proto: model.TCP, HostPort: 8080, Port: 80, Expose: model.ExposeAny}}
	w.attach(a)
	w.must(w.drv.SetRules(t.Context(), netdrv.Rules{Networks: []model.Network{web}, Endpoints: []model.Endpoint{a.ep}}))
	w.run()
	want := w.table()
	if !strings.Contains(want, "tcp . 8080 : 10.1.0.2 . 80") {
		t.Fatalf("table:\n%s", want)
	}
	for _, damage := range [][]string{
		{"nft", "flush", "ruleset"},
		{"nft", "delete", "table", "inet", netdrv.TableName},
		{"nft", "flush", "table", "inet", netdrv.TableName},
		{"nft", "flush", "chain", "inet", netdrv.TableName, "forward"},
		{"nft", "insert", "rule", "inet", netdrv.TableName, "forward", "drop"},
		{"nft", "flush", "map", "inet", netdrv.TableName, "any4"},
	} {
		w.node.Exec(damage...)
		start := time.Now()
		testlab.Eventually(t, time.Second, func() error {
			if now := w.table(); now != want {
				return fmt.Errorf("after %q:\n%s", damage, now)
			}
			return nil
		})
		t.Logf("%q repaired within %v", damage, time.Since(start).Round(time.Millisecond))
	}

	// A new address of the host widens the LAN; its end narrows it again.
	w.node.Exec("ip", "addr", "add", "192.0.2.1/24", "dev", "eth0")
	testlab.Eventually(t, time.Second, func() error {
		if now := w.table(); !strings.Contains(now, "192.0.2.0/24") {
			return errors.New(now)
		}
		return nil
	})
	w.node.Exec("ip", "addr", "del", "192.0.2.1/24", "dev", "eth0")
	testlab.Eventually(t, time.Second, func() error {
		if now := w.table(); now != want {
			return errors.New(now)
		}
		return nil
	})

	w.node.Exec("ip", "link", "del", netdrv.BridgeName("web"))
	testlab.Eventually(t, time.Second, func() error {
		_, err := w.node.Try("ip", "link", "show", netdrv.BridgeName("web"))
		return err
	})
	w.attach(a)
	if _, err := a.Try("ping", "-c1", "-W2", "10.1.0.1"); err != nil {
		t.Error(err)
	}
}

func TestForeignTablesAreLeftAlone(t *testing.T) {
	w := newWorld(t)
	w.node.Exec("nft", "add table ip other; add chain ip other c { type filter hook forward priority 0; }; add rule ip other c ip saddr 1.2.3.4 drop")
	before := w.node.Exec("nft", "list", "ruleset")
	for range 3 {
		w.must(w.drv.SetRules(t.Context(), netdrv.Rules{}))
	}
	if got := strings.Count(w.node.Exec("nft", "list", "tables"), "table"); got != 2 {
		t.Errorf("%d tables", got)
	}
	if _, err := w.drv.Purge(t.Context()); err != nil {
		t.Error(err)
	}
	if after := w.node.Exec("nft", "list", "ruleset"); after != before {
		t.Errorf("ruleset after purge:\n%s\nbefore:\n%s", after, before)
	}
}

func TestForeignDrops(t *testing.T) {
	w := newWorld(t)
	w.must(w.drv.SetRules(t.Context(), netdrv.Rules{}))
	for _, c := range []struct{ ruleset, want string }{
		{"", ""},
		{"table inet filter { chain forward { type filter hook forward priority 0; policy drop; } }", "table inet filter chain forward (policy drop)"},
		{"table inet filter { chain forward { type filter hook forward priority 0; policy drop; ct state established accept; } }", "table inet filter chain forward (policy drop)"},
		{"table inet filter { chain forward { type filter hook forward priority 0; policy drop; counter accept; } }", ""},
		{"table inet filter { chain input { type filter hook input priority 0; policy drop; } }", ""},
		{"table ip f { chain FWD { type filter hook forward priority 5; tcp dport 80 accept; counter reject; } }", "table ip f chain FWD (a rule drops everything)"},
		{"table ip f { chain FWD { type filter hook forward priority 5; tcp dport 80 drop; } }", ""},
		{"table ip6 f { chain x { iifname eth7 return; drop; }; chain FWD { type filter hook forward priority 5; jump x; } }", "table ip6 f chain FWD (a rule drops everything)"},
		{"table ip6 f { chain x { return; drop; }; chain FWD { type filter hook forward priority 5; jump x; } }", ""},
		{"table ip6 f { chain x { counter; }; chain FWD { type filter hook forward priority 5; policy drop; goto x; accept; } }", "table ip6 f chain FWD (policy drop)"},
		{"table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; counter packets 1 bytes 2 jump DOCKER-USER; }; chain DOCKER-USER { counter return; } }", "table ip filter chain FORWARD (policy drop)"},
		{"table bridge b { chain forward { type filter hook forward priority 0; policy drop; } }", "table bridge b chain forward (policy drop)"},
	} {
		file := filepath.Join(w.node.Dir(), "rules")
		w.must(os.WriteFile(file, []byte("flush ruleset\n"+strings.ReplaceAll(c.ruleset, "}", "\n}")), 0o600))
		w.node.Exec("nft", "-f", file)
		w.must(w.drv.SetRules(t.Context(), netdrv.Rules{}))
		got, err := w.drv.ForeignDrops(t.Context())
		w.must(err)
		if s := strings.Join(got, "; "); s != c.want {
			t.Errorf("%s\ngives %q, want %q", c.ruleset, s, c.want)
		}
	}
}

// sysctls are all of a namespace's that this package may touch.
func sysctls(w *world) string {
	out := w.node.Exec("sysctl", "-a", "--pattern", `(forward|accept_ra|accept_redirects|accept_dad|route_localnet|disable_ipv6|bridge-nf|addr_gen)`)
	// What an interface counts down to, and which one is asked, is no setting.
	return regexp.MustCompile(`(?m)^.*(stable_secret).*\n`).ReplaceAllString(out, "")
}

func TestPurgeRestoresEverything(t *testing.T) {
	w := newWorld(t)
	lan := w.lab.Switch("198.51.100.0/24", "fd10::/64")
	lan.Join(w.node)
	w.node.Exec("sysctl", "-qw", "net.ipv4.conf.eth0.forwarding=1", "net.ipv4.conf.all.accept_redirects=0", "net.ipv6.conf.eth0.accept_ra=1", "net.ipv6.conf.default.accept_ra=0")
	everything := func() string {
		return sysctls(w) + look(w.node) + w.node.Exec("nft", "list", "ruleset")
	}
	before := everything()

	web := w.network("web", "10.1.0.0/24", "fd01::/64")
	a := w.endpoint("a", web, "10.1.0.2", "fd01::2")
	w.attach(a)
	w.must(w.drv.SetRules(t.Context(), netdrv.Rules{Networks: []model.Network{web}, Endpoints: []model.Endpoint{a.ep}}))
	changed := sysctls(w)
	for _, fact := range []string{"net.ipv4.ip_forward = 1", "net.ipv6.conf.all.forwarding = 1", "net.ipv6.conf.eth0.accept_ra = 2", "net.ipv6.conf.default.accept_ra = 0"} {
		if !strings.Contains(changed, fact) {
			t.Errorf("not %q in\n%s", fact, changed)
		}
	}
	if strings.Contains(changed, "route_localnet = 1") {
		t.Error("route_localnet is set")
	}

	// Another process, later, knows what was there first.
	w.drv = w.driver()
	w.network("web", "10.1.0.0/24", "fd01::/64")
	w.drv = w.driver()
	did, err := w.drv.Purge(t.Context())
	w.must(err)
	t.Log(strings.Join(did, "\n"))
	if after := everything(); after != before {
		t.Errorf("purge left a difference:\n%s", diff(before, after))
	}
	for _, fact := range []string{"deleted link " + netdrv.BridgeName("web"), "deleted link " + netdrv.HostIf(a.ep.ID), "deleted table inet fairlead", "deleted route unreachable 240.0.0.0/4", "restored sysctl net/ipv4/ip_forward to 0", "restored sysctl net/ipv6/conf/eth0/accept_ra to 1"} {
		if !slices.ContainsFunc(did, func(s string) bool { return strings.HasPrefix(s, fact) }) {
			t.Errorf("Purge did not say %q", fact)
		}
	}
	if did, err := w.drv.Purge(t.Context()); err != nil || len(did) != 0 {
		t.Errorf("a second Purge did %q, %v", did, err)
	}
	if left, _ := filepath.Glob(w.dir + "/*"); len(left) != 0 {
		t.Errorf("left in the state directory: %q", left)
	}
}

func TestRunDoesNotUndoPurge(t *testing.T) {
	w := newWorld(t)
	web := w.network("web", "10.1.0.0/24")
	w.must(w.drv.SetRules(t.Context(), netdrv.Rules{Networks: []model.Network{web}}))
	w.run()
	if _, err := w.drv.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.node.Exec("ip", "addr", "add", "192.0.2.1/24", "dev", "lo") // something for Run to look at
	w.node.Exec("nft", "add", "table", "inet", "other")
	w.must(w.drv.SetRules(t.Context(), netdrv.Rules{}))
	if out := w.node.Exec("ip", "-br", "link"); strings.Contains(out, "fl-") {
		t.Errorf("links came back:\n%s", out)
	}
}

func TestHostWithoutIPv6(t *testing.T) {
	w := newWorld(t)
	w.node.Exec("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
	web := w.network("web", "10.1.0.0/24")
	a := w.endpoint("a", web, "10.1.0.2")
	w.attach(a)
	w.must(w.drv.SetRules(t.Context(), netdrv.Rules{Networks: []model.Network{web}}))
	if _, err := a.Try("ping", "-c1", "-W2", "10.1.0.1"); err != nil {
		t.Error(err)
	}
}

func TestSetRulesTwiceChangesNothing(t *testing.T) {
	w := newWorld(t)
	web := w.network("web", "10.1.0.0/24")
	r := netdrv.Rules{Networks: []model.Network{web}}
	w.must(w.drv.SetRules(t.Context(), r))
	handles := func() string { return w.node.Exec("nft", "-a", "list", "ruleset") }
	before := handles()
	w.must(w.drv.SetRules(t.Context(), r))
	if now := handles(); now != before {
		t.Errorf("the table was replaced:\n%s", diff(before, now))
	}
	w.node.Exec("nft", "flush", "ruleset")
	w.must(w.drv.SetRules(t.Context(), r))
	if w.table() == "" {
		t.Error("the table is not back")
	}
}

func TestManyPorts(t *testing.T) {
	w := newWorld(t)
	web := w.network("web", "10.1.0.0/16", "fd01::/64")
	r := netdrv.Rules{Networks: []model.Network{web}}
	for i := range 2000 {
		r.Endpoints = append(r.Endpoints, model.Endpoint{
			ID:    model.EndpointID(fmt.Sprint(i)),
			Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), netip.MustParseAddr(fmt.Sprintf("fd01::%x", i+2))},
			Ports: []model.PublishedPort{{Proto: model.UDP, HostPort: uint16(10000 + i), Port: 53, Expose: model.ExposeAny}},
		})
	}
	w.must(w.drv.SetRules(t.Context(), netdrv.Rules{}))
	start := time.Now()
	w.must(w.drv.SetRules(t.Context(), r))
	took := time.Since(start)
	t.Logf("%d ports in two families set within %v", len(r.Endpoints), took)
	if took > 5*time.Second {
		t.Errorf("setting %d ports takes %v", len(r.Endpoints), took)
	}
	if got := strings.Count(w.node.Exec("nft", "list", "map", "inet", netdrv.TableName, "any6"), "udp . "); got != len(r.Endpoints) {
		t.Errorf("%d of %d ports are in the map", got, len(r.Endpoints))
	}
}

func TestForeignRouteInTheWay(t *testing.T) {
	w := newWorld(t)
	w.lab.Switch("198.51.100.0/24").Join(w.node)
	w.node.Exec("ip", "route", "add", "240.0.0.0/4", "via", "198.51.100.2")
	if err := w.drv.SetRules(t.Context(), netdrv.Rules{}); !errors.Is(err, netdrv.ErrRouteClash) || !strings.Contains(err.Error(), "240.0.0.0/4") {
		t.Errorf("SetRules = %v", err)
	}
	if did, err := w.drv.Purge(t.Context()); err != nil || strings.Contains(strings.Join(did, " "), "240") {
		t.Errorf("Purge did %q, %v", did, err)
	}
}

func TestDefaultRouteFromRouterAdvertisementSurvives(t *testing.T) {
	testlab.Require(t, testlab.Tool("radvd"))
	w := newWorld(t)
	router := w.lab.Host("router")
	lan := w.lab.Switch("fd10::/64")
	lan.Join(router, w.node)
	w.node.Exec("sysctl", "-qw", "net.ipv6.conf.eth0.accept_ra=1")
	router.Exec("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
	conf := filepath.Join(router.Dir(), "radvd.conf")
	w.must(os.WriteFile(conf, []byte("interface eth0 { AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4; AdvDefaultLifetime 30; prefix fd10::/64 {}; };\n"), 0o600))
	radvd := router.Start("radvd", "-n", "-C", conf, "-p", filepath.Join(router.Dir(), "radvd.pid"), "-m", "stderr", "-u", "root")
	t.Cleanup(func() { w.must(radvd.Stop()) })
	learned := func() error {
		if out := w.node.Exec("ip", "-6", "route", "show", "default"); !strings.Contains(out, "proto ra") {
			return fmt.Errorf("default routes: %q; radvd says %s", out, radvd.Output())
		}
		return nil
	}
	testlab.Eventually(t, 10*time.Second, learned)
	lifetime := regexp.MustCompile(`expires (\d+)sec`)
	left := func() string { return lifetime.FindString(w.node.Exec("ip", "-6", "route", "show", "default")) }

	web := w.network("web", "fd01::/64")
	w.must(learned())
	w.must(w.drv.SetRules(t.Context(), netdrv.Rules{Networks: []model.Network{web}}))
	// It is refreshed by later advertisements too, now that the host forwards.
	was := left()
	testlab.Eventually(t, 10*time.Second, func() error {
		if now := left(); now <= was {
			was = now
			return fmt.Errorf("the default route is not refreshed: %s", now)
		}
		return nil
	})
	if _, err := w.drv.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.must(learned())
}
