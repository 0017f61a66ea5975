package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairlead-net/fairlead/api"
	"github.com/fairlead-net/fairlead/internal/runtime/process"
)

// runFlags are the flags of run as they were given.
type runFlags struct {
	name, network  string
	aliases, addrs []string
	publish        []string
	expose         string
	service        string
	port           uint16
	tags           []string
	checkHTTP      string
	checkTCP       bool
	interval       time.Duration
	timeout        time.Duration
	deregister     time.Duration
	env            []string
	dir            string
	pid, detach    bool
	wait           time.Duration
}

func runCommand(o *options) *cobra.Command {
	f := &runFlags{}
	c := &cobra.Command{
		Use:   "run --network NETWORK --name NAME [flags] -- COMMAND [ARG...]",
		Short: "Run a plain process in a network",
		Long: `Runs a command in network and mount namespaces of its own, connected to a
network, with that network's names in its /etc/resolv.conf. With --service the
process answers for a service, at the port given, while it lives and its check
passes. The process outlives the agent; 'fairlead stop NAME' ends it.`,
		Example: `  fairlead run --network my-network --name web-1 --service web --port 80 \
      --check-http / -p 8080:80 -d -- python3 -m http.server 80
  fairlead run --network my-network --name shell -- sh`,
		RunE: func(c *cobra.Command, args []string) error {
			if c.ArgsLenAtDash() != 0 || len(args) == 0 {
				return usagef("the command to run goes behind --, such as: %s", "fairlead run --network my-network --name web -- python3 -m http.server 80")
			}
			return f.run(c, o, args)
		},
	}
	fl := c.Flags()
	fl.StringVar(&f.name, "name", "", "name of the workload, answered by the network's DNS")
	fl.StringVar(&f.network, "network", "", "network to connect it to")
	fl.StringArrayVar(&f.aliases, "alias", nil, "further name that answers within the network")
	fl.StringArrayVar(&f.addrs, "ip", nil, "address it wants, at most one per family (default: the next free)")
	fl.StringArrayVarP(&f.publish, "publish", "p", nil, "publish a port: HOSTPORT:PORT[/udp]")
	fl.StringVar(&f.expose, "expose", "host", "who may use published ports: host, lan or any")
	fl.StringVar(&f.service, "service", "", "service that it answers for")
	fl.Uint16Var(&f.port, "port", 0, "port at which it answers for the service")
	fl.StringArrayVar(&f.tags, "tag", nil, "tag of the service instance")
	fl.StringVar(&f.checkHTTP, "check-http", "", "path that answers 2xx while it is healthy")
	fl.BoolVar(&f.checkTCP, "check-tcp", false, "it is healthy while it accepts connections at the service's port")
	fl.DurationVar(&f.interval, "check-interval", 10*time.Second, "time between checks")
	fl.DurationVar(&f.timeout, "check-timeout", 2*time.Second, "time after which a check has failed")
	fl.DurationVar(&f.deregister, "deregister-after", 0, "take it out of the catalogue after it was critical for so long (at least 1m)")
	fl.StringArrayVarP(&f.env, "env", "e", nil, "environment variable, KEY=VALUE, beside the caller's own")
	fl.StringVarP(&f.dir, "workdir", "w", "", "working directory (default: the caller's)")
	fl.BoolVar(&f.pid, "pid", false, "give it process numbers of its own")
	fl.BoolVarP(&f.detach, "detach", "d", false, "run it in the background; its output goes to a log file")
	fl.DurationVar(&f.wait, "wait", 0, "with --detach, wait so long at most for its check to pass, and fail if it does not")
	completeFlagWith(c, "network", o.names(0, networkNames))
	completeFlagWith(c, "service", o.names(0, serviceNames))
	completeFlag(c, "expose", "host", "lan", "any")
	return c
}

