package testlab

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// A Command is one more command of a story; neg is set when the line starts with "!". Its error ends the story.
type Command func(s *Story, neg bool, args []string) error

// Story is one running txtar script with its lab.
type Story struct {
	Lab *Lab
	// TS is the running script; nil in setup.
	TS *testscript.TestScript
	// Env is the script's environment, to be changed in setup only.
	Env *testscript.Env

	procs  map[string]*Proc
	before map[string][]string
}

// RunScripts runs every txtar file of a directory as a subtest with a lab of its own. Besides the commands of testscript
// (stdout, stderr, cmp, exec, env, ...) a story has
//
//	host NAME...                          new hosts; sets $NAME_cgroup, $NAME_agent, $NAME_bpffs, $NAME_dir
//	link A B PREFIX...                    a cable between two hosts; sets $A_addr, $A_addr6 and the same for B
//	switch HOST... PREFIX...              a segment for several hosts; sets the same
//	default A via B                       host A sends what it has no route for to B
//	namespace HOST NAME                   a bare network namespace inside a host; sets $HOST_NAME_netns
//	[!] on HOST COMMAND...                runs to the end; HOST/NAME means a namespace
//	start NAME@HOST COMMAND...            runs in the background; named "agent" it lives in the agent's control group
//	terminate NAME@HOST                   SIGTERM, waits for the end, wants exit status 0
//	crash NAME@HOST                       SIGKILL, waits for the end
//	[!] output NAME@HOST REGEXP           of a process started
//	eventually LIMIT [[!]stdout REGEXP] on HOST COMMAND...
//	                                      until the command succeeds and its stdout matches (or does not)
//	eventually LIMIT output NAME@HOST REGEXP
//	partition A B, heal A B               packets between two hosts are dropped, and no longer
//	inventory HOST, unchanged HOST        takes the host's inventory; fails unless it is still the same
//	abandon HOST                          what is left in the host at the end is meant to be left
//
// and the extra ones given. Setup may be nil; it is called before each script, to put programs into the PATH for example.
func RunScripts(t *testing.T, dir string, setup func(*Story) error, extra map[string]Command) {
	t.Helper()
	commands := maps.Clone(storyCommands)
	maps.Copy(commands, extra)
	params := testscript.Params{
		Dir:  dir,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){},
		Setup: func(env *testscript.Env) error {
			tb, ok := env.T().(testing.TB)
			if !ok {
				return errors.New("not run by the testing package")
			}
			s := &Story{Lab: New(tb), Env: env, procs: map[string]*Proc{}, before: map[string][]string{}}
			env.Values[storyKey{}] = s
			if setup != nil {
				return setup(s)
			}
			return nil
		},
	}
	for name, cmd := range commands {
		params.Cmds[name] = func(ts *testscript.TestScript, neg bool, args []string) {
			s := ts.Value(storyKey{}).(*Story)
			s.TS = ts
			if err := cmd(s, neg, args); err != nil {
				ts.Fatalf("%v", err)
			}
		}
	}
	testscript.Run(t, params)
}

type storyKey struct{}

var storyCommands = map[string]Command{
	"host":       cmdHost,
	"link":       cmdWire,
	"switch":     cmdWire,
	"default":    cmdDefault,
	"namespace":  cmdNamespace,
	"on":         cmdOn,
	"start":      cmdStart,
	"terminate":  cmdTerminate,
	"crash":      cmdCrash,
	"output":     cmdOutput,
	"eventually": cmdEventually,
	"partition":  cmdPartition,
	"heal":       cmdHeal,
	"inventory":  cmdInventory,
	"unchanged":  cmdUnchanged,
	"abandon":    cmdAbandon,
}

var errUsage = errors.New("wrong arguments; see the comment of testlab.RunScripts")

// Host is a host of the story, made by its host command.
func (s *Story) Host(name string) (*Host, error) {
	s.Lab.mu.Lock()
	defer s.Lab.mu.Unlock()
	if h := s.Lab.hosts[name]; h != nil {
		return h, nil
	}
	return nil, fmt.Errorf("no host %q; there are %v", name, slices.Sorted(maps.Keys(s.Lab.hosts)))
}

// Space is a host, or with HOST/NAME a namespace inside it.
func (s *Story) Space(name string) (*NS, error) {
	host, _, inner := strings.Cut(name, "/")
	h, err := s.Host(host)
	if err != nil || !inner {
		if err != nil {
			return nil, err
		}
		return &h.NS, nil
	}
	for _, n := range h.spaces {
		if n.name == name {
			return n, nil
		}
	}
	return nil, fmt.Errorf("no namespace %q", name)
}

