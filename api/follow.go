package api

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// followWait is how long one blocking query waits; the next follows at once.
const followWait = time.Minute

// The bounds of the pause before a query that failed is asked again. An agent is
// on the same host, so that asking soon is cheap.
const (
	firstPause   = 100 * time.Millisecond
	longestPause = 3 * time.Second
)

// followApart is the least time between two queries, so that what changes all the
// time is not asked for all the time.
const followApart = 20 * time.Millisecond

// errNoIndex is an answer that cannot be waited behind.
var errNoIndex = errors.New("the answer has no index")

// follow asks again and again until ctx ends. Each query is told the index that
// its answer is to be newer than, 0 for what there is now, and returns that of its
// answer. It keeps Consul's rules for blocking queries: an index that went back, or
// that is none, is forgotten, and so is one from before an error, since the agent
// may have been replaced. What a query fails with goes to lost.
func follow(ctx context.Context, ask func(ctx context.Context, index uint64) (uint64, error), lost func(error)) {
	index, pause := uint64(0), firstPause
	for ctx.Err() == nil {
		began := time.Now()
		next, err := ask(ctx, index)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			lost(err)
			sleep(ctx, jittered(pause))
			index, pause = 0, min(2*pause, longestPause)
			continue
		case next == 0:
			sleep(ctx, jittered(longestPause))
		case next < index:
			next = 0
		}
		index, pause = next, firstPause
		sleep(ctx, followApart-time.Since(began))
	}
}

// jittered is between half of d and d: clients that lost an agent together come
// back apart.
func jittered(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// blocking makes one blocking query and returns the answer and its index.
func blocking[T any](ctx context.Context, c *Client, path string, q url.Values, index uint64) (T, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, followWait+followWait/8+watchGrace)
	defer cancel()
	if index != 0 {
		q.Set("index", strconv.FormatUint(index, 10))
		q.Set("wait", followWait.String())
	}
	var v T
	b, h, err := c.DoHeader(ctx, http.MethodGet, path+query(q.Encode()), nil)
	if err != nil {
		return v, 0, err
	}
	if err := decode(path, b, &v); err != nil {
		return v, 0, err
	}
	next, err := strconv.ParseUint(h.Get("X-Consul-Index"), 10, 64)
	if err != nil {
		return v, 0, fmt.Errorf("%s: %w", path, errNoIndex)
	}
	return v, next, nil
}