func (f *runFlags) run(c *cobra.Command, o *options, command []string) error {
	spec, err := f.spec()
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("running a workload needs root, to make its namespaces; use sudo")
	}
	cl, err := o.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.Context(), time.Minute)
	defer cancel()
	host, err := cl.Host(ctx)
	if err != nil {
		return err
	}
	if _, err := cl.Network(ctx, f.network); err != nil {
		return err
	}
	dir := f.dir
	if dir == "" {
		if dir, err = os.Getwd(); err != nil {
			return fmt.Errorf("tell the working directory: %w", err)
		}
	}
	s, err := startWorkload(ctx, cl, process.Spec{
		Name: f.name, Command: command, Env: workloadEnv(os.Environ(), f.env), Dir: dir,
		PIDNamespace: f.pid, Detach: f.detach, RunDir: host.RunDir, Cgroup: host.Cgroup,
	})
	if err != nil {
		return err
	}
	spec.NetNS = s.NetNS
	a, err := cl.Attach(ctx, spec)
	if err != nil {
		return errors.Join(err, s.Abandon())
	}
	for _, w := range a.Warnings {
		warn(c, w)
	}
	if err := s.Go(a); err != nil {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		return errors.Join(err, ignoreMissing(cl.Stop(stop, f.name, 0)))
	}
	if f.detach {
		if err := f.awaitPassing(c.Context(), cl); err != nil {
			return err
		}
		return o.show(c.OutOrStdout(), a.Endpoint, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "%s: %s\n", a.Endpoint.Workload, addrs(a.Endpoint.Addrs))
			return err
		})
	}
	return waitWorkload(s)
}

// workloadEnv is what a workload finds in its environment. The token that the
// command acts with, and may run workloads, is not for them unless it is given.
func workloadEnv(own, given []string) []string {
	own = slices.DeleteFunc(own, func(kv string) bool { return strings.HasPrefix(kv, "FAIRLEAD_TOKEN=") })
	return append(own, given...)
}

// awaitPassing waits until the workload's instance passes, if it was asked to.
func (f *runFlags) awaitPassing(ctx context.Context, cl *api.Client) error {
	if f.wait <= 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, f.wait)
	defer cancel()
	if err := cl.AwaitPassing(ctx, f.service, f.name); err != nil {
		return fmt.Errorf("%s runs, but its check did not pass within %s: %w; 'fairlead service inspect %s' shows it", f.name, f.wait, err, f.service)
	}
	return nil
}

// startWorkload starts the supervisor. A workload of that name that ended and
// was not cleared away yet, since no agent ran, is cleared away first.
func startWorkload(ctx context.Context, cl *api.Client, spec process.Spec) (*process.Started, error) {
	s, err := process.Start(spec)
	if !errors.Is(err, process.ErrExists) {
		return s, err
	}
	all, lerr := cl.Workloads(ctx)
	if lerr != nil {
		return nil, errors.Join(err, lerr)
	}
	for _, w := range all {
		if w.Name == spec.Name && w.State == "exited" {
			if serr := ignoreMissing(cl.Stop(ctx, spec.Name, 0)); serr != nil {
				return nil, serr
			}
			return process.Start(spec)
		}
	}
	return nil, err
}

// waitWorkload waits for a workload in the foreground. The terminal's signals
// reach the workload by themselves; this process only must not end by them.
func waitWorkload(s *process.Started) error {
	signal.Reset(os.Interrupt, syscall.SIGTERM)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT)
	defer signal.Stop(signals)
	go func() {
		for sig := range signals {
			if sig == syscall.SIGTERM {
				s.Signal(syscall.SIGTERM)
			}
		}
	}()
	code, err := s.Wait()
	if err != nil {
		return fmt.Errorf("wait for the workload: %w", err)
	}
	if code != 0 {
		return exitError(code)
	}
	return nil
}

func ignoreMissing(err error) error {
	if api.IsNotFound(err) {
		return nil
	}
	return err
}