// Proc is a process of the story, by NAME@HOST.
func (s *Story) Proc(name string) (*Proc, error) {
	if p := s.procs[name]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("no process %q; there are %v", name, slices.Sorted(maps.Keys(s.procs)))
}

// hostsOf resolves exactly n host names, or one at least when n is 0.
func (s *Story) hostsOf(neg bool, args []string, n int) ([]*Host, error) {
	if neg || len(args) == 0 || n > 0 && len(args) != n {
		return nil, errUsage
	}
	var hosts []*Host
	for _, name := range args {
		h, err := s.Host(name)
		if err != nil {
			return nil, err
		}
		hosts = append(hosts, h)
	}
	return hosts, nil
}

// command is what a line runs: in the script's directory, with its PATH.
func (s *Story) command(args []string) Cmd {
	c := Cmd{Args: args, Dir: s.TS.MkAbs(".")}
	for _, name := range []string{"WORK", "PATH", "HOME", "TMPDIR"} {
		c.Env = append(c.Env, name+"="+s.TS.Getenv(name))
	}
	return c
}

func cmdHost(s *Story, neg bool, args []string) error {
	if neg || len(args) == 0 {
		return errUsage
	}
	for _, name := range args {
		h, err := s.Lab.newHost(name)
		if err != nil {
			return err
		}
		s.TS.Setenv(name+"_cgroup", h.Cgroup())
		s.TS.Setenv(name+"_agent", h.AgentCgroup())
		s.TS.Setenv(name+"_bpffs", h.BPFFS())
		s.TS.Setenv(name+"_dir", h.Dir())
	}
	return nil
}

func cmdWire(s *Story, neg bool, args []string) error {
	split := slices.IndexFunc(args, func(a string) bool { return strings.Contains(a, "/") })
	if split < 0 {
		split = len(args)
	}
	hosts, err := s.hostsOf(neg, args[:split], 0)
	if err != nil {
		return err
	}
	w, err := s.Lab.newWire(args[split:])
	if err != nil {
		return err
	}
	for _, h := range hosts {
		if err := w.join(h); err != nil {
			return err
		}
		for _, p := range w.End(h).Addrs {
			name := h.name + "_addr"
			if p.Addr().Is6() {
				name += "6"
			}
			s.TS.Setenv(name, p.Addr().String())
		}
	}
	return nil
}

func cmdDefault(s *Story, neg bool, args []string) error {
	if len(args) != 3 || args[1] != "via" {
		return errUsage
	}
	hosts, err := s.hostsOf(neg, []string{args[0], args[2]}, 2)
	if err != nil {
		return err
	}
	for _, w := range s.Lab.segments {
		from, via := w.End(hosts[0]), w.End(hosts[1])
		if from.Device == "" || via.Device == "" {
			continue
		}
		for _, p := range via.Addrs {
			if _, err := hosts[0].Try("ip", "route", "add", "default", "via", p.Addr().String(), "dev", from.Device); err != nil {
				return err
			}
		}
		return nil
	}
	return errors.New("no wire joins them")
}

func cmdNamespace(s *Story, neg bool, args []string) error {
	if neg || len(args) != 2 {
		return errUsage
	}
	h, err := s.Host(args[0])
	if err != nil {
		return err
	}
	n, err := h.newNamespace(args[1])
	if err != nil {
		return err
	}
	s.TS.Setenv(args[0]+"_"+args[1]+"_netns", n.path)
	return nil
}

// runOn runs "HOST COMMAND..." and gives its output to the script.
func (s *Story) runOn(args []string) (string, error) {
	if len(args) < 2 {
		return "", errUsage
	}
	n, err := s.Space(args[0])
	if err != nil {
		return "", err
	}
	stdout, stderr, err := n.Run(s.command(args[1:]))
	_, _ = fmt.Fprint(s.TS.Stdout(), stdout)
	_, _ = fmt.Fprint(s.TS.Stderr(), stderr)
	return stdout, err
}

func cmdOn(s *Story, neg bool, args []string) error {
	_, err := s.runOn(args)
	if neg && err == nil {
		return errors.New("it succeeded, but should have failed")
	}
	if neg && isExit(err) {
		return nil
	}
	return err
}

