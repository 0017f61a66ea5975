package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// wakeLimit is how long a change may take to wake all watchers.
const wakeLimit = 20 * time.Second

// heldAfter is how long queries wait before what they cost is read: what they hold, and not what their arrival has left behind. It is
// shorter than servers wait for the first request of the connection that writes.
const heldAfter = 6 * time.Second

// watch holds n blocking queries on one service, changes it as often as changes says and adds when the first, the middle and the last
// query was answered in full, counted from the moment the change was sent. It also adds what the queries cost in memory while parked.
func watch(ctx context.Context, t *target, n, changes int) error {
	key := fmt.Sprintf("watch/%d/", n)
	if err := settle(ctx, t.pid, wakeLimit); err != nil {
		return err
	}
	before, err := rss(t.pid)
	if err != nil {
		return err
	}
	p, err := dialPool(ctx, t.http, n+1) // the last one writes
	if err != nil {
		return err
	}
	defer p.close()
	w := &watchers{pool: p, n: n, index: 0}
	if err := w.park(ctx); err != nil { // answered at once, with the index to wait for
		return err
	}
	if err := w.woken(ctx, nil); err != nil {
		return err
	}
	for change := range changes {
		if err := w.park(ctx); err != nil {
			return err
		}
		if err := settle(ctx, t.pid, wakeLimit); err != nil {
			return err
		}
		if change == 0 {
			if err := pause(ctx, heldAfter); err != nil {
				return err
			}
			held, err := rss(t.pid)
			if err != nil {
				return err
			}
			t.add(key+"held", held-before)
		}
		t.sequence++
		began := time.Now()
		if err := p.send(n, appendInstance(nil, 0, 0, 9000+t.sequence%1000)); err != nil {
			return err
		}
		h := &histogram{}
		if err := w.woken(ctx, func() { h.add(time.Since(began)) }); err != nil {
			return err
		}
		t.add(key+"first", millis(h.percentile(0)))
		t.add(key+"median", millis(h.percentile(0.5)))
		t.add(key+"last", millis(h.percentile(1)))
	}
	after, err := rss(t.pid)
	if err != nil {
		return err
	}
	t.add(key+"after", after-before)
	return nil
}

// watchers are n connections of a pool with a blocking query each; the pool's last connection is for the change.
type watchers struct {
	pool  *pool
	n     int
	index uint64 // of the last answers
	open  int    // queries and changes that are not answered
}

// park sends the blocking queries.
func (w *watchers) park(ctx context.Context) error {
	path := "/v1/health/service/" + serviceName(0) + "?passing&wait=5m"
	if w.index > 0 {
		path += "&index=" + strconv.FormatUint(w.index, 10)
	}
	request := appendRequest(nil, http.MethodGet, path, nil)
	for i := range w.n {
		if err := errors.Join(ctx.Err(), w.pool.send(i, request)); err != nil {
			return err
		}
	}
	w.open = w.n
	return nil
}

// woken waits until all queries are answered, and the change if one was sent; each is called for every query.
func (w *watchers) woken(ctx context.Context, each func()) error {
	if each != nil {
		w.open++
	}
	for end := time.Now().Add(wakeLimit); w.open > 0; {
		_, err := w.pool.poll(20*time.Millisecond, func(i int, c *conn) error {
			w.open--
			if failure := failureOf(&c.reply); failure != "" {
				return errors.New(failure)
			}
			if i == w.n {
				return nil
			}
			w.index = max(w.index, c.reply.index)
			if each != nil {
				each()
			}
			return nil
		})
		if err := errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		if w.open > 0 && time.Now().After(end) {
			return fmt.Errorf("%d of %d blocking queries not answered within %s of the change", w.open, w.n, wakeLimit)
		}
	}
	return nil
}
