package consulapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fairlead-net/fairlead/internal/acl"
)

// Logs passes log records on to a handler, and to those who watch them over
// HTTP. Its methods may be called by many goroutines.
type Logs struct {
	next    slog.Handler
	context []slog.Attr // what has been said with With, groups in their keys
	group   string      // of what comes next, with a dot
	shared  *watchers
}

var _ slog.Handler = (*Logs)(nil)

// watchers are those who watch.
type watchers struct {
	mu  sync.Mutex // guards the following
	all []*watcher
}

// watcher is one who watches.
type watcher struct {
	level slog.Level
	json  bool
	lines chan string
	lost  int // guarded by watchers.mu
}

// watcherLines is how many lines a slow watcher may be behind before some are
// dropped.
const watcherLines = 512

// NewLogs returns a handler in front of next.
func NewLogs(next slog.Handler) *Logs { return &Logs{next: next, shared: &watchers{}} }

// Enabled implements slog.Handler.
func (l *Logs) Enabled(ctx context.Context, level slog.Level) bool {
	return l.shared.want(level) || l.next.Enabled(ctx, level)
}

// Handle implements slog.Handler.
func (l *Logs) Handle(ctx context.Context, r slog.Record) error {
	if l.shared.want(r.Level) {
		l.shared.pass(r, l.context, l.group)
	}
	if !l.next.Enabled(ctx, r.Level) {
		return nil
	}
	return l.next.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (l *Logs) WithAttrs(attrs []slog.Attr) slog.Handler {
	more := slices.Clone(l.context)
	for _, a := range attrs {
		more = flatten(more, l.group, a)
	}
	return &Logs{next: l.next.WithAttrs(attrs), context: more, group: l.group, shared: l.shared}
}

// WithGroup implements slog.Handler.
func (l *Logs) WithGroup(name string) slog.Handler {
	return &Logs{next: l.next.WithGroup(name), context: l.context, group: l.group + name + ".", shared: l.shared}
}

// watch returns lines of at least a level until done is called, which returns how
// many were dropped because the watcher was too slow.
func (l *Logs) watch(level slog.Level, asJSON bool) (lines <-chan string, done func() (lost int)) {
	w := &watcher{level: level, json: asJSON, lines: make(chan string, watcherLines)}
	l.shared.mu.Lock()
	defer l.shared.mu.Unlock()
	l.shared.all = append(l.shared.all, w)
	return w.lines, func() int {
		l.shared.mu.Lock()
		defer l.shared.mu.Unlock()
		l.shared.all = slices.DeleteFunc(l.shared.all, func(o *watcher) bool { return o == w })
		return w.lost
	}
}

func (ws *watchers) want(level slog.Level) bool {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return slices.ContainsFunc(ws.all, func(w *watcher) bool { return level >= w.level })
}

func (ws *watchers) pass(r slog.Record, said []slog.Attr, group string) {
	attrs := slices.Clone(said)
	r.Attrs(func(a slog.Attr) bool {
		attrs = flatten(attrs, group, a)
		return true
	})
	var plain, asJSON string
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, w := range ws.all {
		if r.Level < w.level {
			continue
		}
		line := &plain
		if w.json {
			line = &asJSON
		}
		if *line == "" {
			*line = logLine(r, attrs, w.json)
		}
		select {
		case w.lines <- *line:
		default:
			w.lost++
		}
	}
}

// flatten appends an attribute, or those of a group with its name in front.
func flatten(to []slog.Attr, group string, a slog.Attr) []slog.Attr {
	a.Value = a.Value.Resolve()
	if a.Value.Kind() != slog.KindGroup {
		return append(to, slog.Attr{Key: group + a.Key, Value: a.Value})
	}
	if a.Key != "" {
		group += a.Key + "."
	}
	for _, b := range a.Value.Group() {
		to = flatten(to, group, b)
	}
	return to
}

// logLine writes a record in the form of Consul's logs, which tools read.
func logLine(r slog.Record, attrs []slog.Attr, asJSON bool) string {
	const stamp = "2006-01-02T15:04:05.000Z07:00"
	if asJSON {
		m := map[string]any{
			"@level": strings.ToLower(levelName(r.Level)), "@message": r.Message, "@module": "agent",
			"@timestamp": r.Time.Format("2006-01-02T15:04:05.000000Z07:00"),
		}
		for _, a := range attrs {
			m[a.Key] = a.Value.String()
		}
		b, err := json.Marshal(m)
		if err != nil {
			return err.Error() + "\n"
		}
		return string(b) + "\n"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %-7s agent: %s", r.Time.Format(stamp), "["+levelName(r.Level)+"]", r.Message)
	for i, a := range attrs {
		if i == 0 {
			b.WriteByte(':')
		}
		v := a.Value.String()
		if strings.ContainsAny(v, " \"=\n\t") || v == "" {
			v = fmt.Sprintf("%q", v)
		}
		fmt.Fprintf(&b, " %s=%s", a.Key, v)
	}
	return b.String() + "\n"
}

func levelName(l slog.Level) string {
	switch {
	case l < slog.LevelInfo:
		return "DEBUG"
	case l < slog.LevelWarn:
		return "INFO"
	case l < slog.LevelError:
		return "WARN"
	}
	return "ERROR"
}

// logLevels are Consul's; we have none below debug.
var logLevels = map[string]slog.Level{
	"": slog.LevelInfo, "TRACE": slog.LevelDebug, "DEBUG": slog.LevelDebug, "INFO": slog.LevelInfo,
	"WARN": slog.LevelWarn, "ERR": slog.LevelError, "ERROR": slog.LevelError,
}

// agentMonitor streams the agent's log until the client goes away.
func (h *handler) agentMonitor(c *call) (answer, error) {
	if err := h.requireAgent(c, acl.Read); err != nil {
		return answer{}, err
	}
	level, ok := logLevels[strings.ToUpper(c.params.Get("loglevel"))]
	if !ok {
		return answer{}, badRequest("Unknown log level: %s", c.params.Get("loglevel"))
	}
	if h.Logs == nil {
		return answer{}, unavailable("The log is")
	}
	lines, done := h.Logs.watch(level, c.has("logjson"))
	err := stream(c, lines, func() bool {
		c.lookAgain() // the token may have ended since
		return h.requireAgent(c, acl.Read) == nil
	})
	if lost := done(); lost > 0 {
		h.log.Warn("a watcher of the log was too slow", "dropped", lost)
	}
	return answer{status: http.StatusOK, written: true}, err
}

// stream sends lines until the request ends or may no longer see them, those that
// wait together at once.
func stream(c *call, lines <-chan string, may func() bool) error {
	const every = 200 * time.Millisecond
	out := http.NewResponseController(c.w)
	c.h.Set("Content-Type", "text/plain; charset=utf-8")
	c.w.WriteHeader(http.StatusOK)
	if err := out.Flush(); errors.Is(err, http.ErrNotSupported) {
		return fmt.Errorf("Streaming not supported") //nolint:staticcheck // Consul's text
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	waiting := false
	for {
		select {
		case <-c.r.Context().Done():
			return nil
		case line := <-lines:
			if !may() {
				return nil
			}
			if _, err := c.w.Write([]byte(line)); err != nil {
				return nil //nolint:nilerr // the client is gone
			}
			waiting = true
		case <-ticker.C:
			if !may() || (waiting && out.Flush() != nil) {
				return nil
			}
			waiting = false
		}
	}
}
