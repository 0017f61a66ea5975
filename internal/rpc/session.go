package rpc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/fairlead-net/fairlead/internal/identity"
	"github.com/fairlead-net/fairlead/internal/task"
)

const (
	// beatEvery is how often a node says that it is there, beatLimit how long it
	// may be silent until its session is over.
	beatEvery, beatLimit = time.Second, 3 * time.Second
	beat                 = "beat"
)

// How a node says goodbye; without that its session was cut off.
const (
	// GoodbyeLeave says that it does not come back.
	GoodbyeLeave = "leave"
	// GoodbyeRestart says that it is back soon.
	GoodbyeRestart = "restart"
)

// session reads a node's lines: beats and, at the end, a goodbye. Each beat is
// answered, so that the node notices a server that hangs.
func (s *Server) session(w http.ResponseWriter, r *http.Request, n identity.Node) {
	heard, gone, err := s.cfg.Presence.Attach(r.Context(), n, remote(r))
	if err != nil {
		s.result(w, r, n, nil, err)
		return
	}
	goodbye := ""
	defer func() { gone(goodbye) }()
	out := http.NewResponseController(w)
	w.WriteHeader(http.StatusOK)
	if out.Flush() != nil {
		return
	}
	defer endReading(r.Context(), out)()
	lines := bufio.NewScanner(r.Body)
	lines.Buffer(make([]byte, 64), 64)
	for {
		// A silent node's stream is read no longer; what it says then is too late.
		if out.SetReadDeadline(time.Now().Add(beatLimit)) != nil || r.Context().Err() != nil || !lines.Scan() {
			return
		}
		switch line := lines.Text(); line {
		case beat:
			heard()
			if out.SetWriteDeadline(time.Now().Add(beatLimit)) != nil {
				return
			}
			if _, err := io.WriteString(w, beat+"\n"); err != nil || out.Flush() != nil {
				return
			}
		case GoodbyeLeave, GoodbyeRestart:
			goodbye = line
			return
		}
	}
}

// endReading ends reading as soon as ctx ends: a server that ends does not wait
// for the next line. The handler calls stop before it returns, behind which out
// is nobody's.
func endReading(ctx context.Context, out *http.ResponseController) (stop func()) {
	over := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		defer close(over)
		_ = out.SetReadDeadline(time.Now()) // a stream that has ended needs none
	})
	return func() {
		if !cancel() {
			<-over
		}
	}
}

// Session keeps a session with some server until ctx ends and says goodbye then,
// with what goodbye returns. attached is called with true when a server has
// answered, with false when none does.
func (c *Client) Session(ctx context.Context, goodbye func() string, attached func(bool)) {
	retry := task.Backoff{Min: 50 * time.Millisecond, Max: 2 * time.Second}
	for ctx.Err() == nil {
		err := c.hold(ctx, goodbye, func() {
			retry.Reset()
			attached(true)
		})
		attached(false)
		if ctx.Err() != nil {
			return
		}
		c.cfg.Log.Warn("the session with the servers was lost", "error", err)
		if task.Sleep(ctx, retry.Next()) != nil {
			return
		}
	}
}

// hold keeps one session until it breaks or ctx ends.
func (c *Client) hold(ctx context.Context, goodbye func() string, attached func()) error {
	in, out := io.Pipe()
	// It outlives ctx for the time of the goodbye.
	sctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer out.Close()
	req, err := http.NewRequestWithContext(sctx, http.MethodPost, "https://"+identity.ServerName+pathSession, in)
	if err != nil {
		return err
	}
	stop := time.AfterFunc(callLimit, cancel) // until the server has answered
	resp, err := c.RoundTrip(req)             //nolint:bodyclose // it is, below
	if err != nil {
		return fmt.Errorf("open a session: %w", errors.Join(err, sctx.Err()))
	}
	defer resp.Body.Close()
	if !stop.Stop() {
		return fmt.Errorf("open a session: %w", sctx.Err())
	}
	at, _ := c.Server()
	if resp.StatusCode != http.StatusOK {
		c.avoid(at) // another one may take it
		var f failure
		if err := decode(resp.Body, &f); err != nil || f.Text == "" {
			return fmt.Errorf("open a session: the server answers %s", resp.Status)
		}
		return fmt.Errorf("open a session: %w", c.cfg.Codes.errorOf(f))
	}
	attached()
	silent := time.AfterFunc(beatLimit, cancel)
	defer silent.Stop()
	var cut error // read when ended is closed
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		lines := bufio.NewScanner(resp.Body)
		for lines.Scan() {
			if strings.TrimSpace(lines.Text()) == beat {
				silent.Reset(beatLimit)
			}
		}
		cut = errors.Join(lines.Err(), io.EOF)
	}()
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for {
		if _, err := io.WriteString(out, beat+"\n"); err != nil {
			c.avoid(at)
			return fmt.Errorf("server %s: %w", at, err)
		}
		select {
		case <-ended:
			c.avoid(at)
			return fmt.Errorf("server %s: %w", at, cut)
		case <-ctx.Done():
			if g := goodbye(); g != "" {
				_, _ = io.WriteString(out, g+"\n")
			}
			out.Close()
			select { // the server ends the stream when it has read it
			case <-ended:
			case <-time.After(beatEvery):
			}
			return nil
		case <-tick.C:
		}
	}
}