func cmdStart(s *Story, neg bool, args []string) error {
	if neg || len(args) < 2 {
		return errUsage
	}
	name, where, ok := strings.Cut(args[0], "@")
	if !ok {
		return errUsage
	}
	if p := s.procs[args[0]]; p != nil && p.Running() {
		return fmt.Errorf("%s runs already", args[0])
	}
	n, err := s.Space(where)
	if err != nil {
		return err
	}
	c := s.command(args[1:])
	if name == "agent" {
		c.Cgroup = n.host.AgentCgroup()
	}
	s.procs[args[0]], err = n.start(c)
	return err
}

func (s *Story) oneProc(neg bool, args []string) (*Proc, error) {
	if neg || len(args) != 1 {
		return nil, errUsage
	}
	return s.Proc(args[0])
}

func cmdTerminate(s *Story, neg bool, args []string) error {
	p, err := s.oneProc(neg, args)
	if err != nil {
		return err
	}
	return p.Stop()
}

func cmdCrash(s *Story, neg bool, args []string) error {
	p, err := s.oneProc(neg, args)
	if err != nil {
		return err
	}
	p.Kill()
	return nil
}

func cmdOutput(s *Story, neg bool, args []string) error {
	if len(args) != 2 {
		return errUsage
	}
	p, err := s.Proc(args[0])
	if err != nil {
		return err
	}
	re, err := regexp.Compile("(?m)" + args[1])
	if err != nil {
		return err
	}
	out := p.Output()
	if re.MatchString(out) == neg {
		return fmt.Errorf("output of %s: match for %q is %v:\n%s", args[0], args[1], !neg, out)
	}
	return nil
}

func cmdEventually(s *Story, neg bool, args []string) error {
	if neg || len(args) < 3 {
		return errUsage
	}
	limit, err := time.ParseDuration(args[0])
	if err != nil {
		return err
	}
	args = args[1:]
	if args[0] == "output" {
		return poll(limit, pollInterval, func() error { return cmdOutput(s, false, args[1:]) })
	}
	re, unwanted := regexp.MustCompile(""), false
	if word := strings.TrimPrefix(args[0], "!"); word == "stdout" {
		unwanted = word != args[0]
		if re, err = regexp.Compile("(?m)" + args[1]); err != nil {
			return err
		}
		args = args[2:]
	}
	if len(args) < 3 || args[0] != "on" {
		return errUsage
	}
	n, err := s.Space(args[1])
	if err != nil {
		return err
	}
	var stdout, stderr string
	err = poll(limit, pollInterval, func() error {
		var err error
		stdout, stderr, err = n.Run(s.command(args[2:]))
		if err == nil && re.MatchString(stdout) == unwanted {
			err = fmt.Errorf("stdout: match for %q is %v", re, !unwanted)
		}
		return err
	})
	_, _ = fmt.Fprint(s.TS.Stdout(), stdout)
	_, _ = fmt.Fprint(s.TS.Stderr(), stderr)
	if err != nil {
		return fmt.Errorf("not within %v: %w", limit, err)
	}
	return nil
}

func cmdPartition(s *Story, neg bool, args []string) error { return s.setCut(neg, args, true) }

func cmdHeal(s *Story, neg bool, args []string) error { return s.setCut(neg, args, false) }

func (s *Story) setCut(neg bool, args []string, cut bool) error {
	hosts, err := s.hostsOf(neg, args, 2)
	if err != nil {
		return err
	}
	return s.Lab.setCut(hosts[0], hosts[1], cut)
}

func cmdInventory(s *Story, neg bool, args []string) error {
	hosts, err := s.hostsOf(neg, args, 0)
	if err != nil {
		return err
	}
	for _, h := range hosts {
		if s.before[h.name], err = h.inventory(); err != nil {
			return err
		}
	}
	return nil
}

func cmdUnchanged(s *Story, neg bool, args []string) error {
	hosts, err := s.hostsOf(neg, args, 0)
	if err != nil {
		return err
	}
	for _, h := range hosts {
		before, ok := s.before[h.name]
		if !ok {
			return fmt.Errorf("no inventory of host %s was taken", h.name)
		}
		now, err := h.inventory()
		if err != nil {
			return err
		}
		if diff := Diff(before, now); len(diff) > 0 {
			return fmt.Errorf("host %s has changed:\n%s", h.name, strings.Join(diff, "\n"))
		}
	}
	return nil
}

func cmdAbandon(s *Story, neg bool, args []string) error {
	hosts, err := s.hostsOf(neg, args, 0)
	for _, h := range hosts {
		h.Abandon()
	}
	return err
}
