package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/fairlead-net/fairlead/internal/datapath"
	"github.com/fairlead-net/fairlead/internal/endpoint"
	"github.com/fairlead-net/fairlead/internal/ipam"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/netdrv"
	"github.com/fairlead-net/fairlead/internal/registry"
	"github.com/fairlead-net/fairlead/internal/store"
	"github.com/fairlead-net/fairlead/internal/workload"
)

// serve answers HTTP until ctx ends; requests that wait for a change are sent
// home then.
func (a *Agent) serve(ctx context.Context, ready func()) error {
	listeners, err := a.listen()
	if err != nil {
		return err
	}
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	srv := a.guard.Server(a.requests)
	srv.BaseContext = func(net.Listener) context.Context { return base }
	plain := listeners[0]
	door, err := a.door(srv.Handler)
	if err != nil {
		return errors.Join(err, closeAll(listeners))
	}
	listeners[0] = door // the server gets what is not for the door
	answered, parked := make(chan error, 1), make(chan error, 1)
	go func() { answered <- door.Run(base, plain) }()
	go func() { parked <- a.lot.Run(base, func() {}) }()
	listeners = append(listeners, a.lot) // where connections come back
	served := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { served <- srv.Serve(l) }()
	}
	a.ready.Store(true)
	ready()
	a.log.Info("agent is ready", "http", plain.Addr().String(), "https", a.cfg.HTTPSAddr)
	select {
	case err := <-served:
		cancel()
		return errors.Join(fmt.Errorf("serve HTTP: %w", err), srv.Close(), <-answered, <-parked)
	case err := <-answered:
		cancel()
		return errors.Join(fmt.Errorf("serve HTTP: %w", err), srv.Close(), <-parked)
	case <-ctx.Done():
	}
	a.ready.Store(false)
	cancel()
	end, stop := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer stop()
	if err = srv.Shutdown(end); err != nil {
		err = srv.Close()
	}
	err = errors.Join(err, <-answered, <-parked)
	for range listeners {
		if serr := <-served; !errors.Is(serr, http.ErrServerClosed) {
			err = errors.Join(err, serr)
		}
	}
	return err
}

