package transfer

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
)

// page is how many keys are read and written by one worker in one go.
const page = 64

// entry is a key as the API shows it.
type entry struct {
	Key         string
	Value       []byte
	Flags       uint64
	ModifyIndex uint64
	Session     string
}

func (a entry) same(b entry) bool { return bytes.Equal(a.Value, b.Value) && a.Flags == b.Flags }

// keys copies the key/value store folder by folder, so that no answer grows with
// the size of the whole tree.
func (im *importing) keys(ctx context.Context) error {
	im.begin(Keys)
	// When one fails, the others end between two keys: a write that is under way
	// is seen through, so that the summary is true.
	g, group := errgroup.WithContext(ctx)
	pages := make(chan []string)
	g.Go(func() error {
		defer close(pages)
		return im.walk(group, im.cfg.Prefix, pages)
	})
	for range workers {
		g.Go(func() error {
			for keys := range pages {
				for _, key := range keys {
					if group.Err() != nil {
						return nil
					}
					if err := im.key(ctx, key); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// walk sends every key that begins with prefix, a page at a time.
func (im *importing) walk(ctx context.Context, prefix string, pages chan<- []string) error {
	for folders := []string{prefix}; len(folders) > 0; {
		folder := folders[len(folders)-1]
		folders = folders[:len(folders)-1]
		var found []string
		if _, err := im.from.get(ctx, kvPath(folder), url.Values{"keys": {""}, "separator": {"/"}}, &found); err != nil {
			return fmt.Errorf("list the keys below %q in Consul: %w", folder, err)
		}
		var leaves []string
		for _, key := range found {
			// A key may end with the separator as well: then its own folder lists it.
			if strings.HasSuffix(key, "/") && len(key) > len(folder) {
				folders = append(folders, key)
			} else {
				leaves = append(leaves, key)
			}
		}
		for len(leaves) > 0 {
			n := min(page, len(leaves))
			select {
			case pages <- leaves[:n]:
			case <-ctx.Done():
				return ctx.Err()
			}
			leaves = leaves[n:]
		}
	}
	return nil
}

// key copies one key.
func (im *importing) key(ctx context.Context, key string) error {
	source, found, err := im.from.entry(ctx, key)
	if err != nil {
		return fmt.Errorf("read key %q in Consul: %w", key, err)
	}
	if !found {
		im.remark("key %q was deleted in Consul meanwhile", key)
		return nil
	}
	if source.Session != "" {
		im.remark("key %q is locked in Consul: its value was copied, the lock was not", key)
	}
	o, err := im.put(ctx, source)
	if err != nil {
		return err
	}
	im.done(Keys, o, fmt.Sprintf("key %q", key))
	return nil
}

// put writes an entry unless somebody else's is there. Each write is bound to
// what was seen, so that one that is repeated, or that meets another writer, does
// nothing.
func (im *importing) put(ctx context.Context, source entry) (outcome, error) {
	o, wrote := created, false // after a write was tried, what is there may be ours
	for try := 1; ; try++ {
		there, found, err := im.to.entry(ctx, source.Key)
		switch {
		case err != nil:
			return 0, fmt.Errorf("read key %q: %w", source.Key, err)
		case found && there.same(source) && wrote:
			return o, nil
		case found && there.same(source):
			return unchanged, nil
		case found && !im.cfg.Overwrite:
			return conflict, nil
		case try > tries:
			return 0, fmt.Errorf("write key %q: somebody else keeps writing it", source.Key)
		}
		if o = created; found {
			o = replaced
		}
		if im.cfg.DryRun {
			return o, nil
		}
		q := url.Values{"cas": {strconv.FormatUint(there.ModifyIndex, 10)}}
		if source.Flags != 0 {
			q.Set("flags", strconv.FormatUint(source.Flags, 10))
		}
		b, err := im.to.do(ctx, http.MethodPut, kvPath(source.Key), q, source.Value)
		switch {
		case err != nil:
			if again(err) { // the last try may have been carried out
				im.uncertain(fmt.Sprintf("key %q", source.Key))
			}
			return 0, fmt.Errorf("write key %q: %w", source.Key, err)
		case strings.TrimSpace(string(b)) == "true":
			return o, nil
		}
		wrote = true
	}
}

// entry reads one key.
func (e *end) entry(ctx context.Context, key string) (entry, bool, error) {
	var all []entry
	if _, err := e.get(ctx, kvPath(key), nil, &all); err != nil || len(all) == 0 {
		return entry{}, false, err
	}
	return all[0], true, nil
}

// kvPath keeps what a key consists of, "//" and "%" included.
func kvPath(key string) string {
	u := url.URL{Path: "/v1/kv/" + key}
	return u.EscapedPath()
}
