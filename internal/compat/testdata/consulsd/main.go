// Command consulsd runs Prometheus' own consul_sd on a service and prints each set of targets that it finds, one JSON line each.
// Debian builds Prometheus without it. Usage: consulsd HOST:PORT SERVICE TAG.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/discovery"
	"github.com/prometheus/prometheus/discovery/consul"
	"github.com/prometheus/prometheus/discovery/targetgroup"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "consulsd:", err)
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	cfg := consul.DefaultSDConfig
	cfg.Server, cfg.Services, cfg.ServiceTags = os.Args[1], []string{os.Args[2]}, []string{os.Args[3]}
	cfg.RefreshInterval = model.Duration(time.Second)
	reg := prometheus.NewRegistry()
	refresh := discovery.NewRefreshMetrics(reg)
	metrics := cfg.NewDiscovererMetrics(reg, refresh)
	if err := metrics.Register(); err != nil {
		return err
	}
	defer metrics.Unregister()
	d, err := cfg.NewDiscoverer(discovery.DiscovererOptions{
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)), Metrics: metrics, SetName: "test",
	})
	if err != nil {
		return err
	}
	updates := make(chan []*targetgroup.Group)
	go d.Run(ctx, updates)
	for {
		select {
		case <-ctx.Done():
			return nil
		case groups := <-updates:
			targets := []string{}
			for _, g := range groups {
				for _, t := range g.Targets {
					targets = append(targets, fmt.Sprintf("%s %s %s %s %s", t["__meta_consul_service_id"], t["__meta_consul_tags"],
						g.Labels["__meta_consul_dc"], t["__meta_consul_health"], t[model.AddressLabel]))
				}
			}
			slices.Sort(targets)
			if err := json.NewEncoder(os.Stdout).Encode(targets); err != nil {
				return err
			}
		}
	}
}
