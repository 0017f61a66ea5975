// Command fairlead is the agent and the command line of Fairlead, a container
// network and service discovery for Linux hosts.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/fairlead-net/fairlead/internal/runtime/process"
)

// version is set by the linker; see the Makefile.
var version = "dev"

// exitError ends the program with a code that a workload ended with.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func main() { os.Exit(run(os.Args[1:])) }

// run is main with an exit code: 0, 1 for a failure, 2 for a wrong command line,
// or what a workload ended with.
func run(args []string) int {
	// These two are this binary in another role, started by itself with nothing
	// but what they need. They must not run anything before.
	if len(args) > 0 {
		switch args[0] {
		case process.SuperviseCommand:
			return process.Supervise()
		case process.InitCommand:
			return process.Init(args[1:])
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cmd := rootCommand()
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	var exit exitError
	var usage *usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return int(exit)
	case errors.As(err, &usage):
		fmt.Fprintf(os.Stderr, "fairlead: %v\n", err)
		return 2
	}
	fmt.Fprintf(os.Stderr, "fairlead: %v\n", err)
	return 1
}
