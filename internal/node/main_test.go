package node

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/fairlead-net/fairlead/api"
	"github.com/fairlead-net/fairlead/internal/runtime/process"
)

// The roles of this test program. Those of a node take their settings from the
// environment; downRole with an argument purges, networkRole makes a network.
const (
	checkRole   = "test-check"
	agentRole   = "test-agent"
	downRole    = "test-down"
	networkRole = "test-network"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case process.SuperviseCommand:
			os.Exit(process.Supervise())
		case process.InitCommand:
			os.Exit(process.Init(os.Args[2:]))
		case checkRole, agentRole, downRole, networkRole:
			if err := play(os.Args[1], os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			return
		}
	}
	goleak.VerifyTestMain(m)
}

func play(role string, args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	cfg, err := Load("", os.LookupEnv, nil)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	switch role {
	case checkRole:
		return Check(cfg)
	case agentRole:
		return Run(ctx, cfg, "test", log)
	case networkRole:
		c, err := api.New("")
		if err != nil {
			return err
		}
		_, err = c.CreateNetwork(ctx, api.Network{Name: args[0]})
		return err
	}
	done, err := Down(ctx, cfg, len(args) > 0, log)
	for _, line := range done {
		fmt.Println(line)
	}
	return err
}
