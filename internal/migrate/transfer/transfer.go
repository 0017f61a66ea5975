// Package transfer copies the content of a running Consul into a running agent of
// ours, through the HTTP API that both have: keys and values, services of external
// nodes, and on request prepared queries and ACLs.
//
// Import may be run again and again: what is there already is left as it is, and
// nothing is ever removed. It keeps no goroutines beyond the call.
package transfer

import (
	"context"
	"fmt"
	"slices"
	"sync"
)

// Config says what to copy from where to where.
type Config struct {
	From, To Peer
	KV       bool
	Prefix   string // of the keys
	Services bool
	Queries  bool
	ACL      bool
	// Overwrite replaces what is at the target and differs; otherwise it is left
	// and counted as a conflict.
	Overwrite bool
	// DryRun only says what would be done.
	DryRun bool
}

// The kinds of things in a Summary, in the order of copying.
const (
	Keys     = "keys"
	Nodes    = "external nodes"
	Services = "external services"
	Policies = "ACL policies"
	Roles    = "ACL roles"
	Tokens   = "ACL tokens"
	Queries  = "prepared queries"
)

// Count is what happened to one kind of things.
type Count struct {
	Kind string `json:"kind"`
	// Created were not at the target, Replaced were there and different,
	// Unchanged were there and the same, Conflicts are different and were left.
	Created   int `json:"created"`
	Replaced  int `json:"replaced"`
	Unchanged int `json:"unchanged"`
	Conflicts int `json:"conflicts"`
}

// Summary is what an import did, complete even if it ended with an error; of a
// dry run, what it would have done.
type Summary struct {
	Counts []Count `json:"counts"`
	// Conflicts name what is at the target too and differs, sorted.
	Conflicts []string `json:"conflicts"`
	// Remarks tell of what was not copied and why, sorted.
	Remarks []string `json:"remarks"`
	// Uncertain are writes that got no answer, sorted: they may have been done.
	Uncertain []string `json:"uncertain"`
}

// Conflicting reports whether something was left because it differs.
func (s Summary) Conflicting() bool { return len(s.Conflicts) > 0 }

// Import copies. With an error the summary says what was written until then.
func Import(ctx context.Context, cfg Config) (Summary, error) {
	from, err := newEnd(cfg.From)
	if err != nil {
		return Summary{}, fmt.Errorf("Consul's address: %w", err) //nolint:staticcheck // a name
	}
	to, err := newEnd(cfg.To)
	if err != nil {
		return Summary{}, fmt.Errorf("the agent's address: %w", err)
	}
	defer from.close()
	defer to.close()
	im := &importing{cfg: cfg, from: from, to: to, remarked: map[string]bool{}}
	err = im.run(ctx)
	if from.filtered.Load() {
		im.remark("the token may not see everything in Consul: what it may not see was not copied")
	}
	for _, list := range [][]string{im.sum.Conflicts, im.sum.Remarks, im.sum.Uncertain} {
		slices.Sort(list)
	}
	return im.sum, err
}

// importing is one import under way.
type importing struct {
	cfg      Config
	from, to *end

	mu       sync.Mutex // guards following
	sum      Summary
	remarked map[string]bool
}

func (im *importing) run(ctx context.Context) error {
	if err := im.from.isConsul(ctx); err != nil {
		return err
	}
	for _, step := range []struct {
		wanted bool
		do     func(context.Context) error
	}{
		// Rights come last: what is copied before needs none of them.
		{im.cfg.KV, im.keys}, {im.cfg.Services, im.catalog}, {im.cfg.Queries, im.queries}, {im.cfg.ACL, im.acl},
	} {
		if !step.wanted {
			continue
		}
		if err := step.do(ctx); err != nil {
			return err
		}
	}
	return nil
}

// outcome is what became of one thing.
type outcome int

const (
	created outcome = iota
	replaced
	unchanged
	conflict
)

// begin makes a kind appear in the summary, even if there is none of it.
func (im *importing) begin(kind string) {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.count(kind)
}

// count is called with mu held.
func (im *importing) count(kind string) *Count {
	i := slices.IndexFunc(im.sum.Counts, func(c Count) bool { return c.Kind == kind })
	if i < 0 {
		i = len(im.sum.Counts)
		im.sum.Counts = append(im.sum.Counts, Count{Kind: kind})
	}
	return &im.sum.Counts[i]
}

// done notes what became of a thing, which what describes if it is a conflict.
func (im *importing) done(kind string, o outcome, what string) {
	im.mu.Lock()
	defer im.mu.Unlock()
	switch c := im.count(kind); o {
	case created:
		c.Created++
	case replaced:
		c.Replaced++
	case unchanged:
		c.Unchanged++
	case conflict:
		c.Conflicts++
		im.sum.Conflicts = append(im.sum.Conflicts, what)
	}
}

// remark notes once what was not copied.
func (im *importing) remark(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	im.mu.Lock()
	defer im.mu.Unlock()
	if !im.remarked[text] {
		im.remarked[text] = true
		im.sum.Remarks = append(im.sum.Remarks, text)
	}
}

// uncertain notes a write that may have been done.
func (im *importing) uncertain(what string) {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.sum.Uncertain = append(im.sum.Uncertain, what)
}
