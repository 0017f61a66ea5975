package node

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairlead-net/fairlead/api"
	"github.com/fairlead-net/fairlead/internal/datapath"
	"github.com/fairlead-net/fairlead/internal/endpoint"
	"github.com/fairlead-net/fairlead/internal/lb"
	"github.com/fairlead-net/fairlead/internal/netdrv"
	"github.com/fairlead-net/fairlead/internal/runtime/process"
	"github.com/fairlead-net/fairlead/internal/workload"
)

// plane is what needs the kernel: networks, endpoints, workloads and the
// balancer. An agent that is a registry only has none.
type plane struct {
	host      api.Host
	net       *netdrv.Host
	maps      *datapath.Kernel
	endpoints *endpoint.Set
	workloads *workload.Set
	balancer  *lb.Balancer
	log       *slog.Logger
}

// openPlane makes the plane's boxes, one for each network namespace.
func (a *Agent) openPlane(pools []netip.Prefix) error {
	namespace, err := claimNamespace()
	if err != nil {
		return err
	}
	a.closers = append(a.closers, namespace.Close)
	p := &plane{log: a.log}
	a.plane = p
	if err := a.openKernel(pools); err != nil {
		return err
	}
	cookie, err := p.net.Cookie("")
	if err != nil {
		return err
	}
	at, err := netip.ParseAddr(a.cfg.Advertise)
	if err != nil {
		return fmt.Errorf("advertise: %w", err)
	}
	p.endpoints = endpoint.New(endpoint.Config{
		Node: a.self.Name, Addr: at, State: a.state, Registry: a.own, Driver: p.net, Path: p.maps, Resolver: a.dns,
		VIPPools: pools, HostCookie: cookie, Log: a.log,
	})
	p.balancer = lb.New(lb.Config{
		Node: a.self.Name, State: a.state, Maps: p.maps, Log: a.log,
		Local: &callers{endpoints: p.endpoints, net: p.net, maps: p.maps, log: a.log},
	})
	p.workloads = workload.New(workload.Config{
		HostAddr: at,
		Node:     a.self.Name, State: a.state, Endpoints: p.endpoints, Registrations: a.local, Balancer: p.balancer,
		Processes: process.NewTable(a.cfg.RunDir), Firewalls: p.net, Domain: "internal", Log: a.log,
	})
	return nil
}

// openKernel opens the network and the data path. Pinned programs and maps of a
// predecessor are taken over as they are.
func (a *Agent) openKernel(pools []netip.Prefix) (err error) {
	p := a.plane
	if p.net, err = netdrv.New(netdrv.Config{StateDir: a.cfg.RunDir, VIPPools: pools, Log: a.log}); err != nil {
		return err
	}
	a.closers = append(a.closers, p.net.Close)
	cgroup, err := a.cfg.cgroup()
	if err != nil {
		return err
	}
	p.host = api.Host{Node: a.cfg.NodeName, RunDir: a.cfg.RunDir, Cgroup: filepath.Join(cgroup, workloadCgroup)}
	if err := mountBPF(a.cfg); err != nil {
		return err
	}
	pins := pinDir(a.cfg, a.self.ID)
	if err := recordPins(a.cfg.RunDir, pins); err != nil {
		return err
	}
	if p.maps, err = datapath.Load(datapath.Config{Cgroup: cgroup, PinDir: pins}); err != nil {
		return fmt.Errorf("load the data path: %w", err)
	}
	a.closers = append(a.closers, p.maps.Close)
	if err := p.maps.SetVIPPools(pools[0], pools[1]); err != nil {
		return fmt.Errorf("load the data path: %w", err)
	}
	return nil
}

// activate switches to this binary's programs where an earlier layout was at
// work until now: the balancer has filled the new maps.
func (p *plane) activate(ctx context.Context, ready func()) error {
	if err := p.maps.Activate(); err != nil {
		return fmt.Errorf("activate the data path: %w", err)
	}
	ready()
	<-ctx.Done()
	return nil
}

// problems lists what of the plane needs a person.
func (p *plane) problems(ctx context.Context) []string {
	all := append(p.endpoints.Problems(), p.balancer.Problems()...)
	drops, err := p.net.ForeignDrops(ctx)
	if err != nil {
		all = append(all, "look for foreign packet filters: "+err.Error())
	}
	for _, d := range drops {
		all = append(all, "this host's own firewall drops forwarded packets: "+d)
	}
	return all
}

func (p *plane) counters() datapath.Counters {
	c, err := p.maps.Counters()
	if err != nil {
		p.log.Warn("read the data path's counters", "error", err)
	}
	return c
}

// metrics are what the plane shows.
func (p *plane) metrics() []prometheus.Collector {
	return []prometheus.Collector{
		gauge("endpoint_problems", "Networks and endpoints that do not stand as wanted.", func() float64 { return float64(len(p.endpoints.Problems())) }),
		count("datapath_redirected_total", "Packets handed from endpoint to endpoint.", func() float64 { return float64(p.counters().Redirected) }),
		count("datapath_spoofed_total", "Packets dropped for a source address that is not their endpoint's.", func() float64 { return float64(p.counters().Spoofed) }),
	}
}
