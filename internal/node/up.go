package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"github.com/fairlead-net/fairlead/internal/cluster"
	"github.com/fairlead-net/fairlead/internal/identity"
	"github.com/fairlead-net/fairlead/internal/model"
	"github.com/fairlead-net/fairlead/internal/rpc"
	"github.com/fairlead-net/fairlead/internal/store"
)

// Up is how a host becomes part of a site.
type Up struct {
	// Join is a join token; empty for the first server of a site, and for a host
	// that has joined already.
	Join string
	// Server makes it one of the servers.
	Server bool
	// Founded is called with a join token when the first server of a site runs for
	// the first time.
	Founded func(token string)
}

// RunUp makes this host part of a site, unless it is already, and runs its agent
// like Run.
func RunUp(ctx context.Context, cfg Config, up Up, version string, log *slog.Logger) error {
	if cfg.Dev {
		return errors.New("--dev keeps nothing, so others could not find this host again: leave it out")
	}
	if cfg.ClusterAddr == "" {
		at, err := netip.ParseAddr(cfg.Advertise)
		if err != nil {
			return fmt.Errorf("advertise: %w", err)
		}
		cfg.ClusterAddr = netip.AddrPortFrom(at, rpc.DefaultPort).String()
	}
	if err := Check(cfg); err != nil {
		return err
	}
	_, err := identity.OpenBadge(badgeDir(cfg), nil)
	switch {
	case err == nil:
		if up.Join != "" {
			log.Info("this host has joined already: the token is not used")
		}
		return run(ctx, cfg, version, log, nil)
	case !errors.Is(err, identity.ErrNoBadge):
		return err
	case up.Join != "":
		if err := join(ctx, cfg, up, log); err != nil {
			return err
		}
		return run(ctx, cfg, version, log, nil)
	}
	if err := found(ctx, cfg, log); err != nil {
		return err
	}
	return run(ctx, cfg, version, log, up.Founded)
}

// found makes this host the first server of a site.
func found(ctx context.Context, cfg Config, log *slog.Logger) error {
	id, err := nodeID(identityDir(cfg))
	if err != nil {
		return err
	}
	badge, err := identity.OpenBadge(badgeDir(cfg), nil)
	if !errors.Is(err, identity.ErrNoBadge) {
		return err
	}
	if err := keepSite(cfg, siteFacts{Site: cfg.Site, VIPPool: cfg.VIPPool, VIPPool6: cfg.VIPPool6}); err != nil {
		return err
	}
	self := identity.Node{ID: id, Name: model.NodeName(cfg.NodeName), Site: cfg.Site, Server: true}
	return cluster.Found(ctx, store.Config{Dir: cfg.DataDir, Name: cfg.NodeName, Site: cfg.Site, Log: log}, badge, self, log)
}

// join makes this host a node of the site that a token is of.
func join(ctx context.Context, cfg Config, up Up, log *slog.Logger) error {
	token, err := identity.ParseJoinToken(up.Join)
	if err != nil {
		return err
	}
	id, err := nodeID(identityDir(cfg))
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(cfg.DataDir, "etcd", "member")); err == nil {
		return fmt.Errorf("data-dir %s has a registry of its own: a host that joins brings none; give another directory", cfg.DataDir)
	}
	dir, err := openDirectory(cfg, id)
	if err != nil {
		return err
	}
	badge, err := identity.OpenBadge(badgeDir(cfg), nil)
	if !errors.Is(err, identity.ErrNoBadge) {
		return err
	}
	self := identity.Node{ID: id, Name: model.NodeName(cfg.NodeName), Server: up.Server}
	a, err := cluster.Join(ctx, token, badge, dir, self, codes)
	if err != nil {
		return err
	}
	log.Info("this host has joined a site", "site", a.Site, "servers", strconv.Itoa(len(a.Servers)))
	return keepSite(cfg, siteFacts{Site: a.Site, VIPPool: a.VIPPool4, VIPPool6: a.VIPPool6})
}

// siteFacts are the settings that are the same on every node of a site.
type siteFacts struct {
	Site     string `json:"site"`
	VIPPool  string `json:"vip_pool"`
	VIPPool6 string `json:"vip_pool6"`
}

func siteFile(cfg Config) string { return filepath.Join(badgeDir(cfg), "site.json") }

func keepSite(cfg Config, f siteFacts) error {
	b, err := json.Marshal(f)
	if err == nil {
		err = os.MkdirAll(badgeDir(cfg), 0o700)
	}
	if err == nil {
		err = os.WriteFile(siteFile(cfg), b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("keep the site's settings: %w", err)
	}
	return nil
}

// ofSite is the configuration with what the site says.
func (c Config) ofSite() (Config, error) {
	if !c.clustered() {
		return c, nil
	}
	b, err := os.ReadFile(siteFile(c))
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil // it has not joined; openPeers says so
	}
	var f siteFacts
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err != nil {
		return c, fmt.Errorf("read the site's settings: %w", err)
	}
	c.Site, c.VIPPool, c.VIPPool6 = f.Site, f.VIPPool, f.VIPPool6
	return c, nil
}
