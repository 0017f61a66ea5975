package attach_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/fairlead-net/fairlead/internal/datapath"
	"github.com/fairlead-net/fairlead/internal/endpoint"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/netdrv"
	"github.com/fairlead-net/fairlead/internal/registry"
	"github.com/fairlead-net/fairlead/internal/state"
	"github.com/fairlead-net/fairlead/internal/store"
	parts "github.com/fairlead-net/fairlead/internal/task"
)

// agent is the part of an agent that attaches endpoints.
type agent struct {
	task task
	set  *endpoint.Set
	maps *datapath.Kernel
	net  *netdrv.Host
	got  figures
}

// work is the worker: it reads its task, does it and writes the figures.
func work(in io.Reader, out io.Writer) error {
	a := &agent{got: figures{Attach: map[string][]time.Duration{}, Detach: map[string][]time.Duration{}}}
	if err := json.NewDecoder(in).Decode(&a.task); err != nil {
		return err
	}
	if err := a.run(); err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(a.got)
}

func (a *agent) run() (err error) {
	log := slog.New(slog.DiscardHandler)
	pools := []netip.Prefix{registry.DefaultVIPPool4, registry.SitePool6("bench")}
	st := state.New()
	db := store.New(store.Config{Dir: filepath.Join(a.task.Dir, "data"), Name: "bench", Log: log}, st)
	if a.net, err = netdrv.New(netdrv.Config{StateDir: a.task.Dir, VIPPools: pools, Log: log}); err != nil {
		return err
	}
	defer a.net.Close()
	if a.maps, err = datapath.Load(datapath.Config{Cgroup: a.task.Cgroup, PinDir: a.task.PinDir}); err != nil {
		return err
	}
	defer a.maps.Close()
	cookie, err := a.net.Cookie("")
	if err != nil {
		return err
	}
	a.set = endpoint.New(endpoint.Config{
		Node: "bench", State: st, Registry: registry.New(db, st, registry.Config{Node: "bench", VIPPool4: pools[0], VIPPool6: pools[1], Log: log}),
		Driver: a.net, Path: a.maps, Resolver: silent{}, VIPPools: pools, HostCookie: cookie, Log: log,
	})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var failed error
	err = parts.Run(ctx, parts.Unit{Name: "store", Run: db.Run}, parts.Unit{Name: "network", Run: a.net.Run}, parts.Unit{Name: "endpoints", Run: a.set.Run},
		parts.Unit{Name: "measure", Run: func(ctx context.Context, ready func()) error {
			ready()
			failed = a.measure(ctx)
			cancel()
			return nil
		}})
	return errors.Join(failed, err)
}

// silent is a resolver that nobody asks.
type silent struct{}

func (silent) Listen(context.Context, netip.AddrPort) error { return nil }
func (silent) Unlisten(netip.AddrPort)                      {}

func (a *agent) measure(ctx context.Context) error {
	ways := map[string]way{peer: newPlugin(a.task.Dir)}
	for name, prefixes := range map[string][]string{ours: {"10.1.0.0/24"}, dual: {"10.2.0.0/24", "fd02::/64"}} {
		n := model.Network{Name: model.NetworkName(fmt.Sprint("n", len(prefixes)))}
		for _, p := range prefixes {
			n.Pools = append(n.Pools, model.Pool{Prefix: netip.MustParsePrefix(p)})
		}
		n, err := a.set.CreateNetwork(ctx, n)
		if err != nil {
			return err
		}
		ways[name] = &own{set: a.set, network: n.Name}
	}
	for range rounds {
		for n := range inARow {
			for name, namespaces := range a.task.Namespaces {
				if err := clock(&a.got.Attach, name, func() error { return ways[name].attach(ctx, namespaces[n]) }); err != nil {
					return fmt.Errorf("%s: attach: %w", name, err)
				}
			}
		}
		for n := range inARow {
			for name, namespaces := range a.task.Namespaces {
				if err := clock(&a.got.Detach, name, func() error { return ways[name].detach(ctx, namespaces[n]) }); err != nil {
					return fmt.Errorf("%s: detach: %w", name, err)
				}
			}
		}
	}
	for _, w := range ways {
		if err := w.end(ctx); err != nil {
			return err
		}
	}
	return a.look()
}

