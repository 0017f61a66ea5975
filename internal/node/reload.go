package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/fairlead-net/fairlead/internal/migrate"
)

// hangups reloads the files at each SIGHUP until ctx ends.
func (a *Agent) hangups(ctx context.Context, ready func()) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGHUP)
	defer signal.Stop(signals)
	ready()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-signals:
			if err := a.reload(ctx); err != nil {
				a.log.Error("reload: what was read before stays in force", "error", err)
			}
		}
	}
}

// reload reads definition files and certificates again. What is wrong with one
// kind of file leaves that kind as it was.
func (a *Agent) reload(ctx context.Context) error {
	a.reloading.Lock()
	defer a.reloading.Unlock()
	var errs []error
	if a.certs != nil {
		errs = append(errs, a.certs.reload())
	}
	errs = append(errs, a.declare(ctx))
	err := errors.Join(errs...)
	if err == nil {
		a.log.Info("files are read again", "services-dir", a.cfg.ServicesDir, "tls-cert-file", a.cfg.TLSCertFile)
	}
	return err
}

// declare registers what the definition files say.
func (a *Agent) declare(ctx context.Context) error {
	if a.cfg.ServicesDir == "" {
		return nil
	}
	services, checks, warnings, err := migrate.Definitions(a.cfg.ServicesDir)
	if err != nil {
		return fmt.Errorf("services-dir: %w", err)
	}
	for _, w := range warnings {
		a.log.Warn("definition files", "warning", w)
	}
	if err := a.local.Declare(ctx, services, checks); err != nil {
		return fmt.Errorf("services-dir %s: %w", a.cfg.ServicesDir, err)
	}
	return nil
}