// spec is the part of the flags that the agent has to know.
func (f *runFlags) spec() (api.WorkloadSpec, error) {
	w := api.WorkloadSpec{Name: f.name, Network: f.network, Aliases: f.aliases}
	if f.name == "" || f.network == "" {
		return w, usagef("--name and --network are needed: what it is called, and which network it goes into")
	}
	for _, s := range f.addrs {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return w, usagef("--ip %q: %w", s, err)
		}
		w.Addrs = append(w.Addrs, a)
	}
	for _, s := range f.publish {
		p, err := parsePublish(s, f.expose)
		if err != nil {
			return w, err
		}
		w.Ports = append(w.Ports, p)
	}
	for _, e := range f.env {
		if !strings.Contains(e, "=") {
			return w, usagef("--env %q: want KEY=VALUE", e)
		}
	}
	if f.wait > 0 && (!f.detach || f.service == "") {
		return w, usagef("--wait is about the check of a --service that runs with --detach")
	}
	if f.service == "" {
		if f.port != 0 || len(f.tags) > 0 || f.checkHTTP != "" || f.checkTCP {
			return w, usagef("--port, --tag and --check-… describe a service: name it with --service")
		}
		return w, nil
	}
	if f.port == 0 {
		return w, usagef("--service %s: say with --port at which port it answers", f.service)
	}
	w.Service = &api.Service{Name: f.service, Port: f.port, Tags: f.tags}
	if f.checkHTTP != "" && f.checkTCP {
		return w, usagef("--check-http and --check-tcp: choose one")
	}
	if f.checkHTTP != "" || f.checkTCP {
		w.Service.Check = &api.Check{
			HTTP: f.checkHTTP, TCP: f.checkTCP, Interval: f.interval, Timeout: f.timeout, DeregisterAfter: f.deregister,
		}
	}
	return w, nil
}

// parsePublish reads HOSTPORT:PORT[/PROTO].
func parsePublish(s, expose string) (api.Port, error) {
	p := api.Port{Proto: "tcp", Expose: expose}
	pair, proto, ok := strings.Cut(s, "/")
	if ok {
		p.Proto = proto
	}
	host, port, ok := strings.Cut(pair, ":")
	if !ok {
		return p, usagef("--publish %q: want HOSTPORT:PORT, such as 8080:80 or 5353:53/udp", s)
	}
	for _, n := range []struct {
		text string
		to   *uint16
	}{{host, &p.HostPort}, {port, &p.Port}} {
		v, err := strconv.ParseUint(n.text, 10, 16)
		if err != nil || v == 0 {
			return p, usagef("--publish %q: %q is not a port from 1 to 65535", s, n.text)
		}
		*n.to = uint16(v)
	}
	return p, nil
}

func psCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "ps", Short: "List this host's workloads", Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			all, err := cl.Workloads(c.Context())
			if err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), all, func(w io.Writer) error {
				t := &table{head: []string{"NAME", "STATE", "PID", "NETWORK", "ADDRESSES", "SERVICE", "PORTS", "COMMAND"}}
				for _, p := range all {
					addWorkload(t, p)
				}
				return t.write(w)
			})
		},
	}
}

func addWorkload(t *table, p api.Workload) {
	var networks, where, published []string
	for _, e := range p.Endpoints {
		networks = append(networks, e.Network)
		where = append(where, addrs(e.Addrs))
		if len(e.Ports) > 0 {
			published = append(published, ports(e.Ports))
		}
	}
	pid := "-"
	if p.PID != 0 {
		pid = strconv.Itoa(p.PID)
	}
	t.add(p.Name, p.State, pid, orDash(strings.Join(networks, ", ")), orDash(strings.Join(where, ", ")),
		orDash(p.Service), orDash(strings.Join(published, ", ")), orDash(strings.Join(p.Command, " ")))
}

func stopCommand(o *options) *cobra.Command {
	var grace time.Duration
	c := &cobra.Command{
		Use: "stop NAME...", Short: "End workloads and take them out of their networks and services",
		ValidArgsFunction: o.names(0, workloadNames),
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("name at least one workload; 'fairlead ps' lists them")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			var errs []error
			for _, name := range args {
				ctx, cancel := context.WithTimeout(c.Context(), grace+time.Minute)
				errs = append(errs, cl.Stop(ctx, name, grace))
				cancel()
			}
			return errors.Join(errs...)
		},
	}
	c.Flags().DurationVarP(&grace, "time", "t", 10*time.Second, "time between SIGTERM and SIGKILL")
	return c
}
