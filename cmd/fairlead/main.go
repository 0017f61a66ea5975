// Command fairlead is the agent and the command line of Fairlead, a container
// network and service discovery for Linux hosts.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"github.com/fairlead-net/fairlead/api"
)

// version is set by the linker; see the Makefile.
var version = "dev"

// exitError ends the program with a code that a workload ended with.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

// run is main with its streams and an exit code: 0, 1 for a failure, 2 for a
// wrong command line, or what a workload ended with.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(args) > 0 && roles[args[0]] != nil {
		return roles[args[0]](args[1:])
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return execute(ctx, args, stdin, stdout, stderr)
}

// execute runs one command line until it is done or ctx ends.
func execute(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	cmd := rootCommand()
	cmd.SetArgs(args)
	cmd.SetIn(stdin)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	var exit exitError
	var usage *usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return int(exit)
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "fairlead: %v\n", err)
		return 2
	}
	fmt.Fprintf(stderr, "fairlead: %v%s\n", err, tokenHint(err))
	return 1
}

// tokenHint says what to do where an agent does not know the token; its own words
// are Consul's and name none.
func tokenHint(err error) string {
	var refused *api.Error
	if !errors.As(err, &refused) || refused.Status != http.StatusForbidden || refused.Message != "ACL not found" {
		return ""
	}
	return ": the agent does not know the token of this call; give one that it knows with FAIRLEAD_TOKEN or --token (without any, it is the agent's acl-default-token)"
}
