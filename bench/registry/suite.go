package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// warming is the load before each measured window.
const warming = 200 * time.Millisecond

// A suite runs rows and parts against all targets in turns.
type suite struct {
	*options
	targets []*target
	dir     string
}

// each runs one part for every target. A part that fails is noted, and the others go on.
func (s *suite) each(ctx context.Context, label string, part func(*target) error) error {
	for _, t := range s.targets {
		fmt.Fprintf(os.Stderr, "%s: %s\n", t.name, label)
		if err := part(t); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			t.note("%s: %v", label, err)
		}
	}
	return nil
}

// run goes from the empty registry to the restart; memory is read at the stages in between.
func (s *suite) run(ctx context.Context) error {
	stages := []func(context.Context) error{s.fill, s.reads, s.watches, s.writes, s.restarts}
	for _, stage := range stages {
		if err := stage(ctx); err != nil {
			return errors.Join(err, s.clear())
		}
	}
	return s.clear()
}

// clear takes what was written out of peers, even after the end of the run's context.
func (s *suite) clear() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	return s.each(ctx, "remove what was written", func(t *target) error {
		if t.own != nil {
			return nil
		}
		return errors.Join(unload(ctx, t), forgetAgentServices(ctx, t))
	})
}

// memory adds the resident memory once the server is quiet.
func (s *suite) memory(ctx context.Context, t *target, key string) error {
	if !s.wants("memory") {
		return nil
	}
	if err := settle(ctx, t.pid, 5*time.Second); err != nil {
		return err
	}
	mib, err := rss(t.pid)
	if err == nil {
		t.add("memory/"+key, mib)
	}
	return err
}

func (s *suite) fill(ctx context.Context) error {
	return s.each(ctx, "load instances and keys", func(t *target) error {
		if s.wants("start") && t.own != nil {
			if err := coldStarts(ctx, t, s.dir, s.starts-1); err != nil {
				return err
			}
		}
		if err := s.memory(ctx, t, "idle"); err != nil {
			return err
		}
		first, err := loadInstances(ctx, t, 0, 1)
		if err != nil {
			return err
		}
		// As many windows as of the row that they are compared with.
		for range s.repeat {
			if !s.wants("scale") {
				break
			}
			c, err := gets(1, func(int) string { return "/v1/catalog/services" })(ctx, t, 16, window{warm: warming, length: s.length})
			if err := refused(c, err); err != nil {
				return err
			}
			t.add("scale/cpu", c.micros(c.cpu))
		}
		rest, err := loadInstances(ctx, t, 1, instances)
		if err != nil {
			return err
		}
		t.add("load/rate", float64(first.ops+rest.ops)/(first.elapsed+rest.elapsed).Seconds())
		t.add("load/cpu", float64((first.cpu+rest.cpu).Microseconds())/float64(first.ops+rest.ops))
		if err := loadKeys(ctx, t); err != nil {
			return err
		}
		return s.memory(ctx, t, "instances")
	})
}

// load runs the rows that read or those that write: window by window, the targets in turns.
func (s *suite) load(ctx context.Context, write bool) error {
	for range s.repeat {
		for _, r := range rows() {
			if r.write != write || !s.wants(r.key) {
				continue
			}
			for _, conns := range connections {
				err := s.each(ctx, fmt.Sprintf("%s, %d connections", r.key, conns), func(t *target) error {
					return record(ctx, t, r, conns, window{warm: warming, length: s.length})
				})
				if err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (s *suite) reads(ctx context.Context) error {
	if err := s.load(ctx, false); err != nil {
		return err
	}
	for _, t := range s.targets {
		small, measured := t.figure("scale/cpu")
		if large, too := t.figure("catalog-services/16/cpu"); measured && too {
			t.add("scale/growth", large/max(small, 0.01))
		}
	}
	if err := s.each(ctx, "memory after the reads", func(t *target) error { return s.memory(ctx, t, "read") }); err != nil {
		return err
	}
	if !s.wants("memory") {
		return nil
	}
	if err := pause(ctx, s.pause); err != nil {
		return err
	}
	return s.each(ctx, "memory after a pause", func(t *target) error { return s.memory(ctx, t, "paused") })
}

func (s *suite) watches(ctx context.Context) error {
	if !s.wants("watch") {
		return nil
	}
	for _, n := range s.watchers {
		err := s.each(ctx, fmt.Sprintf("%d blocking queries", n), func(t *target) error { return watch(ctx, t, n, s.changes) })
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *suite) writes(ctx context.Context) error {
	if err := s.load(ctx, true); err != nil {
		return err
	}
	if s.wants("growth") {
		err := s.each(ctx, "5,000 services of one agent", func(t *target) error {
			return growth(ctx, t, 5000, 5, 10*s.length)
		})
		if err != nil {
			return err
		}
	}
	if !s.wants("appear") {
		return nil
	}
	return s.each(ctx, "registered -> in DNS", func(t *target) error { return appear(ctx, t, s.trials) })
}

func (s *suite) restarts(ctx context.Context) error {
	if !s.wants("restart") {
		return nil
	}
	return s.each(ctx, "restart", func(t *target) error {
		if t.own == nil {
			return nil
		}
		return restart(ctx, t, s.starts)
	})
}
