// Command leakcheck shows that a test run or a demo left the machine as it was. "before FILE" removes what dead labs left
// and writes down the machine's own network, mounts, control groups and pinned BPF objects; "after FILE" compares, removes
// what dead labs left, and fails if anything differed; "sweep" only removes. Scripts call it; it shares nothing with
// running labs.
package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/fairlead-net/fairlead/internal/testlab"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "leakcheck:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "before":
		// The first test would sweep, and what it removed would then be missed.
		if err := sweep(); err != nil {
			return err
		}
		facts, err := testlab.Snapshot()
		if err != nil {
			return err
		}
		return os.WriteFile(args[1], []byte(strings.Join(facts, "\n")), 0o600)
	case len(args) == 2 && args[0] == "after":
		return after(args[1])
	case len(args) == 1 && args[0] == "sweep":
		return sweep()
	}
	return errors.New("usage: leakcheck before FILE | after FILE | sweep")
}

func sweep() error {
	swept, err := testlab.Sweep()
	for _, name := range swept {
		fmt.Println("removed", name)
	}
	return err
}

func after(file string) error {
	before, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	now, err := testlab.Snapshot()
	if err != nil {
		return err
	}
	diff := testlab.Diff(strings.Split(string(before), "\n"), now)
	if len(diff) == 0 {
		fmt.Printf("leakcheck: the machine is as it was (%d facts compared)\n", len(now))
		return nil
	}
	if _, err := testlab.Sweep(); err != nil {
		diff = append(diff, "! sweep: "+err.Error())
	}
	return fmt.Errorf("the machine is not as it was:\n%s", strings.Join(diff, "\n"))
}
