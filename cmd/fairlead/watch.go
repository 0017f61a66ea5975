package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairlead-net/fairlead/api"
)

// watchWait is how long one blocking query waits; the next follows at once.
const watchWait = 5 * time.Minute

// The bounds of the pause before a query that failed is tried again.
const (
	watchFirstPause   = time.Second
	watchLongestPause = 30 * time.Second
)

func kvWatch(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "watch {KEY | PREFIX/}", Short: "Show a key, or all below a prefix, and each change",
		Long: `Prints what is there, then every change, until it is interrupted. A word that ends
with / stands for every key that begins with it. Each line is the index of the
change, set or delete, the key and the value; with -o json it is an object.
Changes that follow each other within a moment may be shown as one. An agent that
goes away is waited for.`,
		Args: exactly(1), ValidArgsFunction: o.keys,
		RunE: func(c *cobra.Command, args []string) error {
			if err := notEmpty(args[0]); err != nil {
				return err
			}
			cl, err := o.client()
			if err != nil {
				return err
			}
			w := watcher{next: cl.WatchKV, name: args[0], show: func(ch change) error { return ch.print(c.OutOrStdout(), o.output) }}
			w.warn = func(text string) { warn(c, text) }
			err = w.run(c.Context())
			if c.Context().Err() != nil && errors.Is(err, context.Canceled) {
				return nil // that is how a watch ends
			}
			return err
		},
	}
}

// watcher follows part of the key/value store.
type watcher struct {
	next func(ctx context.Context, name string, index uint64, wait time.Duration) ([]api.KV, uint64, error) // api.Client.WatchKV
	name string
	show func(change) error
	warn func(string)
}

func (w *watcher) run(ctx context.Context) error {
	known := map[string]api.KV{}
	index, first, pause := uint64(0), true, watchFirstPause
	for {
		all, next, err := w.next(ctx, w.name, index, watchWait)
		if err != nil {
			var refused *api.Error
			if ctx.Err() != nil {
				return context.Canceled
			}
			// Whoever names a wrong address or key should hear it at once. Later
			// it is an agent that restarts.
			if first || (errors.As(err, &refused) && refused.Status < 500) {
				return err
			}
			w.warn(fmt.Sprintf("%v; trying again in %s", err, pause))
			select {
			case <-ctx.Done():
				return context.Canceled
			case <-time.After(pause):
			}
			pause = min(2*pause, watchLongestPause)
			continue
		}
		for _, ch := range changes(known, all, next) {
			if err := w.show(ch); err != nil {
				return err
			}
		}
		index, first, pause = next, false, watchFirstPause
	}
}

// changes brings known up to what there is now, and returns how it got there:
// removals in the order of keys, then what was set in the order of time.
func changes(known map[string]api.KV, now []api.KV, index uint64) []change {
	var out []change
	there := map[string]bool{}
	for _, kv := range now {
		there[kv.Key] = true
	}
	for _, key := range slices.Sorted(maps.Keys(known)) {
		if !there[key] {
			delete(known, key)
			out = append(out, change{Event: "delete", entry: entry{Key: key, ModifyIndex: index}})
		}
	}
	now = slices.Clone(now)
	slices.SortStableFunc(now, func(a, b api.KV) int { return int(int64(a.ModifyIndex) - int64(b.ModifyIndex)) })
	for _, kv := range now {
		if old, ok := known[kv.Key]; !ok || old.ModifyIndex != kv.ModifyIndex {
			known[kv.Key] = kv
			out = append(out, change{Event: "set", entry: shownKV(kv)})
		}
	}
	return out
}
