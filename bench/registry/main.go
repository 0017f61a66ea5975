package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

type options struct {
	rows     []string // keys of rows and parts; none is all
	quick    bool
	repeat   int
	length   time.Duration
	pause    time.Duration
	watchers []int
	changes  int
	trials   int
	starts   int
	dir      string
	binary   string
	json     string
	timeout  time.Duration
	peers    []*target
	only     *target // measured alone, without Fairlead
}

func main() {
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err == nil {
		err = run(o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "registry:", err)
		os.Exit(1)
	}
}

// parse reads the command line. It says rows and parts itself for --rows help.
func parse(args []string) (*options, error) {
	o := &options{watchers: []int{1000, 5000}, changes: 5, trials: 20, starts: 3}
	flags := flag.NewFlagSet("registry", flag.ContinueOnError)
	chosen := flags.String("rows", "", "what to measure, separated by commas; help lists it")
	flags.BoolVar(&o.quick, "quick", false, "short windows, no repeats, 1,000 watchers: about a minute")
	flags.IntVar(&o.repeat, "repeat", 3, "windows of each cell; the table has their medians")
	flags.DurationVar(&o.length, "length", time.Second, "length of a window")
	flags.DurationVar(&o.pause, "pause", 15*time.Second, "how long a server is left alone before its memory is read again")
	flags.StringVar(&o.dir, "dir", "/var/tmp", "directory on a disk for the agent's data")
	flags.StringVar(&o.binary, "binary", "", "Fairlead's binary (default: it is built)")
	flags.StringVar(&o.json, "json", "", "file for all figures as JSON")
	flags.DurationVar(&o.timeout, "timeout", 30*time.Minute, "end of everything")
	base := flags.String("http", "", "measure only this server: its URL")
	dns := flags.String("dns", "127.0.0.1:8600", "with --http: its DNS address")
	pid := flags.Int("pid", 0, "with --http: its process")
	name := flags.String("name", "peer", "with --http: its name")
	flags.Func("target", "a peer beside Fairlead: name,url,dns,pid (may be given again)", func(text string) error {
		t, err := parseTarget(text)
		o.peers = append(o.peers, t)
		return err
	})
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if *chosen == "help" {
		flags.Usage()
		for _, key := range known() {
			fmt.Fprintln(os.Stderr, "  row", key)
		}
		return nil, flag.ErrHelp
	}
	if *chosen != "" {
		o.rows = strings.Split(*chosen, ",")
	}
	for _, key := range o.rows {
		if !slices.Contains(known(), key) {
			return nil, fmt.Errorf("no row %q: there are %s", key, strings.Join(known(), ", "))
		}
	}
	if *base != "" {
		if *pid <= 1 {
			return nil, errors.New("--http needs --pid: the server's CPU time is read from /proc")
		}
		t, err := newTarget(*name, *base, *dns, *pid)
		if err != nil {
			return nil, err
		}
		o.only = t
	}
	if o.repeat < 1 || o.length < 100*time.Millisecond {
		return nil, errors.New("--repeat is at least 1, --length at least 100ms")
	}
	if o.quick {
		o.repeat, o.length, o.pause = 1, min(o.length, 500*time.Millisecond), 5*time.Second
		o.watchers, o.changes, o.trials, o.starts = []int{1000}, 3, 5, 1
	}
	return o, nil
}

// known are the keys that --rows takes.
func known() []string {
	var keys []string
	for _, r := range rows() {
		keys = append(keys, r.key)
	}
	for _, p := range parts {
		keys = append(keys, p.key)
	}
	return keys
}

func (o *options) wants(key string) bool { return len(o.rows) == 0 || slices.Contains(o.rows, key) }

// run makes the targets, measures them, prints the tables, also of what was measured before a failure, and removes what it made.
func run(o *options) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	targets := o.peers
	if o.only != nil {
		targets = []*target{o.only}
	}
	if err := onDisk(o.dir); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(o.dir, "fl-bench-registry-")
	if err != nil {
		return fmt.Errorf("directory for the agent: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if o.only == nil {
		if o.binary == "" {
			if o.binary, err = build(ctx, dir); err != nil {
				return err
			}
		}
		own, err := newAgent(o.binary, dir)
		if err != nil {
			return err
		}
		targets = slices.Concat([]*target{own.target}, targets)
		took, err := own.start(ctx)
		defer func() {
			if _, err := own.stop(); err != nil {
				fmt.Fprintln(os.Stderr, "registry:", err)
			}
		}()
		if err != nil {
			return err
		}
		own.target.add("start/first-write", millis(took))
	}
	err = (&suite{options: o, targets: targets, dir: dir}).run(ctx)
	report(os.Stdout, targets)
	if o.json != "" {
		err = errors.Join(err, toFile(o.json, targets))
	}
	return err
}

func toFile(name string, targets []*target) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return fmt.Errorf("figures as JSON: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return writeJSON(f, targets)
}