func closeAll(listeners []net.Listener) error {
	var errs []error
	for _, l := range listeners {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// listen opens the API's listeners, plain HTTP first.
func (a *Agent) listen() ([]net.Listener, error) {
	plain, err := net.Listen("tcp", a.cfg.HTTPAddr)
	if err != nil {
		return nil, listenError("http-addr", a.cfg.HTTPAddr, err)
	}
	if a.certs == nil {
		return []net.Listener{plain}, nil
	}
	secure, err := net.Listen("tcp", a.cfg.HTTPSAddr)
	if err != nil {
		return nil, errors.Join(listenError("https-addr", a.cfg.HTTPSAddr, err), plain.Close())
	}
	return []net.Listener{plain, tls.NewListener(secure, a.certs.server())}, nil
}

// addrsFree refuses addresses that somebody listens at. An agent takes its
// addresses late in its start, and an agent that fails there would have changed
// the machine, and taken over what another one keeps there.
func (c Config) addrsFree() error {
	var errs []error
	for _, want := range []struct{ setting, network, addr string }{
		{"http-addr", "tcp", c.HTTPAddr}, {"https-addr", "tcp", c.HTTPSAddr}, {"dns-addr", "tcp", c.DNSAddr}, {"dns-addr", "udp", c.DNSAddr},
	} {
		if want.addr == "" {
			continue
		}
		var l io.Closer
		var err error
		if want.network == "udp" {
			l, err = net.ListenPacket(want.network, want.addr)
		} else {
			l, err = net.Listen(want.network, want.addr)
		}
		if err == nil {
			err = l.Close()
		}
		if err != nil {
			errs = append(errs, listenError(want.setting, want.addr, err))
		}
	}
	return errors.Join(errs...)
}

func listenError(setting, addr string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%s %s is in use: another agent or program listens there; stop it or set --%s", setting, addr, setting)
	}
	return fmt.Errorf("%s %s: %w", setting, addr, err)
}

func underPrefix(path, prefix string) bool {
	return path == prefix || strings.HasPrefix(path, prefix+"/")
}

// statuses says how the errors of the boxes look over HTTP.
var statuses = []struct {
	err    error
	status int
}{
	{endpoint.ErrNoNetwork, http.StatusNotFound},
	{endpoint.ErrNoEndpoint, http.StatusNotFound},
	{workload.ErrNoWorkload, http.StatusNotFound},
	{registry.ErrUnknownNetwork, http.StatusNotFound},
	{registry.ErrUnknownNode, http.StatusNotFound},
	{registry.ErrUnknownEndpoint, http.StatusNotFound},
	{registry.ErrExists, http.StatusConflict},
	{registry.ErrNameTaken, http.StatusConflict},
	{registry.ErrOtherBlock, http.StatusConflict},
	{registry.ErrVNIsExhausted, http.StatusConflict},
	{registry.ErrPortTaken, http.StatusConflict},
	{registry.ErrInUse, http.StatusConflict},
	{registry.ErrOwner, http.StatusConflict},
	{registry.ErrConflict, http.StatusConflict},
	{registry.ErrVIPsExhausted, http.StatusConflict},
	{workload.ErrServiceTaken, http.StatusConflict},
	{endpoint.ErrPortTaken, http.StatusConflict},
	{endpoint.ErrOtherNode, http.StatusConflict},
	{endpoint.ErrNotThisNode, http.StatusConflict},
	{endpoint.ErrAttached, http.StatusConflict},
	{netdrv.ErrNameClash, http.StatusConflict},
	{netdrv.ErrPortTaken, http.StatusConflict},
	{netdrv.ErrPortClash, http.StatusConflict},
	{netdrv.ErrRouteClash, http.StatusConflict},
	{netdrv.ErrUnreachable, http.StatusConflict},
	{ipam.ErrExhausted, http.StatusConflict},
	{ipam.ErrTaken, http.StatusConflict},
	{ipam.ErrNoDefault, http.StatusConflict},
	{endpoint.ErrName, http.StatusBadRequest},
	{endpoint.ErrNetworkName, http.StatusBadRequest},
	{endpoint.ErrPort, http.StatusBadRequest},
	{endpoint.ErrDriver, http.StatusBadRequest},
	{endpoint.ErrBadNetwork, http.StatusBadRequest},
	{workload.ErrSpec, http.StatusBadRequest},
	{model.ErrInvalid, http.StatusBadRequest},
	{ipam.ErrBadPrefix, http.StatusBadRequest},
	{ipam.ErrTooWide, http.StatusBadRequest},
	{ipam.ErrTooSmall, http.StatusBadRequest},
	{ipam.ErrOutside, http.StatusBadRequest},
	{ipam.ErrReserved, http.StatusBadRequest},
	{netdrv.ErrNoIPv6, http.StatusBadRequest},
	{netdrv.ErrNoNamespace, http.StatusBadRequest},
	{netdrv.ErrNotNamespace, http.StatusBadRequest},
	{netdrv.ErrHostNamespace, http.StatusBadRequest},
	{store.ErrUnknownServer, http.StatusNotFound},
	{store.ErrLastServer, http.StatusConflict},
	{store.ErrLearner, http.StatusConflict},
	{store.ErrQuorum, http.StatusConflict},
	{store.ErrNotLeader, http.StatusServiceUnavailable},
	{store.ErrRestoring, http.StatusServiceUnavailable},
	{store.ErrNoLeader, http.StatusServiceUnavailable},
	{store.ErrUnknownOutcome, http.StatusServiceUnavailable},
	{store.ErrClosed, http.StatusServiceUnavailable},
	{store.ErrTooLarge, http.StatusRequestEntityTooLarge},
	{store.ErrNoSpace, http.StatusInsufficientStorage},
	{datapath.ErrFull, http.StatusInsufficientStorage},
}

// httpStatus is the status of an error, 0 for one that nobody foresaw.
func httpStatus(err error) int {
	var overlap *ipam.OverlapError
	if errors.As(err, &overlap) {
		return http.StatusConflict
	}
	for _, s := range statuses {
		if errors.Is(err, s.err) {
			return s.status
		}
	}
	return 0
}

// gauge and count are metrics that are read when they are asked for.
func gauge(name, help string, f func() float64) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "fairlead", Name: name, Help: help}, f)
}

func count(name, help string, f func() float64) prometheus.Collector {
	return prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "fairlead", Name: name, Help: help}, f)
}

// openMetrics registers what /metrics shows.
func (a *Agent) openMetrics() error {
	a.metrics = prometheus.NewRegistry()
	all := []prometheus.Collector{
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		gauge("state_index", "Revision of the newest snapshot.", func() float64 { return float64(a.state.Snapshot().Index()) }),
		gauge("services", "Services in the catalogue.", func() float64 { return float64(servicesIn(a.state.Snapshot())) }),
		gauge("endpoints", "Endpoints in the catalogue.", func() float64 { e, _ := a.state.Snapshot().Endpoints(); return float64(len(e)) }),
	}
	all = append(all, a.storeMetrics()...)
	all = append(all, gauge("http_parked_connections", "Connections that are held for requests which wait, and for the next ones after those.",
		func() float64 { return float64(a.lot.Waiting()) }))
	if a.plane != nil {
		all = append(all, a.plane.metrics()...)
	}
	for _, c := range all {
		if err := a.metrics.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return a.dns.Register(a.metrics)
}

func (a *Agent) metricsHandler() http.Handler {
	return promhttp.HandlerFor(a.metrics, promhttp.HandlerOpts{})
}