func clock(all *map[string][]time.Duration, name string, fn func() error) error {
	start := time.Now()
	err := fn()
	(*all)[name] = append((*all)[name], time.Since(start))
	return err
}

// look finds what is left of endpoints and networks.
func (a *agent) look() error {
	if err := a.net.Close(); err != nil { // waits for the links that are being deleted
		return err
	}
	links, err := exec.Command("ip", "-br", "link").Output()
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(links)) {
		if f := strings.Fields(line); f[0] != "lo" {
			a.got.Left = append(a.got.Left, "link "+line)
		}
	}
	endpoints, err := a.maps.Endpoints()
	if err != nil {
		return err
	}
	for _, e := range endpoints {
		a.got.Left = append(a.got.Left, fmt.Sprintf("map entry of endpoint %s", e.Addr))
	}
	veths, err := a.maps.Veths()
	if err != nil {
		return err
	}
	for _, v := range veths {
		a.got.Left = append(a.got.Left, fmt.Sprintf("map entry of interface %d", v.IfIndex))
	}
	return nil
}

// way is one way to attach a namespace, known by its path.
type way interface {
	attach(ctx context.Context, netns string) error
	detach(ctx context.Context, netns string) error
	end(ctx context.Context) error
}

// own is ours.
type own struct {
	set     *endpoint.Set
	network model.NetworkName
}

func (o *own) name(netns string) model.WorkloadName {
	return model.WorkloadName("w" + netns[strings.LastIndex(netns, "-"):])
}

func (o *own) attach(ctx context.Context, netns string) error {
	_, err := o.set.Attach(ctx, model.Endpoint{Workload: o.name(netns), Network: o.network, NetNS: netns}, nil)
	return err
}

func (o *own) detach(ctx context.Context, netns string) error {
	return o.set.Detach(ctx, endpoint.ID("bench", o.name(netns), o.network))
}

func (o *own) end(ctx context.Context) error { return o.set.RemoveNetwork(ctx, o.network) }

// plugin is the CNI plugin `bridge`, called as container runtimes do.
type plugin struct {
	config []byte
	called bool
}

func newPlugin(dir string) *plugin {
	config, err := json.Marshal(map[string]any{
		"cniVersion": "0.4.0", "name": "peer", "type": "bridge", "bridge": "fl-cni", "isGateway": true,
		"ipam": map[string]any{
			"type": "host-local", "dataDir": filepath.Join(dir, "cni"),
			"ranges": []any{[]any{map[string]string{"subnet": "10.3.0.0/24"}}},
			"routes": []any{map[string]string{"dst": "0.0.0.0/0"}},
		},
	})
	if err != nil {
		panic(err) // plain strings
	}
	return &plugin{config: config}
}

func (p *plugin) call(ctx context.Context, command, netns string) error {
	p.called = true
	cmd := exec.CommandContext(ctx, filepath.Join(plugins, "bridge"))
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+command, "CNI_CONTAINERID="+filepath.Base(netns), "CNI_NETNS="+netns,
		"CNI_IFNAME=eth0", "CNI_PATH="+plugins)
	cmd.Stdin = bytes.NewReader(p.config)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", command, err, out)
	}
	return nil
}

func (p *plugin) attach(ctx context.Context, netns string) error { return p.call(ctx, "ADD", netns) }
func (p *plugin) detach(ctx context.Context, netns string) error { return p.call(ctx, "DEL", netns) }

// end removes the bridge, which the plugin leaves for ever.
func (p *plugin) end(ctx context.Context) error {
	if !p.called {
		return nil
	}
	return exec.CommandContext(ctx, "ip", "link", "del", "fl-cni").Run()
}
