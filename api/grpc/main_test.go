package fairleadgrpc_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/fairlead-net/fairlead/internal/node"
)

// TestMain gives the examples an agent, at the address that FAIRLEAD_ADDR names.
func TestMain(m *testing.M) {
	code, err := withAgent(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func withAgent(run func() int) (code int, err error) {
	dir, err := os.MkdirTemp("", "fl-grpc-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	flags := map[string]string{
		"registry-only": "true", "dev": "true", "node-name": "host-1", "advertise": "127.0.0.1",
		"run-dir": dir, "data-dir": dir, "resolv-conf": "/dev/null", "http-addr": freePort(), "dns-addr": freePort(),
	}
	cfg, err := node.Load("", func(string) (string, bool) { return "", false }, flags)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- node.Run(ctx, cfg, "0.0.0-test", slog.New(slog.DiscardHandler)) }()
	defer func() {
		cancel()
		if end := <-ended; err == nil {
			err = end
		}
	}()
	if err := os.Setenv("FAIRLEAD_ADDR", cfg.HTTPAddr); err != nil {
		return 0, err
	}
	for deadline := time.Now().Add(time.Minute); ; {
		res, err := http.Get("http://" + cfg.HTTPAddr + "/readyz")
		if err == nil {
			_, _ = io.Copy(io.Discard, res.Body)
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return run(), nil
			}
			err = fmt.Errorf("/readyz: %s", res.Status)
		}
		if time.Now().After(deadline) {
			return 0, err
		}
		<-time.After(5 * time.Millisecond)
	}
}

// freePort is an address that nobody listens at.
func freePort() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer l.Close()
	return l.Addr().String()
}
