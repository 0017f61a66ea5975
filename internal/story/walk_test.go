package story

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/fairlead-net/fairlead/internal/testlab"
)

// TestWalk runs the walks of ARCHITECTURE.md. Beside the commands of a story (testlab.RunScripts), fairlead itself and the
// host's own programs they have
//
//	agent start|stop HOST        a real agent on the host; taken down at the end, which must leave the host as it was
//	capture NAME REGEXP          puts what the group of the expression matches in the last stdout into $NAME
//	serve, fetch, http           programs that play the roles of these names (see play)
func TestWalk(t *testing.T) {
	t.Parallel()
	testlab.Require(t, testlab.Root)
	programs := t.TempDir()
	for _, role := range []string{"serve", "fetch", "http"} {
		script := fmt.Sprintf("#!/bin/sh\n%s=%s exec %s \"$@\"\n", roleVariable, role, self)
		if err := os.WriteFile(filepath.Join(programs, role), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	setup := func(s *testlab.Story) error {
		path := filepath.Dir(binary) + ":" + programs + ":" + s.Env.Getenv("PATH")
		s.Env.Setenv("PATH", path)
		s.Env.Values[agentsKey{}] = map[string]*agent{}
		s.Env.Values[testKey{}] = s.Env.T()
		return nil
	}
	testlab.RunScripts(t, "testdata", setup, map[string]testlab.Command{"agent": cmdAgent, "capture": cmdCapture})
}

type (
	agentsKey struct{}
	testKey   struct{}
)

func cmdAgent(s *testlab.Story, neg bool, args []string) error {
	if neg || len(args) != 2 {
		return errors.New("usage: agent start|stop HOST")
	}
	h, err := s.Host(args[1])
	if err != nil {
		return err
	}
	agents := s.TS.Value(agentsKey{}).(map[string]*agent)
	a := agents[args[1]]
	switch {
	case args[0] == "start" && a == nil:
		agents[args[1]] = newAgent(s.TS.Value(testKey{}).(testing.TB), h)
	case args[0] == "start":
		a.start()
	case args[0] == "stop" && a != nil:
		a.stop()
	default:
		return fmt.Errorf("cannot %s the agent of %s", args[0], args[1])
	}
	return nil
}

func cmdCapture(s *testlab.Story, neg bool, args []string) error {
	if neg || len(args) != 2 {
		return errors.New("usage: capture NAME REGEXP")
	}
	re, err := regexp.Compile("(?m)" + args[1])
	if err != nil {
		return err
	}
	out := s.TS.ReadFile("stdout")
	m := re.FindStringSubmatch(out)
	if len(m) != 2 {
		return fmt.Errorf("nothing to capture by %q in:\n%s", args[1], out)
	}
	s.TS.Setenv(args[0], m[1])
	return nil
}
